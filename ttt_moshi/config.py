"""Every configuration key in one place, as plain dataclasses.

Keys that moshi-finetune users know keep their names, meanings and defaults. Reading files and command lines
is `ttt_moshi.config_io`; this module knows only what a valid configuration is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Optional, Union, get_args, get_type_hints

from ttt_moshi.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot work. The message names the key and says what to do."""


@dataclass
class DataArgs:
    """Where the recordings are."""

    train_data: str = ""
    """jsonl file with one {"path", "duration"} object per line, or a folder of such files; several separated by commas,
    each optionally followed by `:weight`. Any of them, and any path in them, may be a URL that fsspec opens"""
    eval_data: str = ""
    """the same for evaluation"""
    shuffle: bool = False
    """whether the clips of each epoch are visited in a random order that depends on `seed` and the epoch alone"""
    code_cache_dir: Optional[str] = None
    """folder for cached Mimi codes; null puts it beside the jsonl file (`.mimi_codes`)"""
    remote_cache_dir: Optional[str] = None
    """folder for copies of recordings at URLs; null takes `~/.cache/ttt-moshi`"""
    remote_cache_gb: float = 50.0
    """how much these copies may take, in GB; what was not used for longest goes first"""
    no_whitespace_before_word: bool = False
    """whether words follow one another without spaces, as in Japanese and Chinese; each token is then written when it
    is said"""
    new_text_embeddings: bool = False
    """whether text embeddings and head are made anew, and trained, for the tokenizer of `moshi_paths.tokenizer_path`"""
    train_user_stream: bool = False
    """whether the user's audio is predicted too, by depth steps that begin as copies of Moshi's; needs
    `full_finetuning`"""


@dataclass
class ModelPaths:
    """The base model."""

    hf_repo_id: Optional[str] = "kyutai/moshiko-pytorch-bf16"
    """repository on the Hugging Face hub, or a local folder with the same files"""
    mimi_path: Optional[str] = None
    """local Mimi weights, instead of those of `hf_repo_id`"""
    moshi_path: Optional[str] = None
    """local Moshi weights, instead of those of `hf_repo_id`"""
    tokenizer_path: Optional[str] = None
    """local SentencePiece model, instead of that of `hf_repo_id`"""
    config_path: Optional[str] = None
    """local config.json, instead of that of `hf_repo_id`"""


@dataclass
class LoraArgs:
    """Low-rank adapters on every linear layer of the base model."""

    enable: bool = False
    """whether to train LoRA adapters"""
    rank: int = 64
    """rank of each adapter"""
    scaling: float = 2.0
    """factor on each adapter's output"""
    ft_embed: bool = False
    """whether to train the embedding tables as well"""


@dataclass
class TTTArgs:
    """Test-time-training layers."""

    enable: bool = False
    """whether to add and train TTT layers"""
    layers: str = "middle"
    """transformer layers that receive one: all, middle (the middle half), none, or indices such as "1,5,10" """
    inner: Literal["mlp", "linear", "delta"] = "mlp"
    """the network whose weights are the memory; delta is one matrix a head, written exactly (gated delta rule)"""
    preset: Literal["speech", "paper_lm", "video_causal"] = "speech"
    """named recipe of initialisation, normalisation and step size"""
    base_lr: float = 1.0
    """inner learning rate; in the speech preset the share of its residual that one frame writes"""
    mini_batch_size: int = 16
    """frames per inner gradient step; does not apply to `inner: delta`, which writes every frame exactly"""
    init: Literal["random", "attention"] = "random"
    """projections at the start: random with an output of zero, so that training starts at the base model exactly; or
    those of the layer's attention, so that a finished model's memory knows at once what to look for"""
    initial_gating_alpha: float = 0.1
    """start value of the gates; 0 starts at the base model exactly and needs `ttt.init: attention`: with random ones
    the output is zero too, and two zeros that are multiplied have no gradient"""
    half_life_frames: Union[float, list[float], None] = None
    """frames (12.5 a second) after which half of what was written is forgotten, at least `ttt.mini_batch_size` / 3
    (delta: 1); [shortest, longest] is spread over the heads; null never forgets"""
    forget: Literal["fixed", "learned", "gated"] = "fixed"
    """of `inner: delta`: half-lives as given, learned for every head, or by the frame; the latter two start as given
    and stay below twice the longest"""
    target: Literal["own", "next", "both"] = "own"
    """of `inner: delta`: which frame's value the key of a frame learns to predict: its own frame's, the next one's, or
    each in half of the heads"""
    bidirectional_prefix: bool = True
    """whether given frames (`prefix_sec`) are also read backwards in time"""


