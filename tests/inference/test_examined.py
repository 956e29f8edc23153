"""The examiner of the evaluation with whole models, and with `ttt-moshi serve`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from tests.evaluation.test_examiner import RATE, TURN, evaluate, write_task
from ttt_moshi.cli.main import main


@pytest.mark.slow
def test_the_command_talks_through_a_server_of_its_own_and_goes_on(tiny_material, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ttt_moshi.evaluation.examiner.LONGEST_SEC", 2.0)  # the tiny model never falls silent
    ask = {"audio": "0.wav", "text": "who are you", "expects": ["moshi"]}
    write_task(tmp_path, "daily", "a", [ask], goal="a name")
    judge = tmp_path / "ratings.jsonl"
    judge.write_text(
        "".join(json.dumps({"id": f"daily-a-{p}", "score": s}) + "\n" for p, s in (("slow", 3), ("fast", 4)))
    )
    assert evaluate(tiny_material, tmp_path, tmp_path / "a", "--slots", "1", "--judge", str(judge)) == 0
    task = json.loads((tmp_path / "a/results.json").read_text())["tasks"]["examiner"]
    assert task["n"] == 1 and task["conversations"] == 2
    assert set(task["examined"]) == {"slow", "fast", "daily, slow", "daily, fast"}
    assert task["examined"]["fast"]["rating"]["value"] == 4 and len(task["stages"]) == 1
    assert "examiner's turn" in (tmp_path / "a/report.md").read_text()
    folder = tmp_path / "a/conversations/examiner/daily-a-slow"
    said, heard = (soundfile.read(folder / f"{side}.wav")[0] for side in ("input", "output"))
    (turn,) = json.loads((folder / "exam.json").read_text())["turns"]
    assert (
        len(said) == len(heard) and turn["text"] == "who are you" and turn["end"] - turn["start"] == pytest.approx(0.8)
    )
    np.testing.assert_allclose(said[round(turn["start"] * RATE) :][: len(TURN)], TURN, atol=1e-4)
    # The same is said again, to the bit where no other row rounds, and what is there is not held again.
    (folder / "exam.json").unlink()
    other, kept = folder.with_name("daily-a-fast"), heard.copy()
    made = (other / "output.wav").stat().st_mtime_ns
    assert evaluate(tiny_material, tmp_path, tmp_path / "a", "--slots", "1") == 0
    np.testing.assert_array_equal(soundfile.read(folder / "output.wav")[0], kept)
    assert (other / "output.wav").stat().st_mtime_ns == made
    capsys.readouterr()
    assert evaluate(tiny_material, tmp_path, tmp_path / "a", "--seed", "3") == 2
    assert "holds another conversation (differs in seed)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_server_of_another_process_says_the_same_and_another_state_is_refused(
    serve, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ttt_moshi.evaluation.examiner.LONGEST_SEC", 2.0)
    write_task(tmp_path, "daily", "a", [{"audio": "0.wav"}])
    checkpoint = sorted((trained / "checkpoints").glob("checkpoint_*"))[-1]
    server = serve("--seed", "0")
    address = f"http://127.0.0.1:{server.port}"
    base = ["eval", "--tasks", "examiner", "--data_root", str(tmp_path)]
    for out, options in (("own", ["--slots", "1"]), ("served", ["--server", address])):
        assert main([*base, "--checkpoint_dir", str(checkpoint), "--out", str(tmp_path / out), *options]) == 0
    for name in ("daily-a-slow", "daily-a-fast"):
        own, served = (tmp_path / out / "conversations/examiner" / name for out in ("own", "served"))
        assert (own / "output.json").read_bytes() == (served / "output.json").read_bytes()
        sounds = [soundfile.read(folder / "output.wav")[0] for folder in (own, served)]
        np.testing.assert_allclose(*sounds, atol=1e-3)
    other = sorted((trained / "checkpoints").glob("checkpoint_*"))[0]
    if other != checkpoint:
        assert main([*base, "--checkpoint_dir", str(other), "--out", str(tmp_path / "o"), "--server", address]) == 2
        assert "serve the same checkpoint" in " ".join(capsys.readouterr().out.split())
