"""The inner network: owner of the fast weights' initial values, the step-size gates and the inner norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ttt_moshi.ttt.block import Frames, Norm, Rule, block_step, known_false
from ttt_moshi.ttt.config import HIDDEN_GAIN, TTTConfig
from ttt_moshi.ttt.functional import rms_norm, rotate, standardise
from ttt_moshi.ttt.sequence import run_fresh, run_from
from ttt_moshi.ttt.state import Memory, TTTState, Weights


class InnerNetwork(nn.Module):
    """Learns from every frame at test time. The whole scan runs in this module's own `forward`, so that it can be a
    sharding unit of its own with a float32 policy.

    Parameters (all float32): W1 [H, f, 4f], b1 [H, 1, 4f], W2 [H, 4f, f], b2 [H, 1, f] (linear: W1 [H, f, f],
    b1 [H, 1, f]), learnable_ttt_lr_weight [H, 1, D], learnable_ttt_lr_bias [H, 1], ttt_norm_weight and ttt_norm_bias
    [H, f].
    """

    W2: nn.Parameter | None
    b2: nn.Parameter | None

    def __init__(self, config: TTTConfig, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.config = config
        recipe = config.recipe
        self.rule = Rule(config.mini_batch_size, recipe.update_biases, recipe.reciprocal_positions, config.keep)
        H, f, D = config.num_heads, config.head_dim, config.dim
        h = config.hidden_dim if config.inner == "mlp" else f

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=torch.float32))

        self.W1 = parameter(H, f, h)
        self.b1 = parameter(H, 1, h)
        if config.inner == "mlp":
            self.W2 = parameter(H, h, f)
            self.b2 = parameter(H, 1, f)
        else:
            self.register_parameter("W2", None)
            self.register_parameter("b2", None)
        self.learnable_ttt_lr_weight = parameter(H, 1, D)
        self.learnable_ttt_lr_bias = parameter(H, 1)
        self.ttt_norm_weight = parameter(H, f)
        self.ttt_norm_bias = parameter(H, f)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every tensor."""
        fan_in = self.config.recipe.fan_in_init
        gain = HIDDEN_GAIN if self.W2 is not None else 1.0
        nn.init.normal_(self.W1, std=gain / math.sqrt(self.W1.shape[1]) if fan_in else 0.02)
        if self.W2 is not None:
            nn.init.normal_(self.W2, std=1.0 / math.sqrt(self.W2.shape[1]) if fan_in else 0.02)
        nn.init.normal_(self.learnable_ttt_lr_weight, std=0.02)
        nn.init.ones_(self.ttt_norm_weight)
        for zero in (self.b1, self.b2, self.learnable_ttt_lr_bias, self.ttt_norm_bias):
            if zero is not None:
                nn.init.zeros_(zero)

    def initial_state(self, batch_size: int) -> TTTState:
        """State of streams that have heard nothing; the weights are views of the parameters, in the graph."""
        H, f, K = self.config.num_heads, self.config.head_dim, self.config.mini_batch_size
        hidden = self.W1.shape[-1]
        mlp, biases = self.W2 is not None, self.rule.update_biases

        def rows(width: int) -> Tensor:
            return self.W1.new_zeros(batch_size, H, K, width)

        def shared(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.expand(batch_size, *tensor.shape)

        return TTTState(
            W1=self.W1.expand(batch_size, *self.W1.shape),
            b1=shared(self.b1) if biases else None,
            W2=shared(self.W2),
            b2=shared(self.b2) if biases else None,
            k=rows(f),
            a1=rows(hidden) if mlp else None,
            g1=rows(hidden),
            g2=rows(f) if mlp else None,
            lam=self.W1.new_zeros(batch_size, H, K),
            phase=torch.zeros(batch_size, dtype=torch.int64, device=self.W1.device),
        )

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
            frames, norm = self.frames(x, q, k, v, valid, state.phase)
            out, state = self._scan(frames, norm, state, fresh, exec_mask, in_place)
            return out, state.minus(self.initial_state(1)) if relative else state

    def begin(self, batch_size: int, state: TTTState | None, reset: Tensor | None, relative: bool) -> TTTState:
        """The complete state from which a call of `forward` with these arguments goes on."""
        if state is None:
            state = self.initial_state(batch_size)
        elif relative:
            state = state.plus(self.initial_state(1))
        return state if reset is None else state.select(reset, self.initial_state(1))

    def frames(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, phase: Tensor) -> tuple[Frames, Norm]:
        """What the scan reads and writes, from the projections: normalised, with targets and step sizes."""
        q, k = self._normalised(q, k, phase)
        norm = Norm(self.ttt_norm_weight[:, None], self.ttt_norm_bias[:, None])
        target = v - k
        if self.config.recipe.normalised_target:
            target = norm.gamma * standardise(target) + norm.beta
        gate = (x @ self.learnable_ttt_lr_weight[:, 0].mT).mT + self.learnable_ttt_lr_bias  # [B, H, T]
        lam = self.config.rate_scale * torch.sigmoid(gate)
        return Frames(q, k, target, torch.where(valid[:, None], lam, torch.nan)), norm

    def _scan(
        self, frames: Frames, norm: Norm, state: TTTState, fresh: bool, exec_mask: Tensor | None, in_place: bool
    ) -> tuple[Tensor, TTTState]:
        """From a complete state; `fresh` says that it is the initial one."""
        T, memory = frames.q.shape[2], self.memory(state)
        if T == 1 and not fresh:
            everybody = exec_mask is None or known_false(~exec_mask)
            take = None if everybody else exec_mask.to(state.phase.dtype)  # type: ignore[union-attr]
            out, memory = block_step(frames, memory, norm, self.rule, take=take, in_place=in_place)
            return out, self._state(memory)
        run = run_fresh if fresh else run_from
        out, memory = run(frames, memory, norm, self.rule, self.config.scan_policy)
        new = self._state(memory)
        if fresh and self.config.mini_batch_size > T:  # nothing was written: these still are the parameters
            new = new.clone()
        return out, new if exec_mask is None else state.select(exec_mask, new)

    def _normalised(self, q: Tensor, k: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        recipe, f = self.config.recipe, self.config.head_dim
        if recipe.qk_norm != "none":
            scale = 1.0 if recipe.qk_norm == "rms" else 1.0 / math.sqrt(f)
            q, k = rms_norm(q) * scale, rms_norm(k) * scale
        if recipe.rope:
            positions = (phase[:, None] + torch.arange(q.shape[2], device=q.device)) % self.config.mini_batch_size
            q, k = rotate(q, positions), rotate(k, positions)
        return q, k

    def memory(self, state: TTTState) -> Memory:
        """The state, completed by the biases that are not part of it."""
        b1 = self.b1.expand(state.batch_size, *self.b1.shape) if state.b1 is None else state.b1
        b2 = state.b2
        if b2 is None and self.b2 is not None:
            b2 = self.b2.expand(state.batch_size, *self.b2.shape)
        start = Weights(self.W1, self.b1, self.W2, self.b2) if self.rule.keep < 1.0 else None
        return Memory(Weights(state.W1, b1, state.W2, b2), state.rows, state.phase, start)

    def _state(self, memory: Memory) -> TTTState:
        W1, b1, W2, b2 = memory.weights
        biases = self.rule.update_biases
        return TTTState(W1, b1 if biases else None, W2, b2 if biases else None, *memory.rows, memory.phase)

    def _check_dtypes(self) -> None:
        for name, tensor in self.named_parameters():
            if tensor.dtype != torch.float32:
                raise TypeError(
                    f"TTT parameter inner.{name} is {tensor.dtype}, but fast weights, step sizes and inner norms "
                    "only work in torch.float32: smaller types round the updates away. Cast the model before adding "
                    "TTT layers, or call float() on the layer."
                )
