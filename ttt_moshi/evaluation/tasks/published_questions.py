"""Spoken questions as VoiceBench, Big Bench Audio and URO-Bench are published, beside our own lists.

voicebench/<subset>/<split>-*.parquet             columns audio, prompt and (not in all) reference (arXiv 2410.17196)
big_bench_audio/metadata.jsonl                    {"file_name", "category", "official_answer", "id"}
URO-Bench-data/<track>/<name>/test.jsonl          {"id", "source_wav", "source_text", "target_text"?} (arXiv 2502.17810)

*openbookqa* and *mmsu* of VoiceBench have a letter for an answer and are multiple choice; the answers to all others are
rated by a judge. What asks in several rounds is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from ttt_moshi.evaluation import parquet
from ttt_moshi.evaluation.documents import json_lines
from ttt_moshi.evaluation.errors import EvaluationError, line_of
from ttt_moshi.evaluation.fields import within
from ttt_moshi.evaluation.listing import files_in, folders_in
from ttt_moshi.evaluation.tasks.spoken_questions import (
    Lists,
    SpokenQuestion,
    choice_questions,
    judged_questions,
    usable,
)

LETTERED = ("openbookqa", "mmsu")
LETTERS = "ABCD"
ROUNDS = "it asks in several rounds"


def choices(data_root: Path) -> Lists:
    """All multiple choice questions. Raises `EvaluationError` where there are none, or some cannot be used."""
    found = choice_questions(data_root)
    for subset in LETTERED:
        found += [q for path in _tables(data_root, subset) for q in _table(subset, path)]
    if not found:
        raise EvaluationError(
            f"no spoken questions: expected {data_root}/spoken_choices/<name>.jsonl or "
            f"{data_root}/voicebench/{{{','.join(LETTERED)}}}/*.parquet"
        )
    return Lists(found)


def judged(data_root: Path) -> Lists:
    """All questions whose answers a judge rates. Raises as `choices`."""
    found, left_out = judged_questions(data_root), dict[str, str]()
    for folder in folders_in(data_root / "voicebench"):
        if folder.name in LETTERED:
            continue
        for path in _tables(data_root, folder.name):
            names = parquet.columns(path)
            if {"audio", "prompt"} <= set(names):
                found += _table(folder.name, path)
            else:
                left_out[folder.name] = f"{ROUNDS}, or has other columns than audio and prompt"
    if (path := data_root / "big_bench_audio" / "metadata.jsonl").is_file():
        found += _big_bench(path)
    for path in sorted(data_root.glob("URO-Bench-data/*/*/test.jsonl")):
        questions = _uro(path)
        if questions is None:
            left_out[path.parent.name] = ROUNDS
        else:
            found += questions
    if not found:
        reasons = "".join(f"; {name}: {reason}" for name, reason in left_out.items())
        raise EvaluationError(
            f"no spoken questions: expected {data_root}/judged_answers/<name>.jsonl, voicebench/<subset>/*.parquet, "
            f"big_bench_audio/metadata.jsonl or URO-Bench-data/<track>/<name>/test.jsonl{reasons}"
        )
    return Lists(found, left_out)


def _tables(data_root: Path, subset: str) -> list[Path]:
    """The Parquet files of a subset in the order of their parts."""
    return files_in(data_root / "voicebench" / subset, ".parquet")


def _table(subset: str, path: Path) -> list[SpokenQuestion]:
    names = parquet.columns(path)
    texts = [name for name in ("prompt", "reference") if name in names]
    part = path.stem  # test-00000-of-00001
    split = part.split("-")[0]
    group = subset if split == "test" else f"{subset}-{split}"
    found = []
    for number, (values, audio) in enumerate(parquet.rows(path, texts, "audio")):
        reference, options = values.get("reference"), {}
        if subset in LETTERED:
            if reference not in tuple(LETTERS):
                raise EvaluationError(f"{path}, row {number}: the answer {reference!r} is not one of {LETTERS}")
            options = _options(str(values["prompt"]))
        name = f"{'-'.join(part.split('-')[1:2])}.{number}" if "-" in part else str(number)
        answers = (str(reference),) if reference else ()
        found.append(SpokenQuestion(name, audio, str(values["prompt"]), answers, group, options))
    return usable(found, path)


def _options(prompt: str) -> dict[str, str]:
    """The texts of the options, "A. one B. two ...", as far as they are told so; each letter is there in any case."""
    found = dict(re.findall(r"\b([A-D])[.):]\s*(.+?)\s*(?=\b[A-D][.):]\s|$)", prompt, re.DOTALL))
    return {letter: found.get(letter, "") for letter in LETTERS}


def _big_bench(path: Path) -> list[SpokenQuestion]:
    found = []
    for number, line in json_lines(path):
        with line_of(path, number):
            audio = within(path.parent, str(line["file_name"]))
            id, group = str(line.get("id", number)), f"big_bench_audio-{line['category']}"
            text = str(line.get("transcript", ""))
            found.append(SpokenQuestion(id, audio, text, (str(line["official_answer"]),), group))
    return usable(found, path)


def _uro(path: Path) -> list[SpokenQuestion] | None:
    """None for a set of dialogues."""
    found = []
    for number, line in json_lines(path):
        if "dialogue" in line:
            return None
        with line_of(path, number):
            audio, asked = within(path.parent, str(line["source_wav"])), str(line["source_text"])
        # Without a target, as in Repeat, what is said is what should be answered.
        answers = (str(line.get("target_text") or asked),)
        found.append(SpokenQuestion(str(line.get("id", number)), audio, asked, answers, path.parent.name))
    return usable(found, path)
