"""Given frames before a conversation: a voice, a text, or both, read as prefixes are in training.

Training reads the first frames of a recording in both directions of time and predicts none of them (`prefix_sec`). The
same frames given here leave the model in the same state; the conversation goes on from there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.slots import Slots, Snapshot
from ttt_moshi.inference.speaker import Speaker


def begin_with(speaker: Speaker, codes: Tensor, user: Tensor, sampling: Sampling | None = None) -> Snapshot:
    """Where a conversation is after its given frames.

    Args:
        codes: int64 [K, P], all streams of the given frames: text, Moshi's audio, the user's audio.
        user: float32 [P * frame_size], what the user's codes were made of.

    Raises:
        InferenceError: more frames than the attention window holds.
    """
    with Slots(speaker, 1, sampling) as slots:
        slots.read_given(codes, user)
        return slots.snapshot(0)


def begin_beside(slots: Slots, text: str) -> Snapshot:
    """Where a conversation is that begins with a text, made between two ticks of others.

    Raises:
        InferenceError: a text of no token, or of more than the attention window holds.
    """
    with slots.set_aside():
        speaker = replace(slots.speaker, sink=0)  # what keeps a sink's frames is at work already
        return begin_with(speaker, *make_prompt(speaker, text=text), slots.sampling)


def make_prompt(speaker: Speaker, voice: Tensor | None = None, text: str | None = None) -> tuple[Tensor, Tensor]:
    """Given frames: Moshi speaks with `voice`, then reads `text` to herself, a token a frame; the user is silent.

    Args:
        voice: float32 [samples] at the model's rate.
        text: what Moshi should know, or who she is.

    Returns:
        `codes` and `user` for `begin_with`.

    Raises:
        InferenceError: neither, or a text of no token.
    """
    model, mimi = speaker.model, speaker.mimi
    size = round(mimi.sample_rate / mimi.frame_rate)
    tokens = [] if text is None else speaker.tokenizer.encode(text)
    if text is not None and not tokens:
        raise InferenceError("the text of the prompt is empty")
    spoken = torch.zeros(0) if voice is None else voice
    first = -(-len(spoken) // size)
    P = first + len(tokens)
    if P == 0:
        raise InferenceError("the prompt has neither a voice nor a text")
    moshi, user = torch.zeros(P * size), torch.zeros(P * size)
    moshi[: len(spoken)] = spoken
    words = torch.full((1, P), model.text_padding_token_id, dtype=torch.int64)
    words[0, first:] = torch.tensor(tokens, dtype=torch.int64)
    with torch.no_grad():
        both = mimi.encode(torch.stack([moshi, user])[:, None].to(model.device)).cpu()  # [2, codebooks, P]
    heard = model.n_q - model.dep_q
    return torch.cat([words, both[0, : model.dep_q], both[1, :heard]]), user
