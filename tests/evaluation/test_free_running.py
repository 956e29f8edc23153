"""Conversations whose collapse was put in by hand, and found where it was put."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.recorded import Maker, maker
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.tasks.free_running import MINUTE, FreeRunning, collapse_minute, minutes_of

PAD, EPAD = 3, 0


def conversation(minutes: float, seed: int = 0) -> np.ndarray:
    """Text of 40 words a minute among PAD, drawn from 500 tokens, and semantic codes drawn evenly from 64."""
    rng = np.random.default_rng(seed)
    frames = round(minutes * MINUTE)
    text = np.where(rng.random(frames) < 0.2, rng.integers(4, 504, frames), PAD)
    return np.stack([text, rng.integers(0, 64, frames)])


def repeat_a_phrase(part: np.ndarray) -> None:
    part[0] = np.resize([40, 41, PAD, 42, 43, EPAD, PAD, 44], part.shape[1])


def fall_silent(part: np.ndarray) -> None:
    part[0] = PAD


def be_stuck(part: np.ndarray) -> None:
    part[1] = np.resize([7, 7, 7, 9], part.shape[1])


FAULTS = {"repeats": repeat_a_phrase, "silent": fall_silent, "stuck": be_stuck}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("minute", [1, 7, 8])
def test_a_collapse_is_found_at_the_minute_where_it_was_put(fault, minute):
    codes = conversation(10)
    FAULTS[fault](codes[:, minute * MINUTE :])
    minutes = minutes_of(codes, (PAD, EPAD))
    assert collapse_minute(minutes) == minute
    assert [m.degenerate for m in minutes] == [None] * minute + [fault] * (10 - minute)


def say_one_code(part: np.ndarray) -> None:
    part[1] = 7
    part[1, 100::MINUTE] = 1  # one frame a minute has another


@pytest.mark.parametrize(("fault", "reason"), [(fall_silent, "silent"), (say_one_code, "stuck")])
def test_a_conversation_that_never_was_any_better_collapses_at_its_beginning(fault, reason):
    codes = conversation(10)
    fault(codes)
    minutes = minutes_of(codes, (PAD, EPAD))
    assert [m.degenerate for m in minutes] == [reason] * 10 and collapse_minute(minutes) == 0


def test_a_bad_first_minute_is_not_what_later_ones_are_held_against():
    codes = conversation(4)
    fall_silent(codes[:, :MINUTE])
    say_one_code(codes[:, :MINUTE])
    say_one_code(codes[:, 2 * MINUTE :])  # as the first one, so not below half of it
    minutes = minutes_of(codes, (PAD, EPAD))
    assert [m.degenerate for m in minutes] == ["silent", None, "stuck", "stuck"] and collapse_minute(minutes) == 2


def test_one_who_says_a_word_or_hums_a_moment_is_neither_silent_nor_stuck():
    quiet = np.stack([np.full(2 * MINUTE, PAD), np.full(2 * MINUTE, 7)])
    quiet[0, [100, MINUTE + 100]] = 50
    for minute in range(2):
        quiet[1, minute * MINUTE + 100 :][:4] = [1, 2, 3, 4]  # four frames with codes of their own
    minutes = minutes_of(quiet, (PAD, EPAD))
    assert [m.degenerate for m in minutes] == [None, None] and collapse_minute(minutes) is None


def test_what_is_no_collapse():
    healthy = minutes_of(conversation(10), (PAD, EPAD))
    assert len(healthy) == 10 and not any(m.degenerate for m in healthy) and collapse_minute(healthy) is None
    for fault in FAULTS.values():
        pause = conversation(10)
        fault(pause[:, 4 * MINUTE : 6 * MINUTE])  # two bad minutes, and then it goes on
        minutes = minutes_of(pause, (PAD, EPAD))
        assert [bool(m.degenerate) for m in minutes] == [i in (4, 5) for i in range(10)]
        assert collapse_minute(minutes) is None
        last = conversation(10)
        fault(last[:, 9 * MINUTE :])  # one bad minute at the end is not yet one
        assert collapse_minute(minutes_of(last, (PAD, EPAD))) is None


def test_statistics_of_a_minute():
    codes = np.stack([np.resize([10, 11, PAD, PAD, EPAD], MINUTE), np.resize([1, 2, 3, 4], MINUTE)])
    (minute,) = minutes_of(codes, (PAD, EPAD))
    assert minute.pad_share == pytest.approx(0.6) and minute.tokens_per_minute == pytest.approx(300)
    assert minute.entropy == pytest.approx(2.0, abs=1e-4)
    assert minute.repeated_grams == pytest.approx(1 - 2 / 297)  # 10 11 10 11 and 11 10 11 10, again and again
    constant = np.stack([np.full(MINUTE, -1), np.full(MINUTE, 5)])
    (absent,) = minutes_of(constant, (PAD, EPAD))
    assert absent.pad_share is absent.tokens_per_minute is absent.repeated_grams is None and absent.entropy == 0.0
    assert [len(minutes_of(conversation(m), (PAD, EPAD))) for m in (0.2, 1.4, 1.6, 2.0)] == [1, 1, 2, 2]
    half = minutes_of(conversation(1.5), (PAD, EPAD))[1]
    assert half.tokens_per_minute == pytest.approx(150, rel=0.2)  # as if it were whole


def clips_of(new_clips, conversations: list[np.ndarray]):
    clips = new_clips([codes.shape[1] for codes in conversations])
    for row, codes in zip(clips.codes, conversations, strict=True):
        row[:2, : codes.shape[1]] = torch.from_numpy(codes)
    return clips


def test_the_task_counts_conversations(new_clips, oracle):
    broken = conversation(4, seed=3)
    repeat_a_phrase(broken[:, 2 * MINUTE :])
    clips = clips_of(new_clips, [conversation(4), broken, conversation(3, seed=5)])
    engine = oracle()
    made = Maker("ours", Path("talk/made_by.json"))
    outcome = FreeRunning(ClipTokens(clips), None, {"clip0": made, "clip1": made, "clip2": made}, "ours").run(engine)
    assert engine.forward_passes == 0
    entry = outcome.entry
    assert entry["value"] == pytest.approx(2 / 3) and entry["n"] == 3 and entry["collapse_minutes"] == [2]
    assert [point["n"] for point in entry["minutes"]] == [3, 3, 3, 2]
    assert [point["degenerate"] for point in entry["minutes"]] == [0, 0, 1, 1]
    assert entry["minutes"][0]["entropy"]["value"] == pytest.approx(6.0, abs=0.15)
    assert [sample["collapse_minute"] for sample in outcome.samples] == [None, 2, None]
    assert entry["made_by"] == {"this_checkpoint": 3, "unknown": 0, "settings": [{"conversations": 3}]}
    assert "means" not in entry
    with pytest.raises(EvaluationError, match="1 of 2 conversations are shorter"):
        short = ClipTokens(clips_of(new_clips, [conversation(4), conversation(1)]))
        FreeRunning(short, None, dict.fromkeys(("clip0", "clip1")), "ours").run(engine)


def test_conversations_are_those_of_the_checkpoint_or_nobody_knows_whose(new_clips, oracle):
    clips = ClipTokens(clips_of(new_clips, [conversation(2), conversation(2, seed=1)]))
    ours, theirs = Maker("ours", Path("a/made_by.json")), Maker("theirs", Path("b/made_by.json"))
    found = FreeRunning(clips, None, {"clip0": ours, "clip1": None}, "ours").run(oracle()).entry
    assert found["made_by"] == {"this_checkpoint": 1, "unknown": 1, "settings": [{"conversations": 1}]}
    assert found["means"].endswith("which model made 1 of 2 is unknown")
    with pytest.raises(
        EvaluationError, match=r"1 of 2 .* another model's \(b/made_by.json: theirs, and this is ours\)"
    ):
        FreeRunning(clips, None, {"clip0": ours, "clip1": theirs}, "ours").run(oracle())


def test_conversations_that_were_held_in_several_ways_are_said_to_be(new_clips, oracle):
    clips = ClipTokens(clips_of(new_clips, [conversation(2, seed=seed) for seed in range(3)]))
    path, warm, cold = Path("a/made_by.json"), {"temp": 0.8}, {"temp": 0.1}
    ways = [{"dtype": "float32", "sampling": one, "sink": 0} for one in (cold, warm, warm)]
    makers = {f"clip{i}": Maker("ours", path, way) for i, way in enumerate(ways)}
    found = FreeRunning(clips, None, makers, "ours").run(oracle()).entry
    assert found["made_by"]["settings"] == [{"conversations": 2, **ways[1]}, {"conversations": 1, **ways[0]}]
    assert found["means"].endswith("; they were not all held alike (sampling)")


def test_what_made_a_recording_lies_beside_it(tmp_path):
    assert maker(tmp_path / "output.wav") is None
    path = tmp_path / "made_by.json"
    path.write_text('{"state_id": "abc", "seed": 1, "dtype": "float32", "sampling": {"temp": 0.7}}')
    assert maker(tmp_path / "output.wav") == Maker("abc", path, {"dtype": "float32", "sampling": {"temp": 0.7}})
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(EvaluationError, match=r"made_by\.json"):
            maker(tmp_path / "output.wav")


def test_options_about_a_model_are_refused_by_name(tiny_material, tmp_path, capsys):
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model)]
    base += ["--data", str(tiny_material.eval_data), "--tasks", "free_running", "--out", str(tmp_path / "out")]
    for words in (["--ttt", "off"], ["--text", "pad"], ["--user", "absent"], ["--sink", "3"]):
        assert main([*base, *words]) == 2
        assert f"`free_running`: `{' '.join(words)}`" in capsys.readouterr().err


def test_the_command_refuses_conversations_of_another_checkpoint(tiny_material, tmp_path):
    talk = tmp_path / "talks" / "one"
    talk.mkdir(parents=True)
    soundfile.write(talk / "output.wav", np.zeros(24_000 * 3, np.float32), 24_000)
    listed = tmp_path / "talks" / "talks.jsonl"
    listed.write_text('{"path": "one/output.wav", "duration": 3.0}\n')
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model)]
    base += ["--data", str(listed), "--tasks", "free_running", "--out", str(tmp_path / "out")]

    def why_not(state_id: str) -> tuple[str, str]:
        (talk / "made_by.json").write_text(json.dumps({"state_id": state_id}))
        assert main(base) == 2
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        return results["tasks"]["free_running"]["reason"], results["checkpoint"]["state_id"]

    reason, own = why_not("somebody-else")
    assert f"one/made_by.json: somebody-else, and this is {own}" in reason
    assert "shorter than one minute and a half" in why_not(own)[0]
