"""Text to speech with espeak-ng: samples, word times and phone times.

The shared library comes with the `espeakng-loader` wheel, so nothing has to be installed on the system. espeak-ng
keeps state between utterances (filter memories, phase of the glottal pulse) that re-initialising it does not clear, and
it seeds its noise generator with the time. `speak` therefore loads the library afresh for every utterance, which costs
about a third of a millisecond, and seeds it: the audio is a pure function of the arguments.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import soxr

from ttt_moshi.errors import UserError
from ttt_moshi.extras import need
from ttt_moshi.frames import SAMPLE_RATE

RMS_LEVEL = 0.06
TAIL_SECONDS = 0.05
NOISE_SEED = 1

_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS, _INITIALIZE_DONT_EXIT = 0x0001, 0x8000
_CHARS_UTF8, _PHONEME_INPUT = 1, 0x0100
_POSITION_CHARACTER = 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_PHONEME, _EVENT_MSG_TERMINATED = 0, 1, 7, 6


class SpeechError(UserError):
    """Speech that cannot be synthesized: an unknown voice, an empty text, a library that cannot be used."""


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak-ng voice with optional variant (`en-us+f2`), its speed and its pitch."""

    name: str
    rate: int = 170
    """words per minute, 80 to 450"""
    pitch: int = 50
    """0 to 99"""


