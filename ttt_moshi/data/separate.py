"""Two channels of a mono call, by a diarizer's RTTM that says who speaks when and Silero's model that hears speech.

Voices that sound at once are not parted: such a stretch stays with whoever spoke first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from ttt_moshi.data.audio import read_blocks
from ttt_moshi.data.errors import DataError, PassingError
from ttt_moshi.data.formats.raw import decode
from ttt_moshi.data.remote import local
from ttt_moshi.data.voiced import runs
from ttt_moshi.extras import installed, need
from ttt_moshi.files import read_bytes
from ttt_moshi.frames import SAMPLE_RATE

_RATE, _CHUNK, _CONTEXT = 16_000, 512, 64
"""what the model hears: samples a second, new ones at a time, and old ones before them"""
STEP = _CHUNK * SAMPLE_RATE // _RATE
"""samples of 24 kHz for which one decision is made: 32 ms"""
_SPEECH = 0.5
_AROUND = 3
"""steps around speech that belong to it"""
_BRIDGED = 8
"""steps of pause within speech"""
_NOBODY, _USER, _MOSHI = -1, 1, 0


@dataclass(frozen=True)
class Separation:
    """Who owns each step of 32 ms of a mono recording: 0 Moshi, 1 the user, -1 nobody. int8 `[steps]`"""

    owners: np.ndarray
    both: float
    """seconds in which both speak"""
    unknown: float
    """seconds of speech that the diarizer gives to nobody"""

    def told(self, rttm: str, moshi: str) -> list[str]:
        """For people."""
        mine, others = (self.seconds(who) for who in (_MOSHI, _USER))
        told = [f"separated by {rttm}: {mine:.1f} s of {moshi} are Moshi's, {others:.1f} s the user's"]
        if self.both:
            told.append(f"{self.both:.1f} s of both at once stay with who spoke first")
        if self.unknown:
            told.append(f"{self.unknown:.1f} s of speech that {rttm} gives to nobody are silenced")
        return told

    def seconds(self, who: int) -> float:
        return int((self.owners == who).sum()) * STEP / SAMPLE_RATE

    def owner_at(self, seconds: float) -> int:
        """0 or 1: who speaks then, or nearest to it."""
        known = np.flatnonzero(self.owners != _NOBODY)
        if not len(known):
            return _MOSHI
        at = seconds * SAMPLE_RATE / STEP - 0.5
        return int(self.owners[known[np.abs(known - at).argmin()]])

    def channels(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """`[1, n]` at 24 kHz as `[2, n]`, Moshi's first. Cuts fade within a step, so that they do not click."""
        centres = (np.arange(len(self.owners)) + 0.5) * STEP
        gains = [(self.owners == who).astype(np.float32) for who in (_MOSHI, _USER)]
        start = 0
        for block in blocks:
            at = np.arange(start, start + block.shape[1])
            start += block.shape[1]
            yield np.stack([block[0] * np.interp(at, centres, gain) for gain in gains]).astype(np.float32)


def separate(audio: Path, rttm: Path, moshi_label: str | None) -> Separation:
    """Decides who owns what of a mono recording.

    Args:
        moshi_label: which of the diarizer's speakers is Moshi; all others are the user.

    Raises:
        DataError: a recording that cannot be read, or an RTTM that does not say who speaks when or has no such speaker.
        MissingPackageError: silero-vad or onnxruntime is not installed.
    """
    turns = read_turns(rttm)
    names = {name.casefold(): name for _, _, name in turns}
    if moshi_label is None or moshi_label.casefold() not in names:
        told = "" if moshi_label is None else f", none of them is {moshi_label}"
        raise DataError(
            f"{rttm.name} has the speakers {', '.join(sorted(names.values()))}{told}: `--moshi_label NAME` says who "
            "is Moshi"
        )
    speech = hear_speech(block[0] for block in read_blocks(audio))
    speaks = np.zeros((2, len(speech)), bool)
    for start, end, name in turns:
        who = _MOSHI if name.casefold() == moshi_label.casefold() else _USER
        speaks[who, round(start * SAMPLE_RATE / STEP) : round(end * SAMPLE_RATE / STEP)] = True
    speaks &= speech
    owners = np.where(speaks[_MOSHI], _MOSHI, np.where(speaks[_USER], _USER, _NOBODY)).astype(np.int8)
    both = speaks[_MOSHI] & speaks[_USER]
    for start, end in runs(both):
        before = owners[start - 1] if start else _NOBODY
        owners[start:end] = before if before != _NOBODY else _MOSHI
    seconds = STEP / SAMPLE_RATE
    return Separation(
        owners, int(both.sum()) * seconds, int((speech & ~speaks[_MOSHI] & ~speaks[_USER]).sum()) * seconds
    )


