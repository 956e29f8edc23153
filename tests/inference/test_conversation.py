"""One frame in, one frame out, and it is the trained model that talks."""

import pytest
import torch

from ttt_moshi.inference import Conversation, InferenceError, Reply, Sampling


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
    silent = (model.text_padding_token_id, model.end_of_text_padding_id)
    pieces = ["" if t in silent else speaker.tokenizer.id_to_piece(t) for t in codes[0, 0].tolist()]
    assert [reply.piece for reply in replies] == pieces
    with torch.no_grad(), speaker.mimi.streaming(1):
        sound = torch.cat([speaker.mimi.decode(codes[:, 1 : 1 + dep_q, t : t + 1]) for t in range(30)], dim=-1)
    assert torch.equal(torch.cat([reply.samples for reply in replies]), sound[0, 0])


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
