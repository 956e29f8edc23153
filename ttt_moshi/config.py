"""Every configuration key in one place, as plain dataclasses.

Keys that moshi-finetune users know keep their names, meanings and defaults. Reading files and command lines
is `ttt_moshi.config_io`; this module knows only what a valid configuration is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Optional, Union, get_type_hints

from ttt_moshi.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot work. The message names the key and says what to do."""


@dataclass
class DataArgs:
    """Where the recordings are."""

    train_data: str = ""
    """jsonl file with one {"path", "duration"} object per line, or a folder of such files; several separated by commas,
    each optionally followed by `:weight`"""
    eval_data: str = ""
    """the same for evaluation"""
    shuffle: bool = False
    """whether the clips of each epoch are visited in a random order that depends on `seed` and the epoch alone"""
    code_cache_dir: Optional[str] = None
    """folder for cached Mimi codes; null puts it beside the jsonl file (`.mimi_codes`)"""


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
    initial_gating_alpha: float = 0.1
    """start value of the gates; 0 also starts at the base model exactly"""
    half_life_frames: Union[float, list[float], None] = None
    """frames (12.5 a second) after which half of what was written is forgotten, at least `ttt.mini_batch_size` / 3
    (delta: 1); [shortest, longest] is spread over the heads; null never forgets"""
    forget: Literal["fixed", "learned", "gated"] = "fixed"
    """of `inner: delta`: half-lives as given, learned for every head, or by the frame; the latter two start as given
    and stay below twice the longest"""
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


@dataclass
class CheckpointArgs:
    """Resuming and starting from checkpoints."""

    resume: bool = False
    """whether to continue the run in `run_dir`"""
    resume_step: int = -1
    """step to continue from; -1 takes the newest valid checkpoint"""
    every_minutes: Optional[float] = None
    """minutes between checkpoints, besides those of `ckpt_freq`; null has none"""
    keep_every: Optional[int] = None
    """checkpoints of steps divisible by this are kept for good, besides the newest `num_ckpt_keep`"""
    keep_best: int = 0
    """so many checkpoints with the smallest `checkpoint.keep_metric` are kept as well"""
    keep_metric: str = "loss"
    """metric of `checkpoint.keep_best`, as `checkpoint_summary.py` shows it: loss, or eval.COMPONENT"""
    mirror: Optional[str] = None
    """fsspec URL (s3://..., or a folder) to which every committed checkpoint is copied in the background"""
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

    def __post_init__(self) -> None:
        validate(self)


def _check_ttt(ttt: TTTArgs) -> None:
    given, delta = ttt.half_life_frames, ttt.inner == "delta"
    if given is not None:
        ends = given if isinstance(given, list) else [given, given]
        least = 1.0 if delta else ttt.mini_batch_size / 3
        what = "1 frame" if delta else f"a third of `ttt.mini_batch_size` ({ttt.mini_batch_size})"
        _require(
            len(ends) == 2 and least <= ends[0] <= ends[1] < math.inf,
            f"`ttt.half_life_frames` must be a number or [shortest, longest], at least {what}, or null, got {given}",
        )
    _require(delta or ttt.forget == "fixed", f"`ttt.forget: {ttt.forget}` needs `ttt.inner: delta`, it is {ttt.inner}")
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


def validate(args: TrainArgs) -> None:
    """Raises `ConfigError` naming the first key whose value cannot work. Touches no file."""
    positive = {
        "duration_sec": args.duration_sec,
        "batch_size": args.batch_size,
        "num_microbatches": args.num_microbatches,
        "max_steps": args.max_steps,
        "max_norm": args.max_norm,
        "log_freq": args.log_freq,
        "optim.lr": args.optim.lr,
        "lora.rank": args.lora.rank,
        "lora.scaling": args.lora.scaling,
        "ttt.mini_batch_size": args.ttt.mini_batch_size,
        "ttt.base_lr": args.ttt.base_lr,
        "checkpoint.every_minutes": args.checkpoint.every_minutes or 1,
        "checkpoint.keep_every": args.checkpoint.keep_every or 1,
        "train.backprop_clips": args.train.backprop_clips,
    }
    for key, value in positive.items():
        _require(value > 0, f"`{key}` must be greater than 0, got {value}")
    _check_ttt(args.ttt)
    _require(bool(args.run_dir), "`run_dir` is empty: name a folder for this run's checkpoints and logs")
    _require(
        0.0 <= args.optim.pct_start <= 1.0,
        f"`optim.pct_start` is a share of max_steps in [0, 1], got {args.optim.pct_start}",
    )
    _require(args.ckpt_freq >= 0, f"`ckpt_freq` counts steps, got {args.ckpt_freq}; 0 saves only the last")
    _require(args.eval_freq >= 0, f"`eval_freq` counts steps, got {args.eval_freq}; 0 evaluates at the end only")
    _require(
        args.num_ckpt_keep is None or args.num_ckpt_keep >= 1,
        f"`num_ckpt_keep` must be at least 1 or null (keep all), got {args.num_ckpt_keep}",
    )
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
    _require(args.train.watch_freq >= 0, f"`train.watch_freq` counts steps, got {args.train.watch_freq}; 0 never looks")
    _require(
        args.train.context_frames is None or args.train.context_frames >= 2,
        f"`train.context_frames` must be at least 2 or null, got {args.train.context_frames}",
    )
    clip_stages(args)
    _require(not args.do_eval or bool(args.data.eval_data), "`do_eval: true` needs `data.eval_data`")
    _require(
        not args.paper_metrics.enable or bool(args.paper_metrics.data_root),
        "`paper_metrics.enable: true` needs `paper_metrics.data_root`, the folder of the benchmarks",
    )
    _require(args.paper_metrics.freq >= 0, f"`paper_metrics.freq` counts steps, got {args.paper_metrics.freq}")
    _require(
        not (args.checkpoint.resume and args.checkpoint.init_state_dir),
        "`checkpoint.resume` continues a run and `checkpoint.init_state_dir` starts one: set one of them",
    )
    _require(
        not (args.checkpoint.resume and args.overwrite_run_dir),
        "`checkpoint.resume` keeps the run in `run_dir` and `overwrite_run_dir` deletes it: set one of them",
    )
    _require(
        args.checkpoint.resume_step >= -1,
        f"`checkpoint.resume_step` is a step, or -1 for the newest valid one, got {args.checkpoint.resume_step}",
    )


def clip_stages(args: TrainArgs) -> list[tuple[int, float]]:
    """Stages of the run as (first step, clip length in seconds), from step 0 on.

    Raises:
        ConfigError: `train.clip_schedule` is not `0:SECONDS,STEP:SECONDS,...` with ascending steps.
    """
    if args.train.clip_schedule is None:
        return [(0, args.duration_sec)]
    try:
        pairs = [part.split(":") for part in args.train.clip_schedule.split(",")]
        stages = [(int(step), float(seconds)) for step, seconds in pairs]
    except ValueError:
        stages = []
    steps = [step for step, _ in stages]
    _require(
        bool(stages) and steps[0] == 0 and steps == sorted(set(steps)) and all(seconds > 0 for _, seconds in stages),
        "`train.clip_schedule` reads `0:SECONDS,STEP:SECONDS,...` with ascending steps, "
        f"got {args.train.clip_schedule!r}",
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


def flatten_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys of nested mappings."""
    keys = []
    for name, value in values.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += flatten_keys(value, f"{prefix}{name}.")
    return keys


def _field_types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}
