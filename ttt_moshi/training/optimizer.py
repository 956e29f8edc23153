"""AdamW in named parameter groups, clipped group by group, with state that can be saved tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ttt_moshi.config import OptimArgs
from ttt_moshi.schedule import peak_learning_rates

ROLES = ("base", "lora", "ttt", "fast_weight", "gate")
BETAS = (0.9, 0.95)
EPS = 1e-8


def build_optimizer(
    model: nn.Module, optim: OptimArgs, role_of: Callable[[str], str], decays: Callable[[str], bool]
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, with its moments present from the start.

    The gradient of the fast weights' initial values is orders of magnitude larger than that of a projection, because
    it sums over the whole sequence; one norm over everything would let it silence the rest. Hence one group a role.

    Args:
        role_of: a parameter's role, one of `ROLES`.
        decays: whether weight decay applies to a parameter.
    """
    peaks = peak_learning_rates(optim)
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((role_of(name), decays(name)), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": groups[key],
                "role": key[0],
                "lr": peaks[key[0]],
                "peak_lr": peaks[key[0]],
                "weight_decay": optim.weight_decay if key[1] else 0.0,
            }
            for key in sorted(groups)
        ],
        betas=BETAS,
        eps=EPS,
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> dict[str, float]:
    """Sets every group to `share` of its peak and returns the learning rate of each role."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
    return {group["role"]: group["lr"] for group in optimizer.param_groups}


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> dict[str, Tensor]:
    """Scales the gradients of each role down to `max_norm` and returns their norms before that (scalars)."""
    by_role: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        by_role.setdefault(group["role"], []).extend(p for p in group["params"] if p.grad is not None)
    norms = {}
    for role, parameters in by_role.items():
        if not parameters:
            continue
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        norms[role] = norm
    return norms


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Masters and moments of every trainable parameter under `param/`, `exp_avg/` and `exp_avg_sq/` names.

    These are the live tensors: filling them restores the optimizer.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            tensors[f"param/{name}"] = parameter.detach()
            tensors[f"exp_avg/{name}"] = state["exp_avg"]
            tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
    return tensors


def update_counts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """How often each parameter was updated; AdamW's bias correction depends on it."""
    return {n: int(optimizer.state[p]["step"]) for n, p in model.named_parameters() if p.requires_grad}


def set_update_counts(model: nn.Module, optimizer: torch.optim.Optimizer, counts: dict[str, int]) -> None:
    """Puts back what `update_counts` took."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            optimizer.state[parameter]["step"].fill_(counts[name])
