"""The TTT layer as it sits in a transformer: projections, inner network, gates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt_moshi.ttt.config import LN_EPS, TTTConfig
from ttt_moshi.ttt.functional import rms_norm
from ttt_moshi.ttt.networks import make_inner
from ttt_moshi.ttt.state import TTTState


class Gate(nn.Module):
    """`x + tanh(alpha) * z`, one alpha per channel."""

    def __init__(self, dim: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.gating_alpha = nn.Parameter(torch.empty(dim, device=device, dtype=torch.float32))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z: [B, T, D]; the sum is rounded to x's type once."""
        return (x + torch.tanh(self.gating_alpha.float()) * z.float()).to(x.dtype)


class TTTLayer(nn.Module):
    """`y = x + tanh(alpha) * TTT(x)`: a memory of fixed size that is trained on every frame it hears.

    TTT(x) = wo(post_norm(scan(q, k, v))) of the RMS-normalised input (no parameters), strictly causal. `wo` starts at
    zero: the layer starts as the identity, bit for bit.

    Given frames (a prompt) can be read in both directions: with Z = gate_fwd(TTT, X) over all frames, the first
    `prefix_lengths` frames become gate_bwd(reverse TTT reverse, Z), a second pass in reversed time over these frames
    only, from the initial weights (arXiv 2504.05298 composes its two directions alike). The state comes from the first
    pass.

    Parameters are float32 whatever the input's type; all inner arithmetic is float32.
    """

    def __init__(
        self, config: TTTConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Raises ValueError if `dtype` is neither None nor float32."""
        super().__init__()
        if dtype not in (None, torch.float32):
            raise ValueError(f"TTTLayer keeps its parameters in torch.float32, dtype={dtype} was asked for")
        self.config = config
        D = config.dim
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(D, D, device=device, dtype=torch.float32) for _ in range(4))
        self.post_norm = nn.LayerNorm(D, eps=LN_EPS, device=device, dtype=torch.float32)
        self.forward_gating = Gate(D, device)
        self.backward_gating = Gate(D, device)
        self.inner = make_inner(config, device)
        if self.wq.weight.device.type != "meta":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every tensor from the global generator."""
        std = 1.0 / math.sqrt(self.config.dim) if self.config.recipe.fan_in_init else 0.02
        for projection in (self.wq, self.wk, self.wv):
            nn.init.normal_(projection.weight, std=std)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.wo.weight)
        nn.init.zeros_(self.wo.bias)
        nn.init.ones_(self.post_norm.weight)
        nn.init.zeros_(self.post_norm.bias)
        for gate in (self.forward_gating, self.backward_gating):
            nn.init.constant_(gate.gating_alpha, self.config.initial_gating_alpha)
        self.inner.reset_parameters()

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> TTTState:
        """State of `batch_size` streams that have heard nothing: copies of the parameters, in the graph."""
        state = self.inner.initial_state(batch_size).clone()
        return state if device is None else state.to(device)

    def forward(
        self,
        x: Tensor,
        state: TTTState | None = None,
        prefix_lengths: Tensor | None = None,
        *,
        exec_mask: Tensor | None = None,
        reset: Tensor | None = None,
        relative: bool = False,
    ) -> tuple[Tensor, TTTState]:
        """Read T frames, going on from `state`. Pure: `state` is not changed; the new one may share tensors with it.

        Args:
            x: [B, T, D], any floating type, T >= 1.
            state: of an earlier call; None: streams that have heard nothing.
            prefix_lengths: int64 [B]; so many first frames of this call are given and not predicted.
            exec_mask: bool [B]; streams that are false keep their state (their output means nothing).
            reset: bool [B]; streams that are true start from the current initial weights.
            relative: fast weights of `state` and of the new state are counted from the current initial weights, so that
                these get a gradient from a state that was detached, and a state of zeros has heard nothing.

        Returns:
            y, of x's shape and type, and the new state.

        Raises:
            ValueError: a shape or device does not fit; the message names it.
            TypeError: a fast-weight parameter is not float32, or a mask is not of its type.
        """
        self._check(x, state, prefix_lengths, exec_mask, reset)
        z, state = self._ttt(x, state, exec_mask=exec_mask, reset=reset, relative=relative)
        y = self.forward_gating(x, z)
        if prefix_lengths is not None and self.config.bidirectional_prefix:
            y = self._read_backwards(y, prefix_lengths)
        return y, state

    def prefix(self, x: Tensor) -> tuple[Tensor, TTTState]:
        """`forward` from nothing, with all frames given: x [B, T, D]."""
        return self(x, prefix_lengths=torch.full((x.shape[0],), x.shape[1], device=x.device))

    @torch.no_grad()
    def stream(self, x: Tensor, state: TTTState, exec_mask: Tensor | None = None) -> Tensor:
        """`forward` that updates the tensors of `state` in place, keeping their addresses (no autograd)."""
        self._check(x, state, None, exec_mask, None)
        z, new = self._ttt(x, state, exec_mask=exec_mask, in_place=True)
        state.copy_(new)
        return self.forward_gating(x, z)

    def _ttt(
        self,
        x: Tensor,
        state: TTTState | None = None,
        exec_mask: Tensor | None = None,
        reset: Tensor | None = None,
        in_place: bool = False,
        relative: bool = False,
    ) -> tuple[Tensor, TTTState]:
        """TTT(x) [B, T, D] in float32, and the new state."""
        x = x.float()
        # Frames that are not finite must not reach earlier ones of their mini-batch, not even as 0 * NaN.
        valid = x.square().mean(-1).isfinite()
        normed = rms_norm(torch.where(valid[..., None], x, 0.0))
        cast = normed.to(self.wq.weight.dtype)
        q, k, v = (self._heads(projection(cast)) for projection in (self.wq, self.wk, self.wv))
        z, state = self.inner(normed, q, k, v, valid, state, exec_mask, reset, in_place, relative)
        z = z.transpose(1, 2).flatten(2)  # [B, T, D]
        norm = self.post_norm
        z = F.layer_norm(z, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return self.wo(z.to(self.wo.weight.dtype)).float(), state

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, H, T, f], float32."""
        return x.float().unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)

    def _read_backwards(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The second pass: frames before `lengths` [B], last one first; the others are returned as they are."""
        frame = torch.arange(x.shape[1], device=x.device)
        inside = frame < lengths[:, None]  # [B, T]
        # Reversed inside the prefix. What follows it here cannot influence it, as the scan is causal.
        order = torch.where(inside, lengths[:, None] - 1 - frame, frame)[..., None].expand_as(x)
        backwards, _ = self._ttt(x.gather(1, order))
        return torch.where(inside[..., None], self.backward_gating(x, backwards.gather(1, order)), x)

    def _check(
        self,
        x: Tensor,
        state: TTTState | None,
        prefix_lengths: Tensor | None,
        exec_mask: Tensor | None,
        reset: Tensor | None,
    ) -> None:
        if x.dim() != 3 or x.shape[-1] != self.config.dim or x.shape[1] < 1:
            raise ValueError(f"x must be [B, T >= 1, {self.config.dim}], got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        B = x.shape[0]
        if state is not None:
            if state.batch_size != B:
                raise ValueError(f"state is of {state.batch_size} streams, x of {B}")
            wanted = (B, *self.inner.W1.shape), self.config.num_rows
            found = state.W1.shape, 0 if state.k is None else state.k.shape[2]
            if found != wanted:
                raise ValueError(
                    f"state is of another layer: W1 {list(found[0])} and {found[1]} rows, "
                    f"expected {list(wanted[0])} and {wanted[1]}"
                )
        for name, tensor, kind in (
            ("prefix_lengths", prefix_lengths, torch.int64),
            ("exec_mask", exec_mask, torch.bool),
            ("reset", reset, torch.bool),
        ):
            if tensor is None:
                continue
            if tensor.shape != (B,):
                raise ValueError(f"{name} must be [{B}], got {list(tensor.shape)}")
            if tensor.dtype != kind:
                raise TypeError(f"{name} must be {kind}, got {tensor.dtype}")
