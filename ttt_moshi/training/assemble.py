"""Puts together what a run works with: model, optimizer and data. Reads files, changes none but the code cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from blake3 import blake3
from moshi.models.loaders import CheckpointInfo
from torch import Tensor
from torch.distributed.tensor import DTensor

from ttt_moshi.checkpoint import Export
from ttt_moshi.config import ConfigError, TrainArgs, clip_stages
from ttt_moshi.data import Alphabet, ClipLoader, Codec, Corpus, EvalSet, StreamLoader, TextStyle, names_audio
from ttt_moshi.data.digests import Digests, cache_folder
from ttt_moshi.data.remote import use_cache
from ttt_moshi.errors import UserError
from ttt_moshi.frames import frames_to_seconds
from ttt_moshi.moshi import (
    TTTMoshi,
    audio_codec,
    base_with_window,
    build_model,
    count_tensors,
    decays,
    describe_base,
    export_documents,
    export_file_name,
    export_plan,
    parameter_role,
    resolve_model,
    set_context,
    shard,
    text_tokenizer,
    writing_delay,
)
from ttt_moshi.moshi.export import Kind
from ttt_moshi.moshi.loading import geometry
from ttt_moshi.moshi.remade import base_to_train
from ttt_moshi.training.distill import Teacher
from ttt_moshi.training.distributed import Turns, World
from ttt_moshi.training.feed import CarriedClips, Feed, IndependentClips, Layout, Stage
from ttt_moshi.training.initial import start_from
from ttt_moshi.training.optimizer import build_optimizer
from ttt_moshi.ttt import TTTLayer

ENCODING_REPORT_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a run works with.

    Args:
        model: sharded, in training mode as built.
        optimizer: AdamW with its moments present.
        stages: training clips, stage by stage.
        layout: which of them this rank reads.
        feed: how they are put to the model, with whatever is carried between steps.
        teacher: of `train.distill`, or None.
        eval_set: evaluation clips, or None.
        codec: makes codes of audio; None if all recordings are pre-tokenized.
        info: the base model's files.
        documents: JSON files of every checkpoint, by path inside of it.
        exports: makes the export table of `CheckpointStore.save`.
    """

    model: TTTMoshi
    optimizer: torch.optim.AdamW
    stages: list[Stage]
    layout: Layout
    feed: Feed
    teacher: Teacher | None
    eval_set: EvalSet | None
    codec: Codec | None
    info: CheckpointInfo
    documents: dict[str, dict[str, Any]]
    exports: Callable[[], dict[str, dict[str, Export]]]

    @property
    def data_fingerprint(self) -> str:
        """Identity of the clips of all stages."""
        return blake3(" ".join(f"{s.first_step} {s.loader.fingerprint}" for s in self.stages).encode()).hexdigest()

    def ttt_layers(self) -> dict[str, TTTLayer]:
        """The TTT layers by name."""
        layers = {f"layer_{i}": self.model.transformer.layers[i].ttt for i in self.model.ttt_layers}
        return cast(dict[str, TTTLayer], layers)

    @property
    def carried_rows(self) -> list[int] | None:
        """Micro-batches, and rows of each over all ranks, if recordings are carried between steps; else None."""
        if isinstance(self.feed, IndependentClips):
            return None
        return [self.layout.micro_batches, self.layout.world_size * self.layout.batch_size]


def assemble(args: TrainArgs, world: World) -> Parts:
    """Reads the base model and the data sets and refuses what cannot work. All ranks call it.

    Raises:
        UserError: a base model, data set or starting checkpoint that cannot be used.
        ConfigError: nothing would be trained.
    """
    data = world.together(lambda: _open_data(args, world.device))
    # Codes belong to whole recordings, so one pass serves every clip length.
    for number, part in enumerate((data.train[0], data.evaluation)):
        if part is not None:
            _encode(part, world, f"encoding {number}")
    base = world.from_main(lambda: describe_base(args.moshi_paths, data.info, _digests(args, data).of))
    model = world.together(lambda: _build(args, data.info, world.device))
    dtype = getattr(torch, args.param_dtype)
    shard(model, world.mesh, dtype)

    layout = Layout(world.rank, world.size, args.batch_size, args.num_microbatches, args.train.backprop_clips)
    has_prefix = any(recording.prefix_frames for recording in data.train[0].recordings)

    def new_feed() -> Feed:
        if args.train.stateful:
            return CarriedClips(model, layout, dtype, has_prefix, args.train.random_phase, args.seed)
        return IndependentClips(has_prefix)

    def stage(first_step: int, part: Corpus) -> Stage:
        loader: ClipLoader | StreamLoader
        if args.train.stateful:
            loader = StreamLoader(part, rows=layout.rows, seed=args.seed, shuffle=args.data.shuffle)
        else:
            loader = ClipLoader(part, seed=args.seed, shuffle=args.data.shuffle)
        return Stage(first_step, loader, part.clip_frames)

    kind: Kind = "adapters" if args.save_adapters else "full"
    documents = export_documents(model, data.info, base, kind)
    return Parts(
        model=model,
        optimizer=build_optimizer(model, args.optim, parameter_role, decays),
        stages=[stage(step, part) for (step, _), part in zip(data.lengths, data.train, strict=True)],
        layout=layout,
        feed=new_feed(),
        teacher=_teacher(args, model, new_feed),
        eval_set=EvalSet(data.evaluation) if data.evaluation is not None else None,
        codec=data.codec,
        info=data.info,
        documents={f"consolidated/{name}": document for name, document in documents.items()},
        exports=lambda: {export_file_name(kind): _export_table(model, kind, dtype)},
    )


