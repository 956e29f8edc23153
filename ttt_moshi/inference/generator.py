"""The official generator, with draws that belong to the conversation of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from moshi.models import LMGen
from torch import Tensor

from ttt_moshi.inference.draws import choose
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.moshi import TTTMoshi
from ttt_moshi.moshi.streaming import delayed


class Generator(LMGen):
    """`LMGen` whose rows begin, wait and end independently of one another.

    Attributes:
        seeds: int64 [B], of the conversation in each row. Written in place: CUDA graphs replay on fixed addresses.
        steps: int64 [B], the step of each row that is being computed.
        silent: bool [B], rows that may not say a word.
    """

    def __init__(self, model: TTTMoshi, rows: int, sampling: Sampling, **options: object) -> None:
        super().__init__(
            model,
            use_sampling=False,
            support_out_of_sync=True,
            on_text_logits_hook=self._choose_text,
            **options,  # type: ignore[arg-type]
        )
        self.sampling = sampling
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.steps = torch.zeros_like(self.seeds)
        self.silent = torch.zeros_like(self.seeds, dtype=torch.bool)

    def advance(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the rows in the exec mask.

        Args:
            codes: int64 [B, K, 1], the user's.

        Returns:
            tokens int64 [B, 1 + dep_q, 1] (negative as long as the delays hold a row back), and the temporal
            transformer's output [B, 1, D]; under guidance [2B, 1, D].
        """
        assert self._streaming_state is not None
        self.steps.copy_(self._streaming_state.offsets)
        out = self._step(codes)
        assert out is not None, "rows out of step always return something"
        return out

    @torch.no_grad()
    def read_given(self, codes: Tensor, both_ways: bool = True) -> None:
        """Reads the given frames at the beginning of a conversation in one pass.

        Afterwards everything is as if they had been said and heard, and the first frame that is not given is drawn.

        Args:
            codes: int64 [1, K, P], all streams. The generator has one row, which has read nothing yet.
            both_ways: in both directions, as training reads a prefix; else as if they had been said and heard one by
                one.

        Raises:
            InferenceError: more frames than the attention window holds.
        """
        model, state = self.lm_model, self._streaming_state
        assert isinstance(model, TTTMoshi) and state is not None and len(codes) == 1
        P = codes.shape[2]
        if not self.max_delay < P < (model.context or 0):
            raise InferenceError(
                f"a prompt of {P} frames (80 ms each) is not possible: it has between {self.max_delay + 1} and "
                f"{(model.context or 0) - 1} of them, which is the attention window"
            )
        history = model._no_history(1, codes.device)
        start = torch.zeros(1, dtype=torch.int64, device=codes.device)
        # Position j reads frame j - 1, so P frames are P + 1 positions; the frame after them is not looked at.
        following = torch.cat([codes, codes[:, :, -1:]], dim=2)
        inputs, _ = delayed(following, history, start, model.delays, model._get_initial_token())
        inputs = inputs.repeat(self._copies, 1, 1)
        prefix = (start + P + 1).repeat(self._copies) if both_ways else None
        hidden, text_logits = model.forward_text(
            inputs, state.condition_sum, state.condition_cross, prefix_lengths=prefix
        )
        self.steps.fill_(P)
        token = self._text(self._guided(text_logits[:, 0, -1]))
        # Streams that are delayed still have given frames to come.
        given = [codes[:, k, P - delay] if delay else None for k, delay in enumerate(model.delays)]
        drawn = (
            token[:, None][:, :0]
            if model.dep_q == 0
            else self._depth(token, hidden[:, -1:], given[1 : 1 + model.dep_q])
        )
        state.offsets[:] = P + 1
        newest = [token, *drawn.unbind(1)]
        for k, delay in enumerate(model.delays):
            for position in range(P + 1 - self.max_delay, P + 2):
                frame = position - 1 - delay
                if frame < P:
                    state.cache[:, k, position % state.cache.shape[2]] = codes[:, k, frame]
                elif k < len(newest):
                    state.cache[:, k, position % state.cache.shape[2]] = newest[k]

    def depformer_step(self, text_token: Tensor, transformer_out: Tensor) -> Tensor:
        """The codes of one frame, int64 [B, dep_q], one codebook after another."""
        return self._depth(text_token, transformer_out, [None] * self.lm_model.dep_q)

    def _depth(self, token: Tensor, hidden: Tensor, given: Sequence[Tensor | None]) -> Tensor:
        """Codes int64 [B, dep_q]: those that are given, and draws for the others."""
        model, codes = self.lm_model, []
        assert model.depformer is not None
        with model.depformer.streaming(len(hidden)):
            for codebook, known in enumerate(given):
                heard = token[:, None, None].repeat(self._copies, 1, 1)
                logits = self._guided(model.forward_depformer(codebook, heard, hidden))
                drawn = self._choose(logits[:, 0, 0], self.sampling.temp, self.sampling.top_k, 1 + codebook)
                token = drawn if known is None else known
                codes.append(token)
        return torch.stack(codes, dim=1)

    @property
    def _copies(self) -> int:
        """Rows of the model for each conversation: under guidance one more, with the opposite conditions."""
        return 1 if self.cfg_coef == 1.0 else 2

    def _guided(self, logits: Tensor) -> Tensor:
        """Logits [B, ...] of [2B, ...]: away from those under the opposite conditions (classifier-free guidance)."""
        if self.cfg_coef == 1.0:
            return logits
        asked, opposite = logits.chunk(2)
        return opposite + (asked - opposite) * self.cfg_coef

    def _choose_text(self, logits: Tensor) -> None:
        """Leaves only the chosen token in `logits` [B, 1, 1, card], of which the official step takes the likeliest."""
        token = self._text(logits[:, 0, 0])
        logits.fill_(-torch.inf).scatter_(-1, token[:, None, None, None], 0.0)

    def _text(self, logits: Tensor) -> Tensor:
        """The text token of each row, int64 [B], from logits [B, card]."""
        padding = self.lm_model.text_padding_token_id
        logits = logits.float()
        logits[:, padding] += self.sampling.pad_bias
        token = self._choose(logits, self.sampling.temp_text, self.sampling.top_k_text, 0)
        return torch.where(self.silent, padding, token)

    def _choose(self, logits: Tensor, temperature: float, top_k: int, codebook: int) -> Tensor:
        temperature = 0.0 if self.sampling.greedy else temperature
        return choose(logits.float(), temperature, top_k, self.seeds, self.steps, codebook)
