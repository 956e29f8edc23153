"""The gated delta rule in its chunked form: exact for every frame, whatever a stream is cut into (arXiv 2412.06464).

Per head, with keys and queries of length 1 and W_0 the trained start, from which what is forgotten fades:

    u_t = beta_t (v_t - k_t W_0 - a_t k_t S_{t-1}),    S_t = a_t S_{t-1} + k_t^T u_t,    z_t = q_t W_0 + q_t S_t

S_t is the deviation of the fast weights from W_0. Over a chunk of frames, with G the running sum of log a,

    S_i = e^{G_i} S + sum_{j <= i} e^{G_i - G_j} k_j^T u_j

so the u of all its frames solve one unit lower triangular system. Systems of all chunks are solved at once, and what
is left for the walk through time are three products a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
"""Frames that are solved together."""


class DeltaFrames(NamedTuple):
    """What the rule reads and writes: q, k, v [B, H, T, f], beta and log_retain [B, H, T].

    `beta` is the share of its residual that a frame writes, `log_retain` the logarithm of what a frame leaves of what
    was written before it; None: everything.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_retain: Tensor | None


Core = Callable[[DeltaFrames, Tensor], tuple[Tensor, Tensor]]
"""What `chunked` computes."""


def delta_scan(frames: DeltaFrames, W: Tensor, start: Tensor, core: Core | None = None) -> tuple[Tensor, Tensor]:
    """Any number of frames: z [B, H, T, f] and the fast weights after the last.

    Args:
        W: fast weights before the first frame, [B, H, f, f].
        start: the trained start, [H, f, f].
        core: another form of `chunked`.
    """
    core = core or chunked
    if frames.log_retain is None:  # where nothing is forgotten, the start is nothing but a part of W
        return core(frames, W)
    T = frames.q.shape[2]
    of_keys, of_queries = (torch.cat([frames.k, frames.q], dim=2) @ start).split(T, dim=2)
    z, S = core(frames._replace(v=frames.v - of_keys), W - start)
    return of_queries + z, S + start


def chunked(frames: DeltaFrames, S: Tensor) -> tuple[Tensor, Tensor]:
    """q_t S_t of every frame, and the last S, where W_0 is zero."""
    T, C = frames.q.shape[2], min(CHUNK, frames.q.shape[2])
    # Frames that fill up the last chunk have keys of zero and write nothing.
    q, k, v = (_chunks(F.pad(t, (0, 0, 0, -T % C)), C) for t in (frames.q, frames.k, frames.v))
    beta = _chunks(F.pad(frames.beta, (0, -T % C)), C)[..., None]
    seen = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
    similar, read = k @ k.mT, torch.where(seen, q @ k.mT, 0.0)
    if frames.log_retain is None:
        k_faded, q_faded, k_left, left = k, q, k, None
    else:
        total = _chunks(F.pad(frames.log_retain, (0, -T % C)), C).cumsum(-1)[..., None]  # G: [B, H, N, C, 1]
        between = torch.exp((total - total.mT).masked_fill(~seen, -torch.inf))
        similar, read = similar * between, read * between
        faded, last = total.exp(), total[..., -1:, :]
        k_faded, q_faded, k_left, left = k * faded, q * faded, k * (last - total).exp(), last.exp()
    system = torch.where(seen.tril(-1), beta * similar, 0.0)
    known = torch.cat([beta * v, beta * k_faded], dim=-1)
    u_alone, u_of_S = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True).chunk(2, dim=-1)
    both = torch.cat([u_of_S, q_faded], dim=-2)
    outputs = []
    for n in range(q.shape[2]):
        of_S, read_S = (both[:, :, n] @ S).split(C, dim=2)
        u = u_alone[:, :, n] - of_S
        outputs.append(read_S + read[:, :, n] @ u)
        written = k_left[:, :, n].mT @ u
        S = S + written if left is None else left[:, :, n] * S + written
    return torch.cat(outputs, dim=2)[:, :, :T], S


def delta_step(frames: DeltaFrames, W: Tensor, start: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """`delta_scan` of one frame, without a temporary of the size of W where `in_place`."""
    q, k, v, beta, log_retain = frames
    both = torch.cat([k, q], dim=2)
    predicted = _times(both, W)
    if log_retain is not None:
        gone = -torch.expm1(log_retain)[..., None]  # [B, H, 1, 1]; 1 - exp(...) would lose long half-lives to rounding
        predicted = torch.lerp(predicted, both @ start, gone)
        W = W.lerp_(start, gone) if in_place else torch.lerp(W, start, gone)
    k_now, q_now = predicted.split(1, dim=2)
    u = beta[..., None] * (v - k_now)
    z = q_now + (q * k).sum(-1, keepdim=True) * u
    flat, update = W.flatten(0, 1), (k.flatten(0, 1).mT, u.flatten(0, 1))
    if in_place:
        flat.baddbmm_(*update)
        return z, W
    return z, torch.baddbmm(flat, *update).unflatten(0, W.shape[:2])


def _times(x: Tensor, W: Tensor) -> Tensor:
    return torch.bmm(x.flatten(0, 1), W.flatten(0, 1)).unflatten(0, x.shape[:2])


def _chunks(x: Tensor, size: int) -> Tensor:
    """[B, H, N * size, ...] to [B, H, N, size, ...]."""
    return x.unflatten(2, (-1, size))
