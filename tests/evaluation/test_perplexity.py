"""Perplexity of a set: token-weighted, restartable, and without a trace on the model."""

import hashlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ttt_moshi.evaluation import EvaluationError, evaluate_perplexity, score, undisturbed
from ttt_moshi.evaluation.results import check_task
from ttt_moshi.evaluation.tasks.perplexity import as_task

LENGTHS = [12, 20, 7, 20, 5]


def test_equals_a_plain_token_loop(model, new_clips):
    clips = new_clips(LENGTHS)
    clips.codes[:, 0][(clips.codes[:, 0] >= 0) & (clips.codes[:, 0] % 5 == 0)] = 0  # EPAD as well
    result = evaluate_perplexity(model, clips)
    tokens: dict[str, list[float]] = {}
    for row, length in zip(clips.codes, LENGTHS, strict=True):
        nll = score(model, row[None, :, :length]).nll[0]
        for t in range(length):
            kind = {3: "text_pad", 0: "text_epad"}.get(int(row[0, t]), "text_words")
            tokens.setdefault(kind, []).append(float(nll[0, t]))
            tokens.setdefault("semantic", []).append(float(nll[1, t]))
            for k in range(2, 9):
                if t < length - 1:
                    tokens.setdefault(f"acoustic_{k}", []).append(float(nll[k, t]))
    assert set(tokens) == set(result.components) - {"text", "acoustic", "audio"}
    for name, values in tokens.items():
        component = result.components[name]
        assert component.tokens == len(values)
        assert component.nll == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert component.ppl == pytest.approx(math.exp(sum(values) / len(values)), rel=1e-5)
    for group, channels in (("text", [0]), ("semantic", [1]), ("acoustic", range(2, 9))):
        bins = {(b.start, b.stop): b for b in result.positions[group]}
        assert list(bins) == [(0, 8), (8, 16), (16, 32)]
        for (start, stop), found in bins.items():
            nll = [score(model, row[None, :, :n]).nll[0] for row, n in zip(clips.codes, LENGTHS, strict=True)]
            values = [float(v) for one in nll for k in channels for v in one[k, start:stop] if not math.isnan(v)]
            assert found.tokens == len(values)
            assert found.nll == pytest.approx(sum(values) / len(values), abs=1e-6)
    audio = [v for name, values in tokens.items() if not name.startswith("text") for v in values]
    assert result.components["audio"].nll == pytest.approx(sum(audio) / len(audio), abs=1e-6)
    assert result.seconds == pytest.approx(sum(LENGTHS) / 12.5)
    assert result.bits_per_second == pytest.approx(sum(audio) / math.log(2) / result.seconds, rel=1e-6)


def test_it_starts_from_the_first_clip_every_time(model, new_clips):
    clips = new_clips(LENGTHS)
    first = evaluate_perplexity(model, clips, batch_size=2)
    assert evaluate_perplexity(model, clips, batch_size=2) == first


@pytest.mark.parametrize("batch_size", [2, 3, 5, 100])
def test_the_batch_size_does_not_matter_beyond_rounding(model, new_clips, batch_size):
    clips = new_clips(LENGTHS)
    one, many = evaluate_perplexity(model, clips, 1), evaluate_perplexity(model, clips, batch_size)
    for name, component in one.components.items():
        assert many.components[name].tokens == component.tokens
        assert many.components[name].nll == pytest.approx(component.nll, abs=2e-6)


