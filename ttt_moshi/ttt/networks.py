"""Which inner network a configuration means."""

from __future__ import annotations

import torch

from ttt_moshi.ttt.config import TTTConfig
from ttt_moshi.ttt.delta_network import DeltaNetwork
from ttt_moshi.ttt.inner import InnerNetwork
from ttt_moshi.ttt.mini_batch import MiniBatchNetwork


def make_inner(config: TTTConfig, device: torch.device | str | None = None) -> InnerNetwork:
    """Not initialised."""
    return (DeltaNetwork if config.inner == "delta" else MiniBatchNetwork)(config, device)
