"""Turns a folder of recordings into a data set, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TextIO

from ttt_moshi import __version__
from ttt_moshi.data import unfinished
from ttt_moshi.data.addresses import url_of
from ttt_moshi.data.audio import AUDIO_SUFFIXES, files_below
from ttt_moshi.data.digests import state_of
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.formats import SUFFIXES
from ttt_moshi.data.prepare_one import Choices, Item, Outcome, diarization_path, prepare_one
from ttt_moshi.data.remote import cache_in_use, delete, is_there, outgoing, send, use_cache
from ttt_moshi.data.rows import Rows, rows_of, state_of_row
from ttt_moshi.data.transcripts import find_transcript

OnFile = Callable[[str, int, int], None]
"""called when a recording is done, with its name, how many are done and how many there are"""

Work = Sequence[tuple[Item, Path, Choices]]
"""recordings and the files that are made of them"""
Run = Callable[[Work], Iterator[tuple[int, Outcome]]]
"""does work, and gives the index and the outcome of each recording as it is finished"""

REPORT_NAME = "prepare.json"

_RECORDINGS = "recordings"
_REPLACED = "replaced"
_SENT = "sent.jsonl"
_ONE_RECORDING = "one recording cannot be split into training and evaluation data; leave `--eval_fraction` out"


@dataclass(frozen=True)
class Prepared:
    """The result: one outcome per recording, and the lists that were written with their numbers of recordings."""

    outcomes: list[Outcome]
    lists: dict[str, int]
    passed_over: dict[str, int] = field(default_factory=dict)
    """files that are neither recordings nor named as the transcript of one, by suffix"""


def prepare(
    source: Path | Rows,
    out: Path,
    choices: Choices | None = None,
    *,
    pair: str | None = None,
    eval_fraction: float = 0.0,
    overwrite: bool = False,
    jobs: int = 1,
    run: Run | None = None,
    on_file: OnFile | None = None,
) -> Prepared:
    """Writes `out/data.jsonl`, or `out/train.jsonl` and `out/eval.jsonl`, with 24 kHz stereo wavs and transcripts.

    Nothing in `source` is changed, and `out` appears in one piece when all is done. What was done before an
    interruption lies in a hidden folder beside `out` and is not done again. A recording that cannot be used is left out
    and its outcome says why. The same folder gives the same data set, bit for bit, with any number of `jobs`.
    Either may be a path that stands for a URL (`ttt_moshi.data.addresses`); `out` is then made in the cache and sent
    when it is whole, its lists and at last `prepare.json` after all else.

    Args:
        source: a folder, or a data set of Hugging Face's.
        pair: names of recordings that come as a file a speaker, such as `call_*_{agent,customer}.wav`: Moshi's first.
        eval_fraction: share of the recordings that goes to evaluation, chosen by their content.
        overwrite: whether `out` may be replaced if an earlier call made it.
        run: what does the work instead of `jobs` processes of this machine.

    Raises:
        DataError: no recordings, or an `out` that must not be replaced.
        OSError: `out` cannot be written.
    """
    if url_of(out) is None:
        out = out.resolve()
        partial = out.with_name(f".{out.name}.partial")
        _refuse_to_destroy(source, out, overwrite)
        there = set[str]()
    else:
        partial = outgoing(out)
        there = _refuse_to_replace(source, out, overwrite, partial)
    choices = choices or Choices()
    if isinstance(source, Rows):
        items, passed_over = _row_items(source), dict[str, int]()
    else:
        items, passed_over = _items(source, [out, partial.resolve()], pair, choices.separate)
    if eval_fraction and sum(item.unusable is None for item in items) < 2:
        raise DataError(_ONE_RECORDING)
    settings = {"version": __version__, "source": _same(source), "choices": asdict(choices), "pair": pair}
    with unfinished.under_way(partial, settings) as (earlier, record):
        outcomes = _prepare_all(items, partial, choices, run or _here(jobs), earlier, record, on_file)
        whole = unfinished.whole(partial)
        lists = _write_lists(whole, outcomes, eval_fraction)
        report = {**asdict(choices), "pair": pair, "recordings": [_public(outcome) for outcome in outcomes]}
        (whole / REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if url_of(out) is None:
            _refuse_to_destroy(source, out, overwrite)  # since when hours may have passed
            _replace(out, whole, partial / _REPLACED)
        else:
            _send(whole, out, there, partial, lists)
    shutil.rmtree(partial)
    return Prepared(outcomes, lists, passed_over)


def _items(source: Path, made: Sequence[Path], pair: str | None, separate: bool) -> tuple[list[Item], dict[str, int]]:
    """Recordings, and what else there is, but for what lies in folders that were made of them."""
    if url_of(source) is None and not source.is_dir():
        raise DataError(f"no folder of recordings at {source}")
    files = [file for file in files_below(source) if not any(folder in file.resolve().parents for folder in made)]
    # A link that leads nowhere is a recording that somebody misses; what else is no file, such as a pipe, is none.
    audio = [f for f in files if f.suffix.lower() in AUDIO_SUFFIXES and (is_there(f) or f.is_symlink())]
    if not audio:
        raise DataError(f"{source} holds no recordings ({', '.join(AUDIO_SUFFIXES)})")
    passed_over = _passed_over(files, audio, pair)
    if pair is None:
        turns = {file: diarization_path(file) if separate else None for file in audio}
        return [
            Item(_name(source, file), _path(source, file), (file,), find_transcript(file, rttm), rttm)
            for file, rttm in turns.items()
        ], passed_over
    return list(_pairs(source, audio, pair)), passed_over


def _row_items(source: Rows) -> list[Item]:
    return [Item(row.name, f"{_RECORDINGS}/{row.name}.wav", (), None, row=row) for row in rows_of(source)]


def _same(source: Path | Rows) -> object:
    """Equal where recordings come from the same place."""
    return str(source) if isinstance(source, Rows) else str(source.resolve())


def _passed_over(files: Sequence[Path], audio: Sequence[Path], pair: str | None) -> dict[str, int]:
    """Files that are no recordings, and transcripts that no recording is named as, by suffix."""
    known = set(audio)
    # A pair has its transcript under a name that both share.
    stems = {(file.parent, name) for file in audio for name in (file.stem, file.name)}
    others: Counter[str] = Counter()
    for file in files:
        if file in known or (file.suffix in SUFFIXES and (pair or (file.parent, file.stem) in stems)):
            continue
        others[file.suffix or file.name] += 1
    return dict(sorted(others.items()))


def _pairs(source: Path, audio: Sequence[Path], pair: str) -> Iterator[Item]:
    """Recordings of a file a speaker; what has no partner, or another name, is an item of its own, to be told of."""
    match = re.fullmatch(r"([^{}]*)\{([^{},]+),([^{},]+)\}([^{}]*)", pair)
    if match is None:
        raise DataError(f"`--pair {pair}` must name the two speakers, Moshi's first: 'call_*_{{agent,customer}}.wav'")
    before, moshi, user, after = match.groups()
    patterns = [re.compile(f"({_glob(before)}){re.escape(name)}({_glob(after)})") for name in (moshi, user)]
    found: dict[tuple[Path, str, str], dict[int, Path]] = {}
    others: list[Path] = []
    for file in audio:
        for side, pattern in enumerate(patterns):
            named = pattern.fullmatch(file.name)
            if named:
                found.setdefault((file.parent, named[1], named[2]), {})[side] = file
                break
        else:
            others.append(file)
    if not found:
        raise DataError(f"no recording below {source} is named as `--pair {pair}` says")
    for (folder, start, end), files in sorted(found.items()):
        if len(files) == 2:
            common = folder / (start.rstrip("_-. ") + end)
            name = f"{_name(source, files[0])} + {files[1].name}"
            yield Item(name, _path(source, files[0]), (files[0], files[1]), find_transcript(common))
        else:
            (file,) = files.values()
            missing = file.with_name(start + (user if 0 in files else moshi) + end)
            yield Item(_name(source, file), _path(source, file), (file, missing), None)
    for file in others:
        told = f"it is not named as `--pair {pair}` says"
        yield Item(_name(source, file), _path(source, file), (file,), None, unusable=told)


def _glob(text: str) -> str:
    return "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in text)


def _name(source: Path, file: Path) -> str:
    return file.relative_to(source).as_posix()


def _path(source: Path, file: Path) -> str:
    """Where the wav that is made of a file lies in the data set."""
    return (Path(_RECORDINGS) / file.relative_to(source)).with_suffix(".wav").as_posix()


def _refuse_to_destroy(source: Path | Rows, out: Path, overwrite: bool) -> None:
    source = source.folder if isinstance(source, Rows) else source
    if out == source.resolve() or out in source.resolve().parents:
        raise DataError(f"{out} holds the recordings themselves; name another folder for the data set")
    if os.path.ismount(out):
        raise DataError(f"{out} is a mount point, which nothing can take the place of; name a folder in it")
    if out == Path.cwd() or out in Path.cwd().parents:
        raise DataError(f"{out} is where this command runs; name a folder in it, or run it from elsewhere")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / REPORT_NAME).is_file():
        raise DataError(f"{out} is not empty and was not made by this command; name another folder")
    if not overwrite:
        raise DataError(f"{out} holds a data set; `--overwrite` replaces it")


def _refuse_to_replace(source: Path | Rows, out: Path, overwrite: bool, partial: Path) -> set[str]:
    """What lies at the URL that `out` stands for, if it may be replaced, or is what an earlier call was sending."""
    source = source.folder if isinstance(source, Rows) else source
    if source == out or source in out.parents or out in source.parents:
        raise DataError(f"{out} lies among the recordings, or they in it; name another folder for the data set")
    there = {file.relative_to(out).as_posix() for file in files_below(out)}
    if (partial / _REPLACED).exists():
        return there  # what is left of a data set that was to be replaced
    if REPORT_NAME in there:
        if not overwrite:
            raise DataError(f"{out} holds a data set; `--overwrite` replaces it")
    elif not there <= _names(unfinished.whole(partial)):
        raise DataError(f"{out} is not empty and was not made by this command; name another folder")
    return there


def _replace(out: Path, whole: Path, aside: Path) -> None:
    """Puts what is whole in the place of `out`; nothing is deleted before it is there."""
    if out.exists():
        if aside.exists():
            shutil.rmtree(aside)
        out.rename(aside)
    whole.rename(out)


def _send(whole: Path, out: Path, there: set[str], partial: Path, lists: Collection[str]) -> None:
    """Sends what is whole to a URL, or what is missing there of it. The report, by which it is known, comes last."""
    sent, replaced = partial / _SENT, partial / _REPLACED
    if replaced.exists() or REPORT_NAME in there or not there <= _names(whole):
        sent.unlink(missing_ok=True)
        replaced.touch()
        if there:
            delete(out)
        replaced.unlink()
    send(whole, out, late=lambda name: 2 if name == REPORT_NAME else int(name in lists), sent=sent)


def _names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def _prepare_all(
    items: Sequence[Item],
    partial: Path,
    choices: Choices,
    run: Run,
    earlier: dict[str, Outcome],
    record: TextIO,
    on_file: OnFile | None,
) -> list[Outcome]:
    work = []
    outcomes: dict[int, Outcome] = {}
    states = [_state(item) for item in items]  # before the work, during which files may change
    for index, item in enumerate(items):
        known = earlier.get(states[index])
        if known is not None and (known.left_out or unfinished.made(partial, item).is_file()):
            outcomes[index] = known
        else:
            work.append(index)
    for place, outcome in run([(items[index], unfinished.made(partial, items[index]), choices) for index in work]):
        index = work[place]
        outcomes[index] = outcome
        if not outcome.passing:  # or else the same command tries it again
            unfinished.log_outcome(record, states[index], outcome)
        if on_file:
            on_file(outcome.source, len(outcomes), len(items))
    ordered = [outcomes[index] for index in range(len(items))]
    _choose_paths(items, ordered)
    if all(outcome.path is None for outcome in ordered):
        raise DataError(f"none of the {len(items)} recordings can be used; the first: {ordered[0].left_out}")
    unfinished.give_names(partial, [(i, o) for i, o in zip(items, ordered, strict=True) if o.path is not None])
    return ordered


def _here(jobs: int) -> Run:
    """By so many processes of this machine."""
    return _one_by_one if jobs == 1 else lambda work: _at_once(work, jobs)


def _one_by_one(work: Work) -> Iterator[tuple[int, Outcome]]:
    for index, task in enumerate(work):
        yield index, prepare_one(*task)


def _at_once(work: Work, jobs: int) -> Iterator[tuple[int, Outcome]]:
    with _pool(jobs) as pool:
        futures = {_submit(pool, task): index for index, task in enumerate(work)}
        try:
            for future in as_completed(futures):
                index = futures[future]
                try:
                    yield index, future.result()
                except BrokenProcessPool:
                    yield index, _alone(*work[index])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, get_context("spawn"), initializer=use_cache, initargs=cache_in_use())


def _submit(pool: ProcessPoolExecutor, task: tuple[Item, Path, Choices]) -> Future[Outcome]:
    """A pool refuses work as soon as one of its processes has died; that is for the task to find out."""
    try:
        return pool.submit(prepare_one, *task)
    except BrokenProcessPool as error:
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future


def _alone(item: Item, target: Path, choices: Choices) -> Outcome:
    """In a process that nothing else depends on: one of those before has died of a recording, maybe of this one."""
    with _pool(1) as pool:
        try:
            return pool.submit(prepare_one, item, target, choices).result()
        except BrokenProcessPool:
            told = "the process that read it died, for lack of memory or of the file"
            return Outcome(item.name, left_out=told, passing=True)


def _choose_paths(items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
    """Says where everything goes. Of several with one name or one content the first that can be used stays."""
    names: dict[str, str] = {}
    folders: dict[str, str] = {}
    digests: dict[str, str] = {}
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.path is None:
            continue
        above = [str(folder) for folder in PurePosixPath(item.path).parents]
        if item.path in names:
            outcome.left_out = f"{names[item.path]} has the same name"
        elif item.path in folders:
            outcome.left_out = f"its name is that of a folder of {folders[item.path]}"
        elif taken := [names[folder] for folder in above if folder in names]:
            outcome.left_out = f"{taken[0]} has the name of its folder"
        elif outcome.digest in digests:
            outcome.left_out = f"{digests[outcome.digest]} has the same audio"
        outcome.path = None if outcome.left_out else item.path
        if outcome.path is not None:  # whoever is left out must not cost another one its place
            names[item.path] = digests[outcome.digest] = item.name
            folders |= dict.fromkeys(above, item.name)


def _state(item: Item) -> str:
    """Equal where the files of a recording have not been touched."""
    if item.row is not None:
        return json.dumps(state_of_row(item.row))
    states: list[object] = []
    transcripts = [item.transcript] if item.transcript else [find_transcript(file) for file in item.files]
    for path in (*item.files, *filter(None, [*transcripts, item.diarization])):
        try:
            states.append([str(path), *state_of(path)])
        except DataError:
            states.append([str(path)])
    return json.dumps(states)


def _write_lists(out: Path, outcomes: Sequence[Outcome], eval_fraction: float) -> dict[str, int]:
    used = [outcome for outcome in outcomes if outcome.path is not None]
    if not eval_fraction:
        return {"data.jsonl": _write_list(out / "data.jsonl", used)}
    if len(used) < 2:
        raise DataError(_ONE_RECORDING)
    held_out = min(max(1, round(eval_fraction * len(used))), len(used) - 1)
    # By content, so that renaming files or adding a transcript moves nothing between the two.
    chosen = {outcome.digest for outcome in sorted(used, key=lambda outcome: outcome.digest)[:held_out]}
    return {
        "train.jsonl": _write_list(out / "train.jsonl", [o for o in used if o.digest not in chosen]),
        "eval.jsonl": _write_list(out / "eval.jsonl", [o for o in used if o.digest in chosen]),
    }


def _write_list(path: Path, outcomes: Sequence[Outcome]) -> int:
    lines = [{"path": outcome.path, "duration": outcome.seconds} for outcome in outcomes]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _public(outcome: Outcome) -> dict[str, object]:
    return {key: value for key, value in asdict(outcome).items() if key not in ("digest", "passing")}
