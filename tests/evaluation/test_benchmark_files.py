"""Benchmark folders as the web, other systems and people leave them: they are read, or refused by name in one line."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from ttt_moshi.cli.main import main

DEEP = "[" * 100_000
QUESTION = {"audio": "a.wav", "question": "who", "answers": ["x"], "choices": ["x", "y"], "answer": "A"}
SILENT = {"input.wav": 1, "clean_input.wav": 1}
# Task, the file of its benchmark that a person or a program writes, and recordings that lie there too.
WRITTEN = {
    "llama_questions": ("llama_questions/questions.jsonl", ["llama_questions/a.wav"]),
    "spoken_choices": ("spoken_choices/x.jsonl", ["spoken_choices/a.wav"]),
    "judged_answers": ("judged_answers/x.jsonl", ["judged_answers/a.wav"]),
    "context_dialog": ("context_dialog/x.jsonl", ["context_dialog/a.wav"]),
    "examiner": ("examiner/daily/0/task.json", ["examiner/daily/0/a.wav"]),
    "overlap": ("v1_5/user_backchannel/0/metadata.json", [f"v1_5/user_backchannel/0/{n}" for n in SILENT]),
    "full_duplex": ("full_duplex/turn_taking/0/turn_taking.json", ["full_duplex/turn_taking/0/input.wav"]),
    "position": ("librilight/small/1/b/0.json", ["librilight/small/1/b/0.wav"]),
    "spoken_repeat": ("repeat/2/0.json", ["repeat/2/0.wav"]),
    "needle": ("needle/2/needles.json", ["needle/2/0_n_correct.wav", "needle/2/1_n_incorrect.wav"]),
}
CONTENTS = {
    "deep": (DEEP.encode(), "nested too deeply"),
    "deep in a field": (b'{"a": ' + DEEP.encode(), "nested too deeply"),
    "binary": (bytes(range(256)), "UTF-8"),
    "utf-16": (json.dumps(QUESTION).encode("utf-16"), "UTF-8"),
    "empty": (b"", ""),
    "a number": (b"3", ""),
    "null": (b"null", ""),
    "a list of numbers": (b"[1, 2]", ""),
    "an empty object": (b"{}", ""),
}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "bench"


def sound(path: Path, bench: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(next(iter(sorted((bench / "sSC").glob("*.wav")))), path)


def refused(material, root: Path, task: str, capsys) -> str:
    """The one line with which a task is refused before the model is read."""
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model)]
    assert main([*base, "--tasks", task, "--data_root", str(root), "--out", str(root.parent / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (root.parent / "out").exists(), error
    return error


def values(material, root: Path, out: Path, tasks: str) -> dict:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    assert main([*base, "--tasks", tasks, "--data_root", str(root), "--out", str(out)]) == 0
    return json.loads((out / "results.json").read_text())["tasks"]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("task", WRITTEN)
def test_what_cannot_be_read_is_named(task, content, root, bench, tiny_material, capsys):
    name, recordings = WRITTEN[task]
    for recording in recordings:
        sound(root / recording, bench)
    path = root / name
    written, told = CONTENTS[content]
    path.write_bytes(written)
    error = refused(tiny_material, root, task, capsys)
    assert path.name in error or str(path.parent) in error, error
    assert told in error and "an evaluation writes" not in error and len(error) < 600, error


TABLES = {
    "a field of a megabyte": ("{first}\n{good}\nx," + "y" * 1_000_000, "line 3: field larger than field limit"),
    "a zero byte in a name": ("{first}\n{good}\n\0{good}", "gold.csv"),
    "a row that is too short": ("{first}\n{good}\ntest9", "line 3: 1 fields, and the first line names"),
    "a row that is too long": ("{first}\n{good},x", "line 2: "),
    "one without a name line": ("{good}\n{good}\n", "lacks the column"),
    "nothing but names": ("{first}\n", "lists no recordings"),
    "nothing": ("", "lists no recordings"),
    "right or wrong is a word": ("{first}\n{good}\n".replace("{good}", "{word}"), "line 2: `correct` is 'True'"),
    "one row twice": ("{first}\n{good}\n{good}\n", "line 3: "),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(("task", "folder"), [("swuggy", "lexical"), ("sblimp", "syntactic")])
def test_tables_that_cannot_be_read_are_named(task, folder, kind, root, bench, tiny_material, capsys):
    shutil.copytree(bench / "sLM21-dataset", root / "sLM21-dataset")
    gold = root / "sLM21-dataset" / folder / "test" / "gold.csv"
    first, good = gold.read_text().splitlines()[:2]
    written, told = TABLES[kind]
    column = first.split(",").index("correct")
    word = ",".join("True" if i == column else field for i, field in enumerate(good.split(",")))
    gold.write_text(written.replace("{first}", first).replace("{good}", good).replace("{word}", word))
    assert told in refused(tiny_material, root, task, capsys)


@pytest.mark.parametrize("kind", ["a long field", "a short row", "binary"])
def test_tables_of_questions_that_cannot_be_read_are_named(kind, root, bench, tiny_material, capsys):
    sound(root / "llama_questions/audios/a.wav", bench)
    table = root / "llama_questions/llama_questions.csv"
    rest = {
        "a long field": b"x," + b"y" * 1_000_000,
        "a short row": b"x",
        "binary": b"\xff,\xfe,x",
    }
    table.write_bytes(b"Questions,Answer,audio_filename\nwho,I am,a.wav\n" + rest[kind])
    assert "llama_questions.csv" in refused(tiny_material, root, "llama_questions", capsys)


def test_as_other_systems_write_them_they_are_the_same(root, bench, tiny_material, tmp_path):
    """Byte order marks, ends of lines, capital letters, and what macOS and Windows leave beside."""
    tasks = "swuggy,ssc,salmon,needle,spoken_repeat,position"
    shutil.copytree(bench, root)
    for gold in root.glob("sLM21-dataset/*/*/gold.csv"):
        gold.write_bytes(b"\xef\xbb\xbf" + gold.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    for path in [*root.rglob("*.json")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for path in [p for name in ("sSC", "salmon", "needle", "repeat") for p in (root / name).rglob("*.wav")]:
        path.rename(path.with_suffix(".WAV"))
    for path in [path for path in root.rglob("*") if path.suffix.lower() in (".wav", ".flac", ".json")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    for folder in ("needle", "repeat", "salmon", "sSC", "librilight"):
        for left in (root / folder / "__MACOSX" / "._x.wav", root / folder / ".DS_Store", root / folder / "Thumbs.db"):
            left.parent.mkdir(exist_ok=True)
            left.write_bytes(b"\0")
    there = values(tiny_material, root, tmp_path / "a", tasks)
    here = values(tiny_material, bench, tmp_path / "b", tasks)
    for task in (*there.values(), *here.values()):
        task.pop("seconds", None)
    assert there == here


def test_books_on_another_disk_are_found_through_links(root, bench, tiny_material, tmp_path):
    shutil.copytree(bench / "librilight", tmp_path / "disk" / "librilight")
    (root / "librilight").mkdir(parents=True)
    for size in (tmp_path / "disk" / "librilight").iterdir():
        os.symlink(size, root / "librilight" / size.name)
        os.symlink(size, root / "librilight" / f"{size.name}_again")  # the same ones, which are there once
    found = values(tiny_material, root, tmp_path / "a", "position")
    assert found == values(tiny_material, bench, tmp_path / "b", "position")


def test_a_row_of_several_lines_is_named_by_its_last(root, bench, tiny_material, capsys):
    shutil.copytree(bench / "sLM21-dataset", root / "sLM21-dataset")
    gold = root / "sLM21-dataset/syntactic/test/gold.csv"
    rows = list(csv.reader(gold.read_text().splitlines()))
    text = rows[0].index("transcription")
    rows[1][text] = "one\ntwo\nthree"
    rows[2][rows[0].index("correct")] = "?"
    with gold.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert "line 5: `correct` is '?'" in refused(tiny_material, root, "sblimp", capsys)
