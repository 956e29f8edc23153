"""Given frames leave the model where training would have left it."""

import dataclasses

import pytest
import torch

from ttt_moshi.inference import Conversation, InferenceError, Sampling, Slots
from ttt_moshi.inference.prompt import begin_beside, begin_with, make_prompt

GREEDY = Sampling(greedy=True)


def noise(frames: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(frames, 1920, generator=torch.Generator().manual_seed(seed))


def test_the_conversation_after_a_prompt_is_the_likeliest_of_the_forward_with_a_prefix(speaker):
    """One teacher-forced forward with `prefix_lengths` is the oracle; the backward pass over the prompt matters."""
    model, P = speaker.model, 9
    codes, user = make_prompt(speaker, noise(4, seed=1).flatten()[:-100], "one two")
    codes, user = codes[:, :P], user[: P * 1920]
    assert codes.shape == (1 + model.n_q, P)
    start, heard = begin_with(speaker, codes, user, GREEDY), noise(20)
    assert start.frames == P
    with Conversation(speaker, GREEDY) as conversation:
        conversation.restore(start)
        said = torch.stack([conversation.hear(frame).tokens for frame in heard], dim=1)
    with torch.no_grad():
        both = speaker.mimi.encode(torch.cat([user, heard.flatten()])[None, None])[0]
        whole = torch.cat([torch.cat([codes[: 1 + model.dep_q], said], dim=1), both])[None]
        whole[:, 1 + model.dep_q :, :P] = codes[1 + model.dep_q :]
        given = torch.tensor([P])
        output = model(whole, prefix_lengths=given)
        causal = model(whole)
    dep_q = model.dep_q
    assert torch.equal(output.text_logits.argmax(-1)[output.text_mask], whole[:, :1][output.text_mask])
    assert torch.equal(output.logits.argmax(-1)[output.mask], whole[:, 1 : 1 + dep_q][output.mask])
    wrong = causal.logits.argmax(-1)[output.mask] != whole[:, 1 : 1 + dep_q][output.mask]
    assert int(wrong.sum()) > 2, "without the backward pass it would be another conversation"


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
