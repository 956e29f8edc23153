"""What a trained model gets right, recording by recording, through the package's own loader and scores."""

from __future__ import annotations

import json
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from moshi.models.lm import LMOutput

from ttt_moshi.config import ModelPaths
from ttt_moshi.data import Alphabet, Codec, Corpus, EvalSet
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.evaluation import undisturbed
from ttt_moshi.evaluation.scoring.chunked import score_in_chunks
from ttt_moshi.evaluation.scoring.score import gather_nll, valid_tokens
from ttt_moshi.evaluation.statistics import bootstrap_mean
from ttt_moshi.moshi import StreamState, TTTMoshi, ablate, resolve_model
from ttt_moshi.moshi.sink import attention_sink
from ttt_moshi.synthetic.recall.recordings import FRAME_SECONDS, PAIRS
from ttt_moshi.synthetic.recall.task import MOSHI_SEMANTIC

SEMANTIC = MOSHI_SEMANTIC - 1
"""place of Moshi's semantic codebook among the audio logits"""

CHUNK_FRAMES = 256
"""Long recordings are scored piece by piece; the result is that of one pass."""

BOUND_EVERY = 64
"""frames between corrections of a bounded memory; a multiple of the mini-batch, so that none is cut in two"""


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


def with_sink(model: TTTMoshi, positions: int) -> AbstractContextManager[None]:
    """The model with so many of a recording's first positions kept in its window; 0 leaves it as it is."""
    return attention_sink(model, positions) if positions else nullcontext()


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


def recall_in_pieces(model: TTTMoshi, recordings: Path, frames: int) -> np.ndarray:
    """As `recall`, in memory that does not grow with `frames`: an answer is right where more than half of the
    probability is on the true code, so never more often than there.
    """
    codes = read_codes(model, recordings, frames)
    said = codes[:, MOSHI_SEMANTIC] >= 0
    said[:, :PAIRS] = False  # the pairs are given
    right = torch.from_numpy(semantic_nll(model, codes)) < np.log(2.0)
    return ((right & said).sum(1) / said.sum(1)).double().numpy()


def read_codes(model: TTTMoshi, recordings: Path, frames: int) -> torch.Tensor:
    """The first `frames` of every recording, int64 [recordings, streams, frames], -1 where something is absent."""
    (batch,) = _clips(model, recordings, frames).batches(1_000_000)
    return batch.codes


def replace_by_codes(jsonl: Path, base_model: Path, longest: int) -> None:
    """Puts codes by the base model's Mimi in the place of recordings of sound, up to `longest` frames each."""
    info = resolve_model(ModelPaths(hf_repo_id=str(base_model)))
    codec = Codec(info.get_mimi(device="cpu"), info.mimi_config)
    with tempfile.TemporaryDirectory() as cache:
        corpus = Corpus(str(jsonl), codec, info.get_text_tokenizer(), longest * FRAME_SECONDS, cache)
        lines = []
        for clip in corpus.clips(0):
            batch = corpus.read([clip])
            path = clip.recording.audio.with_suffix(".safetensors")
            frames = int(batch.valid_frames)
            write_encoded(path, batch.codes[0, :, :frames])
            lines.append(json.dumps({"path": path.name, "duration": frames * FRAME_SECONDS}))
            clip.recording.audio.unlink()
    jsonl.write_text("\n".join(lines) + "\n", encoding="utf-8")


def semantic_nll(model: TTTMoshi, codes: torch.Tensor, batch_size: int = 8) -> np.ndarray:
    """Nats of every semantic code, float32 [recordings, frames], from codes [recordings, streams, frames]."""
    rows = []
    with undisturbed(model):
        for part in codes.split(batch_size):
            frames = torch.full((len(part),), part.shape[2])
            rows.append(score_in_chunks(model, part, frames, CHUNK_FRAMES).nll[:, MOSHI_SEMANTIC])
    return torch.cat(rows).numpy()


def nll_with_memory_of_another(model: TTTMoshi, codes: torch.Tensor, swap: int) -> np.ndarray:
    """`semantic_nll` where each recording, at frame `swap`, gets the memory of the one before it in the list.

    Attention keeps its own window, so only what TTT layers wrote is somebody else's.
    """
    nll = []
    with undisturbed(model):
        stream = model.start_stream(len(codes))
        for part in (codes[..., :swap], codes[..., swap:]):
            if nll:
                stream = stream.with_memory_of(stream.map(lambda tensor: tensor.roll(1, 0)))
            for piece in part.split(CHUNK_FRAMES, dim=2):
                chunk = model.forward_chunk(piece, stream)
                output, stream = chunk.output, chunk.stream
                nll.append(gather_nll(output.text_logits, output.logits, chunk.targets, _masks(output)).nll)
    return torch.cat(nll, dim=2)[:, MOSHI_SEMANTIC].numpy()


def nll_with_bounded_memory(model: TTTMoshi, codes: torch.Tensor, bound: float) -> np.ndarray:
    """`semantic_nll` where every `BOUND_EVERY` frames each matrix of each memory is brought back to within a distance
    of its trained start: `bound` times that start's own norm, head by head. Directions stay as they are.
    """
    nll = []
    with undisturbed(model):
        stream = model.start_stream(len(codes))
        for piece in codes.split(BOUND_EVERY, dim=2):
            chunk = model.forward_chunk(piece, stream)
            output = chunk.output
            nll.append(gather_nll(output.text_logits, output.logits, chunk.targets, _masks(output)).nll)
            stream = _bounded(model, chunk.stream, bound)
    return torch.cat(nll, dim=2)[:, MOSHI_SEMANTIC].numpy()


def _bounded(model: TTTMoshi, stream: StreamState, bound: float) -> StreamState:
    carries = list(stream.layers)
    for index in model.ttt_layers:
        memory, ttt = carries[index].memory, model.layers[index].ttt
        assert memory is not None and ttt is not None
        starts = ttt.init_state(1).tensors()
        changed = {}
        for name in ("W1", "W2"):
            if name in starts:
                # What is carried is counted from the start.
                distance, norm = (_norm(tensor) for tensor in (memory.tensors()[name], starts[name]))
                changed[name] = memory.tensors()[name] * (bound * norm / distance.clamp(min=1e-12)).clamp(max=1)
        carries[index] = replace(carries[index], memory=replace(memory, **changed))
    return replace(stream, layers=tuple(carries))


def _norm(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrices, keepdim=True)


def _masks(output: LMOutput) -> torch.Tensor:
    return torch.cat([output.text_mask, output.mask], dim=1)


def mean_and_interval(values: np.ndarray) -> dict[str, float | list[float] | int]:
    """Mean with its bootstrap interval over recordings."""
    return {"value": float(values.mean()), "ci95": list(bootstrap_mean(values)), "n": len(values)}


def _clips(model: TTTMoshi, recordings: Path, frames: int) -> EvalSet:
    alphabet = Alphabet(model.num_codebooks, model.text_card, model.card)
    return EvalSet(Corpus(str(recordings), None, None, frames * FRAME_SECONDS, alphabet=alphabet))
