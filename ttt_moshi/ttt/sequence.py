"""A sequence of any length from any phase, cut into what the fast scan can do and block steps for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_moshi.ttt.block import Frames, Norm, Rule, block_step
from ttt_moshi.ttt.scan import Policy, scan
from ttt_moshi.ttt.state import Memory


def run_fresh(
    frames: Frames, memory: Memory, norm: Norm, rule: Rule, policy: Policy = "rebuild"
) -> tuple[Tensor, Memory]:
    """Any number of frames from the start of a mini-batch (every phase is 0): out [B, H, T, f], and the new memory.

    Whole mini-batches take the fast scan, the remainder is one block step. `policy` is the scan's.
    """
    T = frames.q.shape[2]
    whole = T // rule.mini_batch_size * rule.mini_batch_size
    outputs = []
    if whole:
        out, weights = scan(frames.between(0, whole), memory.weights, norm, rule, policy, memory.start)
        outputs.append(out)
        memory = memory._replace(weights=weights)
    if whole < T:
        out, memory = block_step(frames.between(whole, T), memory, norm, rule)
        outputs.append(out)
    return torch.cat(outputs, dim=2), memory


def run_from(
    frames: Frames, memory: Memory, norm: Norm, rule: Rule, policy: Policy = "rebuild"
) -> tuple[Tensor, Memory]:
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
        out, memory = run_fresh(frames.between(0, whole), memory, norm, rule, policy)
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
