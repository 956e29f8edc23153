"""Whole recordings: the answers are known from a table of NLLs, and from a plain loop over a real model's scores."""

import json
import shutil

import numpy as np
import pytest
import torch

from ttt_moshi.cli.main import main
from ttt_moshi.data.transcripts import Word
from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.scoring.clips import ClipTokens
from ttt_moshi.evaluation.speaker_turns import SpeakerTurn, speaker_turns
from ttt_moshi.evaluation.tasks.dialogue import MINUTE, Dialogue


def word(start, end, speaker="SPEAKER_MAIN"):
    return Word("w", start, end, speaker)


def test_turns_are_runs_of_words_of_one_side():
    words = [
        word(0.0, 0.4), word(0.5, 0.9), word(1.0, 3.0, "SPEAKER_OTHER"), word(1.2, 1.4, "B"), word(2.0, 2.2),
        word(4, 4),
    ]  # fmt: skip
    assert speaker_turns(words) == [SpeakerTurn(True, 0, 12), SpeakerTurn(False, 12, 38), SpeakerTurn(True, 25, 50)]
    assert speaker_turns([]) == []


def test_minutes_speakers_and_turns_of_a_table(new_clips, oracle):
    """The NLL of the semantic token of frame t is its minute, that of text 1 in frames 50 to 59 and else 0."""
    lengths = [2 * MINUTE + 30, MINUTE + 10]
    turns = {
        "clip0": [
            SpeakerTurn(True, 5, 15),
            SpeakerTurn(False, 10, 40),
            SpeakerTurn(True, 50, 60),
            SpeakerTurn(True, 70, 80),
        ],
        "clip1": [],
    }

    def rule(k, value, t):
        return {0: float(50 <= t < 60), 1: float(t // MINUTE)}.get(k, 0.5)

    outcome = Dialogue(ClipTokens(new_clips(lengths)), None, turns).run(oracle(rule=rule, max_frames=4000))
    entry = outcome.entry
    assert [(b["start"], b["stop"]) for b in entry["bins"]] == [(0, 750), (750, 1500), (1500, 2250)]
    assert [b["semantic"]["value"] for b in entry["bins"]] == [0.0, 1.0, 2.0]
    assert [b["semantic"]["n"] for b in entry["bins"]] == [2, 2, 1]
    assert [b["semantic"]["tokens"] for b in entry["bins"]] == [1500, 760, 30]
    assert [(b["start"], b["stop"], b["text"]["value"]) for b in entry["turns"]] == [
        (1, 2, 0.0),
        (2, 3, 1.0),
        (3, 5, 0.0),
    ]
    assert [b["text"]["tokens"] for b in entry["turns"]] == [10, 10, 10]
    tokens = {who: groups["text"]["tokens"] for who, groups in entry["speakers"].items()}
    assert tokens == {"agent": 30, "user": 25, "nobody": lengths[0] - 55}
    assert entry["speakers"]["agent"]["text"]["value"] == pytest.approx(1 / 3)
    assert entry["speakers"]["user"]["text"]["value"] == entry["speakers"]["nobody"]["text"]["value"] == 0.0
    first, second = outcome.samples
    assert [s["frames"] for s in outcome.samples] == lengths
    assert second["minutes"][0] == pytest.approx((10 * 100 + 750 * 7 * 0.5) / (750 * 207))
    semantic, text, acoustic = 750 + 2 * 30, 10, 0.5 * 7 * (lengths[0] - 1)
    weight = 200 * lengths[0] + 7 * (lengths[0] - 1)
    assert first["score"] == pytest.approx(-(100 * (semantic + text) + acoustic) / weight)
    assert first["nll"]["semantic"] == pytest.approx(semantic / lengths[0])
    # The window of the table is 32 frames: beyond it minus in its second half.
    beyond = [semantic / (lengths[0] - 32), 10 / (lengths[1] - 32)]
    assert entry["beyond_window"]["value"] == pytest.approx(np.mean(beyond))


def test_memory_is_carried_through_the_whole_recording(new_ttt_model, new_clips, oracle):
    """What lies far beyond the attention window is heard with memory, and not heard without it."""
    from ttt_moshi.evaluation.scoring.scorer import ModelScorer, ScoringOptions

    model, clips = new_ttt_model(context=8, num_layers=2), new_clips([120])
    other = new_clips([120])
    other.codes[..., :60] = new_clips([60], seed=4).codes

    def last(clips, **options) -> torch.Tensor:
        engine = oracle()
        engine.scorer = ModelScorer(model, "s", ScoringOptions(chunk_frames=20, **options))
        tokens = ClipTokens(clips)
        return engine.reading(tokens).nll(tokens.examples())["clip0"][:, 100:-1]

    assert not np.allclose(last(clips), last(other), atol=1e-5)
    np.testing.assert_array_equal(last(clips, gate=0.0), last(other, gate=0.0))  # reach 2 * (8 - 1) + 1: exactly zero
    np.testing.assert_array_equal(last(clips, inner_lr=0.0), last(other, inner_lr=0.0))


def test_a_recording_without_a_token_of_the_agent_is_named(new_clips, oracle):
    clips = new_clips([9, 9])
    clips.codes[1, :9] = -1
    with pytest.raises(EvaluationError, match="clip1 holds no token of the agent"):
        Dialogue(ClipTokens(clips), None, {}).run(oracle())


def test_the_command_reads_recordings_whole_and_pairs_them(tiny_material, tmp_path, capsys):
    base = ["eval", "--checkpoint_dir", "base", "--hf_repo_id", str(tiny_material.base_model), "--dtype", "float32"]
    base += ["--data", str(tiny_material.eval_data), "--tasks", "dialogue"]
    assert main([*base, "--out", str(tmp_path / "a")]) == 0
    found = json.loads((tmp_path / "a" / "results.json").read_text())["tasks"]["dialogue"]
    lines = tiny_material.eval_data.read_text().splitlines()
    assert found["n"] == len(lines)
    seconds = sum(json.loads(line)["duration"] for line in lines)
    assert found["bins"][0]["semantic"]["tokens"] == pytest.approx(seconds * 12.5, abs=len(lines))
    assert {"agent", "user"} <= set(found["speakers"]) and found["turns"][0]["start"] == 1
    text = (tmp_path / "a" / "report.md").read_text()
    assert "who speaks" in text and "agent's turn" in text
    options = ["--user", "absent", "--cache_dir", str(tmp_path / "a" / "cache")]
    assert main([*base, *options, "--out", str(tmp_path / "b")]) == 0
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    pair = json.loads((tmp_path / "c" / "comparison.json").read_text())["tasks"]["dialogue"]["against_first"][0]
    assert pair["n"] == len(lines) and pair["difference"] != 0
    shutil.rmtree(tmp_path / "a" / "cache")
