"""Benchmarks during training: training must not notice, and several ranks must agree."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ttt_moshi.config import PaperMetricsArgs
from ttt_moshi.evaluation import EvaluationError, EvaluationStopped, evaluate_perplexity
from ttt_moshi.evaluation.hook import check_paper_metrics, paper_metrics

TASKS = "swuggy,ssc,tsc,repeat"


@pytest.fixture(scope="module")
def codec(tiny_material):
    from ttt_moshi.config import ModelPaths
    from ttt_moshi.data import Codec
    from ttt_moshi.moshi import resolve_model

    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)))
    return Codec(info.get_mimi("cpu"), info.mimi_config)


@pytest.fixture(scope="module")
def codes_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("codes")


def arguments(bench, **changes) -> PaperMetricsArgs:
    return PaperMetricsArgs(**({"enable": True, "data_root": str(bench), "tasks": TASKS, "max_items": 2} | changes))


def test_training_with_and_without_benchmarks_ends_bit_identical(new_ttt_model, new_codes, bench, codec, codes_dir):
    def train(evaluate: bool) -> str:
        model = new_ttt_model(seed=5, card=64, context=32).train()
        model.transformer.layers[0].norm1.eval()
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(3):
            seed = int(torch.randint(0, 1000, ())) + random.randrange(9) + int(np.random.randint(9))
            out = model(new_codes(2, 6, seed=seed))
            (out.text_logits.float().logsumexp(-1).mean() + out.logits[:, 0].float().logsumexp(-1).mean()).backward()
            if evaluate and step == 1:
                found = paper_metrics(model, codec, arguments(bench), codes_dir)
                assert {t["status"] for t in found.values()} == {"ok"}
                assert found["swuggy"]["n"] == 2
                assert model.training and not model.transformer.layers[0].norm1.training
            optimizer.step(), optimizer.zero_grad()
        digest = hashlib.sha256()
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        digest.update(torch.get_rng_state().numpy().tobytes() + np.random.get_state()[1].tobytes())
        digest.update(repr(random.getstate()).encode())
        return digest.hexdigest()

    assert train(evaluate=True) == train(evaluate=False)


def test_a_second_run_answers_for_the_new_weights(new_ttt_model, bench, codec, codes_dir):
    model = new_ttt_model(card=64, context=32)
    first = paper_metrics(model, codec, arguments(bench), codes_dir)
    assert paper_metrics(model, codec, arguments(bench), codes_dir) == first
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.3)
    assert paper_metrics(model, codec, arguments(bench), codes_dir)["repeat"] != first["repeat"]


def test_missing_data_is_reported_and_does_not_stop_training(new_ttt_model, codec, codes_dir, tmp_path):
    found = paper_metrics(new_ttt_model(card=64), codec, arguments(tmp_path), codes_dir)
    assert all(task["status"] == "skipped" and task["value"] is None and task["reason"] for task in found.values())


def test_what_benchmarks_need_is_known_before_training(bench, tmp_path):
    check_paper_metrics(arguments(bench))
    for changes, message in (
        ({"data_root": str(tmp_path / "gone")}, "`swuggy`: no sLM21 data set below .*gone.*`ssc`: .*sSC"),
        ({"data_root": None}, "names no folder"),
        ({"tasks": "swugy"}, "did you mean `swuggy`"),
        ({"tasks": "ssc,ppl,inner"}, "perplexity, inner cannot be measured in training"),
    ):
        with pytest.raises(EvaluationError, match=message):
            check_paper_metrics(arguments(bench, **changes))
    data = tmp_path / "bench"
    shutil.copytree(bench, data)
    next((data / "librilight").rglob("*.flac")).write_bytes(b"")
    next((data / "sLM21-dataset" / "lexical" / "dev").glob("*.wav")).unlink()
    with pytest.raises(EvaluationError, match=r"`swuggy`: .*there is no .*wav; `repeat`: "):
        check_paper_metrics(arguments(data))


def test_an_evaluation_stops_between_batches_when_it_is_asked(new_ttt_model, new_clips, bench, codec, codes_dir):
    model = new_ttt_model(card=64, context=32)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    for evaluate in (
        lambda stop: paper_metrics(model, codec, arguments(bench, max_frames=40), codes_dir, should_stop=stop),
        lambda stop: evaluate_perplexity(model, new_clips([9, 8, 7, 6]), should_stop=stop),
    ):
        evaluate(lambda: False)
        whole = len(passes)
        passes.clear()
        with pytest.raises(EvaluationStopped):
            evaluate(lambda: len(passes) == 2)
        assert len(passes) == 2 < whole
        with pytest.raises(EvaluationStopped):
            evaluate(lambda: True)
        assert len(passes) == 2
        passes.clear()
        assert model.training is False


RANK_PROGRAM = """
import sys, json, torch, torch.distributed as dist
from pathlib import Path
sys.path.insert(0, {folder!r})
import conftest
from ttt_moshi.config import ModelPaths, PaperMetricsArgs
from ttt_moshi.data import Codec
from ttt_moshi.evaluation import EvaluationStopped
from ttt_moshi.evaluation.hook import paper_metrics
from ttt_moshi.moshi import resolve_model
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
info = resolve_model(ModelPaths(hf_repo_id={base!r}))
codec = Codec(info.get_mimi("cpu"), info.mimi_config)
args = PaperMetricsArgs(enable=True, data_root={bench!r}, tasks={tasks!r}, max_items=2, max_frames=40)
model = conftest.build_ttt_model(card=64, context=32)
passes = []
model.register_forward_hook(lambda *_: passes.append(1))
stop = lambda: rank == 1 and len(passes) == {stop_after}
try:
    found = paper_metrics(model, codec, args, Path({codes!r}), rank, 2, should_stop=stop)
