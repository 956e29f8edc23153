"""Names of devices and types, as people type them."""

import pytest
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.moshi import MoshiError
from ttt_moshi.moshi.device import choose_device, choose_dtype


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "CPU", "cuda:-1", "cpu:0"])
def test_other_names_are_refused_with_those_that_are_known(name):
    with pytest.raises(MoshiError, match="it is auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_an_apple_gpu_is_for_talking_where_there_is_one():
    with pytest.raises(MoshiError, match="only `generate` and `serve`"):
        choose_device("mps")
    if torch.backends.mps.is_available():
        assert choose_device("mps", mps=True) == "mps"
    else:
        with pytest.raises(MoshiError, match="finds no Apple GPU here"):
            choose_device("mps", mps=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:9"])
def test_a_gpu_that_is_not_here_is_refused(name):
    with pytest.raises(MoshiError, match="finds no GPU here"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu():
    assert choose_device("auto") == choose_device("cpu") == "cpu"


def test_types():
    assert choose_dtype(None, "bfloat16") is torch.bfloat16
    assert choose_dtype("float32", "bfloat16") is torch.float32
    with pytest.raises(MoshiError, match="bfloat16 or float32"):
        choose_dtype("load", "float32")


@pytest.mark.parametrize("device", ["mps", "gpu", "", "cuda:9"])
@pytest.mark.parametrize("command", [["eval", "--checkpoint_dir", "gone"]])
def test_commands_say_it_in_one_line(command, device, capsys):
    if device == "cuda:9" and torch.cuda.device_count() > 9:
        pytest.skip("this machine has ten GPUs")
    assert main([*command, f"--device={device}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--device {device}" in error
