"""The parts of an hour, as Markdown tables."""

from __future__ import annotations

from typing import Any

from ttt_moshi.evaluation.report.tables import interval, table

CURVES = {
    "nll_under_base": "NLL under the base",
    "pad_share": "PAD share",
    "silence": "silence",
    "words_per_minute": "words",
    "repeated_grams": "repeated 4-grams",
    "entropy": "entropy (bits)",
    "overlap": "overlap (s)",
    "gap": "gap (s)",
    "dnsmos_overall": "DNSMOS",
    "dnsmos_signal": "DNSMOS, speech",
    "dnsmos_background": "DNSMOS, background",
}


def hour_details(task: dict[str, Any]) -> list[str]:
    """Planted facts, distant context, remembrance and the free-running curves of an entry of `hour`."""
    parts = [
        "Planted facts: log-odds in nats, and in brackets the share of the ceiling `wide`.\n",
        _facts(task["facts"]),
    ]
    zero = ", ".join(f"{name} {value:g}" for name, value in task["controls_largest"].items())
    parts.append(f"Must be exactly 0, and at most was: {zero}.\n")
    context = task["context"]
    rows = [
        [name, f"{one['nll']:.4f}", interval(one), _share(context, name)]
        if one["status"] == "ok"
        else [name, "not run", one["reason"], ""]
        for name, one in context["baselines"].items()
    ]
    parts.append(
        f"The last {context['target_frames']} frames of each stream, window {context['window']}, wide "
        f"{context['wide']} frames{_beyond(context)}:\n"
    )
    parts.append(table(["read with", "NLL (nats)", "gain over the window", "share of the ceiling"], rows))
    remembered = task["remembrance"]["baselines"]
    header = ["changed so many frames ago", *remembered]
    first = next(iter(remembered.values()))["points"]
    rows = [
        [str(point["frames"]), *(interval(curve["points"][i]) for curve in remembered.values())]
        for i, point in enumerate(first)
    ]
    rows.append(["remembered as far as", *(str(curve["farthest"]) for curve in remembered.values())])
    parts.append(
        f"Mean change of predictions in nats; attention alone reaches {task['remembrance']['reach']} frames:\n"
    )
    parts.append(table(header, rows))
    talk = task["free_running"]
    if talk["status"] != "ok":
        return [*parts, f"Talking was not measured: {talk['reason']}.\n"]
    parts.append(
        f"{talk['collapsed']} of {talk['conversations']} conversations collapse"
        + (f", in minute {', '.join(map(str, talk['collapse_minutes']))}" if talk["collapsed"] else "")
        + ". The recordings are in `conversations/hour/`.\n"
    )
    names = [name for name in CURVES if any(name in point for point in talk["minutes"])]
    rows = [
        [str(p["minute"]), *(interval(p[n], 3) if n in p else "" for n in names), f"{p['degenerate']} of {p['n']}"]
        for p in talk["minutes"]
    ]
    parts.append(table(["minute", *(CURVES[name] for name in names), "degenerate"], rows))
    for name, label in (("nll_under_base", CURVES["nll_under_base"]), ("dnsmos", "DNSMOS")):
        if name in talk:
            parts.append(f"{label} was not measured: {talk[name]['reason']}.\n")
    return parts


def _facts(points: list[dict[str, Any]]) -> str:
    names = list(points[0]["baselines"])
    rows = []
    for point in points:
        cells = []
        for name in names:
            one = point["baselines"][name]
            cells.append(f"{interval(one, 3)}{_in_brackets(point, name)}" if one["status"] == "ok" else "not run")
        own = "" if point["window_is_own"] else " (narrowed, to be exact)"
        rows.append([f"{point['minutes']:g}", point["channel"], f"{point['window']}{own}", *cells])
    return table(["minutes ago", "said by", "window (frames)", *names], rows)


def _in_brackets(point: dict[str, Any], name: str) -> str:
    share = _share(point, name)
    return f" [{share}]" if share else ""


def _share(point: dict[str, Any], name: str) -> str:
    shares = point["share_of_ceiling"]
    return f"{100 * shares[name]:.0f} %" if shares and name in shares else ""


def _beyond(context: dict[str, Any]) -> str:
    return "" if context["wide_is_own"] else ", wider than the model's own, which it was never trained with"
