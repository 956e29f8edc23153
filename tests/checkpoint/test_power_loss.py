"""Power loss, replayed: every prefix of the recorded operations, with what was not fsynced dropped, cut or reordered.

The replayer is a small model of a disk. A file's bytes are safe once the file was fsynced; a name (creation, rename,
deletion) is safe once its folder was fsynced. Everything later than that may or may not have happened, in any order
that a file system could have produced it.
"""

import os
import random
import shutil
import sys
from dataclasses import dataclass, field

import pytest

ROOM = os.sep + os.path.join("ttt_moshi", "checkpoint") + os.sep


@dataclass
class Node:
    """A file's bytes (pending writes apart) or a folder's names (pending changes apart)."""

    data: bytearray | None = None
    names: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)


class Recorder:
    """A log of operations that knows which file each descriptor stands for and where in the source it was called."""

    def __init__(self, faults):
        log = self.log = []

        class Recording(faults.Watched):
            def around(self, name, operation, args):
                result = operation(*args)
                if name in ("create", "open_lock"):
                    log.append(("create", args[0], result, site()))
                elif name == "write":
                    log.append(("write", args[0], (bytes(args[1]), args[2]), site()))
                elif name == "rename":
                    log.append(("rename", args[0], args[1], site()))
                elif name in ("truncate", "allocate"):
                    log.append((name, args[0], args[1], site()))
                elif name in ("mkdir", "remove", "rmdir", "sync", "close", "sync_folder"):
                    log.append((name, args[0], None, site()))
                return result

        self.files = Recording()

    def acknowledge(self, step, version):
        self.log.append(("acknowledged", step, version, ""))


def site():
    """The line of the room outside its lowest module that asked for the operation."""
    frame = sys._getframe(2)
    while frame and (ROOM not in frame.f_code.co_filename or frame.f_code.co_filename.endswith("files.py")):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_name}:{frame.f_lineno}"


class Disk:
    """The state of a disk after some operations; `crash` draws one state that a power loss may leave."""

    def __init__(self, root):
        self.root, self.top, self.open = root, Node(), {}

    def apply(self, operation):
        name, first, second, _ = operation
        if name == "mkdir":
            if first.name not in self._seen(first.parent):
                self._change(first.parent, ("link", first.name, Node()))
        elif name in ("create", "open_lock"):
            folder = self._seen(first.parent)
            if first.name not in folder:
                self._change(first.parent, ("link", first.name, Node(data=bytearray())))
            self.open[second] = self._seen(first.parent)[first.name]
        elif name in ("write", "truncate", "allocate"):
            self.open[first].pending.append((name, second))
        elif name == "sync":
            node = self.open[first]
            for change in node.pending:
                node.data = write(node.data, change)
            node.pending = []
        elif name == "rename":
            self._change(first.parent, ("move", first.name, second.name, first.parent == second.parent))
        elif name in ("remove", "rmdir"):
            self._change(first.parent, ("unlink", first.name))
        elif name == "sync_folder" and (first == self.root or self.root in first.parents):
            node = self._node(first)
            node.names, node.pending = names_after(node.names, node.pending), []

    def _change(self, folder, change):
        self._node(folder).pending.append(change)

    def _node(self, path):
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = names_after(node.names, node.pending)[part]
        return node

    def _seen(self, folder):
        node = self._node(folder)
        return names_after(node.names, node.pending)

    def crash(self, target, rng, keep):
        """Write one possible state to `target`. `keep` is the chance that a pending change survived."""
        shutil.rmtree(target, ignore_errors=True)
        materialise(self.top, target, rng, keep)


def names_after(names, changes):
    """Names in a folder after changes; a change whose premise is missing did not happen."""
    result = dict(names)
    for change in changes:
        if change[0] == "link":
            result[change[1]] = change[2]
        elif change[0] == "unlink":
            result.pop(change[1], None)
        elif change[1] in result:
            old = result.get(change[2])
            occupied = old is not None and old.data is None and names_after(old.names, old.pending)
            if not occupied:
                result[change[2]] = result.pop(change[1])
    return result


def write(data, change):
    """A file's bytes after one pending change."""
    name, value = change
    if name == "truncate":
        return data[:value].ljust(value, b"\0")
    if name == "allocate":
        return data.ljust(value, b"\0")
    content, offset = value
    data = data.ljust(offset, b"\0")
    data[offset : offset + len(content)] = content
    return data


