"""Checkpoints: nothing is ever lost, nothing corrupt is ever believed.

Names are imported when they are first used, so that listing and verifying start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt_moshi.checkpoint.bare_disk import forget, read_speed, write_speed
    from ttt_moshi.checkpoint.checking import Problem, VerifyReport, verify
    from ttt_moshi.checkpoint.commit import put_back
    from ttt_moshi.checkpoint.errors import (
        CheckpointError,
        CorruptCheckpoint,
        ForeignCheckpoint,
        LostLock,
        NoCheckpoint,
        SaveFailed,
        UnreadableCheckpoint,
    )
    from ttt_moshi.checkpoint.export import Export
    from ttt_moshi.checkpoint.inspection import describe, diff
    from ttt_moshi.checkpoint.layout import aside_reason, checkpoint_name, step_of
    from ttt_moshi.checkpoint.listing import committed_steps, list_folder, newest_valid
    from ttt_moshi.checkpoint.manifest import read_manifest
    from ttt_moshi.checkpoint.mirror import check_mirror, copy_out
    from ttt_moshi.checkpoint.reading import iter_tensors, read_bytes, read_document, read_tensors
    from ttt_moshi.checkpoint.repairing import make_room, repair
    from ttt_moshi.checkpoint.report import LoadReport, Mismatch
    from ttt_moshi.checkpoint.restore import Loaded
    from ttt_moshi.checkpoint.retention import Retention, prune
    from ttt_moshi.checkpoint.saving import Saved
    from ttt_moshi.checkpoint.sidecars import set_pinned
    from ttt_moshi.checkpoint.store import CheckpointStore
    from ttt_moshi.checkpoint.unpacking import export_weights

_MODULES = {
    "bare_disk": ("forget", "read_speed", "write_speed"),
    "checking": ("Problem", "VerifyReport", "verify"),
    "commit": ("put_back",),
    "errors": (
        *("CheckpointError", "CorruptCheckpoint", "ForeignCheckpoint", "LostLock", "NoCheckpoint"),
        *("SaveFailed", "UnreadableCheckpoint"),
    ),
    "export": ("Export",),
    "inspection": ("describe", "diff"),
    "layout": ("aside_reason", "checkpoint_name", "step_of"),
    "listing": ("committed_steps", "list_folder", "newest_valid"),
    "manifest": ("read_manifest",),
    "mirror": ("check_mirror", "copy_out"),
    "reading": ("iter_tensors", "read_bytes", "read_document", "read_tensors"),
    "repairing": ("make_room", "repair"),
    "report": ("LoadReport", "Mismatch"),
    "restore": ("Loaded",),
    "retention": ("Retention", "prune"),
    "saving": ("Saved",),
    "sidecars": ("set_pinned",),
    "store": ("CheckpointStore",),
    "unpacking": ("export_weights",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "CorruptCheckpoint",
    "Export",
    "ForeignCheckpoint",
    "LoadReport",
    "Loaded",
    "LostLock",
    "Mismatch",
    "NoCheckpoint",
    "Problem",
    "Retention",
    "SaveFailed",
    "Saved",
    "UnreadableCheckpoint",
    "VerifyReport",
    "aside_reason",
    "check_mirror",
    "checkpoint_name",
    "committed_steps",
    "copy_out",
    "describe",
    "diff",
    "export_weights",
    "forget",
    "iter_tensors",
    "list_folder",
    "make_room",
    "newest_valid",
    "prune",
    "put_back",
    "read_bytes",
    "read_document",
    "read_manifest",
    "read_speed",
    "read_tensors",
    "repair",
    "set_pinned",
    "step_of",
    "verify",
    "write_speed",
]
