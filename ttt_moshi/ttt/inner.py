"""What the inner networks have in common: the start of the fast weights, the step-size gate and the inner norm."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from ttt_moshi.ttt.block import Norm
from ttt_moshi.ttt.config import HIDDEN_GAIN, TTTConfig
from ttt_moshi.ttt.functional import standardise
from ttt_moshi.ttt.state import TTTState


class InnerNetwork(nn.Module):
    """Learns from every frame at test time. The whole scan runs in this module's own `forward`, so that it can be a
    sharding unit of its own with a float32 policy.

    Parameters (all float32): W1 [H, f, width], learnable_ttt_lr_weight [H, 1, D], learnable_ttt_lr_bias [H, 1],
    ttt_norm_weight and ttt_norm_bias [H, f].
    """

    def __init__(self, config: TTTConfig, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        H, f, D = config.num_heads, config.head_dim, config.dim
        self.W1 = self.parameter(H, f, width, device=device)
        self._add_weights(device)
        self.learnable_ttt_lr_weight = self.parameter(H, 1, D, device=device)
        self.learnable_ttt_lr_bias = self.parameter(H, 1, device=device)
        self.ttt_norm_weight = self.parameter(H, f, device=device)
        self.ttt_norm_bias = self.parameter(H, f, device=device)

    def _add_weights(self, device: torch.device | str | None) -> None:
        """What a subclass has beside W1."""

    @staticmethod
    def parameter(*shape: int, device: torch.device | str | None) -> nn.Parameter:
        """Not initialised, float32."""
        return nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every tensor."""
        gain = HIDDEN_GAIN if self.config.inner == "mlp" else 1.0
        fan_in = self.config.recipe.fan_in_init
        nn.init.normal_(self.W1, std=gain / math.sqrt(self.W1.shape[1]) if fan_in else 0.02)
        self._reset_more()
        nn.init.normal_(self.learnable_ttt_lr_weight, std=0.02)
        nn.init.ones_(self.ttt_norm_weight)
        nn.init.zeros_(self.learnable_ttt_lr_bias)
        nn.init.zeros_(self.ttt_norm_bias)

    def _reset_more(self) -> None:
        """What a subclass draws between W1 and the gate."""

    @property
    def norm(self) -> Norm:
        """The inner norm, [H, 1, f] each."""
        return Norm(self.ttt_norm_weight[:, None], self.ttt_norm_bias[:, None])

    def normed_target(self, k: Tensor, v: Tensor) -> Tensor:
        """What LN should make of a key's prediction: the difference of value and normalised key, normed itself."""
        norm = self.norm
        return norm.gamma * standardise(v - k) + norm.beta

    @abstractmethod
    def initial_state(self, batch_size: int) -> TTTState:
        """State of streams that have heard nothing; the weights are views of the parameters, in the graph."""

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor,
        state: TTTState | None = None,
        exec_mask: Tensor | None = None,
        reset: Tensor | None = None,
        in_place: bool = False,
        relative: bool = False,
    ) -> tuple[Tensor, TTTState]:
        """Read and write T frames.

        Args:
            x: normalised input of the layer, [B, T, D], for the step sizes.
            q, k, v: projections, [B, H, T, f].
            valid: bool [B, T]; a false frame makes its own and all later results NaN, and no earlier one.
            state: where to go on; None: from the initial weights.
            exec_mask: bool [B]; streams that are false keep their state.
            reset: bool [B]; streams that are true begin from the initial weights.
            in_place: update the tensors of `state` (one frame, no autograd).
            relative: the fast weights of `state` and of the new state are counted from the initial weights.

        Returns:
            [B, H, T, f] and the new state.

        Raises:
            TypeError: a parameter of this module is not float32.
        """
        self._check_dtypes()
        fresh = state is None
        with torch.autocast(x.device.type, enabled=False):  # whatever surrounds the layer, its memory is float32
            state = self.begin(x.shape[0], state, reset, relative)
            out, state = self.run(x, q, k, v, valid, state, fresh, exec_mask, in_place)
            return out, state.minus(self.initial_state(1)) if relative else state

    @abstractmethod
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
        """`forward` from a complete state; `fresh` says that it is the initial one."""

    def begin(self, batch_size: int, state: TTTState | None, reset: Tensor | None, relative: bool) -> TTTState:
        """The complete state from which a call of `forward` with these arguments goes on."""
        if state is None:
            state = self.initial_state(batch_size)
        elif relative:
            state = state.plus(self.initial_state(1))
        return state if reset is None else state.select(reset, self.initial_state(1))

    def step_sizes(self, x: Tensor) -> Tensor:
        """[B, H, T] from x [B, T, D]."""
        gate = (x @ self.learnable_ttt_lr_weight[:, 0].mT).mT + self.learnable_ttt_lr_bias
        return self.config.rate_scale * torch.sigmoid(gate)

    def _check_dtypes(self) -> None:
        for name, tensor in self.named_parameters():
            if tensor.dtype != torch.float32:
                raise TypeError(
                    f"TTT parameter inner.{name} is {tensor.dtype}, but fast weights, step sizes and inner norms "
                    "only work in torch.float32: smaller types round the updates away. Cast the model before adding "
                    "TTT layers, or call float() on the layer."
                )
