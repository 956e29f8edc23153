"""Data at URLs: what is read from there is what lies there, copies keep their bound, and trouble has a name."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Iterator
from fcntl import LOCK_NB, flock
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import IO

import fsspec
import pytest

from ttt_moshi.cli.main import main
from ttt_moshi.data import Corpus, DataError
from ttt_moshi.data.addresses import path_of, url_of
from ttt_moshi.data.prepare import prepare
from ttt_moshi.data.prepare_one import Choices
from ttt_moshi.data.remote import files_below, is_there, local, located, located_out, use_cache
from ttt_moshi.data.sources import split_spec

WORDS = [("hello", 0.1, 0.4, "SPEAKER_MAIN"), ("yes", 0.5, 0.6, "SPEAKER_00")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of this test's own, and an empty `memory://`."""
    monkeypatch.setattr("ttt_moshi.data.remote._PAUSES", (0.0, 0.0))
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    use_cache(tmp_path / "cache", 50.0)
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path, write_recording) -> Path:
    """Four recordings with transcripts, below a list of them."""
    folder = tmp_path / "data"
    lines = []
    for number in range(4):
        seconds = 1.0 + 0.2 * number
        write_recording(folder / "calls" / f"{number}.wav", seconds, seed=number, words=WORDS)
        lines.append(json.dumps({"path": f"calls/{number}.wav", "duration": seconds}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def upload(folder: Path, url: str) -> None:
    remote, base = fsspec.core.url_to_fs(url)
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            remote.pipe_file(f"{base}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def download(url: str) -> dict[str, bytes]:
    remote, base = fsspec.core.url_to_fs(url)
    return {name.removeprefix(base).lstrip("/"): remote.cat_file(name) for name in remote.find(base)}


def copies(cache: Path) -> list[Path]:
    return [path for path in (cache / "copies").rglob("*") if path.is_file()]


class _Served:
    """A folder at an address, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.fail: Callable[[str], bool] = lambda request: False
        served = self

        class Handler(SimpleHTTPRequestHandler):
            def send_head(self):  # type: ignore[no-untyped-def]
                request = f"{self.command} {self.path}"
                served.asked.append(request)
                if served.fail(request):
                    self.send_error(503, "not now")
                    return None
                return super().send_head()

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def served(data) -> Iterator[_Served]:
    served = _Served(data)
    thread = threading.Thread(target=served.server.serve_forever, daemon=True)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/calls/a.wav", "s3://bucket//calls/../a%2Fb.wav", "s3://b/./%/.x", "hf://datasets/me/calls@main/a.wav",
        "http://host:8080/a.wav", "memory:///a.wav", "gs://b/caf\u00e9 \u2028?#.wav",
    ],
)  # fmt: skip
def test_every_url_has_a_path_of_its_own(url, cache):
    path = path_of(url)
    assert url_of(path) == url and cache / "copies" in path.parents
    assert Path(os.path.normpath(path)) == path, "nothing in it means another place"


def test_weights_and_urls(tmp_path):
    (tmp_path / "a:2").mkdir()
    spec = (
        f"memory://b/x//a.jsonl:2, memory://d ,http://h:80/a.jsonl,http://h:80/b.jsonl:0.5,file://{tmp_path}/c.jsonl:3"
    )
    found = [(url_of(path) or str(path), weight) for path, weight in split_spec(f"{spec},{tmp_path}/a:2")]
    assert found == [
        ("memory://b/x//a.jsonl", Fraction(2)),
        ("memory://d", Fraction(1)),
        ("http://h:80/a.jsonl", Fraction(1)),
        ("http://h:80/b.jsonl", Fraction(1, 2)),
        (f"{tmp_path}/c.jsonl", Fraction(3)),
        (f"{tmp_path}/a:2", Fraction(1)),
    ]
    with pytest.raises(DataError, match=r"memory://d is named twice.*`memory://d:2`"):
        split_spec("memory://d:2,memory://d")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("simplecache::s3://b/data.jsonl", "URLs in URLs"),
        ("http://h/data.jsonl?signature=1", "`\\?`"),
        ("s4://b/data.jsonl", "s4"),
        ("s3://", "names no file"),
        ("memory://nowhere/data.jsonl", "no such file"),
        ("memory://nowhere", "neither a jsonl file nor a folder"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(url, why):
    with pytest.raises(DataError, match=f"{url.split('?')[0]}.*{why}"):
        Corpus(url, None, None, 1.0)


def test_the_same_data_at_a_url_is_the_same_data(data, codec, tokenizer, cache):
    here = Corpus(str(data), codec, tokenizer, 0.4, data / "codes")
    upload(data, "memory://bucket/set")
    there = Corpus("memory://bucket/set", codec, tokenizer, 0.4)
    assert there.identity == here.identity
    for own, other in zip(here.recordings, there.recordings, strict=True):
        assert (here.whole(own) == there.whole(other)).all()
    assert list((cache / "made" / "memory" / "bucket" / "set" / ".mimi_codes").glob("*.safetensors"))
    # A list on a disk may name recordings anywhere, and a list at a URL such as lie elsewhere.
    mixed = data / "mixed.jsonl"
    mixed.write_text('{"path": "memory://bucket/set/calls/0.wav", "duration": 1.0}\n')
    upload(data, "memory://bucket/set")
    fsspec.filesystem("memory").pipe_file(
        "/bucket/lists/up.jsonl", b'{"path": "../set/calls/0.wav", "duration": 1.0}\n'
    )
    use_cache(cache, 50.0)
    digests = [
        Corpus(spec, codec, tokenizer, 0.4).recordings[0].digest for spec in (str(mixed), "memory://bucket/lists")
    ]
    assert digests == [here.recordings[0].digest] * 2


def test_a_start_fetches_nothing_that_is_known(served, codec, tokenizer, cache):
    def start() -> Corpus:
        use_cache(cache, 50.0)
        served.asked.clear()
        return Corpus(f"{served.url}/data.jsonl", codec, tokenizer, 0.4)

    first = start()
    assert sum(request.startswith("GET") for request in served.asked) == 9
    for path in copies(cache):
        if path.suffix != ".jsonl":
            path.unlink()
    again = start()
    assert again.identity == first.identity
    assert not [request for request in served.asked if request.startswith("GET")]
    assert (again.whole(again.recordings[1]) == first.whole(first.recordings[1])).all(), (
        "and is fetched when it is read"
    )


def test_a_changed_file_is_noticed(data, codec, tokenizer, cache):
    upload(data, "memory://bucket")
    first = Corpus("memory://bucket", codec, tokenizer, 0.4)
    sound = (data / "calls" / "0.wav").read_bytes()
    other = sound[:-2] + bytes([sound[-2] ^ 1, sound[-1]])  # of the same length
    fsspec.filesystem("memory").pipe_file("/bucket/calls/0.wav", other)
    use_cache(cache, 50.0)
    second = Corpus("memory://bucket", codec, tokenizer, 0.4)
    assert [a.digest == b.digest for a, b in zip(first.recordings, second.recordings, strict=True)] == [
        False,
        *[True] * 3,
    ]
    assert local(second.recordings[0].audio).read_bytes() == other
    # A run that has begun with the old one does not go on with the new one.
    with pytest.raises(DataError, match=r"memory://bucket/calls/0\.wav is not what it was"):
        first.whole(first.recordings[0])


def test_copies_keep_their_bound(data, codec, tokenizer, cache):
    upload(data, "memory://bucket")
    here = Corpus(str(data), codec, tokenizer, 0.4, data / "codes")
    bound = 170_000  # one recording and a half: the largest has 154 kB
    use_cache(cache, bound / 1e9)
    there = Corpus("memory://bucket", codec, tokenizer, 0.4)
    for own, other in [*zip(here.recordings, there.recordings, strict=True)] * 2:
        assert (here.whole(own) == there.whole(other)).all()
        assert local(other.audio).read_bytes() == own.audio.read_bytes()
        assert sum(path.stat().st_size for path in copies(cache)) <= bound
    use_cache(cache, 50_000 / 1e9)
    with pytest.raises(DataError, match=r"memory://bucket/calls/0\.wav has 0\.00 GB.*remote_cache_gb"):
        local(there.recordings[0].audio)


def _read_all(url: str, cache: str, rounds: int, wrong: list[str], wanted: dict[str, bytes], bound: int) -> None:
    use_cache(cache, bound / 1e9)
    for number in range(rounds * len(wanted)):
        name = sorted(wanted)[(number * 7 + os.getpid()) % len(wanted)]
        if local(located(f"{url}/{name}")).read_bytes() != wanted[name]:
            wrong.append(name)
        if sum(path.stat().st_size for path in copies(Path(cache)) if path.exists()) > bound:
            wrong.append("bound")


def test_several_processes_share_the_copies(served, data, cache):
    wanted = {f"calls/{path.name}": path.read_bytes() for path in (data / "calls").glob("*.wav")}
    context = get_context("fork")
    with context.Manager() as manager:
        wrong = manager.list()
        work = (served.url, str(cache), 3, wrong, wanted, 600_000)
        processes = [context.Process(target=_read_all, args=work) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0, 0] and not list(wrong)
    assert not [path for path in copies(cache) if path.name.endswith(".partial")]


def test_a_fetch_waits_for_no_lock_of_its_own(data, cache, monkeypatch):
    upload(data, "memory://bucket")
    held: list[str] = []

    def lock_at_once(file: IO[str], operation: int) -> None:
        held.append(Path(file.name).name)
        flock(file, operation | LOCK_NB)  # raises instead of waiting

    monkeypatch.setattr("fcntl.flock", lock_at_once)
    for number in range(4):
        held.clear()
        local(located(f"memory://bucket/calls/{number}.wav"))
        copy, *inner = held
        assert len(copy) == 3 and set(inner) == {"room"}, "which is no name that the lock of a copy can have"


def test_trouble_that_passes_is_waited_for_and_other_trouble_has_a_name(served, capsys, cache):
    left = iter(range(4))  # each attempt asks in two ways
    served.fail = lambda request: next(left, None) is not None
    path = located(f"{served.url}/calls/0.wav")
    assert is_there(path) and local(path).stat().st_size > 1000
    served.fail = lambda request: "1.wav" in request
    use_cache(cache, 50.0)
    served.asked.clear()
    assert main(["data", "check", f"{served.url}/data.jsonl"]) == 1
    told = capsys.readouterr()
    assert f"{served.url}/calls/1.wav" in told.out and "503" in told.out
    assert "4 recordings" in told.out and "0:00:04" in told.out, "1.0, 1.4 and 1.6 s are heard"
    assert served.asked.count("HEAD /calls/1.wav") == 3
    assert "Traceback" not in told.err
    served.fail = lambda request: "2.json" in request
    page = cache.parent / "page.html"
    for command in (["check"], ["report", "--out", str(page)]):
        use_cache(cache, 50.0)
        assert main(["data", command[0], f"{served.url}/data.jsonl", *command[1:]]) == 1
    assert f"{served.url}/calls/2.json\n  PROBLEM  cannot read" in capsys.readouterr().out
    assert "from 0:00, without a transcript that can be read" in page.read_text()


def test_check_report_encode_and_prepare_at_urls(data, tiny_material, tmp_path, capsys, cache):
    upload(data, "memory://in")
    options = ["--remote_cache_dir", str(tmp_path / "other"), "--remote_cache_gb", "1"]
    assert main(["data", "check", "memory://in/data.jsonl", *options]) == main(["data", "check", str(data)])
    assert copies(tmp_path / "other")
    assert main(["data", "prepare", "memory://in/calls", "--out", "memory://out/set", *options]) == 0
    assert "memory://out/set/data.jsonl: 4 recordings" in capsys.readouterr().out
    assert main(["data", "prepare", str(data / "calls"), "--out", str(tmp_path / "set")]) == 0
    made = {
        p.relative_to(tmp_path / "set").as_posix(): p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()
    }
    assert download("memory://out/set") == made
    assert not list((tmp_path / "other" / "outgoing").rglob("*.wav"))
    capsys.readouterr()
    assert main(["data", "prepare", "memory://in/calls", "--out", "memory://out/set", *options]) == 2
    assert "memory://out/set holds a data set; `--overwrite`" in capsys.readouterr().err
    prepare = ["data", "prepare", "memory://in/calls", *options, "--overwrite", "--out"]
    for out, why in (("memory://in", "lies among the recordings"), ("memory://tars", "was not made by this command")):
        fsspec.filesystem("memory").pipe_file("/tars/mine.txt", b"mine")
        assert main([*prepare, out]) == 2
        assert why in capsys.readouterr().err
    assert is_there(located("memory://in/data.jsonl")) and is_there(located("memory://tars/mine.txt"))
    assert main([*prepare, "memory://out/set", "--eval_fraction", "0.5"]) == 0
    assert {"train.jsonl", "eval.jsonl"} < set(download("memory://out/set")) and "data.jsonl" not in download(
        "memory://out/set"
    )
    status = main(["data", "report", "memory://out/set", "--out", "memory://out/page.html", *options])
    assert status == main(["data", "report", str(tmp_path / "set"), "--out", str(tmp_path / "page.html")])
    assert download("memory://out")["page.html"].startswith(b"<!")
    capsys.readouterr()
    encode = [
        "data",
        "encode",
        "memory://out/set",
        "--hf_repo_id",
        str(tiny_material.base_model),
        "--device",
        "cpu",
        *options,
    ]
    for shard in ("1/2", "2/2"):
        assert main([*encode, "--out", "memory://codes", "--shard", shard]) == 0
        assert main([*encode, "--out", "memory://tars", "--tar", "--shard", shard]) == 0
    assert "memory://tars/data-00002-of-00002.jsonl: 2 recordings" in capsys.readouterr().out
    assert main([*encode, "--out", "memory://codes"]) == 2
    assert "memory://codes has a data set in 2 parts (data-00001-of-00002.jsonl, ...)" in capsys.readouterr().err
    use_cache(cache, 1.0)
    whole = [Corpus(url, None, None, 1.0) for url in ("memory://codes", "memory://tars")]
    contents = [sorted(one.whole(r).numpy().tobytes() for r in one.recordings) for one in whole]
    assert contents[0] == contents[1] and len(contents[0]) == 4


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("prepare memory://x --out http://h/set", "nothing can be written"),
        ("prepare http://127.0.0.1:9/calls --out new", "no folders that could be listed"),
        ("report {data} --out http://h/page.html", "nothing can be written"),
        ("encode {data} --out https://h/set", "nothing can be written"),
        ("plant {data} --out s3://b/set", "is a URL"),
        ("annotate s3://b/calls", "is a URL"),
        ("check {data} --remote_cache_gb 0", "--remote_cache_gb"),
        ("prepare memory://nowhere --out new", "memory://nowhere holds no recordings"),
    ],
)
def test_commands_refuse_what_they_cannot_do(data, command, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *command.format(data=data).split()]) == 2
    told = capsys.readouterr().err
    assert why in told and told.count("\n") == 1
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*:*"))


def test_folders_are_listed_once(data, cache):
    upload(data, "memory://bucket")
    found = files_below(located("memory://bucket"))
    assert [url_of(path) for path in found if path.suffix == ".wav"] == [
        f"memory://bucket/calls/{n}.wav" for n in range(4)
    ]
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert all(map(is_there, found)), "what was listed is known"
    with pytest.raises((DataError, FileNotFoundError), match=r"memory://bucket/calls/0\.wav"):
        local(found[-8])


class _Interrupting:
    """Lets a store do something so many times, and then interrupts whoever asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        kind = type(fsspec.filesystem("memory"))
        work = getattr(kind, name)
        self.left = self.done = 0

        def counted(*args, **options):
            self.done += 1
            if self.done == self.left:
                raise KeyboardInterrupt
            return work(*args, **options)

        monkeypatch.setattr(kind, name, counted)


def test_sending_goes_on_where_it_was_interrupted(data, tmp_path, monkeypatch, cache):
    prepare(data / "calls", tmp_path / "set")
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    made = {path.relative_to(tmp_path / "set").as_posix(): path.read_bytes() for path in files}
    puts = _Interrupting(monkeypatch, "put_file")
    out = located_out("memory://out/set")
    for left in (2, 6, len(made) - 1, len(made)):
        fsspec.filesystem("memory").store.clear()
        use_cache(cache, 1.0)
        puts.left, puts.done = left, 0
        with pytest.raises(KeyboardInterrupt):
            prepare(data / "calls", out)
        assert "prepare.json" not in download("memory://out/set")
        use_cache(cache, 1.0)
        puts.left, puts.done = 0, 0
        tried: list[str] = []
        prepare(data / "calls", out, on_file=lambda name, *_, tried=tried: tried.append(name))
        assert download("memory://out/set") == made and not tried
        assert puts.done == max(len(made) - (left - 1), 2), "what had arrived is not sent again, but for the lists"
        assert not list((cache / "outgoing").rglob("*.*"))


def test_what_was_sent_of_a_recording_that_has_changed_is_sent_again(data, tmp_path, monkeypatch, cache):
    """Its length has not changed, and so no size has."""
    puts = _Interrupting(monkeypatch, "put_file")
    out = located_out("memory://out/set")
    puts.left = 5
    with pytest.raises(KeyboardInterrupt):
        prepare(data / "calls", out)
    sound = (data / "calls" / "0.wav").read_bytes()
    (data / "calls" / "0.wav").write_bytes(sound[:-2] + bytes([sound[-2] ^ 1, sound[-1]]))
    use_cache(cache, 1.0)
    prepare(data / "calls", out)
    assert download("memory://out/set")["recordings/0.wav"] == (data / "calls" / "0.wav").read_bytes()
    # Another data set than the one whose sending was interrupted takes its place.
    fsspec.filesystem("memory").store.clear()
    use_cache(cache, 1.0)
    puts.left, puts.done = 5, 0
    with pytest.raises(KeyboardInterrupt):
        prepare(data / "calls", out)
    (data / "calls" / "0.wav").unlink()
    use_cache(cache, 1.0)
    prepare(data / "calls", out, eval_fraction=0.4)
    prepare(data / "calls", tmp_path / "set", eval_fraction=0.4)
    assert download("memory://out/set").keys() == {
        p.relative_to(tmp_path / "set").as_posix() for p in (tmp_path / "set").rglob("*") if p.is_file()
    }


def test_replacing_goes_on_where_it_was_interrupted(data, monkeypatch, cache):
    out, choices = located_out("memory://out/set"), Choices(normalise=-30)
    prepare(data / "calls", out)
    old, store = download("memory://out/set"), fsspec.filesystem("memory")
    use_cache(cache, 1.0)
    real = type(store).rm

    def half(self, *args, **options):
        for name in ("data.jsonl", "prepare.json", "recordings/0.wav"):
            self.rm_file(f"/out/set/{name}")
        raise KeyboardInterrupt

    monkeypatch.setattr(type(store), "rm", half)
    with pytest.raises(KeyboardInterrupt):
        prepare(data / "calls", out, choices, overwrite=True)
    monkeypatch.setattr(type(store), "rm", real)
    use_cache(cache, 1.0)
    tried: list[str] = []
    prepare(data / "calls", out, choices, overwrite=True, on_file=lambda name, *_: tried.append(name))
    new = download("memory://out/set")
    assert not tried and new.keys() == old.keys() and new["recordings/1.wav"] != old["recordings/1.wav"]
    fsspec.filesystem("memory").pipe_file("/tars/mine.txt", b"mine")
    with pytest.raises(DataError, match="was not made by this command"):
        prepare(data / "calls", located_out("memory://tars"), overwrite=True)


def test_a_recording_whose_store_was_away_is_tried_again(data, tmp_path, monkeypatch, cache):
    (data / "calls" / "0.wav").write_bytes(b"RIFF, cut short")
    upload(data, "memory://in")
    store = type(fsspec.filesystem("memory"))
    fetch = store.get_file

    def away(self, name, *args, **options):
        if name.endswith("1.wav"):
            raise ConnectionError("no route to the store")
        return fetch(self, name, *args, **options)

    def stop(name: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "get_file", away)
    with pytest.raises(KeyboardInterrupt):
        prepare(located("memory://in/calls"), tmp_path / "set", on_file=stop)
    monkeypatch.setattr(store, "get_file", fetch)
    tried: list[str] = []
    result = prepare(located("memory://in/calls"), tmp_path / "set", on_file=lambda name, *_: tried.append(name))
    assert tried == ["1.wav", "3.wav"], "what a broken file is, its content has decided"
    assert [outcome.source for outcome in result.outcomes if outcome.left_out] == ["0.wav"]
