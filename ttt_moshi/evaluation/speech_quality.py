"""How good speech sounds, as DNSMOS P.835 (arXiv 2110.01763) hears it: a model that rates without any reference.

The weights are those of the package `speechmos`: ONNX, so that reading them runs nothing. Nothing else of it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from ttt_moshi.data.voiced import Span
from ttt_moshi.evaluation.turn_events import share_of_time
from ttt_moshi.extras import need
from ttt_moshi.frames import SAMPLE_RATE

RATINGS = ("dnsmos_signal", "dnsmos_background", "dnsmos_overall")
"""of the speech itself, of what else is heard, and of both: opinions from 1 (bad) to 5 (excellent)"""
RATE, PIECE = 16_000, 144_160
"""what the model hears: samples a second, and samples at a time (9.01 s)"""
SPOKEN = 1 / 3
"""share of a piece in which somebody must speak, or it is not rated"""

_MINUTE = 60 * RATE
# From the model's outputs to opinions: quadratic, fitted by its authors; lowest power first.
_OPINIONS = np.array(
    [
        [0.0052439, 1.22083953, -0.08397278],
        [-0.39604546, 1.60915514, -0.13166888],
        [0.04602535, 1.11546468, -0.06766283],
    ]
)


class Listener:
    """DNSMOS. Raises `MissingPackageError` where its packages are not installed."""

    def __init__(self) -> None:
        purpose = "DNSMOS"
        need("speechmos", purpose)
        runtime = need("onnxruntime", purpose)
        options = runtime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        package = find_spec("speechmos")
        assert package is not None and package.origin is not None, "it is installed"
        weights = Path(package.origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
        self._session: Any = runtime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def rate(self, piece: np.ndarray) -> np.ndarray:
        """The `RATINGS` of float32 [PIECE] at 16 kHz."""
        (raw,) = self._session.run(None, {"input_1": piece[None]})[0]
        return (_OPINIONS * raw[:, None].astype(np.float64) ** np.arange(3)).sum(axis=1)

    def rate_minutes(self, blocks: Iterable[np.ndarray], speech: Sequence[Span]) -> list[dict[str, float]]:
        """The mean `RATINGS` of every minute of a channel, from its pieces of 9.01 s in which enough is said.

        {} for a minute that has none. The pieces of a minute begin at its start and do not overlap.

        Args:
            blocks: float32 [n] at 24 kHz, end to end.
            speech: where the channel speaks.
        """
        found = []
        for number, minute in enumerate(_minutes(blocks)):
            ratings = []
            for first in range(0, len(minute) - PIECE + 1, PIECE):
                start = 60 * number + first / RATE
                if share_of_time(speech, start, start + PIECE / RATE) >= SPOKEN:
                    ratings.append(self.rate(minute[first : first + PIECE]))
            found.append(dict(zip(RATINGS, np.mean(ratings, axis=0).tolist(), strict=True)) if ratings else {})
        return found


def _minutes(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """A channel at 16 kHz, minute by minute, the last one as far as it goes."""
    stream = soxr.ResampleStream(SAMPLE_RATE, RATE, 1, dtype="float32")
    waiting: np.ndarray = np.zeros(0, np.float32)
    nothing: np.ndarray = np.zeros(0, np.float32)
    for block, last in chain(((block, False) for block in blocks), [(nothing, True)]):
        waiting = np.concatenate([waiting, stream.resample_chunk(block, last=last)])
        while len(waiting) >= _MINUTE:
            yield waiting[:_MINUTE]
            waiting = waiting[_MINUTE:]
    if len(waiting):
        yield waiting
