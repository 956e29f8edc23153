"""One checkpoint, explained to a person."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ttt_moshi.checkpoint import describe, read_manifest, step_of
from ttt_moshi.cli.checkpoint_facts import gate_openings, size_text, trained_counts
from ttt_moshi.config import OptimArgs
from ttt_moshi.schedule import one_cycle, peak_learning_rates

TRAINING_CONFIG = "consolidated/training_config.json"
TTT = "consolidated/ttt.json"
BASE_MODEL = "consolidated/base_model.json"


def explain(path: Path) -> dict[str, Any]:
    """`describe`, with what only the whole program knows: TTT tensors, gates, learning rates, uses."""
    seen, manifest = describe(path), read_manifest(path)
    config = seen["documents"].get(TRAINING_CONFIG)
    return {
        **seen,
        "trained": trained_counts(manifest),
        "gates": gate_openings(path, manifest),
        "learning_rates": learning_rates(seen["step"], config) if config else None,
        "uses": uses(path, seen),
    }


def learning_rates(step: int, config: dict[str, Any]) -> dict[str, Any]:
    """Peak of each role, and the share of it that the next step takes (None: the run is at its end)."""
    known = {field.name for field in fields(OptimArgs)}
    optim = OptimArgs(**{key: value for key, value in config["optim"].items() if key in known})
    share = one_cycle(step, config["max_steps"], optim.pct_start) if step < config["max_steps"] else None
    return {"peak": peak_learning_rates(optim), "share_at_next_step": share}


def uses(path: Path, seen: dict[str, Any]) -> list[str]:
    """What the checkpoint is good for, a line each."""
    if not seen["health"]["finite"]:
        names = seen["health"]["nonfinite"]
        return [f"looking at: {len(names)} tensors hold NaN or infinity ({names[0]}, ...), nothing resumes from it"]
    if step_of(path.absolute().name) is None:
        return [f"looking at: {path.name} is not the name of a committed checkpoint, nothing resumes from it"]
    ranks = "1 process" if seen["world_size"] == 1 else f"{seen['world_size']} processes"
    lines = [
        f"continuing its run, bit for bit on {ranks}: --checkpoint.resume true --checkpoint.resume_step {seen['step']}",
        f"starting another run from its weights: --checkpoint.init_state_dir {path}",
    ]
    if seen["exports"]:
        needs = " (the base model is needed beside it)" if seen["kind"] == "adapters" else ""
        lines.append(f"evaluating{needs}: python eval_from_checkpoint.py --checkpoint_dir {path}")
        ours = TTT in seen["documents"]
        lines.append(
            f"loading in Python: ttt_moshi.moshi.load_trained({str(path)!r})"
            if ours
            else "loading in the official moshi loaders and server: it has no TTT layers"
        )
    return lines


def show(seen: dict[str, Any], console: Console) -> None:
    """Prints what `explain` found."""
    console.print(seen["path"], style="bold", soft_wrap=True)
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(seen):
        table.add_row(name, text)
    console.print(table)
    console.print("It can be used for", style="bold")
    for line in seen["uses"]:
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _rows(seen: dict[str, Any]) -> list[tuple[str, str]]:
    info, config, documents = seen["info"], seen["documents"].get(TRAINING_CONFIG), seen["documents"]
    parent = f", saved after step {seen['parent']['step']}" if seen["parent"] else ""
    rows = [
        ("step", f"{seen['step']}" + (f" of {config['max_steps']}" if config else "") + parent),
        ("saved", _saved(info)),
        ("state id", seen["state_id"]),
        ("kind", _kind(seen)),
    ]
    if BASE_MODEL in documents and "files" in documents[BASE_MODEL]:
        base = documents[BASE_MODEL]
        where = base["moshi_paths"]["moshi_path"] or base["moshi_paths"]["hf_repo_id"]
        rows.append(("base model", f"{where}, BLAKE3 {base['files']['moshi']['blake3'][:16]}…"))
    rows += [("trained " + group, _count(count)) for group, count in seen["trained"].items() if count["tensors"]]
    rows += [("exported", f"{file}: {_count(count)}") for file, count in seen["exports"].items()]
    if TTT in documents:
        ttt = documents[TTT]
        layers = ", ".join(map(str, ttt["layers"]))
        writes = "every frame written" if ttt["inner"] == "delta" else f"{ttt['mini_batch_size']} frames a write"
        what = f"{layers}; inner {ttt['inner']}, {writes}, base_lr {ttt['base_lr']}"
        half_life = ttt.get("half_life_frames")  # absent in older checkpoints, whose memory does not fade
        if half_life is not None:
            lives = half_life if isinstance(half_life, list) else [half_life]
            what += f", half-life {' to '.join(f'{life:g}' for life in lives)} frames"
        if ttt.get("forget", "fixed") != "fixed":
            what += f", {ttt['forget']}"
        rows.append(("TTT layers", what))
    if seen["gates"]:
        rows.append(("gates |tanh α|", "; ".join(_gate(*item) for item in seen["gates"].items())))
    if seen["learning_rates"]:
        rows.append(("learning rates", _learning_rates(seen)))
    state = seen["state"]
    if "clips" in state:
        rows.append(("data position", f"{state['clips']} clips heard; next is number {state['cursor']} of its order"))
    if config:
        rows.append(("config", _config(config)))
    metrics = {name: value for name, value in seen["metrics"].items() if value is not None}
    if metrics:
        rows.append(("metrics", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())))
    rows.append(("size", _sizes(seen)))
    rows.append(("written by", ", ".join(f"{name} {number}" for name, number in seen["versions"].items())))
    return rows


def _saved(info: dict[str, Any]) -> str:
    words = [info.get("saved_at", "at a time that it does not say")]
    if "host" in info:
        words.append(f"on {info['host']}")
    if "elapsed_seconds" in info:
        words.append(f"after {info['elapsed_seconds']:.0f} s of training")
    if info.get("git"):
        words.append(f"by code {info['git']}")
    return " ".join(words)


def _kind(seen: dict[str, Any]) -> str:
    if seen["kind"] == "full":
        return "full: the whole model is in it"
    return "adapters: only what was trained is in it"


def _count(count: dict[str, int]) -> str:
    return f"{count['tensors']} tensors, {count['elements']:,} elements"


def _gate(layer: str, openings: dict[str, float]) -> str:
    prefix = f" (prefix {openings['backward']:.4f})" if "backward" in openings else ""
    return f"layer {layer}: {openings['forward']:.4f}{prefix}"


def _learning_rates(seen: dict[str, Any]) -> str:
    rates = seen["learning_rates"]
    trained = {group for group, count in seen["trained"].items() if count["tensors"]}
    roles = trained | ({"fast_weight", "gate"} if "ttt" in trained else set())
    share = rates["share_at_next_step"]
    peaks = ", ".join(f"{role} {rate:.3g}" for role, rate in rates["peak"].items() if role in roles)
    return f"peak {peaks}; " + ("the run is at its end" if share is None else f"the next step takes {share:.4f} of it")


def _config(config: dict[str, Any]) -> str:
    keys = ("seed", "duration_sec", "batch_size", "num_microbatches", "param_dtype")
    words = [f"{key} {config[key]}" for key in keys]
    if config["lora"]["enable"]:
        words.append(f"LoRA rank {config['lora']['rank']}")
    if config["full_finetuning"]:
        words.append("full fine-tuning")
    return ", ".join([*words, f"data {config['data']['train_data']}"])


def _sizes(seen: dict[str, Any]) -> str:
    parts = {"to resume": 0, "exported": 0}
    for name, size in seen["files"].items():
        parts["to resume" if name.startswith("resume/") else "exported"] += size
    details = ", ".join(f"{size_text(size)} {what}" for what, size in parts.items())
    return f"{size_text(seen['bytes'])} in {len(seen['files'])} files: {details}"
