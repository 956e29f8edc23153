"""Which part of a model owns a tensor, by its name alone: asked by everything that chooses or counts tensors."""

from __future__ import annotations

from typing import Literal

Group = Literal["base", "lora", "ttt"]


def tensor_group(name: str) -> Group:
    """Which part of the model owns the tensor: the base model, a LoRA adapter or a TTT layer."""
    parts = name.split(".")
    if len(parts) > 4 and parts[:2] == ["transformer", "layers"] and parts[3] == "ttt":
        return "ttt"
    if "lora_A" in parts or "lora_B" in parts:
        return "lora"
    return "base"
