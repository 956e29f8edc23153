"""Do the small benchmarks tell a model that knows the language from one that does not?

    python benchmarks/evaluation/mini_signal.py --base BASE --data_root BENCH [--sentences N] [--steps N] [--out OUT]

The small base model is trained further on single voices saying sentences and stories of the generator's grammar, at
16 kHz, with the text absent and the user silent: the condition that the benchmarks are scored in, and that Moshi's own
pre-training contains. sWUGGY, sBLIMP and both StoryClozes are scored before and after, each beside what shuffled labels
give (right and wrong exchanged at random, item by item): the range around chance. All figures are of synthetic speech.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_moshi.config import ModelPaths
from ttt_moshi.data.minibench import audio
from ttt_moshi.data.speech import grammar
from ttt_moshi.data.speech.dialogues import MOSHI_VOICES
from ttt_moshi.data.speech.small_moshi import Pretraining, learning_rate, pretraining_loss, token_nll
from ttt_moshi.evaluation.engine import Engine
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.nll_cache import NLLCache
from ttt_moshi.evaluation.pairs import item_scores
from ttt_moshi.evaluation.recordings import Recordings, as_batch
from ttt_moshi.evaluation.scorer import ModelScorer
from ttt_moshi.evaluation.subject import Subject, from_base
from ttt_moshi.evaluation.tasks.registry import TASKS, Benchmarks
from ttt_moshi.evaluation.tasks.two_choices import TwoChoices

SHUFFLES = 10_000
NAMES = ("swuggy", "sblimp", "ssc", "tsc")


def speech(folder: Path, count: int, seed: int) -> list[Path]:
    """Sound files of sentences and, one in four, of whole stories, in the voices of the benchmarks."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    paths = []
    for i in range(count):
        person = grammar.random_person(rng)
        told = grammar.story(rng, person)
        said = told if i % 4 == 0 else [rng.choice([*told, grammar.agreement_sentence(rng, person)])]
        path = folder / f"{i}.wav"
        audio.write(path, audio.padded(audio.sentences(said, rng.choice(MOSHI_VOICES))))
        paths.append(path)
    return paths


def train(subject: Subject, sequences: list[np.ndarray], plan: Pretraining, seed: int) -> None:
    """All parameters, in place; batches of sequences of similar length."""
    rng = random.Random(seed)
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].shape[-1])
    batches = [order[i : i + plan.batch_size] for i in range(0, len(order), plan.batch_size)]
    model = subject.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, betas=(0.9, 0.95), weight_decay=plan.weight_decay)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        codes, _ = as_batch([sequences[i] for i in rng.choice(batches)])
        loss = pretraining_loss(*token_nll(model, codes))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}/{plan.steps} loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


def shuffled_labels(items: np.ndarray, seed: int) -> dict[str, Any]:
    """What accuracy would be if the labels meant nothing: right and wrong exchanged at random, item by item.

    {"range95": middle 95 % of the accuracies of so many shuffles, "p": share of them at least as high as the true one}
    """
    generator = np.random.default_rng(seed)
    turned = generator.random((SHUFFLES, len(items))) < 0.5
    values = np.where(turned, 1.0 - items, items).mean(axis=1)
    low, high = np.percentile(values, [2.5, 97.5])
    return {"range95": [float(low), float(high)], "p": float((values >= items.mean()).mean())}


@dataclass
class Measure:
    """Accuracy of the four tasks with one set of weights."""

    subject: Subject
    recordings: Recordings
    benchmarks: Benchmarks

    def __call__(self, state: str) -> dict[str, dict[str, Any]]:
        engine = Engine(ModelScorer(self.subject.model, state), self.recordings, NLLCache(None, state))
        found = {}
        for name in NAMES:
            task = TASKS[name](self.benchmarks)
            assert isinstance(task, TwoChoices)
            outcome = task.run(engine)
            found[name] = {key: outcome.entry[key] for key in ("value", "ci95", "n")}
            items = item_scores(task.pairs, [sample["score"] for sample in outcome.samples])
            found[name]["shuffled_labels"] = shuffled_labels(np.array(list(items.values())), self.benchmarks.seed)
        return found


def main() -> None:
    """Prints one JSON object with all accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder of the small base model (`ttt-moshi demo` makes it)")
    parser.add_argument("--data_root", type=Path, required=True, help="`ttt-moshi data make-bench` makes it")
    parser.add_argument("--sentences", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    began = time.process_time()
    subject = from_base(ModelPaths(hf_repo_id=options.base), "cpu", torch.float32)
    with tempfile.TemporaryDirectory() as name:
        recordings = Recordings(subject.codec, Path(name) / "codes")
        measure = Measure(subject, recordings, Benchmarks(options.data_root, recordings.frames))
        result: dict[str, Any] = {"before": measure("before")}
        paths = speech(Path(name) / "speech", options.sentences, options.seed + 1)
        sequences = [recordings.tokens(Example(path.stem, Example.file(path.stem, path).pieces)) for path in paths]
        result["minutes_of_training_speech"] = round(sum(s.shape[-1] for s in sequences) / 12.5 / 60, 1)
        train(subject, sequences, Pretraining(steps=options.steps, batch_size=8, lr=2e-3), options.seed)
        result["after"] = measure("after")
    result["cpu_seconds"] = round(time.process_time() - began, 1)
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
