"""An evaluation, and a comparison of several, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ttt_moshi.evaluation.compare import is_comparable
from ttt_moshi.evaluation.report.headline import headlines
from ttt_moshi.evaluation.report.hour import hour_details
from ttt_moshi.evaluation.report.tables import interval, table
from ttt_moshi.evaluation.results import OK, Results
from ttt_moshi.evaluation.statistics import FEWEST


def run_report(results: Results) -> str:
    """The headlines of one evaluation, with what was skipped and why, then every task in detail."""
    checkpoint = results.checkpoint
    parts = [
        "# Evaluation\n",
        f"Checkpoint state `{checkpoint['state_id']}`, step {checkpoint['step']}, {checkpoint['kind']}.\n",
        "Intervals are 95 % bootstrap intervals over items.\n",
        table(
            ["task", "value (95 % interval)", "chance", "n", "what it means"],
            [list(headline) for headline in headlines(results.tasks)],
        ),
    ]
    for name, task in results.tasks.items():
        if task["status"] == OK:
            parts += [f"## {name}\n", f"{task['metric']}: {interval(task)}.\n", *_details(task)]
    settings = [[key, str(value)] for key, value in results.config.items() if value is not None]
    parts += ["## Settings\n", table(["setting", "value"], [*settings, ["seed", str(results.seed)]])]
    return "\n".join(parts)


def _details(task: dict[str, Any]) -> list[str]:
    parts = []
    if "components" in task:
        rows = [
            [n, f"{c['tokens']}", interval({"value": c["nll"], "ci95": c["ci95"]}), f"{c['ppl']:.3f}"]
            for n, c in task["components"].items()
        ]
        parts.append(table(["tokens", "count", "NLL (nats)", "perplexity"], rows))
        parts.append(f"{task['bits_per_second']:.1f} bits per second over {task['seconds']:.1f} s.\n")
    if "reductions" in task:
        parts.append(f"{task['pairs']} pairs, {task['voices']} voices, chance {task['chance']}.\n")
        parts.append(table(["reduction", "accuracy"], [[n, interval(e)] for n, e in task["reductions"].items()]))
    if published := task.get("reference"):
        points = f"{100 * published['deviation']:+.1f} points"
        parts.append(f"Published for {published['name']}: {published['value']}; deviation {points}.\n")
    if "macro" in task:
        parts.append(f"Unweighted mean over groups: {task['macro']:.4f}.\n")
    if "best_of" in task:
        words = ", ".join(f"best of {k}: {value:.4f}" for k, value in task["best_of"].items())
        parts.append(f"{words}; silent: {task['silent']:.4f}.\n")
        rows = [[n, interval(e), str(e["n"])] for n, e in task["lists"].items()]
        parts.append(table(["list", "value", "questions"], rows))
        if "left_out" in task:
            parts.append("Left out: " + "; ".join(f"{n} ({why})" for n, why in task["left_out"].items()) + ".\n")
    for kind, groups in task.get("groups", {}).items():
        rows = [[n, interval(e), str(e["n"])] for n, e in groups.items()]
        parts.append(table([kind, "accuracy", "items"], rows))
    if "variants" in task:
        parts.append(table(["variant", "accuracy"], [[n, interval(e)] for n, e in task["variants"].items()]))
    for key, label in (("bins", "position (frames)"), ("contexts", "context (frames)"), ("turns", "agent's turn")):
        if task.get(key):
            parts.append(_curve(task[key], label))
    if task.get("speakers"):
        parts.append(_curve([{"label": name, **groups} for name, groups in task["speakers"].items()], "who speaks"))
    if "subsets" in task:
        names = ("take_over", "latency", "backchannels_per_second", "jsd")
        rows = [[n, *(interval(m[x], 3) if x in m else "" for x in names)] for n, m in task["subsets"].items()]
        parts.append(table(["subset", "take-over rate", "latency (s)", "backchannels per second", "JSD"], rows))
    if "overlaps" in task:
        rows = [[kind, *_by_manner(measures)] for kind, measures in task["overlaps"].items()]
        parts.append(table(["overlap", *OVERLAP_COLUMNS.values()], rows))
    if "examined" in task:
        parts += _examined(task)
    if "kinds" in task:
        parts += _turns(task["kinds"])
    if "true" in task:
        parts += _continued(task)
    if "facts" in task:
        parts += hour_details(task)
    elif "minutes" in task:
        parts.append(_minutes(task))
    if "distances" in task:
        rows = [
            [
                str(d["frames"]),
                *(interval(d[k]) if k in d else "" for k in ("heard_minus_unheard", "second_minus_first")),
            ]
            for d in task["distances"]
        ]
        parts.append(table(["distance (frames)", "heard - never heard", "second - first"], rows))
    if "gains" in task:
        parts.append(f"Likelier after its own dialogue: {interval(task['likelier'])} of the answers.\n")
        found = {**task["gains"], **{f"recalls what the {side} said": own for side, own in task["recalled"].items()}}
        parts.append(table(["tokens", "gain (nats)", "n"], [[n, interval(e), str(e["n"])] for n, e in found.items()]))
    for name, control in task.get("controls", {}).items():
        parts.append(f"Control `{name}` ({control['metric']}): {interval(control)}.\n")
    if "beyond_window" in task:
        beyond = task["beyond_window"]
        text = interval(beyond) if beyond["status"] == OK else f"not measured, {beyond['reason']}"
        parts.append(f"Beyond the window minus its second half: {text}.\n")
    if "layers" in task:
        rows = [
            [n, *(f"{curves['mean'][c]:.4f}" for c in ("start", "before", "after"))]
            for n, curves in task["layers"].items()
        ]
        parts.append(table(["layer", "W0", "before the write", "after"], rows))
    return parts


OVERLAP_COLUMNS = {
    "right": "handled right",
    "speaking": "was speaking",
    "stop_latency": "stops after (s)",
    "response_latency": "answers after (s)",
    "words_per_minute_after_before": "words a minute, after - before",
    "words_per_minute_after_clean": "after - without",
    "loudness_after_before": "loudness (dB), after - before",
    "loudness_after_clean": "after - without",
    "rating": "rating",
}


def _by_manner(measures: dict[str, Any]) -> list[str]:
    return [interval(measures[name], 3) if name in measures else "" for name in OVERLAP_COLUMNS]


EXAM_COLUMNS = {
    "answered": "answered",
    "taken": "turn taken",
    "interrupted": "interrupted",
    "latency": "answers after (s)",
    "stop_latency": "stops after (s)",
    "known": "says what is expected",
    "overlap": "overlap (s a minute)",
    "rating": "rating",
}


def _examined(task: dict[str, Any]) -> list[str]:
    """Conversations by pace and family, and the examiner's turns by their number."""
    parts = []
    by_turn = {str(number): own for number, own in enumerate(task["stages"], start=1)}
    for label, groups in (("conversations", task["examined"]), ("examiner's turn", by_turn)):
        names = [name for name in EXAM_COLUMNS if any(name in own for own in groups.values())]
        rows = [[group, *(interval(own[n], 3) if n in own else "" for n in names)] for group, own in groups.items()]
        parts.append(table([label, *(EXAM_COLUMNS[name] for name in names)], rows))
    return parts


