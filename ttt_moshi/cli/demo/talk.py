"""The conversation of the demo: a recording in two parts, what the model made of them, and who said what."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ttt_moshi.data.sound_files import write_sound

FIRST_SHARE = 0.6
"""of the recording, heard before the conversation is saved"""
PAUSE_SECONDS = 0.8
"""a longer one begins a new utterance"""
SPEAKERS = {"SPEAKER_MAIN": "Moshi", "SPEAKER_OTHER": "user"}


@dataclass(frozen=True)
class Utterance:
    """What one of the two says without a pause; times in seconds."""

    speaker: str
    start: float
    end: float
    text: str


def split(recording: Path, first: Path, second: Path) -> None:
    """Cuts a recording in two."""
    samples, rate = soundfile.read(recording)
    place = round(FIRST_SHARE * len(samples))
    write_sound(first, samples[:place], rate)
    write_sound(second, samples[place:], rate)


def join(parts: list[Path], recording: Path) -> dict[str, Any]:
    """The parts of a conversation (wav, with the agent's words beside them) as one mp3 file, with its transcript.

    Args:
        recording: what the user said, with word times beside it.
    """
    sound, words, seconds, cuts = [], _words(recording, "SPEAKER_OTHER", 0.0), 0.0, []
    for part in parts:
        samples, rate = soundfile.read(part, dtype="float32")
        words += _words(part, "SPEAKER_MAIN", seconds)
        sound.append(samples)
        seconds += len(samples) / rate
        cuts.append(seconds)
    mp3 = io.BytesIO()
    soundfile.write(mp3, np.concatenate(sound), rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.9)
    utterances = [
        asdict(utterance) for utterance in sorted(_utterances(words, cuts[0]), key=lambda u: (u.start, u.speaker))
    ]
    return {"mp3": mp3.getvalue(), "seconds": seconds, "resumed_at": cuts[0], "utterances": utterances}


def _words(audio: Path, speaker: str, offset: float) -> list[tuple[str, float, float, str]]:
    alignments = json.loads(audio.with_suffix(".json").read_text())["alignments"]
    return [(label, offset + start, offset + end, word) for word, (start, end), label in alignments if label == speaker]


def _utterances(words: list[tuple[str, float, float, str]], cut: float) -> list[Utterance]:
    """Words without a long pause between them, and all on one side of the cut."""
    found: list[Utterance] = []
    for label in SPEAKERS:
        current: list[tuple[str, float, float, str]] = []
        for word in sorted(word for word in words if word[0] == label):
            last = current[-1] if current else word
            if current and (word[1] - last[2] > PAUSE_SECONDS or last[1] < cut <= word[1]):
                found.append(_utterance(current))
                current = []
            current.append(word)
        if current:
            found.append(_utterance(current))
    return found


def _utterance(words: list[tuple[str, float, float, str]]) -> Utterance:
    return Utterance(SPEAKERS[words[0][0]], words[0][1], words[-1][2], " ".join(word[3] for word in words))
