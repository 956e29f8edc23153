"""Sound files of many kinds against arithmetic and against one-shot reading and resampling."""

import struct

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_moshi.cli.main import main
from ttt_moshi.data import DataError
from ttt_moshi.data.audio import AudioInfo, read_audio, read_blocks, read_info


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
def test_every_format_becomes_24_khz(tmp_path, write_recording, sound, suffix, channels, rate):
    path = write_recording(tmp_path / f"a{suffix}", 5.3, channels=channels, rate=rate)
    info = read_info(path)
    audio = read_audio(path)
    assert audio.dtype == np.float32 and audio.shape == (channels, info.samples_24k)
    assert abs(info.seconds - 5.3) < 0.1 and abs(audio.shape[1] / 24000 - 5.3) < 0.1
    original = soxr.resample(sound(5.3, channels, rate), rate, 24000).T
    n = min(audio.shape[1], original.shape[1])
    if suffix in (".wav", ".flac"):
        assert np.abs(audio[:, :n] - original[:, :n]).max() < 2e-3
    else:
        correlation = [np.corrcoef(a[:n], b[:n])[0, 1] for a, b in zip(audio, original, strict=True)]
        assert min(correlation) > 0.9


def test_24_khz_is_passed_through_and_reading_is_repeatable(tmp_path, write_recording):
    path = write_recording(tmp_path / "a.wav", 9.5)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert np.array_equal(read_audio(path), expected.T)
    other = write_recording(tmp_path / "b.wav", 9.5, rate=11025)
    assert np.array_equal(read_audio(other), read_audio(other))


def test_blocks_are_bounded(tmp_path, write_recording):
    path = write_recording(tmp_path / "a.wav", 21.0, channels=1, rate=8000)
    sizes = [block.shape[1] for block in read_blocks(path)]
    assert max(sizes) <= 4 * 24000 + 1000 and sum(sizes) == 21 * 24000


@settings(max_examples=200)
@given(st.integers(8000, 48000), st.integers(0, 10**9))
def test_lengths_are_arithmetic(rate, samples):
    info = AudioInfo(rate, 1, samples)
    assert (info.samples_24k - 1) * rate < samples * 24000 <= info.samples_24k * rate or samples == 0
    assert (info.frames - 1) * 1920 < info.samples_24k <= info.frames * 1920 or samples == 0


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 3000), rate=st.sampled_from([8000, 11025, 22050, 32000, 48000]))
def test_short_files_have_the_promised_length(tmp_path_factory, samples, rate):
    path = tmp_path_factory.mktemp("short") / "a.wav"
    soundfile.write(path, np.full(samples, 0.1, np.float32), rate)
    assert read_audio(path).shape == (1, read_info(path).samples_24k)


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg", ".gsm", ".webm"])
def test_a_file_of_no_bytes_is_one_line(tmp_path, capfd, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert main(["data", "prepare", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    told = capfd.readouterr().err
    assert "is an empty file" in told and told.count("\n") == 1, told


def test_an_empty_file_has_no_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 2), np.float32), 24000)
    assert read_audio(tmp_path / "a.wav").shape == (2, 0)


def write_nothing(path):
    path.write_bytes(b"")


def write_text(path):
    path.write_text("not audio")


def write_nan(path):
    sound = np.zeros((24000, 2), np.float32)
    sound[777, 1] = np.nan
    soundfile.write(path, sound, 24000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no audio file at"),
        (lambda path: path.mkdir(), "cannot read .*Is a directory"),
        (write_nothing, "is an empty file"),
        (write_text, "is not an audio file that can be read"),
        (write_nan, "not finite"),
    ],
)
def test_useless_files_are_named(tmp_path, write, message):
    path = tmp_path / "a.wav"
    write(path)
    with pytest.raises(DataError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_wav_cut_short_is_named(tmp_path, write_recording):
    path = write_recording(tmp_path / "a.wav", 2.0)
    whole = path.read_bytes()
    for kept in (len(whole) - 1, len(whole) // 2, 44):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=rf"a\.wav ends after {kept - 44} of the {len(whole) - 44} bytes"):
            read_info(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_does_not_say_its_size(tmp_path, write_recording, size):
    path = write_recording(tmp_path / "a.wav", 2.0)
    whole = path.read_bytes()
    expected = read_audio(path)
    path.write_bytes(whole[:40] + size.to_bytes(4, "little") + whole[44:])
    assert np.array_equal(read_audio(path), expected)


def test_a_flac_cut_short_is_named(tmp_path, write_recording):
    path = write_recording(tmp_path / "a.flac", 20.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.flac (cannot be decoded|ends) after \d"):
        read_audio(path)


def wav_of_bytes(content: bytes, *behind: bytes) -> bytes:
    """Mono, 8 bits, 8 kHz; what stands behind the audio is taken as it is."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(content)) + content + b"".join(behind)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


NOTE = struct.pack("<4sI", b"LIST", 15) + b"INFOICMT\x03\0\0\0hi\0"


@pytest.mark.parametrize(
    ("samples", "behind"),
    [
        (8000, ()),
        (8001, (b"\0",)),
        (8001, ()),  # nobody filled it up
        (8000, (NOTE, b"\0", NOTE, b"\0")),
        (8001, (b"\0", NOTE)),
    ],
)
def test_wavs_that_were_joined_are_refused_whatever_stands_behind_the_audio(tmp_path, samples, behind):
    one = wav_of_bytes(np.random.default_rng(0).integers(0, 255, samples, np.uint8).tobytes(), *behind)
    (tmp_path / "one.wav").write_bytes(one)
    assert read_info(tmp_path / "one.wav").samples == samples
    (tmp_path / "two.wav").write_bytes(2 * one)
    with pytest.raises(DataError, match="several wav files"):
        read_info(tmp_path / "two.wav")


def test_what_else_stands_behind_the_audio_is_no_wav(tmp_path):
    for tail in (bytes(64), b"TAG" + b"RIFF" * 31, struct.pack("<4sI", b"LIST", 1 << 31), b"LI"):
        (tmp_path / "a.wav").write_bytes(wav_of_bytes(bytes(range(200)) * 40) + tail)
        assert read_info(tmp_path / "a.wav").samples == 8000
