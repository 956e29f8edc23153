"""A sequence of any length from any phase, cut into block steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.block import Frames, Norm, Rule, block_step
from ttt_moshi.ttt.state import Memory


def run_fresh(frames: Frames, memory: Memory, norm: Norm, rule: Rule) -> tuple[Tensor, Memory]:
    """Any number of frames from the start of a mini-batch (every phase is 0): out [B, H, T, f], and the new memory."""
    T, K = frames.q.shape[2], rule.mini_batch_size
    outputs = []
    for start in range(0, T, K):
        out, memory = block_step(frames.between(start, start + K), memory, norm, rule)
        outputs.append(out)
    return torch.cat(outputs, dim=2), memory


def run_from(frames: Frames, memory: Memory, norm: Norm, rule: Rule) -> tuple[Tensor, Memory]:
    """Any number of frames from any phase, another one in every stream: out [B, H, T, f], and the new memory.

    The first step fills every stream's running mini-batch, which takes a different number of frames from each; from
    there on all are aligned, and each stream's own remainder is fed at the end.
    """
    T, K = frames.q.shape[2], rule.mini_batch_size
    head = min(T, K)
    taken = (K - memory.phase).clamp(max=T)  # [B]
    out, memory = block_step(frames.between(0, head), memory, norm, rule, take=taken)
    if T == 1:
        return out, memory
    later = torch.arange(T - 1, device=taken.device) + taken[:, None]  # [B, T - 1]: frame at each aligned place
    frames = Frames(*(_pick(t, later.clamp(max=T - 1)) for t in frames))
    outputs = [out]
    whole = max(T - K, 0) // K * K  # frames in whole mini-batches that every stream still has
    if whole:
        out, memory = run_fresh(frames.between(0, whole), memory, norm, rule)
        outputs.append(out)
    for start in range(whole, T - 1, K):
        stop = min(start + K, T - 1)
        take = (T - taken - start).clamp(0, stop - start)
        out, memory = block_step(frames.between(start, stop), memory, norm, rule, take=take)
        outputs.append(out)
    frame = torch.arange(T, device=taken.device).expand(len(taken), T)
    place = torch.where(frame < taken[:, None], frame, head + frame - taken[:, None])
    return _pick(torch.cat(outputs, dim=2), place), memory


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Frames `index` [B, n] of every stream; x [B, H, T] or [B, H, T, f]."""
    B, n = index.shape
    index = index.view(B, 1, n, *[1] * (x.dim() - 3)).expand(B, x.shape[1], n, *x.shape[3:])
    return x.gather(2, index)
