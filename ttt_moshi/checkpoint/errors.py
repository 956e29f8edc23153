"""What can go wrong with a checkpoint, as a person would tell the cases apart."""

from __future__ import annotations

from ttt_moshi.errors import UserError


class CheckpointError(UserError):
    """A checkpoint could not be saved, found or read. Base of the more telling errors below."""


class NoCheckpoint(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """There is nothing to resume from."""


class CorruptCheckpoint(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """The bytes on disk are not those that were saved. Names the file and, where it can, the tensor.

    Only a digest or a size that disagrees with the manifest says so, and only if a second read, past the page cache,
    says it too.
    """


class UnreadableCheckpoint(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """The operating system could not read a file, also not when asked again. Nothing is known of its bytes."""


class ForeignCheckpoint(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """A folder that this version did not write: no manifest, another format. It is listed and left alone."""


class SaveFailed(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """A save that was begun could not be committed, on any rank; earlier checkpoints are intact, the next may work."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class LostLock(CheckpointError):  # noqa: N818 - what happened, as a person says it
    """The lock file was deleted or replaced, so another run may write here: this one must end."""
