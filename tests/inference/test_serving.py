"""`ttt-moshi serve` and `ttt-moshi sessions` as processes: what they refuse, and what is left however they end."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import socket

import aiohttp
import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.inference import session_info
from ttt_moshi.inference.sessions import Sessions

WAIT = 120


def frames(count: int, seed: int = 0) -> list[bytes]:
    sound = 0.1 * np.random.default_rng(seed).standard_normal((count, 1920))
    return [(frame * 2**15).round().astype("<i2").tobytes() for frame in sound]


async def until_ready(socket: aiohttp.ClientWebSocketResponse) -> str:
    """Waits for a place; the id of the conversation."""
    session = ""
    while (message := await socket.receive(timeout=WAIT)).data[0] != 0:
        if message.data[0] == 4 and (event := json.loads(message.data[1:]))["type"] == "welcome":
            session = event["session"]
    return session


async def dead_client(port: int) -> asyncio.StreamWriter:
    """A client that opened a conversation and is gone: nobody reads, answers or closes it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(
        f"GET /api/chat?format=pcm HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await writer.drain()
    return writer


def stop_among_clients(serve, folder, number: int) -> float:
    """A signal comes while one client's frames are being computed, one says nothing, one is dead and one waits: exit
    code 0 and everything that was heard is saved. How long it took, in seconds."""
    server = serve("--max_lag", "inf", "--slots", "3", "--seed", "4")

    async def scenario() -> tuple[str, float]:
        async with aiohttp.ClientSession() as http, http.ws_connect(server.url) as talking:
            session = await until_ready(talking)
            async with http.ws_connect(server.url) as silent:
                await until_ready(silent)
                dead = await dead_client(server.port)
                for frame in frames(5):
                    await talking.send_bytes(b"\x01" + frame)
                heard = 0
                while heard < 4:
                    heard += (await talking.receive(timeout=WAIT)).data[0] == 1
                async with http.ws_connect(server.url):
                    for frame in frames(20):
                        await talking.send_bytes(b"\x01" + frame)
                    loop = asyncio.get_running_loop()
                    status, seconds = await loop.run_in_executor(None, server.stop, number)
                    dead.close()
        assert status == 0, server.lines
        return session, seconds

    session, seconds = asyncio.run(scenario())
    saved = Sessions(folder / "sessions")
    assert 4 <= session_info(saved.existing(session)).frames <= 25
    assert all(one.info is not None for one in saved.listed())
    assert main(["sessions", "show", session, "--sessions", str(saved.folder)]) == 0
    assert not [line for line in server.lines if "Traceback" in line]
    return seconds


def test_a_signal_ends_it_with_everything_saved(serve, tmp_path):
    assert stop_among_clients(serve, tmp_path, signal.SIGTERM) < 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_two_seconds(serve, tmp_path, number):
    """Wants a machine that does little else."""
    assert stop_among_clients(serve, tmp_path, number) < 2


def test_generate_and_serve_read_each_other_s_sessions(serve, trained, tmp_path, capsys):
    """One conversation of three parts, told to the server, to `generate` and to another server after a SIGKILL of the
    first, equals one told to `generate` in one piece."""
    sound = np.random.default_rng(0).standard_normal(36 * 1920) * 0.1
    ints = (sound * 2**15).round().astype("<i2")
    soundfile.write(tmp_path / "whole.wav", ints, 24_000, subtype="PCM_16")
    soundfile.write(tmp_path / "middle.wav", ints[12 * 1920 : 24 * 1920], 24_000, subtype="PCM_16")
    messages = [part.astype("<i2").tobytes() for part in ints.reshape(36, 1920)]

    def generate(name: str, *options: str) -> np.ndarray:
        command = ["generate", "--checkpoint_dir", str(trained), "--input", str(tmp_path / f"{name}.wav")]
        assert main([*command, "--out", str(tmp_path / f"{name}.out.wav"), "--seed", "4", *options]) == 0
        return soundfile.read(tmp_path / f"{name}.out.wav", dtype="int16")[0][:, 0].reshape(-1, 1920)

    whole = generate("whole")
    sessions = tmp_path / "sessions"

    def listen(server, part: list[bytes], query: str, first: int) -> str:
        async def scenario() -> str:
            async with aiohttp.ClientSession() as http, http.ws_connect(server.url + query) as socket:
                session = await until_ready(socket)
                said: list[np.ndarray] = []
                for frame in part:
                    await socket.send_bytes(b"\x01" + frame)
                while len(said) < len(part):
                    message = await socket.receive(timeout=WAIT)
                    if message.data[0] == 1:
                        said.append(np.frombuffer(message.data[1:], "<i2"))
                for mine, wanted in zip(said, whole[first:], strict=False):
                    assert abs(mine.astype(int) - wanted).max() <= 1
                await socket.send_bytes(b'\x04{"type": "save"}')
                while (message := await socket.receive(timeout=WAIT)).data[
                    :1
                ] != b"\x04" or b"saved" not in message.data:
                    pass
                # What is heard after the last save is what a killed server loses, and nothing else.
                await socket.send_bytes(b"\x01" + part[0])
                assert (await socket.receive(timeout=WAIT)).data[0] in (1, 2, 4)
                server.process.kill()
                server.process.wait()
                return session

        return asyncio.run(scenario())

    options = ("--max_lag", "inf", "--seed", "4")
    name = listen(serve(*options), messages[:12], "", 0)
    session = str(sessions / f"{name}.session")
    wrong = ["generate", "--checkpoint_dir", str(trained), "--input", str(tmp_path / "middle.wav"), "--seed", "5"]
    assert main([*wrong, "--out", str(tmp_path / "wrong.wav"), "--resume_session", session]) == 2
    assert "has the seed 4" in capsys.readouterr().err and not (tmp_path / "wrong.wav").exists()
    middle = generate("middle", "--resume_session", session, "--save_session", session, "--overwrite")
    assert abs(middle.astype(int) - whole[12:24]).max() <= 1
    assert listen(serve(*options), messages[24:], f"&resume={name}", 24) == name


def test_sessions_are_listed_copied_and_deleted(serve, trained, tmp_path, capsys):
    sessions = tmp_path / "kept"
    sessions.mkdir()
    soundfile.write(tmp_path / "user.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 12 * 1920), 24_000)
    command = ["generate", "--checkpoint_dir", str(trained), "--input", str(tmp_path / "user.wav"), "--out"]
    assert main([*command, str(tmp_path / "out.wav"), "--save_session", str(sessions / "mine.session")]) == 0
    capsys.readouterr()

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["sessions", *arguments, "--sessions", str(sessions)])
        out, error = capsys.readouterr()
        return status, out, error

    (one,) = json.loads(run("ls", "--json")[1])
    assert (one["id"], one["frames"], one["seconds"]) == ("mine", 12, 0.96)
    assert "mine" in run("ls")[1] and "1.0 s" in run("ls")[1]
    assert one["memory"].keys() == {"0", "1"} and all(own["loss"] > 0 for own in one["memory"].values())
    shown = run("show", "mine")[1]
    assert (
        f"layer 1    {one['memory']['1']['written']:.1%} written, inner loss {one['memory']['1']['loss']:.4g}" in shown
    )
    assert json.loads(run("fork", "mine", "yours", "--json")[1]) == {"id": "mine", "new_id": "yours"}
    assert (sessions / "yours.session").read_bytes() == (sessions / "mine.session").read_bytes()
    assert (sessions / "yours.session").stat().st_mode & 0o777 == 0o600
    assert json.loads(run("show", "yours", "--json")[1])["intact"] is True
    data = bytearray((sessions / "yours.session").read_bytes())
    data[-1] ^= 1
    (sessions / "yours.session").write_bytes(data)
    (sessions / "foreign.session").write_bytes(b"12345")
    assert run("show", "yours")[0] == 1 and run("show", "mine")[0] == 0
    for arguments, complaint in (
        (("fork", "mine", "yours"), "already"),
        (("fork", "gone", "new"), "no session gone"),
        (("fork", "mine", "../out"), "is no session id"),
        (("fork", "yours", "new"), "yours.session is corrupt: its content does not match its digest"),
        (("fork", "foreign", "new"), "foreign.session is corrupt or not a saved conversation"),
        (("rm", "mine", "gone"), "no session gone"),
        (("rm", "../../x"), "is no session id"),
        (("rm",), "required"),
        (("show", "gone"), "no session gone"),
        (("forget", "mine"), "unknown command"),
        (("ls", "--jsno"), "did you mean `--json`"),
    ):
        status = main(["sessions", *arguments, *(["--sessions", str(sessions)] if arguments[0] != "forget" else [])])
        error = capsys.readouterr().err
        assert status == 2 and error.count("\n") == 1 and complaint in error, error
    assert not (sessions / "new.session").exists()
    assert json.loads(run("rm", "mine", "yours", "foreign", "--json")[1]) == {"deleted": ["mine", "yours", "foreign"]}
    assert list(sessions.iterdir()) == []
    assert "no conversations" in run("ls")[1]
    assert main(["sessions", "ls", "--sessions", str(tmp_path / "nowhere")]) == 2


BAD_VALUES = [
    (["--static", "missing"], "no index.html"),
    (["--ssl", "."], "no cert.pem"),
    (["--ssl", "bad"], "no certificate and its key"),
    (["--prot", "1"], "did you mean `--port`"),
    (["--port", "70000"], "--port must be between"),
    (["--port", "-1"], "--port must be between"),
    (["--port", "http"], "invalid int"),
    (["--slots", "0"], "--slots must be between"),
    (["--slots", "100000"], "--slots must be between"),
    (["--queue", "-1"], "--queue must be between"),
    (["--max_lag", "0"], "--max_lag must be at least"),
    (["--max_lag", "nan"], "--max_lag must be at least"),
    (["--idle_seconds", "0"], "--idle_seconds must be greater"),
    (["--save_seconds", "nan"], "--save_seconds must be greater"),
    (["--token", ""], "--token is empty"),
    (["--sessions", ""], "--sessions is empty"),
    (["--sessions", "bad/cert.pem"], "is a file"),
    (["--sessions", "bad/cert.pem/kept"], "cannot be kept in bad/cert.pem/kept: Not a directory"),
    (["--sessions", "x" * 300], "File name too long"),
    (["--sessions", "/proc"], "cannot be kept in /proc"),
    (["--host", ""], "--host is empty"),
    (["--host", "0.0.0.0"], "--token"),
    (["--host", "::"], "--token"),
    (["--host", "no.such.host.invalid"], "no such host"),
    (["--origin", "example.org"], "--origin reads"),
    (["--origin", "https://example.org/page"], "--origin reads"),
    (["--origin", "https://example.org#page"], "--origin reads"),
    (["--origin", "https://me@example.org"], "--origin reads"),
    (["--origin", "https://example.org:http"], "--origin reads"),
    (["--origin", "https://[::1"], "--origin reads"),
    (["--origin", "https://:443"], "--origin reads"),
    (["--seed", "-1"], "--seed must be between"),
    (["--temp", "0"], "--temp must be greater"),
    (["--device", "mps"], "PyTorch finds no Apple GPU here"),
    (["--device", "tpu"], "auto, cpu, cuda"),
    (["--checkpoint_dir", "missing"], "no folder at missing"),
]


@pytest.mark.parametrize(("options", "complaint"), BAD_VALUES, ids=str)
def test_serve_refuses_what_cannot_work(trained, tmp_path, monkeypatch, capsys, options, complaint):
    (tmp_path / "bad").mkdir()
    for name in ("cert.pem", "key.pem"):
        (tmp_path / "bad" / name).write_text("no certificate")
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--checkpoint_dir", str(trained), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and complaint in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_names_are_listed_as_long_as_they_are(tmp_path, capsys, monkeypatch):
    """They are what the other commands want, and a pipe has no width."""
    monkeypatch.setenv("COLUMNS", "40")
    names = ["c" * 64, Sessions.new_id()]
    for name in names:
        (tmp_path / f"{name}.session").write_bytes(b"12345")
    assert main(["sessions", "ls", "--sessions", str(tmp_path)]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(names)
    assert all(line[66:].startswith("not readable  20") for line in lines) and title.index("heard") == 66


def test_a_server_that_may_open_too_few_files_says_so(tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        assert main(["serve", "--checkpoint_dir", "nowhere", "--port", "0", "--slots", "150"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "--slots 150: this process may open 200 files" in (error := capsys.readouterr().err)
    assert "`ulimit -n 844`" in error


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["serve", "--checkpoint_dir", "nowhere", "--host", "127.0.0.1", "--port", str(port)]
        assert main(arguments) == 2
    assert f"port {port} of 127.0.0.1 cannot be taken" in capsys.readouterr().err


def test_a_server_that_could_not_save_does_not_end_well(serve, tmp_path):
    server = serve("--max_lag", "inf")

    async def scene() -> int:
        async with aiohttp.ClientSession() as http, http.ws_connect(server.url) as talking:
            await until_ready(talking)
            for frame in frames(5):
                await talking.send_bytes(b"\x01" + frame)
            heard = 0
            while heard < 3:
                heard += (await talking.receive(timeout=WAIT)).data[0] == 1
            shutil.rmtree(tmp_path / "sessions", ignore_errors=True)
            (tmp_path / "sessions").write_text("in the way")
            loop = asyncio.get_running_loop()
            return (await loop.run_in_executor(None, server.stop, signal.SIGTERM))[0]

    assert asyncio.run(scene()) == 1