@dataclass
class OptimArgs:
    """AdamW and its one-cycle schedule."""

    lr: float = 1e-4
    """peak learning rate"""
    weight_decay: float = 0.1
    """decoupled weight decay on matrices; never on gates, norms, biases and fast weights"""
    pct_start: float = 0.05
    """share of `max_steps` spent warming up"""
    ttt_lr: Optional[float] = None
    """peak learning rate of the TTT projections; null takes `lr`"""
    fast_weight_lr: Optional[float] = None
    """peak learning rate of the fast weights' initial values; null takes `ttt_lr`"""
    gate_lr: Optional[float] = None
    """peak learning rate of the gates; null takes `ttt_lr`"""


@dataclass
class WandbArgs:
    """Weights & Biases, used when `project` is set."""

    project: Optional[str] = None
    """project to log to; null turns it off"""
    offline: bool = False
    """whether to keep the log on disk"""
    key: Optional[str] = None
    """API key; never written to any file"""
    run_name: Optional[str] = None
    """name of the run; null takes the name of `run_dir`"""


@dataclass
class DistillArgs:
    """A teacher for the memory: the base model with a wider window, TTT layers and LoRA off."""

    context_frames: Optional[int] = None
    """attention window of the teacher in frames (12.5 a second), wider than that of training; null has no teacher"""
    weight: float = 1.0
    """weight in the objective of the divergence from the teacher"""


@dataclass
class LongArgs:
    """Training on recordings longer than a clip, with memory carried from clip to clip."""

    stateful: bool = False
    """whether each batch row walks through one recording in consecutive clips, carrying attention and memory along"""
    backprop_clips: int = 1
    """consecutive clips of one optimizer step, through which gradients flow; needs `train.stateful` beyond 1"""
    context_frames: Optional[int] = None
    """attention window in frames (12.5 a second), during training and in the checkpoint; null keeps the base model's"""
    clip_schedule: Optional[str] = None
    """clip lengths by step, as "0:10,500:30,2000:100" (from step 500 on, clips of 30 s); null keeps `duration_sec`"""
    random_phase: bool = False
    """whether a recording may begin at any place of an inner mini-batch, as it may in a shared stream"""
    watch_freq: int = 0
    """steps between looks inside the TTT layers (inner losses, drift, write strength, share of the gate); 0 never"""
    distill: DistillArgs = field(default_factory=DistillArgs)
    inherit_memory: float = 0.0
    """share of the steps, the last ones, in which a recording begins with the memory that the one before it left"""


@dataclass
class CheckpointArgs:
    """Resuming and starting from checkpoints."""

    resume: Union[bool, Literal["auto"]] = False
    """whether to continue the run in `run_dir`; auto continues it where there is a checkpoint, and starts where the
    folder is new or the run in it was ended before its first checkpoint"""
    resume_step: int = -1
    """step to continue from, which is loaded or refused; -1 takes the newest valid checkpoint; needs
    `checkpoint.resume`"""
    accept_changes: list[Literal["data", "seed", "batch"]] = field(default_factory=list)
    """differences from the checkpoint with which a run is resumed all the same, though they make it another: data (what
    the recordings and transcripts hold, how they are cut), seed (the order of clips), batch (clips in a step); needs
    `checkpoint.resume`"""
    tolerate_failed_saves: int = 0
    """so many saves in a row may fail before the run ends"""
    every_minutes: Optional[float] = None
    """minutes between checkpoints, besides those of `ckpt_freq`; null has none"""
    keep_every: Optional[int] = None
    """checkpoints of steps divisible by this are kept for good, besides the newest `num_ckpt_keep`"""
    keep_best: int = 0
    """so many checkpoints with the smallest `checkpoint.keep_metric` are kept as well"""
    keep_metric: str = "loss"
    """metric of `checkpoint.keep_best`, as `checkpoint_summary.py` shows it: loss, eval.COMPONENT, or gates.GATE"""
    mirror: Optional[str] = None
    """fsspec URL (s3://..., or a folder outside of `run_dir`) to which every committed checkpoint is copied in the
    background"""
    init_state_dir: Optional[str] = None
    """checkpoint folder to take weights from, starting at step 0 with a fresh optimizer"""


