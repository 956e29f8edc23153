"""Draws that belong to a conversation: a pure function of its seed, the frame, the codebook and the token.

A generator that is shared by the rows of a batch would make what one visitor hears depend on who else is there. Here
no state exists at all: whoever repeats a conversation with its seed repeats its draws, on any device and in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SEED = 2**63 - 1

# The finaliser of splitmix64 (Steele, Lea, Flood 2014), in int64 arithmetic that wraps around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_BITS = 24


def choose(logits: Tensor, temperature: float, top_k: int, seeds: Tensor, frames: Tensor, codebook: int) -> Tensor:
    """One token of each row, int64 [B].

    Args:
        logits: float32 [B, card].
        temperature: 0 takes the likeliest token.
        top_k: draw among so many likeliest ones; 0 among all.
        seeds, frames: int64 [B], of each row's conversation.
        codebook: 0 for text, 1 ... for audio.
    """
    if temperature <= 0.0:
        return logits.argmax(dim=-1)
    k = min(top_k, logits.shape[-1]) or logits.shape[-1]
    values, tokens = logits.topk(k, dim=-1)
    # The largest of log p - log E, with E exponential, is a draw from p (the exponential race).
    scores = values / temperature - exponential(seeds, frames, codebook, tokens).log()
    return tokens.gather(-1, scores.argmax(dim=-1, keepdim=True))[:, 0]


def exponential(seeds: Tensor, frames: Tensor, codebook: int, tokens: Tensor) -> Tensor:
    """Exponential draws of rate 1, float32 of the shape of `tokens` [B, k]."""
    key = torch.zeros_like(seeds)
    for part in (seeds, frames, torch.full_like(seeds, codebook)):
        key = _absorb(key, part)
    bits = (_absorb(key[:, None], tokens) >> (64 - _BITS)) & (2**_BITS - 1)
    return -((bits.float() + 0.5) / 2**_BITS).log()


def _absorb(key: Tensor, value: Tensor) -> Tensor:
    x = key + (value + 1) * _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
