"""Moshi's own clients talk to our server: `python -m moshi.client` with an audio card of the test's, and its page."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import sys
import threading
import time
import types

import numpy as np
import pytest
import sphn

from tests.inference.test_server import Scene, noise, ogg_payload, one_speaker, opus, play  # noqa: F401
from tests.inference.test_server import expected as expected_answer

FRAMES = 32


class Card:
    """An audio card, as `sounddevice` shows it: a microphone that plays `sound` when `begin` is set, and a loudspeaker
    that keeps what it got, in frames; silent ones are not told from pauses."""

    def __init__(self, sound: np.ndarray) -> None:
        self.played: list[np.ndarray] = []
        self.begin = threading.Event()
        card = self

        class Stream:
            def __init__(self, samplerate, channels, blocksize, callback) -> None:
                assert (samplerate, channels, blocksize) == (24_000, 1, 1920)
                self.callback, self.going = callback, True
                self.thread = threading.Thread(target=self.run, daemon=True)

            def __enter__(self):
                self.thread.start()

            def __exit__(self, *_) -> None:
                self.going = False
                self.thread.join()

        class InputStream(Stream):
            def run(self) -> None:
                card.begin.wait()
                for frame in sound:
                    self.callback(frame[:, None], len(frame), None, None)

        class OutputStream(Stream):
            def run(self) -> None:
                while self.going:
                    frame = np.zeros((1920, 1), np.float32)
                    self.callback(frame, 1920, None, None)
                    if frame.any():
                        card.played.append(frame[:, 0])
                    else:
                        time.sleep(0.1)

        self.module = types.ModuleType("sounddevice")
        self.module.InputStream, self.module.OutputStream = InputStream, OutputStream


@pytest.fixture
def card(monkeypatch):
    card = Card(noise(FRAMES))
    monkeypatch.setitem(sys.modules, "sounddevice", card.module)
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    return card


def test_moshi_s_client_prints_and_plays_the_answer(one_speaker, play, card):  # noqa: F811
    paper, complaints = io.StringIO(), io.StringIO()
    client = importlib.import_module("moshi.client")
    printer = importlib.import_module("moshi.client_utils").RawPrinter(stream=paper, err_stream=complaints)
    sound, text = expected_answer(one_speaker, opus(noise(FRAMES)))
    answer = sphn.OpusStreamReader(24_000).append_bytes(sound)
    wanted = [frame for frame in answer[: len(answer) // 1920 * 1920].reshape(-1, 1920) if frame.any()]

    async def scene(scene: Scene) -> None:
        url = f"ws://{scene.site.host}:{scene.site.port}"
        talking = asyncio.create_task(client.run(printer, argparse.Namespace(url=url)))
        while "ttt_moshi_talking 1.0" not in (await scene.get("/metrics"))[1]:
            await asyncio.sleep(0.1)
        card.begin.set()  # the client does not wait for a place, and who has none is not heard
        while len(card.played) < len(wanted) and not talking.done():
            await asyncio.sleep(0.1)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)

    play(scene)
    assert len(wanted) > 20
    np.testing.assert_array_equal(np.stack(card.played), np.stack(wanted))
    assert text.startswith(paper.getvalue()) and len(paper.getvalue()) > 10  # the last piece may still be on its way
    assert "Lost connection" not in complaints.getvalue()


def test_the_messages_of_moshi_s_page_are_understood(one_speaker, play):  # noqa: F811
    """Its address, its handshake, controls, metadata and pings, between Opus."""
    voice = opus(noise(FRAMES))
    sound, _ = expected_answer(one_speaker, voice)
    query = (
        "?text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&pad_mult=0&text_seed=1&audio_seed=2"
        "&repetition_penalty_context=64&repetition_penalty=1"
    )
    others = [b"\x00\x00\x00", b"\x03\x00", b"\x03\x03", b"\x04{}", b"\x05no", b"\x06"]

    async def scene(scene: Scene) -> None:
        async with scene.client(query) as client:
            for number, message in enumerate(voice):
                await client.socket.send_bytes(others[number % len(others)])
                await client.say([message])
            await client.until(lambda: len(b"".join(client.sound)) >= len(sound))
            assert ogg_payload(b"".join(client.sound)) == ogg_payload(sound)
            assert client.events == []

    play(scene)
