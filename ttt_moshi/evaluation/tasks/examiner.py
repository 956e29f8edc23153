"""Staged conversations with an examiner, over a server: Full-Duplex-Bench v2 (arXiv 2510.07838) with recorded turns.

examiner/<family>/<id>/task.json    {"goal": "...", "turns": [{"audio": "0.wav", "text": "...", "at"?: seconds,
                                     "expects"?: ["...", ...]}, ...]}

Every task is held twice, with a patient and a quick examiner, see `ttt_moshi.evaluation.examiner`; the two are one item
of the statistics. The conversations
go over moshi's web socket: with the server of `--server`, or with one that is started for them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import soundfile
import torch

from ttt_moshi.data.audio import read_audio
from ttt_moshi.data.voiced import Span
from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.documents import read_json
from ttt_moshi.evaluation.errors import EvaluationError, well_formed, writing
from ttt_moshi.evaluation.examiner import PACES, Exchange, Turn, examine, score_turns
from ttt_moshi.evaluation.fields import told_apart
from ttt_moshi.evaluation.judge import Judged, digest_of, judge_answers
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.pairs import some_of
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.spoken_answers import answers_of
from ttt_moshi.evaluation.statistics import item_means, mean_and_interval, means_by_name
from ttt_moshi.evaluation.turn_events import speech_spans, totals, turn_events
from ttt_moshi.files import read_bytes, write_atomically
from ttt_moshi.frames import SAMPLE_RATE
from ttt_moshi.inference.client import call, served_model
from ttt_moshi.inference.driver import difference, read_words, write_audio, write_words
from ttt_moshi.inference.hosting import hosted
from ttt_moshi.inference.slots import Slots

MEASURES = ("answered", "taken", "interrupted", "latency", "stop_latency", "known", "overlap", "rating")
LATEST_SEC = 3600
"""at which a turn may begin: a time in milliseconds would let the model wait for days"""
EXAM = "exam.json"
"""of a conversation: what made it and when the examiner spoke; written last"""
_NAME = re.compile(r"\w[\w.\- ]*")


@dataclass(frozen=True)
class Stage:
    """A turn of the examiner.

    Args:
        at: when it begins, in seconds; None by the rule.
        expects: answers of which one should be in what the model says to it.
    """

    audio: Path
    text: str
    at: float | None
    expects: tuple[str, ...]


@dataclass(frozen=True)
class StagedTask:
    """What the examiner wants, turn by turn."""

    family: str
    id: str
    goal: str
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.id}"


def find_tasks(data_root: Path) -> list[StagedTask]:
    """Every task below `data_root/examiner`. Raises `EvaluationError` where there is none, or one is not whole."""
    root = data_root / "examiner"
    paths = sorted(root.glob("*/*/task.json"))
    told_apart((path.parent for path in paths), lambda folder: f"{folder.parent.name}-{folder.name}")
    found = [_task(path) for path in paths]
    if not found:
        raise EvaluationError(f"no staged tasks: expected {root}/<family>/<id>/task.json")
    return found


def _task(path: Path) -> StagedTask:
    folder = path.parent
    with well_formed(path):
        facts = read_json(path)
        stages = tuple(
            Stage(
                folder / str(turn["audio"]),
                str(turn.get("text", "")),
                None if turn.get("at") is None else float(turn["at"]),
                answers_of(turn["expects"], "expects") if turn.get("expects", []) != [] else (),
            )
            for turn in facts["turns"]
        )
        task = StagedTask(folder.parent.name, folder.name, str(facts.get("goal", "")), stages)
    if not stages:
        raise EvaluationError(f"{path} has no turns")
    if not _NAME.fullmatch(task.name):
        raise EvaluationError(f"{folder}: letters, digits, `_`, `.` and `-` name a task")
    for number, stage in enumerate(stages):
        if not stage.audio.is_file():
            raise EvaluationError(f"{path}, turn {number}: there is no {stage.audio}")
    _check_times(path, [stage.at for stage in stages])
    return task


def _check_times(path: Path, times: Sequence[float | None]) -> None:
    """Raises `EvaluationError` for a time at which a turn cannot begin."""
    earliest = 0.0
    for number, at in enumerate(times):
        if at is None:
            continue
        if not 0 <= at <= LATEST_SEC:
            raise EvaluationError(
                f"{path}, turn {number}: `at` is {at:g}, and no time in seconds from 0 to {LATEST_SEC}"
            )
        if at < earliest:
            raise EvaluationError(f"{path}, turn {number}: `at` is {at:g}, and a turn before it begins at {earliest:g}")
        earliest = at


def some(tasks: list[StagedTask], max_items: int | None, seed: int) -> list[StagedTask]:
    """At most so many, from every family in proportion."""
    return some_of(tasks, lambda task: task.name, max_items, seed, lambda task: task.family)


@dataclass(frozen=True)
class Examination:
    """Share of the examiner's turns that are answered, by pace, family and number of the turn.

    Args:
        server: address of a server of the same checkpoint; None starts one.
        judge: rates whole conversations.
    """

    tasks: Sequence[StagedTask]
    talker: Talker | None
    server: str | None = None
    judge: str | None = None
    name: str = "examiner"

    def run(self, engine: Engine) -> Outcome:
        talker = needed(self.talker)
        wanted = [(task, pace) for task in self.tasks for pace in PACES]
        done = engine.counting(f"{self.name}: conversations", len(wanted))
        share = engine.ranks.share(wanted)
        engine.ranks.together(lambda: asyncio.run(self._hold(talker, share, done)))
        folder = talker.folder / self.name
        held = engine.ranks.together(lambda: [_read(folder / _called(*one)) for one in wanted])
        samples = [_sample(*one, exchange) for one, exchange in zip(wanted, held, strict=True)]
        rated = {}
        if self.judge is not None:
            command = self.judge
            cases = [_case(*one, exchange) for one, exchange in zip(wanted, held, strict=True)]
            ratings = engine.ranks.on_main(lambda: judge_answers(command, cases))
            for one, rating in zip(samples, ratings, strict=True):
                one["rating"] = rating
            rated = {"ratings": digest_of(ratings)}
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for one in samples:
            groups[one["pace"]].append(one)
            groups[f"{one['family']}, {one['pace']}"].append(one)
        most = max(len(one["turns"]) for one in samples)
        by_turn = [
            [{**one["turns"][i], "item": one["item"]} for one in samples if i < len(one["turns"])] for i in range(most)
        ]
        scores = item_means([one["item"] for one in samples], [one["score"] for one in samples])
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "share of the examiner's turns that are answered: the turn is taken after and not within them",
            "better": "higher",
            **mean_and_interval(scores),
            "n": len(scores),
            "unit_of_n": "tasks",
            **rated,
            "conversations": len(samples),
            "examined": {group: means_by_name(own, MEASURES) for group, own in sorted(groups.items())},
            "stages": [means_by_name(own, MEASURES) for own in by_turn],
        }
        return Outcome(entry, samples, data_digest=_digest(self.tasks))

    async def _hold(
        self, talker: Talker, wanted: Sequence[tuple[StagedTask, str]], done: Callable[[int], None]
    ) -> None:
        """The conversations that are not there yet, as many at once as the driver has slots."""
        driver, folder = talker.driver, talker.folder / self.name
        model = {"state_id": driver.speaker.state_id, "dtype": driver.speaker.dtype}
        identity = {**model, "served": self.server is not None}
        if self.server is None:
            identity |= {"seed": driver.seed, "sink": driver.speaker.sink, "sampling": asdict(driver.sampling)}
        else:
            served = await served_model(self.server)
            if served != model:
                raise EvaluationError(
                    f"{self.server} serves {_in_words(served)}, and {_in_words(model)} is evaluated: serve the same "
                    "checkpoint with the same --dtype"
                )
        made_by = {_called(*one): {**identity, "pace": one[1], "task": _digest([one[0]])} for one in wanted}
        left = [one for one in wanted if not _is_there(folder / _called(*one), made_by[_called(*one)], driver.replace)]
        done(len(wanted) - len(left))
        if not left:
            return
        async with AsyncExitStack() as stack:
            slots = min(driver.slots, len(left))
            if self.server is None:
                own = Slots(driver.speaker, slots, driver.sampling, watched=True)
                address = await stack.enter_async_context(hosted(own, driver.seed))
            else:
                address = self.server
            free = asyncio.Semaphore(slots)

            async def one(task: StagedTask, pace: str) -> None:
                async with free, call(address) as line:
                    turns = [Turn(_mono(stage.audio), stage.at) for stage in task.stages]
                    name = _called(task, pace)
                    _write(folder / name, await examine(line, turns, PACES[pace]), task, made_by[name])
                    done(1)

            conversations = [asyncio.create_task(one(*wish)) for wish in left]
            try:
                await asyncio.gather(*conversations)
            finally:  # where one has failed, the others end too
                for conversation in conversations:
                    conversation.cancel()
                await asyncio.gather(*conversations, return_exceptions=True)


def _in_words(model: Mapping[str, str | None]) -> str:
    state, dtype = model["state_id"], model["dtype"]
    return f"the state {state and state[:16]} in {dtype or 'a type that it does not tell'}"


def _called(task: StagedTask, pace: str) -> str:
    return f"{task.name}-{pace}"


def _mono(path: Path) -> np.ndarray:
    return read_audio(path).mean(axis=0)


def _is_there(folder: Path, made_by: dict[str, Any], replace: bool) -> bool:
    """Raises `EvaluationError` where another conversation is that is not to be replaced."""
    path = folder / EXAM
    if not path.is_file():
        return False
    with well_formed(path):
        found = read_json(path)["made_by"]
    if found != made_by and not replace:
        what = difference(found, made_by)
        raise EvaluationError(
            f"{folder} holds another conversation ({what}): choose another --out, or replace it with --overwrite"
        )
    return bool(found == made_by)


def _write(folder: Path, exchange: Exchange, task: StagedTask, made_by: dict[str, Any]) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EXAM).unlink(missing_ok=True)  # of a conversation that is replaced
        write_audio(folder / "input.wav", torch.from_numpy(exchange.said), SAMPLE_RATE)
        write_audio(folder / "output.wav", torch.from_numpy(exchange.heard), SAMPLE_RATE)
        write_words(folder / "output.json", exchange.words)
        turns = [
            {"start": turn.start, "end": turn.end, "text": stage.text}
            for turn, stage in zip(exchange.turns, task.stages, strict=True)
        ]
        text = json.dumps({"made_by": made_by, "turns": turns}, ensure_ascii=False, indent=1) + "\n"
        write_atomically(folder / EXAM, text.encode(), durable=False)


def _read(folder: Path) -> Exchange:
    sides = []
    for name in ("input.wav", "output.wav"):
        try:
            sides.append(soundfile.read(folder / name, dtype="float32")[0])
        except (OSError, soundfile.SoundFileError) as error:
            raise EvaluationError(f"{folder / name} cannot be read: {error}") from None
    with well_formed(folder / "output.json"):
        words = read_words(folder / "output.json")
    with well_formed(folder / EXAM):
        turns = [Span(turn["start"], turn["end"]) for turn in read_json(folder / EXAM)["turns"]]
    return Exchange(sides[0], sides[1], words, turns)


def _sample(task: StagedTask, pace: str, exchange: Exchange) -> dict[str, Any]:
    turns = score_turns(exchange, [stage.expects for stage in task.stages])
    names = [name for name in MEASURES if any(name in turn for turn in turns)]
    means = {name: float(np.mean([turn[name] for turn in turns if name in turn])) for name in names}
    events = turn_events(speech_spans(exchange.heard), exchange.turns)
    seconds = len(exchange.heard) / SAMPLE_RATE
    return {
        "id": _called(task, pace),
        "item": task.name,
        "score": means["answered"],
        "family": task.family,
        "pace": pace,
        **means,
        "overlap": totals(events, seconds)["overlap"]["seconds_per_minute"],
        "turns": turns,
        "conversation": f"conversations/examiner/{_called(task, pace)}",
    }


def _case(task: StagedTask, pace: str, exchange: Exchange) -> Judged:
    """The whole conversation, each side's part in the order in which it was said."""
    said = [(turn.start, f"examiner: {s.text}") for turn, s in zip(exchange.turns, task.stages, strict=True)]
    starts = [turn.start for turn in exchange.turns]
    for start, end in zip([-np.inf, *starts], [*starts, np.inf], strict=True):
        if words := [word.text for word in exchange.words if start <= word.start < end]:
            said.append((max(start, 0.0) + 1e-3, f"model: {' '.join(words)}"))
    asked = " ".join(stage.text for stage in task.stages)
    return Judged(_called(task, pace), asked, task.goal, "\n".join(text for _, text in sorted(said)))


def _digest(tasks: Sequence[StagedTask]) -> str:
    digest = blake3.blake3()
    for task in tasks:
        facts = [task.family, task.id, task.goal, [[s.text, s.at, s.expects] for s in task.stages]]
        digest.update(json.dumps(facts).encode())
        for stage in task.stages:
            digest.update(read_bytes(stage.audio))
    return digest.hexdigest()
