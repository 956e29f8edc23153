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


def begin_with(
    speaker: Speaker,
    codes: Tensor,
    user: Tensor,
    sampling: Sampling | None = None,
    seed: int = 0,
    both_ways: bool = True,
) -> Snapshot:
    """Where a conversation is after its given frames.

    Args:
        codes: int64 [K, P], all streams of the given frames: text, Moshi's audio, the user's audio.
        user: float32 [P * frame_size], what the user's codes were made of.
        seed, both_ways: see `Slots.read_given`.

    Raises:
        InferenceError: more frames than the attention window holds.
    """
    with Slots(speaker, 1, sampling) as slots:
        slots.read_given(codes, user, seed, both_ways)
        return slots.snapshot(0)


def begin_beside(slots: Slots, text: str, greeting: bool = True) -> Snapshot:
    """Where a conversation is that begins with a text, made between two ticks of others.

    Args:
        greeting: whether a word may follow at once.

    Raises:
        InferenceError: a text of no token, or of more than the attention window holds.
    """
    with slots.set_aside():
        sampling = slots.sampling if greeting else slots.sampling.wordless()
        return begin_with(_aside(slots), *make_prompt(slots.speaker, text=text), sampling)


def go_on_beside(slots: Slots, codes: Tensor, user: Tensor, seed: int) -> Snapshot:
    """Where a conversation is after frames that count as said and heard, made between two ticks of others.

    Args:
        codes, user: as in `begin_with`.

    Raises:
        InferenceError: more frames than the attention window holds.
    """
    with slots.set_aside():
        return begin_with(_aside(slots), codes, user, slots.sampling, seed, both_ways=False)


def _aside(slots: Slots) -> Speaker:
    """The speaker of slots that are set aside: what keeps a sink's frames is at work already."""
    return replace(slots.speaker, sink=0)


def after_silence(speaker: Speaker, sampling: Sampling | None = None) -> Snapshot:
    """Where a conversation is with a model that wants silence first (`Speaker.silence`)."""
    with Slots(speaker, 1, sampling) as slots:
        slots.join(0, seed=0)
        for _ in range(speaker.silence):
            slots.tick({0: torch.zeros(slots.frame_size)})
        return slots.snapshot(0)


def make_prompt(speaker: Speaker, voice: Tensor | None = None, text: str | None = None) -> tuple[Tensor, Tensor]:
    """Given frames: Moshi speaks with `voice`, then reads `text` to herself, a token a frame; the user is silent.

    Args:
        voice: float32 [samples] at the model's rate.
        text: what Moshi should know, or who she is.

    Returns:
        `codes` and `user` for `begin_with`.

    Raises:
        InferenceError: neither, or a text of no token; or a model that only writes.
    """
    model, mimi = speaker.model, speaker.mimi
    if not speaker.speaks:
        raise InferenceError("this model writes what it hears and is nobody: it takes no prompt")
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
