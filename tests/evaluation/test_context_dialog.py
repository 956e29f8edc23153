"""Questions about dialogues: the streams that are read, a memory that can be computed, exact zeros, and the command."""

import json

import numpy as np
import pytest
import soundfile
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.config import ModelPaths
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.controls import Controls
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.recordings import Recordings
from ttt_moshi.evaluation.scoring.score import Scores, valid_tokens
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
from ttt_moshi.evaluation.subject import base_facts, from_base
from ttt_moshi.evaluation.tasks.context_dialog import ContextDialog, find_recalls
from ttt_moshi.moshi import resolve_model

FRAME, RATE = 1920, 24_000
TURNS = {"a": (3, 4), "b": (2, 3, 2)}
"""frames of the turns of two dialogues, as many of both: equal positions round alike"""
ASKED, ANSWERED = 70, 6


def sound(path, frames: float, seed: int):
    noise = 0.3 * np.random.default_rng(seed).standard_normal(round(frames * FRAME))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise, RATE)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    folder, lines = root / "context_dialog", []
    for seed, (name, turns) in enumerate(TURNS.items()):
        files = [f"{name}{i}.wav" for i in range(len(turns))]
        for i, frames in enumerate(turns):
            sound(folder / files[i], frames, 10 * seed + i)
        sound(folder / f"{name}q.wav", ASKED - 0.5, 100 + seed)  # turns begin with a frame
        sound(folder / f"{name}a.wav", ANSWERED, 200 + seed)
        lines.append({"turns": files, "question": f"{name}q.wav", "answer": f"{name}a.wav", "recalls": seed})
    (folder / "mine.jsonl").write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


class Beginning:
    """A reader for whom every token costs as much as the first semantic code of its own side says, and for the user's
    beginning a hundred times as much: so a known number tells two dialogues apart."""

    dep_q, n_q, window, device = 8, 16, 32, torch.device("cpu")
    delays = [0] + [0] + [1] * 7 + [0] + [1] * 7
    zero_token_id, text_padding, swaps, identity = -1, (3, 0), False, "beginning"

    def score(self, codes: torch.Tensor, frames: torch.Tensor) -> Scores:
        mask = valid_tokens(self, codes, frames)
        cost = (codes[:, 1, 0] + 100 * codes[:, 9, 0]).float()[:, None, None]
        return Scores(torch.where(mask, cost.expand(mask.shape), torch.nan), mask)


@pytest.fixture(scope="module")
def recordings(tiny_material, tmp_path_factory):
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)), "evaluate")
    subject = from_base(info, base_facts(info), "cpu", torch.float32)
    return Recordings(subject.codec, tmp_path_factory.mktemp("codes"), "absent", "natural")


def test_the_gain_is_what_the_beginnings_differ_by(bench, recordings):
    engine = Engine(Beginning(), recordings, NLLCache(None, "beginning"))
    recalls = find_recalls(bench)
    assert [[recall.side(turn) for turn in range(len(recall.turns))] for recall in recalls] == [[1, 0], [0, 1, 0]]
    outcome = ContextDialog(recalls, recalls).run(engine)
    # By hand: the first turn of `a` is the user's, and the agent is silent; the first of `b` is the agent's.
    folder, codec = bench / "context_dialog", recordings.codec
    first = {name: soundfile.read(folder / f"{name}0.wav", dtype="float32")[0] for name in TURNS}
    code = {name: int(codec.encode(iter([samples[None]]), 1)[0, 0, 0]) for name, samples in first.items()}
    silence = int(codec.silence(0, 1)[0, 0])
    cost = {"a": silence + 100 * code["a"], "b": code["b"] + 100 * silence}
    gains = [cost["b"] - cost["a"], cost["a"] - cost["b"]]
    assert gains[0] != 0 and [sample["score"] for sample in outcome.samples] == gains
    entry = outcome.entry
    assert entry["value"] == 0.0 and entry["likelier"]["value"] == 0.5 and entry["chance"] == 0.0
    # `recalls` is 0 of `a`, what the user said, and 1 of `b`, the user's too.
    assert entry["recalled"] == {"user": entry["recalled"]["user"]} and entry["recalled"]["user"]["n"] == 2
    assert entry["gains"]["semantic"]["value"] == 0.0 and entry["gains"]["acoustic"]["n"] == 2
    semantic = outcome.samples[0]["nll"]["semantic"]
    assert semantic == [ANSWERED * cost["a"], ANSWERED * cost["b"]]  # the answer's frames and no others


