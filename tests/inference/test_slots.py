"""A conversation in a batch is what it would be alone, whoever comes, goes, waits or breaks beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moshi.models import LMGen
from moshi.utils.compile import no_compile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ttt_moshi.inference import (
    Conversation,
    InferenceError,
    Reply,
    Sampling,
    Slots,
    Snapshot,
    load_session,
    save_session,
)
from ttt_moshi.inference.prompt import begin_beside

SLOTS, PEOPLE, LENGTH = 3, 5, 40
"""the window of the tiny model is 32 frames, so that the longest conversations go beyond it"""


def voice(person: int, frames: int = LENGTH) -> torch.Tensor:
    """What somebody says, [frames, 1920]."""
    return 0.1 * torch.randn(frames, 1920, generator=torch.Generator().manual_seed(person))


@pytest.fixture(scope="module")
def company(make_speaker):
    """A speaker, and what each person hears alone."""
    speaker, alone = make_speaker(), []
    for person in range(PEOPLE):
        with Conversation(speaker, seed=person) as conversation:
            alone.append([conversation.hear(frame) for frame in voice(person)])
    assert len({tuple(reply.tokens.tolist()) for replies in alone for reply in replies}) > PEOPLE * LENGTH / 2
    return speaker, alone


def assert_same(reply: Reply | None, expected: Reply | None) -> None:
    assert (reply is None) == (expected is None)
    if reply is not None:
        assert torch.equal(reply.tokens, expected.tokens) and reply.piece == expected.piece
        assert float((reply.samples - expected.samples).abs().max()) <= 1e-5


ACTIONS = st.sampled_from(["hear"] * 6 + ["wait", "wait", "next", "move", "again"])
PROGRAMS = st.lists(st.tuples(*[ACTIONS] * SLOTS), min_size=1, max_size=45)


@settings(max_examples=8)
@given(program=PROGRAMS)
def test_rows_equal_solo_runs(company, program, tmp_path_factory):
    """Under random joins, leaves, pauses, saves to files and resumes from them in other slots."""
    speaker, alone = company
    file = tmp_path_factory.mktemp("kept") / "one.session"

    def through_a_file(snapshot: Snapshot) -> Snapshot:
        save_session(snapshot, speaker.state_id, file)
        return load_session(file, speaker.state_id)

    voices = [voice(person) for person in range(PEOPLE)]
    with Slots(speaker, SLOTS) as slots:
        people: list[int] = []
        saved = {}
        for slot in range(SLOTS):
            slots.join(slot, seed=slot)
            people.append(slot)
        for actions in program:
            frames = {}
            for slot, action in enumerate(actions):
                if action == "next":  # the person leaves and the next one comes
                    people[slot] = (people[slot] + 1) % PEOPLE
                    slots.join(slot, seed=people[slot])
                elif action == "move":  # two people change places
                    other = (slot + 1) % SLOTS
                    here, there = through_a_file(slots.snapshot(slot)), through_a_file(slots.snapshot(other))
                    slots.restore(slot, there)
                    slots.restore(other, here)
                    people[slot], people[other] = people[other], people[slot]
                    saved[people[slot]] = there
                elif action == "again" and people[slot] in saved:  # a conversation goes on from an earlier place
                    slots.restore(slot, saved[people[slot]])
            for slot, action in enumerate(actions):
                if action != "wait" and slots.frames[slot] < LENGTH:
                    frames[slot] = voices[people[slot]][slots.frames[slot]]
            before = list(slots.frames)
            replies = slots.tick(frames)
            for slot in frames:
                assert_same(replies.get(slot), alone[people[slot]][before[slot]])
            assert set(replies) <= set(frames)


def test_greedy_rows_equal_the_official_generator(company):
    """Three rows that start at different ticks, beside moshi's own generator and codec, one conversation at a time."""
    speaker, _ = company
    model, mimi = speaker.model, speaker.mimi
    official = []
    for person in range(SLOTS):
        generator = LMGen(model, use_sampling=False)
        heard = voice(person, 12)
        with torch.no_grad(), no_compile(), mimi.streaming(1), generator.streaming(1):
            codes = [mimi.encode(frame[None, None]) for frame in heard]
            steps = [generator.step(frame) for frame in (codes[0], *codes)]  # the first one reads the initial tokens
            said = [tokens for tokens in steps if tokens is not None]
            sound = [mimi.decode(tokens[:, 1:]) for tokens in said]
        official.append((torch.cat(said, dim=2)[0], torch.cat(sound, dim=2)[0, 0]))
    replies = [[] for _ in range(SLOTS)]
    with Slots(speaker, SLOTS, Sampling(greedy=True)) as slots:
        for tick in range(12 + 2 * SLOTS):
            frames = {}
            for slot in range(SLOTS):
                if tick == 2 * slot:
                    slots.join(slot, seed=0)
                if 2 * slot <= tick < 2 * slot + 12:
                    frames[slot] = voice(slot, 12)[tick - 2 * slot]
            for slot, reply in slots.tick(frames).items():
                replies[slot].append(reply)
    for (tokens, sound), said in zip(official, replies, strict=True):
        assert torch.equal(torch.stack([reply.tokens for reply in said], dim=1), tokens)
        assert float((torch.cat([reply.samples for reply in said]) - sound).abs().max()) <= 1e-5


def poison(slots: Slots, slot: int) -> None:
    """One value of one memory becomes NaN, as a fault of the hardware would have it."""
    slots.speaker.model.layers[0]._streaming_state.memory.W1[slot, 0, 0, 0] = torch.nan


