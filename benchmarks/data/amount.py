"""How much time and memory does a data set take? `prepare`, `check`, opening and encoding.

    OMP_NUM_THREADS=1 python benchmarks/data/amount.py [--seconds 600,10800] [--files 200,1000] [--jobs 1,2]
        [--json FILE]

Everything is made up on the spot: stereo calls of 8 kHz with words. Every line is measured in a process of its own;
times are those of its processor, so that other work on the machine does not count. Memory is the most that the process
ever held, beyond what Python and its libraries hold without any data. A Mimi has random weights, which take as long as
real ones: a small one to see what grows with the data, and one of the published size for its speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 8000
WORDS_A_MINUTE = 150
BLOCK = 60 * RATE
"""samples that are made at once"""
JOBS_FILES, JOBS_SECONDS = 8, 300
FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III")}


@dataclass(frozen=True)
class Cost:
    """Of one piece of work."""

    what: str
    seconds: float
    """of audio"""
    files: int
    cpu: float
    """seconds of the processor"""
    memory: float
    """MB beyond the libraries"""

    def line(self) -> str:
        speed = f"{self.seconds / max(self.cpu, 1e-9):9,.1f}x real time on a core"
        files = f"{1000 * self.cpu / self.files:8.2f} ms a file"
        return f"{self.what:34} {self.seconds:8,.0f} s in {self.files:6,} files {speed} {files} {self.memory:8,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default="600,10800", help="lengths of one recording (default: %(default)s)")
    parser.add_argument("--files", default="200,1000", help="numbers of short files (default: %(default)s)")
    parser.add_argument("--jobs", default="1,2", help="numbers of processes of prepare (default: %(default)s)")
    parser.add_argument("--official", type=float, default=20.0, help="seconds for a Mimi of full size, 0 for none")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    args = parser.parse_args()
    lengths, counts, jobs = (sorted(map(int, text.split(","))) for text in (args.seconds, args.files, args.jobs))
    found: list[Cost] = []

    def measure(*work: Any) -> Cost:
        found.append(apart(*work))
        print(found[-1].line(), flush=True)
        return found[-1]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("one recording")
        for kind in FORMATS:
            make(folder / kind, lengths[0], 1, kind)
            measure(prepare_all, f"prepare, {kind}", folder / kind, folder / f"{kind}.out")
        grown: dict[str, list[Cost]] = {"prepare": [], "check": [], "encode": []}
        for seconds in lengths:
            make(folder / str(seconds), seconds, 1)
            out = folder / f"{seconds}.out"
            grown["prepare"].append(measure(prepare_all, "prepare", folder / str(seconds), out))
            grown["check"].append(measure(check_all, "check", out))
            grown["encode"].append(measure(encode_all, "encode, small Mimi", out))
        if args.official:
            make(folder / "official", args.official, 1)
            apart(prepare_all, "prepare", folder / "official", folder / "official.out")
            official = measure(encode_official, "encode, Mimi of full size", folder / "official.out")
        print(
            f"{JOBS_FILES} recordings of {JOBS_SECONDS} s by several processes; other work slows the clock's real time"
        )
        make(folder / "jobs", JOBS_SECONDS, JOBS_FILES)
        for number in jobs:
            print(by_processes(folder / "jobs", folder / f"jobs{number}.out", number), flush=True)
        print("many recordings of 2 s")
        many: dict[str, list[Cost]] = {"prepare": [], "check": [], "first": [], "again": []}
        for count in counts:
            source, out = folder / f"many{count}", folder / f"many{count}.out"
            make(source, 2, count)
            many["prepare"].append(measure(prepare_all, "prepare", source, out))
            many["check"].append(measure(check_all, "check", out))
            many["first"].append(measure(open_all, "open for the first time", out))
            many["again"].append(measure(open_all, "open again", out))
    print("\nby slope")
    for what, costs in grown.items():
        hours, grows = 1000 * slope(costs, "seconds", "cpu"), 3600 * slope(costs, "seconds", "memory")
        print(f"{what:10} 1,000 hours {hours:8,.1f} core hours; an hour more of one recording {grows:6,.1f} MB")
    if args.official:
        hours = 1000 * official.cpu / official.seconds
        print(f"{'encode':10} 1,000 hours {hours:8,.1f} core hours with a Mimi of full size")
    for what, costs in many.items():
        print(f"{what:10} 10,000 files {1e4 * slope(costs, 'files', 'cpu'):7,.1f} s of a core, "
              f"{1e4 * slope(costs, 'files', 'memory'):6,.1f} MB")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps([asdict(cost) for cost in found], indent=1) + "\n")


def slope(costs: list[Cost], along: str, what: str) -> float:
    """Of a line through the points."""
    if len(costs) < 2:
        return float("nan")
    x, y = (np.array([getattr(cost, name) for cost in costs], float) for name in (along, what))
    return float(np.polyfit(x, y, 1)[0])


def apart(work: Callable[..., tuple[float, int]], what: str, *paths: Path) -> Cost:
    """Does something in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, work, what, paths).result()


