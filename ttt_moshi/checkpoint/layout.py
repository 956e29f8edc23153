"""Names inside a checkpoints folder: which folder is what, and nothing about their contents.

checkpoint_005000/     committed
unhealthy_005000/      committed, but with NaN or infinity in it: kept to be looked at, never resumed
.saving_005000/        being written; not a checkpoint
.replaced_005000/      the older checkpoint of a step that is being saved again; put back if that save did not finish
.trash_005000/         being deleted
.quarantine_005000/    failed verification; reason.txt says why
.left_005000/          sound, but of a branch that the run left when it was resumed from an earlier step
"""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path

from ttt_moshi.checkpoint.files import Files

MANIFEST = "manifest.json"
STATE = "resume/state.json"
LOCK = "LOCK"
LATEST = "LATEST"
JOURNAL = "journal.jsonl"
PINS = "pinned.json"
MEASURED = "measured.json"
REASON = "reason.txt"

_COMMITTED = re.compile(r"checkpoint_(\d{6,})")


def checkpoint_name(step: int) -> str:
    """Folder name of a committed checkpoint."""
    return f"checkpoint_{step:06d}"


def shard_name(rank: int, world_size: int) -> str:
    """Path of one rank's shard inside a checkpoint."""
    return f"resume/shard_{rank:05d}_of_{world_size:05d}.safetensors"


def step_of(name: str) -> int | None:
    """The step of a committed checkpoint's folder name, None for any other name."""
    match = _COMMITTED.fullmatch(name)
    return int(match.group(1)) if match and checkpoint_name(int(match.group(1))) == name else None


def committed_steps(files: Files, root: Path) -> list[int]:
    """Steps whose folder carries a committed name, ascending. Order is by step, never by file times."""
    return sorted(step for name in files.names(root) if (step := step_of(name)) is not None)


def free_name(files: Files, root: Path, name: str) -> Path:
    """`root/name`, or the first of `name.1`, `name.2`, ... that is not taken."""
    taken, candidates = files.names(root), chain([name], (f"{name}.{number}" for number in count(1)))
    return root / next(candidate for candidate in candidates if candidate not in taken)