def _teacher(args: TrainArgs, model: TTTMoshi, new_feed: Callable[[], Feed]) -> Teacher | None:
    frames = args.train.distill.context_frames
    if frames is None:
        return None
    if model.context is None or frames <= model.context:
        raise ConfigError(
            f"`train.distill.context_frames` must be wider than the window that is trained ({model.context} frames; "
            f"narrow it with `train.context_frames`), got {frames}"
        )
    with base_with_window(model, frames):
        return Teacher(new_feed(), frames, args.train.distill.weight)


@dataclass(frozen=True)
class _Data:
    """What was found where the configuration points.

    Args:
        lengths: first step and seconds of a clip, of every stage.
        train: the recordings, cut for every stage.
    """

    info: CheckpointInfo
    codec: Codec | None
    lengths: list[tuple[int, float]]
    train: list[Corpus]
    evaluation: Corpus | None


def _open_data(args: TrainArgs, device: torch.device) -> _Data:
    if not args.data.train_data:
        raise ConfigError("`data.train_data` is empty: name a jsonl file or a folder of them")
    use_cache(args.data.remote_cache_dir, args.data.remote_cache_gb)
    specs = (args.data.train_data, *([args.data.eval_data] if args.do_eval or args.eval.gates else []))
    audio = [names_audio(spec) for spec in specs]  # first: the model may be a download of 15 GB
    info = base_to_train(args.moshi_paths, args.data)
    arguments = geometry(info.lm_config)
    alphabet = Alphabet.of_model(arguments)
    style = TextStyle.of_model(arguments, args.data.no_whitespace_before_word, writing_delay(info.raw_config))
    codec = tokenizer = None
    if args.paper_metrics.enable or args.eval.gates or any(audio):
        # The official class takes as many codebooks as `dep_q` says, which may count the user's too.
        mimi = audio_codec(resolve_model(args.moshi_paths), device)
        codec = Codec(mimi, info.mimi_config)
        tokenizer = text_tokenizer(info)

    def corpus(spec: str, seconds: float) -> Corpus:
        return Corpus(spec, codec, tokenizer, seconds, args.data.code_cache_dir, alphabet=alphabet, style=style)

    lengths = clip_stages(args.train.clip_schedule, args.duration_sec)
    train = [corpus(args.data.train_data, seconds) for _, seconds in lengths]
    evaluation = corpus(args.data.eval_data, args.duration_sec) if args.do_eval else None
    return _Data(info, codec, lengths, train, evaluation)


def _digests(args: TrainArgs, data: _Data) -> Digests:
    """Where digests are remembered, so that a start does not read again what has not changed."""
    folder = args.data.code_cache_dir or cache_folder(data.train[0].recordings[0].folder, None)
    return Digests(Path(folder))


def _encode(corpus: Corpus, world: World, name: str) -> None:
    """Makes the codes that the cache lacks, so that no step waits for the codec."""
    turns = Turns(world, name)
    last_said = 0.0

    def say(recording: str, done: int, total: int) -> None:
        nonlocal last_said
        if time.monotonic() - last_said > ENCODING_REPORT_SECONDS:
            last_said = time.monotonic()
            turns.report()
            if total:
                seconds = frames_to_seconds(done), frames_to_seconds(total)
                logger.info("encoding audio: %d of %d seconds (%s)", *seconds, recording)

    failure = None
    try:
        corpus.encode_all(world.rank, world.size, say)
    except (UserError, OSError) as error:
        failure = error
    turns.finish(failure)


def _build(args: TrainArgs, info: CheckpointInfo, device: torch.device) -> TTTMoshi:
    """The model of this run, whole."""
    model = build_model(
        info,
        args.ttt,
        args.lora,
        full_finetuning=args.full_finetuning,
        gradient_checkpointing=args.gradient_checkpointing,
        device=device,
        dtype=getattr(torch, args.param_dtype),
        new_text_embeddings=args.data.new_text_embeddings,
        seed=args.seed,
    )
    if model.mode == "frozen":
        raise ConfigError("nothing would be trained: set ttt.enable, lora.enable or full_finetuning to true")
    counts = count_tensors(model)
    logger.info("mode %s: training %s of %s", model.mode, counts.total_trainable, counts.total)
    if args.train.context_frames is not None:
        set_context(model, args.train.context_frames)
    if args.checkpoint.init_state_dir is not None:
        start_from(model, info, Path(args.checkpoint.init_state_dir))
    return model


def _export_table(model: TTTMoshi, kind: Kind, dtype: torch.dtype) -> dict[str, Export]:
    """Where the rows of every exported tensor come from.

    Trained tensors are read from what is saved, so that an export agrees with its checkpoint even though training
    goes on; frozen ones are read from the model.
    """
    parameters = dict(model.named_parameters())

    def source(name: str) -> str | Tensor:
        parameter = parameters[name]
        return f"param/{name}" if parameter.requires_grad else parameter.detach()

    table = {}
    for entry in export_plan(model, kind, dtype):
        if len(entry.sources) == 1:
            table[entry.name] = Export(source(entry.sources[0]), entry.dtype)
        else:
            weight, a, b = entry.sources
            table[entry.name] = _merged(parameters[weight].detach(), a, b, entry.scaling, entry.dtype)
    return table


def _merged(weight: Tensor, a: str, b: str, scaling: float, dtype: torch.dtype) -> Export:
    """W + scaling * B @ A, row by row."""
    rows = weight.to_local() if isinstance(weight, DTensor) else weight

    def make(read: Callable[[str], Tensor], start: int, stop: int) -> Tensor:
        return rows.float().cpu() + scaling * (read(f"param/{b}")[start:stop] @ read(f"param/{a}"))

    return Export(make, dtype, shape=tuple(weight.shape), rows_of=weight)