@dataclass
class PaperMetricsArgs:
    """Benchmarks during training, by the same code that evaluates a checkpoint."""

    enable: bool = False
    """whether to run them, besides the perplexity of `do_eval`"""
    data_root: Optional[str] = None
    """folder of the benchmarks (sLM21-dataset, sSC, tSC, salmon, librilight, needle)"""
    tasks: str = "swuggy,sblimp,ssc,tsc"
    """comma-separated names of tasks, or all"""
    split: Literal["dev", "test"] = "dev"
    """part of sLM21"""
    max_items: Optional[int] = 200
    """at most so many items a task, the same ones every time; null takes all"""
    freq: int = 0
    """steps between runs; 0 runs them at the end only"""
    max_frames: int = 6000
    """frames in one forward pass at most, padding included"""


@dataclass
class EvalArgs:
    """What the model says by itself during training."""

    gates: int = 0
    """so many first users of `data.eval_data` are played to the model, which talks freely, as often as `eval_freq`
    says; 0 plays none"""
    gates_sec: float = 20.0
    """seconds of each that are played"""


@dataclass
class TrainArgs:
    """One training run."""

    run_dir: str
    """folder for checkpoints, metrics and logs"""
    data: DataArgs = field(default_factory=DataArgs)
    moshi_paths: ModelPaths = field(default_factory=ModelPaths)
    ttt: TTTArgs = field(default_factory=TTTArgs)
    lora: LoraArgs = field(default_factory=LoraArgs)
    optim: OptimArgs = field(default_factory=OptimArgs)
    train: LongArgs = field(default_factory=LongArgs)
    checkpoint: CheckpointArgs = field(default_factory=CheckpointArgs)
    wandb: WandbArgs = field(default_factory=WandbArgs)
    paper_metrics: PaperMetricsArgs = field(default_factory=PaperMetricsArgs)
    eval: EvalArgs = field(default_factory=EvalArgs)
    full_finetuning: bool = False
    """whether to train every parameter of the base model"""
    seed: int = 0
    """seed of the order of clips and of every random draw"""
    duration_sec: float = 10.0
    """length of a training clip in seconds"""
    batch_size: int = 1
    """clips per process and micro-batch"""
    num_microbatches: int = 1
    """micro-batches whose gradients are added up before a step"""
    max_steps: int = 100
    """number of optimizer steps"""
    max_norm: float = 1.0
    """largest gradient norm of each parameter group"""
    first_codebook_weight_multiplier: float = 1.0
    """weight of the semantic codebook in the training loss"""
    text_padding_weight: float = 0.5
    """weight of PAD and EPAD frames in the text loss"""
    param_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """dtype of the forward and backward pass; masters and optimizer state are always float32"""
    gradient_checkpointing: bool = True
    """whether to recompute activations in the backward pass, which saves memory"""
    log_freq: int = 1
    """steps between lines on the screen; metrics files always have every step"""
    do_eval: bool = False
    """whether to evaluate during training"""
    eval_freq: int = 0
    """steps between evaluations; 0 evaluates at the end only"""
    stop_on_failed_evaluation: bool = False
    """whether a failed evaluation ends the run, after its checkpoint is saved; otherwise it is said aloud"""
    do_ckpt: bool = True
    """whether to save checkpoints"""
    ckpt_freq: int = 0
    """steps between checkpoints; 0 saves only the last"""
    num_ckpt_keep: Optional[int] = 3
    """newest checkpoints to keep; null keeps all"""
    save_adapters: bool = True
    """whether a checkpoint exports the adapters (LoRA, TTT) alone instead of the whole merged model"""
    overwrite_run_dir: bool = False
    """whether a new run may replace a `run_dir` that holds an earlier one"""
    patience_minutes: float = 30.0
    """minutes that a process waits for the others, in any collective operation, before it takes them for dead"""

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Range:
    """What a number may be: from `low` (exclusive if `above`) to `high`. `meaning` ends the message.

    `high` is beyond what anybody could mean, and below what PyTorch, the operating system or a float cannot take.
    """

    low: float
    high: float
    above: bool = False
    meaning: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is inside. NaN is inside of nothing; whole numbers of any length are compared as such."""
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def text(self) -> str:
        """In words, to follow "must be"."""
        limits = f"greater than {self.low:g}" if self.above else f"at least {self.low:g}"
        return f"{limits} and at most {self.high:g}{self.meaning}"


_DAY = 86_400
_MOST_STEPS, _MOST, _MOST_FRAMES = 10**12, 10**9, 10**9
_COUNT, _SIZE, _WEIGHT = Range(0, _MOST), Range(1, 100_000), Range(0, 1e6)
_FACTOR = Range(0, 1e6, above=True)
_RATE = Range(0, 1000)
_MINUTES = Range(0, 5_256_000, above=True, meaning=" (minutes: ten years)")


def _steps(low: int, meaning: str = " (it counts steps)") -> Range:
    return Range(low, _MOST_STEPS, meaning=meaning)


# Every key that is a number. Where null is allowed, null passes.
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**63 - 1),
    "duration_sec": Range(0, _DAY, above=True, meaning=" (seconds: a day)"),
    "batch_size": _SIZE,
    "num_microbatches": _SIZE,
    "max_steps": _steps(1),
    "max_norm": Range(0, 1e30, above=True),
    "first_codebook_weight_multiplier": _WEIGHT,
    "text_padding_weight": _WEIGHT,
    "log_freq": _steps(1),
    "eval_freq": _steps(0, " (it counts steps; 0 evaluates at the end only)"),
    "ckpt_freq": _steps(0, " (it counts steps; 0 saves only the last)"),
    "num_ckpt_keep": Range(1, _MOST, meaning=" or null (keep all)"),
    "patience_minutes": _MINUTES,
    "data.remote_cache_gb": Range(0, 1e9, above=True),
    "lora.rank": _SIZE,
    "lora.scaling": _FACTOR,
    "ttt.base_lr": _FACTOR,
    "ttt.mini_batch_size": _SIZE,
    "ttt.initial_gating_alpha": Range(-1000, 1000),
    "optim.lr": Range(0, 1e9, above=True),
    "optim.weight_decay": _RATE,
    "optim.pct_start": Range(0, 1, meaning=" (it is a share of max_steps)"),
    "optim.ttt_lr": _RATE,
    "optim.fast_weight_lr": _RATE,
    "optim.gate_lr": _RATE,
    "train.backprop_clips": _SIZE,
    "train.context_frames": Range(2, _MOST_FRAMES, meaning=" or null"),
    "train.watch_freq": _steps(0, " (it counts steps; 0 never looks)"),
    "train.distill.context_frames": Range(2, _MOST_FRAMES, meaning=" or null"),
    "train.distill.weight": _FACTOR,
    "train.inherit_memory": Range(0, 1, meaning=" (it is a share of max_steps)"),
    "checkpoint.resume_step": _steps(-1, " (it is a step, or -1 for the newest valid checkpoint)"),
    "checkpoint.tolerate_failed_saves": _COUNT,
    "checkpoint.every_minutes": _MINUTES,
    "checkpoint.keep_every": _steps(1),
    "checkpoint.keep_best": _COUNT,
    "paper_metrics.max_items": Range(1, _MOST),
    "paper_metrics.freq": _steps(0),
    "paper_metrics.max_frames": Range(1, _MOST_FRAMES),
    "eval.gates": Range(0, _MOST, meaning=" (it counts conversations; 0 holds none)"),
    "eval.gates_sec": Range(1, 3600, meaning=" (seconds: an hour)"),
}


def _shown(value: float) -> str:
    """A number as it was given; of a whole one that nobody would read to its end how long it is."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    return str(value)


