"""Stereo dialogues in moshi-finetune's format: Moshi on the left, the user on the right, word times beside them.

A folder holds `data.jsonl` with one `{"path", "duration"}` object per recording (the path is relative to the file), and
for each recording a 24 kHz 16-bit stereo wav and a json with `alignments`: `[[word, [start, end], speaker], ...]`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttt_moshi.data.sound_files import write_sound
from ttt_moshi.errors import UserError
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE
from ttt_moshi.synthetic.espeak import Span, Utterance, Voice, speak
from ttt_moshi.synthetic.grammar import Turn, dialogue, monologue, tales

MOSHI_VOICES = (
    Voice("en-us", rate=175, pitch=45),
    Voice("en-us+f2", rate=175, pitch=55),
    Voice("en-us+m3", rate=175, pitch=40),
    Voice("en-us+f4", rate=175, pitch=60),
)
STORYTELLER = MOSHI_VOICES[0]
"""who tells all tales, as one speaker reads all of Spoken StoryCloze"""
USER_VOICES = (
    Voice("en-gb-x-rp", rate=165, pitch=40),
    Voice("en-us+f1", rate=185, pitch=65),
    Voice("en-us+m7", rate=180, pitch=35),
    Voice("en-us+f3", rate=170, pitch=50),
    Voice("en-us+m1", rate=170, pitch=60),
)
SPEAKER_LABELS = {"moshi": "SPEAKER_MAIN", "user": "SPEAKER_OTHER"}
FRAME_SECONDS = FRAME_SIZE / SAMPLE_RATE
CHANNELS = {"moshi": 0, "user": 1}

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many parts are done, and how many there are."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation as it sounds."""

    samples: np.ndarray
    """float32 [2, N] at 24 kHz; row 0 is Moshi, row 1 the user"""
    alignments: tuple[tuple[Span, str], ...]
    """words of both speakers with their label, in order of their start, seconds"""

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / SAMPLE_RATE


def speak_dialogue(turns: Sequence[Turn], rng: random.Random, moshi: Sequence[Voice] = MOSHI_VOICES) -> Dialogue:
    """Gives each side a voice, Moshi one of those given, and speaks the turns with gaps, overlaps and backchannels."""
    voices = {"moshi": rng.choice(moshi), "user": rng.choice(USER_VOICES)}
    spoken = [(turn, speak(turn.text, voices[turn.speaker])) for turn in turns]
    return mix(spoken, schedule([(turn, utterance.duration) for turn, utterance in spoken], rng))


def schedule(turns: Sequence[tuple[Turn, float]], rng: random.Random) -> list[float]:
    """Start of every turn in seconds, given the turns and their durations.

    A new speaker waits 0.2 to 0.6 s, or starts up to 0.3 s early; the same speaker goes on after 0.1 to 0.3 s; a
    backchannel starts shortly before the turn it answers ends and does not hold up the turns that follow. Every start
    is moved on to the next frame boundary: nobody hears that, and equal speech then has equal codes, which a small
    model learns from far less of it.
    """
    starts: list[float] = []
    free = 0.1  # when the floor is free
    silent = {"moshi": 0.0, "user": 0.0}  # when each speaker has finished
    holder = ""
    begun = 0.0  # when the last turn that holds the floor began
    for turn, duration in turns:
        if turn.backchannel:
            start = free - rng.uniform(0.1, 0.5)
        elif turn.speaker == holder:
            start = free + rng.uniform(0.1, 0.3)
        elif rng.random() < 0.2:
            start = free - rng.uniform(0.1, 0.3)
        else:
            start = free + rng.uniform(0.2, 0.6)
        # Nobody answers before the question has begun, however short it is.
        earliest = silent[turn.speaker] if turn.backchannel else max(silent[turn.speaker], begun)
        start = math.ceil(max(start, earliest) / FRAME_SECONDS) * FRAME_SECONDS
        silent[turn.speaker] = start + duration
        if not turn.backchannel:
            free, holder, begun = start + duration, turn.speaker, start
        starts.append(start)
    return starts