def test_long_clips_weigh_more_than_short_ones(new_model, new_clips):
    """Mean of clip means would give another number."""
    model, clips = new_model(), new_clips([40, 3])
    nll = [score(model, clips.codes[i : i + 1, :, :n]) for i, n in enumerate([40, 3])]
    semantic = [s.nll[0, 1] for s in nll]
    expected = torch.cat(semantic).mean()
    found = evaluate_perplexity(model, clips).components["semantic"].nll
    assert found == pytest.approx(float(expected), abs=1e-6)
    assert abs(found - float(torch.stack([s.mean() for s in semantic]).mean())) > 1e-4


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_training_goes_on_as_if_nothing_had_happened(new_model, new_clips, new_codes):
    clips = new_clips(LENGTHS)

    def train(evaluate: bool):
        model = new_model(seed=5).train()
        model.depformer.eval()  # a frozen part may have its own mode
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(3):
            batch = new_codes(2, 6, seed=int(torch.randint(0, 1000, ())) + random.randrange(9) + np.random.randint(9))
            out = model(batch)
            loss = out.text_logits.float().logsumexp(-1).mean() + out.logits[:, 0].float().logsumexp(-1).mean()
            loss.backward()
            if evaluate and step == 1:
                evaluate_perplexity(model, clips, batch_size=2)
                assert model.training and not model.depformer.training
                assert model.linears[0].weight.grad is not None
            optimizer.step(), optimizer.zero_grad()
        return fingerprint(model)

    assert train(evaluate=True) == train(evaluate=False)


def test_an_open_stream_is_left_where_it_was(new_model, new_clips, new_codes):
    model, codes = new_model(), new_codes(1, 8)

    def stream(disturb: bool) -> list[torch.Tensor]:
        outputs = []
        with torch.no_grad(), model.streaming(1):
            for t in range(8):
                if disturb and t == 4:
                    inside = evaluate_perplexity(model, new_clips(LENGTHS))
                    assert inside == outside
                outputs.append(model.forward_text(codes[..., t : t + 1])[1])
        return outputs

    outside = evaluate_perplexity(model, new_clips(LENGTHS))
    for a, b in zip(stream(False), stream(True), strict=True):
        assert torch.equal(a, b)


def test_state_is_restored_after_an_error_too(new_model):
    model = new_model().train()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), undisturbed(model):
        assert not model.training
        torch.rand(3)
        raise RuntimeError("inside")
    assert model.training and all(part.training for part in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_set_or_one_without_audio_is_an_error(model, new_clips):
    clips = new_clips([4, 4])
    with pytest.raises(EvaluationError, match="no clips"):
        evaluate_perplexity(model, clips.rows(0, 0))
    clips.codes[:, 1:9] = -1
    with pytest.raises(EvaluationError, match="no audio token"):
        evaluate_perplexity(model, clips)


def test_the_entry_of_the_results_file(model, new_clips):
    result = evaluate_perplexity(model, new_clips(LENGTHS))
    task = as_task(result)
    check_task("perplexity", task)
    assert task["value"] == pytest.approx(math.exp(task["components"]["audio"]["nll"]))
    assert task["ci95"][0] <= task["value"] <= task["ci95"][1]
    assert task["n"] == len(LENGTHS)
    for name, c in task["components"].items():
        assert c["ppl"] == pytest.approx(math.exp(c["nll"])), name
        assert c["ci95"][0] <= c["nll"] <= c["ci95"][1], name


RANK_PROGRAM = """
import sys, json, torch, torch.distributed as dist
sys.path.insert(0, {folder!r})
import conftest
from ttt_moshi.evaluation import evaluate_perplexity
from ttt_moshi.evaluation.tasks.perplexity import as_task
torch.set_num_threads(1)
rank, world = int(sys.argv[1]), 2
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=world)
result = evaluate_perplexity(conftest.build_model(), conftest.make_clips({lengths}), 1, rank, world)
print(json.dumps(as_task(result)))
"""


def test_two_ranks_return_what_one_returns(model, new_clips, tmp_path, warm):
    program = RANK_PROGRAM.format(folder=str(Path(__file__).parent), lengths=LENGTHS)
    ranks = [warm.start(["-c", program, rank, tmp_path / "meet"]) for rank in range(2)]
    assert [process.wait() for process in ranks] == [0, 0]
    outputs = [json.loads(process.stdout.splitlines()[-1]) for process in ranks]
    alone = as_task(evaluate_perplexity(model, new_clips(LENGTHS)))
    assert outputs[0] == outputs[1] == json.loads(json.dumps(alone))
