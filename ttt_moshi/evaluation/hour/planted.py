"""Streams of tokens as long as is asked for, in which a passage is planted a given distance before it comes again.

A stream's host is a recording, or several end to end where none is long enough. The passage comes from another one and
its last frames are the targets; the twin of a stream has a third recording's passage planted at the same place. So
only what is remembered of the planted passage tells the targets of the two apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece, Source
from ttt_moshi.frames import frames_to_seconds

CHANNELS = ("agent", "user")


@dataclass(frozen=True)
class Told:
    """A recording: int32 [1 + 2K, T], text, the agent's codes, the user's."""

    id: str
    codes: np.ndarray


class Held:
    """Tokens that are in memory, as an engine asks for them."""

    def __init__(self) -> None:
        self._tokens: dict[str, np.ndarray] = {}

    def add(self, id: str, codes: np.ndarray, heard: Sequence[str]) -> Example:
        """The example of these tokens, made of the recordings of the ids `heard`."""
        self._tokens[id] = codes
        return Example(id, tuple(Piece(Source.file(Path(name))) for name in heard))

    def prepare(self, examples: Sequence[Example], progress: object, ranks: object) -> None:
        """Nothing is left to do."""

    def tokens(self, example: Example) -> np.ndarray:
        """int32 [1 + 2K, T]."""
        return self._tokens[example.id]

    def digest(self, examples: list[Example]) -> str:
        """Of all tokens and names."""
        digest = blake3.blake3()
        for example in examples:
            codes = np.ascontiguousarray(self._tokens[example.id], np.int32)
            digest.update(f"{example.id} {codes.shape} ".encode() + codes.tobytes())
        return digest.hexdigest()


def exact_window(distance: int, layers: int, delay: int) -> int:
    """The widest attention window that cannot reach `distance` frames back, however many layers are stacked.

    L layers with a window of W reach L (W - 1) + 1 positions, and the codebooks' delay further in frames. Below 1 there
    is none.
    """
    return (distance - delay - 3) // layers + 1


def reach(window: int, layers: int, delay: int) -> int:
    """Frames beyond which nothing is seen by attention alone: the inverse of `exact_window`."""
    return layers * (window - 1) + delay + 3


def join(recordings: Sequence[Told], frames: int) -> tuple[np.ndarray, list[str]]:
    """The first `frames` frames of recordings end to end, [1 + 2K, frames], and the ids of those that are in them.

    Raises:
        EvaluationError: they hold fewer.
    """
    parts, names, left = [], [], frames
    for recording in recordings:
        if left <= 0:
            break
        parts.append(recording.codes[:, :left])
        names.append(recording.id)
        left -= parts[-1].shape[1]
    if left > 0:
        held = frames_to_seconds(frames - left) / 60
        raise EvaluationError(
            f"the recordings are too short: {frames_to_seconds(frames) / 60:.2f} minutes are needed without hearing "
            f"any twice, and there are {held:.2f}; choose fewer --minutes, or add recordings"
        )
    return np.concatenate(parts, axis=1), names


def join_up_to(recordings: Sequence[Told], frames: int) -> tuple[np.ndarray, list[str]]:
    """As `join`, of the last `frames` frames of recordings end to end."""
    backwards = [Told(one.id, one.codes[:, ::-1]) for one in reversed(recordings)]
    codes, names = join(backwards, frames)
    return np.ascontiguousarray(codes[:, ::-1]), names[::-1]


def passage(recording: Told, frames: int, padding: tuple[int, int]) -> np.ndarray:
    """The stretch of a recording in which its agent says most, [1 + 2K, frames]: by words, and where there is no text
    by changes of the semantic code; the first of several.

    Raises:
        EvaluationError: a shorter recording.
    """
    codes = recording.codes
    if codes.shape[1] < frames:
        raise EvaluationError(f"{recording.id} is shorter than a passage of {frames} frames")
    said = (codes[0] >= 0) & ~np.isin(codes[0], padding)
    if not said.any():
        said = np.diff(codes[1], prepend=codes[1, :1]) != 0
    sums = np.convolve(said, np.ones(frames, int), mode="valid")
    start = int(sums.argmax())
    return codes[:, start : start + frames]


def plant(host: np.ndarray, heard: np.ndarray, at: int, channel: str) -> np.ndarray:
    """`host` with a passage from frame `at` on: its agent says it, or its user.

    What the user says has no text; all other channels stay as they are.
    """
    agent = (len(host) - 1) // 2
    planted, place = host.copy(), slice(at, at + heard.shape[1])
    if channel == "agent":
        planted[: 1 + agent, place] = heard[: 1 + agent]
    else:
        planted[1 + agent :, place] = heard[1 : 1 + agent]
    return planted


def with_targets(host: np.ndarray, said: np.ndarray) -> np.ndarray:
    """`host` whose agent says the passage at its end."""
    return plant(host, said, host.shape[1] - said.shape[1], "agent")
