"""A long recording is given up to a point and goes on by itself, in the layout of LibriSpeech-Long (arXiv 2412.18603).

librispeech-long/<split>/<speaker>/<chapter>/<name>.flac (or .wav); the transcripts beside them are not needed.

The first ten seconds are the agent's own speech, read causally, with the user silent and the text absent. Then two
things are measured: how likely the true continuation is, and what the model says for as long instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_moshi.data.audio import files_below, read_audio, read_info
from ttt_moshi.evaluation.conversations import Talker, needed
from ttt_moshi.evaluation.errors import EvaluationError
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.fields import told_apart
from ttt_moshi.evaluation.hour.talking import minute_statistics, spans_of
from ttt_moshi.evaluation.listing import chosen_of
from ttt_moshi.evaluation.outcome import Outcome
from ttt_moshi.evaluation.scoring.engine import Engine
from ttt_moshi.evaluation.scoring.recordings import count_frames
from ttt_moshi.evaluation.statistics import mean_and_interval
from ttt_moshi.evaluation.tasks.curves import by_minute, group_sums, mean_nll, point
from ttt_moshi.evaluation.tasks.free_running import STATISTICS, collapse_minute, minutes_of
from ttt_moshi.evaluation.turn_events import share_of_time, speech_spans
from ttt_moshi.frames import FRAME_SIZE, SAMPLE_RATE, seconds_to_frames
from ttt_moshi.inference.driver import Given, Item

FOLDERS = ("librispeech-long", "LibriSpeech-Long")
PROMPT_SEC = 10.0
SAID = ("length_ratio", "silence", "ends", "true_silence", "true_ends")
"""seconds of speech over those of the true continuation; share of time without speech; where in the time the last
speech ends, from 0 to 1; the latter two of the true continuation as well"""


def find_long(data_root: Path) -> list[Example]:
    """Every recording below `data_root/librispeech-long`, by name.

    Raises:
        EvaluationError: there is none, or the conversations about two of them would lie in one folder.
    """
    root = next((data_root / name for name in FOLDERS if (data_root / name).is_dir()), data_root / FOLDERS[0])
    paths = chosen_of(root, files_below(root), ".flac", ".wav")
    if not paths:
        raise EvaluationError(f"no recordings to continue: expected {root}/<split>/<speaker>/<chapter>/*.flac")
    ids = {path: path.relative_to(root).with_suffix("").as_posix() for path in paths}
    told_apart(paths, lambda path: _folder(ids[path]))
    return [Example.file(id, path) for path, id in ids.items()]


def _folder(id: str) -> str:
    """The name of the folder of a conversation."""
    return id.replace("/", "_")


@dataclass(frozen=True)
class Continuation:
    """NLL of the true continuations, and length, silence and repetition of what the model says in their place."""

    examples: Sequence[Example]
    talker: Talker | None
    name: str = "continuation"

    def run(self, engine: Engine) -> Outcome:
        talker = needed(self.talker)
        frames = {example.id: count_frames(example) for example in self.examples}
        prompts = {id: prompt_frames(T, engine.scorer.window) for id, T in frames.items()}
        items = [self._item(engine, example, prompts[example.id]) for example in self.examples]
        talker.check(self.name, items, engine.ranks)
        nll = engine.nll(self.examples, self.name)
        heard = engine.counting(f"{self.name}: talking", sum(frames[id] - prompts[id] for id in frames))
        held = talker.converse(self.name, items, engine.ranks, heard)
        padding = engine.scorer.text_padding
        minutes = [
            minute_statistics(one, spans_of(one, "output"), spans_of(one, "input"), padding, None) for one in held
        ]
        collapsed = [collapse_minute(minutes_of(conversation.tokens[:2], padding)) for conversation in held]
        said = [
            said_instead(conversation.agent, _mono(_path(example))[prompts[example.id] * FRAME_SIZE :])
            for conversation, example in zip(held, self.examples, strict=True)
        ]
        sums = {id: group_sums(values, "semantic", prompts[id]) for id, values in nll.items()}
        entry: dict[str, Any] = {
            "status": "ok",
            "metric": "mean NLL in nats of semantic tokens of the true continuation",
            "better": "lower",
            **mean_nll(list(sums.values())),
            "unit_of_n": "recordings",
            "prompt_frames": max(prompts.values()),
            "true": point(list(nll.values()), [(prompts[id], None) for id in nll]),
            "said": {name: found for name in SAID if (found := _mean([one[name] for one in said])) is not None},
            "collapsed": sum(minute is not None for minute in collapsed),
            "minutes": by_minute(minutes, (*STATISTICS, "words_per_minute", "silence")),
        }
        samples = [
            {
                "id": example.id,
                "score": -sums[example.id][0] / sums[example.id][1],
                "prompt_frames": prompts[example.id],
                **one,
                "collapse_minute": minute,
                "conversation": f"conversations/{self.name}/{item.name}",
            }
            for example, one, minute, item in zip(self.examples, said, collapsed, items, strict=True)
        ]
        return Outcome(entry, samples, data_digest=engine.tokens.digest(list(self.examples)))

    def _item(self, engine: Engine, example: Example, prompt: int) -> Item:
        def given() -> Given:
            codes = torch.from_numpy(engine.tokens.tokens(example)[:, :prompt]).long()
            return Given(codes, torch.zeros(prompt * FRAME_SIZE))

        def silence() -> torch.Tensor:
            return torch.zeros(read_info(_path(example)).samples_24k - prompt * FRAME_SIZE)

        return Item(_folder(example.id), silence, given)


def prompt_frames(frames: int, window: int) -> int:
    """How many first frames are given: ten seconds, at most a quarter of the recording and half of the window.

    Raises:
        EvaluationError: too short for a prompt.
    """
    found = min(seconds_to_frames(PROMPT_SEC), frames // 4, window // 2)
    if found < 4:
        raise EvaluationError(f"a recording of {frames} frames (80 ms each) is too short to be continued")
    return found


def said_instead(agent: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """What the model said, float32 [samples], beside the true continuation: the measures `SAID`.

    `length_ratio` is None where the true continuation holds no speech.
    """
    measures = {}
    for name, samples in (("", agent), ("true_", true)):
        seconds = len(samples) / SAMPLE_RATE
        spans = speech_spans(samples)
        measures[f"{name}silence"] = 1 - share_of_time(spans, 0, seconds)
        measures[f"{name}ends"] = min(1.0, spans[-1].end / seconds) if spans else 0.0
    spoken, truly = 1 - measures["silence"], 1 - measures["true_silence"]
    return {"length_ratio": spoken * len(agent) / (truly * len(true)) if truly else None, **measures}


def _path(example: Example) -> Path:
    (path,) = example.files
    return path


def _mono(path: Path) -> np.ndarray:
    """float32 [samples]."""
    return read_audio(path).mean(axis=0)


def _mean(found: list[float | None]) -> dict[str, Any] | None:
    values = np.array([value for value in found if value is not None])
    if not len(values):
        return None
    return {**mean_and_interval(values), "n": len(values)}