def test_questions_about_one_dialogue_are_one_item(bench, recordings, tmp_path):
    folder, lines = bench / "context_dialog", []
    for about, asks in (("a", "a"), ("a", "b"), ("b", "b")):
        turns = [str(folder / f"{about}{i}.wav") for i in range(len(TURNS[about]))]
        asked = {"question": str(folder / f"{asks}q.wav"), "answer": str(folder / f"{asks}a.wav")}
        lines.append({"turns": turns, **asked, "dialogue": about, "recalls": 0})
    (tmp_path / "context_dialog").mkdir()
    (tmp_path / "context_dialog/three.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recalls = find_recalls(tmp_path)
    outcome = ContextDialog(recalls, recalls).run(Engine(Beginning(), recordings, NLLCache(None, "beginning")))
    # Both questions about `a` gain what the one about `b` loses; of two items the interval is from one to the other.
    first, second, third = [sample["score"] for sample in outcome.samples]
    assert first == second == -third != 0
    assert [sample["item"] for sample in outcome.samples] == ["three/a", "three/a", "three/b"]
    for found in (outcome.entry, outcome.entry["gains"]["semantic"]):
        assert (found["value"], found["ci95"], found["n"]) == (0.0, [-abs(first), abs(first)], 2)
    assert outcome.entry["questions"] == 3 and outcome.entry["likelier"]["value"] == 0.5
    assert {side: one["n"] for side, one in outcome.entry["recalled"].items()} == {"agent": 1, "user": 1}


def go(material, bench, out, *options) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    base += ["--tasks", "context_dialog", "--data_root", str(bench), "--batch_size", "1"]
    return main([*base, "--out", str(out), *options])


def entry(out) -> dict:
    return json.loads((out / "results.json").read_text())["tasks"]["context_dialog"]


def test_the_command_and_an_exact_zero(bench, tiny_material, tmp_path, capsys):
    """Two layers with a window of 32 reach 63 frames and a question lasts 70: without memory no dialogue reaches its
    answer. Where the question lasts 4 frames, one does."""
    assert go(tiny_material, bench, tmp_path / "far") == 0
    far = entry(tmp_path / "far")
    assert far["n"] == 2 and far["value"] == 0.0 and far["likelier"]["value"] == 0.5
    assert "Likelier after its own dialogue" in (tmp_path / "far" / "report.md").read_text()
    near = tmp_path / "near" / "context_dialog"
    near.mkdir(parents=True)
    for path in (bench / "context_dialog").iterdir():
        (near / path.name).write_bytes(path.read_bytes())
    for name in TURNS:
        sound(near / f"{name}q.wav", 4, 7)
    assert go(tiny_material, near.parent, tmp_path / "out") == 0
    assert entry(tmp_path / "out")["value"] != 0.0
    assert go(tiny_material, bench, tmp_path / "one", "--limit", "1") == 0 and entry(tmp_path / "one")["n"] == 1
    capsys.readouterr()
    for words, complaint in (
        (["--user", "silence"], "would leave out the user"),
        (["--text", "given"], "needs word times"),
    ):
        assert go(tiny_material, bench, tmp_path / "no", *words) == 2
        assert complaint in capsys.readouterr().err


def test_every_control_changes_its_numbers(bench, recordings, new_ttt_model):
    model, every = new_ttt_model(context=32, mini_batch_size=8, card=256), find_recalls(bench)

    def numbers(**options) -> np.ndarray:
        scorer = ModelScorer(model, "s", Controls(chunk_frames=4000, **options).scoring)
        engine = Engine(scorer, recordings, NLLCache(None, scorer.identity), BatchPolicy(max_rows=1))
        found = ContextDialog(every, every).run(engine).samples
        return np.array([value for sample in found for pair in sample["nll"].values() for value in pair])

    usual = numbers()
    for options in ({"ttt": "off"}, {"ttt": "no_writes"}, {"ttt": "reset:8"}, {"ttt": "swapped:8"}, {"sink": 4}):
        found = numbers(**options)
        assert found.shape == usual.shape and np.isfinite(found).all()
        assert not np.allclose(found, usual, atol=1e-3), options
    np.testing.assert_allclose(numbers(ttt="reset:100000"), usual, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(("line", "message"), [
    ({"turns": ["a0.wav"], "question": "aq.wav"}, "line 1: lacks 'answer'"),
    ({"turns": [], "question": "aq.wav", "answer": "aa.wav"}, "`turns` is empty"),
    ({"turns": [None], "question": "aq.wav", "answer": "aa.wav"}, "line 1: `turns` holds None, and is a list"),
    ({"turns": "no.wav", "question": "aq.wav", "answer": "aa.wav"}, r"there is no .*/no\.wav"),
    ({"turns": ["a0.wav"], "question": "aq.wav", "answer": "aa.wav", "recalls": 1}, "`recalls` is 1"),
    ({"turns": ["no.wav"], "question": "aq.wav", "answer": "aa.wav"}, r"there is no .*no\.wav"),
    ({"turns": ["a0.wav"], "question": "aq.wav", "answer": "aa.wav"}, "about one dialogue"),
    ([], "line 1"),
])  # fmt: skip
def test_what_is_wrong_is_named(bench, tmp_path, line, message):
    folder = tmp_path / "context_dialog"
    folder.mkdir()
    for path in (bench / "context_dialog").glob("*.wav"):
        (folder / path.name).symlink_to(path)
    (folder / "x.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(EvaluationError, match=message):
        find_recalls(tmp_path)
    with pytest.raises(EvaluationError, match="no questions about dialogues"):
        find_recalls(tmp_path / "nowhere")
