"""Recordings as people have them: every container, made here by the library's own encoders, decoded to its end."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tests.data.made import encode, place, speech, sphere
from ttt_moshi.data import DataError
from ttt_moshi.data.audio import read_audio, read_blocks, read_info
from ttt_moshi.data.digests import Digests

SECONDS = 20.06


PADDED = 0.13
"""seconds by which a codec that works in frames and has no header to say so may lengthen a recording"""

# name, codec, container, rate, channels, options, seconds that the length may differ
CONTAINERS = [
    ("a.wav", "pcm_u8", "wav", 8000, 1, {}, 0),
    ("a.wav", "pcm_s16le", "wav", 44100, 2, {}, 0),
    ("a.wav", "pcm_s24le", "wav", 48000, 2, {}, 0),
    ("a.wav", "pcm_s32le", "wav", 24000, 1, {}, 0),
    ("a.wav", "pcm_f32le", "wav", 16000, 2, {}, 0),
    ("a.wav", "pcm_f64le", "wav", 24000, 2, {}, 0),
    ("a.wav", "pcm_alaw", "wav", 8000, 2, {}, 0),
    ("a.wav", "pcm_mulaw", "wav", 8000, 1, {}, 0),
    ("a.wav", "adpcm_ima_wav", "wav", 8000, 1, {}, PADDED),
    ("a.wav", "pcm_s16le", "w64", 24000, 2, {}, 0),
    ("a.caf", "pcm_s16le", "caf", 24000, 2, {}, 0),
    ("a.flac", "flac", "flac", 24000, 2, {}, 0),
    ("a.aiff", "pcm_s16be", "aiff", 22050, 2, {}, 0),
    ("a.au", "pcm_s16be", "au", 16000, 2, {}, 0),
    ("a.mp3", "libmp3lame", "mp3", 44100, 2, {}, 0.02),
    ("a.mp3", "libmp3lame", "mp3", 16000, 1, {"mux_write_xing": "0"}, PADDED),
    ("a.mp3", "libmp3lame", "mp3", 22050, 2, {"mux_write_xing": "0", "mux_id3v2_version": "0", "compression_level": "2",
                                              "flags": "+qscale", "global_quality": "472"}, PADDED),
    ("a.m4a", "aac", "ipod", 16000, 1, {}, PADDED),
    ("a.mp4", "aac", "mp4", 44100, 2, {}, PADDED),
    ("a.mov", "alac", "mov", 24000, 2, {}, 0),
    ("a.aac", "aac", "adts", 16000, 1, {}, PADDED),
    ("a.ac3", "ac3", "ac3", 32000, 2, {}, PADDED),
    ("a.opus", "libopus", "opus", 48000, 1, {}, 0.02),
    ("a.ogg", "libopus", "ogg", 48000, 2, {}, 0.02),
    ("a.webm", "libopus", "webm", 48000, 2, {}, 0.02),
    ("a.mka", "pcm_s16le", "matroska", 24000, 2, {}, 0),
    ("a.wma", "wmav2", "asf", 16000, 1, {}, PADDED),
    ("a.amr", "libopencore_amrnb", "amr", 8000, 1, {}, PADDED),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "container", "rate", "channels", "options", "tolerance"), CONTAINERS)
def test_every_container_is_decoded_to_its_end(tmp_path, name, codec, container, rate, channels, options, tolerance):
    samples = speech(SECONDS, rate, channels)
    encode(tmp_path / name, samples, rate, codec, container, **options)
    check(tmp_path / name, samples, rate, tolerance)


def check(path: Path, samples: np.ndarray, rate: int, tolerance: float) -> None:
    """Length, channels, position and content of a decoded file."""
    info = read_info(path)
    audio = read_audio(path)
    assert (info.sample_rate, info.channels) == (rate, len(samples))
    assert audio.shape == (len(samples), info.samples_24k)
    assert abs(info.seconds - samples.shape[1] / rate) <= tolerance
    for decoded, original in zip(audio, samples, strict=True):
        late, fit = place(decoded, 24000, original, rate)
        assert fit > 0.95
        assert abs(late) <= 0.1, "within a tenth of a second of where it was"


def test_sphere_and_raw_gsm(tmp_path):
    samples = speech(SECONDS, 8000, 2)
    sphere(tmp_path / "a.sph", samples, 8000)
    check(tmp_path / "a.sph", samples, 8000, 0)
    mono = samples[:1]
    soundfile.write(tmp_path / "a.gsm", mono[0], 8000, format="RAW", subtype="GSM610")
    check(tmp_path / "a.gsm", mono, 8000, PADDED)
    soundfile.write(tmp_path / "a.wav", mono[0], 8000, subtype="GSM610")
    check(tmp_path / "a.wav", mono, 8000, PADDED)


@pytest.mark.parametrize(("codec", "rate"), [("vorbis", 16000), ("libopus", 48000)])
def test_all_chains_of_an_ogg_are_heard(tmp_path, codec, rate):
    whole = speech(SECONDS, rate, 2)
    cut = rate * 7
    for i, part in enumerate((whole[:, :cut], whole[:, cut:])):
        if codec == "vorbis":
            soundfile.write(tmp_path / f"{i}.ogg", part.T, rate, subtype="VORBIS")
        else:
            encode(tmp_path / f"{i}.ogg", part, rate, codec, "ogg", mux_serial_offset=str(i))
    (tmp_path / "a.ogg").write_bytes((tmp_path / "0.ogg").read_bytes() + (tmp_path / "1.ogg").read_bytes())
    check(tmp_path / "a.ogg", whole, rate, 2 * PADDED)


def test_a_video_is_heard_and_tracks_are_counted(tmp_path):
    encode(tmp_path / "a.mka", speech(1.0, 24000, 2), 24000, "pcm_s16le", "matroska")
    assert read_info(tmp_path / "a.mka").tracks == 1
    with av.open(str(tmp_path / "b.mka"), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=24000, layout="mono") for _ in range(2)]
        for i, stream in enumerate(streams):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, 2400), 1000 * (i + 1), np.int16), format="s16", layout="mono"
            )
            frame.sample_rate = 24000
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    assert read_info(tmp_path / "b.mka").tracks == 2
    assert np.allclose(read_audio(tmp_path / "b.mka"), 1000 / 32768), "the first of them"


@pytest.mark.parametrize("kept", [0.3, 0.7])
@pytest.mark.parametrize(("name", "codec", "container"), [("a.mp4", "aac", "mp4"), ("a.wav", "pcm_s16le", "wav")])
def test_what_was_cut_off_is_refused_where_it_cannot_be_used(tmp_path, name, codec, container, kept):
    path = tmp_path / name
    encode(path, speech(4.0, 24000, 1), 24000, codec, container)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=name):
        read_audio(path)


@pytest.mark.parametrize(("name", "codec", "container"), [("a.mp3", "libmp3lame", "mp3"), ("a.ogg", "libopus", "ogg")])
def test_a_stream_that_ends_early_is_used_as_far_as_it_goes(tmp_path, name, codec, container):
    path = tmp_path / name
    encode(path, speech(8.0, 48000, 1), 48000, codec, container)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = read_info(path)
    assert 2.5 < info.seconds < 6.5
    assert read_audio(path).shape[1] == info.samples_24k


def test_a_hole_in_a_stream_is_named(tmp_path):
    """Leaving it out would shift every later word."""
    path = tmp_path / "a.flac"
    encode(path, speech(8.0, 24000, 1), 24000, "flac", "flac")
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 3000] = bytes(3000)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.flac: \d\.\d+ s are missing after \d"):
        read_audio(path)


def test_names_that_mean_something_to_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.wav", "concat:a.wav", "pipe:.wav", "a\nb.wav", "caf\udce9.wav", "a\u2028b.wav", "%03d.wav"):
        soundfile.write("plain.wav", speech(1.0, 24000, 1)[0], 24000)
        Path("plain.wav").rename(name)
        assert read_info(Path(name)).seconds == 1.0


def test_lists_of_other_files_are_not_followed(tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(1.0, 24000, 1)[0], 24000)
    for name, text in {
        "hls.wav": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.wav\n#EXT-X-ENDLIST\n",
        "concat.wav": "ffconcat version 1.0\nfile a.wav\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="not an audio file"):
            read_info(tmp_path / name)


def write_surround(path: Path) -> None:
    encode(path, speech(2.0, 24000, 6), 24000, "pcm_s16le", "wav")


def write_float_of_integers(path: Path) -> None:
    soundfile.write(path, speech(2.0, 24000, 1)[0] * 20000, 24000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("write", "channels", "peak"), [(write_surround, 6, 0.4), (write_float_of_integers, 1, 8000.0)]
)
def test_every_channel_and_level_comes_through(tmp_path, write: Callable[[Path], None], channels, peak):
    """Judging them is not the decoder's business."""
    write(tmp_path / "a.wav")
    audio = read_audio(tmp_path / "a.wav")
    assert len(audio) == channels
    assert audio.max() == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("kind", ["wav", "mp3"])
def test_what_an_audio_file_is_is_remembered_until_it_changes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("ttt_moshi.data.digests._SETTLED_NS", 0)
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, speech(SECONDS, 24000, 1)[0], 24000)
    first = read_info(path, Digests(tmp_path / "cache"))
    with monkeypatch.context() as context:
        context.setattr("ttt_moshi.data.audio._open", lambda *_: pytest.fail("opened again"))
        assert read_info(path, Digests(tmp_path / "cache")) == first
    soundfile.write(path, speech(2 * SECONDS, 24000, 1)[0], 24000)
    assert read_info(path, Digests(tmp_path / "cache")).seconds == pytest.approx(2 * SECONDS, abs=0.1)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_wav_of_unknown_size_is_read_to_its_end(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", speech(SECONDS, 8000, 1)[0], 8000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:40] + struct.pack("<I", size) + whole[44:])
    assert read_info(tmp_path / "a.wav").seconds == SECONDS
    assert sum(block.shape[1] for block in read_blocks(tmp_path / "a.wav")) == round(SECONDS * 24000)
