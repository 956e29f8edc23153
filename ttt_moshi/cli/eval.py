"""Evaluate a checkpoint, list and compare evaluations."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ttt_moshi.cli.eval_options import BASE, Request, parser
from ttt_moshi.cli.eval_screen import Bars, show_headlines
from ttt_moshi.config import TrainArgs

REPORTS = ("ls", "compare", "report", "versa", "lm-eval", "fetch")


def main(argv: list[str]) -> int:
    """`ttt-moshi eval --checkpoint_dir D ...`, or `ttt-moshi eval ls|compare|report|versa|lm-eval|fetch ...`.

    Status 0 when everything that was asked for was measured, 1 when something was not, 2 when nothing could be.
    """
    if argv and argv[0] in REPORTS:
        from ttt_moshi.cli.eval_reports import main as reports

        return reports(argv)
    options = parser().parse_args(argv)
    if options.tasks == "list":
        from ttt_moshi.cli.eval_screen import show_known_tasks

        show_known_tasks(Console(highlight=False))
        return 0
    request = Request.of(options)
    from ttt_moshi.evaluation.scoring.ranks import joined

    began = time.perf_counter()
    with joined(options.device) as (ranks, device):
        console = Console(highlight=False, quiet=not ranks.is_main)
        run = _Run.prepare(request, ranks, device, console)
        run.evaluate(console)
        return run.finish(console, time.perf_counter() - began)


@dataclass
class _Run:
    """One evaluation from its request to its files."""

    request: Request
    args: TrainArgs
    ranks: Any
    subject: Any
    results: Any
    out: Path
    outcomes: dict[str, Any]

    @classmethod
    def prepare(cls, request: Request, ranks: Any, device: str, console: Console) -> _Run:
        """Checks the checkpoint, the data and what is in the folder for the results, builds the model."""
        from ttt_moshi.config_io import args_from_dict
        from ttt_moshi.evaluation import Results
        from ttt_moshi.evaluation.subject import (
            base_facts,
            check,
            checkpoint_facts,
            checkpoint_folder,
            from_base,
            from_checkpoint,
            training_config,
        )
        from ttt_moshi.moshi import resolve_model
        from ttt_moshi.moshi.device import choose_dtype

        options = request.options

        def results(facts: dict[str, Any], args: TrainArgs, clip_sec: float | None) -> Any:
            config = request.recorded(args) | {"training_clip_sec": clip_sec}
            return Results(facts, config=config, seed=options.seed)

        if options.checkpoint_dir == BASE:
            assert request.base is not None
            args, out = request.with_overrides(TrainArgs(run_dir="none")), options.out
            ranks.together(lambda: _check_folders(request, out) if ranks.is_main else None)
            _check_data(request, args)
            info = resolve_model(request.base, "evaluate")
            new = results(base_facts(info), args, None)
            ranks.together(lambda: _there(request, out, new) if ranks.is_main else None)
            dtype = choose_dtype(options.dtype, args.param_dtype)
            subject = from_base(info, new.checkpoint, device, dtype)
        else:
            folder = checkpoint_folder(Path(options.checkpoint_dir))
            trained = args_from_dict(training_config(folder))
            args, out = request.with_overrides(trained), options.out or _default_out(folder)
            ranks.together(lambda: _check_folders(request, out, folder) if ranks.is_main else None)
            _check_data(request, args)
            new = results(checkpoint_facts(folder), args, trained.duration_sec)
            ranks.together(lambda: _there(request, out, new) if ranks.is_main else None)
            if not options.no_ttt_verify:
                with Bars(console) as bars:

                    def verify() -> None:
                        check(folder, lambda done, total: bars.update("verifying the checkpoint", done, total))

                    ranks.together(lambda: verify() if ranks.is_main else None)
            with console.status("loading the model"):
                subject = from_checkpoint(folder, device, choose_dtype(options.dtype, args.param_dtype), request.base)
        new.checkpoint = subject.facts
        return cls(request, args, ranks, subject, new, out, {})

    def evaluate(self, console: Console) -> None:
        """Fills in the results."""
        from ttt_moshi.evaluation.references import add_reference
        from ttt_moshi.evaluation.scoring import BatchPolicy, Engine, ModelScorer, NLLCache, Recordings
        from ttt_moshi.evaluation.suite import run_suite
        from ttt_moshi.evaluation.tasks.registry import known_tasks

        request, subject, options = self.request, self.subject, self.request.options
        cache = options.cache_dir or self.out / "cache"
        scorer = ModelScorer(subject.model, subject.facts["state_id"], request.controls.scoring, subject.base_inside)
        scores = NLLCache(cache / "nll", scorer.identity, writes=self.ranks.is_main)
        policy = BatchPolicy(request.max_frames, options.batch_size or BatchPolicy.max_rows)
        known = known_tasks()
        with Bars(console) as bars:

            def engine(name: str) -> Engine:
                text, user = options.text or known[name].text, options.user or known[name].user
                recordings = Recordings(subject.codec, cache / "codes", text, user, subject.tokenizer, subject.style)
                return Engine(scorer, recordings, scores, policy, bars.update, self.ranks)

            benchmarks = _benchmarks(request, self.args, subject, self.out)
            refused = {**request.refused, **_silent(request.names, subject.model)}
            found = run_suite(request.names, benchmarks, engine, refused)
        if options.reference:
            add_reference(found.tasks, options.reference)
        read = {key: value for key in ("dtype", "sampled_texts") if (value := self.results.config[key]) is not None}
        for name, outcome in found.outcomes.items():
            spec, entry = known[name], found.tasks[name]
            applied = request.controls.applied(spec.text, spec.user) if spec.runs_model else {}
            entry.setdefault("options", applied)
            entry["protocol"] = {**(read if entry["options"] else {}), **entry["protocol"]}
            self.results.data[name] = {"digest": outcome.data_digest, "samples": len(outcome.samples)}
        self.results.tasks |= found.tasks
        self.outcomes |= found.outcomes
        self.results.data["codec"] = {"fingerprint": subject.codec.fingerprint}

    def finish(self, console: Console, seconds: float) -> int:
        """Shows the headlines, writes the files, and returns the exit status."""
        if not self.ranks.is_main:
            return 0
        console.print(f"\n[bold]state {self.subject.facts['state_id'][:16]}[/], step {self.subject.facts['step']}")
        show_headlines(console, self.results.tasks)
        console.print(self._write(seconds), soft_wrap=True, markup=False)
        skipped = len(self.results.skipped)
        return 0 if not skipped else 2 if skipped == len(self.results.tasks) else 1

    def _write(self, seconds: float) -> str:
        """Writes the files unless they would replace numbers by none; returns where they are, in words.

        Raises:
            EvaluationError: they would replace numbers of another evaluation.
        """
        from ttt_moshi.evaluation import EvaluationError
        from ttt_moshi.evaluation.adding import added, has_numbers
        from ttt_moshi.evaluation.files import alone_in, write_evaluation
        from ttt_moshi.training.run_dir import git_state

        path = self.out / "results.json"
        circumstances = {"seconds": round(seconds, 3), "device": str(self.subject.model.device), "commit": git_state()}
        with alone_in(self.out):
            if not self.results.measured and has_numbers(self.out):
                return f"nothing was measured: {path} keeps what was measured before"
            try:
                # Looked at again: another evaluation may have ended meanwhile.
                there = _there(self.request, self.out, self.results)
                found = self.results if there is None else added(there, self.results)
            except EvaluationError as error:
                cache = self.request.options.cache_dir or self.out / "cache"
                raise EvaluationError(
                    f"{path} stays as it is, and what was measured now is not written: {error}. Scores are kept for "
                    f"--cache_dir {cache}"
                ) from None
            write_evaluation(self.out, found, self.outcomes, circumstances, adds=there is not None)
        before = [name for name in found.measured if name not in self.outcomes]
        beside = f" (measured before, and kept: {', '.join(before)})" if before else ""
        return f"results: {path}{beside}, in full: {self.out / 'report.html'}"


def _there(request: Request, out: Path, new: Any) -> Any:
    """The evaluation in the folder that this one adds to, None where it begins anew.

    Raises:
        EvaluationError: numbers of another one are there, and are not to be replaced.
    """
    from ttt_moshi.evaluation.adding import added_to
    from ttt_moshi.evaluation.files import refuse_comparison, settle

    refuse_comparison(out)
    settle(out)
    return None if request.options.overwrite else added_to(out, new, request.names)


def _benchmarks(request: Request, args: TrainArgs, subject: Any = None, out: Path | None = None) -> Any:
    """Where the data of all tasks is; without the model what can be looked at beforehand."""
    from ttt_moshi.data.remote import use_cache
    from ttt_moshi.evaluation.conversations import Talker
    from ttt_moshi.evaluation.recorded import EvaluationData
    from ttt_moshi.evaluation.tasks.registry import Benchmarks
    from ttt_moshi.evaluation.tasks.spoken_questions import Asking
    from ttt_moshi.inference.driver import Driver
    from ttt_moshi.inference.sampling import Sampling

    options = request.options
    recorded = None
    if args.data.eval_data:
        use_cache(args.data.remote_cache_dir, args.data.remote_cache_gb)
        recorded = EvaluationData(
            args.data.eval_data,
            args.duration_sec,
            subject and subject.codec,
            subject and subject.tokenizer,
            subject and _alphabet(subject.model),
            None if args.data.code_cache_dir is None else Path(args.data.code_cache_dir),
            options.max_items,
            options.seed,
            request.controls,
            *([subject.style] if subject else []),
        )
    talker = None
    if subject is not None and out is not None:
        sampling = Sampling.of(subject.speaker.generation)
        speaker = replace(subject.speaker, sink=options.sink)
        driver = Driver(speaker, sampling, options.slots, options.seed, replace=options.overwrite)
        talker = Talker(driver, out / "conversations")
    root = options.data_root or (Path(named) if (named := args.paper_metrics.data_root) else None)
    return Benchmarks(
        root,
        request.split,
        request.max_items,
        options.seed,
        recorded=recorded,
        minutes=options.minutes,
        asking=Asking(options.answer_seconds, options.answers, options.judge),
        talker=talker,
        server=options.server,
        outputs_of=options.outputs_of,
    )


def _silent(names: list[str], model: Any) -> dict[str, str]:
    """The tasks that a model cannot do which writes what it hears, with the reason."""
    from ttt_moshi.evaluation.tasks.registry import known_tasks

    if model.dep_q > 0:
        return {}
    reason = "this model writes what it hears and says nothing (`dep_q` 0): `perplexity` measures its text"
    return {name: reason for name in names if not known_tasks()[name].of_text}


def _alphabet(model: Any) -> Any:
    from ttt_moshi.data import Alphabet

    return Alphabet(model.num_codebooks, model.text_card, model.card, 1 if model.dep_q == 0 else 2)


def _check_data(request: Request, args: TrainArgs) -> None:
    """Raises `UserError` when not one task has its data, or `--data` is not there, even where no task reads it: the
    model need not be read for that."""
    from ttt_moshi.data.sources import listed_lines
    from ttt_moshi.evaluation import EvaluationError
    from ttt_moshi.evaluation.suite import check_tasks

    benchmarks = _benchmarks(request, args)
    if request.options.data is not None:
        listed_lines(request.options.data)
    for name in request.names:
        try:
            check_tasks([name], benchmarks)
        except EvaluationError:
            continue
        return
    check_tasks(request.names, benchmarks)


def _check_folders(request: Request, out: Path, checkpoint: Path | None = None) -> None:
    """Raises `EvaluationError` for folders that cannot be written, since nothing would come of hours of work, and for
    those within the checkpoint, which they would make corrupt."""
    from ttt_moshi.evaluation import EvaluationError
    from ttt_moshi.files import try_folder

    for flag, folder in (("out", out), ("cache_dir", request.options.cache_dir)):
        if folder is None:
            continue
        if checkpoint is not None and folder.resolve().is_relative_to(checkpoint.resolve()):
            raise EvaluationError(
                f"--{flag} {folder} is within the checkpoint, which holds what its manifest lists and nothing else: "
                "name another folder"
            )
        try:
            try_folder(folder)
        except OSError as error:
            raise EvaluationError(
                f"--{flag} {folder} cannot be written: {error.strerror or error}; name another folder"
            ) from None


def _default_out(folder: Path) -> Path:
    """Beside the checkpoints, never inside one: a checkpoint's folder holds what its manifest lists."""
    root = folder.absolute().parent
    return (root.parent if root.name == "checkpoints" else root) / "evaluation" / folder.name
