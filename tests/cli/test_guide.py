"""The checkpoint guide is true: its commands run, its messages are the code's, its keys exist."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ttt_moshi.cli.main import main
from ttt_moshi.config import known_keys

if TYPE_CHECKING:
    from ttt_moshi.synthetic import Material

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CHECKPOINT_USER_GUIDE.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
# The scripts at the root and the commands that they are.
DOORS = {
    "train.py": "train",
    "eval_from_checkpoint.py": "eval",
    "checkpoint_summary.py": "status",
    "test_checkpoint_verification.py": "verify",
}


def run(line: str) -> int:
    """Runs one command of the guide; ours in this process, because each start of Python takes seconds."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
        return 0
    if words[0] == "python" and words[1] in DOORS:
        return main([DOORS[words[1]], *words[2:]])
    if words[0] == "ttt-moshi":
        return main(words[1:])
    return subprocess.run(line, shell=True, check=False).returncode


@pytest.fixture()
def place(tmp_path: Path, tiny_material: Material, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, but for the material, which the guide's first command would make the same."""
    shutil.copytree(
        tiny_material.folder, tmp_path / "runs/guide/material", ignore=shutil.ignore_patterns(".mimi_codes")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_does_what_the_guide_says(
    place: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ran, printed = 0, ""
    for language, file, content in BLOCKS:
        if language == "yaml":
            Path(file).write_text(content)
        elif language == "python":
            exec(compile(content, "the guide's reader", "exec"), {})
        elif language == "bash":
            for line in content.splitlines():
                expected = int((re.search(r"# exit status (\d)$", line) or [0, 0])[1])
                status = run(line)
                said = capfd.readouterr()
                assert status == expected, f"{line}\n{said.out[-2000:]}{said.err[-2000:]}"
                printed += f"$ {line}\n{said.out}{said.err}"
                ran += 1
        printed += capfd.readouterr().out
    assert ran >= 40
    printed += caplog.text
    for claim in (
        "the same training state, bit for bit",
        "harmless: goes on, trained differently from here",
        "verified: step 6",
        "checkpoint_000007",
        ".saving_000099",
        "set aside checkpoint_000004 as corrupt_000004",
        "everything is in order",
        "pinned",
    ):
        assert claim in printed, claim
    steps = {path.name for path in Path("runs/guide/kept/checkpoints").glob("*_00000*")}
    assert steps == {"checkpoint_000002", "checkpoint_000004", "corrupt_000004"}
    assert len(list(Path("runs/guide/sharded").glob("consolidated-0000*.safetensors"))) > 1


def test_blocks_are_either_run_or_marked() -> None:
    assert {language for language, _, _ in BLOCKS} == {"bash", "yaml", "python", "text"}
    assert len(BLOCKS) == GUIDE.count("\n```") // 2
    for door, command in DOORS.items():
        assert f'run_command("{command}"' in (ROOT / door).read_text()


def test_every_message_is_one_of_the_code() -> None:
    templates = [text for path in (ROOT / "ttt_moshi").rglob("*.py") for text in literals(path)]
    rows = GUIDE.split("## Errors and what to do")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `(.*?)` \|", rows, re.MULTILINE)
    assert len(messages) >= 30
    unknown = [message for message in messages if not any(message in template for template in templates)]
    assert unknown == []


def literals(path: Path) -> list[str]:
    """Texts in a source file, with … for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%[sdr]", "…", node.value))
    return found


def test_every_key_exists() -> None:
    known = set(known_keys())
    sections = {key.split(".")[0] for key in known if "." in key}
    named = {key for key in re.findall(r"(?:`|--)([a-z_]+\.[a-z_]+)\b", GUIDE) if key.split(".")[0] in sections}
    assert len(named) >= 9
    metrics = {"eval.semantic", "eval.text_word"}
    assert named - {"wandb.key"} - metrics <= known
    plain = {"ckpt_freq", "num_ckpt_keep", "do_ckpt", "save_adapters", "full_finetuning", "param_dtype", "eval_freq"}
    assert plain <= known and all(key in GUIDE for key in plain)
