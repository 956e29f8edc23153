"""A folder of seventy recordings as people have them: each is used as long as ffmpeg says it is, or left out by name.

Made by ffmpeg's own encoders, which share nothing with this package but the formats. Run by `make test-data`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt_moshi.data.prepare import prepare
from ttt_moshi.data.prepare_one import Outcome

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command"),
]

SECONDS = 6.37

# name, and what ffmpeg is told after the input.
ENCODED: dict[str, str] = {
    "wav-u8.wav": "-c:a pcm_u8 -ar 8000 -ac 1",
    "wav-s16.wav": "-c:a pcm_s16le -ar 24000",
    "wav-s16-44.wav": "-c:a pcm_s16le -ar 44100",
    "wav-s24.wav": "-c:a pcm_s24le -ar 48000",
    "wav-s32.wav": "-c:a pcm_s32le -ar 32000 -ac 1",
    "wav-f32.wav": "-c:a pcm_f32le -ar 16000",
    "wav-f64.wav": "-c:a pcm_f64le -ar 22050",
    "wav-alaw.wav": "-c:a pcm_alaw -ar 8000",
    "wav-mulaw.wav": "-c:a pcm_mulaw -ar 8000 -ac 1",
    "wav-ima.wav": "-c:a adpcm_ima_wav -ar 8000 -ac 1",
    "wav-ms.wav": "-c:a adpcm_ms -ar 16000 -ac 1",
    "wav-gsm.wav": "-c:a libgsm_ms -ar 8000 -ac 1",
    "wav-6000.wav": "-c:a pcm_s16le -ar 6000 -ac 1",
    "wav-96000.wav": "-c:a pcm_s16le -ar 96000",
    "wave64.w64": "-c:a pcm_s16le",
    "rf64.wav": "-c:a pcm_s16le -rf64 always",
    "apple.caf": "-c:a pcm_s16le",
    "aiff.aiff": "-c:a pcm_s16be -ar 22050",
    "aiff24.aif": "-c:a pcm_s24be",
    "sun.au": "-c:a pcm_s16be -ar 16000",
    "sun-mulaw.au": "-c:a pcm_mulaw -ar 8000 -ac 1",
    "flac.flac": "-c:a flac",
    "flac24.flac": "-c:a flac -sample_fmt s32 -ar 48000",
    "cbr.mp3": "-c:a libmp3lame -b:a 64k",
    "cbr-8000.mp3": "-c:a libmp3lame -b:a 16k -ar 8000 -ac 1",
    "vbr.mp3": "-c:a libmp3lame -q:a 5 -ar 44100",
    "cbr-headless.mp3": "-c:a libmp3lame -b:a 64k -write_xing 0",
    "vbr-headless.mp3": "-c:a libmp3lame -q:a 7 -write_xing 0 -id3v2_version 0",
    "layer2.mp2": "-c:a mp2 -ar 32000",
    "phone.m4a": "-c:a aac -ar 16000 -ac 1",
    "fast.m4a": "-c:a aac -movflags +faststart",
    "fragments.mp4": "-c:a aac -movflags +frag_keyframe+empty_moov",
    "lossless.m4a": "-c:a alac",
    "old.mov": "-c:a pcm_s16le -f mov",
    "mobile.3gp": "-c:a aac -ar 16000 -ac 1 -f 3gp",
    "raw.aac": "-c:a aac -f adts",
    "dolby.ac3": "-c:a ac3 -ar 48000",
    "voice.opus": "-c:a libopus -b:a 24k -ac 1",
    "voice.ogg": "-c:a libopus -b:a 32k",
    "browser.webm": "-c:a libopus -b:a 32k",
    "live.webm": "-c:a libopus -b:a 32k -live 1",
    "vorbis.ogg": "-c:a libvorbis -ar 22050",
    "vorbis.oga": "-c:a libvorbis",
    "vorbis.webm": "-c:a libvorbis -ar 44100",
    "matroska.mka": "-c:a flac",
    "matroska.mkv": "-c:a aac",
    "speex.ogg": "-c:a libspeex -ar 16000 -ac 1",
    "windows.wma": "-c:a wmav2 -b:a 64k -ar 44100",
    "windows1.wma": "-c:a wmav1 -b:a 64k -ar 44100",
    "raw.gsm": "-c:a libgsm -ar 8000 -ac 1",
    # Whatever a name says, the content counts.
    "really-mp3.wav": "-c:a libmp3lame -b:a 64k -f mp3",
    "really-wav.mp3": "-c:a pcm_s16le -ar 12000 -f wav",
    "really-flac.ogg": "-c:a flac -ar 16000 -f flac",
    "UPPER.WAV": "-c:a pcm_s16le -ar 11025",
    # Whatever a file system allows.
    "-leading dash.wav": "-c:a pcm_s16le -ar 11000",
    "new\nline.flac": "-c:a flac -ar 12000",
    "separator\u2028.flac": "-c:a flac -ar 13000",
    "日本語 ☎.flac": "-c:a flac -ar 14000",
    "{braces} %s 'quotes'.flac": "-c:a flac -ar 15000",
}


def ffmpeg(*argv: str | bytes | Path) -> bytes:
    done = subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *argv], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def ffmpeg_seconds(path: Path) -> float:
    """How long ffmpeg finds a file, decoded to its end."""
    return len(ffmpeg("-i", f"file:{path}", "-map", "a:0", "-ac", "1", "-ar", "48000", "-f", "s16le", "-")) / 2 / 48000


def voices(seconds: float) -> np.ndarray:
    """Two speakers who take turns, float32 `[samples, 2]` at 24 kHz."""
    t = np.arange(round(seconds * 24000)) / 24000
    tones = [0.3 * np.sin(2 * np.pi * (210 + 90 * c) * t) * (np.sin(2.2 * t + 3 * c) > 0) for c in range(2)]
    return np.stack(tones, axis=1) + np.random.default_rng(0).normal(0, 1e-3, (len(t), 2))


def refused(folder: Path, source: Path) -> dict[str, str]:
    """Writes what cannot be used; the reason by name."""
    sound = voices(3.0)
    whole = source.read_bytes()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("hello " * 1000)
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    flac = (folder / "flac.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (folder / "cut.m4a").write_bytes((folder / "phone.m4a").read_bytes()[:5000])
    (folder / "zeros.mp3").write_bytes(bytes(20000))
    (folder / "playlist.mp3").write_text("#EXTM3U\nvoice.opus\n")
    soundfile.write(folder / "integers.wav", sound * 20000, 24000, subtype="FLOAT")
    soundfile.write(folder / "same on both.wav", sound[:, [0, 0]], 24000)
    soundfile.write(folder / "silent agent.wav", sound * [0, 1], 24000)
    soundfile.write(folder / "moment.wav", sound[:1000], 24000)
    soundfile.write(folder / "surround.wav", np.tile(sound, 3) * np.linspace(0.5, 1, 6), 24000)
    broken = sound.copy()
    broken[100] = np.nan
    soundfile.write(folder / "not finite.wav", broken, 24000, subtype="FLOAT")
    ffmpeg("-f", "lavfi", "-i", "color=size=32x32:duration=1", "-c:v", "mpeg4", folder / "no sound.mp4")
    shutil.copyfile(folder / "vbr.mp3", folder / "vbr copy.mp3")
    return {
        "empty.wav": "not an audio file", "text.wav": "not an audio file", "cut.wav": "ends after",
        "cut.flac": "ends after|cannot be decoded", "cut.m4a": "not an audio file", "zeros.mp3": "not an audio file",
        "playlist.mp3": "not an audio file", "integers.wav": "instead of 1", "same on both.wav": "mono as stereo",
        "silent agent.wav": "silent", "moment.wav": "less than one frame", "surround.wav": "6 channels",
        "not finite.wav": "not finite", "no sound.mp4": "no audio", "vbr.mp3": "vbr copy.mp3 has the same audio",
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("messy") / "calls"
    folder.mkdir()
    source = folder.parent / "source.wav"
    soundfile.write(source, voices(SECONDS), 24000)
    for name, options in ENCODED.items():
        ffmpeg("-i", source, *options.split(), f"file:{folder / name}")
    once = (folder / "voice.ogg").read_bytes()
    (folder / "chained.ogg").write_bytes(once + once)
    (folder / "aiff24.aif").rename(folder / os.fsdecode(b"latin \xe9.aif"))
    return folder, refused(folder, source)


@pytest.fixture(scope="module")
def outcomes(folder, tmp_path_factory) -> dict[str, Outcome]:
    result = prepare(folder[0], tmp_path_factory.mktemp("out") / "data", jobs=1)
    return {outcome.source: outcome for outcome in result.outcomes}


def test_there_are_enough(folder, outcomes):
    found = {os.fsdecode(path.name) for path in folder[0].iterdir()}
    assert found == set(outcomes) and len(found) >= 70  # nothing is passed over in silence


def test_each_is_used_or_refused_by_name(folder, outcomes):
    reasons = folder[1]
    wrong = []
    for name, outcome in outcomes.items():
        if name in reasons:
            if outcome.left_out is None or not re.search(reasons[name], outcome.left_out):
                wrong.append((name, reasons[name], outcome.left_out))
        elif outcome.left_out is not None:
            wrong.append((name, "used", outcome.left_out))
    assert wrong == []


def test_every_length_is_ffmpegs(folder, outcomes):
    wrong = []
    for name, outcome in outcomes.items():
        if outcome.left_out is None:
            expected = ffmpeg_seconds(folder[0] / name)
            if abs(outcome.seconds - expected) > 0.02:
                wrong.append((name, outcome.seconds, expected))
    assert wrong == []