def some(changes, rng, keep):
    """Those pending changes that reached the disk: each by chance, in order or not, writes perhaps cut short."""
    chosen = [change for change in changes if rng.random() < keep]
    if 0 < keep < 1 and rng.random() < 0.3:
        rng.shuffle(chosen)
    return chosen


def cut(change, rng, keep):
    if change[0] == "write" and 0 < keep < 1 and rng.random() < 0.5:
        content, offset = change[1]
        return ("write", (content[: rng.randrange(len(content) + 1)], offset))
    return change


def materialise(node, path, rng, keep):
    """Write one possible state of a file or folder."""
    if node.data is not None:
        data = bytearray(node.data)
        for change in some(node.pending, rng, keep):
            data = write(data, cut(change, rng, keep))
        path.write_bytes(data)
        return
    path.mkdir()
    for name, child in names_after(node.names, some(node.pending, rng, keep)).items():
        materialise(child, path / name, rng, keep)


def replay(faults, log, root, scratch, rng, draws, stop_at_first=False, points=1.0):
    """Crash after each operation in several ways; (states tried, what was lost)."""
    disk, acknowledged, states, losses = Disk(root.parent), [], 0, []
    for index, operation in enumerate(log):
        if operation[0] == "acknowledged":
            acknowledged.append(operation[1:3])
        else:
            disk.apply(operation)
        if rng.random() > points and operation[0] != "acknowledged":
            continue
        for keep in [0.0, 1.0, *(rng.random() for _ in range(draws))]:
            disk.crash(scratch, rng, keep)
            states += 1
            try:
                if acknowledged:
                    assert (scratch / root.name).exists(), "the whole folder is lost"
                faults.check_survivors(
                    scratch / root.name, acknowledged, f"power loss after operation {index} {operation[0]}"
                )
            except AssertionError as loss:
                losses.append(str(loss))
                if stop_at_first:
                    return states, losses
    return states, losses


@pytest.fixture
def recording(faults, quick_disk):
    recorder = Recorder(faults)
    root = quick_disk / "disk" / "run"
    root.parent.mkdir()
    faults.scenario(root, recorder.files, recorder.acknowledge)
    return recorder.log, root


def test_the_model_agrees_with_the_real_disk_when_nothing_is_lost(recording, quick_disk):
    log, root = recording
    disk = Disk(root.parent)
    for operation in log:
        if operation[0] != "acknowledged":
            disk.apply(operation)
    disk.crash(quick_disk / "copy", random.Random(0), 1.0)
    advisory = {"journal.jsonl"}  # its appended lines are not recorded
    real = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in advisory}
    copy = quick_disk / "copy" / root.name
    model = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert real == model


def test_some_power_losses(recording, faults, quick_disk):
    log, root = recording
    states, losses = replay(faults, log, root, quick_disk / "state", random.Random(3), draws=1, points=0.25)
    assert not losses, losses[:3]
    assert states > 150


@pytest.mark.slow
def test_five_thousand_power_losses(recording, faults, quick_disk, tally):
    log, root = recording
    states, losses = replay(faults, log, root, quick_disk / "state", random.Random(4), draws=18)
    assert not losses, losses[:3]
    tally("states of the disk after a power loss", states)
    assert states >= 5000


def guards(log):
    """Places in the source that sync something, and are not advisory."""
    return sorted({entry[3] for entry in log if entry[0] in ("sync", "sync_folder")})


def without(log, site):
    """The log of a program that lacks the syncs at `site`."""
    return [entry for entry in log if not (entry[0] in ("sync", "sync_folder") and entry[3] == site)]


@pytest.mark.slow
def test_removing_any_fsync_loses_something(recording, faults, quick_disk, tally):
    """The mutation check: each place that syncs is needed, except for the pointer LATEST, which nobody relies on."""
    log, root = recording
    unneeded = []
    for number, place in enumerate(guards(log)):
        mutant = without(log, place)
        assert len(mutant) < len(log)
        # A few crashes mostly do; where threads ran in a rare order, only many find the one that hurts.
        for points, draws in ((0.3, 1), (1.0, 3)):
            rng = random.Random(number)
            _, losses = replay(faults, mutant, root, quick_disk / "state", rng, draws, True, points=points)
            if losses:
                break
        else:
            unneeded.append(place)
    assert [place.split(":")[1] for place in unneeded] == ["_point_to_newest"], f"{unneeded} of {guards(log)} unnoticed"
    tally("places that fsync or rename left out of the program: noticed", len(guards(log)) - 1)
