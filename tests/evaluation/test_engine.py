"""Scoring many examples: batches, cache, continuation after a kill."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt_moshi.evaluation import EvaluationError
from ttt_moshi.evaluation.examples import Example, Piece, Segment, Source
from ttt_moshi.evaluation.scoring.batches import plan
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache, sequence_key
from ttt_moshi.evaluation.scoring.reductions import channel_sums


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 9), st.randoms())
def test_every_sequence_is_in_one_batch_within_the_budget_and_order_does_not_matter(lengths, budget, rows, random):
    keys = [f"k{i:03d}" for i in range(len(lengths))]
    batches = plan(lengths, keys, budget, rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    order = list(range(len(lengths)))
    random.shuffle(order)
    again = plan([lengths[i] for i in order], [keys[i] for i in order], budget, rows)
    assert [[keys[order[i]] for i in batch] for batch in again] == [[keys[i] for i in batch] for batch in batches]


def examples(toy, folder: Path, count: int = 12) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example.file(f"e{i}", toy(folder / f"{i}.wav", rng.integers(0, 24, rng.integers(3, 30)).tolist()))
        for i in range(count)
    ]


def test_a_second_evaluation_makes_no_forward_pass_and_gives_the_same_bits(tmp_path, toy, oracle):
    wanted = examples(toy, tmp_path)
    first = oracle(folder=tmp_path / "c", max_rows=3)
    a = first.nll(wanted)
    second = oracle(folder=tmp_path / "c", max_rows=3)
    b = second.nll(wanted)
    assert first.forward_passes == 4 and second.forward_passes == 0
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert {k: channel_sums(v).reduce("semantic") for k, v in a.items()} == {
        k: channel_sums(v).reduce("semantic") for k, v in b.items()
    }


def test_equal_recordings_are_scored_once(tmp_path, toy, oracle):
    engine = oracle(max_rows=1)
    same = [Example.file(f"x{i}", toy(tmp_path / f"{i}.wav", [1, 2, 3])) for i in range(5)]
    found = engine.nll(same)
    assert engine.forward_passes == 1 and len(found) == 5


def test_another_model_or_a_changed_recording_is_not_answered_from_the_cache(tmp_path, toy, oracle):
    wanted = examples(toy, tmp_path, 2)
    oracle(folder=tmp_path / "c").nll(wanted)
    toy(tmp_path / "0.wav", [5, 5, 5])  # the same path, other sound
    engine = oracle(folder=tmp_path / "c")
    assert engine.nll(wanted)["e0"].shape == (9, 3)
    other = NLLCache(tmp_path / "c", "another model")
    codes = engine.tokens.tokens(wanted[1])
    assert sequence_key(codes) in NLLCache(tmp_path / "c", "oracle")
    assert sequence_key(codes) not in other


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other model"])
def test_a_damaged_cache_file_is_scored_again_with_a_warning(tmp_path, toy, oracle, caplog, damage):
    wanted = examples(toy, tmp_path)
    whole = oracle(folder=tmp_path / "c", max_rows=3).nll(wanted)
    victim = sorted((tmp_path / "c").rglob("*.safetensors"))[0]
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[-10] ^= 1
    victim.write_bytes({"cut": content[:20], "empty": b"", "flip": content}.get(damage, content))
    if damage == "other model":  # a file of one model under the name of another
        other = Path(str(victim.parent).replace(victim.parent.name, NLLCache(tmp_path / "c", "b")._folder.name))
        other.mkdir()
        victim.rename(other / victim.name)
        assert sequence_key(oracle().tokens.tokens(wanted[0])) not in NLLCache(tmp_path / "c", "b")
    else:
        engine = oracle(folder=tmp_path / "c", max_rows=3)
        found = engine.nll(wanted)
        assert engine.forward_passes == 1
        assert all(np.array_equal(found[name], whole[name], equal_nan=True) for name in whole)
    assert len(caplog.records) == 1 and victim.name in caplog.text and "scored again" in caplog.text


def test_processes_that_share_a_cache_write_under_names_of_their_own(tmp_path, toy, warm):
    """Two processes score the same recordings into one folder at once: both end with the same numbers, and nothing but
    whole files is left."""
    program = KILLED.format(folder=str(Path(__file__).parent))
    examples(toy, tmp_path)
    pair = [warm.start(["-c", program, tmp_path]) for _ in range(2)]
    assert [process.wait() for process in pair] == [0, 0]
    outputs = [process.stdout.splitlines() for process in pair]
    numbers = [[line for line in output if line != "batch"] for output in outputs]
    assert numbers[0] == numbers[1] and numbers[0]
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left and all(path.suffix == ".safetensors" for path in left)


def test_a_full_disk_is_one_clear_line_and_what_was_scored_is_kept(tmp_path, toy, oracle, monkeypatch):
    engine, writes = oracle(folder=tmp_path / "c", max_rows=3), []

    def full(descriptor: int) -> None:
        writes.append(descriptor)
        if len(writes) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = examples(toy, tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EvaluationError, match=r"cannot write .*No space left on device.*goes on from there"):
        engine.nll(wanted)
    monkeypatch.undo()
    again = oracle(folder=tmp_path / "c", max_rows=3)
    assert again.nll(wanted).keys() == {example.id for example in wanted}
    assert again.forward_passes == 2


def test_pieces_are_joined_in_their_order(tmp_path, toy, oracle):
    path = toy(tmp_path / "a.wav", list(range(10)))
    source = Source.file(path)
    joined = Example("j", (Piece(source, 2, 4), Piece(source, 8), Piece(source, 0, 1)))
    assert oracle().nll([joined])["j"][1].tolist() == [2, 3, 8, 9, 0]
    cut = Source((Segment(path, 0.0, 3 / 12500), Segment(path, 5 / 12500, 7 / 12500)))
    assert oracle().nll([Example("c", (Piece(cut),))])["c"][1].tolist() == [0, 1, 2, 5, 6]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import conftest
from ttt_moshi.evaluation.scoring.engine import BatchPolicy, Engine
from ttt_moshi.evaluation.examples import Example
from ttt_moshi.evaluation.scoring.nll_cache import NLLCache
from ttt_moshi.evaluation.scoring.scorer import ModelScorer
root = Path(sys.argv[1])
stepwise = len(sys.argv) > 2
wanted = [Example.file(p.stem, p) for p in sorted(root.glob("*.wav"))]
scorer = ModelScorer(conftest.build_model(), "state")
class Announced:
    def __getattr__(self, name): return getattr(scorer, name)
    def score(self, codes, frames):
        print("batch", flush=True)
        if stepwise: sys.stdin.readline()  # goes on when told to
        return scorer.score(codes, frames)
engine = Engine(Announced(), conftest.ToyTokens(), NLLCache(root / "cache", scorer.identity), BatchPolicy(60, 3))
for name, nll in engine.nll(wanted).items():
    print(name, nll.tobytes().hex())
"""


def test_a_killed_evaluation_continues_and_ends_byte_equal(tmp_path, toy, warm):
    program = KILLED.format(folder=str(Path(__file__).parent))
    for folder in ("whole", "killed"):
        examples(toy, tmp_path / folder)

    def run(folder: str) -> list[str]:
        done = warm.run(["-c", program, tmp_path / folder])
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    whole = run("whole")
    batches = whole.count("batch")
    assert batches >= 5
    victim = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "killed"), "stepwise"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(2):
        assert victim.stdout.readline() == "batch\n"
        victim.stdin.write("\n")
        victim.stdin.flush()
    assert victim.stdout.readline() == "batch\n"  # two are done, the third is waiting
    victim.kill()
    victim.wait()
    done = len(list((tmp_path / "killed" / "cache").rglob("*.safetensors")))
    assert done == 2
    rest = run("killed")
    assert rest.count("batch") == batches - done
    assert [line for line in rest if line != "batch"] == [line for line in whole if line != "batch"]
