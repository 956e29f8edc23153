"""One folder, several evaluations: those of one checkpoint with the same options add up, no other loses a number."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.evaluation import written
from tests.evaluation.written import results
from ttt_moshi.cli.main import main


def evaluate(base, out, *more) -> int:
    words = ["--checkpoint_dir", "base", "--hf_repo_id", base, "--dtype", "float32", "--out", out, *more]
    return main(["eval", *map(str, words)])


def content(folder: Path) -> dict[str, bytes]:
    return written.content(folder, without=lambda part: part == "cache")


@pytest.fixture(scope="module")
def swuggy(bench, tiny_material, tmp_path_factory):
    """The base model on one task. Read-only."""
    out = tmp_path_factory.mktemp("swuggy")
    assert evaluate(tiny_material.base_model, out, "--tasks", "swuggy", "--data_root", bench) == 0
    return out


@pytest.fixture
def there(swuggy, tmp_path):
    """A copy of it to add to."""
    return shutil.copytree(swuggy, tmp_path / "there")


@pytest.fixture(scope="module")
def other_model(tiny_material, tmp_path_factory):
    """Another state."""
    folder = shutil.copytree(tiny_material.base_model, tmp_path_factory.mktemp("other") / "base")
    weights = load_file(folder / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def test_tasks_add_up_as_if_they_had_been_measured_at_once(there, bench, tiny_material, tmp_path, capsys):
    base, options = tiny_material.base_model, ("--data_root", bench, "--cache_dir", there / "cache")
    before = content(there)
    assert evaluate(base, there, "--tasks", "swuggy", *options) == 0
    assert content(there) == before
    capsys.readouterr()
    assert evaluate(base, there, "--tasks", "sblimp", *options) == 0
    assert "(measured before, and kept: swuggy)" in capsys.readouterr().out
    assert evaluate(base, tmp_path / "at_once", "--tasks", "swuggy,sblimp", *options) == 0
    assert content(there) == content(tmp_path / "at_once")
    assert evaluate(base, there, "--tasks", "swuggy", "--split", "dev", *options) == 2
    assert "`split` (test there, dev here)" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "difference"), [
    (["--tasks", "swuggy", "--ttt", "off"], "`ttt` (on there, off here)"),
    (["--tasks", "sblimp", "--seed", "3"], "`seed` (0 there, 3 here)"),
    (["--tasks", "swuggy", "--text", "pad"], "`text` (none there, pad here)"),
    (["--tasks", "swuggy", "--limit", "2"], "`max_items` (none there, 2 here)"),
    (["--tasks", "swuggy", "--dtype", "bfloat16"], "`dtype` (float32 there, bfloat16 here)"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")  # fmt: skip
def test_other_options_are_refused_before_anything_is_done(there, bench, tiny_material, capsys, words, difference):
    before = content(there)
    assert evaluate(tiny_material.base_model, there, *words, "--data_root", bench, "--cache_dir", there / "fresh") == 2
    error = capsys.readouterr().err
    assert str(there) in error and difference in error and "another --out" in error and "--overwrite" in error
    assert error.count("\n") == 1 and content(there) == before


def test_another_checkpoint_replaces_nothing_unasked_and_everything_when_asked(
    there, bench, tiny_material, other_model, tmp_path, capsys
):
    """What the first model has left would otherwise be handed in as the second's."""
    assert evaluate(tiny_material.base_model, there, "--tasks", "sblimp", "--data_root", bench) == 0
    (there / "submission" / "meta.yaml").write_text("mine\n")
    (there / "samples" / "mine.txt").write_text("mine\n")
    assert main(["eval", "lm-eval", str(there)]) == 0
    before = content(there)
    options = ("--tasks", "swuggy", "--limit", "2", "--data_root", bench, "--cache_dir", tmp_path / "cache")
    assert evaluate(other_model, there, *options) == 2
    assert "the checkpoint (state base:" in capsys.readouterr().err
    assert content(there) == before
    assert evaluate(other_model, there, *options, "--overwrite") == 0
    assert evaluate(other_model, tmp_path / "anew", *options) == 0
    mine = {"submission/meta.yaml": b"mine\n", "samples/mine.txt": b"mine\n"}
    assert content(there) == content(tmp_path / "anew") | mine
    assert results(there)["checkpoint"]["state_id"] != json.loads(before["results.json"])["checkpoint"]["state_id"]


