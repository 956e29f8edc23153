"""The demo's own pieces of work, each in a process of its own: `python -m ttt_moshi.cli.demo.work WHAT ...`.

    material FOLDER demo|tiny         speech and a base model
    bench FOLDER mini|tiny            small benchmarks
    lessons FOLDER STEPS BATCH        an untrained model, and recordings that teach recall
    recall WINDOW TTT OUT             share of right answers against distance, for two checkpoints, with controls
    tell CHECKPOINT SESSION OUT       hears facts, saves what it remembers, and ends
    ask CHECKPOINT SESSION|none OUT   answers questions, with the saved session or with none
    hour CHECKPOINT OUT               what a frame costs in the course of an hour

Results go to OUT as JSON. Progress is printed as lines `progress DONE TOTAL WHAT`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moshi.utils.compile import no_compile
from safetensors.torch import load_file, save_file
from torch import Tensor

from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.frames import FRAME_RATE
from ttt_moshi.moshi import StreamState, TTTMoshi, ablate, load_trained
from ttt_moshi.synthetic import DEMO, TINY, make_demo_material
from ttt_moshi.synthetic.benchmarks import make_bench
from ttt_moshi.synthetic.recall import (
    PAIRS,
    make_codes,
    share_right,
    share_right_with_memory_of_another,
    write_base_model,
    write_recall_training,
)
from ttt_moshi.synthetic.recall.task import ABSENT, MOSHI_ACOUSTIC, MOSHI_SEMANTIC, USER_SEMANTIC, acoustic

DISTANCES = (32, 64, 128, 256, 512, 1024)
CONTROL_DISTANCE = 256
RECORDINGS = 64
CONVERSATIONS = 16
"""told and asked side by side, so that their share of right answers means something"""
APART = 250
"""frames of other speech between the facts and the questions, 20 s"""
HOUR = round(3600 * FRAME_RATE)
CHUNK = 250
SINGLE_FRAMES = 40
"""timed one by one after every few minutes of the hour"""
LOOKS = 13


def main(argv: list[str]) -> int:
    """Runs one piece of work."""
    torch.set_num_threads(1)
    what, *rest = argv
    PIECES[what](*rest)
    return 0


def make_material(folder: str, size: str) -> None:
    """Speech and the base model; what is there already is left as it is."""
    make_demo_material(Path(folder), size={"demo": DEMO, "tiny": TINY}[size], progress=_announce)


def make_benchmarks(folder: str, size: str) -> None:
    """Benchmarks whose vocabulary is that of the demo's dialogues; likewise."""
    make_bench(Path(folder), size=size, progress=_announce)


def make_lessons(folder: str, steps: str, batch: str) -> None:
    """An untrained model, and recordings of which every step of the training hears a batch."""
    write_base_model(Path(folder) / "base", seed=0)
    write_recall_training(Path(folder) / "train", int(steps) * int(batch), seed=0)


def measure_recall(window: str, ttt: str, out: str) -> None:
    """Recall against distance for attention alone and with TTT, and what is left of it without the memory."""
    models = {"window": _load(window), "ttt": _load(ttt)}
    result: dict[str, Any] = {"questions": RECORDINGS * PAIRS, "curves": {}, "controls": {}}
    done = 0
    for name, model in models.items():
        curve = result["curves"][name] = {}
        for distance in DISTANCES:
            curve[distance] = mean_and_interval(share_right(model, make_codes(RECORDINGS, distance), distance))
            done += 1
            _announce("measuring recall", done, len(models) * len(DISTANCES))
    codes = make_codes(RECORDINGS, CONTROL_DISTANCE)
    for name, change in CONTROLS.items():
        with ablate(models["ttt"], **change):  # type: ignore[arg-type]
            result["controls"][name] = mean_and_interval(share_right(models["ttt"], codes, CONTROL_DISTANCE))
    shares = share_right_with_memory_of_another(models["ttt"], codes, CONTROL_DISTANCE)
    result["controls"]["another"] = mean_and_interval(shares)
    result["control_distance"] = CONTROL_DISTANCE
    _write(out, result)


CONTROLS: dict[str, dict[str, float | int]] = {
    "off": {"gate": 0.0},
    "no_writes": {"inner_lr": 0.0},
    "reset": {"reset_every": 16},
}
"""arguments of `ttt_moshi.moshi.ablate`"""


