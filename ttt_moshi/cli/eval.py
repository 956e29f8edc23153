"""Evaluate a checkpoint, list and compare evaluations."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.eval_screen import Bars, show_perplexity, show_tasks
from ttt_moshi.config import ConfigError, ModelPaths, TrainArgs
from ttt_moshi.config_io import args_from_dict, check_config_file
from ttt_moshi.errors import UserError

REPORTS = ("ls", "compare", "report", "versa")
BASE = "base"


def main(argv: list[str]) -> int:
    """`ttt-moshi eval --checkpoint_dir D ...`, or `ttt-moshi eval ls|compare|report|versa ...`.

    Status 0 when everything that was asked for was measured, 1 when something was not, 2 when nothing could be.
    """
    if argv and argv[0] in REPORTS:
        from ttt_moshi.cli.eval_reports import main as reports

        return reports(argv)
    options = _parser().parse_args(argv)
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from ttt_moshi.evaluation.scoring.ranks import joined

    began = time.perf_counter()
    with joined(options.device) as (ranks, device):
        console = Console(highlight=False, quiet=not ranks.is_main)
        run = _Run.prepare(options, ranks, device, console)
        run.evaluate(console)
        return run.finish(console, time.perf_counter() - began)


def _parser() -> Parser:
    from ttt_moshi.evaluation.references import REFERENCES
    from ttt_moshi.evaluation.scoring.recordings import TEXT_MODES, USER_MODES
    from ttt_moshi.evaluation.tasks.registry import PAPER_METRICS, TASKS

    parser = Parser(
        prog="eval_from_checkpoint.py",
        description="Evaluates a checkpoint. The model, its codec and its tokenizer come from the checkpoint alone. "
        "See also: ttt-moshi eval ls | compare | report | versa",
    )
    add = parser.add_argument
    add("--checkpoint_dir", "--checkpoint", required=True, help="checkpoint folder, or `base` with --hf_repo_id")
    add(
        "--config",
        type=Path,
        help="YAML whose data and evaluation keys replace the checkpoint's; others mean nothing here",
    )
    add("--eval_type", choices=("standard", "paper_metrics", "both"), default="standard", help="default: %(default)s")
    add("--batch_size", type=positive, help="sequences in one forward pass at most; 1 scores them one by one")
    add("--no_ttt_verify", action="store_true", help="do not check the checkpoint's bytes first")
    add("--out", type=Path, help="folder for the results; default: <run>/evaluation/<checkpoint>")
    add("--data", help="recordings for the perplexity, instead of the checkpoint's `data.eval_data`")
    add("--data_root", type=Path, help="folder of the benchmarks (sLM21-dataset, sSC, tSC, salmon, librilight, needle)")
    add("--tasks", help=f"comma-separated, or all; default: {','.join(PAPER_METRICS)}; there are: {', '.join(TASKS)}")
    add("--split", choices=("dev", "test"), help="part of sLM21 (default: test)")
    add("--max_items", type=positive, help="at most so many items a task, a seeded sample from every stratum")
    add("--seed", type=int, default=0, help="seed of samples (default: %(default)s)")
    add("--text", choices=TEXT_MODES, default="absent", help="text stream of benchmarks (default: %(default)s)")
    add("--user", choices=USER_MODES, default="silence", help="user stream of benchmarks (default: %(default)s)")
    add(
        "--sampled_texts",
        type=positive,
        default=8,
        help="texts drawn per recording with --text sampled (default: %(default)s)",
    )
    add("--ttt", default="on", help="on, off (gates closed), no_writes (memory stays W0), or reset:FRAMES; controls")
    add(
        "--chunk_frames",
        type=positive,
        default=1500,
        help="longer recordings are read in such chunks (default: %(default)s)",
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
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text} is not a whole number greater than 0")
    return int(text)


@dataclass
class _Run:
    """One evaluation from its options to its files."""

    options: Any
    names: list[str]
    scoring: Any
    args: TrainArgs
    ranks: Any
    subject: Any
    results: Any
    out: Path
    outcomes: dict[str, Any]

    @classmethod
    def prepare(cls, options: Any, ranks: Any, device: str, console: Console) -> _Run:
        """Refuses what cannot work, checks the checkpoint, builds the model."""
        from ttt_moshi.evaluation import Results
        from ttt_moshi.evaluation.subject import check, checkpoint_folder, from_base, from_checkpoint, training_config

        base = ModelPaths(hf_repo_id=options.hf_repo_id) if options.hf_repo_id else None
        overrides = _overrides(options.config)
        _fill_in(options, overrides.get("paper_metrics", {}))
        # A mistyped name must not wait for the model.
        names, scoring = _tasks(options), _scoring(options)
        if options.data is not None:
            overrides["data"] = {**overrides.get("data", {}), "eval_data": options.data}
        if options.checkpoint_dir == BASE:
            if base is None or options.out is None:
                raise UserError("`--checkpoint_dir base` needs --hf_repo_id (which model) and --out (where to write)")
            args, clip_sec = _with(TrainArgs(run_dir="none"), overrides), None
            subject, out = from_base(base, device, _dtype(options, args)), options.out
        else:
            folder = checkpoint_folder(Path(options.checkpoint_dir))
            if not options.no_ttt_verify:
                with Bars(console) as bars:

                    def verify() -> None:
                        check(folder, lambda done, total: bars.update("verifying the checkpoint", done, total))

                    ranks.together(lambda: verify() if ranks.is_main else None)
            trained = args_from_dict(training_config(folder))
            args, clip_sec = _with(trained, overrides), trained.duration_sec
            out = options.out or _default_out(folder)
            with console.status("loading the model"):
                subject = from_checkpoint(folder, device, _dtype(options, args), base)
        recorded = _recorded(options, args) | {"training_clip_sec": clip_sec}
        results = Results(subject.facts, config=recorded, seed=options.seed)
        return cls(options, names, scoring, args, ranks, subject, results, out, {})

    def evaluate(self, console: Console) -> None:
        """Fills in the results."""
        if self.options.eval_type in ("standard", "both") or "ppl" in self.names:
            with Bars(console) as bars:
                self._standard(bars)
        names = [name for name in self.names if name != "ppl"]
        if names:
            with Bars(console) as bars:
                self._paper_metrics(names, bars)

    def finish(self, console: Console, seconds: float) -> int:
        """Writes the files, shows the table, and returns the exit status."""
        from ttt_moshi.evaluation.files import write_evaluation
        from ttt_moshi.training.run_dir import git_state

        if not self.ranks.is_main:
            return 0
        circumstances = {"seconds": round(seconds, 3), "device": str(self.subject.model.device), "commit": git_state()}
        write_evaluation(self.out, self.results, self.outcomes, circumstances)
        console.print(f"\n[bold]state {self.subject.facts['state_id'][:16]}[/], step {self.subject.facts['step']}")
        show_perplexity(console, self.results)
        show_tasks(console, self.results)
        console.print(f"results: {self.out / 'results.json'}", soft_wrap=True)
        skipped = len(self.results.skipped)
        return 0 if not skipped else 2 if skipped == len(self.results.tasks) else 1

    def _standard(self, bars: Bars) -> None:
        from ttt_moshi.data import Alphabet, Corpus, EvalSet
        from ttt_moshi.evaluation.outcome import Outcome
        from ttt_moshi.evaluation.results import skipped
        from ttt_moshi.evaluation.tasks.perplexity import as_task, evaluate_perplexity

        if not self.args.data.eval_data:
            self.results.tasks["perplexity"] = skipped("no recordings: name them with --data or `data.eval_data`")
            return
        try:
            corpus = Corpus(
                self.args.data.eval_data,
                self.subject.codec,
                self.subject.tokenizer,
                self.args.duration_sec,
                self.args.data.code_cache_dir,
                alphabet=Alphabet(
                    self.subject.model.num_codebooks, self.subject.model.text_card, self.subject.model.card
                ),
            )
            self.ranks.together(
                lambda: corpus.encode_all(
                    self.ranks.rank,
                    self.ranks.size,
                    lambda name, done, total: bars.update("encoding speech", done, total),
                )
            )
            result = evaluate_perplexity(
                self.subject.model,
                EvalSet(corpus),
                self.options.batch_size or self.args.batch_size,
                self.ranks.rank,
                self.ranks.size,
                progress=lambda done, total: bars.update("perplexity", done, total),
            )
        except UserError as reason:
            self.results.tasks["perplexity"] = skipped(str(reason))
            return
        self.results.tasks["perplexity"] = as_task(result)
        self.outcomes["perplexity"] = Outcome(as_task(result), result.samples)
        self.results.data["perplexity"] = {"digest": result.data_digest, "clips": result.clips}

    def _paper_metrics(self, names: list[str], bars: Bars) -> None:
        from ttt_moshi.evaluation.references import add_reference
        from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
        from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
        from ttt_moshi.evaluation.scoring.recordings import Recordings
        from ttt_moshi.evaluation.scoring.scorer import ModelScorer
        from ttt_moshi.evaluation.suite import run_suite
        from ttt_moshi.evaluation.tasks.registry import Benchmarks

        options, subject = self.options, self.subject
        cache = options.cache_dir or self.out / "cache"
        recordings = Recordings(subject.codec, cache / "codes", options.text, options.user, subject.tokenizer)
        scorer = ModelScorer(subject.model, subject.facts["state_id"], self.scoring)
        rows = options.batch_size or BatchPolicy.max_rows
        engine = Engine(
            scorer,
            recordings,
            NLLCache(cache / "nll", scorer.identity, writes=self.ranks.is_main),
            BatchPolicy(options.max_frames, rows),
            bars.update,
            self.ranks,
        )
        root = options.data_root or (Path(p) if (p := self.args.paper_metrics.data_root) else None)
        benchmarks = None
        if root is not None:
            benchmarks = Benchmarks(root, options.split, options.max_items, options.seed)
        found = run_suite(names, benchmarks, engine)
        if options.reference:
            add_reference(found.tasks, options.reference)
        self.results.tasks |= found.tasks
        self.outcomes |= found.outcomes
        for name, outcome in found.outcomes.items():
            self.results.data[name] = {"digest": outcome.data_digest, "samples": len(outcome.samples)}
        self.results.data["codec"] = {"fingerprint": subject.codec.fingerprint}


DATA_KEYS = ("data", "duration_sec", "batch_size", "paper_metrics")


def _overrides(config: Path | None) -> dict[str, Any]:
    """The data and evaluation keys of a YAML file; what it says about the model is the checkpoint's business."""
    if config is None:
        return {}
    return {key: value for key, value in check_config_file(config).items() if key in DATA_KEYS}


