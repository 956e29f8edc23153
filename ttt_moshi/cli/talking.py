"""What the commands that talk share: their options, and a checkpoint opened with care."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.checkpoint_facts import find_one, progress_bar
from ttt_moshi.config import ModelPaths
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.inference import Sampling, Speaker


def add_options(parser: Parser) -> None:
    """Options of every command that talks."""
    add = parser.add_argument
    add("--checkpoint_dir", "--checkpoint", type=Path, required=True, help="checkpoint, or a run: its newest valid one")
    add("--no_ttt_verify", action="store_true", help="do not check the checkpoint's bytes first")
    add("--hf_repo_id", help="where the base model is now: hub id or folder")
    add("--dtype", choices=("bfloat16", "float32"), help="default: the checkpoint's `param_dtype`")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one")
    add("--seed", type=int, default=0, help="seed of the draws (default: %(default)s)")
    add("--greedy", action="store_true", help="always the likeliest token instead of a draw")
    for name, kind, what in (
        ("temp", float, "temperature of audio codes (default: the base model's, else 0.8)"),
        ("top_k", int, "candidates of audio codes (default: the base model's, else 250)"),
        ("temp_text", float, "temperature of text tokens (default: the base model's, else 0.7)"),
        ("top_k_text", int, "candidates of text tokens (default: the base model's, else 25)"),
    ):
        add(f"--{name}", type=kind, help=what)


def check_options(options: Any) -> None:
    """Refuses values that mean nothing, before anything is loaded."""
    for name in ("temp", "top_k", "temp_text", "top_k_text"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} must be greater than 0, not {value}; for the likeliest token there is --greedy")


def open_speaker(options: Any) -> tuple[Speaker, Sampling]:
    """Verifies and loads the checkpoint, seeds the draws.

    Raises:
        UserError: a damaged or missing checkpoint, or a device that is not here.
    """
    import torch

    from ttt_moshi.checkpoint import verify
    from ttt_moshi.evaluation.subject import training_config
    from ttt_moshi.inference import Sampling, open_checkpoint
    from ttt_moshi.moshi.device import choose_device, choose_dtype

    folder = find_one(options.checkpoint_dir)
    if not options.no_ttt_verify:
        with progress_bar(f"verifying {folder.name}") as advance:
            report = verify(folder, progress=advance)
        if not report.ok:
            raise UserError(f"the checkpoint is damaged and is not used:\n{report.text()}")
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, training_config(folder)["param_dtype"])
    base = ModelPaths(hf_repo_id=options.hf_repo_id) if options.hf_repo_id else None
    speaker = open_checkpoint(folder, device, dtype, base)
    torch.manual_seed(options.seed)
    names = ("greedy", "temp", "top_k", "temp_text", "top_k_text")
    return speaker, Sampling(**{name: getattr(options, name) for name in names})
