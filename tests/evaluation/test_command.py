"""`eval_from_checkpoint.py` and `ttt-moshi eval`, on generated speech and a tiny model."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.written import results
from tests.processes import TORCHRUN, Process, Warm
from ttt_moshi.cli.eval_options import Request, parser
from ttt_moshi.cli.main import main
from ttt_moshi.config import TrainArgs
from ttt_moshi.evaluation.compare import compare, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def evaluated(bench, tiny_material, tmp_path_factory):
    """The base model on everything there is; read-only for the tests."""
    out = tmp_path_factory.mktemp("evaluated")
    return out, run(tiny_material, out, "--eval_type", "both", "--tasks", ALL, "--data_root", bench)


ALL = "swuggy,sblimp,ssc,tsc,salmon,position,context,repeat,needle,spoken_repeat,context_dialog"
NO_FIGURE = ("context_dialog",)


def run(material, out, *more) -> int:
    base = ["--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main(["eval", *base, "--data", str(material.eval_data), "--out", str(out), *map(str, more)])


def test_every_task_runs_and_says_on_how_many_items(evaluated):
    out, status = evaluated
    assert status == 0
    found = results(out)
    assert list(found["tasks"]) == ["perplexity", *ALL.split(",")]
    for name, task in found["tasks"].items():
        assert task["status"] == "ok", name
        assert task["ci95"][0] <= task["value"] <= task["ci95"][1]
        assert task["n"] >= 1
        lines = (out / "samples" / f"{name}.jsonl").read_text().splitlines()
        assert len({json.loads(line)["id"] for line in lines}) == len(lines)
    assert found["checkpoint"]["state_id"].startswith("base:")
    assert found["config"]["text"] is None and found["tasks"]["swuggy"]["options"]["text"] == "absent"
    assert found["tasks"]["swuggy"]["pairs"] == 6 and found["tasks"]["swuggy"]["n"] == 3
    assert str(ROOT) not in json.dumps(found) and "/tmp" not in json.dumps(found)


def test_the_submission_files_score_the_same_by_an_independent_reading(evaluated, bench):
    out, _ = evaluated
    for task, kind in (("swuggy", "lexical"), ("sblimp", "syntactic")):
        lines = (out / "submission" / kind / "test.txt").read_text().splitlines()
        score = {name: float(value) for name, value in (line.split(" ") for line in lines)}
        with (bench / "sLM21-dataset" / kind / "test" / "gold.csv").open() as file:
            gold = list(csv.DictReader(file))
        assert set(score) == {row["filename"] for row in gold}
        items: dict[tuple, dict] = {}
        for row in gold:
            key = (row.get("type"), row["id"])
            items.setdefault(key, {}).setdefault(row["voice"], {})[row["correct"]] = score[row["filename"]]
        pair = [[0.5 * (v["1"] == v["0"]) + (v["1"] > v["0"]) for v in voices.values()] for voices in items.values()]
        assert results(out)["tasks"][task]["value"] == pytest.approx(np.mean([np.mean(p) for p in pair]))


def test_reports_are_self_contained_and_show_what_was_measured(evaluated):
    out, _ = evaluated
    page = (out / "report.html").read_text()
    assert "<script" not in page and "src=" not in page
    assert page.count("<svg") == 1 + len(ALL.split(",")) - len(NO_FIGURE)
    for name, task in results(out)["tasks"].items():
        assert f"{task['value']:.4f}" in page, name
        assert name in NO_FIGURE or (out / "plots" / f"{name}.png").stat().st_size > 2000
    assert "attention window, 32 frames" in page


def files(out: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name != "timing.json" and "cache" not in p.parts
    }


def untouched(cache: Path) -> dict[Path, int]:
    """When each cached file was written; what is remembered of digests may grow at any time."""
    return {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file() and p.name != ".digests.jsonl"}


def test_two_evaluations_are_byte_equal_and_a_second_one_uses_the_cache(evaluated, bench, tiny_material, tmp_path):
    out, _ = evaluated
    again = tmp_path / "again"
    shutil.copytree(out / "cache" / "codes", again / "cache" / "codes")  # the codec is tested elsewhere; save its time
    assert run(tiny_material, again, "--eval_type", "both", "--tasks", ALL, "--data_root", bench) == 0
    assert files(again) == files(out)
    cached = tmp_path / "cached"
    options = ("--eval_type", "both", "--tasks", ALL, "--data_root", bench, "--cache_dir", out / "cache")
    before = untouched(out / "cache")
    assert run(tiny_material, cached, *options) == 0
    assert files(cached) == files(out)
    assert untouched(out / "cache") == before


def test_two_processes_share_an_evaluation_and_end_byte_equal(evaluated, bench, tiny_material, tmp_path, warm):
    out, _ = evaluated
    shared = tmp_path / "shared"
    options = [
        "--checkpoint_dir", "base", "--hf_repo_id", tiny_material.base_model, "--dtype", "float32",
        "--data", tiny_material.eval_data, "--out", shared, "--eval_type", "both", "--tasks", ALL,
        "--data_root", bench, "--device", "cpu",
    ]  # fmt: skip
    result = torchrun(warm, options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("results:") == 1
    assert files(shared) == files(out)
    for kind in ("codes", "nll"):
        made, alone = (
            {p.name: p.read_bytes() for p in (d / "cache" / kind).rglob("*.safetensors")} for d in (shared, out)
        )
        assert made == alone


def torchrun(warm: Warm, options: list) -> Process:
    """The root script in two processes."""
    return warm.run([*TORCHRUN, 2, ROOT / "eval_from_checkpoint.py", *options])


def test_batch_size_one_is_really_one_and_agrees(evaluated, bench, tiny_material, tmp_path):
    out, _ = evaluated
    shutil.copytree(out / "cache" / "codes", tmp_path / "cache" / "codes")
    assert (
        run(
            tiny_material,
            tmp_path,
            "--batch_size",
            "1",
            "--tasks",
            "swuggy",
            "--reference",
            "moshiko",
            "--data_root",
            bench,
        )
        == 0
    )
    assert results(tmp_path)["tasks"]["swuggy"]["reference"] == {
        "name": "moshiko", "value": 0.63, "deviation": results(tmp_path)["tasks"]["swuggy"]["value"] - 0.63,
    }  # fmt: skip
    shards = list((tmp_path / "cache" / "nll").rglob("*.safetensors"))
    assert len(shards) == 12  # one forward pass per recording
    one, many = results(tmp_path)["tasks"]["swuggy"], results(out)["tasks"]["swuggy"]
    assert one["value"] == many["value"] and one["reductions"] == many["reductions"]


def test_the_tasks_that_are_named_run_and_no_other(bench, tiny_material, tmp_path, evaluated):
    out, _ = evaluated
    shutil.copytree(out / "cache", tmp_path / "cache")
    for words, names in (
        (["--tasks", "ssc"], ["ssc"]),
        (["--tasks", "ssc", "--eval_type", "standard"], ["ssc"]),
        (["--tasks", "tsc,ppl"], ["tsc", "perplexity"]),
        (["--eval_type", "both", "--tasks", "ssc", "--limit", "1"], ["perplexity", "ssc"]),
    ):
        folder = tmp_path / "_".join(words).replace(",", "_")
        assert run(tiny_material, folder, *words, "--data_root", bench, "--cache_dir", tmp_path / "cache") == 0
        assert list(results(folder)["tasks"]) == names
    limited, whole = results(folder)["tasks"]["perplexity"], results(out)["tasks"]["perplexity"]
    assert limited["n"] == 1 < whole["n"] and limited["value"] != whole["value"]
    assert results(folder)["data"]["perplexity"]["digest"] != results(out)["data"]["perplexity"]["digest"]


def test_streams_of_every_task_are_recorded_as_they_were(bench, tiny_material, tmp_path, evaluated):
    out, _ = evaluated
    usual = {name: task["options"] for name, task in results(out)["tasks"].items()}
    assert all(task["protocol"] == {"dtype": "float32"} for task in results(out)["tasks"].values())
    assert usual["perplexity"] == {"ttt": "on", "text": "given", "user": "natural", "chunk_frames": 1500, "sink": 0}
    assert usual["ssc"] == {"ttt": "on", "text": "absent", "user": "silence", "chunk_frames": 1500, "sink": 0}
    words = ("--tasks", "ppl,ssc", "--text", "pad", "--user", "absent", "--data_root", bench)
    assert run(tiny_material, tmp_path, *words, "--cache_dir", out / "cache") == 0
    for name, task in results(tmp_path)["tasks"].items():
        assert task["options"] == usual[name] | {"text": "pad", "user": "absent"}
        lines = [(folder / "samples" / f"{name}.jsonl").read_text() for folder in (out, tmp_path)]
        assert lines[0] != lines[1]
    assert "text_words" not in results(tmp_path)["tasks"]["perplexity"]["components"]


NO_PLAIN_MEAN = {"perplexity": "exp of a mean over tokens", "position": "a mean over tokens, not over books"}


def test_a_paired_difference_is_that_of_the_values_beside_it(bench, tiny_material, tmp_path, evaluated):
    """Both models answered all items, so the mean of the differences is the difference of the means."""
    out, _ = evaluated
    other = tmp_path / "other"
    shutil.copytree(out / "cache" / "codes", other / "cache" / "codes")
    names = [name for name in ALL.split(",") if name not in NO_PLAIN_MEAN]
    assert run(tiny_material, other, "--tasks", ",".join(names), "--data_root", bench, "--text", "pad") == 0
    found = compare([load(out), load(other)])["tasks"]
    for name in names:
        first, second = (results(folder)["tasks"][name] for folder in (out, other))
        better = second["value"] - first["value"] if first["better"] == "higher" else first["value"] - second["value"]
        assert found[name]["against_first"][0]["difference"] == pytest.approx(better, abs=1e-9), name
        assert better or first["chance"] == 0.5, name  # of a few choices the same may be right


def test_missing_data_is_not_run_and_the_status_says_so(tiny_material, tmp_path, capsys):
    (tmp_path / "bench").mkdir()
    status = run(tiny_material, tmp_path / "out", "--eval_type", "both", "--data_root", tmp_path / "bench")
    assert status == 1
    tasks = results(tmp_path / "out")["tasks"]
    assert tasks["perplexity"]["status"] == "ok"
    for name in ("swuggy", "sblimp", "ssc", "tsc"):
        assert tasks[name]["status"] == "skipped" and tasks[name]["value"] is None and tasks[name]["n"] == 0
        assert tasks[name]["reason"]
    assert "not run" in capsys.readouterr().out


def test_nothing_measured_is_status_2_and_names_are_refused_before_the_model_is_read(tmp_path, tiny_material, capsys):
    command = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--out"]
    assert main([*command, str(tmp_path), "--eval_type", "paper_metrics", "--data_root", str(tmp_path)]) == 2
    capsys.readouterr()
    command = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tmp_path / "no model"), "--out", str(tmp_path)]
    for mistake, expected in (
        (["--tasks", "swugy"], "did you mean `swuggy`?"),
        (["--ttt", "offf"], "it is on, off, no_writes, reset:FRAMES or swapped:FRAMES"),
    ):
        assert main([*command, *mistake]) == 2
        assert expected in capsys.readouterr().err


def test_a_config_gives_data_and_evaluation_options_only(tiny_material, bench, tmp_path):
    """A whole training configuration may be given; what it says about the model changes nothing."""
    config = tmp_path / "c.yaml"
    config.write_text(
        f"run_dir: x\nduration_sec: 4\nbatch_size: 1\ndata:\n  eval_data: {tiny_material.eval_data}\n"
        f"paper_metrics:\n  data_root: {bench}\n  tasks: swuggy\n  split: dev\n  max_items: 2\n"
        "ttt:\n  enable: true\n  layers: all\nlora:\n  enable: true\n"
    )
    arguments = [
        "eval",
        "--checkpoint_dir",
        "base",
        "--hf_repo_id",
        str(tiny_material.base_model),
        "--dtype",
        "float32",
    ]
    out = tmp_path / "out"
    assert main([*arguments, "--config", str(config), "--out", str(out), "--eval_type", "both"]) == 0
    found = results(out)
    assert found["config"]["duration_sec"] == 4.0
    assert list(found["tasks"]) == ["perplexity", "swuggy"]
    assert found["tasks"]["swuggy"]["n"] == 2 and found["config"]["split"] == "dev"
    # The items of `paper_metrics` are those of benchmarks, and a batch of training is none of an evaluation.
    assert found["config"]["paper_metrics_max_items"] == 2 and found["config"]["max_items"] is None
    assert found["data"]["perplexity"]["samples"] > 2 and found["config"]["batch_size"] is None
    assert not (out / "submission").exists()
    assert found["checkpoint"]["kind"] == "base"
    out = tmp_path / "fewer"
    assert main([*arguments, "--config", str(config), "--out", str(out), "--tasks", "ssc", "--max_items", "1"]) == 0
    assert results(out)["tasks"]["ssc"]["status"] == "ok" and results(out)["config"]["max_items"] == 1


@pytest.mark.parametrize(("words", "recorded"), [
    ([], (None, None)),
    (["--tasks", "perplexity,dialogue"], (None, None)),
    (["--tasks", "perplexity,ssc"], (None, 2)),
    (["--tasks", "perplexity,ssc", "--max_items", "3"], (3, None)),
])  # fmt: skip
def test_what_bounds_the_items_is_recorded_where_it_acts(tmp_path, words, recorded):
    config = tmp_path / "c.yaml"
    config.write_text("paper_metrics:\n  max_items: 2\n")
    options = parser().parse_args(["--checkpoint_dir", "c", "--config", str(config), *words])
    found = Request.of(options).recorded(TrainArgs(run_dir="x"))
    assert (found["max_items"], found["paper_metrics_max_items"]) == recorded


def test_mistakes_are_one_clear_line(tiny_material, tmp_path, capsys):
    for words, message in (
        (["--checkpoint_dir", str(tmp_path / "gone")], "is not a checkpoint: there is no such folder"),
        (["--checkpoint_dir", "base"], "needs --hf_repo_id"),
        (["--checkpoint_dr", "x"], "checkpoint_dir"),
        (["--checkpoint_dir", "x", "--batch_sise", "1"], "--batch_size"),
        (["--checkpoint_dir", "x", "--batch_size", "0"], "0 is not a whole number greater than 0"),
    ):
        assert main(["eval", *words]) == 2
        assert message in capsys.readouterr().err
    assert run(tiny_material, tmp_path, "--tasks", "swugy") == 2
    assert "there are perplexity, " in capsys.readouterr().err


def test_stored_evaluations_are_listed_compared_and_reported_again(evaluated, tmp_path, capsys):
    out, _ = evaluated
    other = tmp_path / "other"
    shutil.copytree(out, other, ignore=shutil.ignore_patterns("cache"))
    assert main(["eval", "ls", str(tmp_path)]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["eval", "compare", str(out), str(other), "--out", str(tmp_path / "cmp")]) == 0
    comparison = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert all(t["against_first"][0]["difference"] == 0 for t in comparison["tasks"].values())
    assert main(["eval", "report", str(out), str(other), "--out", str(tmp_path / "several")]) == 0
    assert (tmp_path / "several" / "report.html").read_bytes() == (tmp_path / "cmp" / "report.html").read_bytes()
    (other / "report.html").unlink()
    assert main(["eval", "report", str(other)]) == 0
    assert (other / "report.html").read_bytes() == (out / "report.html").read_bytes()
    assert main(["eval", "ls", str(tmp_path / "cmp")]) == 1


def test_the_documented_recipe_for_the_released_model_runs(bench, tiny_material, tmp_path, capsys):
    """The command of the documentation, with a small model and small files in the same layouts."""
    text = (ROOT / "docs" / "evaluation.md").read_text().replace("\\\n", " ")
    (line,) = [
        line for line in text.splitlines() if "--reference moshiko" in line and line.startswith("ttt-moshi eval")
    ]
    places = {
        "kyutai/moshiko-pytorch-bf16": str(tiny_material.base_model),
        "cuda": "cpu",
        "BENCH": str(bench),
        "results/moshiko": str(tmp_path / "out"),
    }
    words = [places.pop(word, word) for word in line.split()[1:]]
    assert not places
    assert main([*words, "--max_items", "2"]) == 0
    found = results(tmp_path / "out")
    assert list(found["tasks"]) == ["swuggy", "sblimp", "ssc", "tsc"]
    assert found["config"]["max_items"] == 2 and found["config"]["dtype"] == "bfloat16"
    assert all("deviation" in task["reference"] for task in found["tasks"].values())
    assert "points)" in "".join(capsys.readouterr().out.split("\n"))


def test_no_recording_is_encoded_that_no_item_is_of(tiny_material, tmp_path):
    """Encoding takes most of the time, and with `--limit` most of it would be for nothing."""
    cache = tmp_path / "codes"
    (tmp_path / "data.yaml").write_text(f"data:\n  code_cache_dir: {cache}\n")
    words = ["--tasks", "dialogue", "--config", tmp_path / "data.yaml"]
    for limit in (1, 2):
        assert run(tiny_material, tmp_path / str(limit), *words, "--limit", limit) == 0
        assert results(tmp_path / str(limit))["tasks"]["dialogue"]["n"] == limit
        assert len(list(cache.rglob("*.safetensors"))) == limit


def test_a_file_that_cannot_be_opened_costs_one_task(bench, tiny_material, tmp_path):
    """Its name is longer than any file's, as of audio that stands in the list itself."""
    root = tmp_path / "bench"
    shutil.copytree(bench, root)
    (root / "llama_questions").mkdir()
    line = {"audio": "data:audio/wav;base64," + "A" * 400, "question": "who?", "answer": "me"}
    (root / "llama_questions" / "questions.jsonl").write_text(json.dumps(line) + "\n")
    assert run(tiny_material, tmp_path / "out", "--tasks", "swuggy,llama_questions", "--data_root", root) == 1
    assert [task["status"] for task in results(tmp_path / "out")["tasks"].values()] == ["ok", "skipped"]


