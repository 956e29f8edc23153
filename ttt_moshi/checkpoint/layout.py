"""Names inside a checkpoints folder: which folder is what, and nothing about their contents.

checkpoint_005000/     committed
unhealthy_005000/      committed, but not finite, in itself or in what it computes: kept to be looked at, never resumed
corrupt_005000/        failed verification and was set aside; reason.txt says why
left_005000/           intact, but of a branch that the run left when it was resumed from an earlier step
foreign_005000/        was in the place of checkpoint_005000 when that step was saved, and this program did not write it
.saving_005000/        being written; not a checkpoint
.replaced_005000/      the older checkpoint of a step that is being saved again; put back if that save did not finish
.trash_005000/         being deleted

`.quarantine_` and `.left_` are what earlier versions called `corrupt_` and `left_`.
"""

from __future__ import annotations

import re
from itertools import chain, count
from pathlib import Path

from ttt_moshi.checkpoint.files import Files
from ttt_moshi.checkpoint.trouble import patiently

MANIFEST = "manifest.json"
STATE = "resume/state.json"
LOCK = "LOCK"
LATEST = "LATEST"
JOURNAL = "journal.jsonl"
PINS = "pinned.json"
MEASURED = "measured.json"
REASON = "reason.txt"

TRASH = ".trash_"
LEFTOVERS = (".saving_", ".replaced_", TRASH)  # of work that was not finished
_ASIDE = re.compile(r"(unhealthy|corrupt|left|foreign|\.quarantine|\.left)_(\d{6,})(\.\d+)?")
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
    """Steps whose folder carries a committed name, ascending. Order is by step, never by file times.

    Raises UnreadableCheckpoint.
    """
    names = patiently(root, lambda: files.names(root))
    return sorted(step for name in names if (step := step_of(name)) is not None)


def aside_name(name: str, why: str) -> str:
    """Folder name of a committed checkpoint that is set aside because it is `why`."""
    return name.replace("checkpoint", why, 1)


def aside_reason(name: str) -> str | None:
    """Why a folder was set aside: "unhealthy", "corrupt", "left" or "foreign"; None for any other name."""
    match = _ASIDE.fullmatch(name)
    return {".quarantine": "corrupt", ".left": "left"}.get(match.group(1), match.group(1)) if match else None


def free_name(files: Files, root: Path, name: str) -> Path:
    """`root/name`, or the first of `name.1`, `name.2`, ... that is not taken."""
    taken, candidates = files.names(root), chain([name], (f"{name}.{number}" for number in count(1)))
    return root / next(candidate for candidate in candidates if candidate not in taken)
