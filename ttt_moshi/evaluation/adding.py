"""Evaluations of one checkpoint with the same options add up in one folder; others replace them only when asked to.

What was measured there stays beside what is measured now. A number is replaced by an equal one alone: one of the same
checkpoint, options, software and data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.results import Results, read_results
from ttt_moshi.evaluation.tasks.registry import ON_RECORDINGS, tasks_by_option

WAY_OUT = "name another --out, or replace what is there with --overwrite"
_CHOOSES_TASKS = "eval_type"
"""the only recorded option that changes no number"""


def added_to(out: Path, new: Results, names: Sequence[str]) -> Results | None:
    """The evaluation in `out`, where it has a number: one that `new` can add to. None where it has none.

    Args:
        new: also before anything is measured: its checkpoint, options, seed and software are looked at.
        names: the tasks that it measures.

    Raises:
        EvaluationError: it is one of another checkpoint, other options, another seed or other software, or no
            evaluation at all.
    """
    path = out / "results.json"
    if not path.exists():
        return None
    try:
        there = read_results(path)
    except EvaluationError as error:
        raise EvaluationError(f"{error}: {WAY_OUT}") from None
    if not there.measured:
        return None
    apart = _apart(there, new, names)
    if apart:
        raise EvaluationError(
            f"{path} has results of another evaluation ({', '.join(there.measured)}), which differs in "
            f"{', '.join(apart)}: {WAY_OUT}"
        )
    return there


def has_numbers(out: Path) -> bool:
    """Whether there is an evaluation in `out` that has measured something."""
    try:
        return bool(read_results(out / "results.json").measured)
    except EvaluationError:
        return False


def added(there: Results, new: Results) -> Results:
    """Both in one: the tasks of `new` in the places of those that are there, except that one which could not run now
    keeps its number.

    Args:
        there: what `added_to` has found for `new`.

    Raises:
        EvaluationError: a number that would be replaced by one of other data or another protocol.
    """
    again = [name for name in new.measured if name in there.measured]
    apart = [name for name in again if _quantity(name, there) != _quantity(name, new)]
    if apart:
        raise EvaluationError(f"{', '.join(apart)}: measured there on other data, or by another protocol: {WAY_OUT}")
    rated = [name for name in again if there.tasks[name].get("ratings") not in (None, new.tasks[name].get("ratings"))]
    if rated:
        raise EvaluationError(f"{', '.join(rated)}: the same answers were rated otherwise there: {WAY_OUT}")
    if there.data.get("codec") != new.data.get("codec"):
        raise EvaluationError(f"the codes there are those of another codec: {WAY_OUT}")
    found = {name: task for name, task in new.tasks.items() if name in new.measured or name not in there.measured}
    codec = {"codec": new.data["codec"]} if "codec" in new.data else {}
    config = {
        key: value if _acts(key, list(new.tasks)) or key not in there.config else there.config[key]
        for key, value in new.config.items()
    }
    data = {key: value for key, value in {**there.data, **new.data}.items() if key != "codec"} | codec
    return Results(new.checkpoint, {**there.tasks, **found}, config, data, new.seed, new.versions)


def _apart(there: Results, new: Results, names: Sequence[str]) -> list[str]:
    """In words, what keeps the two from being one evaluation."""
    found = []
    if there.checkpoint["state_id"] != new.checkpoint["state_id"]:
        states = [results.checkpoint["state_id"][:16] for results in (there, new)]
        found.append("the checkpoint (state {} there, {} here)".format(*states))
    # What only one of the two knows, or acts on tasks of one alone, is no difference.
    common = [
        key
        for key in there.config
        if key in new.config and key != _CHOOSES_TASKS and _acts(key, there.measured) and _acts(key, names)
    ]
    pairs = {key: (there.config[key], new.config[key]) for key in common}
    pairs["seed"] = (there.seed, new.seed)
    pairs |= {key: (there.versions[key], new.versions[key]) for key in there.versions if key in new.versions}
    for key, (one, other) in pairs.items():
        # Ratings are added to conversations that nobody had judged.
        if one != other and not (key == "judge" and one is None):
            words = ["none" if value is None else value for value in (one, other)]
            found.append("`{}` ({} there, {} here)".format(key, *words))
    return found


def _acts(option: str, names: Sequence[str]) -> bool:
    """Whether a recorded option acts on one of these tasks."""
    if option == "paper_metrics_max_items":
        return bool(set(names) - set(ON_RECORDINGS))
    known = tasks_by_option()
    return option not in known or bool(set(known[option]) & set(names))


def _quantity(name: str, results: Results) -> tuple[Any, ...]:
    """What has to be equal for two values of a task to be one number."""
    task = results.tasks[name]
    digest = results.data.get(name, {}).get("digest")
    return digest, task.get("version", 1), task.get("protocol"), task.get("options")
