"""Reading any rows from any parts at any place of a file, past the page cache or through it."""

import errno
import os
from itertools import pairwise

import pytest
import torch
from blake3 import blake3

from ttt_moshi.checkpoint import CorruptCheckpoint, UnreadableCheckpoint, reading
from ttt_moshi.checkpoint.files import PAGE, Files
from ttt_moshi.checkpoint.reading import Reading, read_all, stream


class Refusing(Files):
    """A file system without direct reads, which says so when opening or only when reading."""

    def __init__(self, when):
        self.when, self.direct, self.buffered = when, set(), 0

    def open(self, path, direct=False):
        if direct and self.when == "open":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = super().open(path, direct)
        (self.direct.add if direct else self.direct.discard)(fd)
        return fd

    def read_into(self, fd, buffer, offset):
        if fd in self.direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.buffered += 1
        return super().read_into(fd, buffer, offset)


def scattered(folder, tensor, cuts, gaps):
    """Write a tensor's rows, cut at `cuts`, into files with odd gaps before each part; its manifest entry."""
    parts, bounds = [], [0, *cuts, len(tensor)]
    for number, (first, last) in enumerate(pairwise(bounds)):
        data = tensor[first:last].numpy().tobytes()
        gap = gaps[number % len(gaps)]
        (folder / f"f{number}").write_bytes(b"x" * gap + data + b"y" * (number % 2))
        place = [gap, gap + len(data)]
        digest = blake3(data).hexdigest()
        parts.append({"file": f"f{number}", "rows": [first, last], "bytes": place, "blake3": digest})
    return {"dtype": "F32", "shape": list(tensor.shape), "parts": parts[::-1]}


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """A tensor of 60 kB in three parts at odd places, read in pieces of one page."""
    monkeypatch.setattr(reading, "PIECE", PAGE)
    tensor = torch.arange(15_000, dtype=torch.float32).view(3000, 5)
    return tensor, scattered(tmp_path, tensor, [1, 1700], [4, 4096, 12_344])


@pytest.mark.parametrize("files", [Files(), Refusing("open"), Refusing("read")], ids=["direct", "open", "read"])
def test_any_rows_come_from_any_parts(tmp_path, entry, files):
    tensor, record = entry
    bounds = [0, 1, 2, 819, 1699, 1700, 1701, 2999, 3000]
    ranges = [(start, stop) for start in bounds for stop in bounds if start < stop]
    readings = [Reading(f"{a}-{b}", record, torch.full((b - a, 5), -1.0), a, b) for a, b in ranges]
    finished = []
    read_all(files, tmp_path, readings, finished.append)
    assert {id(item) for item in finished} == {id(item) for item in readings} and len(finished) == len(readings)
    for (start, stop), item in zip(ranges, readings, strict=True):
        assert torch.equal(item.verified(), tensor[start:stop]), item.name
    made = next(stream(files, tmp_path, [Reading("whole", record, fresh=True)]))
    assert torch.equal(made.verified(), tensor)
    if isinstance(files, Refusing):
        assert files.buffered > 100


def test_checking_gives_the_digest_of_the_whole_tensor(tmp_path, entry):
    tensor, record = entry
    (item,) = stream(Files(), tmp_path, [Reading("w", record)])
    assert item.corruption is None and item.digest == blake3(tensor.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("place", [4, 4097 + 1, 20_000])
def test_damage_in_one_tensor_is_named_and_leaves_the_next_ones_sound(tmp_path, entry, place):
    tensor, record = entry
    other = {**record, "parts": [part for part in record["parts"] if part["file"] == "f0"], "shape": [1, 5]}
    data = bytearray((tmp_path / "f1").read_bytes())
    data[4096 + place] ^= 1
    (tmp_path / "f1").write_bytes(data)
    damaged, sound = stream(Files(), tmp_path, [Reading("bad", record, fresh=True), Reading("good", other, fresh=True)])
    with pytest.raises(CorruptCheckpoint, match="f1: tensor 'bad' does not match its digest"):
        damaged.verified()
    assert torch.equal(sound.verified(), tensor[:1])


def test_a_file_that_ends_early_is_named_with_the_place(tmp_path, entry):
    _, record = entry
    with open(tmp_path / "f2", "r+b") as file:
        file.truncate(30_001)
    (item,) = stream(Files(), tmp_path, [Reading("w", record)])
    with pytest.raises(CorruptCheckpoint, match="f2: tensor 'w': the file ends at byte 30001"):
        item.verified()


def test_trouble_ends_all_readings_and_names_the_file(tmp_path, entry):
    class Forbidden(Files):
        def open(self, path, direct=False):
            raise PermissionError(errno.EACCES, "not yours", str(path))

    with pytest.raises(UnreadableCheckpoint, match=r"f0 cannot be read: not yours"):
        read_all(Forbidden(), tmp_path, [Reading("w", entry[1])])