def test_a_memory_that_is_not_finite_is_noticed_and_hurts_nobody_else(company):
    speaker, alone = company
    voices = [voice(person) for person in range(PEOPLE)]
    with Slots(speaker, 2) as slots:
        for slot in range(2):
            slots.join(slot, seed=slot)
        for t in range(20):
            if t == 9:
                poison(slots, 0)
            replies = slots.tick({0: voices[0][t], 1: voices[1][t]})
            assert_same(replies.get(1), alone[1][t])
            assert (0 in replies) == (alone[0][t] is not None and t < 9)
        assert slots.broken == {0} and slots.frames == [10, 20]
        with pytest.raises(InferenceError, match=r"no longer finite.*memory/W1"):
            slots.snapshot(0)
        slots.join(0, seed=2)  # nothing of it is left for the next one
        for t in range(12):
            assert_same(slots.tick({0: voices[2][t]}).get(0), alone[2][t])
        assert slots.broken == set()


def test_a_conversation_stops_at_a_memory_that_is_not_finite(company):
    speaker, _ = company
    with Conversation(speaker) as conversation:
        conversation.hear(voice(0)[0])
        poison(conversation._slots, 0)
        with pytest.raises(InferenceError, match=r"no longer finite \(frame 2\)"):
            conversation.hear(voice(0)[1])
        conversation.start_over()
        conversation.hear(voice(0)[0])


@pytest.mark.parametrize("part", ["generator", "model", "mimi"])
def test_what_fails_at_the_beginning_leaves_nothing_streaming(company, monkeypatch, part):
    speaker, alone = company
    broken = {
        "generator": LMGen,
        "model": type(speaker.model.transformer.layers[-1]),
        "mimi": type(speaker.mimi.encoder),
    }[part]

    def fail(self, batch_size):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(broken, "_init_streaming_state", fail)
        with pytest.raises(RuntimeError, match="out of memory"), Conversation(speaker):
            pass
    assert not any(getattr(m, "_streaming_state", None) for m in (*speaker.model.modules(), *speaker.mimi.modules()))
    with Conversation(speaker) as conversation:
        assert_same(conversation.hear(voice(0)[0]), alone[0][0])


def test_one_bad_frame_is_heard_by_nobody(company):
    speaker, alone = company
    with Slots(speaker, 2) as slots:
        for slot in range(2):
            slots.join(slot, seed=slot)
        for bad in (torch.zeros(5), torch.full((1920,), torch.inf)):
            with pytest.raises(InferenceError):
                slots.tick({0: voice(0)[0], 1: bad})
        assert slots.frames == [0, 0]
        assert_same(slots.tick({0: voice(0)[0]}).get(0), alone[0][0])


def test_what_is_in_a_memory_belongs_to_its_row(company):
    """Written shares and inner losses of a row are those of its solo run; whoever comes next begins with nothing."""
    speaker, alone = company

    def talk(slots: Slots, slot: int, person: int, frames: range) -> None:
        for t in frames:
            assert_same(slots.tick({slot: voice(person)[t]}).get(slot), alone[person][t])

    with Slots(speaker, 1, watched=True) as slots:
        slots.join(0, seed=1)
        talk(slots, 0, 1, range(20))
        solo = slots.memory(0)
        assert solo.keys() == {0, 1}
        for layer in solo.values():
            assert layer.written > 0 and 0 < layer.loss < layer.untaught, "a memory that learns nothing"
        assert [layer.loss for layer in slots.memory(0).values()] == [None, None], "nothing was heard since"
    with Slots(speaker, 2, watched=True) as slots:
        slots.join(0, seed=0)
        talk(slots, 0, 0, range(4))
        slots.join(1, seed=1)
        begin_beside(slots, "a prompt of somebody else")
        # One frame of five is looked at, counted by ticks: the one before belongs to the other row.
        talk(slots, 0, 0, range(4, 5))
        talk(slots, 1, 1, range(20))
        for layer, found in slots.memory(1).items():
            assert vars(found) == pytest.approx(vars(solo[layer]), rel=1e-4)
        slots.join(1, seed=2)
        assert {(layer.written, layer.loss) for layer in slots.memory(1).values()} == {(0.0, None)}
    assert not any(layer.ttt.inner._forward_pre_hooks for layer in speaker.model.layers), "somebody still watches"


class _NoDoubles(TorchDispatchMode):
    """Fails where a tensor of float64 comes out of anything."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        found = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.dtype == torch.float64]
        assert not found, f"{function} makes float64"
        return out


def test_a_conversation_needs_no_float64(company):
    """Apple's GPUs have none."""
    speaker, _ = company
    with pytest.raises(AssertionError, match="makes float64"), _NoDoubles():
        torch.zeros(1).double()
    with _NoDoubles(), Slots(speaker, 2, watched=True) as slots:
        slots.join(0, seed=0)
        slots.join(1, seed=1, greeting=False)
        for t in range(6):
            slots.tick({0: voice(0)[t], 1: voice(1)[t]})
        slots.restore(1, slots.snapshot(0))
        slots.memory(0)
        slots.restore(1, begin_beside(slots, "a prompt"))
        slots.tick({1: voice(1)[6]})


def test_the_end_of_a_text_is_no_word(company):
    """Pieces such as </s> are for the model, and are not read out."""
    speaker, _ = company
    pieces: dict[int, str] = {}
    with Slots(speaker, 1, Sampling(temp_text=50.0, top_k_text=1000)) as slots:
        slots.join(0, seed=40)  # draws it early
        end = speaker.tokenizer.eos_id()
        for t in range(400):
            for reply in slots.tick({0: voice(0)[t % LENGTH]}).values():
                pieces[int(reply.tokens[0])] = reply.piece
            if end in pieces:
                break
    assert pieces[end] == "" and speaker.tokenizer.id_to_piece(end) == "</s>"
    assert sum(bool(piece) for piece in pieces.values()) > 5