def test_scores_of_other_software_are_measured_again(bench, tiny_material, tmp_path, monkeypatch):
    words = ["--tasks", "swuggy", "--data_root", bench, "--cache_dir", tmp_path / "cache"]
    assert run(tiny_material, tmp_path / "old", *words) == 0
    scores = len(list((tmp_path / "cache/nll").rglob("*.safetensors")))
    assert run(tiny_material, tmp_path / "same", *words) == 0
    assert len(list((tmp_path / "cache/nll").rglob("*.safetensors"))) == scores
    monkeypatch.setattr("ttt_moshi.evaluation.scoring.scorer.versions", lambda: {"torch": "9.9.9"})
    assert run(tiny_material, tmp_path / "new", *words) == 0
    assert len(list((tmp_path / "cache/nll").rglob("*.safetensors"))) == 2 * scores


def test_lists_for_versa(bench, tmp_path):
    folder = bench / "sSC"
    (tmp_path / "ref").mkdir()
    for path in folder.glob("*.wav"):
        shutil.copy(path, tmp_path / "ref")
    name = sorted(folder.glob("*.wav"))[0].stem
    words = [["hello", [0, 1], "SPEAKER_MAIN"], ["no", [1, 2], "SPEAKER_OTHER"], ["there", [1, 2], "SPEAKER_MAIN"]]
    (tmp_path / "ref" / f"{name}.json").write_text(json.dumps({"alignments": words}))
    arguments = ["eval", "versa", str(folder), "--references", str(tmp_path / "ref"), "--out", str(tmp_path / "v")]
    assert main(arguments) == 0
    for kind in ("pred.scp", "gt.scp"):
        for line in (tmp_path / "v" / kind).read_text().splitlines():
            key, path = line.split(" ", 1)
            assert Path(path).is_file() and Path(path).stem == key
    assert (tmp_path / "v" / "text").read_text() == f"{name} hello there\n"
    sorted((tmp_path / "ref").glob("*.wav"))[-1].unlink()
    assert main(arguments) == 2