def test_what_measures_nothing_replaces_no_number(there, bench, tiny_material, tmp_path, capsys):
    before = content(there)
    broken = shutil.copytree(bench, tmp_path / "broken")
    for path in (broken / "sLM21-dataset").rglob("*.wav"):
        path.write_bytes(b"no sound")
    for more in (["--tasks", "sblimp"], ["--tasks", "sblimp", "--seed", "4", "--overwrite"]):
        fresh = tmp_path / more[-1]
        assert evaluate(tiny_material.base_model, there, *more, "--data_root", broken, "--cache_dir", fresh) == 2
        shown = " ".join(capsys.readouterr().out.split())
        assert "not run" in shown and "nothing was measured" in shown and "keeps what was measured before" in shown
        assert content(there) == before
    # One of two measured: the other keeps its number.
    fresh = tmp_path / "half"
    words = ("--tasks", "ssc,swuggy", "--data_root", broken, "--cache_dir", fresh)
    assert evaluate(tiny_material.base_model, there, *words) == 1
    assert "(measured before, and kept: swuggy)" in capsys.readouterr().out
    assert list(results(there)["tasks"]) == ["swuggy", "ssc"]
    assert results(there)["tasks"]["swuggy"] == json.loads(before["results.json"])["tasks"]["swuggy"]
    assert (
        content(there).items() >= {k: v for k, v in before.items() if k.startswith(("samples", "submission"))}.items()
    )


def test_other_recordings_replace_no_number(tiny_material, tmp_path, capsys):
    """Which recordings they are is known when they have been read."""
    fewer = shutil.copytree(tiny_material.eval_data.parent, tmp_path / "eval") / tiny_material.eval_data.name
    fewer.write_text("".join(fewer.read_text().splitlines(keepends=True)[:-1]))
    out = tmp_path / "out"
    assert evaluate(tiny_material.base_model, out, "--data", tiny_material.eval_data) == 0
    before = content(out)
    assert evaluate(tiny_material.base_model, out, "--data", fewer) == 2
    error = capsys.readouterr().err
    assert "perplexity: measured there on other data" in error and f"--cache_dir {out / 'cache'}" in error
    assert error.count("\n") == 1 and content(out) == before
    assert evaluate(tiny_material.base_model, out, "--data", fewer, "--overwrite") == 0
    assert (
        results(out)["tasks"]["perplexity"]["value"]
        != json.loads(before["results.json"])["tasks"]["perplexity"]["value"]
    )


def test_results_that_cannot_be_read_are_replaced_when_asked_only(there, bench, tiny_material, capsys):
    options = ("--tasks", "swuggy", "--data_root", bench)
    whole = (there / "results.json").read_bytes()
    (there / "results.json").write_bytes(whole[:-20])
    assert evaluate(tiny_material.base_model, there, *options) == 2
    assert "results.json is not valid JSON" in (error := capsys.readouterr().err) and "--overwrite" in error
    assert evaluate(tiny_material.base_model, there, *options, "--overwrite") == 0
    assert (there / "results.json").read_bytes() == whole


def test_of_replaced_results_nothing_is_left_that_could_be_taken_for_the_new_ones(
    there, bench, tiny_material, other_model, tmp_path
):
    """A file that cannot be replaced ends it in the middle: then there are no results, and no old submission."""
    (there / "timing.json").unlink()
    (there / "timing.json").mkdir()
    options = ("--tasks", "swuggy", "--limit", "2", "--data_root", bench, "--cache_dir", tmp_path / "cache")
    assert evaluate(other_model, there, *options, "--overwrite") == 2
    assert not (there / "results.json").exists() and not list((there / "submission").rglob("*.txt"))
    (there / "timing.json").rmdir()
    assert evaluate(other_model, there, *options) == 0
    assert results(there)["config"]["max_items"] == 2 and not (there / "submission").exists()
