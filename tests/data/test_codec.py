"""The codec: one long encoding in bounded pieces, and silence."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.data import Codec, DataError


def one_shot(mimi, audio: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return mimi.encode(torch.from_numpy(audio)[:, None])


def test_chunks_equal_one_long_encoding(codec, mimi, sound):
    audio = sound(13.03).T  # 163 frames: four chunks, sixteen attention windows
    codes = codec.encode([audio], 2)
    expected = one_shot(mimi, audio)
    assert codes.shape == (2, 8, 163)
    assert torch.equal(codes.long(), expected)
    assert all(len(row.unique()) > 4 for row in expected.flatten(0, 1)), "a fixture whose codes say nothing"


def test_the_moshi_package_alone_does_not_chunk_exactly(mimi, sound):
    """Why the codec widens the ring caches: as they are, a chunk overwrites what it still has to look at."""
    audio = torch.from_numpy(sound(13.03).T[:, : 160 * 1920].copy())[:, None]
    with torch.no_grad(), mimi.streaming(2):
        pieces = [mimi.encode(chunk) for chunk in audio.split(5 * 1920, dim=-1)]
    assert not torch.equal(torch.cat(pieces, -1), one_shot(mimi, audio[:, 0].numpy()))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=6), st.sampled_from([1, 2]))
def test_block_sizes_do_not_matter(codec, sound, sizes, channels):
    audio = sound(4.0, channels).T[:, : max(1, sum(sizes))]
    blocks = np.split(audio, np.cumsum(sizes)[:-1], axis=1)
    assert torch.equal(codec.encode(blocks, channels), codec.encode([audio], channels))


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (1919, 1), (1920, 1), (1921, 2), (50 * 1920, 50), (0, 0)])
def test_the_last_frame_is_filled_up(codec, sound, samples, frames):
    audio = sound(5.0, 1).T
    codes = codec.encode([audio[:, :samples]], 1)
    assert codes.shape == (1, 8, frames)
    padded = np.concatenate([audio[:, :samples], np.zeros((1, frames * 1920 - samples), np.float32)], 1)
    assert torch.equal(codes, codec.encode([padded], 1))


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 64 * 1920), min_size=1, max_size=12), st.randoms())
def test_the_codes_of_a_short_recording_do_not_depend_on_its_company(codec, sound, samples, random):
    sounds = [sound(6.0, 1, seed=i)[:length, 0] for i, length in enumerate(samples)]
    together = codec.encode_short(sounds)
    alone = [codec.encode_short([each])[0] for each in sounds]
    order = random.sample(range(len(sounds)), len(sounds))
    shuffled = dict(zip(order, codec.encode_short([sounds[i] for i in order]), strict=True))
    for i, codes in enumerate(together):
        assert codes.shape == (8, -(-samples[i] // 1920))
        assert torch.equal(codes, alone[i]) and torch.equal(codes, shuffled[i])


def test_short_recordings_have_the_codes_of_one_encoding(codec, mimi, sound):
    """Neither the neighbours nor the silence behind a sound are heard in it."""
    sounds = [sound(seconds, 1, seed=i)[:, 0] for i, seconds in enumerate((0.3, 1.0, 1.04, 2.5, 5.12, 0.07, 3.3, 1.1))]
    for one, codes in zip(sounds, codec.encode_short(sounds), strict=True):
        filled = np.pad(one, (0, -len(one) % 1920))
        assert torch.equal(codes.long(), one_shot(mimi, filled[None])[0])


def test_what_is_too_long_or_too_short_to_be_encoded_side_by_side(codec, sound):
    (nothing,) = codec.encode_short([np.zeros(0, np.float32)])
    assert nothing.shape == (8, 0) and codec.encode_short([]) == []
    with pytest.raises(ValueError, match="65 frames"):
        codec.encode_short([sound(5.2, 1)[:, 0]])


def test_progress_counts_frames(codec, sound):
    seen = []
    codec.encode([sound(9.0, 1).T], 1, seen.append)
    assert seen == [50, 100, 113]


def test_silence_is_a_slice_of_one_endless_encoding(codec, mimi):
    endless = one_shot(mimi, np.zeros((1, 400 * 1920), np.float32))[0]
    assert torch.equal(codec.silence(0, 400).long(), endless)
    assert torch.equal(codec.silence(37, 5).long(), endless[:, 37:42])
    assert torch.equal(codec.silence(390, 10).long(), endless[:, 390:400])
    assert not torch.equal(endless[:, :1].expand(-1, 400), endless), "a fixture whose silence is constant proves little"


def test_fingerprint_follows_what_codes_depend_on(codec, mimi, other_mimi, mimi_config):
    assert Codec(mimi, mimi_config).fingerprint == codec.fingerprint
    assert Codec(other_mimi, mimi_config).fingerprint != codec.fingerprint
    assert Codec(mimi, {**mimi_config, "frame_rate": 12}).fingerprint != codec.fingerprint
    mimi.set_num_codebooks(4)
    try:
        assert Codec(mimi, mimi_config).fingerprint != codec.fingerprint
    finally:
        mimi.set_num_codebooks(8)


def test_a_codec_of_another_rate_is_refused(mimi, monkeypatch):
    monkeypatch.setattr(mimi, "_sample_rate", 16000)
    with pytest.raises(DataError, match="16000 Hz"):
        Codec(mimi)
