"""What can go wrong with a checkpoint, as a person would tell the cases apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.checkpoint.restore import LoadReport


class CheckpointError(UserError):
    """A checkpoint could not be saved, found or read. Base of the more telling errors below."""


class NoCheckpoint(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """There is nothing to resume from."""


class DamagedCheckpoint(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """The bytes on disk are not those that were saved. Names the file and, where it can, the tensor."""


class Mismatch(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """The checkpoint is sound, but its tensors are not those that the model wants. `report` has the difference."""

    def __init__(self, message: str, report: LoadReport):
        super().__init__(message)
        self.report = report
