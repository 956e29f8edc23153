"""TTTMoshi: the official Moshi language model with test-time-training layers in its temporal transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from moshi.conditioners import ConditionAttributes, ConditionTensors
from moshi.models.lm import LMModel, LMOutput
from moshi.models.lm_utils import _undelay_sequence
from torch import Tensor

from ttt_moshi.moshi.borrowed import standing_at
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.layer import Plain, TTTTransformerLayer, eager
from ttt_moshi.moshi.naming import Mode
from ttt_moshi.moshi.streaming import ChunkPass, LayerCarry, StreamState, delayed, empty_memory
from ttt_moshi.ttt import TTTConfig, TTTLayer


@dataclass(frozen=True)
class Chunk:
    """What the model says about one clip of a recording.

    Args:
        output: `text_logits[:, 0, i]` predicts `targets[:, 0, i]`, `logits[:, k, i]` predicts `targets[:, 1 + k, i]`;
            the masks are false where there is nothing to predict.
        targets: int64 [B, K, T], the clip's codes in the order in which they are predicted: a stream delayed by d
            begins with the last d frames of the clip before. Over a recording's clips every code comes up once.
        stream: where the next clip goes on.
    """

    output: LMOutput
    targets: Tensor
    stream: StreamState


class TTTMoshi(Plain, LMModel):
    """`LMModel` whose temporal layers may each own a TTT layer.

    The base tensors keep their official names and shapes; the tensors of TTT layer i are
    `transformer.layers.{i}.ttt.*`. With freshly initialised TTT layers the logits are the base model's, bit for bit.

    Args:
        ttt_layers: temporal layers that receive a TTT layer.
        ttt_config: what it is made of; its `dim` is the model's.
        **kwargs: as for `LMModel`.

    Attributes:
        ttt_layers: indices of the temporal layers with a TTT layer, ascending.
        ttt_config: their configuration, None if there are none.
        mode: what is trained: frozen, lora, ttt, lora+ttt or full.
        usual_conditions: text conditions of a model that wants some (Hibiki), where a call gives none.
        compute_dtype: type of the forward pass where it is not that of the weights, in a sharded model.
    """

    def __init__(self, ttt_layers: list[int] | None = None, ttt_config: TTTConfig | None = None, **kwargs) -> None:
        super().__init__(layer_class=TTTTransformerLayer, **kwargs)
        self.ttt_layers: list[int] = []
        self.ttt_config: TTTConfig | None = None
        self.mode: Mode = "frozen"
        self.usual_conditions: Mapping[str, str] = {}
        self.compute_dtype: torch.dtype | None = None
        for index, layer in enumerate(self.layers):
            layer.index = index
        if ttt_layers:
            assert ttt_config is not None, "TTT layers need a configuration"
            self.add_ttt(ttt_layers, ttt_config, kwargs.get("device"))

    @property
    def layers(self) -> list[TTTTransformerLayer]:
        """The temporal layers."""
        return cast(list[TTTTransformerLayer], list(self.transformer.layers))

    def add_ttt(self, layers: list[int], config: TTTConfig, device: torch.device | str | None = None) -> None:
        """Gives TTT layers to the temporal layers `layers`; after LoRA, which is for the base's projections only."""
        for index in sorted(layers):
            self.layers[index].ttt = TTTLayer(config, device=device)
        self.ttt_layers = sorted(layers)
        self.ttt_config = config

    def forward(
        self,
        codes: Tensor,
        condition_tensors: ConditionTensors | None = None,
        prefix_lengths: Tensor | None = None,
    ) -> LMOutput:
        """Logits for every code of `codes`, teacher-forced; for training and scoring.

        Position j of the transformer reads frame j - 1 (the frame before that for streams delayed by one; the initial
        token at j = 0) and predicts frame j. So text and semantic logits of frame t depend on earlier frames (and the
        semantic ones on the text of frame t, which is generated first). Acoustic codes come one position later: their
        logits also see the text and semantic code of frame t + 1.

        Args:
            codes: int64 [B, K, T], text first; -1 where a stream is absent.
            condition_tensors: as in the official model.
            prefix_lengths: int64 [B], frames at the start of each row that are given (0: none). TTT layers read
                positions 0 to `prefix_lengths` in both directions. These hold frames of the prefix only, so what
                follows stays strictly causal. Given frames are not predicted: both masks are false there. Under
                sharding all ranks must pass it or none, since it decides which collectives run.

        Returns:
            The official output, aligned with `codes`: logits [B, dep_q, T, card], mask [B, dep_q, T], text_logits
            [B, 1, T, text_card], text_mask [B, 1, T]. Logits outside the masks are NaN or mean nothing.
        """
        self._refuse_streaming_mode()
        history = self._no_history(codes.shape[0], codes.device)
        start = codes.new_zeros(codes.shape[0])
        inputs, targets = delayed(codes, history, start, self.delays, self._get_initial_token())
        given = _given_positions(prefix_lengths, codes.shape[2])
        text_logits, logits = self._predict(inputs, targets, condition_tensors, given)
        first, last = self.audio_offset, self.audio_offset + self.dep_q
        logits, mask = _undelay_sequence(self.delays[first:last], logits, fill_value=float("nan"))
        text_logits, text_mask = _undelay_sequence(self.delays[:1], text_logits, fill_value=float("nan"))
        present = codes != self.zero_token_id
        if prefix_lengths is not None:
            present &= torch.arange(codes.shape[2], device=codes.device) >= prefix_lengths[:, None, None]
        return LMOutput(logits, mask & present[:, first:last], text_logits, text_mask & present[:, :1])

    def forward_chunk(
        self,
        codes: Tensor,
        stream: StreamState,
        condition_tensors: ConditionTensors | None = None,
        prefix_lengths: Tensor | None = None,
    ) -> Chunk:
        """Reads the next clip of every row's recording. Any division into clips equals one long forward.

        Args:
            codes: int64 [B, K, T], the next T frames of each row's recording.
            stream: what the clip before returned, or `start_stream`; it is not changed. Gradients flow through it into
                earlier clips unless it was detached.
            prefix_lengths: int64 [B], given frames at the start of each row's recording. TTT layers read them backwards
                as far as they are in the recording's first clip.
        """
        self._refuse_streaming_mode()
        inputs, targets = delayed(codes, stream.codes, stream.frames, self.delays, self._get_initial_token())
        T = codes.shape[2]
        given = _given_positions(prefix_lengths, T)
        if given is not None:
            given = torch.where(stream.frames == 0, given, 0)
        passing = ChunkPass(stream)
        with standing_at(self.transformer, stream.frames):
            text_logits, logits = self._predict(inputs, targets, condition_tensors, given, passing)
        mask = self._chunk_mask(targets, stream.frames, prefix_lengths)
        output = LMOutput(logits, mask[:, 1:], text_logits, mask[:, :1])
        following = stream.after(codes)
        return Chunk(output, targets, StreamState(following.frames, following.codes, passing.outgoing()))

    def chunk_targets(
        self, codes: Tensor, stream: StreamState, prefix_lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `forward_chunk` would predict, without running the model.

        Returns:
            targets int64 [B, K, T], and bool [B, 1 + dep_q, T] where they count, text first.
        """
        _, targets = delayed(codes, stream.codes, stream.frames, self.delays, self._get_initial_token())
        return targets, self._chunk_mask(targets, stream.frames, prefix_lengths)

    def _chunk_mask(self, targets: Tensor, frames: Tensor, prefix_lengths: Tensor | None) -> Tensor:
        predicted = self.audio_offset + self.dep_q
        delays = torch.tensor(self.delays[:predicted], device=targets.device)[:, None]
        frame = frames[:, None, None] + torch.arange(targets.shape[2], device=targets.device) - delays
        first = 0 if prefix_lengths is None else prefix_lengths[:, None, None]
        return (frame >= first) & (frame >= 0) & (targets[:, :predicted] != self.zero_token_id)

    def start_stream(self, batch_size: int, dtype: torch.dtype | None = None) -> StreamState:
        """The state of `batch_size` rows at the start of their recordings.

        Args:
            dtype: of the carried keys and values; None takes what the model computes in.
        """
        if self.context is None:
            raise MoshiError("recordings need an attention window of fixed length: set the context")
        device = self.device
        attention = self.layers[0].self_attn
        heads, width = attention.num_heads // attention.kv_repeat, self.dim // attention.num_heads
        shape = (batch_size, heads, self.context - 1, width)
        layers = []
        for layer in self.layers:
            keys = torch.zeros(shape, device=device, dtype=dtype or self.compute_dtype or self.dtype)
            ttt = None if layer.passed_over else layer.ttt
            memory = None if ttt is None else empty_memory(ttt.config, batch_size, device)
            layers.append(LayerCarry(keys, torch.zeros_like(keys), memory))
        frames = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return StreamState(frames, self._no_history(batch_size, device), tuple(layers))

    def forward_text(
        self,
        sequence: Tensor,
        sum_condition: Tensor | None = None,
        cross_attention_src: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        chunk: ChunkPass | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The official temporal step, with keywords that reach the layers.

        Args:
            sequence: int64 [B, K, S], delayed codes with the initial tokens in place.
            prefix_lengths: int64 [B], leading positions of `sequence` that TTT layers read in both directions.

        Returns:
            The temporal transformer's output [B, S, D] and text logits [B, 1, S, text_card].
        """
        x = self.emb[0](sequence[:, self.audio_offset])
        for k in range(1, self.num_audio_codebooks):
            x = x + self.emb[k](sequence[:, self.audio_offset + k])
        x = x + self.text_emb(sequence[:, 0])
        if sum_condition is not None:
            x = x + sum_condition.to(x)
        if cross_attention_src is not None:
            cross_attention_src = cross_attention_src.to(x)
        with eager(self.is_streaming, x.device):
            out = self.transformer(
                x, cross_attention_src=cross_attention_src, prefix_lengths=prefix_lengths, chunk=chunk
            )
            out = self.out_norm(out)
        return out, self.text_linear(out)[:, None]

    def _predict(
        self,
        inputs: Tensor,
        targets: Tensor,
        condition_tensors: ConditionTensors | None,
        given: Tensor | None,
        chunk: ChunkPass | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text logits [B, 1, T, text_card] and audio logits [B, dep_q, T, card] in the order of `targets`."""
        conditions: tuple[Tensor | None, Tensor | None] = (None, None)
        if condition_tensors is None:
            condition_tensors = self.conditions(len(inputs))
        if condition_tensors is not None:
            assert self.fuser is not None, "this model takes no conditions"
            conditions = self.fuser.get_sum(condition_tensors), self.fuser.get_cross(condition_tensors)
        else:
            assert self.fuser is None, "this model needs condition tensors"
        out, text_logits = self.forward_text(inputs, *conditions, prefix_lengths=given, chunk=chunk)
        if self.dep_q == 0:  # it writes and says nothing
            return text_logits, text_logits.new_zeros(len(inputs), 0, inputs.shape[2], self.card)
        return text_logits, self.forward_depformer_training(targets, out)

    def conditions(
        self, rows: int, chosen: Mapping[str, str] | None = None, opposite: Mapping[str, str] | None = None
    ) -> ConditionTensors | None:
        """The usual conditions with what is `chosen` in their place; None of a model that wants none.

        Args:
            rows: how many are conditioned so.
            opposite: of as many rows more after them, for classifier-free guidance.

        Raises:
            MoshiError: a condition or a value that the model does not know.
        """
        chosen = chosen or {}
        for name, value in {**(opposite or {}), **chosen}.items():
            if name not in self.usual_conditions:
                known = ", ".join(self.usual_conditions) or "none"
                raise MoshiError(f"{name}={value}: the model knows no condition {name!r}: it has {known}")
        if not self.usual_conditions:
            return None
        assert self.condition_provider is not None
        kinds = [chosen] if opposite is None else [chosen, opposite]
        attributes = [ConditionAttributes(text={**self.usual_conditions, **kind}, tensor={}) for kind in kinds]
        try:
            return self.condition_provider.prepare_and_provide([one for one in attributes for _ in range(rows)])
        except ValueError as error:
            raise MoshiError(f"a condition has a value that the model does not know: {error}") from error

    def _refuse_streaming_mode(self) -> None:
        """Whole clips would put initial tokens into the middle of a stream and leave their trace in its state."""
        if self.is_streaming:
            raise MoshiError("the model is in streaming mode, which has a state of its own: leave it first")

    def _no_history(self, batch_size: int, device: torch.device) -> Tensor:
        shape = (batch_size, self.num_codebooks, max(self.delays) + 1)
        return torch.full(shape, self.zero_token_id, dtype=torch.int64, device=device)


def _given_positions(prefix_lengths: Tensor | None, T: int) -> Tensor | None:
    """How many of T positions hold nothing but given frames: the initial token and the prefix."""
    if prefix_lengths is None:
        return None
    return torch.where(prefix_lengths > 0, prefix_lengths + 1, 0).clamp(max=T)


def set_context(model: TTTMoshi, frames: int) -> int:
    """Sets the attention window of the temporal transformer, in frames; returns the number of layers changed.

    The depth transformer attends within one frame and is left alone.
    """
    if frames < 1:
        raise MoshiError(f"the attention window must be at least one frame, got {frames}")
    for layer in model.layers:
        layer.self_attn.context = frames
    model.context = frames
    return len(model.layers)
