"""One rank of a sharded run of two AdamW steps: shard_worker.py BASE STORE WORLD OUT RANK (world 0: no sharding)."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

from ttt_moshi.config import LoraArgs, ModelPaths, TTTArgs
from ttt_moshi.moshi import build_model, resolve_model, shard, tensor_group

base, store, world, out, rank = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
model = build_model(
    resolve_model(ModelPaths(hf_repo_id=base)),
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
if world:
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    shard(model, init_device_mesh("cpu", (world,)), torch.float32)
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-4)
everyone = torch.randint(0, 24, (2, 2, 7, 20), generator=torch.Generator().manual_seed(0))
result = {}
for step, codes in enumerate(everyone):
    share = codes[rank::world] if world else codes
    # Only one of the rows has a prefix, so with two ranks only one of them does.
    prefix = torch.tensor([6, 0])
    output = model(share, prefix_lengths=prefix[rank::world] if world else prefix)
    loss = output.text_logits.square().sum() + output.logits[:, :, :-1].square().sum()
    (loss * 1e-4 * max(world, 1)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            result[f"grad{step}/{name}"] = parameter.grad
    optimizer.step()
    optimizer.zero_grad()
result |= {f"param/{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
result = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in result.items()}
if rank == 0:
    save_file({name: tensor.contiguous() for name, tensor in result.items()}, out)
if world:
    dist.destroy_process_group()