def _listed(value: float | list[float]) -> str:
    """One number or several, as they were given."""
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else _shown(value)


def _check_ttt(ttt: TTTArgs) -> None:
    given, delta = ttt.half_life_frames, ttt.inner == "delta"
    if given is not None:
        ends = given if isinstance(given, list) else [given, given]
        least = 1.0 if delta else ttt.mini_batch_size / 3
        what = "1 frame" if delta else f"a third of `ttt.mini_batch_size` ({ttt.mini_batch_size})"
        _require(
            len(ends) == 2 and least <= ends[0] <= ends[1] <= _MOST_FRAMES,
            f"`ttt.half_life_frames` must be a number or [shortest, longest], at least {what} and at most "
            f"{_MOST_FRAMES:g}, or null, got {_listed(given)}",
        )
    _require(delta or ttt.forget == "fixed", f"`ttt.forget: {ttt.forget}` needs `ttt.inner: delta`, it is {ttt.inner}")
    _require(delta or ttt.target == "own", f"`ttt.target: {ttt.target}` needs `ttt.inner: delta`, it is {ttt.inner}")
    _require(
        ttt.forget == "fixed" or given is not None,
        f"`ttt.forget: {ttt.forget}` needs `ttt.half_life_frames` to start from",
    )
    _require(
        not delta or ttt.preset == "speech",
        f"`ttt.inner: delta` is one recipe: `ttt.preset` must be speech, got {ttt.preset}",
    )
    _require(
        not delta or ttt.base_lr <= 1.0,
        f"`ttt.base_lr` is the largest share that a frame writes with `ttt.inner: delta`: at most 1, got {ttt.base_lr}",
    )


