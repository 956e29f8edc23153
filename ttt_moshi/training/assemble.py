"""Puts together what a run works with: model, optimizer and data. Reads files, changes none but the code cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ttt_moshi.checkpoint import Export, iter_tensors
from ttt_moshi.config import ConfigError, TrainArgs
from ttt_moshi.data import Alphabet, ClipLoader, Codec, Corpus, EvalSet, names_sound
from ttt_moshi.moshi import (
    TTTMoshi,
    build_model,
    count_tensors,
    decays,
    describe_base,
    export_documents,
    export_file_name,
    export_plan,
    load_initial_weights,
    parameter_role,
    resolve_model,
    shard,
)
from ttt_moshi.moshi.loading import geometry
from ttt_moshi.training.distributed import World
from ttt_moshi.training.optimizer import build_optimizer

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a run works with.

    Args:
        model: sharded, in training mode as built.
        optimizer: AdamW with its moments present.
        loader: training clips.
        eval_set: evaluation clips, or None.
        has_prefix: whether some recording begins with given frames.
        documents: JSON files of every checkpoint, by path inside of it.
        exports: makes the export table of `CheckpointStore.save`.
    """

    model: TTTMoshi
    optimizer: torch.optim.AdamW
    loader: ClipLoader
    eval_set: EvalSet | None
    has_prefix: bool
    documents: dict[str, dict[str, Any]]
    exports: Callable[[], dict[str, dict[str, Export]]]


def assemble(args: TrainArgs, world: World) -> Parts:
    """Reads the base model and the data sets and refuses what cannot work.

    Raises:
        UserError: a base model, data set or starting checkpoint that cannot be used.
        ConfigError: nothing would be trained.
    """
    info = resolve_model(args.moshi_paths)
    if not args.data.train_data:
        raise ConfigError("`data.train_data` is empty: name a jsonl file or a folder of them")
    arguments = geometry(info.lm_config)
    alphabet = Alphabet(1 + arguments["n_q"], arguments["text_card"], arguments["card"])
    codec = tokenizer = None
    if any(names_sound(spec) for spec in (args.data.train_data, *([args.data.eval_data] if args.do_eval else []))):
        codec = Codec(info.get_mimi(device=world.device), info.mimi_config)
        tokenizer = info.get_text_tokenizer()

    def corpus(spec: str) -> Corpus:
        return Corpus(spec, codec, tokenizer, args.duration_sec, args.data.code_cache_dir, alphabet=alphabet)

    train = corpus(args.data.train_data)
    evaluation = corpus(args.data.eval_data) if args.do_eval else None
    for part in (train, evaluation):
        if part is not None:
            part.encode_all(world.rank, world.size)
    world.barrier()

    dtype = getattr(torch, args.param_dtype)
    model = build_model(
        info,
        args.ttt,
        args.lora,
        full_finetuning=args.full_finetuning,
        gradient_checkpointing=args.gradient_checkpointing,
        device=world.device,
        dtype=dtype,
        seed=args.seed,
    )
    if model.mode == "frozen":
        raise ConfigError("nothing would be trained: set ttt.enable, lora.enable or full_finetuning to true")
    counts = count_tensors(model)
    logger.info("mode %s: training %s of %s", model.mode, counts.total_trainable, counts.total)
    if args.checkpoint.init_state_dir is not None:
        _load_start(model, Path(args.checkpoint.init_state_dir))
    shard(model, world.mesh, dtype)

    kind = "adapters" if args.save_adapters else "full"
    documents = export_documents(model, info, describe_base(args.moshi_paths, info), kind)
    return Parts(
        model=model,
        optimizer=build_optimizer(model, args.optim, parameter_role, decays),
        loader=ClipLoader(train, seed=args.seed, shuffle=args.data.shuffle),
        eval_set=EvalSet(evaluation) if evaluation is not None else None,
        has_prefix=any(recording.prefix_frames for recording in train.recordings),
        documents={f"consolidated/{name}": document for name, document in documents.items()},
        exports=lambda: {export_file_name(kind): _export_table(model, kind, dtype)},
    )


def _load_start(model: TTTMoshi, folder: Path) -> None:
    """Weights only, from the consolidated part of a checkpoint of ours or of moshi-finetune."""
    consolidated = folder if folder.name == "consolidated" else folder / "consolidated"
    files = [consolidated / name for name in ("lora.safetensors", "consolidated.safetensors")]
    found = [path for path in files if path.is_file()]
    if not found:
        raise ConfigError(
            f"`checkpoint.init_state_dir`: {folder} has neither consolidated/lora.safetensors nor "
            "consolidated/consolidated.safetensors"
        )
    loaded = load_initial_weights(model, dict(iter_tensors(consolidated.parent, f"consolidated/{found[0].name}")))
    logger.info(
        "starting from %s: %d tensors loaded, %d keep their start values",
        found[0],
        len(loaded.loaded),
        len(loaded.kept),
    )


def _export_table(model: TTTMoshi, kind: str, dtype: torch.dtype) -> dict[str, Export]:
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
