"""Evaluating a checkpoint that training wrote: only the checkpoint decides what model it is."""

import json
import shutil
from pathlib import Path

import pytest

from tests.evaluation.written import results
from tests.processes import TORCHRUN
from ttt_moshi.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tiny_material, tmp_path_factory):
    """A short run with TTT in one layer and LoRA; its evaluation at the last step."""
    run_dir = tmp_path_factory.mktemp("run") / "r"
    keys = {
        "run_dir": run_dir, "data.train_data": tiny_material.train_data, "data.eval_data": tiny_material.eval_data,
        "moshi_paths.hf_repo_id": tiny_material.base_model, "ttt.enable": "true", "ttt.layers": "1",
        "lora.enable": "true", "lora.rank": 4, "max_steps": 2, "duration_sec": 4, "batch_size": 2, "do_eval": "true",
        "ckpt_freq": 1, "param_dtype": "float32", "gradient_checkpointing": "false", "optim.lr": 0.01,
        "ttt.mini_batch_size": 4,
    }  # fmt: skip
    assert main(["train", *(word for key, value in keys.items() for word in (f"--{key}", str(value)))]) == 0
    return run_dir


def checkpoint(run_dir, step=2):
    return run_dir / "checkpoints" / f"checkpoint_{step:06d}"


def test_the_checkpoint_alone_gives_the_number_that_training_saw(trained, tmp_path):
    assert main(["eval", "--checkpoint_dir", str(checkpoint(trained)), "--out", str(tmp_path)]) == 0
    found = results(tmp_path)
    seen = json.loads((trained / "metrics.eval.jsonl").read_text().splitlines()[-1])
    for name, component in found["tasks"]["perplexity"]["components"].items():
        assert component["nll"] == pytest.approx(seen["nll"][name], abs=1e-4), name
    assert found["data"]["perplexity"]["digest"] == seen["data_digest"]
    manifest = json.loads((checkpoint(trained) / "manifest.json").read_text())
    assert found["checkpoint"] == {key: manifest[key] for key in ("state_id", "step", "kind")}


def test_results_lie_beside_the_checkpoints_and_consolidated_names_the_checkpoint(trained):
    before = sorted(p.name for p in checkpoint(trained).rglob("*"))
    assert main(["eval", "--checkpoint_dir", str(checkpoint(trained) / "consolidated")]) == 0
    assert results(trained / "evaluation" / "checkpoint_000002")["checkpoint"]["step"] == 2
    assert sorted(p.name for p in checkpoint(trained).rglob("*")) == before


def test_a_configuration_of_another_model_changes_nothing_but_data(trained, tiny_material, tmp_path):
    config = tmp_path / "other.yaml"
    config.write_text(
        "run_dir: x\nduration_sec: 4\nttt:\n  enable: true\n  layers: '0'\n  mini_batch_size: 16\n  inner: linear\n"
        f"moshi_paths:\n  hf_repo_id: nowhere/at-all\ndata:\n  eval_data: {tiny_material.eval_data}\n"
    )
    folders = tmp_path / "a", tmp_path / "b"
    name = str(checkpoint(trained))
    assert main(["eval", "--checkpoint_dir", name, "--out", str(folders[0])]) == 0
    assert main(["eval", "--checkpoint_dir", name, "--out", str(folders[1]), "--config", str(config)]) == 0
    assert (folders[0] / "results.json").read_bytes() == (folders[1] / "results.json").read_bytes()


def test_a_corrupt_checkpoint_is_not_evaluated(trained, tmp_path, capsys):
    copy = tmp_path / "checkpoint_000002"
    shutil.copytree(checkpoint(trained), copy)
    victim = copy / "consolidated" / "lora.safetensors"
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    arguments = ["eval", "--checkpoint_dir", str(copy), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "the checkpoint is corrupt and is not evaluated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--no_ttt_verify"]) == 0


def test_a_run_folder_is_answered_with_its_newest_checkpoint(trained, capsys):
    assert main(["eval", "--checkpoint_dir", str(trained)]) == 2
    assert "did you mean" in (error := capsys.readouterr().err) and "checkpoint_000002" in error


