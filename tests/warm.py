"""A process that has imported the program, and forks itself for every Python command that it is told to run.

Importing PyTorch takes seconds, a fork milliseconds. The child is a process of its own: signals, exit status, output
and everything on disk are those of the command.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from tests.processes import TORCHRUN
from ttt_moshi.cli.main import COMMANDS


def main() -> None:
    """Answers `{"start": ...}` with a process id and `{"poll": pid}` with its exit status, or null while it runs."""
    for name in ("training", "evaluation.suite", "evaluation.subject", "inference", "inference.server", "synthetic"):
        importlib.import_module(f"ttt_moshi.{name}")
    for name in ("torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"):  # what a first step imports
        importlib.import_module(name)
    for command in COMMANDS:
        importlib.import_module(f"ttt_moshi.cli.{command}")
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if not pid:
            _enter(request["start"])
            _leave(_ranks(request["start"]["words"]))
        print(json.dumps(pid), flush=True)


def _enter(request: dict[str, Any]) -> None:
    """A session, output, folder and environment of its own."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags, 0o644), descriptor)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])


def _leave(status: int) -> None:
    """What others see of the end of a Python process; taking a large program to pieces takes half a second more."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _ranks(words: list[str]) -> int:
    """Runs a command, or what `torchrun` would start for it: the first rank that fails ends the others."""
    if tuple(words[:4]) != TORCHRUN:
        return _python(words)
    count = int(words[4])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": 0}
    running = {}
    for rank in range(count):
        pid = os.fork()
        if not pid:
            names = {**common, "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in names.items()})
            _leave(_python(words[5:]))
        running[pid] = rank
    # As torchrun: the signal reaches the whole group, and the launcher outlives its ranks.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    failed = False
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.005)
            continue
        del running[pid]
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGTERM)
    return int(failed)


def _python(words: list[str]) -> int:
    """`python words...`: a script, `-m module`, or `-c code`."""
    for folder in os.environ["PYTHONPATH"].split(os.pathsep):
        if (source := Path(folder) / "sitecustomize.py").is_file():
            runpy.run_path(str(source))
            break
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as asked:
        if isinstance(asked.code, str):
            print(asked.code, file=sys.stderr)
            return 1
        return int(asked.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