def tell(checkpoint: str, session: str, out: str) -> None:
    """Hears the facts of several conversations and then other speech, and saves the state of all of them."""
    model, codes = _load(checkpoint), make_codes(CONVERSATIONS, APART)
    with torch.no_grad(), no_compile():
        stream = model.forward_chunk(codes[..., : PAIRS + APART], model.start_stream(CONVERSATIONS)).stream
    save_file({name: tensor.contiguous() for name, tensor in stream.state_dict().items()}, session)
    facts = codes[0, :, :PAIRS]
    _write(out, {"facts": [[int(k), int(v)] for k, v in zip(facts[USER_SEMANTIC], facts[MOSHI_SEMANTIC], strict=True)]})


def ask(checkpoint: str, session: str, out: str) -> None:
    """Asks for every fact, after resuming the saved state or without one, and lets the model answer."""
    model, codes = _load(checkpoint), make_codes(CONVERSATIONS, APART)
    stream = model.start_stream(CONVERSATIONS)
    if session != "none":
        stream = StreamState.from_state_dict(load_file(session))
    questions = codes[..., PAIRS + APART :]
    answers = []
    with torch.no_grad(), no_compile():
        for question in questions[..., ::2].split(1, dim=2):
            stream = model.forward_chunk(question, stream).stream
            answer, stream = _answer(model, stream)
            answers.append(answer)
    given, truth = torch.stack(answers, dim=1), questions[:, MOSHI_SEMANTIC, 1::2]
    asked = questions[0, USER_SEMANTIC, ::2]
    _write(
        out,
        {
            "asked": asked.tolist(), "answers": given[0].tolist(), "truth": truth[0].tolist(),
            "right": int((given == truth).sum()), "of": truth.numel(), "conversations": CONVERSATIONS,
        },
    )  # fmt: skip


def _answer(model: TTTMoshi, stream: StreamState) -> tuple[Tensor, StreamState]:
    """Likeliest code of the agent's next frame, int64 [B], and the state after the model has heard itself say it."""
    frame = torch.full((stream.batch_size, model.num_codebooks, 1), ABSENT)
    answer = model.forward_chunk(frame, stream).output.logits[:, MOSHI_SEMANTIC - 1, 0].argmax(-1)
    frame[:, MOSHI_SEMANTIC, 0] = answer
    frame[:, MOSHI_ACOUSTIC, 0] = torch.from_numpy(acoustic(answer.numpy()))
    return answer, model.forward_chunk(frame, stream).stream


def measure_hour(checkpoint: str, out: str) -> None:
    """Hears an hour of speech, and times single frames at its beginning and again and again until its end."""
    model = _load(checkpoint)
    codes = make_codes(1, HOUR)[..., :HOUR]
    stream = model.start_stream(1)
    looks: list[dict[str, float]] = []
    with torch.no_grad(), no_compile():
        for start in range(0, HOUR, CHUNK):
            if start >= len(looks) * (HOUR - CHUNK) / (LOOKS - 1):
                looks.append({"minute": start / FRAME_RATE / 60, **_cost(model, codes, stream)})
            stream = model.forward_chunk(codes[..., start : start + CHUNK], stream).stream
            _announce("an hour of speech", start + CHUNK, HOUR)
    _write(out, {"looks": looks})


def _cost(model: TTTMoshi, codes: Tensor, stream: StreamState) -> dict[str, float]:
    """Median CPU time of a single frame in milliseconds, and bytes carried from frame to frame."""
    times = []
    for frame in codes[..., :SINGLE_FRAMES].split(1, dim=2):
        began = time.process_time_ns()
        stream = model.forward_chunk(frame, stream).stream
        times.append(time.process_time_ns() - began)
    carried = sum(tensor.numel() * tensor.element_size() for tensor in stream.state_dict().values())
    return {"milliseconds": float(np.median(times)) / 1e6, "state_bytes": carried}


def _load(checkpoint: str) -> TTTMoshi:
    return load_trained(Path(checkpoint), dtype=torch.float32).eval()


def _announce(what: str, done: int, total: int) -> None:
    print(f"progress {done} {total} {what}", flush=True)


def _write(path: str, value: Any) -> None:
    Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


PIECES: dict[str, Callable[..., None]] = {
    "material": make_material,
    "bench": make_benchmarks,
    "lessons": make_lessons,
    "recall": measure_recall,
    "tell": tell,
    "ask": ask,
    "hour": measure_hour,
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
