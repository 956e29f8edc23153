"""Spoken and topic StoryCloze, SALMon and the spoken needle: pairs that are told apart by their file names.

sSC/*.wav, tSC/*.wav         <n>_<uuid>_correct.wav and <n + 1>_<uuid>_incorrect.wav, or
                             <base>_mutual.wav with <base>_correct.wav and <base>_incorrect.wav
salmon/<part>/*.wav          sample_<i>_0.wav (consistent) and sample_<i>_1.wav
needle/<distance>/*.wav      as StoryCloze; <distance> is the seconds between the fact and the question, as in 60 or
                             60s; `needles.json` there lists stories that are one item: [{"pairs": [uuid, uuid]}, ...]
"""

from __future__ import annotations

import re
from pathlib import Path

from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import MALFORMED, EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece, Segment, Source
from ttt_moshi.evaluation.fields import texts
from ttt_moshi.evaluation.listing import files_in, folders_in
from ttt_moshi.evaluation.pairs import Pair

SALMON_FOLDERS = ("salmon", "SALMon", "salmon_benchmark")  # the last is how its archive unpacks
_STORY = re.compile(r"(?:(?P<n>\d+)_)?(?P<base>.+)_(?P<kind>correct|incorrect|mutual)\.wav", re.IGNORECASE)
_SAMPLE = re.compile(r"sample_(?P<i>\d+)_(?P<half>[01])\.wav", re.IGNORECASE)


def story_pairs(data_root: Path, name: str) -> list[Pair]:
    """Pairs of the data set `name` (sSC or tSC), in one folder or, as its archives unpack, in a folder within it."""
    folder = data_root / name
    nested = folder / name
    return _story_folder(nested if nested.is_dir() else folder, "")


def needle_pairs(data_root: Path) -> list[Pair]:
    """Pairs of every distance; the group `distance` is in seconds.

    A needle is asked both ways (the fact of one story is the wrong answer of the other), so that a liking for one of
    the values cancels: both stories together are the item.
    """
    root = data_root / "needle"
    folders = sorted(folders_in(root), key=lambda f: (distance_of(f), f.name))
    if not folders:
        raise EvaluationError(f"no needle data: expected folders named by seconds, such as {root / '60'}")
    pairs = []
    for folder in folders:
        distance = f"{distance_of(folder):g}"
        items = _needles(folder)
        for pair in _story_folder(folder, f"{folder.name}/"):
            story = pair.item.removeprefix(f"{folder.name}/")
            item = f"{folder.name}/{items.get(story, story)}"
            pairs.append(Pair(item, story, pair.correct, pair.incorrect, {"distance": distance}))
    return pairs


def salmon_pairs(data_root: Path) -> list[Pair]:
    """All parts of SALMon that are there; the group `part` names them."""
    root = next((r for name in SALMON_FOLDERS if (r := data_root / name).is_dir()), None)
    if root is None:
        raise EvaluationError(f"no SALMon data: expected {data_root / 'salmon' / 'speaker_consistency'}")
    pairs = []
    for folder in folders_in(root):
        halves: dict[int, dict[str, Path]] = {}
        for path in files_in(folder, ".wav"):
            if match := _SAMPLE.fullmatch(path.name):
                halves.setdefault(int(match["i"]), {})[match["half"]] = path
        for i, half in sorted(halves.items()):
            if set(half) != {"0", "1"}:
                raise EvaluationError(f"{folder}: sample {i} has only {', '.join(p.name for p in half.values())}")
            item = f"{folder.name}/{i}"
            good, bad = Example.file(f"{item}/0", half["0"]), Example.file(f"{item}/1", half["1"])
            pairs.append(Pair(item, "", good, bad, {"part": folder.name}))
    if not pairs:
        raise EvaluationError(f"{root} holds no sample_<i>_0.wav with its sample_<i>_1.wav")
    return pairs


def _needles(folder: Path) -> dict[str, str]:
    """For every story of `needles.json` the name of its item: that of the first story."""
    path = folder / "needles.json"
    if not path.is_file():
        return {}
    needles = read_json(path)
    try:
        if not isinstance(needles, list):
            raise ValueError("no list")
        pairs = [texts(needle["pairs"], "pairs") for needle in needles]
    except MALFORMED as error:
        raise EvaluationError(f'{path} is not [{{"pairs": [uuid, uuid]}}, ...] ({error!r})') from None
    return {story: pair[0] for pair in pairs for story in pair}


def _story_folder(folder: Path, prefix: str) -> list[Pair]:
    stories: dict[str, dict[str, Path]] = {}
    for path in files_in(folder, ".wav"):
        match = _STORY.fullmatch(path.name)
        if match is None:
            raise EvaluationError(f"{path} is not named <n>_<uuid>_correct.wav, ..._incorrect.wav or ..._mutual.wav")
        kinds, kind = stories.setdefault(match["base"], {}), match["kind"].lower()
        if kind in kinds:
            raise EvaluationError(f"{path} and {kinds[kind].name} are two {kind} files of one story")
        kinds[kind] = path
    if not stories:
        raise EvaluationError(f"no recordings in {folder}: expected <n>_<uuid>_correct.wav and ..._incorrect.wav")
    pairs = []
    for base, kinds in sorted(stories.items()):
        if not {"correct", "incorrect"} <= set(kinds):
            raise EvaluationError(f"{folder}: the story {base} has only {', '.join(p.name for p in kinds.values())}")
        good, bad = (
            _story(f"{prefix}{base}/{kind}", kinds.get("mutual"), kinds[kind]) for kind in ("correct", "incorrect")
        )
        pairs.append(Pair(f"{prefix}{base}", "", good, bad))
    return pairs


def _story(id: str, mutual: Path | None, ending: Path) -> Example:
    if mutual is None:
        return Example.file(id, ending)
    return Example(id, (Piece(Source((Segment(mutual), Segment(ending)))),))


def distance_of(folder: Path) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:s|_?sec)?", folder.name)
    if match is None:
        raise EvaluationError(f"{folder}: the folder's name must be a number of seconds")
    return float(match[1])
