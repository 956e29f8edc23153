"""What share of the answers a model gives right."""

from __future__ import annotations

import numpy as np
import torch
from moshi.utils.compile import no_compile
from torch import Tensor

from ttt_moshi.moshi import TTTMoshi
from ttt_moshi.synthetic.recall.recordings import PAIRS, TEST_SEED
from ttt_moshi.synthetic.recall.task import MOSHI_SEMANTIC, answer_frames, make_example

SEMANTIC = MOSHI_SEMANTIC - 1
"""place of the agent's semantic codebook among the audio logits"""

BATCH_SIZE = 16


def make_codes(recordings: int, distance: int) -> Tensor:
    """Test recordings of one distance, int64 [recordings, STREAMS, T]; the same ones every time."""
    rng = np.random.default_rng([TEST_SEED, distance])
    return torch.from_numpy(np.stack([make_example(rng, PAIRS, distance).codes for _ in range(recordings)]))


def share_right(model: TTTMoshi, codes: Tensor, distance: int) -> np.ndarray:
    """Share of right answers in each recording of `make_codes`, float64 [recordings].

    An answer is right where the most likely semantic code, after everything before it, is the true one.
    """
    with torch.no_grad(), no_compile():
        logits = torch.cat([model(part).logits[:, SEMANTIC] for part in codes.split(BATCH_SIZE)])
    return _right(logits, codes, distance)


def share_right_with_memory_of_another(model: TTTMoshi, codes: Tensor, distance: int) -> np.ndarray:
    """The same where each recording, before the first question, gets the memory of the recording before it.

    Attention keeps its own window, so only what the TTT layers wrote is somebody else's.
    """
    asked = PAIRS + distance
    with torch.no_grad(), no_compile():
        told = model.forward_chunk(codes[..., :asked], model.start_stream(len(codes)))
        others = told.stream.map(lambda tensor: tensor.roll(1, 0))
        rest = model.forward_chunk(codes[..., asked:], told.stream.with_memory_of(others))
        logits = torch.cat([told.output.logits[:, SEMANTIC], rest.output.logits[:, SEMANTIC]], dim=1)
    return _right(logits, codes, distance)


def _right(logits: Tensor, codes: Tensor, distance: int) -> np.ndarray:
    """From logits [recordings, T, CARD]."""
    frames = torch.from_numpy(answer_frames(PAIRS, distance))
    right = logits[:, frames].argmax(-1) == codes[:, MOSHI_SEMANTIC, frames]
    return right.double().mean(1).numpy()
