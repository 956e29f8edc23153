"""Small files beside the checkpoints: which are pinned, and what was measured of them after they were saved.

They rank and protect checkpoints; nobody resumes from them, and no checkpoint's digests cover them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt_moshi.checkpoint import layout
from ttt_moshi.checkpoint.errors import CheckpointError, NoCheckpoint
from ttt_moshi.checkpoint.files import Files, replace_file
from ttt_moshi.checkpoint.manifest import Record
from ttt_moshi.checkpoint.trouble import patiently, read_start

Measured = dict[int, tuple[str, dict[str, float]]]  # step -> the state that was measured, and name -> value


def read_pins(files: Files, root: Path) -> set[int]:
    """Steps that a person has pinned."""
    content = _read(files, root, layout.PINS, [])
    try:
        return {int(step) for step in content}
    except (ValueError, TypeError) as error:
        what = f"{root / layout.PINS} must be a JSON list of steps ({error}); mend or delete it"
        raise CheckpointError(what) from error


def write_pins(files: Files, root: Path, steps: set[int]) -> None:
    """Replace the list of pinned steps."""
    replace_file(files, root / layout.PINS, json.dumps(sorted(steps)).encode())
    files.sync_folder(root)


def set_pinned(root: Path, step: int, pinned: bool = True, files: Files | None = None) -> None:
    """Keep a step from retention for good, or no longer. Raises NoCheckpoint if there is none."""
    files = files or Files()
    steps = layout.committed_steps(files, root)
    if step not in steps:
        raise NoCheckpoint(f"{root} has no checkpoint of step {step}; it has {', '.join(map(str, steps)) or 'none'}")
    pins = read_pins(files, root)
    write_pins(files, root, pins | {step} if pinned else pins - {step})


def read_measured(files: Files, root: Path) -> Measured:
    """What was measured of states after they were saved."""
    content = _read(files, root, layout.MEASURED, {})
    try:
        return {
            int(step): (str(of["state_id"]), {str(name): float(value) for name, value in of["metrics"].items()})
            for step, of in content.items()
        }
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        what = f"{root / layout.MEASURED} must be a JSON object of steps ({error!r}); mend or delete it"
        raise CheckpointError(what) from error


def write_measured(files: Files, root: Path, measured: Measured) -> None:
    """Replace what was measured, leaving out steps that are no longer there."""
    there = layout.committed_steps(files, root)
    kept = {
        str(step): {"state_id": state, "metrics": metrics}
        for step, (state, metrics) in sorted(measured.items())
        if step in there
    }
    replace_file(files, root / layout.MEASURED, json.dumps(kept).encode())
    files.sync_folder(root)


def all_metrics(manifest: Record, measured: Measured) -> Mapping[str, Any]:
    """Metrics of a checkpoint: those that were saved in it, and those that were measured of the same state later."""
    state, later = measured.get(manifest["step"], ("", {}))
    return {**manifest["metrics"], **later} if state == manifest["state_id"] else manifest["metrics"]


def _read(files: Files, root: Path, name: str, default: Any) -> Any:
    if name not in patiently(root, lambda: files.names(root)):
        return default
    try:
        return json.loads(read_start(files, root / name))
    except ValueError as error:
        raise CheckpointError(f"{root / name} is not valid JSON ({error}); mend or delete it") from error
