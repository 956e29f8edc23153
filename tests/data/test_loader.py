"""Order, weights and partition of clips."""

import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.data import ClipLoader, Corpus, DataError, EvalSet
from ttt_moshi.data.loader import pick_source, shuffled

SHUFFLED_7_3 = [4, 0, 2, 6, 5, 1, 7, 3]
"""written down once; a run that is resumed years later must find the same order"""


@pytest.fixture
def corpus(codec, tokenizer):
    return lambda spec, duration_sec=0.4: Corpus(str(spec), codec, tokenizer, duration_sec)


def same(a, b) -> bool:
    tensors = [(a.codes, b.codes), (a.prefix_lengths, b.prefix_lengths), (a.valid_frames, b.valid_frames)]
    return a.sample_ids == b.sample_ids and all(torch.equal(x, y) for x, y in tensors)


def ids(loader, count, start=0):
    return [loader.clip(i).id for i in range(start, start + count)]


def test_unshuffled_epochs_follow_the_list(data_set, corpus):
    loader = ClipLoader(corpus(data_set(1.0, 0.5)), seed=0, shuffle=False)
    assert loader.clips_per_epoch == 5
    clips = [loader.clip(i) for i in range(10)]
    names = [("0.wav", 0), ("0.wav", 5), ("0.wav", 10), ("1.wav", 0), ("1.wav", 5)]
    assert [(clip.recording.audio.name, clip.start) for clip in clips] == names * 2
    assert len({clip.id for clip in clips}) == 5


def test_shuffled_epochs_are_permutations_that_depend_on_seed_and_epoch(data_set, corpus):
    clips = corpus(data_set(3.0, 2.0))
    loader = ClipLoader(clips, seed=0, shuffle=True)
    n = loader.clips_per_epoch
    first, second = ids(loader, n), ids(loader, n, n)
    plain = ids(ClipLoader(clips, seed=0, shuffle=False), n)
    assert sorted(first) == sorted(second) == sorted(plain)
    assert len({tuple(first), tuple(second), tuple(plain), tuple(ids(ClipLoader(clips, seed=1, shuffle=True), n))}) == 4
    assert ids(ClipLoader(clips, seed=0, shuffle=True), n, n) == second, "epoch 1 without having seen epoch 0"


def test_the_permutation_is_fixed_for_all_time():
    assert shuffled(list("abcdefgh"), seed=7, epoch=3) == SHUFFLED_7_3


def test_any_number_of_ranks_reads_the_same_global_batches(data_set, corpus):
    loader = ClipLoader(corpus(data_set(1.0, 0.7, 0.9)), seed=3, shuffle=True)
    whole = loader.batch(6, 8)
    for world in (2, 4):
        parts = [loader.batch(6 + rank * (8 // world), 8 // world) for rank in range(world)]
        assert [name for part in parts for name in part.sample_ids] == whole.sample_ids
        assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
    assert len(set(whole.sample_ids)) < 8 or loader.clips_per_epoch >= 14


def test_batches_do_not_depend_on_what_was_read_before(data_set, corpus):
    jsonl = data_set(1.0, 0.7)
    walked = ClipLoader(corpus(jsonl), seed=3, shuffle=True)
    batches = [walked.batch(i * 3, 3) for i in range(6)]
    for i in (5, 0, 3):
        assert same(ClipLoader(corpus(jsonl), seed=3, shuffle=True).batch(i * 3, 3), batches[i])


def test_prefetch_changes_nothing(data_set, corpus):
    jsonl = data_set(1.0, 0.7)
    plain, eager = (ClipLoader(corpus(jsonl), seed=3, shuffle=True) for _ in range(2))
    for i in range(6):
        eager.prefetch((i + 1) * 2 if i != 3 else 99, 2)  # a wrong guess is harmless
        assert same(eager.batch(i * 2, 2), plain.batch(i * 2, 2))
        eager.prefetch((i + 1) * 2 if i != 3 else 99, 2)
    eager.close()


def test_prefetch_raises_where_the_batch_is_asked_for(data_set, corpus):
    jsonl = data_set(1.0)
    (jsonl.parent / "wavs" / "0.json").write_text("{")
    loader = ClipLoader(corpus(jsonl), seed=0, shuffle=False)
    loader.prefetch(0, 1)
    with pytest.raises(DataError, match="not valid JSON"):
        loader.batch(0, 1)
    loader.close()


def test_sources_alternate_by_weight(data_set, corpus):
    a, b = data_set(1.0, name="a"), data_set(0.5, name="b")
    loader = ClipLoader(corpus(f"{a}:3,{b}"), seed=0, shuffle=True)
    drawn = Counter(name[0] for name in ids(loader, 400))
    assert drawn == {"0": 300, "1": 100}
    assert sorted(ids(loader, 4)) != sorted(ids(loader, 4, 4)), "three of a's clips in four draws, never the same three"


weights = st.lists(st.fractions(Fraction(1, 50), 50, max_denominator=50), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(weights, st.integers(1, 120))
def test_every_source_is_counted_and_gets_its_share(weights, length):
    counts = [0] * len(weights)
    for position in range(length):
        source, draw = pick_source(weights, position)
        assert draw == counts[source]
        counts[source] += 1
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - length * weight / sum(weights)) < len(weights)


def test_order_is_the_same_in_another_process():
    script = "from ttt_moshi.data.loader import shuffled; print(shuffled(list('abcdefgh'), 7, 3))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(SHUFFLED_7_3)


def test_eval_set_covers_everything_once_and_again(data_set, corpus):
    clips = EvalSet(corpus(data_set(1.0, 0.7, 0.9)))
    first, second = list(clips.batches(3)), list(clips.batches(3))
    assert [len(b) for b in first] == [3, 3, 2] and len(clips) == 8
    names = [name for batch in first for name in batch.sample_ids]
    assert names == [clip.id for clip in clips.clips] and len(set(names)) == 8
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert sum(int(b.valid_frames.sum()) for b in first) == 13 + 9 + 12


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_eval_ranks_share_the_clips_and_keep_step(data_set, corpus, world):
    clips = EvalSet(corpus(data_set(1.0, 0.7, 0.9)))
    parts = [list(clips.batches(2, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    names = [name for part in parts for batch in part for name in batch.sample_ids if name]
    assert sorted(names) == sorted(clip.id for clip in clips.clips)
    fillers = [b for part in parts for b in part if b.sample_ids == [""]]
    assert all(b.valid_frames.tolist() == [0] and (b.codes == -1).all() for b in fillers)
