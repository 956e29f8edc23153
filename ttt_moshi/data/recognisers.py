"""Speech recognisers that give word times: faster-whisper, and pocketsphinx, whose package carries an English model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from ttt_moshi.data.voiced import EnergyMeter, Span, voiced_spans
from ttt_moshi.data.words import TimedWord
from ttt_moshi.errors import UserError
from ttt_moshi.extras import need
from ttt_moshi.frames import SAMPLE_RATE

ENGINES = ("faster-whisper", "pocketsphinx")
WHISPER_MODEL = "large-v3"

RECOGNISER_RATE = 16_000
"""samples a second that both of them hear"""
_UTTERANCE_PAUSE = 0.5
_UTTERANCE_SECONDS = 20.0
_AROUND = 0.2
"""seconds of pause that an utterance takes along, so that no word's first sound is cut"""


@dataclass(frozen=True)
class Heard:
    """Everything in a stretch of one channel; words in seconds from its start."""

    words: list[TimedWord]
    language: str | None


class Recogniser(Protocol):
    """What turns speech into words."""

    facts: dict[str, str]
    """engine, version and model, as transcripts record them"""

    def hear(self, samples: np.ndarray, language: str | None) -> Heard:
        """The words of one channel, float32 `[n]` at 24 kHz; `language` is a code such as `en`, None to find it."""
        ...


def open_recogniser(engine: str, model: str | None, device: str, language: str | None) -> Recogniser:
    """One of `ENGINES`, ready.

    Raises:
        UserError: a package that is not installed, or a model, device or language that the engine does not have.
    """
    if engine == "pocketsphinx":
        if model is not None:
            raise UserError(f"`--engine pocketsphinx` has its own model; leave `--model {model}` out")
        if device not in ("auto", "cpu"):
            raise UserError(f"`--engine pocketsphinx` runs on the processor alone, not on `--device {device}`")
        if language not in (None, "en"):
            raise UserError(f"`--engine pocketsphinx` knows English alone, not `--language {language}`")
        return Sphinx()
    return Whisper(WHISPER_MODEL if model is None else model, device, language)


class Whisper:
    """A Whisper model in CTranslate2's form: a folder, a size such as `small`, or a repository of the hub."""

    def __init__(self, model: str, device: str, language: str | None):
        library = need("faster_whisper", "`--engine faster-whisper`")
        kind, _, number = device.partition(":")
        try:
            self._model: Any = library.WhisperModel(
                model, device=kind, device_index=int(number or 0), compute_type="default"
            )
        except Exception as error:
            # The library, CTranslate2 and the hub each have their own errors for a model that is not to be had.
            raise UserError(f"`--model {model}` cannot be used on `--device {device}`: {_one_line(error)}") from error
        if language is not None and language not in self._model.supported_languages:
            known = ", ".join(self._model.supported_languages)
            raise UserError(f"`--language {language}` is none that `--model {model}` knows: {known}")
        name = Path(model).name if Path(model).is_dir() else model
        self.facts = {"engine": "faster-whisper", "version": version("faster-whisper"), "model": name}

    def hear(self, samples: np.ndarray, language: str | None) -> Heard:
        """See `Recogniser`."""
        import ctranslate2

        ctranslate2.set_random_seed(0)  # a doubtful stretch is heard again by drawing lots
        segments, info = self._model.transcribe(
            at_recogniser_rate(samples),
            language=language,
            word_timestamps=True,
            vad_filter=True,  # what is said into silence is made up
            condition_on_previous_text=False,  # one mistake must not go on to the end of the call
        )
        words = [
            TimedWord(word.word.strip(), float(word.start), float(word.end))
            for segment in segments
            for word in segment.words or []
            if word.word.strip()
        ]
        return Heard(words, info.language)


class Sphinx:
    """The small English model that comes with pocketsphinx: quick to have, with many wrong words."""

    def __init__(self) -> None:
        self._library: Any = need("pocketsphinx", "`--engine pocketsphinx`")
        self.facts = {"engine": "pocketsphinx", "version": version("pocketsphinx"), "model": "en-us"}

    def hear(self, samples: np.ndarray, language: str | None) -> Heard:
        """See `Recogniser`."""
        words: list[TimedWord] = []
        decoder = self._library.Decoder(loglevel="FATAL")  # one that was used hears by what it heard before
        for span in utterances(samples):
            part = samples[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)]
            decoder.start_utt()
            decoder.process_raw(as_pcm(part), full_utt=True)
            decoder.end_utt()
            words += [TimedWord(text, span.start + start, span.start + end) for text, start, end in spoken(decoder)]
        return Heard(words, "en")


def spoken(decoder: Any) -> Iterator[tuple[str, float, float]]:
    """The words that a pocketsphinx decoder has found, with start and end in seconds."""
    for segment in decoder.seg() or ():
        if segment.word[0] not in "<[+":  # silence, noise and the ends of the utterance
            yield segment.word.partition("(")[0], segment.start_frame / 100, (segment.end_frame + 1) / 100


def utterances(samples: np.ndarray) -> list[Span]:
    """Stretches of speech of one channel `[n]` at 24 kHz, joined across short pauses, none much longer than 20 s."""
    meter = EnergyMeter(1)
    meter.add(samples[None])
    joined: list[Span] = []
    for span in voiced_spans(meter.decibels()[0]):
        if (
            joined
            and span.start - joined[-1].end < _UTTERANCE_PAUSE
            and span.end - joined[-1].start < _UTTERANCE_SECONDS
        ):
            joined[-1] = Span(joined[-1].start, span.end)
        else:
            joined.append(span)
    return [part for span in joined for part in _parts(span, len(samples) / SAMPLE_RATE)]


def _parts(span: Span, seconds: float) -> Iterator[Span]:
    """A stretch with some pause around it, cut where noise has made it endless."""
    start, end = max(0.0, span.start - _AROUND), min(seconds, span.end + _AROUND)
    count = max(1, round((end - start) / (2 * _UTTERANCE_SECONDS)))
    edges: Sequence[float] = np.linspace(start, end, count + 1).tolist()
    yield from map(Span, edges, edges[1:])


def at_recogniser_rate(samples: np.ndarray) -> np.ndarray:
    """Float32 `[n]` of 24 kHz at 16 kHz."""
    return np.asarray(soxr.resample(samples, SAMPLE_RATE, RECOGNISER_RATE), np.float32)


def as_pcm(samples: np.ndarray) -> bytes:
    """Float32 `[n]` of 24 kHz as 16-bit samples at 16 kHz."""
    return np.round(at_recogniser_rate(samples).clip(-1, 1) * 32767).astype("<i2").tobytes()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
