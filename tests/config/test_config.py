"""Configuration: what is accepted, what is refused, and how helpful the refusal is."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ttt_moshi.config import RANGES, ConfigError, LongArgs, TrainArgs, flatten, known_keys, sections, to_dict, validate
from ttt_moshi.config_idle import told_idle
from ttt_moshi.config_io import args_from_dict, parse_train_args
from ttt_moshi.errors import UserError

ROOT = Path(__file__).parents[2]


def is_number(key: str) -> bool:
    """Whether a key takes a number, by the types of the configuration."""
    *path, last = key.split(".")
    section = functools.reduce(getattr, path, TrainArgs(run_dir="x"))
    kind = str(get_type_hints(type(section))[last])
    return bool(re.search(r"\b(int|float)\b", kind))


# Every key of a moshi-finetune file, each with a value that differs from our default.
MOSHI_FINETUNE = """
data: {train_data: /d/train.jsonl, eval_data: /d/eval.jsonl, shuffle: true}
moshi_paths:
  hf_repo_id: someone/else
  mimi_path: m.safetensors
  moshi_path: w.safetensors
  tokenizer_path: t.model
  config_path: c.json
full_finetuning: false
lora: {enable: true, rank: 128, scaling: 3., ft_embed: true}
first_codebook_weight_multiplier: 100.
text_padding_weight: .25
optim: {lr: 2e-6, weight_decay: 0.2, pct_start: 0.1}
duration_sec: 100
batch_size: 16
num_microbatches: 2
max_steps: 2000
max_norm: 0.5
gradient_checkpointing: false
seed: 7
log_freq: 3
eval_freq: 100
do_eval: true
do_ckpt: false
ckpt_freq: 50
num_ckpt_keep: null
save_adapters: false
param_dtype: float32
overwrite_run_dir: true
run_dir: /r
wandb: {project: p, run_name: n, key: secret, offline: true}
"""


def test_a_moshi_finetune_file_loads_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "moshi_finetune.yaml"
    path.write_text(MOSHI_FINETUNE)
    args = parse_train_args(["--config", str(path)])
    assert args.optim.lr == 2e-6
    assert args.lora.rank == 128 and args.lora.scaling == 3.0 and args.lora.ft_embed
    assert args.num_ckpt_keep is None
    assert args.duration_sec == 100.0 and args.first_codebook_weight_multiplier == 100.0
    assert not args.ttt.enable
    defaults = to_dict(TrainArgs(run_dir="x"))

    def leaves(values: dict, prefix: str = "") -> dict:
        return {
            full: v
            for k, w in values.items()
            for full, v in (leaves(w, f"{prefix}{k}.") if isinstance(w, dict) else {prefix + k: w}).items()
        }

    given, default, loaded = leaves(yaml.safe_load(MOSHI_FINETUNE)), leaves(defaults), leaves(to_dict(args))
    for key in given:
        # `full_finetuning: true` excludes LoRA, and the key is not written.
        if key not in ("full_finetuning", "wandb.key"):
            assert loaded[key] != default[key], f"{key} was not taken from the file"


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("run_dir: a\noptim: {lr: 1e-3}\n")
    args = parse_train_args(["--config", str(path), "--optim.lr", "1e-5", "--num_ckpt_keep=null", "--ttt.layers", "1"])
    assert (args.run_dir, args.optim.lr, args.num_ckpt_keep, args.ttt.layers) == ("a", 1e-5, None, "1")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--chekpoint.resume", "true"], "--checkpoint.resume"),
        (["--checkpoint.resme=true"], "--checkpoint.resume"),
        (["--lr", "1"], "--optim.lr"),
        (["--max_step", "3"], "--max_steps"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_nearest_one(argv: list[str], hint: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean `{hint}`"):
        parse_train_args(["--run_dir", "x", *argv])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ttt: {layer: all}", "ttt.layers"),
        ("max_stps: 3", "max_steps"),
        ("optim: {weightdecay: 0}", "optim.weight_decay"),
    ],
)
def test_an_unknown_yaml_key_is_refused_with_the_nearest_one(tmp_path: Path, text: str, hint: str) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("run_dir: x\n" + text)
    with pytest.raises(ConfigError, match=f"typo.yaml.*did you mean `{hint}`"):
        parse_train_args(["--config", str(path)])


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["--batch_size", "0"], "batch_size"),
        (["--lora", "3"], "--lora.enable"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--ttt.inner", "deep"], "ttt.inner"),
        (["--num_ckpt_keep", "0"], "num_ckpt_keep"),
        (["--ttt.half_life_frames", "5"], "ttt.half_life_frames"),
        (["--ttt.half_life_frames", "[64, 16]"], "ttt.half_life_frames"),
        (["--ttt.half_life_frames", "[64]"], "ttt.half_life_frames"),
        (["--ttt.forget", "gated"], "ttt.forget: gated.*ttt.inner: delta"),
        (["--ttt.target", "next"], "ttt.target: next.*ttt.inner: delta"),
        (["--ttt.inner", "delta", "--ttt.forget", "learned"], "ttt.forget: learned.*ttt.half_life_frames"),
        (["--ttt.inner", "delta", "--ttt.preset", "paper_lm"], "ttt.preset"),
        (["--ttt.inner", "delta", "--ttt.base_lr", "2"], "ttt.base_lr"),
        (["--ttt.inner", "delta", "--train.stateful", "true", "--train.random_phase", "true"], "train.random_phase"),
        (["--train.distill.context_frames", "750"], "train.distill.*ttt.enable"),
        (["--train.distill.context_frames", "1"], "train.distill.context_frames"),
        (["--train.distill.weight", "0"], "train.distill.weight"),
        (["--train.distill", "3"], "train.distill"),
        (
            ["--ttt.enable", "true", "--train.distill.context_frames", "9", "--data.new_text_embeddings", "true"],
            "train.distill.*data.new_text_embeddings",
        ),
        (
            ["--ttt.enable", "true", "--train.context_frames", "750", "--train.distill.context_frames", "750"],
            "train.distill.context_frames.*750",
        ),
        (
            [
                "--ttt.enable",
                "true",
                "--train.distill.context_frames",
                "750",
                "--full_finetuning",
                "true",
                "--save_adapters",
                "false",
            ],
            "train.distill.*full_finetuning",
        ),
        (
            [
                "--ttt.enable",
                "true",
                "--train.distill.context_frames",
                "750",
                "--lora.enable",
                "true",
                "--lora.ft_embed",
                "true",
            ],
            "train.distill.*lora.ft_embed",
        ),
        (
            ["--ttt.enable", "true", "--ttt.initial_gating_alpha", "0"],
            "ttt.initial_gating_alpha: 0.*ttt.init: attention",
        ),
        (["--train.inherit_memory", "1.5"], "train.inherit_memory"),
        (["--train.inherit_memory", "0.1"], "train.inherit_memory.*train.stateful"),
        (["--full_finetuning", "true"], "save_adapters"),
        (["--do_eval", "true"], "data.eval_data"),
        (["--checkpoint.resume", "true", "--overwrite_run_dir", "true"], "overwrite_run_dir"),
        (["--checkpoint.resume", "true", "--checkpoint.init_state_dir", "d"], "checkpoint.init_state_dir"),
    ],
)
def test_values_that_cannot_work_name_their_key(argv: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_train_args(["--run_dir", "x", *argv])


@pytest.mark.parametrize("beside", [["--ttt.init", "attention"], ["--checkpoint.init_state_dir", "trained"]])
def test_closed_gates_need_an_output_that_is_not_zero(beside: list[str]) -> None:
    argv = ["--run_dir", "x", "--ttt.enable", "true", "--ttt.initial_gating_alpha", "0", *beside]
    assert parse_train_args(argv).ttt.initial_gating_alpha == 0


def test_half_lives_of_the_delta_rule_are_read() -> None:
    args = parse_train_args(["--run_dir", "x", "--ttt.inner", "delta", "--ttt.half_life_frames", "[2, 1024]"])
    assert (args.ttt.inner, args.ttt.half_life_frames, args.ttt.forget) == ("delta", [2, 1024], "fixed")
    assert parse_train_args(["--run_dir", "x", "--ttt.half_life_frames", "64"]).ttt.half_life_frames == 64


NUMBERS = [key for key, value in flatten(asdict(TrainArgs(run_dir="x"))).items() if is_number(key)]


def test_every_number_has_a_range() -> None:
    # The half-life may be a pair, and has a check of its own.
    assert set(NUMBERS) - {"ttt.half_life_frames"} == set(RANGES)


@pytest.mark.parametrize("key", sorted(RANGES))
def test_numbers_outside_of_their_range_are_refused_by_name(key: str) -> None:
    allowed = RANGES[key]
    wrong = [math.nan, math.inf, -math.inf, 10**400, -(10**400)]
    wrong += [allowed.low - 1, *([allowed.low] if allowed.above else []), allowed.high * 2]
    for value in wrong:
        args = TrainArgs(run_dir="x")
        *path, last = key.split(".")
        setattr(functools.reduce(getattr, path, args), last, value)
        with pytest.raises(ConfigError, match=re.escape(f"`{key}` must be")):
            validate(args)


@pytest.mark.parametrize("key", sorted(flatten(asdict(TrainArgs(run_dir="x")))))
def test_null_is_refused_wherever_the_type_has_none(key: str) -> None:
    args = TrainArgs(run_dir="x")
    *path, last = key.split(".")
    section = functools.reduce(getattr, path, args)
    setattr(section, last, None)
    if re.search(r"Optional|None", str(get_type_hints(type(section))[last])):
        validate(args)
    else:
        with pytest.raises(ConfigError, match=re.escape(f"`{key}` is empty (null)")):
            validate(args)


@pytest.mark.parametrize("key", [k for k, v in flatten(asdict(TrainArgs(run_dir="x"))).items() if isinstance(v, str)])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_no_path_can_have_is_refused_by_name(key: str, text: str) -> None:
    args = TrainArgs(run_dir="x")
    *path, last = key.split(".")
    setattr(functools.reduce(getattr, path, args), last, text)
    with pytest.raises(ConfigError, match=re.escape(f"`{key}` has a character")):
        validate(args)
    setattr(functools.reduce(getattr, path, args), last, "L\u00e4ufe \udcff")  # a name of bytes that are no text
    with contextlib.suppress(ConfigError):  # of a key that is no path, and that is not about characters
        validate(args)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max_steps", "9" * 400),
        ("--optim.lr", "9" * 400),
        ("--seed", "0x" + "f" * 5000),
        ("--seed", "9" * 5000),
        ("--ttt.half_life_frames", f"[1, {'9' * 400}]"),
        ("--train.clip_schedule", f"0:1,{'9' * 400}:2"),
        ("--seed", "[" * 2000 + "]" * 2000),
        ("--data.shuffle", "{a: " * 300 + "1" + "}" * 300),
        ("--train.context_frames", "9" * 21),
        ("--optim.lr", "1e300"),
        ("--batch_size", "99999999999"),
        ("--train.clip_schedule", "0:1e17"),
        ("--train.clip_schedule", "0:1e300"),
        ("--ttt.half_life_frames", "1e300"),
    ],
)
def test_values_without_end_are_refused_by_name(flag: str, value: str) -> None:
    for argv in ([flag, value], [f"{flag}={value}"]):
        with pytest.raises(ConfigError) as refused:
            parse_train_args(["--run_dir", "x", *argv])
        assert flag.removeprefix("--") in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "rank", "steps"),
    [
        ("lora: &on {enable: true, rank: 4}\nttt:\n  <<: {enable: true}\n", 4, 100),
        ("<<: {max_steps: 3, seed: 1}\nmax_steps: 7\n", 64, 7),
        ("<<: [{max_steps: 3}, {max_steps: 4, seed: 1}]\n", 64, 3),
        ("lora: &a {<<: &b {rank: 5, enable: true}, rank: 6}\nmax_steps: 8\n", 6, 8),
        ("<<: {<<: {max_steps: 3}, max_steps: 5}\nlora: {<<: {rank: 2, enable: true}, rank: 9}\n", 9, 5),
    ],
)
def test_merge_keys_are_read_and_what_stands_beside_them_wins(tmp_path: Path, text: str, rank: int, steps: int) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(f"run_dir: x\n{text}")
    args = parse_train_args(["--config", str(path)])
    assert (args.lora.rank, args.max_steps) == (rank, steps)


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "<<: {seed: 1, seed: 2}", "lora: {rank: 1, 'rank': 2}"])
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(f"run_dir: x\n{text}")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*is there twice"):
        parse_train_args(["--config", str(path)])


@pytest.mark.parametrize(
    "text",
    [
        "optim: {lr: .nan}", "optim: {lr: .inf}", "seed: -1", "seed: 99999999999999999999", "max_steps: 1.5",
        "max_steps: true", "batch_size: two", "batch_size: [1]", "batch_size: {a: 1}", "run_dir: [a]", "data: 3",
        "lora: [1]", "text_padding_weight: -0.5", "first_codebook_weight_multiplier: -1",
        "train: {clip_schedule: '0:nan'}", "train: {distill: 3}", "train: {distill: {window: 3}}",
        "train: {clip_schedule: '0:inf'}", "checkpoint: {resume: maybe}", "checkpoint: {accept_changes: [weather]}",
        "checkpoint: {accept_changes: data}", "checkpoint: {tolerate_failed_saves: -1}", "patience_minutes: 0",
        "max_steps:", "optim: {lr: }", "seed: null", "do_ckpt: null", "checkpoint: {accept_changes: [null]}",
        "ttt: {half_life_frames: [null, 3]}", f"seed: {'9' * 400}", f"optim: {{lr: {'9' * 5000}}}",
        f"seed: 0x{'f' * 5000}", "seed: " + "[" * 2000 + "]" * 2000, "seed: " + "{a: " * 200 + "1" + "}" * 200,
        'run_dir: "a\\0b"', "data: {train_data: 2024-99-99}", "<<: 3", "train: {clip_schedule: '0:1e17'}",
        "1: 2", "- a", "just words", "", "a: [1", "!!python/object/apply:os.system ['touch x']", "run_dir: null",
    ],
)  # fmt: skip
def test_a_file_with_a_bad_value_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        parse_train_args(["--run_dir", "x", "--config", str(path)])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("section", ["lora", "wandb", "optim", "data", "ttt", "checkpoint", "train", "paper_metrics"])
@pytest.mark.parametrize("empty", ["", " null", " ~"])
def test_an_empty_section_keeps_its_defaults(tmp_path: Path, section: str, empty: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"run_dir: x\n{section}:{empty}\nmax_steps: 7\n")
    assert parse_train_args(["--config", str(path)]) == TrainArgs(run_dir="x", max_steps=7)
    path.write_text(f"run_dir: x\ntrain:\n  watch_freq: 3\n  distill:{empty}\n")
    assert parse_train_args(["--config", str(path)]).train == LongArgs(watch_freq=3)


def test_what_moshi_finetune_adds_when_it_saves_is_ignored_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "args.yaml"
    path.write_text("run_dir: x\nworld_size: 8\n")
    assert parse_train_args(["--config", str(path)]) == TrainArgs(run_dir="x")
    assert "`world_size` decides nothing" in caplog.text


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("run_dir: Läufe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not UTF-8"):
        parse_train_args(["--config", str(path)])


@pytest.mark.parametrize(("words", "expected"), [(["auto"], "auto"), (["true"], True), (["false"], False)])
def test_resuming_may_be_a_choice(words: list[str], expected: object) -> None:
    assert parse_train_args(["--run_dir", "x", "--checkpoint.resume", *words]).checkpoint.resume == expected


def test_missing_and_malformed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        parse_train_args(["--config", str(tmp_path / "nowhere.yaml")])
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"bad\.yaml is not valid YAML"):
        parse_train_args(["--config", str(tmp_path / "bad.yaml")])


def test_the_saved_form_has_no_secret_and_reads_back() -> None:
    args = parse_train_args(["--run_dir", "x", "--wandb.key", "s3cret", "--ttt.enable", "true"])
    saved = to_dict(args)
    assert "s3cret" not in str(saved)
    again = args_from_dict(saved)
    args.wandb.key = None
    assert again == args


@given(st.sampled_from(known_keys()), st.integers(0, 50), st.sampled_from("abcxyz_."))
def test_no_misspelt_key_is_ever_accepted(key: str, position: int, letter: str) -> None:
    misspelt = key[: position % len(key)] + letter + key[position % len(key) + 1 :]
    if misspelt in known_keys():
        return
    with pytest.raises(ConfigError, match="unknown flag"):
        parse_train_args(["--run_dir", "x", f"--{misspelt}", "1"])


def test_a_typo_stops_the_command_before_any_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--run_dir", "run", "--chekpoint.resume", "true"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: unknown flag `--chekpoint.resume`; did you mean `--checkpoint.resume`?"
    assert list(tmp_path.iterdir()) == []


def test_what_is_shipped_has_no_value_without_effect() -> None:
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert told_idle(parse_train_args(["--config", str(path)])) == [], path


def test_values_without_effect_are_a_line_for_each_reason(tmp_path: Path) -> None:
    file = tmp_path / "moshi_finetune.yaml"
    file.write_text("run_dir: r\nlora: {enable: false, rank: 128, scaling: 3.}\ndo_eval: false\neval_freq: 100\n")
    assert told_idle(parse_train_args(["--config", str(file)])) == [
        "`lora.rank`, `lora.scaling` have no effect, since `lora.enable` is false",
        "`eval_freq` has no effect, since `do_eval` is false and `eval.gates` is 0",
    ]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("batch_size", "1.5", "must be a whole number, got 1.5"),
        ("do_eval", "maybe", "must be true or false, got maybe"),
        ("ttt.inner", "cnn", "must be mlp or linear or delta, got cnn"),
        ("num_ckpt_keep", "all", "must be a whole number or null, got all"),
        ("ttt.half_life_frames", "long", "must be a number or [a number, ...] or null, got long"),
        ("ttt.half_life_frames", "[5, x]", "must be a number or [a number, ...] or null, got [5.0, 'x']"),
        ("ttt.half_life_frames", "1", "(16) and at most 1e+09, or null, got 1.0"),
        ("ttt.half_life_frames", "[9, 8]", "(16) and at most 1e+09, or null, got [9.0, 8.0]"),
        ("checkpoint.resume", "perhaps", "must be true or false or auto, got perhaps"),
        ("checkpoint.accept_changes", "data", "must be [data or seed or batch, ...], got data"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_words(key: str, value: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_train_args(["--run_dir", "x", f"--{key}", value])
    assert str(refused.value).startswith(f"`{key}` must be ") and str(refused.value).endswith(told)
    file = tmp_path / "x.yaml"
    *section, name = key.split(".")
    file.write_text(
        f"run_dir: x\n{''.join(f'{part}:' for part in section)} {{{name}: {value}}}\n"
        if section
        else f"run_dir: x\n{name}: {value}\n"
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_train_args(["--config", str(file)])


@pytest.mark.parametrize("name", sections())
def test_a_folder_may_be_called_like_a_section(name: str) -> None:
    assert parse_train_args(["--run_dir", name]).run_dir == name
    with pytest.raises(ConfigError, match="is a section"):
        parse_train_args([f"--{name}", "x"])
