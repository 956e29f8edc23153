"""The inner networks that are written mini-batch by mini-batch: an MLP, or one matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ttt_moshi.ttt.block import Frames, Norm, Rule, block_step, known_false
from ttt_moshi.ttt.config import TTTConfig
from ttt_moshi.ttt.functional import rms_norm, rotate
from ttt_moshi.ttt.inner import InnerNetwork
from ttt_moshi.ttt.sequence import run_fresh, run_from
from ttt_moshi.ttt.state import Memory, TTTState, Weights


class MiniBatchNetwork(InnerNetwork):
    """See `block`.

    Parameters beside those of every inner network: b1 [H, 1, 4f], W2 [H, 4f, f], b2 [H, 1, f] of the MLP, whose W1 is
    [H, f, 4f]; b1 [H, 1, f] of the linear one, whose W1 is [H, f, f].
    """

    W2: nn.Parameter | None
    b2: nn.Parameter | None

    def __init__(self, config: TTTConfig, device: torch.device | str | None = None) -> None:
        super().__init__(config, config.hidden_dim if config.inner == "mlp" else config.head_dim, device)
        recipe = config.recipe
        self.rule = Rule(config.mini_batch_size, recipe.update_biases, recipe.reciprocal_positions, config.half_lives)

    def _add_weights(self, device: torch.device | str | None) -> None:
        H, f, h = self.W1.shape
        self.b1 = self.parameter(H, 1, h, device=device)
        if self.config.inner == "mlp":
            self.W2 = self.parameter(H, h, f, device=device)
            self.b2 = self.parameter(H, 1, f, device=device)
        else:
            self.register_parameter("W2", None)
            self.register_parameter("b2", None)

    def _reset_more(self) -> None:
        if self.W2 is not None:
            fan_in = self.config.recipe.fan_in_init
            nn.init.normal_(self.W2, std=1.0 / math.sqrt(self.W2.shape[1]) if fan_in else 0.02)
        for zero in (self.b1, self.b2):
            if zero is not None:
                nn.init.zeros_(zero)

    def initial_state(self, batch_size: int) -> TTTState:
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

    def frames(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, phase: Tensor) -> tuple[Frames, Norm]:
        """What the scan reads and writes, from the projections: normalised, with targets and step sizes."""
        q, k = self._normalised(q, k, phase)
        target = self.normed_target(k, v) if self.config.recipe.normalised_target else v - k
        lam = self.step_sizes(x)
        return Frames(q, k, target, torch.where(valid[:, None], lam, torch.nan)), self.norm

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
        assert state.phase is not None
        frames, norm = self.frames(x, q, k, v, valid, state.phase)
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
        assert state.phase is not None
        if b2 is None and self.b2 is not None:
            b2 = self.b2.expand(state.batch_size, *self.b2.shape)
        start = Weights(self.W1, self.b1, self.W2, self.b2) if self.rule.half_lives is not None else None
        return Memory(Weights(state.W1, b1, state.W2, b2), state.rows, state.phase, start)

    def _state(self, memory: Memory) -> TTTState:
        W1, b1, W2, b2 = memory.weights
        biases = self.rule.update_biases
        return TTTState(W1, b1 if biases else None, W2, b2 if biases else None, *memory.rows, memory.phase)