def mix(spoken: Sequence[tuple[Turn, Utterance]], starts: Sequence[float]) -> Dialogue:
    """Places utterances on their speaker's channel."""
    first = [round(start * SAMPLE_RATE) for start in starts]
    length = max(begin + len(u.samples) for begin, (_, u) in zip(first, spoken, strict=True)) + SAMPLE_RATE // 5
    samples = np.zeros((2, length), np.float32)
    words: list[tuple[Span, str]] = []
    for begin, (turn, utterance) in zip(first, spoken, strict=True):
        samples[CHANNELS[turn.speaker], begin : begin + len(utterance.samples)] += utterance.samples
        offset = begin / SAMPLE_RATE
        words += [
            (Span(word.text, word.start + offset, word.end + offset), SPEAKER_LABELS[turn.speaker])
            for word in utterance.words
        ]
    return Dialogue(samples, tuple(sorted(words, key=lambda word: word[0].start)))


def write_dialogue(dialogue: Dialogue, path: Path) -> None:
    """Writes `path` (.wav) and the .json beside it."""
    write_sound(path, dialogue.samples.T, SAMPLE_RATE, subtype="PCM_16")
    rows = [[w.text, [round(w.start, 4), round(w.end, 4)], speaker] for w, speaker in dialogue.alignments]
    path.with_suffix(".json").write_text(json.dumps({"alignments": rows}) + "\n")


def make_dialogues(
    folder: Path,
    seed: str,
    count: int,
    questions: int = 3,
    stories: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Writes `count` dialogues and returns their `data.jsonl`.

    Dialogue i depends on (seed, i) alone, so a larger set begins with the smaller one.
    """
    return _make(folder, seed, count, lambda rng: dialogue(rng, questions, stories), progress)


def make_monologues(folder: Path, seed: str, count: int, progress: Progress | None = None) -> Path:
    """The same with monologues of about 30 s, in which the user is silent."""
    return _make(folder, seed, count, monologue, progress)


def make_tales(folder: Path, seed: str, count: int, progress: Progress | None = None) -> Path:
    """The same with tales in the storyteller's voice."""
    return _make(folder, seed, count, tales, progress, (STORYTELLER,))


def _make(
    folder: Path,
    seed: str,
    count: int,
    write: Callable[[random.Random], list[Turn]],
    progress: Progress | None,
    moshi: Sequence[Voice] = MOSHI_VOICES,
) -> Path:
    recordings = folder / "data_stereo"
    recordings.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        rng = _generator(seed, index)
        conversation = speak_dialogue(write(rng), rng, moshi)
        path = recordings / f"dialogue_{index:04d}.wav"
        write_dialogue(conversation, path)
        lines.append(json.dumps({"path": str(path.relative_to(folder)), "duration": conversation.duration}))
        if progress:
            progress("speaking", index + 1, count)
    index_file = folder / "data.jsonl"
    index_file.write_text("".join(line + "\n" for line in lines))
    return index_file


def dialogue_words(seed: str, count: int, questions: int = 3, stories: int = 1) -> list[str]:
    """Every word that `make_dialogues` with the same arguments would have spoken, dialogue by dialogue."""
    turns = [turn for index in range(count) for turn in dialogue(_generator(seed, index), questions, stories)]
    return [word for turn in turns for word in turn.text.split()]


def _generator(seed: str, index: int) -> random.Random:
    return random.Random(f"{seed}/{index}")


def read_words(index_file: Path) -> list[str]:
    """Every word of every recording of a data set, in order, both speakers."""
    words = []
    try:
        for line in index_file.read_text(encoding="utf-8").splitlines():
            path = (index_file.parent / json.loads(line)["path"]).with_suffix(".json")
            words += [row[0] for row in json.loads(path.read_text(encoding="utf-8"))["alignments"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index_file} is no list of made-up dialogues ({error})") from error
    return words
