"""How loud a recording is (ITU-R BS.1770, by libav), and the gain that makes a voice as loud as it should be."""

from __future__ import annotations

import math
from collections.abc import Iterable

import av
import numpy as np
from av.filter import Graph

from ttt_moshi.frames import SAMPLE_RATE

SILENCE = -70.0
"""LUFS below which nothing is measured"""
MAX_PEAK = 10 ** (-1 / 20)
"""full scale less 1 dB: no gain lifts a peak beyond it"""


class LoudnessMeter:
    """Integrated loudness of one channel that comes in blocks of any size, in flat memory."""

    def __init__(self) -> None:
        self._graph = Graph()
        self._source = self._graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono")
        meter = self._graph.add("ebur128", "metadata=1:framelog=quiet")
        self._sink = self._graph.add("abuffersink")
        self._source.link_to(meter)
        meter.link_to(self._sink)
        self._graph.configure()
        self._samples = 0
        self._lufs = -math.inf
        self.peak = 0.0
        """largest absolute sample so far"""

    def add(self, samples: np.ndarray) -> None:
        """Takes the next float32 samples `[n]` at 24 kHz."""
        if not len(samples):
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, self._samples
        self._samples += len(samples)
        self.peak = max(self.peak, float(np.abs(samples).max()))
        self._source.push(frame)
        self._pull()

    def lufs(self) -> float:
        """Of everything; `-inf` where it is silent, or shorter than the 0.4 s that a measurement takes."""
        self._source.push(None)
        self._pull()
        return self._lufs if self._lufs > SILENCE else -math.inf

    def _pull(self) -> None:
        while True:
            try:
                measured = self._sink.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            self._lufs = float(measured.metadata.get("lavfi.r128.I", self._lufs))


def gains(blocks: Iterable[np.ndarray], channels: int, lufs: float) -> list[float]:
    """Factor of every channel of blocks `[channels, n]` that brings it to `lufs`; 1 for a silent one."""
    meters = [LoudnessMeter() for _ in range(channels)]
    for block in blocks:
        for meter, samples in zip(meters, block, strict=True):
            meter.add(samples)
    found = []
    for meter in meters:
        measured = meter.lufs()
        wanted = 10 ** ((lufs - measured) / 20) if math.isfinite(measured) else 1.0
        found.append(min(wanted, MAX_PEAK / meter.peak) if wanted > 1 else wanted)
    return found
