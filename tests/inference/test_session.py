"""A saved conversation goes on bit for bit, in a fresh process too, or is refused."""

import dataclasses
import os
import resource
import signal

import pytest
import torch
from safetensors.torch import load_file

from ttt_moshi.inference import (
    Conversation,
    InferenceError,
    SessionInfo,
    Slots,
    load_session,
    save_session,
    session_info,
)
from ttt_moshi.inference.sessions import Sessions


def noise(frames: int) -> torch.Tensor:
    return 0.1 * torch.randn(frames, 1920, generator=torch.Generator().manual_seed(0))


def test_a_conversation_goes_on_where_it_was_saved(speaker, make_speaker, tmp_path):
    """Beyond attention's window, in the middle of a mini-batch, with draws, in a batch too."""
    frames, cut = noise(70), 47
    with Conversation(speaker, seed=1) as conversation:
        whole = []
        for i, frame in enumerate(frames):
            if i == cut:
                save_session(conversation.snapshot(), speaker.state_id, tmp_path / "session")
            whole.append(conversation.hear(frame))
    other = make_speaker()
    with Conversation(other, seed=77) as conversation:
        for frame in noise(5):  # another conversation was going on
            conversation.hear(frame)
        conversation.restore(load_session(tmp_path / "session", other.state_id))
        assert conversation.frames == cut
        rest = [conversation.hear(frame) for frame in frames[cut:]]
    for a, b in zip(whole[cut:], rest, strict=True):
        assert torch.equal(a.samples, b.samples) and a.piece == b.piece
    with Slots(other, 3) as slots:
        slots.restore(2, load_session(tmp_path / "session", other.state_id))
        for expected, frame in zip(whole[cut:], frames[cut:], strict=True):
            reply = slots.tick({2: frame})[2]
            assert torch.equal(reply.tokens, expected.tokens)
            assert float((reply.samples - expected.samples).abs().max()) <= 1e-5


def test_a_session_is_the_whole_streaming_state_and_no_more(speaker, tmp_path):
    """Attention, memory, codec and generator; of the attention window only what was heard."""
    with Conversation(speaker) as conversation:
        for frame in noise(6):
            conversation.hear(frame)
        save_session(conversation.snapshot(), speaker.state_id, tmp_path / "session")
    tensors = load_file(tmp_path / "session")
    for part in ("memory/W1", "memory/W2", "memory/k", "memory/phase", "kv_cache/cache", "generator//cache"):
        assert any(part in name for name in tensors), part
    assert any(name.startswith("mimi/") and name.endswith("/partial") for name in tensors)
    assert any(name.startswith("mimi/") and name.endswith("/previous") for name in tensors)
    keys = next(t for n, t in tensors.items() if n.startswith("model/transformer") and n.endswith("kv_cache/cache"))
    assert keys.shape[2] == 7  # the initial tokens and six frames
    assert (tmp_path / "session").stat().st_mode & 0o777 == 0o600
    assert session_info(tmp_path / "session") == SessionInfo(speaker.state_id, 6, 0)


@pytest.fixture
def saved(speaker, tmp_path):
    with Conversation(speaker) as conversation:
        for frame in noise(3):
            conversation.hear(frame)
        save_session(conversation.snapshot(), speaker.state_id, tmp_path / "session")
    return tmp_path / "session"


def refused(speaker, path, complaint):
    """Loading is refused, and the conversation goes on as if nobody had tried."""
    replies = []
    for tried in (False, True):
        with Conversation(speaker, seed=2) as conversation:
            if tried:
                with pytest.raises(InferenceError, match=complaint):
                    conversation.restore(load_session(path, speaker.state_id))
            replies.append([conversation.hear(frame).samples for frame in noise(4)])
    assert all(torch.equal(a, b) for a, b in zip(*replies, strict=True))


