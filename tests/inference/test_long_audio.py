"""Conversations whose audio is read and written while they last: the same files, and nothing held or left over."""

from functools import partial

import pytest
import torch

from ttt_moshi.errors import UserError
from ttt_moshi.inference import Question, Slots, answer
from ttt_moshi.inference.answers import LongAudio
from ttt_moshi.inference.driver import Driver, Item, read_conversation
from ttt_moshi.inference.sampling import Sampling

FRAME = 1920
SAMPLES = 9 * FRAME + 700


@pytest.fixture(scope="module")
def voice():
    loud = 0.2 * torch.randn(SAMPLES, generator=torch.Generator().manual_seed(4))
    loud[: 3 * FRAME] = 0  # what comes before the first sound is looked for without a greeting
    return loud


def in_blocks(samples: torch.Tensor, size: int) -> LongAudio:
    return LongAudio(len(samples), lambda: iter(samples.split(size)))


def test_the_same_files_come_of_it(make_speaker, voice, tmp_path):
    speaker = make_speaker()
    for greeting in (True, False):
        driver = Driver(speaker, Sampling.of(speaker.generation), slots=2, greeting=greeting)
        driver.converse([Item(n, lambda: voice) for n in "xy"], tmp_path / f"whole{greeting}")
        sizes = {"x": 700, "y": 5000}
        blocks = [Item(name, partial(in_blocks, voice, size)) for name, size in sizes.items()]
        driver.converse(blocks, tmp_path / f"blocks{greeting}")
        for path in sorted((tmp_path / f"whole{greeting}").glob("*/*")):
            other = tmp_path / f"blocks{greeting}" / path.parent.name / path.name
            assert other.read_bytes() == path.read_bytes(), path
        assert len(list((tmp_path / f"blocks{greeting}").glob("*/*"))) == 10
    found = read_conversation(tmp_path / "wholeTrue" / "x")
    assert len(found.agent) == len(found.user) == SAMPLES and found.seconds == SAMPLES / 24_000
    assert [len(block) for block in found.blocks("input")] == [SAMPLES]


def test_nothing_is_read_ahead_and_nothing_held(make_speaker, voice):
    speaker, read, said, ahead = make_speaker(), 0, 0, []

    def blocks():
        nonlocal read
        for block in voice.split(FRAME):
            read += len(block)
            ahead.append(read - said)
            yield block

    def hear(samples):
        nonlocal said
        said += len(samples)

    question = Question("x", LongAudio(len(voice), blocks), seed=1, said=hear)
    with Slots(speaker, 1, Sampling.of(speaker.generation)) as slots:
        (found,) = answer(slots, [question])
    assert said == read == SAMPLES and max(ahead) <= 2 * FRAME and len(found.samples) == 0
    assert found.tokens.shape[1] == 10


def test_what_breaks_off_or_was_killed_leaves_nothing(make_speaker, voice, tmp_path):
    speaker = make_speaker()
    driver = Driver(speaker, Sampling.of(speaker.generation))
    whole = in_blocks(voice, FRAME)

    def broken():
        yield from list(whole.blocks())[:4]
        raise UserError("the recording ends here")

    reads = iter((whole, LongAudio(SAMPLES, broken)))  # it can be read for its digest, and then no more

    item = Item("x", lambda: LongAudio(SAMPLES, lambda: next(reads).blocks()))
    with pytest.raises(UserError, match="ends here"):
        driver.converse([item], tmp_path)
    assert list(tmp_path.rglob("*")) == []
    stale = tmp_path / "x" / f".{'0' * 32}.partial"
    stale.parent.mkdir()
    stale.write_bytes(b"what a killed process left")
    driver.converse([Item("x", lambda: voice)], tmp_path)
    assert not stale.exists() and len(list((tmp_path / "x").iterdir())) == 5
