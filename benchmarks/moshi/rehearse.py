"""`python -m benchmarks.moshi.rehearse`: the shipped 7B configuration, from training to talking, without a GPU.

Writes a base model of Moshi 7B's geometry with random weights, one tensor at a time, and lets the commands do with it
what they do with the real one: train with TTT in layer 1 on clips of 4 s, be killed, resume, and talk. What it says is
noise; that it is said in the memory and time of this machine is what is rehearsed. Nine minutes on two idle cores with
25 GB of memory, and 20 GB of disk; refuses to begin with less.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import string
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from moshi.models.loaders import CheckpointInfo
from rich.console import Console
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

from ttt_moshi.checkpoint import CheckpointStore
from ttt_moshi.cli.demo.jobs import Command, DemoError, Jobs, count_lines, lines_in
from ttt_moshi.config import TrainArgs
from ttt_moshi.config_io import parse_train_args
from ttt_moshi.errors import UserError
from ttt_moshi.frames import SAMPLE_RATE, seconds_to_frames
from ttt_moshi.moshi.loading import empty_model, geometry
from ttt_moshi.synthetic import Material, make_tiny_material
from ttt_moshi.synthetic.material import FILE_NAMES
from ttt_moshi.synthetic.small_moshi import write_config
from ttt_moshi.synthetic.tokenizer import train_tokenizer
from ttt_moshi.training import estimate
from ttt_moshi.verification.full_size import available_memory

CONFIG = Path(__file__).parents[2] / "configs" / "moshi_7b_ttt.yaml"
CHANGES = {
    "ttt.layers": "1", "duration_sec": "4", "num_microbatches": "1", "max_steps": "3", "ckpt_freq": "1",
}  # fmt: skip
"""of the shipped configuration: what makes it fit"""
STEPS = int(CHANGES["max_steps"])
TALK_SECONDS = 2.0
OVERHEAD_BYTES = 3e9
"""of memory, beside what the estimate counts: libraries, the codec, and what is read ahead"""
SPARE_DISK = 2e9
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}
"""as safetensors names them"""


@dataclass(frozen=True)
class Rehearsed:
    """What was measured.

    Args:
        step_seconds: of the steps after the first.
        frame_seconds: of one frame of talking.
        peak_bytes: most memory that a command held.
        checkpoint_bytes: size of a checkpoint.
    """

    step_seconds: list[float]
    frame_seconds: float
    peak_bytes: int
    checkpoint_bytes: int


def main(argv: list[str] | None = None) -> int:
    """Rehearses and prints what it took; 2 where there is no room for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder, deleted at the end)")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default: %(default)s)")
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        with tempfile.TemporaryDirectory(prefix="ttt_moshi_rehearsal_", dir=options.folder) as folder:
            found = rehearse(Path(folder), geometry(None), options.threads, console)
    except UserError as error:
        console.print(f"error: {error}", soft_wrap=True, markup=False)
        return 2
    steps = ", ".join(f"{seconds:.1f}" for seconds in found.step_seconds)
    console.print(f"a step took {steps} s; a frame of talking {found.frame_seconds:.2f} s")
    console.print(
        f"most memory held: {found.peak_bytes / 1e9:.1f} GB; a checkpoint: {found.checkpoint_bytes / 1e9:.2f} GB"
    )
    return 0


