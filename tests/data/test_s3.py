"""A real `s3://`: the protocol, spoken by moto's server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ttt_moshi.cli.main import main
from ttt_moshi.data import Corpus, DataError
from ttt_moshi.data.remote import local, located, use_cache

pytestmark = pytest.mark.slow  # needs s3fs and moto

WORDS = [("hello", 0.1, 0.4, "SPEAKER_MAIN"), ("yes", 0.5, 0.6, "SPEAKER_00")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `calls`."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import fsspec

    store = fsspec.filesystem("s3")
    store.mkdir("calls")
    yield store
    server.stop()


def test_s3(bucket, tmp_path, write_recording, codec, tokenizer, capsys):
    lines = []
    for number in range(3):
        write_recording(tmp_path / "set" / "calls" / f"{number}.wav", 1.0, seed=number, words=WORDS)
        lines.append(json.dumps({"path": f"calls/{number}.wav", "duration": 1.0}))
    (tmp_path / "set" / "data.jsonl").write_text("\n".join(lines))
    bucket.put(str(tmp_path / "set"), "calls/in", recursive=True)
    cache = tmp_path / "cache"
    use_cache(cache, 1.0)
    here = Corpus(str(tmp_path / "set"), codec, tokenizer, 0.4, tmp_path / "codes")
    there = Corpus("s3://calls/in:2", codec, tokenizer, 0.4)
    assert [r.digest for r in there.recordings] == [r.digest for r in here.recordings]
    assert (there.whole(there.recordings[2]) == here.whole(here.recordings[2])).all()
    # What is known is not fetched again, and what has changed is.
    sound = (tmp_path / "set" / "calls" / "1.wav").read_bytes()
    bucket.pipe_file("calls/in/calls/1.wav", sound[:-2] + b"\1\1")
    for path in (cache / "copies").rglob("*.wav"):
        path.unlink()
    use_cache(cache, 1.0)
    again = Corpus("s3://calls/in", codec, tokenizer, 0.4)
    assert [a.digest == b.digest for a, b in zip(again.recordings, here.recordings, strict=True)] == [True, False, True]
    assert [path.name for path in (cache / "copies").rglob("*.wav")] == ["1.wav"]
    with pytest.raises(DataError, match=r"s3://calls/absent\.jsonl: there is no such file"):
        Corpus("s3://calls/absent.jsonl", codec, tokenizer, 0.4)
    with pytest.raises(DataError, match="s3://elsewhere"):
        Corpus("s3://elsewhere/data.jsonl", codec, tokenizer, 0.4)
    options = ["--remote_cache_dir", str(cache)]
    assert main(["data", "prepare", "s3://calls/in/calls", "--out", "s3://calls/out", *options]) == 0
    assert main(["data", "prepare", "s3://calls/in/calls", "--out", "s3://calls/out", *options]) == 2
    assert "--overwrite" in capsys.readouterr().err
    options += ["--jobs", "2"]
    assert main(["data", "prepare", "s3://calls/in/calls", "--out", "s3://calls/out", "--overwrite", *options]) == 0
    assert main(["data", "check", "s3://calls/out", *options[:2]]) == main(["data", "check", str(tmp_path / "set")])
    assert local(located("s3://calls/out/recordings/0.wav")).read_bytes()[:4] == b"RIFF"