def _fill_in(options: Any, section: dict[str, Any]) -> None:
    """Options that were not given on the command line: from the YAML file's `paper_metrics`, or else the defaults."""
    for name, default in (("tasks", None), ("split", "test"), ("max_items", None), ("max_frames", 6000)):
        if getattr(options, name) is None:
            setattr(options, name, section.get(name, default))


def _tasks(options: Any) -> list[str]:
    from ttt_moshi.evaluation.tasks.registry import PAPER_METRICS, parse_tasks

    if options.tasks:
        return parse_tasks(options.tasks)
    return list(PAPER_METRICS) if options.eval_type != "standard" else []


def _with(args: TrainArgs, overrides: dict[str, Any]) -> TrainArgs:
    from ttt_moshi.config import to_dict

    values = to_dict(args)
    for key, value in overrides.items():
        if isinstance(value, dict):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    return args_from_dict(values)


def _dtype(options: Any, args: TrainArgs) -> Any:
    from ttt_moshi.moshi.device import choose_dtype

    return choose_dtype(options.dtype, args.param_dtype)


def _default_out(folder: Path) -> Path:
    """Beside the checkpoints, never inside one: a checkpoint's folder holds what its manifest lists."""
    root = folder.absolute().parent
    return (root.parent if root.name == "checkpoints" else root) / "evaluation" / folder.name


