"""Teaching a memory by the base model with a wider window: what that knows from further back is to be remembered.

Plain likelihood hardly pays for memory. The student is drawn to the whole distribution of a teacher that sees more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import log_softmax

from ttt_moshi.data import Batch
from ttt_moshi.moshi import TTTMoshi, base_with_window
from ttt_moshi.training.feed import Feed, Targets


@dataclass
class Teacher:
    """The base model with a wider window, one forward pass without gradient for every clip.

    Args:
        feed: puts clips to the teacher, with the attention that it carries where recordings are carried.
        frames: its attention window.
        weight: of its part in the objective.
    """

    feed: Feed
    frames: int
    weight: float

    def begin(self, model: TTTMoshi, restart: bool) -> None:
        """As of `feed`."""
        with base_with_window(model, self.frames):
            self.feed.begin(model, restart)

    def predict(self, model: TTTMoshi, micro: int, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Text and audio logits of one clip, without gradient."""
        with base_with_window(model, self.frames), torch.no_grad():
            return self.feed.predict(model, micro, batch, device)

    def tensors(self, mesh: DeviceMesh) -> dict[str, Tensor]:
        """What it carries, by names of its own."""
        return {name.replace("/", "/teacher/", 1): tensor for name, tensor in self.feed.tensors(mesh).items()}


def lessons(student: Sequence[Tensor], teacher: Sequence[Tensor], target: Targets) -> Tensor:
    """The divergence of the student's distributions from the teacher's in nats, float32 [B, 1 + dep_q, T], 0 where
    nothing is predicted.

    Args:
        student, teacher: text logits [B, 1, T, text_card] and audio logits [B, dep_q, T, card].
    """
    divergence = torch.cat([_divergence(*pair) for pair in zip(student, teacher, strict=True)], dim=1)
    return torch.where(target.mask, divergence, 0.0)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher | student) of logits [..., card]; NaN where these are."""
    wanted, said = log_softmax(teacher.float(), dim=-1), log_softmax(student.float(), dim=-1)
    return (wanted.exp() * (wanted - said)).sum(-1)
