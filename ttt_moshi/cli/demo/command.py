"""Show what TTT-Moshi is for, from nothing: it remembers, it cannot be lost, it learns, it talks."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.demo.jobs import DemoError, Jobs
from ttt_moshi.extras import need

RECORD = "demo.json"
MADE_BY = '{"made_by": "ttt-moshi demo"}\n'
PARTS = ("recall", "killed", "uninterrupted", "flipped", "evaluation", "talk", "logs")
"""what an earlier demo left and a new one makes again; speech and base model (`material`, `bench`) are used again"""
NEEDED_MB = 700


def main(argv: list[str]) -> int:
    """`ttt-moshi demo [--out runs/demo]`; status 0 if everything came out as it must."""
    parser = Parser(
        prog="ttt-moshi demo",
        description=f"{__doc__} Takes about six minutes on two idle cores, {NEEDED_MB} MB of disk, no GPU; ends with "
        "one page to look at.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="show the page in a browser at the end")
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    for package in ("espeakng_loader", "matplotlib"):
        need(package, "the demo")
    with claim(options.out):
        console.print(f"TTT-Moshi demo: about six minutes on two idle cores, up to {NEEDED_MB} MB in {options.out}")
        signal.signal(signal.SIGTERM, _interrupt)
        page = make(options.out, console)
    console.print(f"the page: {page}", soft_wrap=True)
    if options.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def make(out: Path, console: Console) -> Path:
    """Runs the demo in a claimed folder and returns its page.

    Raises:
        DemoError: something did not come out as it must.
    """
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from ttt_moshi.cli.demo.page import write_page
    from ttt_moshi.cli.demo.steps import Demo

    began = time.monotonic()
    with Jobs(console) as jobs:
        demo = Demo(out, jobs)
        demo.run()
    page = out / "index.html"
    write_page(page, demo.facts, program(), (time.monotonic() - began) / 60)
    return page


def program() -> str:
    """How this environment's `ttt-moshi` is called from here."""
    script = Path(sys.executable).with_name("ttt-moshi")
    if shutil.which("ttt-moshi") == str(script):
        return "ttt-moshi"
    here = Path.cwd()
    return str(script.relative_to(here)) if script.is_relative_to(here) else str(script)


@contextmanager
def claim(out: Path) -> Iterator[None]:
    """Makes the folder, or takes one that an earlier demo made, and removes what will be made again.

    Raises:
        DemoError: the folder holds something else, another demo works in it, or its disk has no room; nothing was
            touched then.
    """
    record = out / RECORD
    if out.exists() and not _is_demos(record) and (not out.is_dir() or any(out.iterdir())):
        raise DemoError(f"{out} holds something that the demo did not make: name another folder with --out")
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / 1e6
    if free < NEEDED_MB:
        raise DemoError(f"the demo needs {NEEDED_MB} MB of disk, {place} has {free:.0f}: name another place with --out")
    out.mkdir(parents=True, exist_ok=True)
    with record.open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo works in {out}: wait for it, or name another folder with --out") from None
        if not lock.tell():
            lock.write(MADE_BY)
            lock.flush()
        for part in PARTS:
            shutil.rmtree(out / part, ignore_errors=True)
        yield


def _is_demos(record: Path) -> bool:
    """Whether a demo made it; one that was killed early may have left it empty."""
    return record.is_file() and record.read_bytes() in (b"", MADE_BY.encode())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
