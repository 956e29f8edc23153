"""`ttt-moshi ckpt` and `checkpoint_summary.py`: what they find, say, change and return."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ttt_moshi.checkpoint import CheckpointStore, Export, diff, export_weights, repair
from ttt_moshi.cli.main import main
from ttt_moshi.config import OptimArgs, TrainArgs, TTTArgs, to_dict

GATES = {
    "transformer.layers.1.ttt.forward_gating.gating_alpha": 0.5,
    "transformer.layers.1.ttt.backward_gating.gating_alpha": 0.1,
}


def save(store: CheckpointStore, step: int, lr: float = 1e-3, value: float | None = None) -> None:
    """A checkpoint as training writes it, of a model that is one matrix and one TTT layer's gates."""
    base = torch.full((4, 8), float(step) if value is None else value)
    tensors = {"param/linears.0.weight": base, "exp_avg/linears.0.weight": torch.zeros(4, 8) + step % 2}
    tensors |= {f"param/{name}": torch.full((8,), alpha) for name, alpha in GATES.items()}
    args = TrainArgs("runs/x", ttt=TTTArgs(enable=True), optim=OptimArgs(lr=lr, gate_lr=0.5), max_steps=10)
    store.save(
        step,
        kind="adapters",
        tensors=tensors,
        state={"step": step, "clips": 2 * step, "cursor": 2 * step, "update_counts": {"linears.0.weight": step}},
        exports={"lora.safetensors": {n: Export(f"param/{n}", torch.float32) for n in GATES}},
        documents={
            "consolidated/training_config.json": to_dict(args),
            "consolidated/ttt.json": {"layers": [1], "inner": "mlp", "mini_batch_size": 16, "base_lr": 1.0},
        },
        metrics={"loss": 10.0 - step if step < 3 else 9.5},
        info={"saved_at": "2026-01-02T03:04:05+00:00", "host": "h", "elapsed_seconds": 12.0},
    )
    store.wait()


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1 to 3."""
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        for step in (1, 2, 3):
            save(store, step)
    return tmp_path / "run"


@pytest.fixture()
def read(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `ckpt ... --json`, checks its exit status, and returns the document."""

    def call(*words: object, status: int = 0) -> Any:
        capsys.readouterr()
        assert main(["ckpt", *map(str, words), "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return call


def place(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"checkpoint_{step:06d}"


def damage(path: Path) -> None:
    file = path / "resume/shard_00000_of_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[4096] ^= 1  # where the data begins, with exp_avg
    file.write_bytes(content)


def test_every_form_of_path_leads_there(run: Path, read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["checkpoint_000001", "checkpoint_000002", "checkpoint_000003"]
    for path in (run, run / "checkpoints"):
        assert [record["name"] for record in read("ls", path)] == names
        assert [report["step"] for report in read("verify", path)] == [1, 2, 3]
        assert read("show", path)["step"] == 3
    monkeypatch.chdir(place(run, 2))
    for path in (place(run, 2), Path("."), place(run, 2) / "consolidated"):
        assert [record["name"] for record in read("ls", path)] == names[1:2]
        assert read("show", path)["step"] == 2


def test_wrong_words_end_with_status_2(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["lss"], "did you mean `ls`?"),
        (["ls", run, "--jsn"], "did you mean `--json`?"),
        (["ls", tmp_path / "nowhere"], "no folder at"),
        (["show", tmp_path], "neither a run, nor a checkpoints folder, nor a checkpoint"),
        (["prune", run], "--last"),
        (["prune", run, "--also", "junk"], "not 'junk'"),
        (["prune", run, "--also", "left", "--every", "2"], "name what is to be kept with --last N"),
        (["prune", run, "--last", "1", "--best", "1", "--metric", "los"], "they have: loss. Did you mean loss?"),
        (["put-back", place(run, 1)], "was not set aside"),
        (["put-back", run / "nothing"], "no folder at"),
        (["prune", run, "--last", "0"], "would leave none"),
        (["prune", place(run, 1), "--last", "1"], "is one checkpoint: name its folder"),
        (["repair", place(run, 1)], "is one checkpoint: name its folder"),
        (["pin", run], "is a whole folder"),
        (["export", run, run], "is not empty"),
        (["export", run, tmp_path / "new", "--shard-gb", "0"], "must be greater than 0"),
        (["bench", tmp_path / "nowhere"], "no folder at"),
        ([], "usage: ttt-moshi ckpt COMMAND"),
    ):
        capsys.readouterr()
        assert main(["ckpt", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert said in captured.out + captured.err, words
        assert "Traceback" not in captured.err


def test_show_explains_what_is_in_it(run: Path, read: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    seen = read("show", place(run, 2))
    assert seen["trained"] == {
        "base": {"tensors": 1, "elements": 32},
        "lora": {"tensors": 0, "elements": 0},
        "ttt": {"tensors": 2, "elements": 16},
    }
    assert seen["gates"]["1"]["forward"] == pytest.approx(0.46211716)  # tanh(0.5)
    assert seen["gates"]["1"]["backward"] == pytest.approx(0.09966799)
    rates = seen["learning_rates"]
    assert (rates["peak"]["ttt"], rates["peak"]["gate"]) == (1e-3, 0.5) and 0 < rates["share_at_next_step"] <= 1
    assert any("--checkpoint.resume_step 2" in use for use in seen["uses"])
    assert main(["ckpt", "show", str(place(run, 2))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("2 of 10, saved after step 1", "2 tensors, 16 elements", "layer 1: 0.4621 (prefix 0.0997)",
                  "4 clips heard", "loss 8.0000", "2026-01-02T03:04:05+00:00 on h after 12 s"):  # fmt: skip
        assert words in text, words


def test_show_warns_of_what_nothing_resumes_from(run: Path, read: Callable[..., Any]) -> None:
    with CheckpointStore(run / "checkpoints") as store:
        save(store, 4, value=float("nan"))
    uses = read("show", run / "checkpoints" / "unhealthy_000004")["uses"]
    assert len(uses) == 1 and "NaN or infinity (param/linears.0.weight" in uses[0]
    statuses = {record["name"]: record["status"] for record in read("ls", run)}
    assert statuses["unhealthy_000004"] == "unhealthy" and read("show", run)["step"] == 3
    # NaN has no size that JSON could hold.
    seen = read("diff", place(run, 3), run / "checkpoints" / "unhealthy_000004", status=1)
    assert seen["changed"]["param/linears.0.weight"] == {"max_abs": None, "relative": None}


def test_corruption_is_status_1_with_file_and_tensor(
    run: Path, read: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(place(run, 2))
    reports = read("verify", run, status=1)
    assert [report["ok"] for report in reports] == [True, False, True]
    (problem,) = reports[1]["problems"]
    assert problem["file"].startswith("resume/shard_") and problem["tensor"] in problem["what"]
    assert all(report["ok"] for report in read("verify", run, "--quick"))  # tensor data is not looked at
    assert main(["status", str(run)]) == 0
    assert main(["status", str(run), "--full"]) == 1
    assert main(["verify", "--checkpoint_dir", str(place(run, 2))]) == 1
    (place(run, 1) / "resume" / "state.json").unlink()
    records = read("ls", run, status=1)
    assert records[0]["status"] == "corrupt" and "state.json: the file is missing" in records[0]["problem"]
    (place(run, 3) / "manifest.json").unlink()
    assert main(["status", str(run)]) == 1
    assert "no manifest.json" in read("verify", place(run, 3), status=2)[0]["problems"][0]["what"]
    assert [record["status"] for record in read("ls", run, status=1)] == ["corrupt", "valid", "foreign"]
    assert main(["ckpt", "show", str(place(run, 3))]) == 2
    damaged = place(run, 2) / "resume"
    damaged.rename(run / "elsewhere")
    reports = read("verify", run, status=1)
    assert [report["status"] for report in reports] == ["corrupt", "corrupt", "foreign"]
    capsys.readouterr()


def test_diff_is_about_the_training_state(run: Path, tmp_path: Path, read: Callable[..., Any], capsys: Any) -> None:
    seen = read("diff", place(run, 1), place(run, 3), status=1)
    assert seen["changed"] == {"param/linears.0.weight": {"max_abs": 2.0, "relative": 2.0}}
    assert read("diff", place(run, 2), run, status=1)["changed"]["exp_avg/linears.0.weight"]["relative"] is None
    with CheckpointStore(tmp_path / "other") as store:
        save(store, 3, lr=2e-3)
    seen = read("diff", run, tmp_path / "other")  # another learning rate, the same state
    assert seen["same_state"] and seen["documents"] == {"consolidated/training_config.json: optim.lr": [1e-3, 2e-3]}
    assert main(["ckpt", "diff", str(place(run, 1)), str(place(run, 2))]) == 1
    text = capsys.readouterr().out
    assert text.index("param/linears.0.weight") < text.index("exp_avg/linears.0.weight")
    assert "state.cursor: 2 -> 4" in text and "numbers of updates of 1 parameters" in text


def test_prune_says_and_does_the_same(run: Path, read: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    rules = ("--last", 1, "--best", 1, "--metric", "loss")
    planned = read("prune", run, *rules, "--dry-run")
    assert [decision["keep"] for decision in planned] == [False, True, True]
    assert planned[1]["reason"] == "among the best 1 by loss"
    store = CheckpointStore(run / "checkpoints")
    assert store.steps() == [1, 2, 3]
    read("pin", place(run, 1))
    assert [record["pinned"] for record in read("ls", run)] == [True, False, False]
    assert all(decision["keep"] for decision in read("prune", run, *rules, "--dry-run"))
    read("pin", place(run, 1), "--off")
    with store:
        assert main(["ckpt", "prune", str(run), "--last", "1"]) == 2
        assert "is being written by process" in capsys.readouterr().err
    assert read("prune", run, *rules) == planned
    assert store.steps() == [2, 3]


def test_repair_reports_with_status_1_and_then_has_nothing_to_do(run: Path, read: Callable[..., Any]) -> None:
    (run / "checkpoints" / ".saving_000009").mkdir()
    damage(place(run, 3))
    done = read("repair", run, status=1)
    assert len(done) == 2 and ".saving_000009" in done[0] and "corrupt_000003" in done[1]
    assert read("repair", run) == []
    assert read("show", run)["step"] == 2


def test_export_refuses_damage(run: Path, tmp_path: Path, read: Callable[..., Any], capsys: Any) -> None:
    written = read("export", run, tmp_path / "out")["files"]
    assert {Path(name).name for name in written} == {"training_config.json", "ttt.json", "lora.safetensors"}
    assert all(Path(name).stat().st_size == size for name, size in written.items())
    file = place(run, 3) / "consolidated/lora.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert main(["ckpt", "export", str(run), str(tmp_path / "bad")]) == 2
    assert "lora.safetensors: tensor" in capsys.readouterr().err
    assert not (tmp_path / "bad" / "lora.safetensors").exists(), "half a file of the full size loads"


def test_bench_measures_beside_the_bare_disk(tmp_path: Path, read: Callable[..., Any]) -> None:
    result = read("bench", tmp_path, "--gigabytes", 0.02, "--rounds", 1, "--many", 2)
    figures = {figure["what"]: figure for figure in result["figures"]}
    judged = [figure for figure in figures.values() if figure["goal"]]
    assert len(judged) == 9 and len(figures) > len(judged)
    for figure in judged:
        sign, limit = figure["goal"].split()
        assert figure["lowest"] <= figure["median"] <= figure["highest"]
        assert figure["met"] == (figure["median"] <= float(limit) if sign == "<=" else figure["median"] >= float(limit))
    seconds, save = result["median_seconds"], figures["training blocked / memcpy of the same bytes"]
    assert save["median"] == pytest.approx(seconds["ours_blocked"] / seconds["memcpy"])  # one round
    assert list(tmp_path.iterdir()) == []


def test_bench_compares_within_rounds_and_judges_medians() -> None:
    from ttt_moshi.cli.ckpt import _benchmark

    bench, order = _benchmark(), []
    works = [(name, lambda: None) for name in ("raw", "ours", "raw")]
    times = bench.measured(3, works, order.append, lambda number, current: order.append((number, *current)))
    assert order == [item for n in range(3) for item in ("raw", "ours", "raw", (n, "raw", "ours"))]
    assert {name: len(values) for name, values in times.items()} == {"raw": 3, "ours": 3}
    # A slow minute makes both ten times slower in the second round: their ratio does not change.
    save = {key: [1.0, 10.0, 1.0] for key in ("memcpy", "dcp_save", "torch_save", "safetensors_save")}
    save["raw_direct_overwrite"] = [1.0, 1.0, 1.0]
    save |= {"ours_blocked": [1.2, 12.0, 1.2], "ours_durable": [2.0, 20.0, 2.0], "raw_direct_write": [1.6, 16.0, 1.0]}
    unjudged = ("ours_load_of_a_quarter", "dcp_load", "safetensors_load")
    load = {key: [1.0, 4.0, 1.0] for key in ("ours_deep_verify", *unjudged)}
    load |= {"hash_only": [0.1, 3.0, 0.1], "raw_direct_read": [0.8, 2.0, 0.8], "ours_verified_load": [1.0, 2.5, 1.0]}
    windows = ("alone", "beside_a_save", "beside_two_computing_threads")
    stall = {f"{name}_{key}": [2.0, 30.0, 4.0] for name in windows for key in ("longest", "median")}
    memory = {"extra_mib_of_one_save": 65.0, "growth_mib": 0.5, "growing_saves": 75}
    choosing = {"checkpoints": 11, "seconds": 0.1}
    records = [figure.record() for figure in bench.figures(save, load, stall, memory, choosing)]
    found = {
        record["what"]: (record["median"], record["lowest"], record["highest"], record["met"]) for record in records
    }
    assert found["training blocked / memcpy of the same bytes"] == pytest.approx((1.2, 1.2, 1.2, True))
    assert found["bare direct write / durable save"] == pytest.approx((0.8, 0.5, 0.8, True))
    assert found["slower of bare read and hash / deep verify"] == pytest.approx((0.8, 0.5, 0.8, False))
    assert found["verified load / bare direct read"] == pytest.approx((1.25, 1.25, 1.25, True))
    assert found["longest training step beside a save, ms"] == (4.0, 2.0, 30.0, True)
    assert found["MiB of memory of a save with exports, beside the image"][3] is False
    assert found["longest training step alone, ms"][3] is None


def test_long_work_says_how_far_it_is(run: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"export": [], "diff": [], "repair": []}
    export_weights(place(run, 3), tmp_path / "out", 16, lambda *done: seen["export"].append(done))
    diff(place(run, 1), place(run, 2), lambda *done: seen["diff"].append(done))
    repair(run / "checkpoints", True, lambda *done: seen["repair"].append(done))
    assert seen["diff"][-1] == (64, 64)
    assert seen["export"] == [(32, 64), (64, 64)]
    assert all(0 < part <= whole for part, whole in seen["repair"])


def test_everything_is_counted_and_goes_when_asked(run: Path, read: Callable[..., Any], capsys: Any) -> None:
    root = run / "checkpoints"
    damage(place(run, 3))
    assert len(read("repair", run, status=1)) == 1
    with CheckpointStore(root, log=lambda line: None) as store:
        store.leave_branch(1)
        save(store, 4, value=float("nan"))
    (root / ".saving_000009").mkdir()
    (root / ".saving_000009" / "x").write_bytes(b"12345")
    (root / "notes.txt").write_text("mine")
    records = {record["name"]: record for record in read("ls", run)}
    assert {name: record["status"] for name, record in records.items()} == {
        ".saving_000009": "leftover",
        "checkpoint_000001": "valid",
        "corrupt_000003": "set aside",
        "left_000002": "set aside",
        "notes.txt": "foreign",
        "unhealthy_000004": "unhealthy",
    }
    own = {"LOCK", "LATEST", "journal.jsonl", "measured.json"}
    files = [file for file in root.rglob("*") if file.is_file() and file.name not in own]
    assert sum(record["bytes"] for record in records.values()) == sum(file.stat().st_size for file in files)
    long = root / f"corrupt_{'x' * 90}"
    long.mkdir()
    assert main(["ckpt", "ls", str(run)]) == 0
    listed = capsys.readouterr().out
    assert "2 set aside" in listed
    assert {line.split()[0] for line in listed.splitlines() if line} >= {long.name, "left_000002", "notes.txt"}
    long.rmdir()
    main(["status", str(run)])
    assert str(root) in capsys.readouterr().out.splitlines()
    assert main(["ckpt", "pin", str(root / "left_000002")]) == 2
    assert "is set aside" in capsys.readouterr().err
    assert read("put-back", root / "left_000002")["path"].endswith("checkpoint_000002")
    planned = read("prune", run, "--also", "corrupt,leftover", "--dry-run")
    assert [item["name"] for item in planned] == [".saving_000009", "corrupt_000003"]
    assert read("prune", run, "--also", "corrupt,leftover") == planned
    assert len(read("prune", run, "--last", "1", "--also", "unhealthy,foreign")) == 4
    assert [record["name"] for record in read("ls", run)] == ["checkpoint_000002"]
    # What an earlier deletion left goes with the next, whatever is asked for; unfinished saves do not.
    for name, size in ((".trash_checkpoint_000001", 7), (".saving_000009", 5)):
        (root / name).mkdir()
        (root / name / "some").write_bytes(b"x" * size)
    planned = read("prune", run, "--last", "1", "--dry-run")
    assert [(item["name"], item["bytes"]) for item in planned if not item["keep"]] == [(".trash_checkpoint_000001", 7)]
    assert read("prune", run, "--last", "1") == planned
    assert [record["name"] for record in read("ls", run)] == [".saving_000009", "checkpoint_000002"]


def test_what_a_link_leads_to_is_never_touched(run: Path, tmp_path: Path, read: Callable[..., Any]) -> None:
    """A checkpoint of another run, linked to go on from here: setting aside, putting back and deleting it."""
    other = tmp_path / "other"
    other.mkdir()
    for step in (2, 3):
        place(run, step).rename(other / place(run, step).name)
        place(run, step).symlink_to(other / place(run, step).name)
    before = {file: file.read_bytes() for file in other.rglob("*") if file.is_file()}
    root = run / "checkpoints"
    with CheckpointStore(root, log=lambda line: None) as store:
        store.leave_branch(1)
    assert "resumed from step 1" in (root / "journal.jsonl").read_text()
    assert read("put-back", root / "left_000002")["path"].endswith("checkpoint_000002")
    for link in ("left_000003", "checkpoint_000002"):
        assert (root / link).is_symlink() and read("verify", root / link)[0]["ok"]
    gone = read("prune", run, "--last", "1", "--also", "left")
    assert [(item["name"], item["bytes"] > 0) for item in gone if not item["keep"]] == [
        ("checkpoint_000001", True),
        ("left_000003", False),
    ]
    assert {file: file.read_bytes() for file in other.rglob("*") if file.is_file()} == before


def test_manifests_are_read_without_torch(run: Path) -> None:
    """Listing, explaining and verifying start at once: nothing of them imports torch."""
    program = (
        "import sys; from ttt_moshi.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(3 if 'torch' in sys.modules else code)"
    )
    for words in (
        ["ls", run],
        ["show", run],
        ["verify", run],
        ["--help"],
        ["prune", run, "--last", "2"],
        ["repair", run],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, "ckpt", *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.returncode} {done.stderr}"


def test_the_package_imports_where_linux_calls_are_missing(run: Path) -> None:
    """As on macOS: no O_DIRECT, no posix_fadvise, no posix_fallocate, no sched_getaffinity, no huge pages, no /proc."""
    program = """
import builtins, mmap, os, pathlib, sys
for name in ("O_DIRECT", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "POSIX_FADV_DONTNEED"):
    delattr(os, name)
del mmap.MADV_HUGEPAGE
real = pathlib.Path.read_text
def read_text(self, *args, **options):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(self)
    return real(self, *args, **options)
pathlib.Path.read_text = read_text
import torch
from ttt_moshi.checkpoint import CheckpointStore, Retention, verify
root = pathlib.Path(sys.argv[1])
with CheckpointStore(root, retention=Retention(last=1)) as store:
    for step in (11, 12):
        store.save(step, kind="adapters", tensors={"param/w": torch.full((9,), float(step))}, state={})
        store.wait()
values = {"param/w": torch.zeros(9)}
assert store.load(tensors=values).step == 12 and values["param/w"][0] == 12 and verify(store.path(12)).ok
assert store.steps() == [12]
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(run / "elsewhere")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
