"""People who come, talk, leave, lose their line and come back, for as long as you like:

    python -m benchmarks.inference.soak --minutes 60 --clients 8

Says how long a tick takes, how far behind the server is and how long people wait for an answer, alone and together, and
whether the server's memory stayed flat, no place was lost and every conversation can go on. Exit code 1 if one of that
is not so.

Without --checkpoint_dir a tiny model is made and trained for two steps. What is said is noise, a frame every 80 ms, in
PCM, and nothing is dropped (`--max_lag inf`), so that every delay is seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.inference.people import DEAD_SECONDS, Found, Visitor
from benchmarks.ttt.machine import facts, write
from ttt_moshi.config import DataArgs, LoraArgs, ModelPaths, TrainArgs, TTTArgs

SAMPLE_SECONDS = 2.0
FLAT = 0.05
"""growth of memory from the second third of the time to the last that passes for none"""


def main(argv: list[str] | None = None) -> int:
    """Runs it, prints a summary, and returns 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=_positive(float), default=10.0, help="of all clients; default: 10")
    parser.add_argument("--clients", type=_positive(int), default=8, help="default: %(default)s, each with a place")
    parser.add_argument("--checkpoint_dir", type=Path, help="checkpoint or run; default: a tiny model is made")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint_dir or make_checkpoint(Path(folder) / "model")
        with server(checkpoint.absolute(), Path(folder), options.clients) as (process, port):
            found = asyncio.run(soak(process.pid, port, options.clients, 60.0 * options.minutes))
            process.send_signal(signal.SIGTERM)
            found["exit_code"] = process.wait(60)
    found["machine"] = facts()
    print(json.dumps(found, indent=2))
    if options.json:
        write(options.json, found)
    bad = problems(found)
    for problem in bad:
        print(f"not as it should be: {problem}")
    return 1 if bad else 0


async def soak(pid: int, port: int, clients: int, seconds: float) -> dict[str, Any]:
    """One visitor alone for a tenth of the time, then all of them; then everything that was kept is gone on with."""
    url = f"http://127.0.0.1:{port}/api/chat?events=1&format=pcm"
    alone, together = Found(), Found()
    await Visitor(url, alone, seed=0).talk(max(3.0, seconds / 10))
    memory: list[float] = []
    sampling = asyncio.create_task(_sample(pid, memory))
    end = time.monotonic() + seconds
    await asyncio.gather(*(Visitor(url, together, seed).visit_until(end) for seed in range(1, 1 + clients)))
    sampling.cancel()
    free = await _free(port, clients)
    sessions = {**alone.sessions, **together.sessions}
    lost = [name for name, frames in sessions.items() if not await _resumes(url, name, frames)]
    third = len(memory) // 3
    before, after = statistics.median(memory[third : 2 * third]), statistics.median(memory[2 * third :])
    return {
        "minutes": seconds / 60,
        "alone": _times(alone),
        f"{clients} clients": _times(together),
        "ends": together.ends,
        "refused": alone.refused + together.refused,
        "memory_mb": {
            "first": round(memory[0]),
            "last": round(memory[-1]),
            "second third": round(before),
            "last third": round(after),
            "growth": round(after / before - 1, 4),
        },
        "places": {"all": clients, "free at the end": free},
        "sessions": {"kept": len(sessions), "that did not go on": lost},
    }


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words."""
    places, sessions = found["places"], found["sessions"]
    checks = {
        f"the server's memory grew by {found['memory_mb']['growth']:.1%}": found["memory_mb"]["growth"] > FLAT,
        f"{places['all'] - places['free at the end']} places were lost": places["all"] != places["free at the end"],
        f"conversations that did not go on: {sessions['that did not go on']}": bool(sessions["that did not go on"]),
        f"visitors were turned away: {found['refused'][:3]}": bool(found["refused"]),
        f"the server ended with code {found['exit_code']}": found["exit_code"] != 0,
    }
    return [words for words, is_so in checks.items() if is_so]


def make_checkpoint(folder: Path) -> Path:
    """A run of two steps of the tiny model, with memories in all its layers."""
    from ttt_moshi.synthetic import make_tiny_material
    from ttt_moshi.training import run

    material = make_tiny_material(folder / "material")
    run(
        TrainArgs(
            run_dir=str(folder / "run"),
            data=DataArgs(train_data=str(material.train_data)),
            moshi_paths=ModelPaths(hf_repo_id=str(material.base_model)),
            duration_sec=4.0,
            batch_size=2,
            max_steps=2,
            param_dtype="float32",
            ttt=TTTArgs(enable=True, layers="all", mini_batch_size=4),
            lora=LoraArgs(enable=False),
        )
    )
    return folder / "run"


@contextmanager
def server(checkpoint: Path, folder: Path, slots: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`ttt-moshi serve` in a process of its own, and its port."""
    script = "import sys; from ttt_moshi.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-u", "-c", script, "serve", "--checkpoint_dir", str(checkpoint), "--host", "127.0.0.1"]
    command += ["--port", "0", "--slots", str(slots), "--max_lag", "inf", "--save_seconds", "10"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            yield process, _port(process, folder / "server.log")
        finally:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[str], log: Path) -> int:
    while process.poll() is None:
        if listening := re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text()):
            return int(listening[1])
        time.sleep(0.2)
    raise SystemExit(f"the server did not start: {log.read_text()}")


async def _sample(pid: int, memory: list[float]) -> None:
    """Resident megabytes of a process, now and then."""
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
        await asyncio.sleep(SAMPLE_SECONDS)


async def _free(port: int, places: int) -> int:
    """Free places, when as many are as will be."""
    free = 0
    async with aiohttp.ClientSession() as http:
        for _ in range(round(3 * DEAD_SECONDS)):
            async with http.get(f"http://127.0.0.1:{port}/api/hello") as response:
                free = (await response.json())["free"]
            if free == places:
                break
            await asyncio.sleep(1.0)
    return free


async def _resumes(url: str, name: str, frames: int) -> bool:
    """Whether a conversation goes on, from where it was saved last or later."""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}&resume={name}") as socket:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY and b'"welcome"' in message.data:
                event = json.loads(message.data[1:])
                return bool(event["resumed"] and event["frames"] >= frames)
    return False


def _times(found: Found) -> dict[str, Any]:
    return {
        "frames answered": len(found.delays),
        "tick_ms": _percentiles(found.ticks),
        "lag_ms": _percentiles(found.lags),
        "mouth_to_ear_ms": _percentiles(found.delays),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{p}": round(1000 * cuts[p - 1], 1) for p in (50, 95, 99)}


def _positive(kind: type) -> Any:
    def parse(text: str) -> float:
        if not 0 < (value := kind(text)) <= 10_000:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


if __name__ == "__main__":
    sys.exit(main())
