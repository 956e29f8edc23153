"""Speech with words of its own: the same codes whenever a word returns, and not before attention has lost it."""

import random
from itertools import islice

import numpy as np
import pytest
import torch

from benchmarks.memory import spoken
from benchmarks.memory.arms import WINDOW
from benchmarks.memory.spoken import BETWEEN, WORDS, word_order
from ttt_moshi.config import ModelPaths
from ttt_moshi.data import Codec, Corpus
from ttt_moshi.frames import FRAME_SIZE
from ttt_moshi.moshi import resolve_model
from ttt_moshi.synthetic.recall.base_model import reach, write_speech_model


def test_every_word_comes_and_none_returns_too_early():
    said = list(islice(word_order(random.Random(0)), 500))
    assert set(said) == set(range(WORDS))
    assert min(np.bincount(said)) > 40
    for place in range(len(said) - BETWEEN):
        assert len(set(said[place : place + BETWEEN + 1])) == BETWEEN + 1
    assert said != list(islice(word_order(random.Random(1)), 500)), "the order is random"


def test_recordings_repeat_exactly_and_are_as_long_as_asked():
    first, second = (spoken.make_recording(random.Random(seed), 100) for seed in (0, 1))
    assert first.shape == second.shape == (100 * FRAME_SIZE,) and first.dtype == np.float32
    assert np.array_equal(first, spoken.make_recording(random.Random(0), 100))
    assert not np.array_equal(first, second)


@pytest.fixture(scope="module")
def semantic(tmp_path_factory):
    """Semantic codes of four recordings of 400 frames, through the loader and the base model's Mimi."""
    folder = tmp_path_factory.mktemp("spoken")
    info = resolve_model(ModelPaths(hf_repo_id=str(write_speech_model(folder / "base", seed=0))))
    jsonl = spoken.write_recordings(folder / "data", [400] * 4, seed=0)
    codec = Codec(info.get_mimi(device="cpu"), info.mimi_config)
    corpus = Corpus(str(jsonl), codec, info.get_text_tokenizer(), 32.0)
    codes = corpus.read(corpus.clips(0)).codes
    assert codes.shape == (4, 17, 400) and (codes[:, 0] == -1).all() and (codes[:, 1:] >= 0).all()
    return codes[:, 1]


def test_what_was_heard_comes_back_beyond_the_reach_of_attention(semantic):
    """Four frames of codes that occur again do so after the reach at the earliest, and they nearly always do."""
    for codes in semantic:
        grams = codes.unfold(0, 4, 1)
        same = (grams[:, None] == grams[None]).all(2)
        frame = torch.arange(len(grams))
        apart = frame[:, None] - frame[None]
        late = frame > 200
        assert (same & (apart > reach(WINDOW))).any(1)[late].float().mean() > 0.6
        assert (same & (apart > 0) & (apart <= reach(WINDOW))).any(1).float().mean() < 0.05


def test_recordings_have_words_of_their_own(semantic):
    grams = [set(map(tuple, codes.unfold(0, 4, 1).tolist())) for codes in semantic]
    for one, other in ((0, 1), (1, 2), (2, 3)):
        assert len(grams[one] & grams[other]) < 0.05 * len(grams[one])