except EvaluationStopped:
    found = "stopped"
print(json.dumps([found, len(passes)]))
"""


def run_two_ranks(warm, bench, tiny_material, codes_dir, folder, tasks, stop_after=-1) -> list:
    program = RANK_PROGRAM.format(
        folder=str(Path(__file__).parent), base=str(tiny_material.base_model), bench=str(bench), tasks=tasks,
        codes=str(codes_dir), stop_after=stop_after,
    )  # fmt: skip
    ranks = [warm.start(["-c", program, rank, folder / "meet"]) for rank in range(2)]
    assert [process.wait() for process in ranks] == [0, 0]
    return [json.loads(process.stdout.splitlines()[-1]) for process in ranks]


def test_two_ranks_agree_with_one(new_ttt_model, bench, codec, codes_dir, tiny_material, tmp_path, warm):
    outputs = [found for found, _ in run_two_ranks(warm, bench, tiny_material, codes_dir, tmp_path, TASKS)]
    alone = paper_metrics(new_ttt_model(card=64, context=32), codec, arguments(bench, max_frames=40), codes_dir)
    assert outputs[0] == outputs[1]
    for name, task in alone.items():
        assert outputs[0][name]["value"] == pytest.approx(task["value"], abs=1e-6), name


def test_what_one_rank_cannot_read_stops_no_rank(bench, tiny_material, tmp_path, warm):
    """Each rank encodes its share, and only one of them meets the damaged recording; the tasks after it run."""
    data = tmp_path / "bench"
    shutil.copytree(bench, data)
    victim = sorted((data / "sSC").glob("*.wav"))[0]
    victim.write_bytes(victim.read_bytes()[:-1000])
    found, other = (f for f, _ in run_two_ranks(warm, data, tiny_material, tmp_path / "codes", tmp_path, "ssc,tsc"))
    assert found == other
    assert found["ssc"]["status"] == "skipped" and victim.name in found["ssc"]["reason"]
    assert found["tsc"]["status"] == "ok"


def test_one_rank_that_is_asked_to_stop_stops_both(bench, tiny_material, codes_dir, tmp_path, warm):
    outputs = run_two_ranks(warm, bench, tiny_material, codes_dir, tmp_path, TASKS, stop_after=2)
    assert outputs == [["stopped", 2], ["stopped", 2]]
