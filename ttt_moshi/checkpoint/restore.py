"""Choosing a checkpoint together with the other ranks, and filling a model's tensors from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.checking import check_quickly
from ttt_moshi.checkpoint.commit import log_event, set_aside
from ttt_moshi.checkpoint.coordination import Coordinator
from ttt_moshi.checkpoint.errors import CheckpointError, CorruptCheckpoint, ForeignCheckpoint, NoCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import Record, collapse
from ttt_moshi.checkpoint.reading import Reading, checked_document, read_all
from ttt_moshi.checkpoint.report import LoadReport, Mismatch, compare
from ttt_moshi.checkpoint.rows import rows_of


def fill(
    files: Files, path: Path, saved: Mapping[str, Record], tensors: Mapping[str, Tensor], names: list[str], rank: int
) -> None:
    """Read `names` into their tensors, in place. Raises CorruptCheckpoint; then some tensors may be overwritten."""
    rows = {name: rows_of(name, tensors[name], rank) for name in names}
    readings = [
        Reading(name, saved[name], part.local.contiguous(), part.start, part.stop)  # itself if it is contiguous
        for name, part in rows.items()
        if part.local.numel()
    ]
    read_all(files, path, readings)
    for reading in readings:
        if reading.verified() is not rows[reading.name].local:
            rows[reading.name].local.copy_(reading.verified())


@dataclass(frozen=True)
class Loaded:
    """A restored checkpoint.

    `rank_state` is this rank's; None when the ranks' states differed and the number of ranks has changed, so that there
    is no right one. `skipped` are newer checkpoints that are corrupt or foreign: where each is now, and why.
    """

    step: int
    path: Path
    state_id: str
    kind: str
    state: dict[str, Any]
    rank_state: Any
    world_size: int
    manifest: Record
    report: LoadReport
    skipped: list[tuple[Path, str]] = field(default_factory=list)


class Loader:
    """Restores one checkpoint on all ranks. A `writer` sets a corrupt newest one aside once an older is restored."""

    def __init__(self, files: Files, root: Path, coordinator: Coordinator, writer: bool, log: Callable[[str], None]):
        self._files, self._root, self._coordinator, self._writer, self._log = files, root, coordinator, writer, log

    def run(self, step: int, tensors: Mapping[str, Tensor], strict: bool) -> Loaded:
        """As `CheckpointStore.load`."""
        number = self._coordinator.next_round()
        passed: dict[int, tuple[str, str]] = {}  # step -> kind of error, message
        while True:
            # Listed anew each time: a reader's candidate may have been retired in favour of a newer one meanwhile.
            with self._coordinator.broadcast_errors(number):
                found = layout.committed_steps(self._files, self._root)
                steps = self._coordinator.share(number, f"steps without {sorted(passed)}", found)
            if step != -1 and step not in steps:
                has = ", ".join(map(str, steps)) or "none"
                raise NoCheckpoint(f"{self._root} has no checkpoint of step {step}; it has {has}")
            untried = [candidate for candidate in steps if candidate not in passed]
            if not untried:
                raise _nothing_left(self._root, passed)
            candidate = untried[-1] if step == -1 else step
            loaded, kind, what = self._try(number, candidate, tensors, strict)
            if loaded is not None:
                loaded.skipped.extend(self._pass_over(number, passed))
                if self._writer and self._coordinator.rank == 0:
                    log_event(self._files, self._root, "resumed", step=loaded.step, state_id=loaded.state_id)
                return loaded
            passed[candidate] = (kind, what)
            if step != -1:
                kinds = {"corrupt": CorruptCheckpoint, "foreign": ForeignCheckpoint}
                raise kinds[kind](f"step {step} is {kind}: {what}. Step -1 takes the newest one that verifies.")
            corrupt = [what for kind, what in passed.values() if kind == "corrupt"]
            if self._writer and len(corrupt) > 1:
                raise CorruptCheckpoint(
                    f"more than one checkpoint of {self._root} is corrupt, which points to this machine's memory or "
                    "disk rather than to one bad file. Nothing was moved. Check the machine, then run `ttt-moshi ckpt "
                    f"repair`, or name a step to resume from. {'; '.join(corrupt)}"
                )

    def _try(
        self, number: int, step: int, tensors: Mapping[str, Tensor], strict: bool
    ) -> tuple[Loaded | None, str, str]:
        """The loaded checkpoint, or None and why any rank passes over it: "corrupt" or "foreign", and what it found."""
        path, loaded, kind, what = self._root / layout.checkpoint_name(step), None, "", ""
        rank = f"rank {self._coordinator.rank}: " if self._coordinator.world_size > 1 else ""
        with self._coordinator.broadcast_errors(number):
            try:
                manifest = check_quickly(path, self._files)
                report = compare(manifest["tensors"], tensors)
                if strict and not report.ok:
                    raise Mismatch(f"{path} does not fit the model: {report.text()}", report)
                fill(self._files, path, manifest["tensors"], tensors, report.restored, self._coordinator.rank)
                # With its digest again: another save of the step may have replaced the folder since the quick check.
                data = checked_document(self._files, path, layout.STATE, manifest["files"][layout.STATE])
                content, saved_kind, size = json.loads(data), manifest["kind"], manifest["world_size"]
                own, identity = _own(content["rank_state"], self._coordinator), manifest["state_id"]
                loaded = Loaded(step, path, identity, saved_kind, content["state"], own, size, manifest, report)
            except CorruptCheckpoint as error:
                kind, what = "corrupt", rank + str(error)
            except ForeignCheckpoint as error:
                kind, what = "foreign", rank + str(error)
            gathered = self._coordinator.gather(number, f"trouble with {step}", [kind, what])
            verdict = None if gathered is None else _worst(gathered)
            kind, what = self._coordinator.share(number, f"verdict on {step}", verdict)
        return (None if kind else loaded), kind, what

    def _pass_over(self, number: int, passed: Mapping[int, tuple[str, str]]) -> list[tuple[Path, str]]:
        """Say aloud what was passed over, and set a corrupt one aside if this is the writer; where each is now."""
        places = []
        with self._coordinator.broadcast_errors(number):
            for step, (kind, what) in passed.items():
                place = self._root / layout.checkpoint_name(step)
                if self._coordinator.rank == 0:
                    if self._writer and kind == "corrupt" and place.exists():
                        place = set_aside(self._files, self._root, place.name, "corrupt", what)
                    self._log(f"the checkpoint of step {step}, now {place}, is {kind} and was passed over: {what}")
                places.append((Path(self._coordinator.share(number, f"moved {step}", str(place))), what))
        return places


def _nothing_left(root: Path, passed: Mapping[int, tuple[str, str]]) -> CheckpointError:
    if not passed:
        return NoCheckpoint(f"no checkpoint yet in {root}")
    reasons = "; ".join(what for _, what in passed.values())
    return NoCheckpoint(f"no checkpoint in {root} can be used, and nothing was moved: {reasons}")


def _worst(found: list[list[str]]) -> tuple[str, str]:
    """What the ranks found, as one: corrupt if any says so."""
    kinds = {kind for kind, _ in found}
    kind = next((kind for kind in ("corrupt", "foreign") if kind in kinds), "")
    return kind, "; ".join(what for other, what in found if kind and other == kind)


def _own(states: list[Any], coordinator: Coordinator) -> Any:
    """This rank's state; a state that all had is everybody's, and there is none if ranks differed and were others."""
    if len(states) == coordinator.world_size:
        return states[coordinator.rank]
    return states[0] if len(collapse(states)) == 1 else None
