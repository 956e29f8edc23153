"""`generate` and `serve` as a user types them: what they write, and what they refuse before anything is touched."""

import json
import shutil

import pytest
import soundfile

from ttt_moshi.cli.main import main


def generate(trained, recording, out, *options) -> int:
    return main(["generate", "--checkpoint_dir", str(trained), "--input", str(recording), "--out", str(out), *options])


def test_the_conversation_is_training_data(trained, recording, tmp_path, capsys):
    """Stereo sound with the user untouched on the right, words beside it, and `data check` finds nothing wrong."""
    short, rate = soundfile.read(recording)
    soundfile.write(tmp_path / "user.wav", short[: 5 * rate], rate, subtype="FLOAT")
    assert generate(trained, tmp_path / "user.wav", tmp_path / "talk.wav") == 0
    talk, out_rate = soundfile.read(tmp_path / "talk.wav")
    assert out_rate == 24_000 and talk.shape == (5 * 24_000, 2)
    if rate == 24_000:
        assert abs(talk[:, 1] - short[: 5 * rate, 1]).max() < 2**-15
    for text, (start, end), speaker in json.loads((tmp_path / "talk.json").read_text())["alignments"]:
        assert text and 0 <= start < end <= 5.08 and speaker == "SPEAKER_MAIN"
    (tmp_path / "data.jsonl").write_text(json.dumps({"path": "talk.wav", "duration": 5.0}))
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "data.jsonl")]) == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--temp", "0"], "--greedy"),
        (["--top_k", "-1"], "--top_k must be greater"),
        (["--tempo", "1"], "did you mean `--temp`"),
        (["--device", "cuda:7"], "GPU"),
        (["--out", "talk.mp3"], ".wav or .flac"),
        (["--out", "nowhere/talk.wav"], "make it first"),
        (["--save_session", "nowhere/session"], "make it first"),
        (["--input", "missing.wav"], "no sound file at missing.wav"),
        (["--checkpoint_dir", "missing"], "no folder at missing"),
        (["--hf_repo_id", "./missing"], "missing"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_in_one_line(trained, recording, tmp_path, monkeypatch, capsys, options, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert generate(trained, recording, "talk.wav", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and complaint in error
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_does_not_talk(trained, recording, tmp_path, capsys):
    copy = tmp_path / "checkpoint_000002"
    shutil.copytree(trained / "checkpoints" / "checkpoint_000002", copy)
    shard = next((copy / "consolidated").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert generate(copy, recording, tmp_path / "talk.wav") == 2
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "talk.wav").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--static", "missing"], "no index.html"),
        (["--static", "none", "--ssl", "."], "no cert.pem"),
        (["--static", "none", "--prot", "1"], "did you mean `--port`"),
    ],
    ids=str,
)
def test_serve_refuses_what_cannot_work(trained, tmp_path, monkeypatch, capsys, options, complaint):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--checkpoint_dir", str(trained), *options]) == 2
    assert complaint in capsys.readouterr().err
