"""Given frames leave the model where training would have left it."""

import dataclasses

import pytest
import torch

from ttt_moshi.inference import Conversation, InferenceError, Sampling, Slots
from ttt_moshi.inference.driver import Driver, Given, Item, read_conversation, seed_of
from ttt_moshi.inference.prompt import begin_beside, begin_with, make_prompt

GREEDY = Sampling(greedy=True)


def noise(frames: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(frames, 1920, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_conversation_after_given_frames_is_the_likeliest_of_the_forward(speaker, both_ways):
    """One teacher-forced forward is the oracle, with `prefix_lengths` or without; the backward pass matters."""
    model, P = speaker.model, 9
    codes, user = make_prompt(speaker, noise(4, seed=1).flatten()[:-100], "one two")
    codes, user = codes[:, :P], user[: P * 1920]
    assert codes.shape == (1 + model.n_q, P)
    start, heard = begin_with(speaker, codes, user, GREEDY, both_ways=both_ways), noise(20)
    assert start.frames == P
    with Conversation(speaker, GREEDY) as conversation:
        conversation.restore(start)
        said = torch.stack([conversation.hear(frame).tokens for frame in heard], dim=1)
    with torch.no_grad():
        both = speaker.mimi.encode(torch.cat([user, heard.flatten()])[None, None])[0]
        whole = torch.cat([torch.cat([codes[: 1 + model.dep_q], said], dim=1), both])[None]
        whole[:, 1 + model.dep_q :, :P] = codes[1 + model.dep_q :]
        prefixed, causal = model(whole, prefix_lengths=torch.tensor([P])), model(whole)
    output, other = (prefixed, causal) if both_ways else (causal, prefixed)
    mask, text_mask, dep_q = prefixed.mask, prefixed.text_mask, model.dep_q  # of what comes after the given frames
    assert torch.equal(output.text_logits.argmax(-1)[text_mask], whole[:, :1][text_mask])
    assert torch.equal(output.logits.argmax(-1)[mask], whole[:, 1 : 1 + dep_q][mask])
    wrong = other.logits.argmax(-1)[mask] != whole[:, 1 : 1 + dep_q][mask]
    assert int(wrong.sum()) > 2, "read the other way it would be another conversation"


def test_a_prompt_decides_what_is_said_and_serves_many_conversations(speaker):
    codes, user = make_prompt(speaker, text="one two three")
    start = begin_with(speaker, codes, user)
    replies = {}
    for seed in (1, 2, 1):
        with Conversation(speaker) as conversation:
            conversation.restore(dataclasses.replace(start, seed=seed))
            tokens = torch.stack([conversation.hear(frame).tokens for frame in noise(8)])
        assert seed not in replies or torch.equal(replies[seed], tokens)
        replies[seed] = tokens
    other = begin_with(speaker, *make_prompt(speaker, text="four five six"))
    with Conversation(speaker) as conversation:
        conversation.restore(dataclasses.replace(other, seed=1))
        different = torch.stack([conversation.hear(frame).tokens for frame in noise(8)])
    assert not torch.equal(replies[1], replies[2]) and not torch.equal(replies[1], different)


def test_prompts_that_cannot_be_are_refused(speaker):
    for arguments, complaint in (({}, "neither"), ({"text": ""}, "empty"), ({"voice": torch.zeros(0)}, "neither")):
        with pytest.raises(InferenceError, match=complaint):
            make_prompt(speaker, **arguments)
    for frames in (1, 32):
        with pytest.raises(InferenceError, match="between 2 and 31"):
            begin_with(speaker, *make_prompt(speaker, voice=torch.zeros(frames * 1920)))
    assert not any(getattr(m, "_streaming_state", None) for m in speaker.model.modules())


@pytest.mark.parametrize("sink", [0, 3])
def test_a_prompt_is_read_between_two_ticks_of_others(speaker, sink):
    """The same state as without them, and nobody notices; with an attention sink too."""
    speaker = dataclasses.replace(speaker, sink=sink)
    frames, text = noise(12), "one two three"
    alone = begin_with(speaker, *make_prompt(speaker, text=text), GREEDY)
    with Conversation(speaker, GREEDY) as conversation:
        undisturbed = [conversation.hear(frame) for frame in frames]
    with Slots(speaker, 2, GREEDY) as slots:
        slots.join(1, seed=0)
        for number, frame in enumerate(frames):
            if number == 5:
                beside = begin_beside(slots, text)
                with pytest.raises(InferenceError, match="attention window"):
                    begin_beside(slots, "word " * 60)
            assert torch.equal(slots.tick({1: frame})[1].tokens, undisturbed[number].tokens)
    assert beside.frames == alone.frames and beside.tensors.keys() == alone.tensors.keys()
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(beside.tensors[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_every_recording_goes_on_from_frames_of_its_own(speaker, tmp_path):
    """Beside others it is the conversation that it is alone; other frames, and none, are other conversations."""
    codes, user = make_prompt(speaker, voice=noise(6, seed=3).flatten())
    other, _ = make_prompt(speaker, voice=noise(6, seed=4).flatten())
    heard = noise(12).flatten()
    items = [Item("a", lambda: heard, lambda: Given(codes, user)), Item("b", lambda: heard, lambda: Given(other, user)),
             Item("c", lambda: heard)]  # fmt: skip
    for name, some in (("together", items), ("alone", items[:1])):
        Driver(speaker, Sampling(), slots=3, seed=7).converse(some, tmp_path / name)
    a, b, c = (read_conversation(tmp_path / "together" / name).tokens for name in "abc")
    # Products of another shape may round a code to another one later on.
    assert (a == read_conversation(tmp_path / "alone" / "a").tokens)[:, :4].all()
    assert (a >= 0).all() and (a != b).any() and (a != c).any()
    start = begin_with(speaker, codes, user, seed=seed_of(7, "a"), both_ways=False)
    with Conversation(speaker) as conversation:
        conversation.restore(start)
        said = torch.stack([conversation.hear(frame).tokens for frame in heard.split(1920)], dim=1)
    assert (said.numpy() == a)[:, :4].all()
    Driver(speaker, Sampling(), seed=7).converse(items, tmp_path / "together")  # they are there
    with pytest.raises(InferenceError, match=r"holds another conversation .*differs in prompt"):
        Driver(speaker, Sampling(), seed=7).converse([Item("a", lambda: heard)], tmp_path / "together")
