"""sWUGGY and sBLIMP in the official layout of the ZeroSpeech 2021 data set.

sLM21-dataset/lexical/{dev,test}/{gold.csv,*.wav}      filename,id,voice,frequency,word,phones,length,correct
sLM21-dataset/syntactic/{dev,test}/{gold.csv,*.wav}    filename,id,voice,type,subtype,transcription,correct
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from ttt_moshi.evaluation.documents import table_rows
from ttt_moshi.evaluation.errors import EvaluationError, well_formed
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.pairs import Pair

Row = dict[str, str]

BANDS = ((1, "oov"), (5, "1-5"), (20, "6-20"), (100, "21-100"))


def frequency_band(frequency: float) -> str:
    """The official toolkit's band of a word's count in the training text. Its edges lie below 1, 5, 20 and 100, so a
    count of exactly 5 is in the band that it labels 6-20; comparable numbers need the same edges."""
    return next((name for edge, name in BANDS if frequency < edge), ">100")


def find_root(data_root: Path) -> Path:
    """The folder that holds `lexical` and `syntactic`. Raises `EvaluationError` when there is none."""
    for candidate in (data_root / "sLM21-dataset", data_root / "sLM21", data_root):
        if (candidate / "lexical").is_dir() or (candidate / "syntactic").is_dir():
            return candidate
    raise EvaluationError(f"no sLM21 data set below {data_root}: expected {data_root / 'sLM21-dataset' / 'lexical'}")


def lexical_pairs(data_root: Path, split: str) -> list[Pair]:
    """sWUGGY: words against nonwords, by frequency band and by length in phones."""

    def groups(row: Row) -> Mapping[str, str]:
        frequency = row["frequency"].strip()
        band = frequency_band(_number(row, "frequency")) if frequency else "oov"
        return {
            "band": band,
            "vocabulary": "oov" if band == "oov" else "in",
            "length": str(int(_number(row, "length"))) if row["length"] else "?",
        }

    return _pairs(find_root(data_root) / "lexical" / split, lambda row: row["id"], groups)


def syntactic_pairs(data_root: Path, split: str) -> list[Pair]:
    """sBLIMP: grammatical against ungrammatical sentences, by phenomenon."""
    return _pairs(
        find_root(data_root) / "syntactic" / split,
        lambda row: f"{row['type']}/{row['subtype']}/{row['id']}",
        lambda row: {"type": row["type"], "subtype": f"{row['type']}/{row['subtype']}"},
    )


def _pairs(folder: Path, item: Callable[[Row], str], groups: Callable[[Row], Mapping[str, str]]) -> list[Pair]:
    gold = folder / "gold.csv"
    if not gold.is_file():
        raise EvaluationError(f"no {gold}")
    halves: dict[tuple[str, str], tuple[list[Row], list[Row]]] = {}  # wrong and right rows, in their order
    seen: set[str] = set()
    for number, row in table_rows(gold):
        try:
            key, correct, name = (item(row), row["voice"]), row["correct"].strip(), row["filename"]
        except KeyError as error:
            raise EvaluationError(f"{gold} lacks the column {error}") from None
        if correct not in ("0", "1"):
            raise EvaluationError(f"{gold}, line {number}: `correct` is {correct!r}, and neither 1 nor 0")
        if name in seen:
            raise EvaluationError(f"{gold}, line {number}: {name} is listed twice")
        seen.add(name)
        halves.setdefault(key, ([], []))[correct == "1"].append(row)
    if not halves:
        raise EvaluationError(f"{gold} lists no recordings")
    pairs = []
    for (name, voice), (wrong, right) in halves.items():
        if len(wrong) != len(right):
            raise EvaluationError(
                f"{gold}: {name} in voice {voice} has {len(right)} correct rows and {len(wrong)} incorrect ones"
            )
        # Several of one voice are paired in their order, as the official toolkit does.
        for again, (good, bad) in enumerate(zip(right, wrong, strict=True)):
            own = voice if not again else f"{voice}+{again + 1}"
            with well_formed(gold):
                pairs.append(Pair(name, own, _example(folder, good), _example(folder, bad), groups(good)))
    return pairs


def _example(folder: Path, row: Row) -> Example:
    stem = row["filename"].removesuffix(".wav")
    path = folder / f"{stem}.wav"
    if not path.is_file():
        raise EvaluationError(f"{folder / 'gold.csv'} lists {stem}, and there is no {path}")
    return Example.file(stem, path)


def _number(row: Row, column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise EvaluationError(f"{row['filename']}: the column {column} holds {row[column]!r}, not a number")
    return number