@dataclass(frozen=True)
class Span:
    """A word or a phone and when it sounds, in seconds from the start of the utterance."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """One voice saying one text."""

    samples: np.ndarray
    """float32 [N] at 24 kHz, scaled to the same RMS level whatever the voice; the pause after the last phone is cut"""
    words: tuple[Span, ...]
    """the whitespace-separated words of the text, lone punctuation left out; empty for phoneme input"""
    phones: tuple[Span, ...]
    """espeak-ng phone names, pauses (`_`, `_:`) included"""

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE


def speak(text: str, voice: Voice, phonemes: bool = False) -> Utterance:
    """Synthesizes `text`, which is a string of espeak-ng phoneme names (`bl'Ik`) when `phonemes` is true.

    Equal arguments give bit-identical samples in any order and any process. Raises `SpeechError`.
    """
    if not text.strip():
        raise SpeechError("nothing to say: the text is empty")
    _check_variant(voice)
    source = f"[[{text}]]" if phonemes else text
    with _fresh_library() as (library, rate):
        if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise SpeechError(f"espeak-ng has no voice {voice.name!r}; try `en-us` or a variant such as `en-us+f2`")
        library.espeak_SetParameter(_PARAMETER_RATE, voice.rate, 0)
        library.espeak_SetParameter(_PARAMETER_PITCH, voice.pitch, 0)
        pcm, events = _synthesize(library, source, phonemes)
    phones = _phones(events, len(pcm) / rate)
    duration = min(len(pcm) / rate, max(p.end for p in phones if not p.text.startswith("_")) + TAIL_SECONDS)
    phones = tuple(Span(p.text, p.start, min(p.end, duration)) for p in phones if p.start < duration)
    words = () if phonemes else _words(text, events, duration)
    return Utterance(_to_24k(pcm[: round(duration * rate)], rate), words, phones)


def _espeak() -> ModuleType:
    """The package that carries espeak-ng."""
    return need("espeakng_loader", "made-up speech")


def _check_variant(voice: Voice) -> None:
    """espeak-ng itself ignores a variant that it does not know."""
    _, _, variant = voice.name.partition("+")
    if variant and not (Path(_espeak().get_data_path()) / "voices" / "!v" / variant).is_file():
        raise SpeechError(f"espeak-ng has no voice variant {variant!r}; there are f1 to f5, m1 to m8 and others")


@dataclass(frozen=True)
class _Event:
    kind: int
    position: int
    """offset in the text, in characters from 0"""
    time: float
    """seconds"""
    phone: str


class _Identity(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _RawEvent(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identity),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_RawEvent))


@contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """The initialised library in its start state, and its sample rate in Hz."""
    path = _espeak().get_library_path()
    if _is_loaded(path):
        raise SpeechError(
            "another part of this process has loaded espeak-ng, so speech would depend on what it said before; "
            "synthesize in a process of its own"
        )
    library = ctypes.CDLL(path)
    try:
        rate = library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS,
            0,
            _espeak().get_data_path().encode(),
            _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT,
        )
        if rate <= 0:
            raise SpeechError(f"espeak-ng did not start (code {rate}); reinstall the `espeakng-loader` package")
        library.espeak_ng_SetRandSeed(ctypes.c_long(NOISE_SEED))
        yield library, rate
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def _is_loaded(path: str) -> bool:
    try:
        handle = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    _ctypes.dlclose(handle._handle)
    return True


def _synthesize(library: ctypes.CDLL, source: str, phonemes: bool) -> tuple[np.ndarray, list[_Event]]:
    """int16 samples [N] and the events in order of time."""
    rate = library.espeak_ng_GetSampleRate()
    chunks: list[np.ndarray] = []
    events: list[_Event] = []

    def receive(samples, count, raw) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while raw[index].type not in (_EVENT_END_OF_LIST, _EVENT_MSG_TERMINATED):
            event = raw[index]
            phone = event.id.string.decode("utf-8", "replace") if event.type == _EVENT_PHONEME else ""
            events.append(_Event(event.type, event.text_position - 1, event.sample / rate, phone))
            index += 1
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    data = source.encode()
    flags = _CHARS_UTF8 | (_PHONEME_INPUT if phonemes else 0)
    status = library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, _POSITION_CHARACTER, 0, flags, None, None)
    spoken = any(event.phone and not event.phone.startswith("_") for event in events)
    if status != 0 or not chunks or not spoken:
        raise SpeechError(f"espeak-ng could not say {source!r} (code {status})")
    return np.concatenate(chunks), events


def _phones(events: list[_Event], duration: float) -> tuple[Span, ...]:
    phones = [event for event in events if event.kind == _EVENT_PHONEME and event.phone]
    ends = [event.time for event in phones[1:]] + [duration]
    return tuple(Span(p.phone, p.time, end) for p, end in zip(phones, ends, strict=True) if end > p.time)


def _words(text: str, events: list[_Event], duration: float) -> tuple[Span, ...]:
    """A word runs from its event to the next word or to the pause that follows it, whichever comes first.

    espeak-ng reports one event per spoken word: "1999" gives three, which are joined to the written word that they are
    from, and "in the" gives one, whose time is divided between the written words by their letters.
    """
    written = _written_words(text)
    starts = [event for event in events if event.kind == _EVENT_WORD]
    pauses = [event.time for event in events if event.kind == _EVENT_PHONEME and event.phone.startswith("_")]
    spoken: dict[int, tuple[float, float]] = {}  # index of a written word -> start, end
    for index, event in enumerate(starts):
        limit = starts[index + 1].time if index + 1 < len(starts) else duration
        end = min([pause for pause in pauses if event.time < pause < limit], default=limit)
        owner = max((k for k, (offset, _) in enumerate(written) if offset <= event.position), default=0)
        first, _ = spoken.get(owner, (event.time, end))
        spoken[owner] = (first, end)
    spans: list[Span] = []
    owners = sorted(spoken)
    for owner, following in zip(owners, [*owners[1:], len(written)], strict=True):
        start, end = spoken[owner]
        words = [word for _, word in written[owner:following]]
        letters = [sum(map(str.isalnum, word)) for word in words]
        bounds = [start + (end - start) * sum(letters[:k]) / sum(letters) for k in range(len(words) + 1)]
        spans += [Span(word, *bound) for word, bound in zip(words, pairwise(bounds), strict=True)]
    return tuple(spans)


def _written_words(text: str) -> list[tuple[int, str]]:
    """The whitespace-separated words that have something to say, with the offset of their first character."""
    words, offset = [], 0
    for word in text.split():
        offset = text.index(word, offset)
        if any(map(str.isalnum, word)):
            words.append((offset, word))
        offset += len(word)
    return words


def _to_24k(pcm: np.ndarray, rate: int) -> np.ndarray:
    samples = soxr.resample(pcm.astype(np.float32) / 32768.0, rate, SAMPLE_RATE)
    loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    return (samples * np.float32(RMS_LEVEL / max(loudness, 1e-6))).astype(np.float32)
