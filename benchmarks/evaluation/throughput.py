"""Batched and cached scoring against scoring one example at a time, in one run and with the same CPU threads.

    python benchmarks/evaluation/throughput.py --base BASE --data_root BENCH [--task T] [--max_items N] [--threads N]

Four ways to the same accuracies:

    one at a time   every recording is encoded and scored by itself with the official modules, silence of its length
                    beside it, and nothing is kept (how most harnesses work)
    first run       codes and scores are made in batches and kept
    new checkpoint  codes are there, scores are not (the usual case: many checkpoints on one benchmark)
    new reduction   codes and scores are there

Wall clock: what a person waits. The parts of the first two are timed by themselves as well, to tell what a first run
cannot do without.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from moshi.models.compression import MimiModel

from ttt_moshi.config import ModelPaths
from ttt_moshi.data.audio import read_audio
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import pair_score
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.recordings import Recordings
from ttt_moshi.evaluation.scoring.reductions import channel_sums
from ttt_moshi.evaluation.scoring.score import Scores, score
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.subject import Subject, from_base
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks
from ttt_moshi.evaluation.tasks.two_choices import TwoChoices
from ttt_moshi.frames import FRAME_SIZE
from ttt_moshi.moshi import resolve_model


@torch.no_grad()
def one_at_a_time(subject: Subject, mimi: MimiModel, task: TwoChoices) -> list[float]:
    """Scores of the pairs: each recording, and silence of its length, through the codec, then one forward pass."""
    scores = []
    for pair in task.pairs:
        values = []
        for example in (pair.correct, pair.incorrect):
            samples = torch.from_numpy(read_audio(path_of(example)))[None]
            filled = torch.nn.functional.pad(samples, (0, -samples.shape[-1] % FRAME_SIZE))
            moshi, user = mimi.encode(filled), mimi.encode(torch.zeros_like(filled))
            codes = torch.cat([torch.full_like(moshi[:, :1], -1), moshi, user], dim=1)
            nll = score(subject.model, codes).nll[0].numpy()
            values.append(channel_sums(nll).reduce(task.reduction, task.norm))
        scores.append(pair_score(*values))
    return scores


def path_of(example: Example) -> Path:
    """The sound file of an example that is one."""
    (piece,) = example.pieces
    return piece.source.segments[0].path


def parts(subject: Subject, mimi: MimiModel, paths: list[Path]) -> tuple[dict[str, float], str]:
    """Seconds of reading and resampling all recordings, and of the codec alone in each of the two ways; and how
    many codes come out other than from the recording alone."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    sounds = [read_audio(path)[0] for path in paths]
    seconds["reading"] = time.perf_counter() - began
    began = time.perf_counter()
    with torch.no_grad():
        filled = [torch.nn.functional.pad(torch.from_numpy(s), (0, -len(s) % FRAME_SIZE)) for s in sounds]
        alone = [mimi.encode(sound[None, None])[0] for sound in filled]
    seconds["codec, one at a time"] = time.perf_counter() - began
    began = time.perf_counter()
    together = subject.codec.encode_short(sounds)
    seconds["codec, side by side"] = time.perf_counter() - began
    others = sum(int((a != b).sum()) for a, b in zip(alone, together, strict=True))
    return seconds, f"{others} of {sum(codes.numel() for codes in alone)}"


class TimedScorer(ModelScorer):
    """Keeps count of the seconds in the model."""

    seconds = 0.0

    def score(self, codes: torch.Tensor, frames: torch.Tensor, *more: torch.Tensor | None) -> Scores:
        began = time.perf_counter()
        found = super().score(codes, frames, *more)
        self.seconds += time.perf_counter() - began
        return found


def with_engine(subject: Subject, task: TwoChoices, folder: Path, state: str) -> tuple[Outcome, int, float]:
    """The product's way, with its caches in `folder`; the forward passes that it made, and their seconds."""
    scorer = TimedScorer(subject.model, state)
    recordings = Recordings(subject.codec, folder / "codes")
    engine = Engine(scorer, recordings, NLLCache(folder / "nll", scorer.identity), BatchPolicy())
    return task.run(engine), engine.forward_passes, scorer.seconds


def main() -> None:
    """Prints one line of JSON with seconds and recordings per second of each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder or hub id of a base model")
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--task", default="swuggy", choices=("swuggy", "sblimp", "ssc", "tsc", "salmon"))
    parser.add_argument("--max_items", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of every way")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = ModelPaths(hf_repo_id=options.base)
    subject, mimi = from_base(paths, "cpu", torch.float32), resolve_model(paths).get_mimi("cpu")
    task = TASKS[options.task].build(Benchmarks(options.data_root, max_items=options.max_items))
    assert isinstance(task, TwoChoices)
    task = TwoChoices(task.name, task.pairs, task.reduction, task.norm)  # without the variants of continuations
    recordings = 2 * len(task.pairs)
    seconds: dict[str, float] = {}
    passes: dict[str, int] = {}
    in_model: dict[str, float] = {}

    began = time.perf_counter()
    plain = one_at_a_time(subject, mimi, task)
    seconds["one at a time"], passes["one at a time"] = time.perf_counter() - began, recordings
    with tempfile.TemporaryDirectory() as name:
        for way, state in (("first run", "a"), ("new checkpoint", "b"), ("new reduction", "b")):
            began = time.perf_counter()
            outcome, passes[way], in_model[way] = with_engine(subject, task, Path(name), state)
            seconds[way] = time.perf_counter() - began
    examples = [example for pair in task.pairs for example in (pair.correct, pair.incorrect)]
    in_codec, others = parts(subject, mimi, [path_of(example) for example in examples])
    ours = [sample["score"] for sample in outcome.samples]
    print(json.dumps({
        "task": task.name, "recordings": recordings, "torch": torch.__version__, "threads": options.threads,
        "seconds": {way: round(s, 3) for way, s in seconds.items()},
        "recordings_per_second": {way: round(recordings / s, 1) for way, s in seconds.items()},
        "speedup": {way: round(seconds["one at a time"] / s, 1) for way, s in seconds.items()},
        "forward_passes": passes,
        "parts_in_seconds": in_codec | {f"model, {way}": s for way, s in in_model.items()},
        "codes_other_than_alone": others,
        "pairs_decided_alike": sum(a == b for a, b in zip(plain, ours, strict=True)) / len(ours),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
