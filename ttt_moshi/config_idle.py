"""Keys of a configuration that decide nothing, since something else in it is off: they are said, not refused.

A configuration may well name what is switched on later, so nobody is stopped; but a value that somebody chose and that
has no effect should not pass in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ttt_moshi.config import TrainArgs, flatten, known_keys

Values = Mapping[str, Any]
"""of every key, by dotted name"""


@dataclass(frozen=True)
class Switch:
    """What leaves some keys without effect.

    Args:
        off: whether it does, by the values of all keys.
        told: why, in words, to follow "since".
        keys: which.
    """

    off: Callable[[Values], bool]
    told: str
    keys: tuple[str, ...]


def _without_ttt(values: Values) -> bool:
    return not values["ttt.enable"]


def _without_layers(values: Values) -> bool:
    return values["ttt.layers"].strip().lower() == "none"


def _evaluates(values: Values) -> bool:
    return values["do_eval"] or values["eval.gates"] > 0


def _below(section: str) -> tuple[str, ...]:
    return tuple(key for key in known_keys() if key.startswith(f"{section}."))


_OF_TTT = (*_below("ttt"), "optim.ttt_lr", "optim.fast_weight_lr", "optim.gate_lr", "train.watch_freq")
_OF_CHECKPOINTS = ("every_minutes", "tolerate_failed_saves", "keep_every", "keep_best", "keep_metric", "mirror")

SWITCHES = (
    Switch(_without_ttt, "`ttt.enable` is false", tuple(key for key in _OF_TTT if key != "ttt.enable")),
    Switch(
        lambda values: values["ttt.enable"] and _without_layers(values),
        "`ttt.layers` is none",
        tuple(key for key in _OF_TTT if key not in ("ttt.enable", "ttt.layers")),
    ),
    Switch(
        lambda values: values["ttt.inner"] == "delta",
        "`ttt.inner` is delta, which writes every frame exactly",
        ("ttt.mini_batch_size",),
    ),
    Switch(
        lambda values: not values["lora.enable"],
        "`lora.enable` is false",
        tuple(key for key in _below("lora") if key != "lora.enable"),
    ),
    Switch(
        # Whatever is trained has a rate of its own then.
        lambda values: (
            values["ttt.enable"]
            and values["optim.ttt_lr"] is not None
            and not (values["lora.enable"] or values["full_finetuning"] or values["data.new_text_embeddings"])
        ),
        "nothing but TTT layers is trained, at `optim.ttt_lr`",
        ("optim.lr",),
    ),
    Switch(
        lambda values: values["train.distill.context_frames"] is None,
        "`train.distill.context_frames` is null",
        ("train.distill.weight",),
    ),
    Switch(
        lambda values: values["wandb.project"] is None,
        "`wandb.project` is null",
        tuple(key for key in _below("wandb") if key != "wandb.project"),
    ),
    Switch(
        # `ttt-moshi eval --config` reads the other keys of benchmarks, and `data.eval_data`, from the same file.
        lambda values: not values["paper_metrics.enable"],
        "`paper_metrics.enable` is false",
        ("paper_metrics.freq",),
    ),
    Switch(lambda values: not values["eval.gates"], "`eval.gates` is 0", ("eval.gates_sec",)),
    Switch(lambda values: not _evaluates(values), "`do_eval` is false and `eval.gates` is 0", ("eval_freq",)),
    Switch(
        lambda values: not _evaluates(values) and not values["paper_metrics.enable"],
        "nothing is evaluated",
        ("stop_on_failed_evaluation",),
    ),
    Switch(
        lambda values: not values["do_ckpt"],
        "`do_ckpt` is false",
        ("ckpt_freq", "num_ckpt_keep", *(f"checkpoint.{key}" for key in _OF_CHECKPOINTS)),
    ),
    Switch(
        # With it the key has to be false.
        lambda values: not values["do_ckpt"] and not values["full_finetuning"],
        "`do_ckpt` is false",
        ("save_adapters",),
    ),
    Switch(
        lambda values: values["num_ckpt_keep"] is None,
        "`num_ckpt_keep` is null, which keeps all",
        ("checkpoint.keep_every", "checkpoint.keep_best", "checkpoint.keep_metric"),
    ),
    Switch(
        lambda values: not values["checkpoint.keep_best"],
        "`checkpoint.keep_best` is 0",
        ("checkpoint.keep_metric",),
    ),
    Switch(
        lambda values: all(
            values[f"moshi_paths.{key}"] and not values[f"moshi_paths.{key}"].startswith("hf://")
            for key in ("moshi_path", "mimi_path", "tokenizer_path", "config_path")
        ),
        "the other keys of `moshi_paths` name every file",
        ("moshi_paths.hf_repo_id",),
    ),
)


def idle_keys(values: Values) -> dict[str, str]:
    """Which keys have no effect whatever their values, and why, in words."""
    found: dict[str, str] = {}
    for switch in SWITCHES:
        if switch.off(values):
            for key in switch.keys:
                found.setdefault(key, switch.told)  # one reason is enough
    return found


def told_idle(args: TrainArgs) -> list[str]:
    """For people: which values that are no defaults have no effect, and why; a line for each reason."""
    values, usual = flatten(asdict(args)), flatten(asdict(TrainArgs(run_dir="-")))
    reasons: dict[str, list[str]] = {}
    for key, told in idle_keys(values).items():
        if values[key] != usual[key]:
            reasons.setdefault(told, []).append(f"`{key}`")
    return [
        f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no effect, since {told}"
        for told, keys in reasons.items()
    ]
