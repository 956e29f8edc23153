"""Evaluating in the middle of training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from moshi.modules.streaming import StreamingModule
from torch import nn


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Inside: every module in eval mode, not streaming, no gradients. Outside: exactly as before, errors included.

    Restored bit for bit: the training flag of each submodule by itself (a frozen part may have been in eval mode),
    open streaming states, and the random generators of python, numpy, torch and every CUDA device in use.
    """
    parts = [part for module in modules for part in module.modules()]
    flags = [part.training for part in parts]
    streams = [(part, part._streaming_state) for part in parts if isinstance(part, StreamingModule)]
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        for part in parts:
            part.training = False
        for part, _ in streams:
            part._streaming_state = None
        with torch.no_grad():
            yield
    finally:
        for part, flag in zip(parts, flags, strict=True):
            part.training = flag
        for part, state in streams:
            part._streaming_state = state
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
