"""Weights in int8: `make test-int8`, which installs torchao."""

from __future__ import annotations

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from ttt_moshi.cli.main import main
from ttt_moshi.extras import installed
from ttt_moshi.inference import Conversation
from ttt_moshi.moshi.int8 import quantise_base

WITH = pytest.mark.skipif(not installed("torchao"), reason="the extra int8 is not installed")


@pytest.mark.skipif(installed("torchao"), reason="the extra int8 is installed")
def test_without_torchao_it_says_what_to_install(trained, recording, tmp_path, capsys):
    options = ["--checkpoint_dir", str(trained), "--input", str(recording), "--out", str(tmp_path / "talk.wav")]
    assert main(["generate", *options, "--int8"]) == 2
    error = capsys.readouterr().err
    assert "--int8" in error and "ttt-moshi[int8]" in error and error.count("\n") == 1


@WITH
@pytest.mark.slow
def test_the_base_is_in_int8_and_the_memory_is_not(make_speaker):
    """Every weight of a base's linear layer is off by half a step at most; everything else is as it was."""
    plain, speaker = make_speaker(), make_speaker()
    quantise_base(speaker.model)
    before = dict(plain.model.named_parameters())
    changed = set()
    for name, parameter in speaker.model.named_parameters():
        if type(parameter.data) is torch.Tensor or type(parameter) is torch.nn.Parameter:
            assert torch.equal(parameter, before[name]), name
        else:
            step = before[name].abs().amax(dim=1, keepdim=True) / 127.5
            assert bool(((parameter.dequantize() - before[name]).abs() <= 0.51 * step).all()), name
            changed.add(name)
    linear = {
        f"{n}.weight" for n, m in plain.model.named_modules() if isinstance(m, torch.nn.Linear) and ".ttt." not in n
    }
    assert changed == linear
    with Conversation(speaker) as conversation:
        conversation.hear(torch.zeros(1920))
        assert conversation._slots.speaker.model.layers[0]._streaming_state.memory.W1.dtype == torch.float32


@WITH
@pytest.mark.slow
def test_it_talks_and_its_sessions_are_its_own(trained, recording, tmp_path, capsys):
    sound, rate = soundfile.read(recording)
    soundfile.write(tmp_path / "user.wav", sound[: 2 * rate], rate)
    talk = ["generate", "--checkpoint_dir", str(trained), "--input", str(tmp_path / "user.wav"), "--temp", "2"]
    said, kept_of = {}, {}
    for name, options in (("plain", []), ("small", ["--int8"]), ("again", ["--int8"])):
        kept = ["--save_session", str(tmp_path / f"{name}.session")]
        assert main([*talk, *options, *kept, "--out", str(tmp_path / f"{name}.wav")]) == 0
        said[name] = soundfile.read(tmp_path / f"{name}.wav")[0]
        kept_of[name] = load_file(tmp_path / f"{name}.session")
    assert (said["small"] == said["again"]).all()
    # Two seconds may be too short to say something else, and not to remember something else.
    same = [torch.equal(tensor, kept_of["plain"][name]) for name, tensor in kept_of["small"].items()]
    assert not all(same), "nothing was in int8"
    go_on = [*talk, "--resume_session", str(tmp_path / "small.session"), "--out", str(tmp_path / "on.wav")]
    assert main(go_on) == 2
    assert "int8:" in capsys.readouterr().err
    assert main([*go_on, "--int8"]) == 0
