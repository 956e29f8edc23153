"""What the name of a tensor says: its group, its optimizer role, whether it decays, and its official name.

Base tensors keep the names of the official model, LoRA tensors those of the official `LoRALinear`, and the tensors of a
TTT layer sit under `transformer.layers.{i}.ttt`. Everything that chooses tensors (training, checkpoints, exports) does
so by these names and never by module, so that a tensor beside frozen siblings is never forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from ttt_moshi.tensor_groups import Group, tensor_group

Role = Literal["base", "lora", "ttt", "fast_weight", "gate"]
Mode = Literal["frozen", "lora", "ttt", "lora+ttt", "full"]

FAST_WEIGHTS = frozenset({"W1", "b1", "W2", "b2"})
_INNER_SLOW = frozenset(
    {
        "learnable_ttt_lr_weight", "learnable_ttt_lr_bias", "learnable_ttt_forget_weight", "learnable_ttt_forget_bias",
        "ttt_norm_weight", "ttt_norm_bias",
    }
)  # fmt: skip
_NORM_MODULES = frozenset({"norm1", "norm2", "norm_cross", "out_norm", "depformer_norms", "norm", "post_norm"})
_SCALE_MODULES = frozenset({"layer_scale_1", "layer_scale_2", "layer_scale_cross"})


def parameter_role(name: str) -> Role:
    """The optimizer group: `tensor_group`, with a TTT layer's fast weights and gates apart from its projections."""
    group = tensor_group(name)
    if group != "ttt":
        return group
    last = name.rsplit(".", 1)[-1]
    if last in FAST_WEIGHTS:
        return "fast_weight"
    return "gate" if last == "gating_alpha" else "ttt"


def decays(name: str) -> bool:
    """Whether weight decay applies: matrices and embedding tables only.

    Decay would pull gates shut, and norms, biases and the fast weights' initial values towards nothing.
    """
    *modules, last = name.split(".")
    if parameter_role(name) in ("fast_weight", "gate") or last in _INNER_SLOW or last == "bias":
        return False
    return not (_NORM_MODULES | _SCALE_MODULES).intersection(modules)


def export_name(name: str) -> str:
    """The official name of a tensor: a base weight inside a `LoRALinear` loses the adapter's `frozen_W`."""
    return name.replace(".frozen_W.", ".")


def is_fp32(name: str) -> bool:
    """Whether the tensor stays float32 in every mode: the inner parameters of a TTT layer and its gates."""
    return tensor_group(name) == "ttt" and (".ttt.inner." in name or name.endswith("gating_alpha"))


@dataclass(frozen=True)
class Count:
    """Two different numbers that are easily confused: how many tensors, and how many numbers they hold."""

    tensors: int = 0
    elements: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.tensors + other.tensors, self.elements + other.elements)

    def __str__(self) -> str:
        return f"{self.tensors} tensors / {self.elements:,} elements"


@dataclass(frozen=True)
class TensorCounts:
    """Counts of a model's parameters, by group and by whether they are trained."""

    groups: dict[Group, Count] = field(default_factory=dict)
    trainable: dict[Group, Count] = field(default_factory=dict)

    @property
    def total(self) -> Count:
        return sum(self.groups.values(), Count())

    @property
    def total_trainable(self) -> Count:
        return sum(self.trainable.values(), Count())


def count_tensors(model: nn.Module) -> TensorCounts:
    """Counts every parameter once. Works on the meta device and on a sharded model (global shapes)."""
    return _count((name, p.numel(), p.requires_grad) for name, p in model.named_parameters())


def _count(parameters: Iterable[tuple[str, int, bool]]) -> TensorCounts:
    groups: dict[Group, Count] = {"base": Count(), "lora": Count(), "ttt": Count()}
    trainable: dict[Group, Count] = dict(groups)
    for name, elements, requires_grad in parameters:
        group = tensor_group(name)
        groups[group] += Count(1, elements)
        if requires_grad:
            trainable[group] += Count(1, elements)
    return TensorCounts(groups, trainable)
