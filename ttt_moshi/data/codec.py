"""Mimi over whole recordings: long ones piece by piece in bounded memory, short ones side by side."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import blake3
import numpy as np
import torch
from moshi.models import MimiModel
from moshi.modules.transformer import RingKVCache, StreamingMultiheadAttention
from moshi.utils.compile import no_cuda_graph

from ttt_moshi.data.errors import DataError
from ttt_moshi.frames import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE

_ENCODING_VERSION = 3
"""raised whenever the same audio and weights would give other codes than before"""

SHORT_FRAMES = 64
"""recordings of at most so many frames (5 s) are encoded side by side; longer ones gain nothing by it"""

_ROWS = 8
_LENGTH_STEP = 8
"""shape of an encoding side by side: so many recordings, and a length in frames that is a multiple of this"""

_CHUNK_FRAMES = 50

_MARGIN_FRAMES = 16
"""frames that Mimi's convolutions look back, generously"""


class Codec:
    """An official `MimiModel` that this object alone uses from now on.

    Encoding is deterministic and safe to call from several threads, which take turns.

    Args:
        mimi: the codec, with `num_codebooks` set to what the language model reads of each speaker.
        config: the codec's configuration as in `CheckpointInfo.mimi_config`; None is the official one.
    """

    def __init__(self, mimi: MimiModel, config: Mapping[str, Any] | None = None):
        if (mimi.sample_rate, mimi.frame_rate) != (SAMPLE_RATE, FRAME_RATE):
            raise DataError(
                f"the codec works at {mimi.sample_rate} Hz and {mimi.frame_rate} frames a second; "
                f"{SAMPLE_RATE} Hz and {FRAME_RATE} are needed"
            )
        self._mimi = mimi.eval()
        self._lock = threading.Lock()
        self._silence: torch.Tensor | None = None
        self.num_codebooks: int = mimi.num_codebooks
        self.dtype = torch.int16 if mimi.cardinality <= 2**15 else torch.int32
        self.fingerprint: str = _fingerprint(mimi, config)
        """64 hex digits: equal for codecs that give equal codes"""

    def encode(
        self, blocks: Iterable[np.ndarray], channels: int, on_frames: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Codes `[channels, num_codebooks, T]` of a recording, in `self.dtype` on the CPU.

        They are the codes of one encoding of the whole recording, whose last frame is filled up with silence: T is the
        number of samples over 1920, rounded up. Apart from the codes, memory does not grow with T.

        Args:
            blocks: consecutive float32 `[channels, any length]` at 24 kHz.
            on_frames: called after every piece with the number of frames done so far.
        """
        device, dtype = self._place()
        pieces = [torch.zeros(channels, self.num_codebooks, 0, dtype=self.dtype)]
        done = 0
        # The graphs that Mimi captures on a GPU would outlive the batch size they were captured for.
        with self._lock, torch.no_grad(), no_cuda_graph(), self._mimi.streaming(channels):
            self._widen_attention_caches(channels)
            for samples, frames in _rechunk(blocks, channels, _CHUNK_FRAMES * FRAME_SIZE):
                x = torch.from_numpy(samples)[:, None].to(device, dtype)  # [channels, 1, samples]
                pieces.append(self._mimi.encode(x)[..., :frames].to("cpu", self.dtype))
                done += frames
                if on_frames:
                    on_frames(done)
        return torch.cat(pieces, dim=-1)

    def encode_short(self, sounds: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Codes `[num_codebooks, T]` of each sound, in `self.dtype` on the CPU.

        The codes of a sound depend on that sound alone. Arithmetic of other shapes rounds differently, and one code
        in a hundred thousand is that close to another one; so the shape of every encoding follows from the length of
        its sounds, and places that are left over hold silence. What follows a sound in its row cannot be heard in it,
        because the codec is causal.

        Args:
            sounds: float32 `[samples]` at 24 kHz, of at most `SHORT_FRAMES` frames each.
        """
        frames = [-(-len(sound) // FRAME_SIZE) for sound in sounds]
        if max(frames, default=0) > SHORT_FRAMES:
            raise ValueError(f"{max(frames)} frames are not a short recording; at most {SHORT_FRAMES} are")
        lengths = [-(-count // _LENGTH_STEP) * _LENGTH_STEP for count in frames]
        codes = [torch.zeros(self.num_codebooks, 0, dtype=self.dtype) for _ in sounds]
        device, dtype = self._place()
        for length in sorted(set(lengths) - {0}):
            alike = [i for i, own in enumerate(lengths) if own == length]
            for first in range(0, len(alike), _ROWS):
                group = alike[first : first + _ROWS]
                rows = torch.zeros(_ROWS, 1, length * FRAME_SIZE)
                for row, i in zip(rows, group, strict=False):
                    row[0, : len(sounds[i])] = torch.from_numpy(sounds[i])
                with self._lock, torch.no_grad():
                    found = self._mimi.encode(rows.to(device, dtype)).to("cpu", self.dtype)
                for row, i in zip(found, group, strict=False):
                    codes[i] = row[:, : frames[i]].clone()
        return codes

    def silence(self, start: int, frames: int) -> torch.Tensor:
        """Codes `[num_codebooks, frames]` of digital silence, from frame `start` of one endless encoding of it.

        Silence has no constant code at first. Once everything the encoder looks back on is silence its output cannot
        change any more, so the last code found there is repeated.
        """
        if self._silence is None:
            samples = np.zeros((1, self._lookback_frames() * FRAME_SIZE), np.float32)
            self._silence = self.encode([samples], 1)[0]
        steps = torch.arange(start, start + frames).clamp(max=self._silence.shape[-1] - 1)
        return self._silence[:, steps]

    @contextmanager
    def lend(self) -> Iterator[MimiModel]:
        """The codec itself, for a conversation; meanwhile whoever encodes waits."""
        with self._lock:
            yield self._mimi

    def _lookback_frames(self) -> int:
        """Frames of input that one frame of codes can depend on."""
        steps = sum(context for _, context in self._attention())
        return -(-steps // self._steps_per_frame()) + _MARGIN_FRAMES

    def _widen_attention_caches(self, batch_size: int) -> None:
        """Makes streaming in chunks equal to one long pass.

        Mimi's ring caches hold exactly the attention window, so writing a chunk overwrites keys that the chunk's first
        steps still look at. With room for a chunk more, nothing in reach is lost; the attention mask stays as it is.
        """
        device, dtype = self._place()
        chunk_steps = _CHUNK_FRAMES * self._steps_per_frame()
        for module, context in self._attention():
            state = module._streaming_state
            assert state is not None, "only called while streaming"
            state.kv_cache = RingKVCache(
                batch_size,
                module.num_heads,
                module.embed_dim // module.num_heads,
                context + chunk_steps - 1,
                device=device,
                dtype=dtype,
            )

    def _place(self) -> tuple[torch.device, torch.dtype]:
        weight = next(self._mimi.parameters())
        return weight.device, weight.dtype

    def _attention(self) -> list[tuple[StreamingMultiheadAttention, int]]:
        """The encoder's attention modules and how many steps each looks back on."""
        transformer = self._mimi.encoder_transformer
        modules = [] if transformer is None else transformer.modules()
        found = [module for module in modules if isinstance(module, StreamingMultiheadAttention)]
        return [(module, module.context) for module in found if module.context is not None]

    def _steps_per_frame(self) -> int:
        return round(self._mimi.encoder_frame_rate / self._mimi.frame_rate)


def _rechunk(blocks: Iterable[np.ndarray], channels: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """The same samples in chunks of `size`, the last one filled up with zeros, each with its count of true frames."""
    waiting: np.ndarray = np.zeros((channels, 0), np.float32)
    for block in blocks:
        waiting = np.concatenate([waiting, block], axis=1)
        while waiting.shape[1] >= size:
            yield np.ascontiguousarray(waiting[:, :size]), size // FRAME_SIZE
            waiting = waiting[:, size:]
    left = waiting.shape[1]
    if left:
        yield np.pad(waiting, ((0, 0), (0, size - left))), -(-left // FRAME_SIZE)


def _fingerprint(mimi: MimiModel, config: Mapping[str, Any] | None) -> str:
    digest = blake3.blake3()
    facts = {"version": _ENCODING_VERSION, "config": config, "num_codebooks": mimi.num_codebooks}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(mimi.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
