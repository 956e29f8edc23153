"""A small Moshi language model of the official class, pre-trained for a minute on generated dialogues."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moshi.models.lm import LMModel
from moshi.models.loaders import get_moshi_lm
from moshi.utils.compile import no_compile
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttt_moshi.data.loader import ClipLoader, EvalSet

CODEBOOKS = 8
PAD_ID, EPAD_ID, ABSENT = 3, 0, -1
PADDING_WEIGHT = 0.5
SEMANTIC_WEIGHT = 8.0


@dataclass(frozen=True)
class MoshiSize:
    """Geometry of a small language model."""

    dim: int = 128
    heads: int = 4
    layers: int = 4
    context: int = 64
    """frames that attention sees; 64 frames are 5.12 s"""
    depformer_dim: int = 64
    depformer_layers: int = 2


@dataclass(frozen=True)
class Pretraining:
    """A fixed number of AdamW steps with a linear warm-up and a cosine decay."""

    steps: int = 800
    batch_size: int = 2
    clip_seconds: float = 12.0
    hidden_text: float = 0.5
    """share of the clips whose text is absent, so that speech without a transcript can be scored; half are every other
    one, beginning with the second"""
    lr: float = 4e-3
    warmup: float = 0.1
    """share of the steps"""
    weight_decay: float = 0.1
    max_norm: float = 1.0


def lm_config(size: MoshiSize, text_card: int, card: int) -> dict[str, Any]:
    """The arguments of the official `LMModel`: Moshi 7B's, with smaller numbers."""
    return {
        "dim": size.dim,
        "text_card": text_card,
        "existing_text_padding_id": PAD_ID,
        "n_q": 2 * CODEBOOKS,
        "dep_q": CODEBOOKS,
        "card": card,
        "num_heads": size.heads,
        "num_layers": size.layers,
        "hidden_scale": 4.125,
        "causal": True,
        "layer_scale": None,
        "context": size.context,
        "max_period": 10000,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": size.depformer_dim,
        "depformer_dim_feedforward": int(4.125 * size.depformer_dim),
        "depformer_num_heads": max(1, size.depformer_dim // 32),
        "depformer_num_layers": size.depformer_layers,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": CODEBOOKS,
        "depformer_max_period": 10000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": [0] + 2 * ([0] + [1] * (CODEBOOKS - 1)),
    }


def new_lm(config: dict[str, Any], seed: int) -> LMModel:
    """A freshly initialised float32 model that depends on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_moshi_lm(None, config, device="cpu", dtype=torch.float32)


def pretrain(
    model: LMModel, loader: ClipLoader, plan: Pretraining, progress: Callable[[int, int, float], None] | None = None
) -> None:
    """Trains all parameters in place. `progress` gets the step, the number of steps, and the loss in nats."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.95))
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        first = step * plan.batch_size
        codes = hide_text(loader.batch(first, plan.batch_size).codes, first, plan.hidden_text)
        nll, mask, targets = token_nll(model, codes)
        loss = pretraining_loss(nll, mask, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        if progress:
            progress(step + 1, plan.steps, loss.item())
    model.eval()


def hide_text(codes: Tensor, first: int, share: float) -> Tensor:
    """The clips [B, 17, T] at positions `first`, `first + 1`, ..., that share of them with an absent text stream.

    Which ones depends on the position alone, and is spread evenly.
    """
    hidden = [math.floor((first + k + 1) * share) > math.floor((first + k) * share) for k in range(len(codes))]
    codes = codes.clone()
    codes[torch.tensor(hidden), 0] = ABSENT
    return codes


def learning_rate(plan: Pretraining, step: int) -> float:
    """Rises linearly to `plan.lr`, then falls along a half cosine to a hundredth of it."""
    rise = max(1, round(plan.warmup * plan.steps))
    if step < rise:
        return plan.lr * (step + 1) / rise
    done = (step - rise) / max(1, plan.steps - rise)
    return plan.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def token_nll(model: LMModel, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """NLL in nats of every predicted code, which of them count, and the codes: three [B, 1 + 8, T]."""
    with no_compile():  # so that neither a compiler nor its version has a part in the result
        output = model(codes)
    targets = codes[:, : 1 + model.dep_q]
    mask = torch.cat([output.text_mask, output.mask], 1)
    safe = torch.where(mask, targets, 0)
    text = cross_entropy(output.text_logits[:, 0].transpose(1, 2), safe[:, 0], reduction="none")[:, None]
    audio = cross_entropy(output.logits.permute(0, 3, 1, 2), safe[:, 1:], reduction="none")
    return torch.where(mask, torch.cat([text, audio], 1), 0.0), mask, targets


def pretraining_loss(nll: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Mean text NLL plus mean audio NLL, padding counted half and the semantic codebook eight times."""
    weights = mask.float()
    padding = (targets[:, 0] == PAD_ID) | (targets[:, 0] == EPAD_ID)
    weights[:, 0] *= torch.where(padding, PADDING_WEIGHT, 1.0)
    weights[:, 1] *= SEMANTIC_WEIGHT
    weighted = nll * weights
    text = weighted[:, 0].sum() / weights[:, 0].sum().clamp(min=1)
    audio = weighted[:, 1:].sum() / weights[:, 1:].sum().clamp(min=1)
    return text + audio


@torch.no_grad()
def mean_nll(model: LMModel, clips: EvalSet, batch_size: int = 8) -> dict[str, float]:
    """Mean NLL in nats over the clips: of text words, text padding, the semantic and the acoustic codebooks."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for batch in clips.batches(batch_size):
        nll, mask, targets = token_nll(model, batch.codes)
        padding = (targets[:, 0] == PAD_ID) | (targets[:, 0] == EPAD_ID)
        parts = {
            "text_word": (nll[:, 0], mask[:, 0] & ~padding),
            "text_padding": (nll[:, 0], mask[:, 0] & padding),
            "semantic": (nll[:, 1], mask[:, 1]),
            "acoustic": (nll[:, 2:], mask[:, 2:]),
        }
        for name, (values, chosen) in parts.items():
            sums[name] = sums.get(name, 0.0) + values[chosen].double().sum().item()
            counts[name] = counts.get(name, 0) + int(chosen.sum())
    return {name: sums[name] / counts[name] for name in sums}


def save_lm(model: LMModel, path: Path) -> None:
    """Writes the weights as bfloat16, as Moshi's are."""
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def write_config(path: Path, config: dict[str, Any], names: dict[str, str]) -> None:
    """Writes `config.json` as in a Moshi repository on the hub: the model's arguments and the names of its files."""
    path.write_text(json.dumps({**names, "model_type": "moshi", **config}, indent=2) + "\n")
