"""What a trained model gets right, recording by recording, through the package's own loader and scores."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from moshi.models.lm import LMOutput

from benchmarks.memory.recall import MOSHI_SEMANTIC
from ttt_moshi.data import Alphabet, Corpus, EvalSet
from ttt_moshi.evaluation import undisturbed
from ttt_moshi.evaluation.score import gather_nll, valid_tokens
from ttt_moshi.evaluation.statistics import bootstrap_mean
from ttt_moshi.moshi import TTTMoshi, ablate

SEMANTIC = MOSHI_SEMANTIC - 1
"""place of Moshi's semantic codebook among the audio logits"""


def controls(window: int) -> dict[str, dict[str, float | int]]:
    """Ablations under which only attention is left to remember: arguments of `ttt_moshi.moshi.ablate`."""
    return {
        "reset": {"reset_every": window},
        "inner lr 0": {"inner_lr": 0.0},
        "gate 0": {"gate": 0.0},
    }


def ablated(model: TTTMoshi, control: dict[str, float | int] | None) -> AbstractContextManager[None]:
    """The model with one control applied; None leaves it as it is."""
    return nullcontext() if control is None else ablate(model, **control)  # type: ignore[arg-type]


def recall(model: TTTMoshi, recordings: Path, frames: int, batch_size: int = 16) -> np.ndarray:
    """Share of the answers that are right in each recording, float64 [recordings].

    An answer is right where the most likely semantic code, after everything before it, is the true one.
    """
    shares = []
    with undisturbed(model):
        for batch in _clips(model, recordings, frames).batches(batch_size):
            logits = model(batch.codes).logits[:, SEMANTIC]
            truth = batch.codes[:, MOSHI_SEMANTIC]
            asked = valid_tokens(model, batch.codes, batch.valid_frames, batch.prefix_lengths)[:, MOSHI_SEMANTIC]
            right = (logits.argmax(-1) == truth) & asked
            shares.append(right.sum(1) / asked.sum(1))
    return torch.cat(shares).double().numpy()


def semantic_nll(model: TTTMoshi, recordings: Path, frames: int, batch_size: int = 8) -> np.ndarray:
    """Nats of every semantic code, float32 [recordings, frames]."""
    rows = []
    with undisturbed(model):
        for batch in _clips(model, recordings, frames).batches(batch_size):
            output = model(batch.codes)
            mask = valid_tokens(model, batch.codes, batch.valid_frames, batch.prefix_lengths)
            rows.append(gather_nll(output.text_logits, output.logits, batch.codes, mask).nll[:, MOSHI_SEMANTIC])
    return torch.cat(rows).numpy()


def nll_with_memory_of_another(model: TTTMoshi, recordings: Path, frames: int, swap: int) -> np.ndarray:
    """`semantic_nll` where each recording, at frame `swap`, gets the memory of the one before it in the list.

    Attention keeps its own window, so only what TTT layers wrote is somebody else's.
    """
    (batch,) = _clips(model, recordings, frames).batches(1_000_000)
    nll = []
    with undisturbed(model):
        stream = model.start_stream(len(batch))
        for codes in batch.codes.split(swap, dim=2):
            chunk = model.forward_chunk(codes, stream)
            output, stream = chunk.output, chunk.stream
            nll.append(gather_nll(output.text_logits, output.logits, chunk.targets, _masks(output)).nll)
            if len(nll) == 1:
                stream = stream.with_memory_of(stream.map(lambda tensor: tensor.roll(1, 0)))
    return torch.cat(nll, dim=2)[:, MOSHI_SEMANTIC].numpy()


def _masks(output: LMOutput) -> torch.Tensor:
    return torch.cat([output.text_mask, output.mask], dim=1)


def mean_and_interval(values: np.ndarray) -> dict[str, float | list[float] | int]:
    """Mean with its bootstrap interval over recordings."""
    return {"value": float(values.mean()), "ci95": list(bootstrap_mean(values)), "n": len(values)}


def _clips(model: TTTMoshi, recordings: Path, frames: int) -> EvalSet:
    alphabet = Alphabet(model.num_codebooks, model.text_card, model.card)
    return EvalSet(Corpus(str(recordings), None, None, frames * 0.08, alphabet=alphabet))
