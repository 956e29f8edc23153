"""The hour: planted facts with known log-odds, exact zeros, and what a conversation does minute by minute."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.data.voiced import Span
from ttt_moshi.data.words import TimedWord
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.hour.planted import Told, exact_window, join, reach
from ttt_moshi.evaluation.hour.reading import Material, distant_context, planted_facts, remembrance, require_enough
from ttt_moshi.evaluation.hour.talking import minute_statistics
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.score import Scores
from ttt_moshi.evaluation.scoring.scorer import ModelScorer, ScoringOptions
from ttt_moshi.evaluation.tasks.free_running import collapse_minute, minutes_of
from ttt_moshi.evaluation.tasks.hour import Hour
from ttt_moshi.evaluation.turn_events import speech_spans, totals, turn_events
from ttt_moshi.extras import installed
from ttt_moshi.inference.driver import Conversation

LN2 = math.log(2)


class Parrot:
    """A model that can be computed by hand: a semantic code costs 1 bit where the last four, itself included, have been
    heard before, from agent or user, and 3 bits elsewhere. With its memory it never forgets; without, it knows what its
    window reaches."""

    dep_q, device, text_padding, layers, delay = 8, torch.device("cpu"), (3, 0), 2, 1

    def __init__(self, options: ScoringOptions, has_memory: bool = True):
        self.options, self.has_memory = options, has_memory
        self.window = options.window or 16
        self.swaps = options.swap_every is not None
        self.identity = str(options)

    def varied(self, **changes):
        return Parrot(replace(self.options, **changes), self.has_memory)

    def score(self, codes, frames, prefix_lengths=None, others=None):
        options = self.options
        remembers = self.has_memory and options.gate is None and options.inner_lr is None
        nll = torch.full((len(codes), 9, codes.shape[-1]), float("nan"))
        for row in range(len(codes)):
            nll[row, 1] = 3 * LN2
            heard: dict[tuple[int, ...], int] = {}
            for t in range(3, int(frames[row])):
                grams = [tuple(codes[row, channel, t - 3 : t + 1].tolist()) for channel in (1, 9)]
                forgotten = options.reset_every or options.swap_every
                since = t - t % forgotten if remembers and forgotten else 0 if remembers else t
                since = min(since, t - reach(self.window, self.layers, self.delay))
                if heard.get(grams[0], -math.inf) >= since:
                    nll[row, 1, t] = LN2
                heard |= dict.fromkeys(grams, t)
        return Scores(nll, ~nll.isnan())


def recordings(count: int, frames: int, card: int = 2000, seed: int = 0) -> list[Told]:
    rng = np.random.default_rng(seed)
    return [
        Told(str(i), np.concatenate([np.full((1, frames), -1), rng.integers(0, card, (16, frames))]).astype(np.int32))
        for i in range(count)
    ]


def engine_of(scorer) -> Engine:
    return Engine(scorer, None, NLLCache(None, scorer.identity), BatchPolicy())


def test_log_odds_of_planted_passages_are_those_that_were_put_in():
    material = Material.of(recordings(6, 450), 0.25, sink=4)
    assert (material.passage, material.longest, material.distances) == (23, 188, [47, 188])
    points, odds = planted_facts(engine_of(Parrot(ScoringOptions())), material, "test")
    assert [(p["frames"], p["channel"]) for p in points] == [
        (47, "agent"), (47, "user"), (188, "agent"), (188, "user"),
    ]  # fmt: skip
    known = 2 * LN2 * (material.passage - 3)
    for point in points:
        assert point["window"] == 16 and point["window_is_own"] and not point["wide_is_own"]
        for name, found in point["baselines"].items():
            expected = known if name in ("memory", "wide") else 0.0
            assert found["value"] == pytest.approx(expected, abs=1e-3) and found["n"] == 6, name
            assert found["recognised"] == (1.0 if expected else 0.5)
        assert set(point["baselines"]) == {"window", "sink", "memory", "no_writes", "reset", "swapped", "wide"}
        assert point["share_of_ceiling"]["memory"] == pytest.approx(1.0)
        assert point["share_of_ceiling"]["window"] == 0.0
    assert odds["memory"] == pytest.approx([known] * 6, abs=1e-3) and not odds["window"].any()


def test_how_far_back_a_change_shows_is_the_models_own_memory():
    material = Material.of(recordings(4, 1200), 1.0, sink=4)
    found = remembrance(engine_of(Parrot(ScoringOptions())), material, "test")
    assert found["reach"] == reach(16, 2, 1) and set(found["baselines"]) == {"window", "sink", "memory"}
    for curve in found["baselines"].values():
        assert [p["frames"] for p in curve["points"]] == [50, 100, 200, 400]
        assert all(p["value"] == 0.0 for p in curve["points"]) and curve["farthest"] == 0  # nothing comes again
    few = [Told(one.id, one.codes % 3) for one in recordings(4, 1200)]  # now every four codes come again and again
    curves = remembrance(engine_of(Parrot(ScoringOptions())), Material.of(few, 1.0, 4), "test")["baselines"]
    assert all(p["value"] == 0.0 for p in curves["window"]["points"])  # the nearest change is beyond its reach


@pytest.mark.parametrize("context", [pytest.param(24, marks=pytest.mark.slow), 200])
def test_controls_are_zero_to_the_bit_and_memory_is_not(kit, context):
    """A real model, whose own window is far too narrow, or so wide that a narrower one has to be taken."""
    model = kit.ttt_model(context=context)
    engine = engine_of(ModelScorer(model, "s", ScoringOptions(chunk_frames=100)))
    material = Material(recordings(3, 90, card=24), passage=10, longest=30, sink=2)
    points, odds = planted_facts(engine, material, "test")
    assert [p["frames"] for p in points] == [30, 30]
    for point in points:
        assert point["window"] == min(context, exact_window(point["frames"], 2, 1))
        assert not point["window_is_own"] and point["wide_is_own"] == (context == 200)
        for name in ("window", "sink", "no_writes"):
            assert point["baselines"][name]["value"] == 0.0 and point["baselines"][name]["ci95"] == [0.0, 0.0], name
        assert "needs another recording" in point["baselines"]["swapped"]["reason"]
        assert point["baselines"]["memory"]["value"] != 0.0 and point["baselines"]["wide"]["value"] != 0.0
        # Hidden states of before the reset are still in the window.
        assert abs(point["baselines"]["reset"]["value"]) < abs(point["baselines"]["memory"]["value"])
    assert odds["memory"].all() and not odds["no_writes"].any()
    assert model.context == context and {layer.self_attn.context for layer in model.transformer.layers} == {context}


def test_the_reach_is_the_reach(kit):
    """One frame changed at a distance: nothing shows through the widest window that is exact; a bit wider it does."""
    model, frames, distance = kit.model(), 60, 21
    codes = torch.from_numpy(recordings(1, frames, card=24)[0].codes)[None].long()
    other = codes.clone()
    other[:, 1:, frames - 1 - distance] = (other[:, 1:, frames - 1 - distance] + 1) % 24

    def last(tokens, window):
        scorer = ModelScorer(model, "s", ScoringOptions(window=window))
        return scorer.score(tokens, torch.tensor([frames])).nll[0, 1, -1]

    exact = exact_window(distance, len(model.transformer.layers), max(model.delays))
    assert torch.equal(last(codes, exact), last(other, exact))
    assert not torch.equal(last(codes, exact + 3), last(other, exact + 3))
    assert reach(exact, 2, 1) <= distance < reach(exact + 1, 2, 1)


def test_the_worth_of_distant_context_is_a_share_of_its_ceiling(kit):
    model = kit.ttt_model(context=16)
    material = Material.of(recordings(4, 90, card=24), 0.1, sink=2)
    found = distant_context(engine_of(ModelScorer(model, "s")), material, "test")
    assert found["window"] == 16 and found["wide"] == 75 and not found["wide_is_own"] and found["target_frames"] == 9
    values = {name: one["value"] for name, one in found["baselines"].items() if one["status"] == "ok"}
    assert values["window"] == 0.0 and len({round(v, 6) for v in values.values()}) == len(values)


class Known(Parrot):
    """A frame costs its semantic code in nats, and nothing through a wide window."""

    def varied(self, **changes):
        return Known(replace(self.options, **changes), has_memory=False)

    def score(self, codes, frames, prefix_lengths=None, others=None):
        nll = torch.full((len(codes), 9, codes.shape[-1]), float("nan"))
        nll[:, 1] = codes[:, 1] * float(self.window < 160)
        return Scores(nll, ~nll.isnan())


def test_no_frame_is_a_target_of_distant_context_twice():
    """24 recordings of 10 frames where an eighth of the whole is 20: two streams that share targets would be resampled
    as if they were independent."""
    told = recordings(24, 10)
    for number, one in enumerate(told):
        one.codes[1] = 24 if number == 7 else 0
    material = Material(told, passage=4, longest=160, sink=2)
    found = distant_context(engine_of(Known(ScoringOptions(), has_memory=False)), material, "test")
    assert found["target_frames"] == 10
    wide = found["baselines"]["wide"]
    # One stream of 24 gains 24: of a resample as many as have drawn it, with 97.5 % three times at most.
    assert (wide["value"], wide["ci95"], wide["n"]) == (1.0, [0.0, 3.0], 24)
    # Recordings of all lengths: each ends one stream, and a longer one than the whole gives its end.
    mixed = [replace(one, codes=one.codes[:, : 10 + number % 9]) for number, one in enumerate(recordings(24, 18))]
    mixed[3] = recordings(1, 300, seed=1)[0]
    material = Material(mixed, passage=4, longest=160, sink=2)
    streams = [material.ending_with(i, 160) for i in range(24)]
    for i, (codes, names) in enumerate(streams):
        assert codes.shape[1] == 160 and names[-1] == mixed[i].id and len(set(names)) == len(names)
        np.testing.assert_array_equal(codes[:, -10:], mixed[i].codes[:, -10:])


def test_what_cannot_be_exact_or_is_not_there_is_refused(new_clips, kit):
    with pytest.raises(EvaluationError, match=r"three recordings are needed .* there are 2"):
        Material.of(recordings(2, 400), 0.5, 4)
    with pytest.raises(EvaluationError, match=r"too short: 1\.12 minutes are needed .* choose fewer --minutes"):
        planted_facts(engine_of(Parrot(ScoringOptions())), Material.of(recordings(4, 300), 0.5, 4), "test")
    lengths = [1440, 1232, 1032]  # 4.94 minutes, and 1.38 without the first two
    with pytest.raises(EvaluationError, match=r"2\.13 minutes .* without recordings 1 and 2 there are 1\.38"):
        require_enough(lengths, 1.0)
    require_enough([1600, 1600, 1600], 1.0)  # a minute, one before it and 8 s
    with pytest.raises(EvaluationError, match="without recordings 3 and 1 there are 2"):
        require_enough([1600, 1599, 1600], 1.0)
    with pytest.raises(EvaluationError, match=r"recording 2 is shorter than a passage: it lasts 3\.92 s, and 4\.00 s"):
        require_enough([1600, 49, 1600, 1600], 1.0)
    deep = Parrot(ScoringOptions())
    deep.layers = 200
    with pytest.raises(EvaluationError, match="within the reach of 200 layers with any window"):
        planted_facts(engine_of(deep), Material.of(recordings(4, 900), 0.5, 4), "test")
    codes, names = join(recordings(3, 10), 25)
    assert codes.shape == (17, 25) and names == ["0", "1", "2"]


def test_a_model_without_a_memory_has_an_hour_too(new_clips, kit):
    clips = new_clips([100, 95, 98, 99])
    scorer = ModelScorer(kit.model(context=16), "s", ScoringOptions(chunk_frames=0))
    outcome = Hour(ClipTokens(clips), None, 0.1).run(engine_of(scorer))
    entry = outcome.entry
    assert entry["value"] == 0.0 and "no memory" in entry["metric"] and entry["controls_largest"] == {"window": 0.0}
    assert entry["free_running"]["status"] == "skipped" and len(outcome.samples) == 4
    assert set(entry["facts"][0]["baselines"]) == {"window", "sink", "wide"}


def bursts(spans: list[tuple[float, float]], seconds: float) -> np.ndarray:
    samples = np.zeros(round(seconds * 24_000), np.float32)
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    for start, end in spans:
        place = slice(round(start * 24_000), round(end * 24_000))
        samples[place] = noise[place]
    return samples


def test_a_planted_delay_of_240_ms_is_a_gap_of_240_ms():
    user, agent = bursts([(1.0, 3.0), (6.0, 8.0)], 12), bursts([(3.24, 5.0), (7.5, 9.0), (9.4, 10.0)], 12)
    events = turn_events(speech_spans(agent), speech_spans(user))
    told = [(e.kind, round(e.start, 2), round(e.seconds, 2), e.agent) for e in events if e.kind != "ipu"]
    assert told == [("gap", 3.0, 0.24, True), ("gap", 5.0, 1.0, False), ("overlap", 7.5, 0.5, True),
                    ("pause", 9.0, 0.4, True)]  # fmt: skip
    found = totals(events, 12)
    assert found["gap"] == {"per_minute": 10, "seconds_per_minute": pytest.approx(6.2), "median": pytest.approx(0.62)}
    assert found["ipu"]["per_minute"] == 25 and found["overlap"]["median"] == pytest.approx(0.5)


def test_pauses_up_to_a_fifth_of_a_second_are_part_of_a_unit():
    events = turn_events([Span(0, 1), Span(1.2, 2), Span(2.21, 3)], [Span(5, 6), Span(5.2, 5.5)])
    assert [(e.kind, e.start, e.end) for e in events] == [
        ("ipu", 0, 2), ("pause", 2, 2.21), ("ipu", 2.21, 3), ("gap", 3, 5), ("ipu", 5, 6),
    ]  # fmt: skip
    assert turn_events([], []) == []


def test_a_collapse_put_in_at_minute_seven_shows_at_minute_seven():
    minutes, minute = 10, 750
    rng = np.random.default_rng(1)
    tokens = np.full((9, minutes * minute), 5)
    tokens[0] = np.where(rng.random(minutes * minute) < 0.2, rng.integers(4, 504, minutes * minute), 3)
    tokens[1] = rng.integers(0, 64, minutes * minute)
    tokens[0, 7 * minute :] = 3
    agent = bursts([(60 * m + 10, 60 * m + 40) for m in range(7)], 60 * minutes)
    user = bursts([(60 * m + 35, 60 * m + 50) for m in range(10)], 60 * minutes)
    words = [TimedWord("w", 60 * m + i, 60 * m + i + 0.5) for m in range(7) for i in range(12)]
    nll = np.full((9, minutes * minute), np.nan, np.float32)
    nll[:2] = np.repeat(np.arange(minutes), minute)
    found = minute_statistics(
        Conversation(None, tokens, 60.0 * minutes, words), speech_spans(agent), speech_spans(user), (3, 0), nll
    )
    assert [m["degenerate"] for m in found] == [None] * 7 + ["silent"] * 3
    assert collapse_minute(minutes_of(tokens[:2], (3, 0))) == 7
    assert [m["words_per_minute"] for m in found] == [12] * 7 + [0] * 3
    assert [round(m["silence"], 2) for m in found] == [0.5] * 7 + [1.0] * 3
    assert [round(m["overlap"], 2) for m in found] == [5.0] * 7 + [0.0] * 3
    assert [m["nll_under_base"] for m in found] == list(range(10))
    assert [m["gap"] and round(m["gap"], 2) for m in found] == [20.0] * 6 + [None] * 4


def hour(material, out, *options) -> int:
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(material.base_model), "--dtype", "float32"]
    return main([*base, "--data", str(material.train_data), "--tasks", "hour", "--out", str(out), *options])


def test_the_command_reads_and_talks_and_goes_on_where_it_was(tiny_material, tmp_path, capsys):
    assert hour(tiny_material, tmp_path / "a", "--minutes", "0.05", "--max_items", "3") == 0
    task = json.loads((tmp_path / "a" / "results.json").read_text())["tasks"]["hour"]
    talk = task["free_running"]
    assert talk["status"] == "ok" and talk["conversations"] == 3 and task["n"] == 3 and task["minutes"] == 0.05
    assert set(talk["minutes"][0]) >= {"nll_under_base", "silence", "words_per_minute", "entropy", "overlap"}
    assert installed("speechmos") or "ttt-moshi[dnsmos]" in talk["dnsmos"]["reason"]
    folder = tmp_path / "a" / "conversations" / "hour" / "user0"
    sound, rate = soundfile.read(folder / "output.wav")
    assert rate == 24_000 and len(sound) == 3 * 24_000
    made, missing = (folder / "output.wav").stat().st_mtime_ns, folder.with_name("user1")
    told = (missing / "tokens.safetensors").read_bytes()
    for name in ("output.json", "tokens.safetensors"):
        (missing / name).unlink()
    assert hour(tiny_material, tmp_path / "a", "--minutes", "0.05", "--max_items", "3", "--slots", "1") == 0
    assert (folder / "output.wav").stat().st_mtime_ns == made
    assert (missing / "tokens.safetensors").read_bytes() == told  # the same, whoever talked beside it
    # Conversations of another seed are refused before anything is read.
    (tmp_path / "a" / "results.json").unlink()
    capsys.readouterr()
    fresh = ["--minutes", "0.05", "--max_items", "3", "--seed", "5", "--cache_dir", str(tmp_path / "fresh")]
    assert hour(tiny_material, tmp_path / "a", *fresh) == 2
    assert "user0 holds another conversation (differs in seed)" in " ".join(capsys.readouterr().out.split())
    assert not list((tmp_path / "fresh").rglob("*.safetensors"))


@pytest.mark.slow
def test_the_size_of_the_sink_is_that_of_the_baseline(tiny_material, tmp_path):
    found = {}
    for size in (0, 9):
        options = ["--minutes", "0.05", "--max_items", "3", *(["--sink", str(size)] if size else [])]
        assert hour(tiny_material, tmp_path / str(size), *options) == 0
        task = json.loads((tmp_path / str(size) / "results.json").read_text())["tasks"]["hour"]
        found[size] = {name: one["nll"] for name, one in task["context"]["baselines"].items()}
        made_by = json.loads((tmp_path / str(size) / "conversations/hour/user0/made_by.json").read_text())
        assert made_by["sink"] == size
    assert found[0].pop("sink") != found[9].pop("sink") and found[0] == found[9]


def test_values_that_mean_nothing_are_refused(tiny_material, tmp_path, capsys):
    for words, complaint in (
        (["--minutes", "0"], "`--minutes` must be between"),
        (["--minutes", "nan"], "`--minutes` must be between"),
        (["--slots", "0"], "not a whole number greater than 0"),
        (["--ttt", "off"], "`hour`: it measures the memory with its controls by itself"),
        (["--text", "sampled"], "`hour`: `--text sampled`"),
        (["--minutes", "100"], "the recordings are too short: 101.13 minutes are needed"),
    ):
        assert hour(tiny_material, tmp_path / "out", *words) == 2
        error = capsys.readouterr().err
        assert complaint in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_too_few_or_too_short_recordings_are_refused_before_any_work(tiny_material, tmp_path, capsys):
    """Also where `--max_items` takes only a part of them, which their contents decide."""
    data = shutil.copytree(tiny_material.train_data.parent, tmp_path / "data") / tiny_material.train_data.name
    shutil.rmtree(data.parent / ".mimi_codes", ignore_errors=True)
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--data", str(data)]
    for options, told in (
        (["--minutes", "0.05", "--max_items", "2"], "three recordings are needed"),
        (["--minutes", "0.3", "--max_items", "3"], "the recordings are too short"),
    ):
        assert main([*base, "--tasks", "hour", "--out", str(tmp_path / "out"), *options]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not list(data.parent.rglob("*.safetensors"))