def _turns(kinds: dict[str, Any]) -> list[str]:
    """Turn events of the model beside the recorded ones, one table a measure."""
    parts = []
    labels = {"per_minute": "events a minute", "seconds_per_minute": "seconds a minute", "median": "median (s)"}
    for measure, label in labels.items():
        rows = []
        for kind, found in kinds.items():
            cells = found[measure]
            rows.append(
                [kind, *(interval(cells[x], 3) if x in cells else "" for x in ("said", "recorded", "correlation"))]
            )
        parts.append(table([label, "the model", "recorded", "correlation"], rows))
    return parts


def _continued(task: dict[str, Any]) -> list[str]:
    """The likelihood of true continuations, and what was said in their place."""
    rows = [[group, interval(found)] for group, found in task["true"].items()]
    said, labels = task["said"], {"length_ratio": "speech over true", "silence": "silence", "ends": "speaks until"}
    beside = [
        [label, *(interval(said[key], 3) if key in said else "" for key in (name, f"true_{name}"))]
        for name, label in labels.items()
        if name in said
    ]
    return [
        f"At most {task['prompt_frames']} frames are given.\n",
        table(["true continuation", "NLL (nats)"], rows),
        f"{task['collapsed']} of {task['n']} collapse.\n",
        table(["share of time", "said instead", "true"], beside),
    ]


