"""One conversation in moshi's own streaming mode: what was trained is what talks, 80 milliseconds at a time."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor

from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.slots import Reply, Slots, Snapshot, why_broken
from ttt_moshi.inference.speaker import Speaker


class Conversation:
    """Hears and says one frame after another. Use as a context manager.

    The model and the codec of `speaker` are in streaming mode meanwhile, so a speaker holds one conversation at a time;
    `Slots` are for several.

    Args:
        seed: of the draws, from 0 to 2**63 - 1: the same seed repeats a conversation.

    Attributes:
        speaker: who talks.
        frame_size: samples of a frame, at `sample_rate`.
    """

    def __init__(self, speaker: Speaker, sampling: Sampling | None = None, seed: int = 0) -> None:
        self.speaker = speaker
        self.seed = seed
        self._slots = Slots(speaker, 1, sampling)
        self.sample_rate, self.frame_size = self._slots.sample_rate, self._slots.frame_size

    @property
    def frames(self) -> int:
        """Heard so far."""
        return self._slots.frames[0]

    def __enter__(self) -> Conversation:
        self._slots.__enter__()
        try:
            self.start_over()
        except BaseException:
            self._slots.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slots.__exit__(kind, error, trace)

    def start_over(self) -> None:
        """Forgets everything, as if the conversation began now."""
        self._slots.join(0, self.seed)

    def hear(self, samples: Tensor) -> Reply | None:
        """The user's next frame; Moshi's frame of the same time, None as long as the model's delays hold it back.

        Args:
            samples: float32 [frame_size], on the CPU.

        Raises:
            InferenceError: another shape, samples that are not finite, or a memory that is not finite any more.
        """
        replies = self._slots.tick({0: samples})
        if 0 in self._slots.broken:
            raise InferenceError(why_broken(self.frames))
        return replies.get(0)

    def snapshot(self) -> Snapshot:
        """Everything that the next frame depends on."""
        return self._slots.snapshot(0)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on where another conversation was."""
        self._slots.restore(0, snapshot)
