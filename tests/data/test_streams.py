"""Rows that walk through long recordings."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.data import Corpus, EvalSet, StreamLoader

LENGTHS = (2.0, 0.5, 1.3, 0.9, 3.1)


@pytest.fixture
def corpus(codec, tokenizer, data_set):
    return Corpus(str(data_set(*LENGTHS)), codec, tokenizer, 0.4)  # clips of 5 frames


def loader(corpus, rows=3, **options):
    return StreamLoader(corpus, rows=rows, **{"seed": 1, "shuffle": True, **options})


def walk(corpus, row, steps, rows=3):
    stream = loader(corpus, rows)
    return [stream.clip(step * rows + row) for step in range(steps)]


def test_a_row_reads_each_recording_from_start_to_end(corpus):
    for row in range(3):
        clips = walk(corpus, row, 60)
        for before, after in pairwise(clips):
            if after.start:
                assert after.recording is before.recording and after.start == before.start + 5
            else:
                assert before.start + 5 >= before.recording.frames


def test_joined_clips_are_the_recording(corpus):
    stream = loader(corpus, 2)
    whole = {c.id: corpus.read([c]) for c in EvalSet(corpus).clips}
    batches = [stream.batch(step * 2, 2) for step in range(12)]
    for batch in batches:
        for i, name in enumerate(batch.sample_ids):
            assert torch.equal(batch.codes[i], whole[name].codes[0])
            assert batch.positions[i] == int(name.rsplit("@", 1)[1])
            assert batch.starts[i] == (batch.positions[i] == 0)
    assert batches[0].starts.all() and not batches[1].starts.all()


def test_every_recording_comes_up_equally_often(corpus):
    """15 recordings' worth of starts: rows take them from the common order as they become free."""
    stream = loader(corpus)
    begun = [stream.clip(p) for p in range(3 * 40)]
    names = [clip.recording.id for clip in begun if clip.start == 0][:15]
    assert sorted(Counter(names).values()) == [3, 3, 3, 3, 3]
    assert len({tuple(names[i : i + 5]) for i in (0, 5, 10)}) > 1, "epochs differ"


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_any_order_of_questions_gives_the_same_answers(corpus_once, positions):
    asked = loader(corpus_once)
    for position in positions:
        assert asked.clip(position) == loader(corpus_once).clip(position)


@pytest.fixture(scope="module")
def corpus_once(codec, tokenizer, sound, tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    for i, seconds in enumerate(LENGTHS):
        soundfile.write(folder / f"{i}.wav", sound(seconds, seed=i), 24000)
    lines = [f'{{"path": "{i}.wav", "duration": {seconds}}}' for i, seconds in enumerate(LENGTHS)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    return Corpus(str(folder), codec, tokenizer, 0.4)


def test_ranks_share_the_rows(corpus):
    whole = loader(corpus, 4).batch(4 * 7, 4)
    parts = [loader(corpus, 4).batch(4 * 7 + rank * 2, 2) for rank in range(2)]
    assert [name for part in parts for name in part.sample_ids] == whole.sample_ids
    assert torch.equal(torch.cat([part.starts for part in parts]), whole.starts)


def test_prefetch_changes_nothing(corpus):
    plain, eager = loader(corpus), loader(corpus)
    for step in range(8):
        batch = eager.batch(step * 3, 3)
        eager.prefetch((step + 1) * 3, 3)
        assert torch.equal(batch.codes, plain.batch(step * 3, 3).codes)
    eager.close()


def test_more_rows_than_recordings(corpus):
    stream = loader(corpus, 12, shuffle=False)
    first = [stream.clip(row).recording.audio.name for row in range(12)]
    assert first == [f"{i % 5}.wav" for i in range(12)]


def test_seed_and_shuffle_matter_and_nothing_else(corpus):
    def order(**options):
        stream = loader(corpus, 1, **options)
        return [clip.recording.id for clip in map(stream.clip, range(21)) if clip.start == 0]

    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert sorted(order(shuffle=False)) == sorted(order(seed=1))
    assert order(shuffle=False) == [recording.id for recording in corpus.recordings]


def test_two_threads_hand_out_as_one_does(corpus, monkeypatch):
    """The next batch is read in the background while the one after it is asked for."""
    one, two = loader(corpus, 1), loader(corpus, 1)
    wanted = [one.clip(position).recording.id for position in range(60)]
    draw = two._recording

    def slow(number):
        time.sleep(0.001)  # as the shuffling of many names
        return draw(number)

    monkeypatch.setattr(two, "_recording", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda position: two.clip(position).recording.id, range(60)))
    assert found == wanted
