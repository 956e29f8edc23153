"""`python -m benchmarks.memory.persona`: a name that is given in words before a conversation, and asked for beyond ten
attention windows.

Everything is as people have it. `ttt-moshi generate --prompt_text "your name is ann"` begins the conversation; the user
talks about something else (made-up words, spoken by espeak-ng) and at last rings a bell. A small model was trained, on
recordings with such a prompt and bells soon after it, to write its name when a bell rings, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.memory import arms, spoken
from benchmarks.ttt.machine import facts, write
from ttt_moshi.cli.main import main as ttt_moshi
from ttt_moshi.config import ModelPaths
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE, frames_to_seconds
from ttt_moshi.inference import Sampling, Speaker
from ttt_moshi.inference.driver import Driver, Item, read_conversation
from ttt_moshi.inference.prompt import begin_with, make_prompt
from ttt_moshi.inference.speaker import open_base, open_checkpoint
from ttt_moshi.moshi import ablate
from ttt_moshi.synthetic.recall.base_model import reach, write_speech_model

NAMES = ("ann", "bob", "carl", "dora", "emil", "fred", "gina", "hugo")
PROMPT = "your name is {}"
CODEBOOKS = 2
WINDOW = arms.WINDOW
ASKED = 10 * reach(WINDOW) + 10
"""frame of the conversation in which the bell rings: ten times as far as attention reaches through both layers, which
is twenty windows"""

BATCH = 16
STEPS = 180
HEARD = 48
"""frames of a training conversation, a third of them beyond the reach of attention"""
BETWEEN = (3, 12)
"""frames between bells in training"""
VOICES = 24
"""recordings of which users are cut, of `POOL` frames each"""
POOL = 400
USERS = 480
"""different users that are trained on, each with name after name"""
PADDING_WEIGHT = 0.3
"""of frames in which nothing is to be written, of which there are many"""

RINGING = (0.3 * np.sin(2 * np.pi * 2500 * np.arange(FRAME_SIZE) / SAMPLE_RATE)).astype(np.float32)

CONTROLS: Mapping[str, dict[str, float]] = {"memory off": {"gate": 0.0}, "nothing written": {"inner_lr": 0.0}}


def main(argv: list[str] | None = None) -> int:
    """Trains, asks, and prints the share of right names; 1 if with memory fewer than 0.9 are right, or without it more
    than 0.25.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of weights and recordings; default: %(default)s")
    parser.add_argument("--recordings", type=int, default=4, help="in which each name is asked; default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, seconds = train(Path(folder), options.seed)
        users = write_users(Path(folder) / "users", options.recordings)
        found: dict[str, Any] = {"through the command": share(ask_command(checkpoint, users, Path(folder) / "said"))}
        for control in CONTROLS:
            found[control] = share(ask_without(control, checkpoint, users, Path(folder) / control))
    found |= {"asked_in_frame": ASKED, "window": WINDOW, "answers": len(NAMES) * options.recordings}
    found |= {"train_cpu_seconds": round(seconds, 1), "machine": facts()}
    print(json.dumps(found, indent=2))
    if options.json:
        write(options.json, found)
    return 0 if found["through the command"] >= 0.9 and max(found[control] for control in CONTROLS) <= 0.25 else 1


def make_user(rng: random.Random, pool: list[np.ndarray], frames: int, bells: list[int]) -> np.ndarray:
    """float32 [frames * FRAME_SIZE]: a piece of a recording, louder or softer, with bells in some frames."""
    samples, first = rng.choice(pool), rng.randrange(POOL - frames + 1)
    samples = rng.uniform(0.3, 1.0) * samples[first * FRAME_SIZE : (first + frames) * FRAME_SIZE]
    for bell in bells:
        samples[bell * FRAME_SIZE : (bell + 1) * FRAME_SIZE] = RINGING
    return samples


def write_users(folder: Path, recordings: int) -> Path:
    """Recordings for `generate`, with other voices than those of the training."""
    folder.mkdir()
    rng = random.Random("asked")
    pool = [spoken.make_recording(random.Random(f"asked/{index}"), POOL) for index in range(recordings)]
    for index in range(recordings):
        user = make_user(rng, pool, ASKED + 8, [ASKED])
        soundfile.write(folder / f"{index}.wav", user, SAMPLE_RATE, subtype="PCM_16")
    return folder


def train(folder: Path, seed: int, steps: int = STEPS) -> tuple[Path, float]:
    """A model that writes its name when it hears a bell: its checkpoint, and CPU seconds of training."""
    words = [word for name in NAMES for word in PROMPT.format(name).split()]
    base = write_speech_model(folder / "base", seed, CODEBOOKS, words)
    data = write_training(folder / "train", base, BATCH * steps, seed)
    frames = HEARD + len(PROMPT.split())
    schedule = arms.Schedule(steps, BATCH, frames, seed, semantic_weight=1.0)
    args = arms.arguments(arms.Arm(WINDOW, "delta"), schedule, base, data, folder / "run")
    ttt = replace(args.ttt, bidirectional_prefix=True)
    trained = arms.train(replace(args, ttt=ttt, text_padding_weight=PADDING_WEIGHT))
    return trained.checkpoint, trained.cpu_seconds


def write_training(folder: Path, base: Path, recordings: int, seed: int) -> Path:
    """Codes of conversations after a prompt, and the jsonl file that lists them, which is returned."""
    folder.mkdir()
    rng = random.Random(seed)
    speaker = open_base(ModelPaths(hf_repo_id=str(base)), "cpu", torch.float32)
    pool = [spoken.make_recording(random.Random(f"{seed}/{index}"), POOL) for index in range(VOICES)]
    prompts = {name: make_prompt(speaker, text=PROMPT.format(name))[0] for name in NAMES}
    given = prompts[NAMES[0]].shape[1]
    users = [_user(rng, speaker, pool, given) for _ in range(min(USERS, recordings))]
    lines = []
    for index in range(recordings):
        name, (streams, bells) = rng.choice(NAMES), users[index % len(users)]
        codes = streams.clone()
        codes[:, :given] = prompts[name]
        codes[0, [given + bell + 1 for bell in bells]] = speaker.tokenizer.encode(name)[0]
        write_encoded(folder / f"{index:06}.safetensors", codes)
        seconds = {"duration": frames_to_seconds(codes.shape[1]), "prefix_sec": frames_to_seconds(given)}
        lines.append(json.dumps({"path": f"{index:06}.safetensors", **seconds}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"


def _user(rng: random.Random, speaker: Speaker, pool: list[np.ndarray], given: int) -> tuple[torch.Tensor, list[int]]:
    """Codes int64 [K, given + HEARD] of a user beside a silent Moshi who writes nothing, and the frames of bells."""
    bells = [rng.randrange(HEARD - 1)]
    while (following := bells[-1] + rng.randint(*BETWEEN)) < HEARD - 1:
        bells.append(following)
    user = np.pad(make_user(rng, pool, HEARD, bells), (given * FRAME_SIZE, 0))
    with torch.no_grad():
        both = speaker.mimi.encode(torch.from_numpy(np.stack([np.zeros_like(user), user]))[:, None])
    text = torch.full((1, both.shape[2]), speaker.model.text_padding_token_id)
    return torch.cat([text, both[0, :CODEBOOKS], both[1, :CODEBOOKS]]), bells


def ask_command(checkpoint: Path, users: Path, folder: Path, names: Sequence[str] = NAMES) -> dict[str, list[str]]:
    """What Moshi writes at the bell, by the name she was given, for each recording: through the command."""
    answers = {}
    for name in names:
        out = folder / name
        arguments = ["--input", str(users), "--prompt_text", PROMPT.format(name), "--greedy", "--device", "cpu"]
        if ttt_moshi(["generate", "--checkpoint_dir", str(checkpoint), *arguments, "--out", str(out)]):
            raise SystemExit("the command failed")
        answers[name] = _answers(out)
    return answers


def ask_without(
    control: str, checkpoint: Path, users: Path, folder: Path, names: Sequence[str] = NAMES
) -> dict[str, list[str]]:
    """The same under one of `CONTROLS`, for which the command has no option: through what the command runs."""
    speaker = open_checkpoint(checkpoint, "cpu", torch.float32)
    answers = {}
    with ablate(speaker.model, **CONTROLS[control]):  # type: ignore[arg-type]
        for name in names:
            start = begin_with(speaker, *make_prompt(speaker, text=PROMPT.format(name)), Sampling(greedy=True))
            items = [Item(path.stem, lambda path=path: _read(path)) for path in sorted(users.iterdir())]
            Driver(speaker, Sampling(greedy=True), start=start).converse(items, folder / name)
            answers[name] = _answers(folder / name)
    return answers


def share(answers: dict[str, list[str]]) -> float:
    """Of the answers, those that are the name that was given."""
    return float(np.mean([said == name for name, given in answers.items() for said in given]))


def _answers(folder: Path) -> list[str]:
    """The word after the bell in each conversation of a folder, "" where there is none."""
    found = []
    for conversation in sorted(folder.iterdir()):
        words = read_conversation(conversation).words
        at = frames_to_seconds(ASKED + 1)
        found.append(" ".join(word.text for word in words if abs(word.start - at) < frames_to_seconds(1) / 2))
    return found


def _read(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


if __name__ == "__main__":
    raise SystemExit(main())