def _check_teaching(args: TrainArgs) -> None:
    long, distill = args.train, args.train.distill
    _require(
        distill.context_frames is None or args.ttt.enable,
        "`train.distill` teaches a memory and needs `ttt.enable: true`",
    )
    _require(
        distill.context_frames is None
        or not (args.full_finetuning or (args.lora.enable and args.lora.ft_embed) or args.data.new_text_embeddings),
        "`train.distill` lets the base model teach, so it must not be trained itself: "
        "`full_finetuning: false`, `lora.ft_embed: false` and `data.new_text_embeddings: false`",
    )
    _require(
        distill.context_frames is None or long.context_frames is None or distill.context_frames > long.context_frames,
        f"`train.distill.context_frames` must be wider than `train.context_frames` ({long.context_frames}), "
        f"got {distill.context_frames}",
    )
    _require(
        long.inherit_memory == 0 or (long.stateful and args.ttt.enable),
        "`train.inherit_memory` needs `train.stateful: true` and `ttt.enable: true`: nothing else is carried",
    )
    _require(
        long.inherit_memory == 0 or not long.random_phase,
        "`train.inherit_memory` goes on in the middle of a mini-batch anyway: leave out `train.random_phase`",
    )


def _check_values(section: Any, prefix: str = "") -> None:
    """Refuses null where a key does not allow it, which YAML can say of every key, and text that no path takes."""
    for name, kind in _field_types(type(section)).items():
        key, value = f"{prefix}{name}", getattr(section, name)
        if is_dataclass(kind):
            _check_values(value, f"{key}.")
            continue
        _require(
            value is not None or type(None) in get_args(kind),
            f"`{key}` is empty (null): give it a value, or leave the line out for its default",
        )
        items = value if isinstance(value, list) else [value]
        _require(not isinstance(value, list) or None not in value, f"`{key}` has an empty value (null) in its list")
        for text in items:
            _require(
                not isinstance(text, str) or _is_text(text),
                f"`{key}` has a character in it that no path and no name can have: {text!r}",
            )


