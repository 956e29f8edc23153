"""Moshi's transformer layer with a place for test-time training between attention and feed-forward."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from moshi.modules.transformer import StreamingTransformerLayer, _LayerState
from moshi.utils.compile import no_compile
from torch import Tensor, nn

from ttt_moshi.moshi.borrowed import looking_through
from ttt_moshi.moshi.errors import MoshiError
from ttt_moshi.moshi.streaming import ChunkPass, LayerCarry, WindowCache
from ttt_moshi.ttt import TTTLayer, TTTState


def eager(streaming: bool, device: torch.device) -> AbstractContextManager:
    """Keeps moshi from compiling its norms and rotations, except where it pays: streaming on a GPU.

    Compiled kernels depend on which shapes a process happened to see first, so a resumed training would not repeat
    the interrupted one bit by bit; and on a CPU compiling takes longer than it saves.
    """
    return nullcontext() if streaming and device.type == "cuda" else no_compile()


def keep_rows_together(layers: Iterable[nn.Module]) -> None:
    """Lets the weights of each step of a depth transformer see their rows [N, 1, C] side by side in memory.

    The official layers hand them slices of [N, T, C]. Those PyTorch multiplies one by one, reading the weights anew for
    every row, unless the weights want gradients: with frozen ones, as in evaluation and under LoRA, copying the rows
    first is several times faster in float32 and a hundred times and more in bfloat16 (on a CPU, torch 2.9).
    """
    for layer in layers:
        assert isinstance(layer, StreamingTransformerLayer)
        for steps in (layer.self_attn.in_projs, layer.self_attn.out_projs, layer.gating):
            if isinstance(steps, nn.ModuleList) and len(steps) > 1:
                for weights in steps:
                    weights.register_forward_pre_hook(_side_by_side)


def _side_by_side(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
    return (arguments[0].contiguous(),)


class Plain:
    """First base of our subclasses of moshi's streaming modules.

    FSDP2 assigns `module.__class__`, which Python refuses ("object layout differs") for classes whose first base leads
    to `abc.ABC`; an ordinary class in front makes the layouts agree.
    """


@dataclass
class _RememberingState(_LayerState):
    """The official state of a layer, and the memory of its TTT layer: a row per stream, in tensors that never move."""

    ttt: TTTLayer | None = None
    memory: TTTState | None = None

    def reset(self, reset_mask: Tensor) -> None:
        super().reset(reset_mask)
        assert self.ttt is not None and self.memory is not None
        self.memory.reset_(reset_mask, self.ttt.init_state(1))


class TTTTransformerLayer(Plain, StreamingTransformerLayer):
    """Attention block, then `x + tanh(alpha) * TTT(x)`, then feed-forward block.

    Base tensors keep their official names. Without a TTT layer (`ttt is None`) it computes exactly what the official
    layer computes. The memory lives in the streaming state, one row per stream; a forward outside streaming starts at
    the trained initial weights and leaves no trace.

    Attributes:
        index: place among the temporal layers; -1 in the depth transformer.
        ttt: the TTT layer, None where there is none.
        reset_every: forget everything at positions that are multiples of it; an ablation, None normally.
        passed_over: whether the layer works as if it had no TTT layer, in `forward` and `forward_chunk`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.index = -1
        self.ttt: TTTLayer | None = None
        self.reset_every: int | None = None
        self.passed_over = False

    def _init_streaming_state(self, batch_size: int) -> _LayerState:
        state = super()._init_streaming_state(batch_size)
        if self.ttt is None:
            return state
        with torch.no_grad():
            memory = self.ttt.init_state(batch_size, state.device)
        return _RememberingState(batch_size, state.device, offset_cpu=0, ttt=self.ttt, memory=memory)

    def forward(
        self,
        x: Tensor,
        cross_attention_src: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        chunk: ChunkPass | None = None,
    ) -> Tensor:
        """One layer over `x` [B, T, D].

        Args:
            cross_attention_src: as in the official layer.
            prefix_lengths: int64 [B], leading positions of `x` that are given; they are also read in reversed time.
            chunk: the pass over one clip of a longer recording, with what every layer carries out of the clip before.
        """
        window = None if chunk is None else chunk.window(self.index)
        with eager(self.is_streaming, x.device):
            x = self._attend(x, window)
            if self.cross_attention is not None:
                assert cross_attention_src is not None
                x = self._cross_attention_block(x, cross_attention_src)
            memory = None
            if self.ttt is not None and not self.passed_over:
                x, memory = self._remember(self.ttt, x, prefix_lengths, chunk)
            x = self._ff_block(x)
        if chunk is not None:
            assert window is not None
            chunk.deliver(self.index, LayerCarry(*window.tail(), memory))
        if self._streaming_state is not None:
            self._streaming_state.offset_cpu += x.shape[1]
        return x

    def _attend(self, x: Tensor, window: WindowCache | None) -> Tensor:
        """The official attention block; in a clip of a recording it looks through `window`."""
        with nullcontext() if window is None else looking_through(self.self_attn, window):
            return self._sa_block(x)

    def _remember(
        self, ttt: TTTLayer, x: Tensor, prefix_lengths: Tensor | None, chunk: ChunkPass | None
    ) -> tuple[Tensor, TTTState | None]:
        """The TTT block, and the memory to carry on (None unless in a clip of a recording)."""
        streaming = self._streaming_state
        if isinstance(streaming, _RememberingState):
            assert streaming.memory is not None
            if self.reset_every is not None:
                raise MoshiError("`reset_every` does not work in streaming mode: reset the stream instead")
            if prefix_lengths is None:
                return ttt.stream(x, streaming.memory, streaming.exec_mask), None
            x, memory = ttt(x, streaming.memory, prefix_lengths, exec_mask=streaming.exec_mask)
            streaming.memory.copy_(memory)
            return x, None
        if self.reset_every is not None:
            return self._remember_in_pieces(ttt, x, prefix_lengths, chunk, self.reset_every)
        if chunk is None:
            return ttt(x, prefix_lengths=prefix_lengths)[0], None
        return ttt(x, chunk.memory(self.index), prefix_lengths, relative=True)

    def _remember_in_pieces(
        self, ttt: TTTLayer, x: Tensor, prefix_lengths: Tensor | None, chunk: ChunkPass | None, every: int
    ) -> tuple[Tensor, TTTState | None]:
        """The TTT block, forgetting everything at each position that is a multiple of `every`."""
        if prefix_lengths is not None:
            raise MoshiError("`reset_every` forgets what a prefix taught: evaluate it without prefixes")
        B, T = x.shape[:2]
        offsets = x.new_zeros(B, dtype=torch.int64) if chunk is None else chunk.offsets
        memory = None if chunk is None else chunk.memory(self.index)
        # The rows of a batch may be at different places: cut wherever one of them forgets.
        cuts = {cut for offset in offsets.tolist() for cut in range(-offset % every, T, every)}
        edges = sorted({0, T} | cuts)
        pieces = []
        for start, end in pairwise(edges):
            forget = (offsets + start) % every == 0
            y, memory = ttt(x[:, start:end], memory, reset=forget, relative=True)
            pieces.append(y)
        return torch.cat(pieces, dim=1), memory if chunk is not None else None
