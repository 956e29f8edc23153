"""The options of `ttt-moshi eval`, and what they mean together."""

from __future__ import annotations

import shlex
import shutil
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_moshi.cli.arguments import Parser, seed
from ttt_moshi.config import ModelPaths, TrainArgs, to_dict
from ttt_moshi.config_io import args_from_dict, check_config_file
from ttt_moshi.errors import UserError

if TYPE_CHECKING:
    from ttt_moshi.evaluation.controls import Controls

BASE = "base"
MAX_ANSWER_SECONDS = 3600
MAX_DRAWS = 1000
DATA_KEYS = ("data", "duration_sec", "paper_metrics")


def parser() -> Parser:
    """Every option with its help."""
    from ttt_moshi.evaluation.references import REFERENCES
    from ttt_moshi.evaluation.streams import TEXT_MODES, USER_MODES

    parser = Parser(
        prog="eval_from_checkpoint.py",
        description="Evaluates a checkpoint. The model, its codec and its tokenizer come from the checkpoint alone. "
        "See also: ttt-moshi eval ls | compare | report | versa | lm-eval | fetch",
    )
    add = parser.add_argument
    add("--checkpoint_dir", "--checkpoint", help="checkpoint folder, or `base` with --hf_repo_id")
    add(
        "--config",
        type=Path,
        help="YAML whose `data`, `duration_sec` and `paper_metrics` replace the checkpoint's; others, such as the "
        "`batch_size` of training, mean nothing here",
    )
    add(
        "--eval_type",
        choices=("standard", "paper_metrics", "both"),
        help="what runs without --tasks: perplexity (standard, the default), the benchmarks of papers, or both; with "
        "--tasks, `both` adds perplexity",
    )
    add("--batch_size", type=positive, help="sequences in one forward pass at most; 1 scores them one by one")
    add("--no_ttt_verify", action="store_true", help="do not check the checkpoint's bytes first")
    add("--out", type=Path, help="folder for the results; default: <run>/evaluation/<checkpoint>")
    add(
        "--overwrite",
        action="store_true",
        help="replace the results in --out that are of another checkpoint or other options, and conversations of "
        "another; without it those of the same add up, and all others are refused",
    )
    add("--data", help="recordings of your own, instead of the checkpoint's `data.eval_data`")
    add("--data_root", type=Path, help="folder of the benchmarks (sLM21-dataset, sSC, tSC, salmon, librilight, needle)")
    add("--tasks", help="comma-separated, or all; `list` shows them, and what each needs")
    add("--split", choices=("dev", "test"), help="part of sLM21 (default: test)")
    add(
        "--max_items",
        "--limit",
        type=positive,
        help="at most so many items a task (clips, pairs, books): a seeded sample from every stratum; default: "
        "benchmarks take the `paper_metrics.max_items` of --config, and everything else all",
    )
    add("--seed", type=seed, default=0, help="seed of samples (default: %(default)s)")
    add("--text", choices=TEXT_MODES, help="text stream of every task (default: given in recordings, else absent)")
    add("--user", choices=USER_MODES, help="user stream of every task (default: natural in recordings, else silence)")
    add(
        "--sampled_texts",
        type=draws,
        default=8,
        help="texts drawn per recording with --text sampled (default: %(default)s)",
    )
    add(
        "--ttt",
        default="on",
        help="controls: off (gates closed), no_writes (memory stays W0), reset:FRAMES (emptied every so many frames), "
        "swapped:FRAMES (then becomes that of another recording); default: on",
    )
    add(
        "--sink",
        type=positive,
        default=0,
        help="so many first frames of a recording stay in the attention window beside the newest (StreamingLLM), "
        "within the same size: a baseline for a memory",
    )
    add(
        "--chunk_frames",
        type=positive,
        default=1500,
        help="longer recordings are read in such chunks, which changes no number (default: %(default)s)",
    )
    add(
        "--minutes",
        type=float,
        default=60.0,
        help="how long the task `hour` lets the model listen, and talk (default: 60)",
    )
    add(
        "--slots",
        type=positive,
        default=4,
        help="so many conversations at once, in tasks in which the model talks; changes none (default: %(default)s)",
    )
    add(
        "--answers",
        type=draws,
        default=1,
        help="so many answers to each spoken question; the value is their mean, best of n is recorded (default: 1)",
    )
    add("--answer_seconds", type=float, default=20.0, help="silence after a spoken question (default: 20)")
    add("--judge", help="command that rates answers, or a .jsonl of ratings; see docs/evaluation.md")
    add(
        "--server",
        help="http://HOST:PORT of a `ttt-moshi serve` of the same checkpoint, with which `examiner` talks; default: "
        "one of its own, in this process",
    )
    add(
        "--outputs_of",
        metavar="NAME",
        help="`full_duplex` measures the output.json beside every input.wav, which the model of this name has made; "
        "without it the checkpoint talks",
    )
    add("--max_frames", type=positive, help="frames in one forward pass at most (default: 6000)")
    add("--dtype", choices=("bfloat16", "float32"), help="default: the checkpoint's `param_dtype`")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one")
    add("--cache_dir", type=Path, help="folder for codes and scores that several evaluations share (default: in --out)")
    add("--reference", choices=tuple(REFERENCES), help="also show the deviation from published values of this model")
    add("--hf_repo_id", help="where the base model is now: hub id or folder")
    return parser