def read_turns(path: Path) -> list[tuple[float, float, str]]:
    """`(start, end, speaker)` of a diarizer's RTTM, in seconds.

    Raises:
        DataError: not an RTTM with lines that say who speaks when.
    """
    try:
        text, _ = decode(path, read_bytes(local(path)))
    except OSError as error:
        raise PassingError(f"cannot read {path}: {error.strerror or error}") from error
    turns = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            start, length, name = float(fields[3]), float(fields[4]), fields[7]
        except (ValueError, IndexError):
            raise DataError(f"{path}, line {number} is not `SPEAKER file channel start length ... name`") from None
        if not (0 <= start < float("inf") and 0 <= length < float("inf")):
            raise DataError(f"{path}, line {number} has an impossible time: {fields[3]} {fields[4]}")
        turns.append((start, start + length, name))
    if not turns:
        raise DataError(f"{path} does not say who speaks when: it has no SPEAKER lines")
    return turns


def hear_speech(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Where there is speech in one channel, float32 `[any length]` at 24 kHz, with a little around: bool `[steps]`."""
    session = _model()
    resampler = soxr.ResampleStream(SAMPLE_RATE, _RATE, 1, dtype="float32")
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(_CONTEXT, np.float32)
    waiting: np.ndarray = np.zeros(0, np.float32)
    found: list[float] = []
    total = 0
    for block in _and_the_end(blocks):
        total += 0 if block is None else len(block)
        more = resampler.resample_chunk(np.zeros(0, np.float32) if block is None else block, last=block is None)
        waiting = np.concatenate([waiting, more])
        if block is None:
            steps = -(-total // STEP)
            waiting = np.pad(waiting, (0, max(0, (steps - len(found)) * _CHUNK - len(waiting))))
        while len(waiting) >= _CHUNK:
            chunk = np.concatenate([context, waiting[:_CHUNK]])
            heard, state = session.run(None, {"input": chunk[None], "state": state, "sr": np.array(_RATE, np.int64)})
            found.append(float(heard[0, 0]))
            context, waiting = chunk[-_CONTEXT:], waiting[_CHUNK:]
    return _widened(np.array(found[: -(-total // STEP)]) >= _SPEECH)


def require_model() -> None:
    """Raises MissingPackageError where `hear_speech` would."""
    _model()


def _model() -> Any:
    purpose = "`--separate`"
    runtime = need("onnxruntime", purpose)
    if not installed("silero_vad"):
        need("silero_vad", purpose)
    options = runtime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    # The file alone: importing the package would set PyTorch's number of threads.
    package = find_spec("silero_vad")
    assert package is not None and package.origin is not None, "it is installed"
    path = Path(package.origin).parent / "data" / "silero_vad.onnx"
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _and_the_end(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
    yield from blocks
    yield None


def _widened(speech: np.ndarray) -> np.ndarray:
    wide = speech.copy()
    for start, end in runs(~speech):
        if start and end < len(speech) and end - start <= _BRIDGED:
            wide[start:end] = True
    for start, end in runs(wide.copy()):
        wide[max(0, start - _AROUND) : end + _AROUND] = True
    return wide