def test_inner_curves_and_controls_of_a_trained_memory(trained, bench, tmp_path, capsys):
    name = str(checkpoint(trained))
    common = ["eval", "--checkpoint_dir", name, "--data_root", str(bench), "--cache_dir", str(tmp_path / "cache")]
    values = {}
    for mode in ("on", "off", "no_writes", "reset:8"):
        out = tmp_path / mode.replace(":", "_")
        names = "position,perplexity" if mode == "off" else "inner,position,perplexity"
        assert main([*common, "--tasks", names, "--ttt", mode, "--out", str(out)]) == 0
        values[mode] = results(out)["tasks"]
        assert results(out)["config"]["ttt"] == mode
    inner = values["on"]["inner"]["layers"]["1"]["mean"]
    assert inner["after"] < inner["before"]
    for name in ("position", "perplexity"):
        assert len({v[name]["value"] for v in values.values()}) == 4
    compared = ["eval", "compare", *(str(tmp_path / m) for m in ("on", "off")), "--out", str(tmp_path / "cmp")]
    assert main(compared) == 1  # `inner` was not asked of the model without its memory
    found = json.loads((tmp_path / "cmp" / "comparison.json").read_text())["tasks"]
    for name in ("position", "perplexity"):
        assert found[name]["against_first"][0]["difference"] != 0
        assert found[name]["against_own"] == [None, found[name]["against_first"][0]]
    page = (tmp_path / "cmp" / "report.html").read_text()
    assert "off (step 2, --ttt off)" in page and "the same checkpoint read as usual" in page
    capsys.readouterr()
    assert main([*common, "--tasks", "ssc,inner", "--ttt", "off", "--out", str(tmp_path / "x")]) == 2
    assert "`inner`: `--ttt off`" in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert main([*common, "--tasks", "inner", "--ttt", "sometimes", "--out", str(tmp_path / "x")]) == 2


def test_several_checkpoints_of_a_run_are_compared_over_steps(trained, bench, tmp_path):
    folders = []
    for step in (1, 2):
        folders.append(str(tmp_path / f"step_{step}"))
        arguments = ["eval", "--checkpoint_dir", str(checkpoint(trained, step)), "--out", folders[-1]]
        arguments += ["--eval_type", "both", "--tasks", "ssc", "--data_root", str(bench)]
        assert main([*arguments, "--cache_dir", str(tmp_path / "cache")]) == 0
    assert main(["eval", "report", *folders, "--out", str(tmp_path / "cmp")]) == 0
    comparison = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert [c["step"] for c in comparison["checkpoints"]] == [1, 2]
    assert comparison["tasks"]["perplexity"]["against_first"][0]["n"] > 1
    assert (tmp_path / "cmp" / "plots" / "perplexity_over_steps.png").stat().st_size > 2000


def test_two_processes_exchange_memories_as_one_does(trained, tmp_path, warm):
    """Whose memory a recording is given is a matter of all recordings, not of those of a process."""
    options = ["--checkpoint_dir", str(checkpoint(trained)), "--tasks", "dialogue", "--device", "cpu"]
    for name, control in (("one", "swapped:20"), ("on", "on")):
        assert main(["eval", *options, "--ttt", control, "--out", str(tmp_path / name)]) == 0
    shared = [*options, "--ttt", "swapped:20", "--out", str(tmp_path / "two")]
    result = warm.run([*TORCHRUN, 2, ROOT / "eval_from_checkpoint.py", *shared])
    assert result.returncode == 0, result.stderr
    one, two, on = ((tmp_path / name / "results.json").read_bytes() for name in ("one", "two", "on"))
    assert one == two
    assert json.loads(one)["tasks"]["dialogue"]["value"] != json.loads(on)["tasks"]["dialogue"]["value"]


@pytest.mark.parametrize("flag", ["--out", "--cache_dir"])
def test_nothing_is_written_into_a_checkpoint(trained, tmp_path, capsys, flag):
    inside = checkpoint(trained) / "evaluation"
    words = {"--out": tmp_path / "out", flag: inside}
    named = [str(word) for pair in words.items() for word in pair]
    assert main(["eval", "--checkpoint_dir", str(checkpoint(trained)), *named]) == 2
    assert "is within the checkpoint" in capsys.readouterr().err and not inside.exists()
