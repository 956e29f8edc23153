"""Recordings as people have them, whole and broken, each with what must become of it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile

from tests.data.made import encode, sphere

SECONDS = 6.37
RATE = 24000


@dataclass(frozen=True)
class Sound:
    """A file and the right answer to it."""

    name: str
    write: Callable[[Path], None]
    answer: str = "used"
    """used, told (used, and what is wrong with it is said) or refused"""
    says: str = ""
    """a pattern that the line about it must have"""
    seconds: float = SECONDS
    tolerance: float = 0.13
    """seconds by which codecs that work in frames may lengthen a recording, where no header says so"""
    channels: int = 2


def voices(rate: int = RATE, channels: int = 2, seconds: float = SECONDS, seed: int = 0) -> np.ndarray:
    """Two speakers who take turns, float32 `[channels, samples]`."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * (210 + 90 * c) * t) * (np.sin(2.2 * t + 3 * c) > 0) for c in range(channels)]
    return (np.stack(tones) + np.random.default_rng(seed).normal(0, 1e-3, (channels, len(t)))).astype(np.float32)


# name, codec, container, rate, channels, options
ENCODED: list[tuple[str, str, str, int, int, dict[str, str]]] = [
    ("u8.wav", "pcm_u8", "wav", 8000, 1, {}),
    ("s16.wav", "pcm_s16le", "wav", 24000, 2, {}),
    ("s16-44.wav", "pcm_s16le", "wav", 44100, 2, {}),
    ("s24.wav", "pcm_s24le", "wav", 48000, 2, {}),
    ("s32.wav", "pcm_s32le", "wav", 32000, 1, {}),
    ("f32.wav", "pcm_f32le", "wav", 16000, 2, {}),
    ("f64.wav", "pcm_f64le", "wav", 22050, 2, {}),
    ("alaw.wav", "pcm_alaw", "wav", 8000, 2, {}),
    ("mulaw.wav", "pcm_mulaw", "wav", 8000, 1, {}),
    ("ima.wav", "adpcm_ima_wav", "wav", 8000, 1, {}),
    ("microsoft.wav", "adpcm_ms", "wav", 16000, 1, {}),
    ("6000.wav", "pcm_s16le", "wav", 6000, 1, {}),
    ("96000.wav", "pcm_s16le", "wav", 96000, 2, {}),
    ("rf64.wav", "pcm_s16le", "wav", 24000, 2, {"mux_rf64": "always"}),
    ("wave64.w64", "pcm_s16le", "w64", 24000, 2, {}),
    ("apple.caf", "pcm_s16le", "caf", 24000, 2, {}),
    ("aiff.aiff", "pcm_s16be", "aiff", 22050, 2, {}),
    ("aiff24.aif", "pcm_s24be", "aiff", 24000, 2, {}),
    ("sun.au", "pcm_s16be", "au", 16000, 2, {}),
    ("sun-mulaw.snd", "pcm_mulaw", "au", 8000, 1, {}),
    ("flac16.flac", "flac", "flac", 24000, 2, {}),
    ("flac48.flac", "flac", "flac", 48000, 2, {}),
    ("cbr.mp3", "libmp3lame", "mp3", 44100, 2, {}),
    ("cbr-8000.mp3", "libmp3lame", "mp3", 8000, 1, {}),
    ("cbr-headless.mp3", "libmp3lame", "mp3", 16000, 2, {"mux_write_xing": "0"}),
    ("vbr.mp3", "libmp3lame", "mp3", 44100, 2, {"flags": "+qscale", "global_quality": "472"}),
    ("vbr-headless.mp3", "libmp3lame", "mp3", 22050, 2, {"mux_write_xing": "0", "mux_id3v2_version": "0",
                                                        "flags": "+qscale", "global_quality": "472"}),
    ("layer2.mp2", "mp2", "mp2", 32000, 2, {}),
    ("phone.m4a", "aac", "ipod", 16000, 1, {}),
    ("fast.m4a", "aac", "ipod", 44100, 2, {"mux_movflags": "faststart"}),
    ("fragments.mp4", "aac", "mp4", 44100, 2, {"mux_movflags": "frag_keyframe+empty_moov"}),
    ("lossless.m4b", "alac", "ipod", 24000, 2, {}),
    ("old.mov", "pcm_s16le", "mov", 24000, 2, {}),
    ("mobile.3gp", "aac", "3gp", 16000, 1, {}),
    ("raw.aac", "aac", "adts", 16000, 1, {}),
    ("dolby.ac3", "ac3", "ac3", 48000, 2, {}),
    ("voice.opus", "libopus", "opus", 48000, 1, {}),
    ("talk.ogg", "libopus", "ogg", 48000, 2, {}),
    ("browser.webm", "libopus", "webm", 48000, 2, {}),
    ("live.webm", "libopus", "webm", 48000, 2, {"mux_live": "1"}),
    ("matroska.mka", "pcm_s16le", "matroska", 24000, 2, {}),
    ("film.mkv", "aac", "matroska", 48000, 2, {}),
    ("windows.wma", "wmav2", "asf", 44100, 2, {}),
    ("windows1.wma", "wmav1", "asf", 44100, 2, {}),
    ("radio.amr", "libopencore_amrnb", "amr", 8000, 1, {}),
    # Whatever a name says, the content counts.
    ("really-mp3.wav", "libmp3lame", "mp3", 24000, 2, {}),
    ("really-wav.mp3", "pcm_s16le", "wav", 12000, 2, {}),
    ("really-flac.ogg", "flac", "flac", 16000, 2, {}),
    ("UPPER.WAV", "pcm_s16le", "wav", 11025, 2, {}),
    # Whatever a file system allows.
    ("-leading dash.wav", "pcm_s16le", "wav", 11000, 2, {}),
    ("new\nline.flac", "flac", "flac", 12000, 2, {}),
    ("separator\u2028.flac", "flac", "flac", 13000, 2, {}),
    ("日本語 ☎.flac", "flac", "flac", 14000, 2, {}),
    ("{braces} %s 'quotes'.flac", "flac", "flac", 15000, 2, {}),
    (os.fsdecode(b"latin \xe9.wav"), "pcm_s16le", "wav", 17000, 2, {}),
]  # fmt: skip


