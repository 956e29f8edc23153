"""Files that other tools read: ZeroSpeech submissions and VERSA's lists of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.results import write_text

ZEROSPEECH = {"swuggy": "lexical", "sblimp": "syntactic"}


def write_submission(folder: Path, task: str, split: str, scores: Mapping[str, float]) -> Path:
    """`lexical/<split>.txt` or `syntactic/<split>.txt`: `<filename> <score>` a line, higher = likelier.

    The ZeroSpeech toolkit recomputes the task's headline value from it, provided that the whole split was scored.
    """
    path = folder / ZEROSPEECH[task] / f"{split}.txt"
    write_text(path, "".join(f"{name} {score!r}\n" for name, score in sorted(scores.items())))
    return path


def write_versa_lists(out: Path, predicted: Path, references: Path | None, texts: Mapping[str, str]) -> list[Path]:
    """`pred.scp`, `gt.scp` and `text` for VERSA from folders of sound files with equal stems.

    Raises `EvaluationError` when a folder is empty or a prediction lacks its reference.
    """
    files = {path.stem: path for path in sorted(predicted.glob("*")) if path.suffix in (".wav", ".flac")}
    if not files:
        raise EvaluationError(f"no .wav or .flac in {predicted}")
    written = [_scp(out / "pred.scp", {name: str(path.resolve()) for name, path in files.items()})]
    if references is not None:
        others = {path.stem: path for path in sorted(references.glob("*")) if path.suffix in (".wav", ".flac")}
        if missing := sorted(files.keys() - others.keys()):
            raise EvaluationError(f"{references} lacks a reference for {', '.join(missing[:5])}")
        written.append(_scp(out / "gt.scp", {name: str(others[name].resolve()) for name in files}))
    if texts:
        written.append(_scp(out / "text", {name: texts[name] for name in files if name in texts}))
    return written


def _scp(path: Path, entries: Mapping[str, str]) -> Path:
    write_text(path, "".join(f"{name} {value}\n" for name, value in entries.items()))
    return path
