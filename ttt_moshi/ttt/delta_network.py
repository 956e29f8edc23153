"""The third inner network: one matrix a head, written exactly, frame by frame, by the gated delta rule."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_moshi.ttt import delta_kernel
from ttt_moshi.ttt.block import log_retained
from ttt_moshi.ttt.config import LONGEST, TTTConfig
from ttt_moshi.ttt.delta import DeltaFrames, delta_scan, delta_step
from ttt_moshi.ttt.functional import layer_norm, rms_norm
from ttt_moshi.ttt.inner import InnerNetwork
from ttt_moshi.ttt.state import TTTState


class DeltaNetwork(InnerNetwork):
    """See `delta`. A stream's state is its matrices: no mini-batch, no phase; where frames write with the key of the
    frame before (`target` "next", "both"), that key as well, as its one row, zero before the first frame.

    Parameters: W1 [H, f, f], the step gate and the inner norm of every inner network, and where `forget` is "learned"
    learnable_ttt_forget_bias [H, 1], where it is "gated" learnable_ttt_forget_weight [H, 1, D] as well.
    """

    def __init__(self, config: TTTConfig, device: torch.device | str | None = None) -> None:
        super().__init__(config, config.head_dim, device)
        H, D = config.num_heads, config.dim
        if config.forget != "fixed":
            self.learnable_ttt_forget_bias = self.parameter(H, 1, device=device)
        if config.forget == "gated":
            self.learnable_ttt_forget_weight = self.parameter(H, 1, D, device=device)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.config.forget == "fixed":
            return
        # softplus(bias) + floor is the rate of the half-life that the head starts with.
        rate = -_log_retain(self.config, self.learnable_ttt_forget_bias) - self._slowest()
        self.learnable_ttt_forget_bias.copy_(rate.expm1().log())
        if self.config.forget == "gated":
            torch.nn.init.zeros_(self.learnable_ttt_forget_weight)

    def initial_state(self, batch_size: int) -> TTTState:
        last = None
        if self.config.num_rows:
            last = self.W1.new_zeros(batch_size, self.config.num_heads, 1, self.config.head_dim)
        return TTTState(W1=self.W1.expand(batch_size, *self.W1.shape), k=last)

    def frames(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, last: Tensor | None = None) -> DeltaFrames:
        """What the rule reads and writes, from the projections; the arguments are those of `forward`.

        Values are the targets of the other networks: all of one length, so that no frame writes more than its share,
        and about as large as what is made of a prediction. Where the key of the frame before is what writes, the value
        alone is the target: what followed that key is to be said when it comes again, which is what induction heads of
        attention do (arXiv 2209.11895).

        Args:
            last: key of the frame before the first, [B, H, 1, f], of length 1 or zero; None: there is none.
        """
        target = self.normed_target(rms_norm(k), v)
        q, k = self._of_length_1(q), self._of_length_1(k)
        if self.config.target != "own":
            before = torch.cat([torch.zeros_like(k[:, :, :1]) if last is None else last, k[:, :, :-1]], dim=2)
            k, target = self._of_the_next(before, k), self._of_the_next(layer_norm(v, *self.norm), target)
        return DeltaFrames(q, k, target, self.step_sizes(x), self._log_retain(x))

    def _of_length_1(self, projection: Tensor) -> Tensor:
        """Queries or keys, [..., f]."""
        return rms_norm(projection) * (1.0 / math.sqrt(self.config.head_dim))

    def _of_the_next(self, following: Tensor, own: Tensor) -> Tensor:
        """`following` [B, H, T, f] in the heads whose target is the next frame, `own` in the others."""
        if self.config.target == "next":
            return following
        odd = torch.arange(self.config.num_heads, device=own.device) % 2 == 1
        return torch.where(odd[:, None, None], following, own)

    def _last_key(self, k: Tensor, state: TTTState, exec_mask: Tensor | None) -> Tensor | None:
        """What the next frame may write with; the arguments are those of `run`."""
        if state.k is None:
            return None
        last = self._of_length_1(k[:, :, -1:])
        return last if exec_mask is None else torch.where(exec_mask[:, None, None, None], last, state.k)

    def losses(self, x: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Half of |k_t W - target_t|^2, [B, H, T], of streams that start here: at W_0, at the fast weights that frame
        t finds, and at those that it leaves. The arguments are those of `forward`.
        """
        frames = self.frames(x, k, k, v)
        frames = frames._replace(q=frames.k)  # the key that a frame writes at, which `target` may have moved
        predicted, _ = delta_scan(frames, self.W1.expand(len(x), *self.W1.shape), self.W1)
        # What is left of the residual after the frame's own write is 1 - beta |k|^2 of what it found.
        left = 1.0 - frames.beta * frames.k.square().sum(-1)
        after = frames.v - predicted
        residuals = frames.v - frames.k @ self.W1, after / left[..., None], after
        start, before, after = (0.5 * residual.square().sum(-1) for residual in residuals)
        return start, before, after

    def _log_retain(self, x: Tensor) -> Tensor | None:
        """[B, H, T] from x [B, T, D]."""
        config = self.config
        if config.half_lives is None:
            return None
        if config.forget == "fixed":
            log_retain = _log_retain(config, self.W1)
        else:
            gate: Tensor = self.learnable_ttt_forget_bias
            if config.forget == "gated":
                gate = (x @ self.learnable_ttt_forget_weight[:, 0].mT).mT + gate
            log_retain = -(self._slowest() + F.softplus(gate))
        return log_retain.expand(x.shape[0], config.num_heads, x.shape[1])

    def _slowest(self) -> float:
        """The rate below which no head forgets."""
        assert self.config.half_lives is not None
        return math.log(2.0) / (LONGEST * self.config.half_lives[1])

    def run(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor,
        state: TTTState,
        fresh: bool,
        exec_mask: Tensor | None,
        in_place: bool,
    ) -> tuple[Tensor, TTTState]:
        frames = self.frames(x, q, k, v, state.k)
        last = self._last_key(k, state, exec_mask)
        writes = valid if exec_mask is None else valid & exec_mask[:, None]
        # A frame that is no number writes nothing here, and is noticed below: 0 * NaN would reach earlier ones.
        frames = frames._replace(beta=torch.where(writes[:, None], frames.beta, 0.0))
        lost = ~valid if exec_mask is None else ~valid & exec_mask[:, None]
        if x.shape[1] == 1:
            log_retain = frames.log_retain
            if exec_mask is not None and log_retain is not None:
                frames = frames._replace(log_retain=torch.where(exec_mask[:, None, None], log_retain, 0.0))
            broken = torch.where(lost, torch.nan, 0.0)[:, None, :, None]
            z, W = delta_step(frames._replace(v=frames.v + broken), state.W1, self.W1, in_place)
            new = TTTState(W1=W, k=last)
        else:
            z, W = delta_kernel.scan(frames, state.W1, self.W1)
            after = lost.cumsum(1) > 0
            z = torch.where(after[:, None, :, None], torch.nan, z)
            new = TTTState(W1=torch.where(after[:, -1].view(-1, 1, 1, 1), torch.nan, W), k=last)
            new = new if exec_mask is None else state.select(exec_mask, new)
        return frames.q * math.sqrt(self.config.head_dim) + layer_norm(z, *self.norm), new


def _log_retain(config: TTTConfig, like: Tensor) -> Tensor:
    """[H, 1], of one frame."""
    assert config.half_lives is not None
    return log_retained(config.half_lives, 1, config.num_heads, like)[:, None]
