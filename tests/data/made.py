"""Recordings and dialogues made on the spot, in any container that libav writes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from ttt_moshi.data.transcripts import MAIN_SPEAKER, OTHER_SPEAKER, Word


def speech(seconds: float, rate: int, channels: int) -> np.ndarray:
    """Bursts of a gliding tone, float32 `[channels, samples]`, another one in every channel."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * (200 + 60 * c + 15 * t) * t) * (np.sin(2.1 * t + c) > 0) for c in range(channels)]
    return (0.4 * np.stack(tones)).astype(np.float32)


def dialogue(seed: int, seconds: float, rate: int) -> tuple[np.ndarray, tuple[Word, ...]]:
    """Two voices that take turns, float32 `[samples, 2]`: a burst a word, pauses, noise, a little of the other one."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 1e-3, (round(seconds * rate), 2))
    words, at, channel = [], 0.5, 0
    while at < seconds - 4:
        for _ in range(int(rng.integers(3, 12))):
            length = rng.uniform(0.15, 0.5)
            inside = slice(round(at * rate), round((at + length) * rate))
            t = np.arange(inside.stop - inside.start) / rate
            samples[inside, channel] += 0.3 * np.sin(2 * np.pi * rng.uniform(120, 900) * t)
            # Times as people and recognisers give them.
            start = at + rng.normal(0, 0.05)
            words.append(
                Word(
                    rng.choice(["hello", "you", "fine"]).item(),
                    max(0, start),
                    start + length,
                    MAIN_SPEAKER if channel == 0 else OTHER_SPEAKER,
                )
            )
            at += length + rng.uniform(0, 0.15)
            if at > seconds - 3:
                break
        at += rng.uniform(0.2, 1.5)
        channel = 1 - channel
    samples += 0.01 * samples[:, ::-1]
    return samples.astype(np.float32), tuple(words)


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, container: str, **options: str) -> None:
    """Writes `[channels, n]` with an encoder of libav. Options of the muxer begin with `mux_`."""
    muxing = {key.removeprefix("mux_"): value for key, value in options.items() if key.startswith("mux_")}
    coding = {key: value for key, value in options.items() if not key.startswith("mux_")}
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    with path.open("wb") as file, av.open(file, "w", format=container, options=muxing) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout, options=coding)
        if codec.startswith("wma"):
            stream.bit_rate = 64_000  # its default does not exist at every rate
        source = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        source.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=stream.frame_size or 1024)
        for frame in [*resampler.resample(source), *resampler.resample(None)]:
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def sphere(path: Path, samples: np.ndarray, rate: int) -> None:
    """NIST SPHERE, 16 bits."""
    data = (samples.T * 32767).astype("<i2").tobytes()
    facts = [f"sample_rate -i {rate}", f"channel_count -i {len(samples)}", f"sample_count -i {samples.shape[1]}"]
    facts += ["sample_n_bytes -i 2", "sample_byte_format -s2 01", "sample_coding -s3 pcm"]
    head = "NIST_1A\n   1024\n" + "".join(fact + "\n" for fact in facts) + "end_head\n"
    path.write_bytes(head.encode().ljust(1024) + data)


def envelope(samples: np.ndarray, rate: int) -> np.ndarray:
    """Loudness in steps of 10 ms."""
    hop = rate // 100
    return np.abs(samples[: len(samples) // hop * hop]).reshape(-1, hop).mean(axis=1)


def place(decoded: np.ndarray, rate: int, original: np.ndarray, original_rate: int) -> tuple[float, float]:
    """Where an original lies in what became of it: seconds, and how well it fits there (a correlation)."""
    loud, wanted = envelope(decoded, rate), envelope(original, original_rate)
    length = min(len(loud), len(wanted))
    lags = range(-20, 21)
    fits = [np.corrcoef(np.roll(loud[:length], -lag), wanted[:length])[0, 1] for lag in lags]
    return lags[int(np.argmax(fits))] / 100, max(fits)