def _curve(points: list[dict[str, Any]], label: str) -> str:
    groups = [g for g in ("text", "semantic", "acoustic") if any(g in p for p in points)]
    rows = [[_place(p), *(interval(p[g]) if g in p else "" for g in groups)] for p in points]
    return table([label, *groups], rows)


def _minutes(task: dict[str, Any]) -> str:
    names = ("pad_share", "tokens_per_minute", "repeated_grams", "entropy")
    rows = [
        [str(p["minute"]), *(interval(p[n], 3) if n in p else "" for n in names), f"{p['degenerate']} of {p['n']}"]
        for p in task["minutes"]
    ]
    return table(["minute", "PAD share", "text tokens", "repeated 4-grams", "entropy (bits)", "degenerate"], rows)


def _place(point: dict[str, Any]) -> str:
    if "label" in point:
        return point["label"]
    return f"{point['start']} - {point['stop']}" if "stop" in point else str(point["frames"])


UNBEATEN = "no other checkpoint is at least as good in every task in which all can be compared, and better in one"


def comparison_report(comparison: dict[str, Any]) -> str:
    """A table of all checkpoints, then the paired differences from the first."""
    labels = [c["label"] for c in comparison["checkpoints"]]
    tasks = comparison["tasks"]
    rows = []
    for i, label in enumerate(labels):
        cells = [_compared(task["values"][i]) for task in tasks.values()]
        rows.append([label + (" ★" if comparison["pareto"][i] else ""), *cells])
    parts = [
        "# Comparison\n",
        *([f"★: {UNBEATEN}.\n"] if any(comparison["pareto"]) else []),
        table(["checkpoint", *tasks], rows),
        f"## Paired differences from {labels[0]}\n",
        "Positive means better than the first; same items, so what they have in common cancels. Of a task that it "
        "lacks, the differences are from the first that has it.\n",
    ]
    found, own = [], []
    for name, task in tasks.items():
        since = f", from {labels[task['reference']]}" if task["reference"] else ""
        found += [(name, (label + since, d)) for label, d in zip(labels[1:], task["against_first"], strict=True)]
        own += [(name, (label, d)) for label, d in zip(labels, task["against_own"], strict=True) if d]
    parts.append(_differences(found))
    if own:
        parts += [
            "## Paired differences from the same checkpoint read as usual\n",
            "Positive means better than with the memory and the streams as they are.\n",
            _differences(own),
        ]
    return "\n".join(parts)


def _compared(value: dict[str, Any]) -> str:
    if value["status"] != OK:
        return "not run"
    return interval(value) + ("" if is_comparable(value) else " (not comparable)")


def _differences(found: Iterable[tuple[str, tuple[str, dict[str, Any]]]]) -> str:
    """A table of (task, (checkpoint, what `compare_task` says))."""
    rows = []
    for name, (label, difference) in found:
        if difference["status"] != OK:
            rows.append([name, label, "not compared", "", "", difference["reason"]])
            continue
        low, high = difference["ci95"]
        p = f"{difference['mcnemar']:.3g}" if "mcnemar" in difference else ""
        note = f"; {difference['note']}" if "note" in difference else ""
        value = f"{difference['difference']:+.4f} ({low:+.4f} – {high:+.4f}){note}"
        few = f"fewer than {FEWEST} items do not tell"
        excludes = "yes" if difference["significant"] else few if difference["n"] < FEWEST else "no"
        rows.append([name, label, value, str(difference["n"]), p, excludes])
    header = ["task", "checkpoint", "difference of score", "items", "McNemar p", "interval excludes 0"]
    if not any(row[4] for row in rows):
        header, rows = [*header[:4], header[5]], [[*row[:4], row[5]] for row in rows]
    return table(header, rows)
