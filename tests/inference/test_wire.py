"""What a connection may send: audio in Ogg that never becomes sound is not kept without end."""

import struct

import numpy as np
import pytest
import sphn

from ttt_moshi.inference.wire import MAX_SILENT_BYTES, Opus, WireError

PIECE = 8000


def checksum(page: bytes) -> int:
    """Of Ogg (RFC 3533)."""
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found & 0x80000000 else 0)) & 0xFFFFFFFF
    return found


def endless(serial: bytes, number: int) -> bytes:
    """A page in the middle of a packet that ends nowhere."""
    head = b"OggS\0" + bytes([number > 0]) + struct.pack("<q", -1) + serial + struct.pack("<II", 1000 + number, 0)
    page = head + b"\xff" + b"\xff" * 255 + bytes(255 * 255)
    return page[:22] + struct.pack("<I", checksum(page)) + page[26:]


def pieces(data: bytes) -> list[bytes]:
    return [data[place : place + PIECE] for place in range(0, len(data), PIECE)]


def test_a_packet_that_never_ends_is_refused_before_it_fills_the_memory():
    sound = bytes(sphn.OpusStreamWriter(24_000).append_pcm(np.zeros(1920 * 20, np.float32)))
    audio, sent = Opus(24_000), 0
    assert sum(len(audio.decode(piece)) for piece in pieces(sound)) > 0
    with pytest.raises(WireError, match="hold no sound"):
        for number in range(20):
            for piece in pieces(endless(sound[14:18], number)):
                sent += len(piece)
                audio.decode(piece)
    assert sent <= MAX_SILENT_BYTES + 3 * PIECE


def test_two_minutes_of_sound_are_none_of_that():
    writer, audio, heard = sphn.OpusStreamWriter(24_000), Opus(24_000), 0
    noise = np.random.default_rng(0).normal(0, 0.3, 24_000).astype(np.float32)
    for _ in range(120):
        heard += sum(len(audio.decode(piece)) for piece in pieces(bytes(writer.append_pcm(noise))))
    assert heard > 118 * 24_000
