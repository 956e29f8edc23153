"""`--ray`: a cluster makes the bytes that one process makes, whichever of its processes is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.processes import ENV
from ttt_moshi.cli.main import main
from ttt_moshi.extras import installed
from ttt_moshi.frames import SAMPLE_RATE

SHORT, LONG = 3, 3
WITHIN = 300.0
"""seconds that nothing here takes"""
# A cluster takes only those who know its token, and waits long enough for its parts on a busy machine.
RAY_ENV = {**ENV, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "made-up", "RAY_agent_register_timeout_ms": "300000"}


@pytest.mark.skipif(installed("ray"), reason="this is about its absence")
def test_without_ray_one_line_says_how_to_get_it(tmp_path, capsys):
    assert main(["data", "prepare", str(tmp_path), "--out", str(tmp_path / "out"), "--ray"]) == 2
    told = capsys.readouterr().err
    assert "`--ray` needs the package ray: pip install 'ttt-moshi[ray]'" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "refused"),
    [("{folder}", False), ("file://{folder}", False), ("s3://b/calls", True), ("{folder},s3://b/calls", True)],
)
def test_a_url_is_refused_wherever_it_stands_and_one_of_the_disk_is_none(tmp_path, capsys, path, refused):
    assert main(["data", "encode", path.format(folder=tmp_path), "--ray", "no host"]) == 2
    assert ("folders that all machines see, not at URLs" in capsys.readouterr().err) == refused


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """Address and process of a cluster of one machine with room for two workers."""
    pytest.importorskip("ray", reason="the ray extra is not installed")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # pytest's own are too long for the names of sockets
    for _ in range(4):  # Ray gives its own parts half a minute to start, which they need on a busy machine
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"num-cpus": 2, "port": port, "object-store-memory": 10**8, "include-dashboard": "false"}
        options |= {"node-ip-address": "127.0.0.1", "temp-dir": folder}
        words = ["start", "--head", "--block", "--disable-usage-stats", *(f"--{n}={v}" for n, v in options.items())]
        with (folder / "output").open("w") as out:
            command = [sys.executable, "-m", "ray.scripts.scripts", *words]
            process = subprocess.Popen(command, env=RAY_ENV, stdout=out, stderr=out, start_new_session=True)
        while process.poll() is None and "will now block" not in (folder / "output").read_text():
            time.sleep(0.1)
        if process.poll() is None:
            break
    assert process.returncode is None, (folder / "output").read_text()
    yield f"127.0.0.1:{port}", process.pid
    for pid in [*(pid for pid in processes() if process.pid in ancestors(pid)), process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def ancestors(pid: int) -> list[int]:
    found = []
    try:
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
    except OSError:  # it has ended meanwhile
        pass
    return found


def at_work(root: int) -> list[int]:
    """Workers below a process that do a task at this moment, as Ray names them."""
    found = []
    for pid in processes():
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::_Worker.do") and root in ancestors(pid):
            found.append(pid)
    return found


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> Path:
    """Calls without a transcript, long ones with one, a file that is none."""
    from ttt_moshi.synthetic.espeak import Voice, speak

    folder = tmp_path_factory.mktemp("made") / "calls"
    folder.mkdir()
    for number in range(SHORT):
        said = [speak(f"{text} {number}", Voice("en-us", rate=140 + number)) for text in ("good morning", "thank you")]
        channels = np.random.default_rng(number).normal(0, 1e-4, (6 * SAMPLE_RATE, 2)).astype(np.float32)
        for channel, utterance in enumerate(said):
            begin = round((0.4 + 2.5 * channel) * SAMPLE_RATE)
            channels[begin : begin + len(utterance.samples), channel] += utterance.samples
        soundfile.write(folder / f"short{number}.wav", channels, SAMPLE_RATE)
    words = [["hello", [at, at + 0.3], "SPEAKER_MAIN"] for at in np.arange(0.1, 239, 1.0).round(3).tolist()]
    for number in range(LONG):
        t = np.arange(240 * 8000) / 8000
        noise = np.random.default_rng(number).normal(0, 1e-3, (2, len(t)))
        tone = (t % 1 > 0.1) * (t % 1 < 0.4) * 0.3 * np.sin(2 * np.pi * (300 + number) * t)
        soundfile.write(folder / f"long{number}.flac", np.stack([noise[0] + tone, noise[1]], axis=1), 8000)
        (folder / f"long{number}.json").write_text(json.dumps({"alignments": words}))
    (folder / "broken.wav").write_bytes(b"RIFF, or so it says")
    return folder


def tree(folder: Path, *but: str) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.endswith(but)} if but else files


def killed_once(words: Sequence[object], root: int, folder: Path) -> tuple[int, str]:
    """Runs a command and kills a worker of the cluster in the middle of a task; exit status and output."""
    out = folder / "output"
    with out.open("w") as file:
        command = [sys.executable, "-m", "ttt_moshi", *map(str, words)]
        process = subprocess.Popen(command, env=RAY_ENV, cwd=folder, stdout=file, stderr=file)
        began = time.monotonic()
        while process.poll() is None and not (working := at_work(root)):
            assert time.monotonic() - began < WITHIN
        assert process.returncode is None, out.read_text()
        os.kill(working[0], signal.SIGKILL)
        status = process.wait(WITHIN)
    return status, out.read_text()


@pytest.mark.slow
def test_without_a_cluster_this_machine_is_one_and_an_interruption_ends_it(calls, tmp_path):
    """First, while there is none."""
    pytest.importorskip("ray", reason="the ray extra is not installed")
    words = [sys.executable, "-m", "ttt_moshi", "data", "prepare", str(calls), "--out", "set", "--ray"]
    # A terminal sends its signal to all, Ray's processes among them; who stops a command sends it to that one.
    for send, number, status in ((os.killpg, signal.SIGINT, 130), (os.kill, signal.SIGTERM, 143)):
        process = subprocess.Popen(
            words, cwd=tmp_path, env=RAY_ENV, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background lacks
        )  # fmt: skip
        began = time.monotonic()
        while process.poll() is None and not at_work(process.pid):
            assert time.monotonic() - began < WITHIN
        assert process.returncode is None
        send(process.pid, number)
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
        assert process.wait(WITHIN) == status
    ended = subprocess.run(words, cwd=tmp_path, env=RAY_ENV, capture_output=True, text=True)
    assert ended.returncode == 1 and "broken.wav" in ended.stdout and f"{SHORT + LONG} recordings" in ended.stdout
    assert ended.stderr == "", "Ray keeps quiet"


@pytest.mark.slow
def test_three_commands_with_a_killed_worker_each_make_the_bytes_of_one_process(
    cluster, calls, tiny_material, tmp_path
):
    address, root = cluster
    steps = [
        (["annotate", "calls", "--engine", "pocketsphinx"], 1),
        (["prepare", "calls", "--out", "set"], 1),
        (["encode", "set", "--hf_repo_id", tiny_material.base_model, "--cache_dir", "cache", "--out", "codes"], 0),
    ]  # the broken recording is told
    places = {name: tmp_path / name for name in ("alone", "shared")}
    for place in places.values():
        shutil.copytree(calls, place / "calls")
    for words, expected in steps:
        command = [sys.executable, "-m", "ttt_moshi", "data", *map(str, words)]
        assert subprocess.run(command, cwd=places["alone"], env=RAY_ENV).returncode == expected
        status, output = killed_once(["data", *words, "--ray", address], root, places["shared"])
        assert status == expected, output
        assert output.count("a process of the Ray cluster died") == 1 and "Traceback" not in output, output
        (places["shared"] / "output").unlink()
        # The digests that are remembered have paths and times in them, in the order in which they were found.
        made = [tree(place, ".digests.jsonl") for place in places.values()]
        assert made[0].keys() == made[1].keys() and made[0] == made[1], words
    assert sum(name.startswith("cache/") for name in made[0]) == SHORT + LONG
    assert sum(name.startswith("codes/codes/") for name in made[0]) == SHORT + LONG


@pytest.mark.slow
def test_what_a_killed_call_has_done_is_not_done_again_with_ray_or_without(cluster, calls, tmp_path):
    address, _ = cluster
    command = [sys.executable, "-m", "ttt_moshi", "data", "prepare", str(calls), "--out"]
    assert subprocess.run([*command, "alone"], cwd=tmp_path, env=RAY_ENV).returncode in (0, 1)
    process = subprocess.Popen([*command, "set", "--ray", address], cwd=tmp_path, env=RAY_ENV)
    tried, began = tmp_path / ".set.partial" / "tried.jsonl", time.monotonic()
    while process.poll() is None and not (tried.is_file() and tried.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() - began < WITHIN
    process.kill()
    assert process.wait() == -signal.SIGKILL, "killed before its end"
    outcomes = [json.loads(line)[1] for line in tried.read_text().splitlines()[1:]]
    assert outcomes and len(outcomes) <= SHORT + LONG
    before = {path.stat().st_ino: path.stat().st_mtime_ns for path in (tmp_path / ".set.partial" / "done").glob("*")}
    assert subprocess.run([*command, "set"], cwd=tmp_path, env=RAY_ENV).returncode in (0, 1)
    after = {path.stat().st_ino: path.stat().st_mtime_ns for path in (tmp_path / "set" / "recordings").glob("*.wav")}
    assert len(before.items() & after.items()) >= sum(outcome["left_out"] is None for outcome in outcomes)
    assert tree(tmp_path / "set") == tree(tmp_path / "alone")


SPREAD = """
import os, sys
from pathlib import Path
from ttt_moshi.data.cluster import connected

def make():
    def do(number):
        if number == 3:
            os.kill(os.getpid(), 9)
        if number == 9:
            raise OSError(28, "No space left on device", "made.wav")
        return number * number
    return do

with connected(sys.argv[1]) as cluster:
    print(sorted(cluster.spread(make, range(9), [Path("written")])), list(Path("written").iterdir()))
    list(cluster.spread(make, [9], []))
"""


@pytest.mark.slow
def test_a_task_that_kills_its_process_costs_no_other_and_errors_come_as_they_are(cluster, tmp_path):
    words = [sys.executable, "-c", SPREAD, cluster[0]]
    ended = subprocess.run(words, cwd=tmp_path, env=RAY_ENV, capture_output=True, text=True)
    expected = [(number, None if number == 3 else number * number) for number in range(9)]
    assert ended.stdout == f"{expected} []\n", ended.stderr
    assert ended.stderr.count("a process of the Ray cluster died") == 2
    assert ended.stderr.endswith("OSError: [Errno 28] No space left on device\n") or "made.wav" in ended.stderr