def _scoring(options: Any) -> Any:
    from ttt_moshi.evaluation.scoring.scorer import ScoringOptions

    changes: dict[str, Any] = {"chunk_frames": options.chunk_frames, "seed": options.seed}
    if options.text == "sampled":
        changes["sampled_texts"] = options.sampled_texts
    kind, _, number = options.ttt.partition(":")
    if kind == "reset" and number.isdigit() and int(number):
        changes["reset_every"] = int(number)
    elif options.ttt in ("off", "no_writes"):
        changes["gate" if options.ttt == "off" else "inner_lr"] = 0.0
    elif options.ttt != "on":
        raise ConfigError(f"`--ttt {options.ttt}`: it is on, off, no_writes or reset:FRAMES (as in reset:3000)")
    return ScoringOptions(**changes)


def _recorded(options: Any, args: TrainArgs) -> dict[str, Any]:
    """Everything that can change a number, without paths of this machine."""
    names = ("eval_type", "split", "max_items", "text", "user", "ttt", "chunk_frames", "max_frames")
    return {
        **{name: getattr(options, name) for name in names},
        "batch_size": options.batch_size,
        "sampled_texts": options.sampled_texts if options.text == "sampled" else None,
        "dtype": options.dtype or args.param_dtype,
        "duration_sec": args.duration_sec,
    }
