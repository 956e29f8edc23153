"""A process that has imported the program, and forks itself for every command that it is told to run.

Importing PyTorch takes seconds, a fork milliseconds. The child is a process of its own: signals, exit status, output
and everything on disk are those of the command.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from ttt_moshi.cli.main import COMMANDS


def main() -> None:
    """Answers `{"start": ...}` with a process id and `{"poll": pid}` with its exit status, or null while it runs."""
    for name in ("training", "evaluation.suite", "evaluation.subject", "inference", "inference.server", "synthetic"):
        importlib.import_module(f"ttt_moshi.{name}")
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
            _leave(_child(request["start"]))
        print(json.dumps(pid), flush=True)


def _leave(status: int) -> None:
    """What others see of the end of a Python process; taking a large program to pieces takes half a second more."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _child(request: dict[str, Any]) -> int:
    os.setsid()
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(path, flags, 0o644), descriptor)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if "APPLICATION_FAULTS" in os.environ:
        source = Path(__file__).parent / "on_path" / "sitecustomize.py"
        spec = importlib.util.spec_from_file_location("application_faults", source)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    from ttt_moshi.cli.main import main as command

    sys.argv = ["ttt-moshi", *request["words"]]
    try:
        return command(request["words"])
    except SystemExit as asked:
        return int(asked.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    main()