def test_damage_is_noticed(speaker, saved):
    data = saved.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    for place in (length, length + (len(data) - length) // 2, len(data) - 1, data.index(b'"frames"') + 11):
        flipped = bytearray(data)
        flipped[place] ^= 1
        saved.write_bytes(flipped)
        refused(speaker, saved, "corrupt")
    saved.write_bytes(data[: len(data) // 2])
    refused(speaker, saved, "corrupt")
    saved.write_bytes(b"")
    refused(speaker, saved, "corrupt")
    saved.unlink()
    refused(speaker, saved, "no saved conversation")


def test_another_checkpoint_is_refused(make_speaker, saved):
    refused(make_speaker(state_id="b" * 64), saved, "another|only means something")
    refused(make_speaker(ttt=False), saved, "another form")


def test_an_older_session_survives_a_failed_save(speaker, saved):
    before = saved.read_bytes()
    with Conversation(speaker) as conversation:
        conversation.hear(noise(1)[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            # No file may grow beyond a quarter of a session: what a full disk does, the kernel does here.
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 4, hard))
            with pytest.raises(OSError, match=str(saved)):
                save_session(conversation.snapshot(), speaker.state_id, saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_generate_goes_on_in_a_fresh_process(trained, recording, tmp_path, warm):
    """Two halves with a saved session between equal the whole, sample by sample."""
    import soundfile

    sound, rate = soundfile.read(recording)
    size = 1920 * round(0.08 * rate) // 1920  # one frame at the file's rate
    cut = 31 * size
    soundfile.write(tmp_path / "first.wav", sound[:cut], rate)
    soundfile.write(tmp_path / "second.wav", sound[cut : 60 * size], rate)
    soundfile.write(tmp_path / "whole.wav", sound[: 60 * size], rate)

    def generate(name: str, *options: str) -> None:
        command = ["-m", "ttt_moshi", "generate", "--checkpoint_dir", trained, "--input", tmp_path / f"{name}.wav"]
        done = warm.run([*command, "--out", tmp_path / f"{name}.out.wav", *options])
        assert done.returncode == 0, done.stderr

    session = str(tmp_path / "session")
    generate("whole")
    generate("first", "--save_session", session)
    generate("second", "--resume_session", session)
    parts = [soundfile.read(tmp_path / f"{name}.out.wav")[0] for name in ("first", "second")]
    whole, _ = soundfile.read(tmp_path / "whole.out.wav")
    assert (whole[: len(parts[0]), 0] == parts[0][:, 0]).all()
    assert (whole[len(parts[0]) :, 0] == parts[1][:, 0]).all()
    assert abs(whole[:, 0]).max() > 0.001


def test_a_session_says_what_its_memory_had(speaker, tmp_path):
    """What was measured before it was saved, vouched for by the digest; headers that make no sense are corrupt."""
    path = tmp_path / "x.session"
    with Slots(speaker, 1, watched=True) as slots:
        slots.join(0, seed=0)
        for frame in noise(20):
            slots.tick({0: frame})
        memory = slots.memory(0)
        save_session(dataclasses.replace(slots.snapshot(0), memory=memory), speaker.state_id, path)
    assert memory.keys() == {0, 1} and all(own.written > 0 and own.loss > 0 for own in memory.values())
    assert session_info(path).memory == load_session(path, speaker.state_id).memory == memory
    data = path.read_bytes()
    for old, new in ((b'\\"written\\"', b'\\"forgot!\\"'), (b'"frames":"20"', b'"frames":"2x"')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        (listed,) = Sessions(tmp_path).listed()
        assert listed.info is None
        refused(speaker, path, "corrupt")


def test_what_a_killed_process_left_is_tidied_up(tmp_path):
    """Not what somebody may be writing, and nothing else."""
    sessions = Sessions(tmp_path)
    names = ("kept.session", ".old.session.0badcafe.tmp", ".new.session.0badcafe.tmp", "notes.tmp", ".notes.tmp")
    for name in names:
        (tmp_path / name).touch()
        if "new" not in name:
            os.utime(tmp_path / name, (0, 0))
    sessions.tidy()
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {".old.session.0badcafe.tmp"}
    Sessions(tmp_path / "nowhere").tidy()