def rehearse(folder: Path, config: Mapping[str, Any], threads: int, console: Console) -> Rehearsed:
    """Trains, kills, resumes and talks with a random base model of that geometry.

    Raises:
        UserError: too little memory or disk (nothing was written), or a command failed.
    """
    changes = [word for key, value in CHANGES.items() for word in (f"--{key}", value)]
    run_dir = folder / "run"
    train = ["--config", str(CONFIG), "--run_dir", str(run_dir), *changes]
    tensors = empty_model(config, torch.bfloat16).state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    check_room(needed_memory(parse_train_args(train), config), 1.3 * size + SPARE_DISK, folder)
    console.print(f"writing a random base model of {size / 1e9:.1f} GB")
    material = make_tiny_material(folder / "material")
    base = write_random_base(folder / "base", config, tensors, material)
    recording, metrics = folder / "user.wav", run_dir / "metrics.train.jsonl"
    soundfile.write(recording, np.zeros(round(TALK_SECONDS * SAMPLE_RATE)), SAMPLE_RATE)
    train += ["--moshi_paths.hf_repo_id", str(base), "--data.train_data", str(material.train_data)]

    def command(name: str, *words: str) -> Command:
        return Command(words, folder / f"{name}.log", threads)

    with Jobs(console) as jobs:
        jobs.run_and_kill(
            "training, to be killed",
            command("train", "ttt_moshi", "train", *train),
            lines_in(metrics, STEPS),
            lambda: bool(CheckpointStore(run_dir / "checkpoints").steps()),
        )
        resume = command("resume", "ttt_moshi", "train", *train, "--checkpoint.resume", "true")
        jobs.run("resuming", resume, lines_in(metrics, STEPS))
        if count_lines(metrics) != STEPS:
            raise DemoError(f"{count_lines(metrics)} steps are logged instead of {STEPS}: see {resume.log}")
        began = time.perf_counter()
        talk = folder / "talk.wav"
        jobs.run(
            "talking",
            command(
                "talk", "ttt_moshi", "generate", "--checkpoint_dir", str(run_dir), "--input", str(recording),
                "--out", str(talk), "--save_session", str(folder / "session"),
            ),
        )  # fmt: skip
        talked = time.perf_counter() - began
    if soundfile.info(talk).channels != 2 or not (folder / "session").exists():
        raise DemoError(f"the conversation or its session is missing in {folder}")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = CheckpointStore(run_dir / "checkpoints").path(STEPS)
    return Rehearsed(
        [record["timing"]["step_seconds"] for record in records],
        talked / seconds_to_frames(TALK_SECONDS),
        1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        sum(path.stat().st_size for path in last.rglob("*") if path.is_file()),
    )


def needed_memory(args: TrainArgs, config: Mapping[str, Any]) -> float:
    """Bytes that training holds at its peak, about."""
    info = CheckpointInfo(Path(), Path(), Path(), lm_config=dict(config))
    model = estimate.meta_model(args, info)
    return estimate.total(estimate.held(args, model)) + estimate.total(estimate.working(args, model)) + OVERHEAD_BYTES


def check_room(memory: float, disk: float, folder: Path) -> None:
    """Raises UserError, with both numbers, unless so many bytes are free."""
    available = available_memory()
    if available < memory:
        raise UserError(
            f"the rehearsal needs {memory / 1e9:.1f} GB of free memory and {available / 1e9:.1f} GB are free: stop "
            "other programs, or use a larger machine"
        )
    free = shutil.disk_usage(folder).free
    if free < disk:
        raise UserError(
            f"the rehearsal needs {disk / 1e9:.1f} GB of disk and {folder} has {free / 1e9:.1f} GB free: name another "
            "place with --folder"
        )


def widen_codec(folder: Path, entries: int) -> None:
    """Gives every codebook of the folder's codec so many entries: those that it lacks are far from all speech."""
    weights, described = folder / FILE_NAMES["mimi_name"], folder / FILE_NAMES["mimi_config_name"]
    config, tensors = json.loads(described.read_text()), load_file(weights)
    lacking = entries - config["quantizer"]["bins"]
    for name, tensor in tensors.items():
        if name.endswith((".cluster_usage", ".embedding_sum")):
            more = torch.ones(lacking, *tensor.shape[1:])
            tensors[name] = torch.cat([tensor, 1e3 * more if tensor.ndim > 1 else more])
    config["quantizer"]["bins"] = entries
    described.write_text(json.dumps(config))
    save_file(tensors, weights)


def write_random_base(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], material: Material
) -> Path:
    """A folder like a Moshi repository: random weights of that geometry, and the codec and tokenizer of the
    made-up speech, made as large as the geometry wants them.

    Args:
        tensors: names, shapes and types, on the meta device; one at a time gets values and is written.
    """
    shutil.copytree(material.base_model, folder)
    write_config(folder / "config.json", dict(config), FILE_NAMES)
    tokenizer = folder / FILE_NAMES["tokenizer_name"]
    if SentencePieceProcessor(str(tokenizer)).get_piece_size() != config["text_card"]:
        letters = random.Random(0)
        words = ("".join(letters.choices(string.ascii_lowercase, k=8)) for _ in range(config["text_card"] // 4))
        train_tokenizer(words, tokenizer, config["text_card"])
    widen_codec(folder, config["card"])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / FILE_NAMES["moshi_name"]).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for seed, (name, tensor) in enumerate(tensors.items()):
            values = torch.empty(tensor.shape, dtype=tensor.dtype)
            if tensor.ndim < 2 or "norm" in name:
                values.fill_(1.0)
            else:
                # As large as a trained layer's, so that nothing vanishes or explodes on its way through 32 of them.
                values.normal_(0.0, 0.5 * tensor.shape[-1] ** -0.5, generator=torch.Generator().manual_seed(seed))
            file.write(values.view(torch.uint8).numpy().data)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
