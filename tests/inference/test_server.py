"""The server speaks the protocol of moshi's clients, and what it says is what the conversation says."""

import asyncio

import aiohttp
import numpy as np
import sphn
import torch
from aiohttp.test_utils import TestServer

from ttt_moshi.inference import Conversation, Sampling
from ttt_moshi.inference.server import make_app

SECONDS = 3


def sent_by_a_client() -> list[bytes]:
    """Opus messages of some noise."""
    writer = sphn.OpusStreamWriter(24_000)
    sound = 0.1 * np.random.default_rng(0).standard_normal((SECONDS * 25 // 2, 1920)).astype(np.float32)
    return [message for frame in sound if (message := writer.append_pcm(frame))]


def expected(speaker, messages: list[bytes]) -> tuple[bytes, str]:
    """Sound and text that a conversation answers with, without a server."""
    reader, writer = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
    heard = np.concatenate([reader.append_bytes(message) for message in messages])
    frames = torch.from_numpy(heard[: len(heard) // 1920 * 1920]).split(1920)
    with Conversation(speaker, Sampling(greedy=True)) as conversation:
        replies = [conversation.hear(frame) for frame in frames]
    assert len(replies) > 20 and sum(bool(reply.piece) for reply in replies) > 5
    sound = b"".join(writer.append_pcm(reply.samples.numpy()) for reply in replies)
    return sound, "".join(reply.piece for reply in replies).replace("▁", " ")


async def visit(server: TestServer, messages: list[bytes], sound_bytes: int) -> tuple[bytes, str]:
    """A client that listens until it has got as much sound as it expects."""
    sound, text = b"", ""
    async with aiohttp.ClientSession() as session, session.ws_connect(server.make_url("/api/chat")) as socket:
        assert (await socket.receive(timeout=60)).data == b"\x00"
        async with session.get(server.make_url("/api/chat")) as second:
            assert second.status == 503 and "talking" in await second.text()
        await socket.send_str("not sound")
        await socket.send_bytes(b"")
        for message in messages:
            await socket.send_bytes(b"\x01" + message)
        while len(sound) < sound_bytes:
            message = (await socket.receive(timeout=60)).data
            if message[0] == 1:
                sound += message[1:]
            else:
                assert message[0] == 2
                text += message[1:].decode()
    return sound, text


def ogg_payload(data: bytes) -> bytes:
    """The stream without its page headers, whose serial number is drawn at random."""
    payload, position = b"", 0
    while position < len(data):
        assert data[position : position + 4] == b"OggS"
        segments = data[position + 26]
        sizes = data[position + 27 : position + 27 + segments]
        begin = position + 27 + segments
        position = begin + sum(sizes)
        payload += data[begin:position]
    return payload


def test_visitors_hear_what_the_conversation_says(speaker, make_speaker, tmp_path):
    messages = sent_by_a_client()
    sound, text = expected(make_speaker(), messages)
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>hello</p>")
    (tmp_path / "secret").write_text("secret")

    async def scenario() -> None:
        with Conversation(speaker, Sampling(greedy=True)) as conversation:
            async with TestServer(make_app(conversation, tmp_path / "page")) as server:
                for _ in range(2):  # the second visitor finds no memory of the first
                    got, words = await visit(server, messages, len(sound))
                    assert ogg_payload(got) == ogg_payload(sound)
                    assert text.startswith(words) and len(words) > 10  # the last piece may still be on its way
                async with aiohttp.ClientSession() as session:
                    async with session.get(server.make_url("/")) as page:
                        assert "hello" in await page.text()
                    async with session.get(f"{server.make_url('/')}..%2Fsecret") as page:
                        assert page.status in (403, 404)

    asyncio.run(scenario())
