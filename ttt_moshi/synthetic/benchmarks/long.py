"""Long recordings: books, long-form chapters, and speech that is repeated after a while."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from ttt_moshi.synthetic import grammar
from ttt_moshi.synthetic.benchmarks import audio
from ttt_moshi.synthetic.dialogues import MOSHI_VOICES
from ttt_moshi.synthetic.espeak import SAMPLE_RATE, Voice, speak

PARAGRAPH_GAP = 0.6
PASSAGE_SECONDS = 8.0


def tell(rng: random.Random, voice: Voice, seconds: float) -> tuple[np.ndarray, list[str], list[list[float]]]:
    """Stories until `seconds` are full: float32 [N] at 24 kHz, the sentences, and [start, end] of each in seconds."""
    pieces: list[np.ndarray] = []
    texts: list[str] = []
    voiced: list[list[float]] = []
    length = 0
    while length < seconds * SAMPLE_RATE:
        story = grammar.story(rng, grammar.random_person(rng), middle=rng.choice((1, 2)))
        for number, text in enumerate(story):
            samples = speak(text, voice).samples
            voiced.append([round(length / SAMPLE_RATE, 3), round((length + len(samples)) / SAMPLE_RATE, 3)])
            gap = PARAGRAPH_GAP if number == len(story) - 1 else audio.SENTENCE_GAP
            pieces.append(audio.with_gap(samples, gap))
            length += len(pieces[-1])
            texts.append(text)
    return np.concatenate(pieces), texts, voiced


def make_books(folder: Path, rng: random.Random, books: int, chapters: int, seconds: float) -> int:
    """Libri-Light's layout: `<speaker>/<book>/<chapter>.flac` and a .json of the same name. Returns how many."""
    for book in range(books):
        voice = MOSHI_VOICES[book % len(MOSHI_VOICES)]
        title = f"Stories, volume {book + 1}"
        place = folder / str(100 + book) / f"stories_{book + 1:02d}"
        place.mkdir(parents=True)
        for chapter in range(chapters):
            samples, _, voiced = tell(rng, replace(voice, pitch=voice.pitch + book // len(MOSHI_VOICES)), seconds)
            stem = f"stories_{chapter + 1:02d}_64kb"
            audio.write(place / f"{stem}.flac", samples)
            about = {
                "speaker": str(100 + book),
                "book_meta": {"id": str(book), "title": title, "genre": ["Generated speech"], "authors": []},
                "snr": 60.0,
                "voice_activity": voiced,
            }
            (place / f"{stem}.json").write_text(json.dumps(about) + "\n")
    return books * chapters


def make_long_form(folder: Path, rng: random.Random, count: int, seconds: float) -> int:
    """LibriSpeech-Long's layout: `<speaker>/<chapter>/<utterance>.flac` and one `.trans.txt` per chapter."""
    for index in range(count):
        speaker, chapter = 200 + index % len(MOSHI_VOICES), 1000 + index
        place = folder / str(speaker) / str(chapter)
        place.mkdir(parents=True)
        samples, texts, _ = tell(rng, MOSHI_VOICES[index % len(MOSHI_VOICES)], seconds)
        name = f"{speaker}-{chapter}-0000"
        audio.write(place / f"{name}.flac", samples)
        transcript = " ".join("".join(c for c in text if c.isalpha() or c == " ").upper() for text in texts)
        (place / f"{speaker}-{chapter}.trans.txt").write_text(f"{name} {transcript}\n")
    return count


def make_repeats(folder: Path, rng: random.Random, count: int, seconds: float) -> int:
    """`<uuid>.wav` in which a passage comes twice, `seconds` of other speech lying between; `<uuid>.json` tells where.

    The json has `first` and `second`, each [start, end] in seconds, and `voice`. The two passages are bit-identical.
    """
    folder.mkdir(parents=True)
    for _ in range(count):
        voice = rng.choice(MOSHI_VOICES)
        passage, between = (tell(rng, voice, length)[0] for length in (PASSAGE_SECONDS, seconds))
        lead = audio.silence(audio.LEAD_SECONDS)
        samples = np.concatenate([lead, passage, between, passage])
        start, length = len(lead) / SAMPLE_RATE, len(passage) / SAMPLE_RATE
        again = (len(lead) + len(passage) + len(between)) / SAMPLE_RATE
        name = audio.random_uuid(rng)
        audio.write(folder / f"{name}.wav", samples)
        spans = {"first": [start, start + length], "second": [again, again + length], "voice": voice.name}
        (folder / f"{name}.json").write_text(json.dumps(spans) + "\n")
    return count
