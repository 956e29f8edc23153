"""Continuations: the likelihood by hand, measures of known streams, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.config import ModelPaths
from ttt_moshi.data.audio import read_audio
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.subject import base_facts, from_base
from ttt_moshi.evaluation.tasks.continuation import find_long, prompt_frames, said_instead
from ttt_moshi.moshi import resolve_model

RATE = 24_000


def bursts(spans, seconds: float, seed: int = 0) -> np.ndarray:
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)
    loud = np.zeros(len(noise), bool)
    for start, end in spans:
        loud[round(start * RATE) : round(end * RATE)] = True
    return noise * loud


def test_what_is_said_instead_is_held_against_what_was_true():
    found = said_instead(bursts([(0, 1), (2, 3)], 8), bursts([(1, 3), (4, 6)], 8))
    assert found == pytest.approx(
        {"length_ratio": 0.5, "silence": 0.75, "ends": 3 / 8, "true_silence": 0.5, "true_ends": 0.75}, abs=0.01
    )
    silent = said_instead(np.zeros(8 * RATE, np.float32), np.zeros(8 * RATE, np.float32))
    assert silent["length_ratio"] is None and silent["silence"] == 1.0 and silent["ends"] == 0.0


def test_a_prompt_is_ten_seconds_at_most_and_leaves_something_to_continue():
    assert [prompt_frames(*case) for case in ((3000, 3000), (100, 3000), (3000, 32))] == [125, 25, 16]
    with pytest.raises(EvaluationError, match=r"12 frames .* too short"):
        prompt_frames(12, 3000)


def write(root: Path, count: int = 2) -> None:
    for i in range(count):
        folder = root / "librispeech-long" / "test-clean" / f"20{i}" / "1"
        folder.mkdir(parents=True)
        spans = [(0.2, 0.8 + 0.1 * i), (1.2, 1.9), (2.1, 3.0)]
        soundfile.write(folder / f"20{i}-1-0000.flac", bursts(spans, 3.1 + 0.2 * i, seed=i), RATE)


@pytest.mark.parametrize(("first", "second"), [
    ("dev/1/2_3/a.flac", "dev/1_2/3/a.flac"), ("dev/1/2/a.flac", "dev/1/2/a.wav"),
])  # fmt: skip
def test_two_recordings_whose_conversations_would_lie_in_one_folder_are_refused(tmp_path, first, second):
    for name in (first, second):
        path = tmp_path / "librispeech-long" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, bursts([(0, 1)], 3), RATE)
        if name == first:
            assert [example.id for example in find_long(tmp_path)] == [first.removesuffix(".flac")]
    with pytest.raises(EvaluationError, match=f"{first} and .*{second} would both be called dev_1_2.*_a"):
        find_long(tmp_path)


def go(material, root, out, *options) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main([*base, "--data_root", str(root), "--tasks", "continuation", "--out", str(out), *options])


def test_the_command_scores_what_is_true_and_keeps_what_was_said(tiny_material, tmp_path, capsys):
    write(tmp_path)
    assert go(tiny_material, tmp_path, tmp_path / "out") == 0
    task = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["continuation"]
    samples = [json.loads(line) for line in (tmp_path / "out/samples/continuation.jsonl").read_text().splitlines()]
    assert task["n"] == 2 and task["prompt_frames"] == 10 and len(task["minutes"]) == 1
    info = resolve_model(ModelPaths(hf_repo_id=str(tiny_material.base_model)), "evaluate")
    subject = from_base(info, base_facts(info), "cpu", torch.float32)
    total = count = 0
    for sample, example in zip(samples, find_long(tmp_path), strict=True):
        assert sample["id"] == example.id and example.id.startswith("test-clean/20")
        audio = read_audio(next(iter(example.files)))
        codes = subject.codec.encode(iter([audio]), 1)[0].long()
        P, T = sample["prompt_frames"], codes.shape[1]
        assert T // 4 == P
        silence = subject.codec.silence(0, T).long()
        with torch.no_grad():
            logits = subject.model(torch.cat([torch.full((1, T), -1), codes, silence])[None]).logits[0, 0]
        nll = torch.nn.functional.cross_entropy(logits[P:], codes[0, P:], reduction="none")
        assert sample["score"] == pytest.approx(-float(nll.mean()), rel=1e-4)
        total, count = total + float(nll.sum()), count + len(nll)
        said, user = (
            soundfile.read(tmp_path / "out" / sample["conversation"] / f"{n}.wav")[0] for n in ("output", "input")
        )
        assert len(said) == len(user) == audio.shape[1] - P * 1920 and not user.any()
    assert task["value"] == pytest.approx(total / count, rel=1e-4)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "said instead" in page and f'src="{samples[0]["conversation"]}/output.wav"' in page
    # What is there is not said again; another seed says something else.
    folder = tmp_path / "out" / samples[0]["conversation"]
    made, tokens = (folder / "output.wav").stat().st_mtime_ns, (folder / "tokens.safetensors").read_bytes()
    assert go(tiny_material, tmp_path, tmp_path / "out", "--limit", "1", "--slots", "1", "--overwrite") == 0
    assert (folder / "output.wav").stat().st_mtime_ns == made
    assert go(tiny_material, tmp_path, tmp_path / "other", "--seed", "5") == 0
    assert (tmp_path / "other" / samples[0]["conversation"] / "tokens.safetensors").read_bytes() != tokens
    # Conversations of another seed are refused before anything is scored.
    (tmp_path / "out" / "results.json").unlink()
    capsys.readouterr()
    another = ("--seed", "5", "--cache_dir", str(tmp_path / "fresh"))
    assert go(tiny_material, tmp_path, tmp_path / "out", *another) == 2
    assert "holds another conversation (differs in seed)" in " ".join(capsys.readouterr().out.split())
    assert not list((tmp_path / "fresh" / "nll").rglob("*"))
    assert go(tiny_material, tmp_path, tmp_path / "out", *another, "--overwrite") == 0
    assert (folder / "tokens.safetensors").read_bytes() != tokens
    capsys.readouterr()
    assert go(tiny_material, tmp_path, tmp_path / "no", "--ttt", "off") == 2
    assert "`continuation`: `--ttt off` is about a model that reads" in capsys.readouterr().err
    assert go(tiny_material, tmp_path / "out", tmp_path / "no") == 2
    assert "no recordings to continue: expected" in capsys.readouterr().err
