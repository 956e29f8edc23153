"""Checkpoints: nothing is ever lost, nothing damaged is ever believed."""

from ttt_moshi.checkpoint.errors import (
    CheckpointError,
    CorruptCheckpoint,
    ForeignCheckpoint,
    LostLock,
    Mismatch,
    NoCheckpoint,
    SaveFailed,
    UnreadableCheckpoint,
)
from ttt_moshi.checkpoint.export import Export
from ttt_moshi.checkpoint.manifest import read_manifest
from ttt_moshi.checkpoint.mirror import copy_out
from ttt_moshi.checkpoint.reading import iter_tensors, read_document, read_tensors
from ttt_moshi.checkpoint.recovery import repair
from ttt_moshi.checkpoint.retention import Retention, prune
from ttt_moshi.checkpoint.store import CheckpointStore
from ttt_moshi.checkpoint.verify import Problem, verify

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "CorruptCheckpoint",
    "Export",
    "ForeignCheckpoint",
    "LostLock",
    "Mismatch",
    "NoCheckpoint",
    "Problem",
    "Retention",
    "SaveFailed",
    "UnreadableCheckpoint",
    "copy_out",
    "iter_tensors",
    "prune",
    "read_document",
    "read_manifest",
    "read_tensors",
    "repair",
    "verify",
]
