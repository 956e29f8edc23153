"""What each step reads: independent clips, or the next clips of recordings whose memory is carried along."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from blake3 import blake3
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ttt_moshi.data import Batch, ClipLoader, StreamBatch, StreamLoader
from ttt_moshi.moshi import StreamState, TTTMoshi
from ttt_moshi.training.loss import target_mask


@dataclass(frozen=True)
class Stage:
    """A part of the run in which clips have one length.

    Args:
        first_step: optimizer step with which it begins.
        loader: its clips; positions count from the beginning of the stage.
        clip_frames: length of a clip.
    """

    first_step: int
    loader: ClipLoader | StreamLoader
    clip_frames: int


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that an optimizer step belongs to."""
    return stages[bisect_right([stage.first_step for stage in stages], step) - 1]


@dataclass(frozen=True)
class Layout:
    """How the clips of one step are divided; rows are numbered by micro-batch, then rank, then place in the batch.

    Args:
        batch_size: rows of one rank's micro-batch.
        micro_batches: micro-batches of a step.
        clips_per_row: consecutive clips of each row.
    """

    rank: int
    world_size: int
    batch_size: int
    micro_batches: int
    clips_per_row: int

    @property
    def rows(self) -> int:
        """Rows of a step over all ranks."""
        return self.world_size * self.batch_size * self.micro_batches

    @property
    def clips(self) -> int:
        """Clips of a step over all ranks."""
        return self.rows * self.clips_per_row

    def read(self, loader: ClipLoader | StreamLoader, cursor: int) -> list[list[Batch]]:
        """This rank's clips of the step at `cursor`: for each micro-batch, its consecutive batches."""
        return [[loader.batch(start, self.batch_size) for start in micro] for micro in self._starts(cursor)]

    def read_ahead(self, loader: ClipLoader | StreamLoader, cursor: int) -> None:
        """Begins to read the step at `cursor` in the background."""
        for micro in self._starts(cursor):
            for start in micro:
                loader.prefetch(start, self.batch_size)

    def _starts(self, cursor: int) -> list[list[int]]:
        """Position of the first clip of every batch of this rank."""
        first_rows = [(micro * self.world_size + self.rank) * self.batch_size for micro in range(self.micro_batches)]
        return [[cursor + turn * self.rows + row for turn in range(self.clips_per_row)] for row in first_rows]


@dataclass(frozen=True)
class Targets:
    """What one clip asks of the model.

    Args:
        codes: int64 [B, K, T], the targets, in the order in which they are predicted.
        mask: bool [B, 1 + dep_q, T].
    """

    codes: Tensor
    mask: Tensor


