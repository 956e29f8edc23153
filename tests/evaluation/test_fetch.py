"""Fetching data sets from a server of this machine, which speaks as the hub does and misbehaves where it is told to."""

import fcntl
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from ttt_moshi.cli.main import main

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Files by path, and what is to go wrong with them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.told: dict[str, dict] = {}  # what the hub says of a file, where it is not the truth
        self.cut: dict[str, int] = {}  # a file's bytes until the connection is closed, once
        self.asked: list[tuple[str, str | None]] = []  # paths with their Range
        self.tokens: list[str | None] = []
        self.commit, self.etags = COMMIT, True
        self.elsewhere: str | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def facts(self) -> dict:
        siblings = []
        for name, content in self.files.items():
            sha = hashlib.sha256(content).hexdigest()
            lfs = {"lfs": {"sha256": sha, "size": len(content), "pointerSize": 1}} if name.endswith(".mp3") else {}
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            siblings.append({"rfilename": name, "size": len(content), "blobId": blob, **lfs} | self.told.get(name, {}))
        return {"id": "x/y", "sha": self.commit, "siblings": siblings}


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        path, hub = self.path.partition("?")[0], self.server
        if path.startswith("/api/datasets/"):
            asked = path.partition("/revision/")[2] or hub.commit
            if asked not in (hub.commit, "main"):
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound")
                self.end_headers()
                return
            body = json.dumps(hub.facts()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        hub.asked.append((path, self.headers.get("Range")))
        hub.tokens.append(self.headers.get("Authorization"))
        if hub.elsewhere is not None:
            self.send_response(302)
            self.send_header("Location", f"{hub.elsewhere}{path}")
            self.end_headers()
            return
        name = path.partition(f"/resolve/{hub.commit}/")[2] or path.lstrip("/")
        if name not in hub.files:
            self.send_error(404)
            return
        content, start = hub.files[name], 0
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        given = self.headers.get("Range")
        if given and self.headers.get("If-Range") in (None, etag):
            start = int(given.removeprefix("bytes=").rstrip("-"))
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if hub.etags:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(content[start : hub.cut.pop(name, len(content))])
        self.close_connection = True

    def log_message(self, *args):
        """Nothing is printed."""


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def sounds(hub):
    hub.files = {
        "metadata.jsonl": b'{"file_name": "data/0.mp3"}\n',
        "data/0.mp3": bytes(range(256)) * 40,
        "data/1.mp3": b"other",
        "README.md": b"not asked for",
    }
    return hub


def fetch(out: Path, *words) -> int:
    return main(["eval", "fetch", *map(str, words), "--out", str(out)])


def lies_in(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def recorded(out: Path) -> dict:
    return json.loads((out / "fetched.json").read_text())


def test_a_repository_is_fetched_once_at_one_commit(sounds, tmp_path, capsys):
    assert fetch(tmp_path, "big_bench_audio") == 0
    wanted = {f"big_bench_audio/{name}": sounds.files[name] for name in ("metadata.jsonl", "data/0.mp3", "data/1.mp3")}
    found = lies_in(tmp_path)
    record = json.loads(found.pop("fetched.json"))["big_bench_audio"]
    assert found == wanted and record["revision"] == COMMIT
    digests = {name.removeprefix("big_bench_audio/"): hashlib.sha256(c).hexdigest() for name, c in wanted.items()}
    assert record["files"] == digests
    assert COMMIT in capsys.readouterr().out and set(sounds.tokens) == {"Bearer hf_secret"}
    before = len(sounds.asked)
    assert fetch(tmp_path, "big_bench_audio") == 0 and len(sounds.asked) == before
    # A file that is gone is brought again, and only that.
    (tmp_path / "big_bench_audio/data/1.mp3").unlink()
    assert fetch(tmp_path, "big_bench_audio") == 0 and len(sounds.asked) == before + 1
    # The newest commit is another one meanwhile: what was begun at one is not gone on with at another.
    sounds.commit = "d" * 40
    assert fetch(tmp_path, "big_bench_audio") == 2 and "has no revision ccc" in capsys.readouterr().err
    assert fetch(tmp_path, "big_bench_audio", "--revision", "main") == 2
    assert "was fetched at revision ccc" in capsys.readouterr().err


def test_a_broken_download_goes_on(sounds, tmp_path, capsys):
    sounds.cut["data/0.mp3"] = 1000
    assert fetch(tmp_path, "big_bench_audio") == 2
    assert "broke off after 1,000 of 10,240 bytes; the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "big_bench_audio/data/0.mp3").exists()
    assert fetch(tmp_path, "big_bench_audio") == 0
    assert (f"/datasets/ArtificialAnalysis/big_bench_audio/resolve/{COMMIT}/data/0.mp3", "bytes=1000-") in sounds.asked
    assert (tmp_path / "big_bench_audio/data/0.mp3").read_bytes() == sounds.files["data/0.mp3"]
    assert not list(tmp_path.rglob("*.part*"))


def test_what_is_corrupt_is_refused(sounds, tmp_path, capsys):
    for told in ({"lfs": {"sha256": "0" * 64, "size": 5, "pointerSize": 1}}, {"size": 7, "lfs": None}):
        sounds.told["data/1.mp3"] = told
        assert fetch(tmp_path, "big_bench_audio") == 2
        assert "is not what was expected" in capsys.readouterr().err
        assert not (tmp_path / "big_bench_audio/data/1.mp3").exists() and not list(tmp_path.rglob("*.part*"))
    sounds.told["metadata.jsonl"] = {"blobId": "0" * 40}
    assert fetch(tmp_path / "b", "big_bench_audio") == 2 and "git_blob" in capsys.readouterr().err
    sounds.told.clear()
    assert fetch(tmp_path, "big_bench_audio") == 0
    path = tmp_path / "big_bench_audio/data/1.mp3"
    path.write_bytes(b"OTHER")
    capsys.readouterr()
    assert fetch(tmp_path, "big_bench_audio") == 2
    error = capsys.readouterr().err
    assert str(path) in error and "corrupt" in error and path.read_bytes() == b"OTHER"


def test_a_token_stays_with_the_hub(sounds, tmp_path):
    other = Hub()
    other.files = sounds.files
    threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
    sounds.elsewhere = other.address
    assert fetch(tmp_path, "big_bench_audio") == 0
    assert set(sounds.tokens) == {"Bearer hf_secret"} and set(other.tokens) == {None}
    other.shutdown()
    other.server_close()


def packed(kind: str, members: dict[str, bytes | None]) -> bytes:
    """An archive; None makes a link."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            file.addfile(member, None if content is None else io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_address_is_unpacked_and_trusted_as_the_first_time(hub, tmp_path, capsys, kind):
    members = {"set/a.wav": b"aaa", "set/sub/b.wav": b"bbb"}
    hub.files[f"record/1/{kind}/data.{kind}"] = packed(kind, members)
    url = f"{hub.address}/record/1/{kind}/data.{kind}"
    assert fetch(tmp_path, "--url", url, "--into", "mine") == 0
    found = lies_in(tmp_path)
    assert {name.removeprefix("mine/"): c for name, c in found.items() if name != "fetched.json"} == members
    record = recorded(tmp_path)[url]
    digest = hashlib.sha256(hub.files[f"record/1/{kind}/data.{kind}"]).hexdigest()
    assert record["archives"] == {f"data.{kind}": digest} and record["files"].keys() == members.keys()
    before = len(hub.asked)
    assert fetch(tmp_path, "--url", url, "--into", "mine", "--sha256", digest.upper()) == 0 and len(hub.asked) == before
    # Another archive at the same address, and the digest of the first time.
    (tmp_path / "mine/set/a.wav").unlink()
    hub.files[f"record/1/{kind}/data.{kind}"] = packed(kind, {"set/a.wav": b"evil"})
    capsys.readouterr()
    assert fetch(tmp_path, "--url", url, "--into", "mine") == 2
    assert "is not what was expected (sha256" in capsys.readouterr().err and not (tmp_path / "mine/set/a.wav").exists()
    hub.files[f"record/1/{kind}/data.{kind}"] = packed(kind, members)
    (tmp_path / "mine/set/sub/b.wav").write_bytes(b"BBB")
    assert fetch(tmp_path, "--url", url, "--into", "mine") == 2 and "b.wav is corrupt" in capsys.readouterr().err


def test_an_archive_whose_unpacking_broke_off_is_not_fetched_again(hub, tmp_path, capsys):
    hub.files["data.zip"] = packed("zip", {"set/a.wav": b"aaa", "set/b.wav": b"bbb"})
    url, blocked = f"{hub.address}/data.zip", tmp_path / "mine/set"
    blocked.parent.mkdir()
    blocked.write_text("where a folder belongs")
    assert fetch(tmp_path, "--url", url, "--into", "mine") == 2 and "mine/set" in capsys.readouterr().err
    assert (tmp_path / ".fetching-data.zip").is_file() and len(hub.asked) == 1
    blocked.unlink()
    assert fetch(tmp_path, "--url", url, "--into", "mine") == 0 and len(hub.asked) == 1
    found = lies_in(tmp_path)
    del found["fetched.json"]
    assert found == {"mine/set/a.wav": b"aaa", "mine/set/b.wav": b"bbb"}
    # One that has changed meanwhile is not the one, and is fetched.
    (tmp_path / "mine/set/a.wav").unlink()
    (tmp_path / ".fetching-data.zip").write_bytes(packed("zip", {"set/a.wav": b"evil"}))
    assert fetch(tmp_path, "--url", url, "--into", "mine") == 0 and len(hub.asked) == 2
    assert (tmp_path / "mine/set/a.wav").read_bytes() == b"aaa"


def test_a_record_of_elsewhere_is_held_against(hub, tmp_path, capsys):
    """`fetched.json` in an empty folder asks for those very bytes."""
    hub.files["a.bin"] = b"the first"
    url = f"{hub.address}/a.bin"
    assert fetch(tmp_path / "a", "--url", url) == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b/fetched.json").write_bytes((tmp_path / "a/fetched.json").read_bytes())
    hub.files["a.bin"] = b"a second"
    assert fetch(tmp_path / "b", "--url", url) == 2 and "is not what was expected" in capsys.readouterr().err
    assert fetch(tmp_path / "c", "--url", url, "--sha256", "0" * 64) == 2
    assert "instead of 000" in capsys.readouterr().err
    (tmp_path / "b/fetched.json").write_text("[]")
    assert fetch(tmp_path / "b", "--url", url) == 2 and "fetched.json holds something else" in capsys.readouterr().err


def test_without_a_digest_only_the_same_file_is_gone_on_with(hub, tmp_path):
    url = f"{hub.address}/a.bin"
    for etags in (True, False):
        hub.etags, hub.files["a.bin"], out = etags, b"x" * 5000, tmp_path / str(etags)
        hub.cut["a.bin"] = 1000
        assert fetch(out, "--url", url) == 2
        hub.files["a.bin"] = b"y" * 4000  # another version meanwhile
        assert fetch(out, "--url", url) == 0
        assert (out / "a.bin").read_bytes() == b"y" * 4000


@pytest.mark.parametrize(("members", "complaint"), [
    ({"../out.wav": b"x"}, "names a file outside of its folder"),
    ({"/etc/x": b"x"}, "names a file outside of its folder"),
    ({"a": None}, "holds a link"),
    ({}, "holds no files"),
])  # fmt: skip
def test_archives_stay_in_their_folder(hub, tmp_path, capsys, members, complaint):
    hub.files["bad.tar.gz"] = packed("tar.gz", members)
    assert fetch(tmp_path / "out", "--url", f"{hub.address}/bad.tar.gz") == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()


def test_files_of_this_machine_and_addresses_without_any(hub, tmp_path, capsys):
    source = tmp_path / "here.zip"
    source.write_bytes(packed("zip", {"a": b"a"}))
    assert fetch(tmp_path / "out", "--url", source.as_uri()) == 0 and (tmp_path / "out/a").read_bytes() == b"a"
    source.write_bytes(b"PK nothing")
    for url, complaint in (
        (f"{hub.address}/none.zip", "404"),
        ("http://127.0.0.1:9/a.zip", "cannot fetch"),
        (hub.address, "names no file"),
    ):
        assert fetch(tmp_path / "out", "--url", url) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1, error
    assert fetch(tmp_path / "new", "--url", source.as_uri()) == 2 and "corrupt or no archive" in capsys.readouterr().err


def test_the_list_names_licences(capsys):
    assert main(["eval", "fetch", "list"]) == 0
    out = capsys.readouterr().out
    assert "librispeech_long" in out and "CC BY 4.0" in out and "hlt-lab/voicebench" in out


def held(path: Path) -> IO[str]:
    """A lock as another process has it: opened anew, it cannot be had."""
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_one_process_at_a_time_fetches_into_a_folder(tmp_path, capsys):
    (tmp_path / "x.wav").write_bytes(b"x")
    words = ["eval", "fetch", "--url", f"file://{tmp_path}/x.wav", "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out" / ".fetching.lock"):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "another process is fetching into" in error and error.count("\n") == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".fetching.lock"]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"x.wav", "fetched.json"}


@pytest.mark.parametrize("name", ["fetched.json", ".fetching-data.zip"])
def test_an_archive_with_a_name_that_is_taken_is_refused(tmp_path, capsys, name):
    """Its digest could never be right again."""
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(name, "{}")
    assert main(["eval", "fetch", "--url", f"file://{tmp_path}/data.zip", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"holds a file '{name}'" in error and error.count("\n") == 1


@pytest.mark.parametrize("record", ["[" * 100_000, "[]", '{"x": {"source": 3}}', '{"x": {"source": "y", "files": [1]}}',
                                    '{"x": {"source": "y", "archives": {"z": 1}}}'])  # fmt: skip
def test_a_record_that_is_none_is_named(tmp_path, capsys, record):
    (tmp_path / "x.wav").write_bytes(b"x")
    (tmp_path / "fetched.json").write_text(record)
    assert main(["eval", "fetch", "--url", f"file://{tmp_path}/x.wav", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "fetched.json" in error and error.count("\n") == 1 and (tmp_path / "fetched.json").read_text() == record


def test_what_is_no_address_and_a_hub_that_is_not_there_are_one_line(tmp_path, capsys, monkeypatch):
    assert main(["eval", "fetch", "--url", "http://[x/y.zip", "--out", str(tmp_path / "out")]) == 2
    assert "is no address" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["eval", "fetch", "voicebench", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "the hub cannot be asked for hlt-lab/voicebench: Connection refused" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_archive_of_ones_own_stays(tmp_path):
    """It lies where it is unpacked, and is what is fetched."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("d/a.wav", b"sound")
    before = (tmp_path / "set.zip").read_bytes()
    assert main(["eval", "fetch", "--url", f"file://{tmp_path}/set.zip", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "set.zip").read_bytes() == before and (tmp_path / "d/a.wav").read_bytes() == b"sound"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "fetched.json", "set.zip"]


def test_a_wrong_file_where_one_of_an_archive_belongs_is_named(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("d/a.wav", b"sound" * 10)
    (tmp_path / "out/d").mkdir(parents=True)
    (tmp_path / "out/d/a.wav").write_bytes(b"sound")
    words = ["eval", "fetch", "--url", f"file://{tmp_path}/set.zip", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "d/a.wav is corrupt, or another file" in capsys.readouterr().err
    (tmp_path / "out/d/a.wav").unlink()
    assert main(words) == 0 and (tmp_path / "out/d/a.wav").read_bytes() == b"sound" * 10
