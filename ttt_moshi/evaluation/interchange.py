"""Files that other tools read: ZeroSpeech submissions, VERSA's lists of recordings, results as lm-eval writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.listing import files_in
from ttt_moshi.evaluation.results import OK, Results, write_text
from ttt_moshi.evaluation.statistics import RESAMPLES

ZEROSPEECH = {"swuggy": "lexical", "sblimp": "syntactic"}
LM_EVAL_FILE = "lm_eval.json"
_VERSA_LISTS = ("pred.scp", "gt.scp", "text")


def most_items(config: Mapping[str, Any]) -> int | None:
    """At most so many items of a benchmark were looked at, by the recorded options; None where all were."""
    return config.get("max_items") or config.get("paper_metrics_max_items")


def submission_file(folder: Path, task: str, split: str) -> Path:
    """Where the toolkit looks for the scores of a task."""
    return folder / ZEROSPEECH[task] / f"{split}.txt"


def write_submission(folder: Path, task: str, split: str, scores: Mapping[str, float]) -> Path:
    """`lexical/<split>.txt` or `syntactic/<split>.txt`: `<filename> <score>` a line, higher = likelier.

    The ZeroSpeech toolkit recomputes the task's headline value from it, provided that the whole split was scored.
    """
    path = submission_file(folder, task, split)
    write_text(path, "".join(f"{name} {score!r}\n" for name, score in sorted(scores.items())))
    return path


def write_versa_lists(
    out: Path, predicted: Mapping[str, Path], references: Mapping[str, Path] | None, texts: Mapping[str, str]
) -> list[Path]:
    """`pred.scp`, `gt.scp` and `text` for VERSA from sound files by name; those of them that there is nothing for are
    deleted, as lists of an earlier call.

    Args:
        predicted, references: see `sound_files`.

    Raises:
        EvaluationError: a prediction lacks its reference, or a path cannot be in a list.
    """
    lists = {"pred.scp": _paths(predicted)}
    if references is not None:
        if missing := sorted(predicted.keys() - references.keys()):
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise EvaluationError(f"--references lacks {', '.join(missing[:5])}{more}")
        lists["gt.scp"] = _paths({name: references[name] for name in predicted})
    if said := {name: texts[name] for name in predicted if name in texts}:
        lists["text"] = said
    for name in _VERSA_LISTS:
        with writing(out / name):
            (out / name).unlink(missing_ok=True)
    for name, entries in lists.items():
        write_text(out / name, "".join(f"{key} {' '.join(value.splitlines())}\n" for key, value in entries.items()))
    return [out / name for name in lists]


def sound_files(folder: Path) -> dict[str, Path]:
    """The recordings of a folder by their names: its sound files, or what the model says in the folders of many
    conversations (`NAME/output.wav`), as `ttt-moshi generate` writes them.

    Raises `EvaluationError` where there is none, two have one name, or a name has a blank in it.
    """
    found = [(path.stem, path) for path in files_in(folder, ".wav", ".flac")]
    found = found or [(path.parent.name, path) for path in sorted(folder.glob("*/output.wav")) if path.is_file()]
    if not found:
        raise EvaluationError(f"no .wav or .flac in {folder}, and no NAME/output.wav")
    files: dict[str, Path] = {}
    for name, path in found:
        # A list parts name and file at the first blank, and its lines at their ends.
        if name.split() != [name]:
            raise EvaluationError(f"{str(path)!r}: a list for VERSA cannot hold a name with a blank: rename it")
        if name in files:
            raise EvaluationError(f"{files[name]} and {path} have one name: rename one of them")
        files[name] = path
    return files


def _paths(files: Mapping[str, Path]) -> dict[str, str]:
    found = {name: str(path.resolve()) for name, path in files.items()}
    for path in found.values():
        if len(path.splitlines()) > 1 or path != path.strip():
            raise EvaluationError(f"{path!r}: a list for VERSA cannot hold a folder with an end of a line: rename it")
    return found


LM_EVAL_METRICS = {
    "perplexity": "perplexity",
    **dict.fromkeys(("dialogue", "position", "continuation"), "nll"),
    **dict.fromkeys(("context", "repeat", "spoken_repeat", "inner"), "nll_difference"),
    **dict.fromkeys(("swuggy", "sblimp", "ssc", "tsc", "salmon", "needle"), "acc"),
    **dict.fromkeys(("llama_questions", "web_questions", "trivia_qa", "spoken_choices", "full_duplex"), "acc"),
}
"""names of the headline values; those of all other tasks are called `value`"""
NOT_KNOWN = "N/A"
"""what lm-evaluation-harness writes for the standard error of one item"""
_DEVIATIONS = 1.959964
"""standard errors from the middle to the end of a 95 % interval"""


def as_lm_eval(results: Results, timing: Mapping[str, Any], date: float) -> dict[str, Any]:
    """The measured tasks in the structure of the results of lm-evaluation-harness (0.4).

    A standard error is half of the interval's width over 1.96. What a benchmark held before `--max_items` is not
    known, so both counts of items are of those that were scored.

    Args:
        timing: `timing.json`.
        date: when the results were written, in seconds since 1970.

    Raises:
        EvaluationError: no task was measured.
    """
    tasks = {name: task for name, task in results.tasks.items() if task["status"] == OK}
    if not tasks:
        raise EvaluationError("no task was measured: there is nothing to convert")
    metrics = {name: LM_EVAL_METRICS.get(name, "value") for name in tasks}
    facts, config = results.checkpoint, results.config
    model_args = f"state_id={facts['state_id']},step={facts['step']},kind={facts['kind']}"
    return {
        "results": {name: {"alias": name, **_lm_eval_values(metrics[name], task)} for name, task in tasks.items()},
        "group_subtasks": {name: [] for name in tasks},
        "configs": {
            name: {
                "task": name,
                "description": task["metric"],
                "num_fewshot": 0,
                "metric_list": [{"metric": metrics[name], "higher_is_better": task["better"] == "higher"}],
                "metadata": {"version": task.get("version", 1), **task.get("options", {}), **task.get("protocol", {})},
            }
            for name, task in tasks.items()
        },
        "versions": {name: task.get("version", 1) for name, task in tasks.items()},
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {name: {metrics[name]: task["better"] == "higher"} for name, task in tasks.items()},
        "n-samples": {name: {"original": task["n"], "effective": task["n"]} for name, task in tasks.items()},
        "config": {
            "model": "ttt-moshi",
            "model_args": model_args,
            "batch_size": config.get("batch_size"),
            "limit": most_items(config),
            "bootstrap_iters": RESAMPLES,
            "random_seed": results.seed,
            "model_dtype": config.get("dtype"),
        },
        "git_hash": timing.get("commit"),
        "date": date,
        "task_hashes": {name: results.data[name]["digest"] for name in tasks if name in results.data},
        "model_source": "ttt-moshi",
        "model_name": facts["state_id"],
        "model_name_sanitized": facts["state_id"].replace(":", "__"),
        "total_evaluation_time_seconds": str(timing["seconds"]) if "seconds" in timing else None,
    }


def _lm_eval_values(metric: str, task: Mapping[str, Any]) -> dict[str, float | str]:
    low, high = task["ci95"]
    error = (high - low) / 2 / _DEVIATIONS if task["n"] > 1 else NOT_KNOWN
    return {f"{metric},none": task["value"], f"{metric}_stderr,none": error}
