"""Damage of every kind, anywhere in a checkpoint: all of it is found, and named by file and tensor."""

import json
import random
import shutil

import pytest
import torch

from ttt_moshi.checkpoint import (
    CheckpointStore,
    CorruptCheckpoint,
    ForeignCheckpoint,
    NoCheckpoint,
    read_manifest,
    verify,
)


@pytest.fixture
def checkpoint(faults, quick_disk):
    """Two checkpoints of the same layout; the newer one is to be damaged."""
    with CheckpointStore(quick_disk / "c") as store:
        for step in (1, 2):
            faults.save_one(store, step, 0, "full", faults.contents(step, 0))
    return store.path(2)


def files_of(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def regions(path):
    """(file, tensor, begin, end) for every byte of a checkpoint."""
    manifest = read_manifest(path)
    for file in files_of(path):
        size = (path / file).stat().st_size
        parts = [
            (part["bytes"], name)
            for name, entry in [*manifest["tensors"].items(), *manifest["exports"].get(file, {}).items()]
            for part in entry["parts"]
            if part["file"] == file
        ]
        start = min((begin for (begin, _), _ in parts), default=size)
        yield file, "", 0, start
        for (begin, end), name in parts:
            yield file, name, begin, end


def found(report, file, tensor):
    return any(problem.file == file and tensor in (problem.tensor, "") for problem in report.problems)


def flip_bits(checkpoint, rng, each):
    """Flip `each` random bits in every region, one at a time; how many flips."""
    flips = 0
    for file, tensor, begin, end in list(regions(checkpoint)):
        sound = (checkpoint / file).read_bytes()
        for _ in range(each):
            place = rng.randrange(begin, end)
            data = bytearray(sound)
            data[place] ^= 1 << rng.randrange(8)
            (checkpoint / file).write_bytes(data)
            report = verify(checkpoint)
            assert found(report, file, tensor), f"{file}, tensor {tensor!r}, byte {place}: {report.text()}"
            if tensor:
                assert any(problem.tensor == tensor for problem in report.problems), report.text()
            flips += 1
        (checkpoint / file).write_bytes(sound)
    assert verify(checkpoint).ok
    return flips


def cut_and_blank(checkpoint, rng, each):
    """Truncate, lengthen, blank and scramble every file at record edges and at random; how many."""
    edges, count = {}, 0
    for file, _, begin, end in regions(checkpoint):
        edges.setdefault(file, set()).update({begin, end, end - 1, begin + 1})
    for file, places in edges.items():
        sound = (checkpoint / file).read_bytes()
        size = len(sound)
        cuts = [place for place in sorted(places) if place < size] + [rng.randrange(size) for _ in range(each)]
        damaged = [sound[:place] for place in cuts] + [sound + b"\0", sound + sound]
        for _ in range(each):
            begin = rng.randrange(size)
            end = min(size, begin + rng.choice([1, 16, 512, 4096]))
            damaged.append(sound[:begin] + bytes(end - begin) + sound[end:])
            other = rng.randrange(size)
            moved = bytearray(sound)
            moved[begin:end] = sound[other : other + end - begin].ljust(end - begin, b"x")
            damaged.append(bytes(moved))
        for data in damaged:
            if data == sound:
                continue
            (checkpoint / file).write_bytes(data)
            assert found(verify(checkpoint), file, ""), f"{file}: {len(data)} of {size} bytes"
            count += 1
        (checkpoint / file).write_bytes(sound)
    return count


def test_some_flipped_bits(checkpoint):
    assert flip_bits(checkpoint, random.Random(1), each=6) > 60


def test_some_cuts_and_blanks(checkpoint):
    assert cut_and_blank(checkpoint, random.Random(2), each=5) > 80


@pytest.mark.slow
def test_two_thousand_corruptions(checkpoint, tally):
    rng = random.Random(3)
    count = flip_bits(checkpoint, rng, each=150) + cut_and_blank(checkpoint, rng, each=80)
    tally("bits flipped, files cut, lengthened, blanked and scrambled: found and named", count)
    assert count >= 2000


def test_every_missing_extra_and_foreign_file_is_named(checkpoint):
    other = checkpoint.with_name("checkpoint_000001")
    for file in files_of(checkpoint):
        sound = (checkpoint / file).read_bytes()
        (checkpoint / file).unlink()
        if file == "manifest.json":
            with pytest.raises(ForeignCheckpoint, match=r"has no manifest.json"):
                verify(checkpoint)
        else:
            assert found(verify(checkpoint), file, ""), f"missing {file}"
        foreign = (other / file).read_bytes()
        (checkpoint / file).write_bytes(foreign)
        if file == "manifest.json":
            with pytest.raises(ForeignCheckpoint, match="holds the manifest of step 1"):
                verify(checkpoint)
        elif foreign != sound:
            assert not verify(checkpoint).ok, f"{file} of another step"
        (checkpoint / file).write_bytes(sound)
    extra = "resume/shard_00001_of_00002.safetensors"
    shutil.copy(checkpoint / "resume/shard_00000_of_00001.safetensors", checkpoint / extra)
    report = verify(checkpoint)
    assert [problem.file for problem in report.problems] == [extra] and not report.corrupt


def test_a_manifest_of_another_step_is_refused_even_if_all_its_digests_agree(checkpoint):
    renamed = checkpoint.with_name("checkpoint_000007")
    shutil.copytree(checkpoint, renamed)
    with pytest.raises(ForeignCheckpoint, match="holds the manifest of step 2"):
        verify(renamed)
    store = CheckpointStore(checkpoint.parent, log=lambda line: None)
    assert store.newest_valid() == 2


def forge(path, change):
    """Rewrite a manifest with a digest of its own that agrees, as a careless tool might."""
    from ttt_moshi.checkpoint.manifest import render

    manifest = read_manifest(path)
    change(manifest)
    (path / "manifest.json").write_bytes(render(manifest))


def test_a_manifest_that_lies_about_its_tensors_is_found(checkpoint):
    sound = (checkpoint / "manifest.json").read_bytes()
    entry = read_manifest(checkpoint)["tensors"]["param/w"]

    def moved(manifest):
        manifest["tensors"]["param/w"]["parts"][0]["bytes"] = [entry["parts"][0]["bytes"][0] + 4096, 8192]

    def fewer_rows(manifest):
        manifest["tensors"]["param/w"]["parts"] = []

    def forgotten(manifest):
        del manifest["tensors"]["param/w"]

    def other_state(manifest):
        manifest["state_id"] = "0" * 64

    def other_digest(manifest):
        manifest["tensors"]["param/w"]["blake3"] = "0" * 64

    def forgotten_export(manifest):
        del manifest["exports"]["consolidated/consolidated.safetensors"]["w"]

    for lie in (moved, fewer_rows, forgotten, forgotten_export, other_state, other_digest):
        forge(checkpoint, lie)
        assert not verify(checkpoint).ok, lie.__name__
        (checkpoint / "manifest.json").write_bytes(sound)
    assert verify(checkpoint).ok


@pytest.mark.parametrize("file", ["../x", "/etc/hostname", "", ".", "a//b", "./a", "a/../b", "a\0b", ".hidden/a"])
def test_a_manifest_cannot_speak_of_files_outside_its_folder(checkpoint, file):
    sound = (checkpoint / "manifest.json").read_bytes()

    def listed(manifest):
        manifest["files"][file] = manifest["files"]["resume/state.json"]

    def used(manifest):
        manifest["tensors"]["param/w"]["parts"][0]["file"] = file

    for lie in (listed, used):
        forge(checkpoint, lie)
        with pytest.raises(ForeignCheckpoint, match="which is no file of this checkpoint"):
            read_manifest(checkpoint)
        (checkpoint / "manifest.json").write_bytes(sound)
    assert verify(checkpoint).ok


def test_links_and_folders_that_nobody_saved_are_noticed(checkpoint, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (checkpoint / "resume/link").symlink_to(tmp_path / "elsewhere")
    assert [problem.file for problem in verify(checkpoint).problems] == ["resume/link"]
    (checkpoint / "resume/link").unlink()
    (checkpoint / "resume/state.json").unlink()
    (checkpoint / "resume/state.json").mkdir()
    assert "resume/state.json: the file is missing" in verify(checkpoint).text()


def test_another_format_is_an_error_that_says_so(checkpoint):
    from ttt_moshi.checkpoint.manifest import render

    (checkpoint / "manifest.json").write_bytes(render({**read_manifest(checkpoint), "format_version": 3}))
    with pytest.raises(ForeignCheckpoint, match="format version 3; this program reads 2"):
        read_manifest(checkpoint)


@pytest.mark.parametrize(
    "body",
    [b"]}", b'"a": NaN x', b'"tensors": {}}', b'"a": ' + b"[" * 100_000, b'"a": "\xff"}', b"}"],
    ids=["no JSON", "half JSON", "keys missing", "deep", "no UTF-8", "empty"],
)
def test_nonsense_with_a_right_digest_gives_way_to_the_older_checkpoint(checkpoint, faults, body):
    from ttt_moshi.checkpoint.manifest import digest

    (checkpoint / "manifest.json").write_bytes(b'{"manifest_blake3": "%s",\n%s' % (digest(body).encode(), body))
    with pytest.raises(ForeignCheckpoint, match="was not written by this program"):
        read_manifest(checkpoint)
    loaded = CheckpointStore(checkpoint.parent, log=lambda line: None).load(tensors=faults.contents(0, 0))
    assert loaded.step == 1


def test_every_byte_of_the_manifest_counts_even_where_the_json_stays_the_same(checkpoint):
    text = (checkpoint / "manifest.json").read_bytes()
    content = json.loads(text)
    for other in (text + b" ", text.replace(b": ", b":", 1), text.replace(b",\n", b",", 1), text[:-1]):
        assert json.loads(other) == content
        (checkpoint / "manifest.json").write_bytes(other)
        with pytest.raises(CorruptCheckpoint, match="does not agree with its own digest"):
            read_manifest(checkpoint)


def test_loading_never_believes_damage(checkpoint, faults):
    """The reader finds by itself what verification finds: each damage gives way to the older checkpoint."""
    rng, tried = random.Random(5), 0
    for file, _, begin, end in list(regions(checkpoint)):
        if file.startswith("consolidated/") and file.endswith(".safetensors") and begin > 0:
            continue  # resuming does not read exported weights
        sound = (checkpoint / file).read_bytes()
        data = bytearray(sound)
        data[rng.randrange(begin, end)] ^= 1
        (checkpoint / file).write_bytes(data)
        targets = {name: torch.zeros_like(tensor) for name, tensor in faults.contents(0, 0).items()}
        loaded = CheckpointStore(checkpoint.parent, log=lambda line: None).load(tensors=targets)
        assert loaded.step == 1 and file in loaded.skipped[0][1]
        assert torch.equal(targets["param/w"], faults.contents(1, 0)["param/w"])
        (checkpoint / file).write_bytes(sound)
        tried += 1
    assert tried >= 9


def test_all_corrupt_is_no_checkpoint(checkpoint, faults):
    for path in checkpoint.parent.glob("checkpoint_*"):
        (path / "resume/state.json").write_bytes(b"{}")
    with pytest.raises(NoCheckpoint, match="can be used, and nothing was moved"):
        CheckpointStore(checkpoint.parent, log=lambda line: None).load(tensors=faults.contents(0, 0))