def encoded(name: str, codec: str, container: str, rate: int, channels: int, options: dict[str, str]) -> Sound:
    says = "mono: taken as Moshi's voice" if channels == 1 else "" if rate == RATE else f"resampled from {rate} Hz"
    return Sound(
        name,
        lambda path: encode(path, voices(rate, channels), rate, codec, container, **options),
        says=says,
        channels=channels,
    )


def floats(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """A writer of changed voices in 32-bit floats, `[channels, samples]`."""
    return lambda path: soundfile.write(path, change(voices()).T, RATE, subtype="FLOAT", format="WAV")


def wav(path: Path) -> None:
    soundfile.write(path, voices().T, RATE, format="WAV")


def softer(path: Path) -> None:
    """The same bytes whenever it is called, unlike floats, whose header has the time."""
    soundfile.write(path, 0.7 * voices().T, RATE, format="WAV")


def flac(path: Path) -> None:
    soundfile.write(path, voices().T, RATE, format="FLAC")


def half(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Only the beginning of a file arrived."""

    def cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def twice_over(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Somebody joined two files with `cat`."""

    def join(path: Path) -> None:
        write(path)
        path.write_bytes(2 * path.read_bytes())

    return join


def hole(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """A stretch in the middle became zeros."""

    def spoil(path: Path) -> None:
        write(path)
        content = bytearray(path.read_bytes())
        middle, size = len(content) // 2, len(content) // 6
        content[middle : middle + size] = bytes(size)
        path.write_bytes(content)

    return spoil


def by(codec: str, container: str, rate: int = 48000, **options: str) -> Callable[[Path], None]:
    return lambda path: encode(path, voices(rate), rate, codec, container, **options)


def chained(path: Path) -> None:
    by("libopus", "ogg")(path)
    path.write_bytes(2 * path.read_bytes())


def of_unknown_size(path: Path) -> None:
    """As programs write that stream into a pipe."""
    wav(path)
    content = path.read_bytes()
    path.write_bytes(content[:40] + struct.pack("<I", 0xFFFFFFFF) + content[44:])


def with_more_chunks(path: Path) -> None:
    """Notes before and after the audio."""
    wav(path)
    content = path.read_bytes()
    notes = b"LIST" + struct.pack("<I", 15) + b"INFOICMT\x03\0\0\0hi\0" + b"\0"
    path.write_bytes(content[:12] + notes + content[12:] + notes)


def with_picture(path: Path, late: float = 0.0) -> None:
    """A telephone's film: the picture is not looked at. The sound begins so many seconds after it."""
    with path.open("wb") as file, av.open(file, "w", format="mp4") as out:
        video = out.add_stream("mpeg4", rate=10, options={"qscale": "31"})
        video.width = video.height = 32
        audio = out.add_stream("aac", rate=48000, layout="stereo")
        for _ in range(round(10 * SECONDS)):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        out.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(voices(48000), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        resampler = av.AudioResampler("fltp", "stereo", 48000, frame_size=1024)
        at = round(late * 48000)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts, piece.time_base = at, Fraction(1, 48000)
            at += piece.samples
            out.mux(audio.encode(piece))
        out.mux(audio.encode(None))


def only_picture(path: Path) -> None:
    with path.open("wb") as file, av.open(file, "w", format="mp4") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        out.mux(video.encode(None))


def not_finite(samples: np.ndarray) -> np.ndarray:
    samples[0, 100] = np.nan
    return samples


def mains(samples: np.ndarray) -> np.ndarray:
    return 0.2 * samples + 0.3 * np.sin(2 * np.pi * 50 * np.arange(samples.shape[1]) / RATE)


def one_microphone(samples: np.ndarray) -> np.ndarray:
    """Both voices on both channels, one a little softer, with noise of their own: a stereo microphone in a room."""
    both = samples.sum(axis=0)
    return np.stack([both, 0.8 * both]) + np.random.default_rng(1).normal(0, 1e-4, samples.shape)


def gsm(path: Path) -> None:
    soundfile.write(path, voices(8000, 1)[0], 8000, format="RAW", subtype="GSM610")


def vorbis(path: Path) -> None:
    soundfile.write(path, voices(16000).T, 16000, format="OGG", subtype="VORBIS")


SOUNDS: list[Sound] = [
    *(encoded(*row) for row in ENCODED),
    Sound("raw.gsm", gsm, says="mono", channels=1),
    Sound("telephone.sph", lambda path: sphere(path, voices(8000), 8000), says="resampled from 8000 Hz"),
    Sound("vorbis.oga", vorbis, says="resampled from 16000 Hz"),
    Sound("chained.ogg", chained, seconds=2 * SECONDS),
    Sound("into a pipe.wav", of_unknown_size, says="rewritten|copied"),
    Sound("notes.wav", with_more_chunks),
    Sound("film.mp4", with_picture),
    Sound("late sound.mp4", partial(with_picture, late=1.5), "told", r"sound begins 1\.\d+ s after its picture"),
    # Used, and said what is wrong.
    Sound("clipped.wav", floats(lambda x: np.clip(12 * x, -1, 1)), "told", "cut off at full scale in"),
    Sound("soft.wav", floats(lambda x: 0.003 * x), "told", "very quiet"),
    Sound("constant.wav", floats(lambda x: x + np.float32([[0.3], [0]])), "told", "constant offset of 0.3"),
    Sound("mains.wav", floats(mains), "told", "hum of 50 Hz"),
    Sound("silent user.wav", floats(lambda x: x * [[1], [0]]), "told", "the user's channel is silent"),
    Sound("cut.mp3", half(by("libmp3lame", "mp3")), "told", r"ends \d\.\d+ s earlier than", SECONDS / 2, 0.5),
    Sound("cut.ogg", half(by("libopus", "ogg")), "told", "no end mark", SECONDS / 2, 0.5),
    Sound("cut.webm", half(by("libopus", "webm")), "told", r"ends \d\.\d+ s earlier than", SECONDS / 2, 0.5),
    # Refused by name.
    Sound("empty.wav", Path.touch, "refused", "is an empty file"),
    Sound("text.wav", lambda path: path.write_text("hello " * 1000), "refused", "not an audio file"),
    Sound("two in one.wav", twice_over(wav), "refused", "several wav files"),
    Sound("two in one, with notes.wav", twice_over(with_more_chunks), "refused", "several wav files"),
    Sound("two in one.flac", twice_over(flac), "refused", "goes on to|cannot be decoded"),
    Sound("zeros.mp3", lambda path: path.write_bytes(bytes(20000)), "refused", "not an audio file"),
    Sound("playlist.mp3", lambda path: path.write_text("#EXTM3U\ntalk.ogg\n"), "refused", "not an audio file"),
    Sound("cut.wav", half(wav), "refused", "ends after"),
    Sound("cut.flac", half(flac), "refused", "ends after|cannot be decoded"),
    Sound("cut.wma", half(by("wmav2", "asf", 44100)), "refused", "cannot be decoded after"),
    Sound("cut.m4a", half(by("aac", "ipod")), "refused", "not an audio file"),
    Sound("cut fast.m4a", half(by("aac", "ipod", mux_movflags="faststart")), "refused", "cannot be decoded|ends"),
    Sound("hole.flac", hole(flac), "refused", "s are missing after"),
    Sound("hole.mp3", hole(by("libmp3lame", "mp3")), "refused", "s are missing after|cannot be decoded after"),
    Sound("hole.ogg", hole(by("libopus", "ogg")), "refused", "s are missing after|cannot be decoded after"),
    Sound("hole.webm", hole(by("libopus", "webm")), "refused", "s are missing after|cannot be decoded after"),
    Sound("hole.aac", hole(by("aac", "adts")), "refused", "s are missing after|cannot be decoded after"),
    Sound("integers.wav", floats(lambda x: 20000 * x), "refused", "instead of 1: integers"),
    Sound("same on both.wav", floats(lambda x: x[[0, 0]]), "refused", "mono as stereo"),
    Sound("one microphone.wav", floats(one_microphone), "refused", "mono as stereo"),
    Sound("silent agent.wav", floats(lambda x: x * [[0], [1]]), "refused", "Moshi's channel is silent"),
    Sound("not finite.wav", floats(not_finite), "refused", "not finite"),
    Sound("moment.wav", floats(lambda x: x[:, :1000]), "refused", "less than one frame"),
    Sound("surround.wav", floats(lambda x: np.tile(x, (3, 1)) * np.linspace(0.5, 1, 6)[:, None]), "refused",
          "6 channels: `--channels 1,2`"),
    Sound("only picture.mp4", only_picture, "refused", "no audio"),
    Sound("twice.wav", softer, says="rewritten|copied"),
    Sound("twice again.wav", softer, "refused", "twice again.wav has the same|has the same audio"),
]  # fmt: skip
