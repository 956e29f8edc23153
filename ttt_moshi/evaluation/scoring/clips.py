"""Tokens of evaluation data: recordings with transcripts, whole or cut into clips, as training reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ttt_moshi.data.interleaver import ABSENT, MOSHI_STYLE
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece, Source
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.evaluation.streams import TextMode, UserMode

Silence = Callable[[int, int], torch.Tensor]  # start and number of frames -> codes of digital silence [K, frames]


class ClipBatch(Protocol):
    """A batch of clips; `ttt_moshi.data.Batch` is one."""

    codes: torch.Tensor  # int64 [B, 1 + 2K, T], -1 = absent
    sample_ids: list[str]
    prefix_lengths: torch.Tensor  # int64 [B]
    valid_frames: torch.Tensor  # int64 [B]


class ClipSet(Protocol):
    """A fixed list of clips that gives the same answer whenever it is asked; `ttt_moshi.data.EvalSet` is one."""

    fingerprint: str

    @property
    def clips(self) -> Sequence[Any]:
        """In order. The `id` of a clip is the same on every machine: its recording's, `@` and its first frame."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, rank: int, world_size: int) -> Iterator[ClipBatch]:
        """Batches of the list, from its beginning with every call."""


class ClipTokens:
    """The clips of a set as examples, and their tokens; each clip is read once.

    Args:
        text: `given` as recorded; `absent`, also for `sampled`, which the model writes; `pad` (PAD everywhere).
        user: `natural` as recorded; `silence`, for which `silence` is needed; `absent`.
        pad: the model's token for no new text.
    """

    def __init__(
        self,
        clips: ClipSet,
        text: TextMode = "given",
        user: UserMode = "natural",
        silence: Silence | None = None,
        pad: int = MOSHI_STYLE.pad,
    ):
        self._clips, self.text, self.user, self._silence, self._pad = clips, text, user, silence, pad
        self._tokens: dict[str, np.ndarray] = {}

    def examples(self) -> list[Example]:
        """Reads the clips. Those that hold no frame are left out.

        Raises:
            UserError: a recording or transcript that cannot be used, or a set without a clip.
        """
        if not len(self._clips):
            raise EvaluationError("the evaluation set holds no clips, so there is nothing to measure")
        found = []
        for clip, batch in zip(self._clips.clips, self._clips.batches(1, 0, 1), strict=True):
            frames = int(batch.valid_frames[0])
            if not frames:
                continue
            recording, _, start = clip.id.rpartition("@") if "@" in clip.id else (clip.id, "", "0")
            codes = batch.codes[0, :, :frames].numpy().astype(np.int32)
            self._tokens[clip.id] = self._with_streams(codes, int(start))
            piece = Piece(Source.file(Path(recording)), int(start), int(start) + frames)
            found.append(Example(clip.id, (piece,), prefix_frames=int(batch.prefix_lengths[0])))
        return found

    def _with_streams(self, codes: np.ndarray, start: int) -> np.ndarray:
        if self.text != "given":
            codes[0] = self._pad if self.text == "pad" else ABSENT
        user = 1 + (len(codes) - 1) // 2
        if self.user == "absent":
            codes[user:] = ABSENT
        elif self.user == "silence":
            assert self._silence is not None
            codes[user:] = self._silence(start, codes.shape[-1]).numpy()
        return codes

    def prepare(self, examples: Sequence[Example], progress: Callable[[int, int], None], ranks: Ranks) -> None:
        """Nothing is left to do: `examples` has read them."""

    def tokens(self, example: Example) -> np.ndarray:
        """int32 [1 + 2K, T] of a clip."""
        return self._tokens[example.id]

    def digest(self, examples: list[Example]) -> str:
        """The set's fingerprint."""
        return self._clips.fingerprint
