"""What the commands that talk share: their options, and a model opened with care."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.checkpoint_facts import find_one, progress_bar
from ttt_moshi.config import ModelPaths
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.inference import Sampling, Snapshot, Speaker

BASE = "base"
MAX_SEED = 2**63 - 1
MAX_TEMPERATURE = 100.0
MAX_CFG = 100.0
MAX_PAD_BIAS = 1000.0


def add_options(parser: Parser) -> None:
    """Options of every command that talks with somebody."""
    add_model_options(parser)
    add = parser.add_argument
    add("--seed", type=int, default=0, help="seed of the draws: it repeats a conversation (default: %(default)s)")
    add(
        "--prompt_voice", type=Path, help="recording of the voice that Moshi should have, given before the conversation"
    )
    add("--no_greeting", action="store_true", help="no word of Moshi before the user makes a sound")
    add("--prompt_text", help="what Moshi should know or who she is, given before the conversation (after the voice)")


def add_model_options(parser: Parser) -> None:
    """Which model, where it runs and how it draws."""
    add = parser.add_argument
    add(
        "--checkpoint_dir",
        "--checkpoint",
        type=Path,
        required=True,
        help="checkpoint; or a run: its newest valid one; or a folder with exported weights, ours or moshi-finetune's; "
        f"or `{BASE}`: the model named by --hf_repo_id as it is",
    )
    add("--no_ttt_verify", action="store_true", help="do not check the checkpoint's bytes first")
    add("--hf_repo_id", help="where the base model is now: hub id or folder")
    add("--dtype", choices=("bfloat16", "float32"), help="default: the checkpoint's `param_dtype`, else bfloat16")
    add(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1 ... or mps (Apple); auto takes an NVIDIA GPU where there is one",
    )
    add("--int8", action="store_true", help="keep the base's weights in int8 (extra `int8`); memories stay float32")
    add("--greedy", action="store_true", help="always the likeliest token instead of a draw")
    for name, kind, what in (
        ("temp", float, "temperature of audio codes (default: the base model's, else 0.8)"),
        ("top_k", int, "candidates of audio codes (default: the base model's, else 250)"),
        ("temp_text", float, "temperature of text tokens (default: the base model's, else 0.7)"),
        ("top_k_text", int, "candidates of text tokens (default: the base model's, else 25)"),
    ):
        add(f"--{name}", type=kind, help=what)
    add(
        "--pad_bias",
        type=float,
        default=0.0,
        help='readiness to speak: added to the logit of "no word now"; below 0 Moshi speaks more, above 0 less',
    )
    add(
        "--sink",
        type=int,
        default=0,
        help="so many first frames of a conversation stay in the attention window beside the newest (StreamingLLM), "
        "within the same size; default: none",
    )
    add(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of a model that knows conditions: how it should speak (Hibiki: description=very_good, the default)",
    )
    add(
        "--cfg",
        type=float,
        default=1.0,
        help="of a model that knows conditions: classifier-free guidance of that strength (Hibiki's authors: 3), which "
        "makes every conversation cost that of two; default: 1, none",
    )


def check_options(options: Any) -> None:
    """Refuses values of `add_options` that mean nothing, before anything is loaded."""
    check_model_options(options)
    if options.seed is not None and not 0 <= options.seed <= MAX_SEED:
        raise UserError(f"--seed must be between 0 and {MAX_SEED}, not {options.seed}")
    if options.prompt_text == "":
        raise UserError("--prompt_text is empty: leave it out, or say something")
    if options.prompt_voice is not None and not options.prompt_voice.is_file():
        raise UserError(f"--prompt_voice: no recording at {options.prompt_voice}")


def check_model_options(options: Any) -> None:
    """Refuses values of `add_model_options` that mean nothing."""
    for name in ("temp", "temp_text"):
        value = getattr(options, name)
        if value is not None and not 0 < value <= MAX_TEMPERATURE:
            raise UserError(
                f"--{name} must be greater than 0 and at most {MAX_TEMPERATURE:.0f}, not {value}; for the likeliest "
                "token there is --greedy"
            )
    for name in ("top_k", "top_k_text"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be greater than 0, not {value}; for the likeliest token there is --greedy")
    idle = [name for name in ("temp", "top_k", "temp_text", "top_k_text") if getattr(options, name) is not None]
    if options.greedy and idle:
        raise UserError(f"--greedy draws nothing, so --{idle[0]} would change nothing: leave one of them out")
    if options.sink < 0:
        raise UserError(f"--sink counts frames and cannot be negative, got {options.sink}")
    if not abs(options.pad_bias) <= MAX_PAD_BIAS:
        raise UserError(
            f"--pad_bias must be between -{MAX_PAD_BIAS:.0f} and {MAX_PAD_BIAS:.0f}, not {options.pad_bias}"
        )
    if not 1.0 <= options.cfg <= MAX_CFG:
        raise UserError(f"--cfg must be between 1 (no guidance) and {MAX_CFG:.0f}, not {options.cfg}")
    for condition in options.condition:
        name, _, value = condition.partition("=")
        if not name or not value:
            raise UserError(f"--condition reads NAME=VALUE, as in description=very_good, not {condition!r}")
    if options.hf_repo_id == "":
        raise UserError("--hf_repo_id is empty: leave it out, or name a repository or a folder")
    if str(options.checkpoint_dir) == BASE and options.hf_repo_id is None:
        raise UserError(f"--checkpoint_dir {BASE} needs --hf_repo_id: which model?")


def open_speaker(options: Any, console: Console) -> tuple[Speaker, Sampling]:
    """Verifies and loads the model.

    Raises:
        UserError: a corrupt or missing checkpoint, a device that is not here, or a sink larger than the window.
    """
    from ttt_moshi.inference import Sampling
    from ttt_moshi.moshi.device import choose_device, use_device
    from ttt_moshi.moshi.int8 import need_torchao, quantise_base
    from ttt_moshi.moshi.sink import check_sink

    device = choose_device(options.device, mps=True)
    use_device(device)
    if options.int8:
        need_torchao()
    speaker = _open(options, device, console)
    if options.int8:
        quantise_base(speaker.model)
        # What is said and remembered differs from that of the checkpoint as it is.
        speaker = replace(speaker, state_id=f"int8:{speaker.state_id}")
    if options.sink:
        check_sink(speaker.model, options.sink)
        speaker = replace(speaker, sink=options.sink)
    if options.cfg != 1.0:
        if not speaker.model.usual_conditions:
            raise UserError(f"--cfg {options.cfg}: this model knows no conditions that it could be guided to")
        speaker = replace(speaker, cfg=options.cfg)
    if options.condition:
        speaker = replace(speaker, conditions=dict(condition.split("=", 1) for condition in options.condition))
        try:
            speaker.model.conditions(1, speaker.conditions)  # refused now, if it is unknown
        except UserError as error:
            raise UserError(f"--condition: {error}") from error
    names = ("temp", "top_k", "temp_text", "top_k_text", "pad_bias")
    greedy = {"greedy": True} if options.greedy else {}
    return speaker, Sampling.of(speaker.generation, **greedy, **{name: getattr(options, name) for name in names})


def open_prompt(options: Any, speaker: Speaker, sampling: Sampling) -> Snapshot | None:
    """Where every conversation begins: after the prompt, or the silence that the model wants; None without either.

    Raises:
        UserError: a voice that cannot be read, or more frames than the attention window holds.
    """
    from ttt_moshi.inference.prompt import after_silence, begin_with, make_prompt

    if options.prompt_text is None and options.prompt_voice is None:
        return after_silence(speaker, sampling) if speaker.silence else None
    import torch

    from ttt_moshi.data.audio import read_audio

    voice = None if options.prompt_voice is None else torch.from_numpy(read_audio(options.prompt_voice)[0])
    # The frame after a prompt is drawn with it, so that it too must not be a greeting.
    first = sampling.wordless() if options.no_greeting else sampling
    return begin_with(speaker, *make_prompt(speaker, voice, options.prompt_text), first)


def _open(options: Any, device: str, console: Console) -> Speaker:
    from ttt_moshi.checkpoint import verify
    from ttt_moshi.evaluation.subject import training_config
    from ttt_moshi.inference.speaker import open_base, open_checkpoint, open_exported
    from ttt_moshi.moshi.device import choose_dtype

    base = ModelPaths(hf_repo_id=options.hf_repo_id) if options.hf_repo_id else None
    unknown = choose_dtype(options.dtype, "bfloat16")
    if str(options.checkpoint_dir) == BASE:
        assert base is not None
        return open_base(base, device, unknown)
    if _is_exported(options.checkpoint_dir):
        console.print(f"{options.checkpoint_dir} has no manifest: its bytes cannot be verified", markup=False)
        return open_exported(options.checkpoint_dir, device, unknown, base)
    folder = find_one(options.checkpoint_dir)
    if not options.no_ttt_verify:
        with progress_bar(f"verifying {folder.name}") as advance:
            report = verify(folder, progress=advance)
        if not report.ok:
            raise UserError(f"the checkpoint is corrupt and is not used: {'; '.join(report.text().splitlines())}")
    return open_checkpoint(folder, device, choose_dtype(options.dtype, training_config(folder)["param_dtype"]), base)


def _is_exported(folder: Path) -> bool:
    """Whether a folder holds exported weights that no manifest describes."""
    given = (folder, folder.absolute().parent, folder / "consolidated")
    if any((place / "manifest.json").exists() for place in given[:2]):
        return False
    return (folder / "config.json").is_file() or (given[2] / "config.json").is_file()
