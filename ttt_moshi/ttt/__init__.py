"""Test-time training layers: a memory of fixed size, trained on every frame it hears."""

from ttt_moshi.ttt.config import PRESETS, Preset, TTTConfig
from ttt_moshi.ttt.diagnostics import Diagnostics, StreamLosses, watch
from ttt_moshi.ttt.layer import TTTLayer
from ttt_moshi.ttt.state import TTTState

__all__ = ["PRESETS", "Diagnostics", "Preset", "StreamLosses", "TTTConfig", "TTTLayer", "TTTState", "watch"]
