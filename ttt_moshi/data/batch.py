"""What the model is fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ttt_moshi.data.interleaver import ABSENT


@dataclass
class Batch:
    """Clips of equal length, on the CPU. Beyond the real audio every stream is -1."""

    codes: torch.Tensor
    """int64 `[B, 1 + 2K, F]`: text, K codebooks of Moshi, K of the user; -1 = absent"""
    sample_ids: list[str]
    """one name per clip, the same on every machine"""
    prefix_lengths: torch.Tensor
    """int64 `[B]`: leading frames that are given to the model and not predicted; 0 = none"""
    valid_frames: torch.Tensor
    """int64 `[B]`: frames of real audio"""

    def __len__(self) -> int:
        return len(self.sample_ids)


def collate(clips: Sequence[Batch]) -> Batch:
    """One batch from several of the same frame count, in their order."""
    return Batch(
        torch.cat([clip.codes for clip in clips]),
        [name for clip in clips for name in clip.sample_ids],
        torch.cat([clip.prefix_lengths for clip in clips]),
        torch.cat([clip.valid_frames for clip in clips]),
    )


def empty_clip(streams: int, frames: int) -> Batch:
    """A batch of one clip without audio, for a process that has no clip left where others still have one."""
    nothing = torch.zeros(1, dtype=torch.int64)
    return Batch(torch.full((1, streams, frames), ABSENT), [""], nothing, nothing)
