"""One frame in, one frame out, and it is the trained model that talks."""

from dataclasses import replace

import pytest
import torch

from ttt_moshi.inference import Conversation, InferenceError, Reply, Sampling, Slots
from ttt_moshi.moshi.sink import attention_sink


def noise(frames: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(frames, 1920, generator=torch.Generator().manual_seed(seed))


def talk(speaker, frames, sampling=None, seed=0) -> list[Reply]:
    with Conversation(speaker, sampling, seed) as conversation:
        return [conversation.hear(frame) for frame in frames]


def same(a: list[Reply], b: list[Reply]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.samples, y.samples) and x.piece == y.piece for x, y in zip(a, b, strict=True)
    )


def test_it_says_what_the_trained_model_finds_likeliest(speaker):
    """Greedy tokens, put beside the user's codes in training order, are the argmax of one teacher-forced forward."""
    model, heard = speaker.model, noise(30)
    with torch.no_grad():
        user = speaker.mimi.encode(heard.reshape(1, 1, -1))
    with Conversation(speaker, Sampling(greedy=True)) as conversation:
        replies = [conversation.hear(frame) for frame in heard]
    codes = torch.cat([torch.stack([reply.tokens for reply in replies], dim=1)[None], user], dim=1)
    with torch.no_grad():
        output = model(codes)
    dep_q = model.dep_q
    assert all(len(stream.unique()) > 3 for stream in codes[0, : 1 + dep_q]), "a constant would prove nothing"
    assert torch.equal(output.text_logits.argmax(-1)[output.text_mask], codes[:, :1][output.text_mask])
    assert torch.equal(output.logits.argmax(-1)[output.mask], codes[:, 1 : 1 + dep_q][output.mask])
    silent = (model.text_padding_token_id, model.end_of_text_padding_id, 1, 2)  # the last two: <s> and </s>
    pieces = ["" if t in silent else speaker.tokenizer.id_to_piece(t) for t in codes[0, 0].tolist()]
    assert [reply.piece for reply in replies] == pieces
    with torch.no_grad(), speaker.mimi.streaming(1):
        sound = torch.cat([speaker.mimi.decode(codes[:, 1 : 1 + dep_q, t : t + 1]) for t in range(30)], dim=-1)
    assert torch.equal(torch.cat([reply.samples for reply in replies]), sound[0, 0])


def test_talking_with_a_sink_is_what_scoring_with_it_says(speaker):
    """Beyond the window of 32 frames, against one teacher-forced forward under the same sink."""
    model, heard, greedy = speaker.model, noise(70), Sampling(greedy=True)
    sinking = replace(speaker, sink=4)
    replies = talk(sinking, heard, greedy)
    with torch.no_grad():
        user = speaker.mimi.encode(heard.reshape(1, 1, -1))
    codes = torch.cat([torch.stack([reply.tokens for reply in replies], dim=1)[None], user], dim=1)
    with torch.no_grad(), attention_sink(model, 4):
        output = model(codes)
    assert torch.equal(output.text_logits.argmax(-1)[output.text_mask], codes[:, :1][output.text_mask])
    assert torch.equal(output.logits.argmax(-1)[output.mask], codes[:, 1 : 1 + model.dep_q][output.mask])
    plain = talk(speaker, heard, greedy)
    assert same(replies[:20], plain[:20]) and not same(replies, plain)


def test_a_sink_belongs_to_its_conversation(speaker):
    """Rows that begin at other times, wait, and move to another slot, equal their solo runs."""
    sinking = replace(speaker, sink=4)
    voices = [noise(50, seed) for seed in (1, 2)]
    alone = [talk(sinking, voice, seed=seed) for seed, voice in enumerate(voices)]
    with Slots(sinking, 3) as slots:
        slots.join(0, 0)
        found: list[list[Reply]] = [[], []]
        for frame in range(10):
            found[0].append(slots.tick({0: voices[0][frame]})[0])
        slots.join(1, 1)
        for frame in range(40):
            replies = slots.tick({0: voices[0][10 + frame], 1: voices[1][frame]})
            found[0].append(replies[0])
            found[1].append(replies[1])
        saved = slots.snapshot(1)
        slots.restore(2, saved)
        for frame in range(40, 50):
            found[1].append(slots.tick({2: voices[1][frame]})[2])
        for mine, expected in zip(found, alone, strict=True):
            assert [reply.tokens.tolist() for reply in mine] == [reply.tokens.tolist() for reply in expected]
    with Slots(speaker, 1) as slots, pytest.raises(InferenceError, match="--dtype or --sink"):
        slots.restore(0, saved)


def test_the_memory_has_a_say(speaker, make_speaker):
    frames = noise(24)
    without = make_speaker(ttt=False)
    assert not same(talk(speaker, frames, Sampling(greedy=True)), talk(without, frames, Sampling(greedy=True)))


def test_the_seed_decides_the_draws(speaker):
    frames = noise(12)
    assert same(talk(speaker, frames), talk(speaker, frames))
    assert not same(talk(speaker, frames), talk(speaker, frames, seed=1))


def test_starting_over_forgets_everything(speaker):
    with Conversation(speaker, Sampling(greedy=True)) as conversation:
        for frame in noise(9, seed=3):
            conversation.hear(frame)
        conversation.start_over()
        assert conversation.frames == 0
        again = [conversation.hear(frame) for frame in noise(9)]
        assert conversation.frames == 9
    assert same(again, talk(speaker, noise(9), Sampling(greedy=True)))


def test_inference_changes_no_weight(speaker):
    before = {name: tensor.clone() for name, tensor in speaker.model.state_dict().items()}
    talk(speaker, noise(10))
    after = speaker.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (torch.zeros(1919), "1920 samples"),
        (torch.zeros(1, 1920), "1920 samples"),
        (torch.full((1920,), torch.nan), "finite"),
    ],
)
def test_frames_that_cannot_be_heard_are_refused(speaker, frame, complaint):
    with Conversation(speaker) as conversation:
        with pytest.raises(InferenceError, match=complaint):
            conversation.hear(frame)
        assert conversation.frames == 0
