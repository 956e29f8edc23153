"""All mini benchmarks in one folder, in the layouts of the official sets, from generated speech.

    sLM21-dataset/{lexical,syntactic}/{dev,test}/   wav files and gold.csv
    sSC/  tSC/                                      <n>_<uuid>_{correct,incorrect}.wav
    salmon/<part>/                                  sample_<i>_{0,1}.wav
    librilight/small/<speaker>/<book>/              flac and json
    librispeech-long/<split>/<speaker>/<chapter>/   flac and .trans.txt
    needle/<seconds>s/                              as sSC, and needles.json
    repeat/<seconds>s/                              wav and json

They test harnesses and show whether a model trained on the demo speech has learned from it. They say nothing about
human speech.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ttt_moshi.data.errors import DataError
from ttt_moshi.files import write_atomically
from ttt_moshi.synthetic.benchmarks.long import make_books, make_long_form, make_repeats
from ttt_moshi.synthetic.benchmarks.salmon import make_salmon
from ttt_moshi.synthetic.benchmarks.slm21 import make_lexical, make_syntactic
from ttt_moshi.synthetic.benchmarks.stories import make_cloze, make_needles
from ttt_moshi.synthetic.benchmarks.words import count_words
from ttt_moshi.synthetic.dialogues import MOSHI_VOICES, read_words
from ttt_moshi.synthetic.material import demo_words

Progress = Callable[[str, int, int], None]
"""called with what is being done, how many parts are done, and how many there are"""

FORMAT_VERSION = 2
RECORD = "bench.json"


@dataclass(frozen=True)
class BenchSize:
    """How many items of each kind. The dev splits of sLM21 have a quarter of the test splits."""

    words: int
    """in-vocabulary words of the lexical test split, and as many unknown ones"""
    sentences: int
    """per subtype of the syntactic test split"""
    voices: int
    """of Moshi's voices, for words and sentences"""
    stories: int
    """twin pairs of sSC, and of tSC"""
    salmon: int
    """pairs of each part"""
    books: int
    """of two chapters each"""
    chapter_seconds: float
    long_form: int
    """long-form chapters"""
    distances: tuple[int, ...]
    """seconds between a needle and its question, and between a passage and its repetition"""
    needles: int
    """twin pairs per distance, and repetitions per distance"""


SIZES = {
    "tiny": BenchSize(
        words=4,
        sentences=1,
        voices=2,
        stories=1,
        salmon=1,
        books=1,
        chapter_seconds=8.0,
        long_form=1,
        distances=(2, 4),
        needles=1,
    ),
    "mini": BenchSize(
        words=50,
        sentences=12,
        voices=4,
        stories=60,
        salmon=30,
        books=4,
        chapter_seconds=60.0,
        long_form=2,
        distances=(5, 20),
        needles=15,
    ),
}


def make_bench(
    folder: Path,
    train_data: Path | None = None,
    seed: int = 0,
    size: str = "mini",
    progress: Progress | None = None,
) -> dict[str, int]:
    """Makes every benchmark in `folder` and returns how many items each has (pairs, or recordings).

    `train_data` is the jsonl file of the training dialogues: its transcripts decide which words are in the vocabulary
    and how frequent they are; None takes the dialogues that the demo trains on. Equal arguments give equal files. A
    finished folder with the same arguments is left as it is; an unfinished or different one is made again; one that was
    not made here is refused with `DataError`.
    """
    if size not in SIZES:
        raise DataError(f"there is no benchmark size {size!r}; choose one of {', '.join(SIZES)}")
    report = progress or (lambda what, done, total: None)
    frequency = count_words(demo_words() if train_data is None else read_words(train_data))
    settings = {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "size": json.loads(json.dumps(asdict(SIZES[size]))),
        "frequency": dict(sorted(frequency.items())),
    }
    record = folder / RECORD
    if record.is_file():
        known = json.loads(record.read_text())
        if known["settings"] == settings and known["items"]:
            return known["items"]
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
    elif folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and was not made by this command: name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(record, {"settings": settings, "items": {}})
    items = _make(folder, seed, SIZES[size], frequency, report)
    _write_record(record, {"settings": settings, "items": items})
    return items


PARTS = ("sLM21-dataset", "sSC", "tSC", "salmon", "librilight", "librispeech-long", "needle", "repeat")


def _make(folder: Path, seed: int, size: BenchSize, frequency: Counter[str], report: Progress) -> dict[str, int]:
    voices = MOSHI_VOICES[: size.voices]
    small_words, small_sentences = max(1, size.words // 4), max(1, size.sentences // 4)
    makers: dict[str, Callable[[Path, random.Random], int]] = {
        "sLM21-dataset/lexical/dev": lambda f, r: make_lexical(f, r, frequency, small_words, small_words, voices),
        "sLM21-dataset/lexical/test": lambda f, r: make_lexical(f, r, frequency, size.words, size.words, voices),
        "sLM21-dataset/syntactic/dev": lambda f, r: make_syntactic(f, r, small_sentences, voices),
        "sLM21-dataset/syntactic/test": lambda f, r: make_syntactic(f, r, size.sentences, voices),
        "sSC": lambda f, r: make_cloze(f, r, size.stories, topic=False),
        "tSC": lambda f, r: make_cloze(f, r, size.stories, topic=True),
        "salmon": lambda f, r: make_salmon(f, r, size.salmon),
        "librilight/small": lambda f, r: make_books(f, r, size.books, 2, size.chapter_seconds),
        "librispeech-long/test-clean": lambda f, r: make_long_form(f, r, size.long_form, size.chapter_seconds),
    }
    for distance in size.distances:
        makers[f"needle/{distance}s"] = partial(make_needles, count=size.needles, seconds=distance)
        makers[f"repeat/{distance}s"] = partial(make_repeats, count=size.needles, seconds=distance)
    items = {}
    for number, (name, make) in enumerate(makers.items()):
        report(f"making {name}", number, len(makers))
        # Each part has a generator of its own, so that the size of one does not change another.
        items[name] = make(folder / name, random.Random(f"{seed}/{name}"))
    report("making benchmarks", len(makers), len(makers))
    return items


def _write_record(path: Path, record: dict) -> None:
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