def positive(text: str) -> int:
    """A whole number greater than 0, for argparse."""
    if not (text.isascii() and text.isdecimal()) or int(text) == 0:
        raise ArgumentTypeError(f"{text} is not a whole number greater than 0")
    return int(text)


def draws(text: str) -> int:
    """`positive`, of things that are all made and held at once."""
    if positive(text) > MAX_DRAWS:
        raise ArgumentTypeError(f"{text} is more than {MAX_DRAWS}")
    return int(text)


@dataclass
class Request:
    """What is asked for. Making one refuses everything that can be refused before a checkpoint is looked at.

    Args:
        names: tasks, in their order.
        refused: those of `--tasks all` that cannot apply some option, with the reason.
        controls: options of all tasks.
        overrides: keys of `--config` and `--data` that replace the checkpoint's.
        base: where the base model is now, None where the checkpoint knows.
        max_items: of benchmarks: of `--max_items` or else the YAML's `paper_metrics`.
    """

    options: Any
    names: list[str]
    refused: dict[str, str]
    controls: Controls
    overrides: dict[str, Any]
    base: ModelPaths | None
    split: str
    max_items: int | None
    max_frames: int

    @classmethod
    def of(cls, options: Any) -> Request:
        """Raises `UserError` for options that mean nothing or exclude one another."""
        from ttt_moshi.evaluation.controls import Controls, check_minutes

        if not options.checkpoint_dir:
            raise UserError("name what is to be evaluated: --checkpoint_dir CHECKPOINT, or `base` with --hf_repo_id")
        _check_paths(options)
        overrides = _overrides(options.config)
        section = overrides.get("paper_metrics", {})
        controls = Controls(
            options.ttt,
            options.text,
            options.user,
            options.chunk_frames,
            options.sampled_texts,
            options.seed,
            options.sink,
        )
        names, refused = _tasks(options, section, controls)
        check_minutes(options.minutes)
        if not 0 < options.answer_seconds <= MAX_ANSWER_SECONDS:
            limit = f"greater than 0 and at most {MAX_ANSWER_SECONDS}"
            raise UserError(f"--answer_seconds must be {limit}, not {options.answer_seconds:g}")
        if options.judge is not None:
            _check_judge(options.judge)
        if options.server is not None:
            _check_server(options)
        if options.outputs_of is not None:
            _check_outputs(options)
        _refuse_idle(options, names)
        if options.data is not None:
            overrides["data"] = {**overrides.get("data", {}), "eval_data": options.data}
        if options.checkpoint_dir == BASE and (options.hf_repo_id is None or options.out is None):
            raise UserError("`--checkpoint_dir base` needs --hf_repo_id (which model) and --out (where to write)")
        return cls(
            options,
            names,
            refused,
            controls,
            overrides,
            ModelPaths(hf_repo_id=options.hf_repo_id) if options.hf_repo_id else None,
            options.split or section.get("split") or "test",
            options.max_items or section.get("max_items"),
            options.max_frames or section.get("max_frames") or 6000,
        )

    def with_overrides(self, args: TrainArgs) -> TrainArgs:
        """The configuration of the checkpoint with the data and evaluation keys that were given here.

        Raises:
            ConfigError: a value that cannot work.
        """
        return args_from_dict(_merged(args, self.overrides))

    def recorded(self, args: TrainArgs) -> dict[str, Any]:
        """Everything that can change a number, without paths of this machine."""
        from ttt_moshi.evaluation.tasks.registry import ON_RECORDINGS

        options, on_benchmarks = self.options, bool(set(self.names) - set(ON_RECORDINGS))
        return {
            "eval_type": options.eval_type or "standard",
            "split": self.split,
            "max_items": options.max_items,
            "paper_metrics_max_items": self.max_items if options.max_items is None and on_benchmarks else None,
            "text": options.text,
            "user": options.user,
            "ttt": options.ttt,
            "sink": options.sink,
            "chunk_frames": options.chunk_frames,
            "max_frames": self.max_frames,
            "batch_size": options.batch_size,
            "sampled_texts": options.sampled_texts if options.text == "sampled" else None,
            "minutes": options.minutes if "hour" in self.names else None,
            "answers": options.answers if options.answers > 1 else None,
            "answer_seconds": options.answer_seconds if options.answer_seconds != 20.0 else None,
            "judge": options.judge,
            "server": True if options.server else None,
            "outputs_of": options.outputs_of,
            "dtype": options.dtype or args.param_dtype,
            "duration_sec": args.duration_sec,
        }