def _is_text(text: str) -> bool:
    """Whether a text is free of NUL and of halves of characters. Bytes of a path that are no text pass."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def validate(args: TrainArgs) -> None:
    """Raises `ConfigError` naming the first key whose value cannot work. Touches no file."""
    _check_values(args)
    values = flatten(asdict(args))
    for key, allowed in RANGES.items():
        value = values[key]
        _require(value is None or allowed.holds(value), f"`{key}` must be {allowed.text()}, got {_shown(value)}")
    _check_ttt(args.ttt)
    _require(
        not args.ttt.enable
        or args.ttt.initial_gating_alpha != 0
        or args.ttt.init == "attention"
        or args.checkpoint.init_state_dir is not None,
        "`ttt.initial_gating_alpha: 0` needs `ttt.init: attention`: with random projections, whose output is zero too, "
        "no gradient would ever reach the memory",
    )
    _require(bool(args.run_dir), "`run_dir` is empty: name a folder for this run's checkpoints and logs")
    _require(
        not (args.full_finetuning and args.lora.enable),
        "`full_finetuning: true` trains every weight, so `lora.enable` must be false",
    )
    _require(
        not (args.full_finetuning and args.save_adapters),
        "`full_finetuning: true` changes the base weights, so `save_adapters` must be false",
    )
    _require(
        args.train.stateful or args.train.backprop_clips == 1,
        "`train.backprop_clips` beyond 1 needs `train.stateful: true`: other clips have nothing to do with one another",
    )
    _require(
        args.ttt.inner != "delta" or not args.train.random_phase,
        "`train.random_phase` is about inner mini-batches, which `ttt.inner: delta` does not have: leave it out",
    )
    _require(
        args.train.stateful or not args.train.random_phase,
        "`train.random_phase` needs `train.stateful: true`: clips on their own begin at the start of a mini-batch",
    )
    _check_teaching(args)
    _require(
        args.full_finetuning or not args.data.train_user_stream,
        "`data.train_user_stream: true` adds depth steps to the model, which are trained whole: it needs "
        "`full_finetuning: true`",
    )
    clip_stages(args.train.clip_schedule, args.duration_sec)
    _require(not args.do_eval or bool(args.data.eval_data), "`do_eval: true` needs `data.eval_data`")
    _require(
        not args.eval.gates or bool(args.data.eval_data), "`eval.gates` plays recorded users: name `data.eval_data`"
    )
    _require(
        not (args.eval.gates and args.data.train_user_stream),
        "`eval.gates` lets the model talk, which one that is trained to predict the user (`data.train_user_stream`) "
        "cannot do in training",
    )
    _require(
        not args.paper_metrics.enable or bool(args.paper_metrics.data_root),
        "`paper_metrics.enable: true` needs `paper_metrics.data_root`, the folder of the benchmarks",
    )
    _require(
        not (args.checkpoint.resume is True and args.checkpoint.init_state_dir),
        "`checkpoint.resume: true` continues a run and `checkpoint.init_state_dir` starts one: set one of them, or "
        "`checkpoint.resume: auto`",
    )
    _require(
        not (args.checkpoint.resume and args.overwrite_run_dir),
        "`checkpoint.resume` keeps the run in `run_dir` and `overwrite_run_dir` deletes it: set one of them",
    )


def clip_stages(schedule: str | None, duration_sec: float) -> list[tuple[int, float]]:
    """Stages of the run as (first step, clip length in seconds), from step 0 on, of `train.clip_schedule`.

    Raises:
        ConfigError: it is not `0:SECONDS,STEP:SECONDS,...` with ascending steps and clips of a day at most.
    """
    if schedule is None:
        return [(0, duration_sec)]
    try:
        pairs = [part.split(":") for part in schedule.split(",")]
        stages = [(int(step), float(seconds)) for step, seconds in pairs]
    except ValueError:
        stages = []
    steps = [step for step, _ in stages]
    _require(
        bool(stages)
        and steps[0] == 0
        and steps == sorted(set(steps))
        and steps[-1] <= _MOST_STEPS
        and all(RANGES["duration_sec"].holds(seconds) for _, seconds in stages),
        "`train.clip_schedule` reads `0:SECONDS,STEP:SECONDS,...` with ascending steps and clips of at most "
        f"{_DAY} seconds (a day), got {schedule!r}",
    )
    return stages


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


SECRET_KEYS = ("wandb.key",)


def to_dict(args: TrainArgs) -> dict[str, Any]:
    """The configuration as plain values, without its secrets, ready for JSON or YAML."""
    values = asdict(args)
    for key in SECRET_KEYS:
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = None
    return values


def known_keys(cls: Any = TrainArgs, prefix: str = "") -> list[str]:
    """Dotted names of every key, sections included: `["run_dir", "data", "data.train_data", ...]`."""
    keys = []
    for name, kind in _field_types(cls).items():
        keys.append(prefix + name)
        if is_dataclass(kind):
            keys += known_keys(kind, f"{prefix}{name}.")
    return keys


def key_types(cls: Any = TrainArgs, prefix: str = "") -> dict[str, Any]:
    """The type of every key that holds a value, by dotted name."""
    found: dict[str, Any] = {}
    for name, kind in _field_types(cls).items():
        found |= key_types(kind, f"{prefix}{name}.") if is_dataclass(kind) else {prefix + name: kind}
    return found


def flatten_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys of nested mappings."""
    keys = []
    for name, value in values.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += flatten_keys(value, f"{prefix}{name}.")
    return keys


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted name: `{"optim": {"lr": 1}}` becomes `{"optim.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def sections(cls: Any = TrainArgs, prefix: str = "") -> list[str]:
    """Dotted names of the keys that hold other keys: data, moshi_paths, ttt, ..., train, train.distill, ..."""
    found = []
    for name, kind in _field_types(cls).items():
        if is_dataclass(kind):
            found += [prefix + name, *sections(kind, f"{prefix}{name}.")]
    return found


def _field_types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}