def sounds(folder: Path, *names: str) -> Path:
    """A folder of recordings that nobody listens to."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def versa(predicted: Path, out: Path, *more) -> int:
    return main(["eval", "versa", str(predicted), "--out", str(out), *map(str, more)])


def test_lists_for_versa_hold_what_was_asked_for_now(tmp_path):
    predicted = sounds(tmp_path / "p", "a.wav", "b.FLAC", "C.WAV", "._b.wav", "x.txt")
    true = sounds(tmp_path / "t", "a.wav", "b.wav", "C.wav", "._a.wav")
    (true / "a.json").write_text(json.dumps({"alignments": [["two\nlines", [0, 1], "SPEAKER_MAIN"]]}))
    (true / "._a.json").write_bytes(b"\0")
    out = tmp_path / "v"
    assert versa(predicted, out, "--references", true) == 0
    lines = (out / "pred.scp").read_text().splitlines()
    assert lines == [f"{Path(n).stem} {predicted / n}" for n in ("C.WAV", "a.wav", "b.FLAC")]
    assert (out / "text").read_text() == "a two lines\n" and len((out / "gt.scp").read_text().splitlines()) == 3
    (out / "mine").write_text("")
    assert versa(predicted, out) == 0
    assert {path.name for path in out.iterdir()} == {"pred.scp", "mine"}


def test_lists_for_versa_of_many_conversations(tmp_path):
    said = sounds(tmp_path / "s", "one/output.wav", "one/input.wav", "two/output.wav")
    words = {"alignments": [["hello", [0, 1], "SPEAKER_MAIN"]]}
    (said / "one" / "output.json").write_text(json.dumps(words))
    assert versa(said, tmp_path / "v") == 0
    expected = [f"{name} {said / name / 'output.wav'}" for name in ("one", "two")]
    assert (tmp_path / "v" / "pred.scp").read_text().splitlines() == expected
    assert (tmp_path / "v" / "text").read_text() == "one hello\n"


@pytest.mark.parametrize("names", [["a b.wav"], ["a\nb.wav"], ["a.wav", "a.flac"], [" x/output.wav"], ["x\u00a0.wav"]])
def test_names_that_a_list_for_versa_cannot_hold_are_refused(tmp_path, capsys, names):
    assert versa(sounds(tmp_path / "p", *names), tmp_path / "v") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "rename" in error and not (tmp_path / "v").exists()


def test_a_folder_that_a_list_for_versa_cannot_hold_is_refused(tmp_path, capsys):
    assert versa(sounds(tmp_path / "a\nb", "x.wav"), tmp_path / "v") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "rename" in error and not (tmp_path / "v").exists()


def test_the_script_at_the_root(tmp_path):
    environment = os.environ | {"NO_TORCH_COMPILE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval_from_checkpoint.py"), "--checkpoint_dir", str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is not a checkpoint" in done.stderr and "Traceback" not in done.stderr


def test_results_are_converted_to_those_of_lm_eval(evaluated, tmp_path, capsys):
    """Read as its table reads them: `metric,filter` with `metric_stderr,filter` beside it."""
    out, _ = evaluated
    target = tmp_path / "new" / "lm.json"
    assert main(["eval", "lm-eval", str(out), "--out", str(target)]) == 0
    found, own = json.loads(target.read_text()), results(out)
    assert set(found["results"]) == set(own["tasks"])
    for name, values in found["results"].items():
        task = own["tasks"][name]
        rows = [
            key.partition(",") for key in values if key != "alias" and not key.partition(",")[0].endswith("_stderr")
        ]
        ((metric, _, kind),) = rows
        assert kind == "none" and values[f"{metric},none"] == task["value"]
        width = task["ci95"][1] - task["ci95"][0]
        expected = pytest.approx(width / 3.92, rel=1e-4) if task["n"] > 1 else "N/A"
        assert values[f"{metric}_stderr,none"] == expected
        assert found["higher_is_better"][name] == {metric: task["better"] == "higher"}
        assert found["versions"][name] == task["version"] and found["n-shot"][name] == 0
        assert found["n-samples"][name]["effective"] == task["n"] and found["group_subtasks"][name] == []
        assert found["configs"][name]["metadata"]["version"] == task["version"]
        assert found["task_hashes"][name] == own["data"][name]["digest"]
    assert "acc,none" in found["results"]["swuggy"] and "nll,none" in found["results"]["position"]
    assert own["checkpoint"]["state_id"] in found["config"]["model_args"] and found["date"] > 0
    left = json.loads((out / "results.json").read_text())
    left["tasks"] = {"ssc": {"status": "skipped", "value": None, "ci95": None, "n": 0, "reason": "none"}}
    (tmp_path / "results.json").write_text(json.dumps(left))
    capsys.readouterr()
    for words, complaint in (
        ([str(tmp_path)], "no task was measured"),
        ([str(tmp_path / "gone")], "no evaluation at"),
        ([str(out), "--out", str(tmp_path)], "is a folder; name a file"),
        ([str(out), "--out", str(out / "results.json")], "name another file"),
    ):
        assert main(["eval", "lm-eval", *words]) == 2
        assert complaint in capsys.readouterr().err
    assert results(out) == own