def _check_paths(options: Any) -> None:
    for flag in ("out", "cache_dir"):
        path = getattr(options, flag)
        if path is not None and path.exists() and not path.is_dir():
            raise UserError(f"--{flag} {path} is a file; name a folder")
    if options.data is not None and not options.data.strip():
        raise UserError(
            "--data is empty: name recordings, or leave it out for those of the checkpoint's `data.eval_data`"
        )
    if options.data_root is not None and not options.data_root.is_dir():
        raise UserError(f"--data_root: there is no folder {options.data_root}")


def _overrides(config: Path | None) -> dict[str, Any]:
    """The data and evaluation keys of a YAML file; what it says about the model is the checkpoint's business."""
    if config is None:
        return {}
    found = check_config_file(config)
    overrides = {key: found[key] for key in DATA_KEYS if found.get(key) is not None}
    # Wrong types and values are refused here, before a checkpoint is looked at.
    checked = args_from_dict(_merged(TrainArgs(run_dir="none"), overrides))
    for key in ("max_items", "max_frames"):
        value = getattr(checked.paper_metrics, key)
        if value is not None and value < 1:
            raise UserError(f"{config}: `paper_metrics.{key}` must be greater than 0, got {value}")
    return overrides


def _merged(args: TrainArgs, overrides: dict[str, Any]) -> dict[str, Any]:
    values = to_dict(args)
    for key, value in overrides.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return values


def _check_server(options: Any) -> None:
    from ttt_moshi.inference.client import check_address

    try:
        check_address(options.server)
    except UserError as error:
        raise UserError(f"--server: {error}") from None
    if options.sink:
        raise UserError("--sink: a server has its own (`ttt-moshi serve --sink N`), leave it out beside --server")


def _check_outputs(options: Any) -> None:
    if not options.outputs_of.strip():
        raise UserError("--outputs_of is empty: name the model whose outputs they are, or leave it out")
    if options.sink:
        raise UserError("--sink: outputs that are there already have their own, leave it out beside --outputs_of")


def _check_judge(command: str) -> None:
    from ttt_moshi.evaluation.judge import is_file_of_ratings

    if is_file_of_ratings(command):
        if not Path(command).is_file():
            raise UserError(f"--judge: there is no file of ratings {command}")
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--judge `{command}` is not a command: {error}") from error
    if not words:
        raise UserError("--judge is empty: leave it out, or name a command")
    if shutil.which(words[0]) is None:
        raise UserError(f"--judge: there is no program {words[0]}")


def _refuse_idle(options: Any, names: list[str]) -> None:
    """No option that would be recorded and change nothing."""
    from ttt_moshi.evaluation.references import REFERENCES
    from ttt_moshi.evaluation.tasks.registry import tasks_by_option

    default = parser().get_default
    if options.sampled_texts != default("sampled_texts") and options.text != "sampled":
        raise UserError("--sampled_texts acts together with `--text sampled` alone")
    if options.reference and not set(published := REFERENCES[options.reference]) & set(names):
        raise UserError(f"--reference {options.reference} has values of {', '.join(published)}, and --tasks names none")
    for option, known in tasks_by_option().items():
        # A task of another package may name an option that is not one of this command.
        if getattr(options, option, None) != default(option) and not set(known) & set(names):
            raise UserError(f"--{option} acts on {', '.join(known)} alone, and of these --tasks names none")


def _tasks(options: Any, section: dict[str, Any], controls: Controls) -> tuple[list[str], dict[str, str]]:
    """The tasks, and those of `all` that are not run, with the reason."""
    from ttt_moshi.evaluation.tasks.registry import PAPER_METRICS, check_controls, parse_tasks

    asked = options.tasks if options.tasks is not None else section.get("tasks")
    benchmarks = parse_tasks(asked) if asked is not None else list(PAPER_METRICS)
    if options.eval_type == "both":
        names = ["perplexity", *(name for name in benchmarks if name != "perplexity")]
    elif options.eval_type == "paper_metrics" or options.tasks is not None:
        names = benchmarks
    else:
        names = ["perplexity"]
    refused = check_controls(names, controls)
    if refused and (asked or "").strip() != "all":
        raise UserError("; ".join(f"`{name}`: {reason}" for name, reason in refused.items()))
    return names, refused