def by_processes(source: Path, out: Path, jobs: int) -> str:
    """The command itself: its time by the clock, and that of the processors of all its processes."""
    words = [sys.executable, "-m", "ttt_moshi", "data", "prepare", str(source), "--out", str(out), "--jobs", str(jobs)]
    before, began = os.times(), time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    audio = JOBS_FILES * JOBS_SECONDS
    return f"prepare --jobs {jobs:<19} {audio / wall:8,.0f}x real time, {audio / cpu:8,.0f}x real time on a core"


def _measured(work: Callable[..., tuple[float, int]], what: str, paths: tuple[Path, ...]) -> Cost:
    # What every command loads, so that it counts as nobody's data.
    import ttt_moshi.data
    import ttt_moshi.data.check
    import ttt_moshi.data.prepare  # noqa: F401

    ready = work(*paths, None)
    before, began = peak(), time.process_time()
    seconds, files = work(*paths, ready)
    return Cost(what, seconds, files, time.process_time() - began, peak() - before)


def peak() -> float:
    """MB that this process held at most; `getrusage` would tell of the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def make(folder: Path, seconds: float, files: int, kind: str = "wav") -> None:
    """Calls in which two take turns every two seconds, with words; no two are the same."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    step = 60 / WORDS_A_MINUTE
    words = [
        ["hello", [at, at + 0.3], ("SPEAKER_MAIN", "SPEAKER_OTHER")[int(at // 2) % 2]]
        for at in np.arange(0.05, seconds - 0.4, step).round(3).tolist()
    ]
    form, subtype = FORMATS[kind]
    for number in range(files):
        loud = 0.3 - 0.2 * number / files
        path = folder / f"{number:06}.{kind}"
        with soundfile.SoundFile(path, "w", RATE, 2, subtype=subtype, format=form) as file:
            for start in range(0, round(seconds * RATE), BLOCK):
                t = np.arange(start, min(start + BLOCK, round(seconds * RATE))) / RATE
                turn = np.sin(np.pi * t / 2) > 0
                tone = loud * np.sin(2 * np.pi * 300 * t) * (np.sin(2 * np.pi * 4 * t) > -0.7)
                file.write((np.stack([turn, ~turn]) * tone + rng.normal(0, 1e-3, (2, len(t)))).T)
        path.with_suffix(".json").write_text(json.dumps({"alignments": words}))


# Each gives what it needs when it is called with `None`, and else does its work.


def prepare_all(source: Path, out: Path, ready: object) -> Any:
    from ttt_moshi.data.prepare import prepare

    if ready is None:
        return True
    outcomes = prepare(source, out).outcomes
    assert all(outcome.left_out is None for outcome in outcomes), outcomes[0]
    return sum(outcome.seconds for outcome in outcomes), len(outcomes)


def check_all(out: Path, ready: object) -> Any:
    from ttt_moshi.data.check import check_data

    if ready is None:
        return True
    report = check_data(str(out))
    assert not report.problems, report.problems[0]
    return report.seconds, report.recordings


def encode_all(out: Path, codec: Any) -> Any:
    if codec is None:
        return _codec(small=True)
    corpus = _open(out, codec)
    corpus.encode_all()
    return sum(recording.info.seconds for recording in corpus.recordings), len(corpus.recordings)


def encode_official(out: Path, codec: Any) -> Any:
    if codec is None:
        return _codec(small=False)
    return encode_all(out, codec)


def open_all(out: Path, codec: Any) -> Any:
    if codec is None:
        return _codec(small=True)
    corpus = _open(out, codec)
    return sum(recording.info.seconds for recording in corpus.recordings), len(corpus.recordings)


def _codec(small: bool) -> Any:
    from moshi.models.loaders import get_mimi

    from ttt_moshi.data import Codec
    from ttt_moshi.synthetic.small_mimi import MimiSize, mimi_config

    config = mimi_config(MimiSize()) if small else None
    codec = Codec(get_mimi(None, config, num_codebooks=8), config)
    codec.encode([np.zeros((2, 24000), np.float32)], 2)
    return codec


def _open(out: Path, codec: Any) -> Any:
    import io

    import sentencepiece

    from ttt_moshi.data import Corpus

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello there"] * 20), model_writer=model, vocab_size=14, model_type="bpe",
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2,
    )  # fmt: skip
    return Corpus(str(out), codec, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), 10.0)


if __name__ == "__main__":
    main()
