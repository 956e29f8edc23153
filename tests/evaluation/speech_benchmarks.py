"""Spoken benchmarks of a few files each, in the layouts of the official data sets."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile

from ttt_moshi.synthetic.espeak import Voice, speak

VOICES = (Voice("en-us", 180), Voice("en-us+f2", 200, 60))


def make(root: Path) -> Path:
    """sLM21 lexical and syntactic, sSC, tSC, SALMon, Libri-Light books, needles, repeated passages and a question about
    each of two dialogues; more than a minute of speech."""
    words = [("kitchen", "kitzen", 40), ("window", "wimbow", 3), ("garden", "garben", 0)]
    _slm21(root, "lexical", [
        ({"id": i, "frequency": f, "word": w, "phones": "", "length": 5}, w, n) for i, (w, n, f) in enumerate(words)
    ])  # fmt: skip
    sentences = [("the dogs run", "the dogs runs", "agreement"), ("she saw it", "she it saw", "order")]
    _slm21(root, "syntactic", [
        ({"id": i, "type": t, "subtype": "x", "transcription": g}, g, b) for i, (g, b, t) in enumerate(sentences)
    ])  # fmt: skip
    for name, stories in {
        "sSC": [("we went home", "early", "purple")],
        "tSC": [("it rained", "all day", "no cake")],
    }.items():
        for i, (start, good, bad) in enumerate(stories):
            _say(root / name / f"{2 * i}_u{i}_correct.wav", f"{start} {good}")
            _say(root / name / f"{2 * i + 1}_u{i}_incorrect.wav", f"{start} {bad}")
    for part, (good, bad) in {"speaker_consistency": (0, 1), "gender_consistency": (1, 0)}.items():
        for half, voice in ((0, good), (1, bad)):
            _say(root / "salmon" / part / f"sample_0_{half}.wav", "hello again", voice)
    for speaker in range(2):
        book = root / "librilight" / "small" / f"{speaker + 1}" / "tale"
        for chapter in range(2):
            path = _say(book / f"{chapter}.flac", "once upon a time there was a small house by the sea " * 2, speaker)
            seconds = soundfile.info(path).duration
            voiced = [[0.0, 1.5], [2.0, seconds]]
            path.with_suffix(".json").write_text(json.dumps({"speaker": str(speaker), "voice_activity": voiced}))
    for distance in ("2", "4"):
        for i, (kind, value) in enumerate((("correct", "blue"), ("incorrect", "green"))):
            text = "the word is blue " + "and so on " * int(distance) + f"the word is {value}"
            _say(root / "needle" / distance / f"{i}_n_{kind}.wav", text)
    for seconds in (1, 2):
        for i, passage in enumerate(("a red door", "nine green boats")):
            _repeat(root / "repeat" / f"{seconds}" / f"{i}.wav", passage, seconds)
    folder, lines = root / "context_dialog", []
    for told in ("an owl", "a boat"):
        said = {"turn": f"i saw {told}", "question": "what was it", "answer": told}
        names = {part: _say(folder / f"{told}-{part}.wav", text).name for part, text in said.items()}
        turn = names.pop("turn")
        lines.append(json.dumps({"turns": [turn], **names}) + "\n")
    (folder / "seen.jsonl").write_text("".join(lines))
    return root


def _repeat(path: Path, text: str, seconds: int) -> None:
    """A passage, silence, and the passage again, so many seconds after its first hearing has ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    passage = speak(text, VOICES[0]).samples
    soundfile.write(path, np.concatenate([passage, np.zeros(seconds * 24_000, np.float32), passage]), 24_000)
    end = len(passage) / 24_000
    spans = {"first": [0, end], "second": [end + seconds, 2 * end + seconds]}
    path.with_suffix(".json").write_text(json.dumps(spans))


def _slm21(root: Path, kind: str, items: list[tuple[dict, str, str]]) -> None:
    for split in ("dev", "test"):
        folder = root / "sLM21-dataset" / kind / split
        rows = []
        for facts, good, bad in items:
            for v, voice in enumerate("AB"):
                for correct, text in ((1, good), (0, bad)):
                    name = f"{split}{facts['id']}{voice}{correct}"
                    _say(folder / f"{name}.wav", text, v)
                    rows.append({"filename": name, "voice": voice, "correct": correct, **facts})
        with (folder / "gold.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _say(path: Path, text: str, voice: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = speak(text, VOICES[voice]).samples
    # 16 kHz like the originals: every third sample of a crude two-tap average is enough for a fixture.
    low = (samples[:-1] + samples[1:])[: len(samples) // 3 * 3 - 3].reshape(-1, 3)[:, :2].reshape(-1) / 2
    soundfile.write(path, low.astype(np.float32), 16000)
    return path
