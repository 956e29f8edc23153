"""No key of a training configuration is recorded and does nothing: with another value something else is found."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import pytest
import torch

from tests.evaluation import speech_benchmarks
from tests.processes import ENV
from ttt_moshi.config import TrainArgs, flatten
from ttt_moshi.config_idle import SWITCHES
from ttt_moshi.config_io import parse_train_args
from ttt_moshi.data.encoded import write_encoded
from ttt_moshi.training import run

if TYPE_CHECKING:
    from tests.training.conftest import Launch
    from ttt_moshi.synthetic import Material

CLIP = 10
EVERY = 8  # of so many cases one is in the daily tests, the rest in `make test-doors`
ROOT = Path(__file__).parents[2]

Trained = Callable[[str, Mapping[str, str]], dict[str, Any]]
"""Trains in a folder of a name, with other values than the usual ones; what a person finds afterwards."""

LEARNED, RECORDED, FILES = "learned", "recorded", "files"


@dataclass(frozen=True)
class Case:
    """Another value of a key, and where its effect is found; `beside` are other keys that give it something to do."""

    value: str
    found: str = LEARNED
    beside: Mapping[str, str] = field(default_factory=dict)


DELTA = {"ttt.inner": "delta"}
CARRIED = {"train.stateful": "true"}
LORA = {"lora.enable": "true", "lora.rank": "4"}
TAUGHT = {"train.context_frames": "4", "train.distill.context_frames": "10"}
SAVED_OFTEN = {"max_steps": "4", "ckpt_freq": "1", "num_ckpt_keep": "1"}
EVALUATED = {"do_eval": "true", "eval_freq": "1"}
SPEECH = {"data.train_data": "{speech}", "data.eval_data": "{speech}"}
GATED = SPEECH | {"eval_freq": "2", "eval.gates": "1", "eval.gates_sec": "1.04"}
JUDGED = {"paper_metrics.enable": "true", "paper_metrics.data_root": "{bench}", "paper_metrics.tasks": "swuggy"}
JUDGED |= SPEECH | {"paper_metrics.freq": "2", "paper_metrics.max_items": "2"}
REMOTE = {"data.train_data": "memory://made-up/data.jsonl", "data.shuffle": "true"}
CASES = {
    "data.train_data": Case("{other}"),
    "data.eval_data": Case("{other}", RECORDED, EVALUATED),
    "data.shuffle": Case("true"),
    "data.code_cache_dir": Case("{folder}/codes", FILES, SPEECH),
    "data.remote_cache_dir": Case("{folder}/copies", FILES, REMOTE),
    "data.remote_cache_gb": Case("3e-6", FILES, REMOTE),
    "data.no_whitespace_before_word": Case("true", beside=SPEECH),
    "ttt.enable": Case("false", beside=LORA),
    "ttt.layers": Case("1"),
    "ttt.inner": Case("linear"),
    "ttt.preset": Case("video_causal"),
    "ttt.base_lr": Case("0.5"),
    "ttt.mini_batch_size": Case("2"),
    "ttt.init": Case("attention"),
    "ttt.initial_gating_alpha": Case("0.2"),
    "ttt.half_life_frames": Case("8"),
    "ttt.forget": Case("learned", beside=DELTA | {"ttt.half_life_frames": "[2, 8]"}),
    "ttt.target": Case("both", beside=DELTA),
    "ttt.bidirectional_prefix": Case("false", beside={"data.train_data": "{prompted}"}),
    "lora.enable": Case("true"),
    "lora.rank": Case("5", beside=LORA),
    "lora.scaling": Case("1.5", beside=LORA),
    "lora.ft_embed": Case("true", beside=LORA),
    "optim.lr": Case("3e-3"),
    "optim.weight_decay": Case("0.5"),
    "optim.pct_start": Case("0.9"),
    "optim.ttt_lr": Case("3e-3"),
    "optim.fast_weight_lr": Case("3e-3"),
    "optim.gate_lr": Case("3e-3"),
    "train.stateful": Case("true"),
    "train.backprop_clips": Case("2", beside=CARRIED),
    "train.context_frames": Case("4"),
    "train.clip_schedule": Case("0:0.8,1:0.4"),
    "train.random_phase": Case("true", beside=CARRIED),
    "train.watch_freq": Case("1", RECORDED),
    "train.distill.context_frames": Case("10", beside={"train.context_frames": "4"}),
    "train.distill.weight": Case("2.0", beside=TAUGHT),
    "train.inherit_memory": Case("1.0", beside=CARRIED | {"max_steps": "5"}),
    "checkpoint.every_minutes": Case("1e-9", FILES, {"max_steps": "3"}),
    "checkpoint.keep_every": Case("2", FILES, SAVED_OFTEN),
    "checkpoint.keep_best": Case("2", FILES, SAVED_OFTEN | EVALUATED),
    "checkpoint.mirror": Case("{folder}/mirror", FILES),
    "wandb.project": Case("moshi", FILES, {"wandb.offline": "true"}),
    "wandb.run_name": Case("named", FILES, {"wandb.project": "moshi", "wandb.offline": "true"}),
    "paper_metrics.enable": Case("false", RECORDED, JUDGED),
    "paper_metrics.tasks": Case("ssc", RECORDED, JUDGED),
    "paper_metrics.split": Case("test", RECORDED, JUDGED | {"paper_metrics.max_items": "9"}),
    "paper_metrics.max_items": Case("1", RECORDED, JUDGED),
    "paper_metrics.freq": Case("1", RECORDED, JUDGED),
    "eval.gates": Case("2", FILES, GATED),
    "eval.gates_sec": Case("1.2", RECORDED, GATED),
    "full_finetuning": Case("true", beside={"save_adapters": "false"}),
    "seed": Case("1"),
    "duration_sec": Case("0.4"),
    "batch_size": Case("1"),
    "num_microbatches": Case("2"),
    "max_steps": Case("4"),
    "max_norm": Case("1e-3"),
    "first_codebook_weight_multiplier": Case("50"),
    "text_padding_weight": Case("0.1"),
    "param_dtype": Case("bfloat16"),
    "do_eval": Case("true", RECORDED, {"eval_freq": "1"}),
    "eval_freq": Case("2", RECORDED, {"do_eval": "true", "eval_freq": "1"}),
    "do_ckpt": Case("false", FILES),
    "ckpt_freq": Case("1", FILES),
    "num_ckpt_keep": Case("2", FILES, SAVED_OFTEN),
    "save_adapters": Case("false", FILES, LORA),
}
"""Key -> what changes it."""

ELSEWHERE = {
    "run_dir": "training/test_small_parts.py::test_a_run_folder_is_never_taken_by_accident",
    "data.new_text_embeddings": "moshi/test_remade.py::test_new_text_embeddings_are_trained_and_the_rest_is_kept",
    "data.train_user_stream": "training/test_languages.py::test_the_user_s_stream_is_trained_resumed_and_exported",
    "moshi_paths.hf_repo_id": "moshi/test_loading.py::test_explicit_paths_replace_files_or_stand_alone",
    "moshi_paths.mimi_path": "moshi/test_loading.py::test_explicit_paths_replace_files_or_stand_alone",
    "moshi_paths.moshi_path": "moshi/test_loading.py::test_explicit_paths_replace_files_or_stand_alone",
    "moshi_paths.tokenizer_path": "moshi/test_loading.py::test_explicit_paths_replace_files_or_stand_alone",
    "moshi_paths.config_path": "moshi/test_loading.py::test_explicit_paths_replace_files_or_stand_alone",
    "checkpoint.resume": "training/test_doors.py::test_one_command_line_starts_continues_and_ends",
    "checkpoint.resume_step": "training/test_resume.py::test_a_named_step_is_continued_and_later_logs_are_cut_back",
    "checkpoint.accept_changes": "training/test_doors.py::test_content_decides_and_not_where_files_lie",
    "checkpoint.tolerate_failed_saves": (
        "training/test_doors.py::test_failed_saves_are_loud_and_tolerated_as_often_as_asked"
    ),
    "checkpoint.keep_metric": (
        "training/test_gates.py::test_gates_write_what_the_model_says_and_training_does_not_notice"
    ),
    "checkpoint.init_state_dir": "training/test_resume.py::test_weights_of_a_checkpoint_start_a_new_run",
    "wandb.offline": "training/test_every_key.py::test_weights_and_biases_gets_its_key_and_a_run_offline_needs_none",
    "wandb.key": "training/test_every_key.py::test_weights_and_biases_gets_its_key_and_a_run_offline_needs_none",
    "paper_metrics.data_root": "evaluation/test_hook.py::test_what_benchmarks_need_is_known_before_training",
    "paper_metrics.max_frames": "evaluation/test_hook.py::test_an_evaluation_stops_between_batches_when_it_is_asked",
    "log_freq": "training/test_every_key.py::test_steps_are_told_as_often_as_log_freq_says",
    "stop_on_failed_evaluation": "training/test_doors.py::test_a_failed_evaluation_stops_the_run_where_that_is_asked",
    "gradient_checkpointing": "moshi/test_model.py::test_gradient_checkpointing_changes_nothing",
    "overwrite_run_dir": "training/test_doors.py::test_overwriting_deletes_nothing_before_the_new_run_can_start",
    "patience_minutes": "checkpoint/test_tools.py::test_a_mirror_that_hangs_is_not_waited_for_without_end",
}
"""Key -> the test that shows what it does, for those that need more than two runs of some steps."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets of made-up codes and words, four recordings of three clips each; in one of them a prompt is given."""
    found = {}
    for number, name in enumerate(("data", "other", "prompted")):
        folder = tmp_path_factory.mktemp(name)
        lines = []
        for index in range(4):
            random = torch.Generator().manual_seed(10 * number + index)
            codes = torch.randint(0, 32, (17, 3 * CLIP), generator=random)
            codes[0, ::2] = 3  # padding
            write_encoded(folder / f"{index}.safetensors", codes)
            given = {"prefix_sec": 0.4} if name == "prompted" else {}
            lines.append(json.dumps({"path": f"{index}.safetensors", "duration": 3 * CLIP / 12.5, **given}))
        (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
        found[name] = folder / "data.jsonl"
    store = fsspec.filesystem("memory")
    for file in found["data"].parent.iterdir():
        store.pipe_file(f"/made-up/{file.name}", file.read_bytes())
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken benchmarks in the official layouts, in whose test split a word is missing."""
    bench = speech_benchmarks.make(tmp_path_factory.mktemp("bench"))
    gold = bench / "sLM21-dataset" / "lexical" / "test" / "gold.csv"
    with gold.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with gold.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["id"] != rows[0]["id"])
    return bench


@pytest.fixture
def trained(
    tiny_material: Material,
    data: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Trained:
    """Trains with a base configuration and some other values; returns what a person finds afterwards."""

    def train(name: str, values: Mapping[str, str]) -> dict[str, Any]:
        folder = tmp_path / name
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        usual = {
            "run_dir": str(folder / "run"),
            "data.train_data": str(data["data"]),
            "data.eval_data": str(data["data"]),
            "moshi_paths.hf_repo_id": str(tiny_material.base_model),
            "ttt.enable": "true",
            "ttt.layers": "all",
            "ttt.mini_batch_size": "4",
            "optim.lr": "1e-3",
            "duration_sec": str(CLIP / 12.5),
            "batch_size": "2",
            "max_steps": "3",
            "param_dtype": "float32",
            "gradient_checkpointing": "false",
        }
        places = {**data, "folder": folder, "speech": tiny_material.train_data, "base": tiny_material.base_model}
        if "{bench}" in values.values():
            places["bench"] = request.getfixturevalue("bench")
        words = []
        for key, value in (usual | dict(values)).items():
            words += [f"--{key}", value.format(**places)]
        rows: list[dict[str, Any]] = []
        run(parse_train_args(words), lambda record: rows.append(dict(record)))
        lines = {
            path.name: [timeless(json.loads(line)) for line in path.read_text().splitlines()]
            for path in sorted((folder / "run").glob("metrics.*.jsonl"))
        }
        return {
            LEARNED: [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row],
            RECORDED: lines,
            FILES: names(folder),
        }

    return train


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two runs of the same."""
    return {key: value for key, value in record.items() if key not in ("timing", "seconds")}


def names(folder: Path) -> set[str]:
    """Files below a folder, without times and random letters in their names."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {re.sub(r"events\.out.*|offline-run-[^/]*|[0-9a-z]{8}\.wandb", "...", path) for path in paths}


def check(key: str, trained: Trained) -> None:
    case = CASES[key]
    usual = trained("usual", case.beside)
    other = trained("other", {**case.beside, key: case.value})
    assert usual[case.found] != other[case.found], f"{key}: nothing is {case.found} that is not without it"


@pytest.mark.parametrize("key", list(CASES)[::EVERY])
def test_another_value_changes_what_is_found(key: str, trained: Trained) -> None:
    check(key, trained)


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for n, key in enumerate(CASES) if n % EVERY])
def test_every_other_value_changes_what_is_found(key: str, trained: Trained) -> None:
    check(key, trained)


OFF: Mapping[str, Mapping[str, str]] = {
    "`ttt.enable` is false": LORA | {"ttt.enable": "false"},
    "`ttt.layers` is none": LORA | {"ttt.layers": "none"},
    "`ttt.inner` is delta, which writes every frame exactly": DELTA,
    "`lora.enable` is false": {"lora.enable": "false"},
    "nothing but TTT layers is trained, at `optim.ttt_lr`": {"optim.ttt_lr": "1e-3"},
    "`train.distill.context_frames` is null": {"train.distill.context_frames": "null"},
    "`wandb.project` is null": {"wandb.project": "null"},
    "`paper_metrics.enable` is false": {"paper_metrics.enable": "false"},
    "`eval.gates` is 0": {"eval.gates": "0"},
    "`do_eval` is false and `eval.gates` is 0": {"do_eval": "false", "eval.gates": "0"},
    "nothing is evaluated": {},
    "`do_ckpt` is false": {"do_ckpt": "false"},
    "`num_ckpt_keep` is null, which keeps all": {"num_ckpt_keep": "null"},
    "`checkpoint.keep_best` is 0": {},
    "the other keys of `moshi_paths` name every file": {
        "moshi_paths.moshi_path": "{base}/model.safetensors",
        "moshi_paths.mimi_path": "{base}/mimi-small.safetensors",
        "moshi_paths.tokenizer_path": "{base}/tokenizer_spm_small.model",
        "moshi_paths.config_path": "{base}/config.json",
    },
}
"""What turns each switch of `config_idle` off."""
CHOSEN = {key: case.value for key, case in CASES.items()} | {
    "wandb.offline": "true",
    "wandb.key": "made-up",
    "checkpoint.keep_metric": "no metric",
    "checkpoint.tolerate_failed_saves": "3",
    "stop_on_failed_evaluation": "true",
    "moshi_paths.hf_repo_id": "nobody/nowhere",
}
IDLE = [(switch.told, key) for switch in SWITCHES for key in switch.keys]


def check_idle(told: str, key: str, trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    beside = {**(CASES[key].beside if key in CASES else {}), **OFF[told]}
    found = []
    for name, values in (("usual", beside), ("other", {**beside, key: CHOSEN[key]})):
        caplog.clear()
        found.append(trained(name, values))
    assert found[0] == found[1], f"{key} has an effect, though {told}"
    said = [message for message in caplog.messages if f"`{key}`" in message]
    assert len(said) == 1 and said[0].endswith(f"no effect, since {told}"), caplog.messages


@pytest.mark.parametrize(("told", "key"), IDLE[::EVERY])
def test_a_value_without_effect_is_said_to_have_none(
    told: str, key: str, trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    check_idle(told, key, trained, caplog)


@pytest.mark.slow
@pytest.mark.parametrize(("told", "key"), [one for n, one in enumerate(IDLE) if n % EVERY])
def test_every_other_value_without_effect_is_said_to_have_none(
    told: str, key: str, trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    check_idle(told, key, trained, caplog)


def test_what_is_found_twice_is_the_same(trained: Trained) -> None:
    """Else a difference would say nothing of the key."""
    assert trained("once", EVALUATED) == trained("again", EVALUATED)


def test_every_key_is_shown_to_do_something() -> None:
    assert set(CASES) | set(ELSEWHERE) == set(flatten(asdict(TrainArgs(run_dir="x"))))
    assert not set(CASES) & set(ELSEWHERE)


@pytest.mark.parametrize("key", ELSEWHERE)
def test_the_test_that_shows_it_is_there_and_names_it(key: str) -> None:
    file, name = ELSEWHERE[key].split("::")
    body = (ROOT / "tests" / file).read_text(encoding="utf-8").split(f"def {name}(", 1)
    assert len(body) == 2, f"no test {ELSEWHERE[key]}"
    own = re.split(r"\n(?=def |@|class )", body[1])[0]
    assert re.search(rf"\b{key.rsplit('.', 1)[-1]}\b", own), f"{ELSEWHERE[key]} does not name {key}"


@pytest.mark.slow
def test_steps_are_told_as_often_as_log_freq_says(launch: Callable[..., Launch]) -> None:
    told = []
    for frequency in ("1", "2"):
        done = launch(frequency, "--max_steps", "4", "--log_freq", frequency).run()
        told.append([int(step) for step in re.findall(r"^step +(\d+)/4 ", done.stdout + done.stderr, re.MULTILINE)])
    assert told == [[1, 2, 3, 4], [2, 4]]


class Refuses(BaseHTTPRequestHandler):
    """Stands in for Weights & Biases: keeps who asked, and lets nobody in."""

    asked: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append(self.headers.get("authorization"))
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.mark.slow
def test_weights_and_biases_gets_its_key_and_a_run_offline_needs_none(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from ttt_moshi.config import WandbArgs
        from ttt_moshi.errors import UserError
        from ttt_moshi.training.sinks import Wandb
        offline, key = sys.argv[1] == "offline", sys.argv[2] or None
        try:
            Wandb(WandbArgs(project="moshi", offline=offline, key=key), Path.cwd(), {}).close()
        except UserError as error:
            sys.exit(str(error))
        """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    key = "0123456789" * 4
    env = {**ENV, "HOME": str(tmp_path / "home"), "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}

    def use(mode: str, key: str) -> tuple[int, str]:
        (tmp_path / mode).mkdir(exist_ok=True)
        words = [sys.executable, "-c", script, mode, key]
        done = subprocess.run(words, cwd=tmp_path / mode, env=env, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr

    assert use("offline", "")[0] == 0 and not any(Refuses.asked)
    status, said = use("online", "")
    assert status == 1 and "set wandb.offline to true, or wandb.project to null" in said and not any(Refuses.asked)
    status, said = use("online", key)
    assert status == 1 and "Weights & Biases cannot be used" in said and "Traceback" not in said
    assert f"Basic {b64encode(f'api:{key}'.encode()).decode()}" in Refuses.asked
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert not kept
    server.shutdown()
