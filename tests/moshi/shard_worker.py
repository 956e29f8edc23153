"""Two AdamW steps of a tiny model, sharded or not; as a program, one rank: BASE STORE WORLD RANK OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import build_model, resolve_model, shard, tensor_group


def two_steps(base: Path | str, world: int = 0, rank: int = 0, store: dist.Store | None = None) -> dict:
    """Gradients of both steps and the parameters after them, whole; `world` 0 does not shard."""
    model = build_model(
        resolve_model(ModelPaths(hf_repo_id=str(base))),
        TTTArgs(enable=True, layers="1,2", mini_batch_size=4),
        LoraArgs(enable=True, rank=2),
        gradient_checkpointing=True,
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if tensor_group(name) != "base":
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    ranks = max(world, 1)
    if world:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        shard(model, init_device_mesh("cpu", (world,)), torch.float32)
    try:
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-4)
        result = {}
        for step in range(2):
            everyone = torch.randint(0, 24, (2, 7, 20), generator=torch.Generator().manual_seed(step))
            # Only the first row has a prefix, so with two ranks only one of them has any.
            prefix = torch.tensor([6, 0])
            output = model(everyone[rank::ranks], prefix_lengths=prefix[rank::ranks])
            loss = output.text_logits.square().sum() + output.logits[:, :, :-1].square().sum()
            (loss * 1e-4 * ranks).backward()
            result |= {f"grad{step}/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
            optimizer.step()
            optimizer.zero_grad()
        result |= {f"param/{n}": p.detach() for n, p in model.named_parameters() if p.requires_grad}
        whole = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in result.items()}
        return {name: tensor.clone() for name, tensor in whole.items()}
    finally:
        if world:
            dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, store_path, size, index, out = sys.argv[1:]
    found = two_steps(folder, int(size), int(index), dist.FileStore(store_path, int(size)))
    if int(index) == 0:
        save_file(found, out)