class IndependentClips:
    """Every clip begins a conversation; nothing is carried.

    Args:
        has_prefix: whether some recording begins with given frames.
    """

    def __init__(self, has_prefix: bool) -> None:
        self.has_prefix = has_prefix

    def begin(self, model: TTTMoshi, restart: bool, inherit: bool = False) -> None:
        """Nothing to move on from."""

    def targets(self, model: TTTMoshi, micro: int, clips: Sequence[Batch], device: torch.device) -> list[Targets]:
        """What the clips of one micro-batch ask, before the model runs."""
        found = []
        for batch in clips:
            codes = batch.codes.to(device)
            mask = target_mask(codes, model.delays, model.dep_q, batch.prefix_lengths.to(device))
            found.append(Targets(codes, mask))
        return found

    def predict(self, model: TTTMoshi, micro: int, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Text and audio logits of one clip."""
        prefix = batch.prefix_lengths.to(device) if self.has_prefix else None
        output = model(batch.codes.to(device), prefix_lengths=prefix)
        return output.text_logits, output.logits

    def keep(self) -> None:
        """Nothing outlives a step."""

    def tensors(self, mesh: DeviceMesh) -> dict[str, Tensor]:
        """Nothing to save."""
        return {}


class CarriedClips:
    """Every row goes on where its recording was left: attention, memory and delays are carried, and can be saved.

    Gradients flow through the clips of one step and are cut between steps. What a step moves is only its own until
    `keep`: a step that fails leaves no trace.

    Args:
        has_prefix: whether some recording begins with given frames.
        random_phase: whether a recording may begin in the middle of an inner mini-batch.
    """

    def __init__(
        self, model: TTTMoshi, layout: Layout, dtype: torch.dtype, has_prefix: bool, random_phase: bool, seed: int
    ) -> None:
        self.has_prefix = has_prefix
        self._random_phase = random_phase
        self._seed = seed
        self._dtype = dtype
        self._batch_size = layout.batch_size
        self._inherit = False
        self._kept = [model.start_stream(layout.batch_size, dtype) for _ in range(layout.micro_batches)]
        self._moving = list(self._kept)

    def begin(self, model: TTTMoshi, restart: bool, inherit: bool = False) -> None:
        """Begins a step from what was kept last, or from nothing, as at the beginning of a stage.

        Args:
            inherit: whether recordings that begin in this step find the memory that the one before them left.
        """
        self._inherit = inherit
        self._moving = (
            [model.start_stream(self._batch_size, self._dtype) for _ in self._kept] if restart else self._kept[:]
        )

    def targets(self, model: TTTMoshi, micro: int, clips: Sequence[Batch], device: torch.device) -> list[Targets]:
        """What the clips of one micro-batch ask, before the model runs."""
        stream, found = self._moving[micro], []
        for batch in clips:
            stream = self._begin(stream, batch)
            codes = batch.codes.to(device)
            found.append(Targets(*model.chunk_targets(codes, stream, batch.prefix_lengths.to(device))))
            stream = stream.after(codes)
        return found

    def predict(self, model: TTTMoshi, micro: int, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Text and audio logits of one clip; moves the micro-batch's stream on."""
        prefix = batch.prefix_lengths.to(device) if self.has_prefix else None
        chunk = model.forward_chunk(
            batch.codes.to(device), self._begin(self._moving[micro], batch), prefix_lengths=prefix
        )
        self._moving[micro] = chunk.stream
        return chunk.output.text_logits, chunk.output.logits

    def keep(self) -> None:
        """Keeps what the step moved, the gradient cut."""
        self._kept = [stream.detach() for stream in self._moving]
        self._moving = self._kept[:]

    def tensors(self, mesh: DeviceMesh) -> dict[str, Tensor]:
        """The tensors that were kept last, by name, each rank's rows being its shard."""
        return {
            f"stream/{micro}/{name}": DTensor.from_local(tensor, mesh, [Shard(0)], run_check=False)
            for micro, stream in enumerate(self._kept)
            for name, tensor in stream.state_dict().items()
        }

    def _begin(self, stream: StreamState, batch: Batch) -> StreamState:
        assert isinstance(batch, StreamBatch)
        starts = batch.starts.to(stream.frames.device)
        begun = stream.reset(starts)
        stream = begun.with_memory_of(stream) if self._inherit else begun
        return self._with_phases(stream, starts, batch.sample_ids) if self._random_phase else stream

    def _with_phases(self, stream: StreamState, starts: Tensor, names: Sequence[str]) -> StreamState:
        """Lets starting rows begin at a place of the mini-batch that the clip's name and the seed decide.

        The slots before it are empty: their step size is zero, so they write nothing.
        """
        layers = []
        for layer in stream.layers:
            if layer.memory is not None and layer.memory.k is not None and layer.memory.phase is not None:
                size = layer.memory.k.shape[2]
                drawn = torch.tensor([_draw(self._seed, name, size) for name in names], device=starts.device)
                phase = torch.where(starts, drawn, layer.memory.phase)
                layer = replace(layer, memory=replace(layer.memory, phase=phase))
            layers.append(layer)
        return replace(stream, layers=tuple(layers))


def _draw(seed: int, name: str, size: int) -> int:
    return int.from_bytes(blake3(f"{seed} {name}".encode()).digest(length=8), "little") % size


Feed = IndependentClips | CarriedClips
