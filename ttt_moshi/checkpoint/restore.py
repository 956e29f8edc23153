"""Filling a model's tensors from a checkpoint, and saying exactly what was and was not restored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.coordination import Coordinator
from ttt_moshi.checkpoint.errors import CorruptCheckpoint, Mismatch, NoCheckpoint
from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.manifest import Record, collapse
from ttt_moshi.checkpoint.reading import Reading, checked_document, read_all
from ttt_moshi.checkpoint.recovery import note, quarantine
from ttt_moshi.checkpoint.rows import rows_of
from ttt_moshi.checkpoint.tensorfile import DTYPES
from ttt_moshi.checkpoint.verify import check_quickly


@dataclass
class LoadReport:
    """Names of tensors by what happened to them. `shape` and `dtype` hold lines that name both sides."""

    restored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shape: list[str] = field(default_factory=list)
    dtype: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether wanted and saved tensors agree exactly."""
        return not (self.missing or self.unexpected or self.shape or self.dtype)

    def text(self) -> str:
        """One line a kind, with the first names."""
        kinds = {
            "wanted but not in the checkpoint": self.missing,
            "in the checkpoint but not wanted": self.unexpected,
            "different shape": self.shape,
            "different dtype": self.dtype,
        }
        lines = [f"{len(self.restored)} tensors agree"]
        for kind, names in kinds.items():
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                lines.append(f"{len(names)} {kind}: {', '.join(names[:5])}{more}")
        return "; ".join(lines)


def compare(saved: Mapping[str, Record], wanted: Mapping[str, Tensor]) -> LoadReport:
    """What a load would do; `restored` are the names that agree in shape and dtype."""
    report = LoadReport(unexpected=sorted(set(saved) - set(wanted)))
    for name, tensor in sorted(wanted.items()):
        entry = saved.get(name)
        if entry is None:
            report.missing.append(name)
        elif tuple(entry["shape"]) != tuple(tensor.shape):
            report.shape.append(f"{name} (saved {entry['shape']}, wanted {list(tensor.shape)})")
        elif DTYPES[entry["dtype"]] != tensor.dtype:
            report.dtype.append(f"{name} (saved {entry['dtype']}, wanted {tensor.dtype})")
        else:
            report.restored.append(name)
    return report


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
        if reading.sound() is not rows[reading.name].local:
            rows[reading.name].local.copy_(reading.sound())


@dataclass(frozen=True)
class Loaded:
    """A restored checkpoint.

    `rank_state` is this rank's; None when the ranks' states differed and the number of ranks has changed, so that there
    is no right one. `skipped` are damaged newer checkpoints with the reason and where they were moved.
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
    """Chooses a checkpoint, together with the other ranks, and restores it. `writer` may move damaged ones aside."""

    def __init__(self, files: Files, root: Path, coordinator: Coordinator, writer: bool, log: Callable[[str], None]):
        self._files, self._root, self._talk, self._writer, self._log = files, root, coordinator, writer, log

    def run(self, step: int, tensors: Mapping[str, Tensor], strict: bool) -> Loaded:
        """As `CheckpointStore.load`."""
        number = self._talk.next_round()
        skipped: list[tuple[Path, str]] = []
        tried: set[int] = set()
        while True:
            # Listed anew each time: a reader's candidate may have been retired in favour of a newer one meanwhile.
            found = layout.committed_steps(self._files, self._root)
            steps = self._talk.share(number, f"steps without {sorted(tried)}", found)
            if step != -1 and step not in steps:
                has = ", ".join(map(str, steps)) or "none"
                raise NoCheckpoint(f"{self._root} has no checkpoint of step {step}; it has {has}")
            untried = [candidate for candidate in steps if candidate not in tried]
            if not untried:
                reasons = "".join(f"; {reason}" for _, reason in skipped)
                raise NoCheckpoint(f"no {'sound checkpoint' if tried else 'checkpoint yet'} in {self._root}{reasons}")
            candidate = untried[-1] if step == -1 else step
            loaded, damage = self._try(number, candidate, tensors, strict, skipped)
            if loaded is not None:
                if self._writer:
                    note(self._files, self._root, "resumed", step=loaded.step, state_id=loaded.state_id)
                return loaded
            if step != -1:
                raise CorruptCheckpoint(f"step {step} is damaged: {damage}. Step -1 takes the newest sound one.")
            tried.add(candidate)
            skipped.append((self._set_aside(number, candidate, damage), damage))

    def _try(
        self, number: int, step: int, tensors: Mapping[str, Tensor], strict: bool, skipped: list[tuple[Path, str]]
    ) -> tuple[Loaded | None, str]:
        """The loaded checkpoint, or None and why any rank found it damaged."""
        path, damage, loaded = self._root / layout.checkpoint_name(step), "", None
        with self._talk.telling(number):
            try:
                manifest = check_quickly(path, self._files)
                report = compare(manifest["tensors"], tensors)
                if strict and not report.ok:
                    raise Mismatch(f"{path} does not fit the model: {report.text()}", report)
                fill(self._files, path, manifest["tensors"], tensors, report.restored, self._talk.rank)
                # With its digest again: another save of the step may have replaced the folder since the quick check.
                data = checked_document(self._files, path, layout.STATE, manifest["files"][layout.STATE])
                content, kind, size = json.loads(data), manifest["kind"], manifest["world_size"]
                mine, identity = _mine(content["rank_state"], self._talk), manifest["state_id"]
                loaded = Loaded(step, path, identity, kind, content["state"], mine, size, manifest, report, skipped)
            except CorruptCheckpoint as error:
                damage = f"rank {self._talk.rank}: {error}" if self._talk.world_size > 1 else str(error)
        found = self._talk.gather(number, f"damage in {step}", damage)
        verdict = self._talk.share(number, f"verdict on {step}", "; ".join(filter(None, found or [])))
        return (None if verdict else loaded), verdict

    def _set_aside(self, number: int, step: int, reason: str) -> Path:
        """Quarantine a damaged checkpoint if this is the writer; a reader only passes over it. Where it is now."""
        place = self._root / layout.checkpoint_name(step)
        with self._talk.telling(number):
            if self._talk.rank == 0:
                if self._writer and place.exists():
                    place = quarantine(self._files, self._root, place, reason)
                self._log(f"the checkpoint of step {step}, now {place}, is damaged and was passed over: {reason}")
            return Path(self._talk.share(number, f"moved {step}", str(place)))


def _mine(states: list[Any], talk: Coordinator) -> Any:
    """This rank's state; a state that all had is everybody's, and there is none if ranks differed and were others."""
    if len(states) == talk.world_size:
        return states[talk.rank]
    return states[0] if len(collapse(states)) == 1 else None
