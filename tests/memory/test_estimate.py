"""What the recipe for Moshi 7B is said to need, beside sums done by hand."""

from pathlib import Path

import pytest

from benchmarks.memory import estimate
from ttt_moshi.config_io import args_from_dict, check_config_file

RECIPE = Path(__file__).parents[2] / "configs" / "moshi_7b_ttt_long.yaml"


@pytest.fixture(scope="module")
def recipe():
    args = args_from_dict(check_config_file(RECIPE))
    return args, estimate.meta_model(args)


def test_bytes_follow_from_the_sizes_of_moshi_and_of_the_memory(recipe):
    args, model = recipe
    found = {name: size for name, (size, _) in estimate.memory(args, model).items()}
    assert len(model.ttt_layers) == 16 and args.num_microbatches * args.batch_size == 8
    trained = found["trained weights"] / 4
    lora = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    assert trained == 16 * 71_495_712 + lora
    assert found["moments of AdamW"] == 2 * found["their gradients"] == 8 * trained
    attention = 2 * 2 * 32 * (args.train.context_frames - 1) * 4096  # keys and values of 32 layers in bfloat16
    memories = 16 * 19.4e6
    assert found["carried states"] == pytest.approx(8 * (attention + memories), rel=0.01)
    assert found["inputs of all layers"] == 2 * 4096 * 32 * 2 * 60 * 12.5
    assert found["sum"] == pytest.approx(sum(size for name, size in found.items() if name != "sum"))


def test_work_follows_from_the_products(recipe):
    args, model = recipe
    found = estimate.work(args, model)
    assert found["inner networks of 16 TTT layers"] == 4 * 16 * 32 * (56 * 128 * 128 + 20 * 16 * 128)
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11264  # Moshi's attention and gated feed-forward
    projections = 4 * 4096 * 4096  # of a TTT layer
    temporal = 4 * 2 * (32 * layer + 16 * projections)
    assert temporal < found["matrices of Moshi, LoRA and TTT projections"] < 1.35 * temporal
    assert estimate.frames_per_step(args) == 12_000
