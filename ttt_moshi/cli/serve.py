"""Let people talk to a checkpoint, through a page of its own, moshi's page or its command-line client."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
import ssl
import tarfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console

from ttt_moshi.cli import serve_bench
from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.talking import add_options, check_options, open_prompt, open_speaker
from ttt_moshi.errors import UserError
from ttt_moshi.files import try_folder

if TYPE_CHECKING:
    from aiohttp import web

    from ttt_moshi.inference.server import Server
    from ttt_moshi.inference.settings import Settings

SHUTDOWN_SECONDS = 1.5
MAX_SLOTS = 1024
ASKING = 256
"""connections beside those that talk or wait: of pages, of those who ask how it is, of those who ask for nothing"""
FEWEST_ASKING = 16
OWN_FILES = 64
"""that the server itself may have open: the model, the page, sessions, the device"""

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """`ttt-moshi serve --checkpoint_dir D`; runs until it is interrupted, and returns 0 when all is saved then."""
    if argv[:1] == ["bench"]:
        return serve_bench.main(argv[1:])
    parser = Parser(
        prog="ttt-moshi serve",
        description="Serves conversations to browsers (at /) and to `python -m moshi.client`. Every visitor has a "
        "memory of their own, which is kept: whoever holds its id goes on with it. Stops at Ctrl-C or SIGTERM, with "
        "everything saved. `ttt-moshi serve bench` finds out how many conversations this machine holds in real time.",
    )
    add = parser.add_argument
    add("--host", default="localhost", help="default: %(default)s; 0.0.0.0 lets other machines in, and wants --token")
    add("--port", type=int, default=8998, help="default: %(default)s; 0 takes a free one")
    add("--slots", type=int, default=1, help="conversations at the same time; default: %(default)s")
    add("--queue", type=int, default=16, help="visitors who may wait for a place; default: %(default)s")
    add("--max_lag", type=float, default=0.5, help="seconds that a client may be behind; of more the oldest audio is "
        "dropped; inf drops nothing and makes the client wait; default: %(default)s")  # fmt: skip
    add("--idle_seconds", type=float, default=60.0, help="without audio, after which a visitor is let go; default: 60")
    add("--sessions", default="sessions", help="folder in which conversations are kept, or none; default: %(default)s")
    add("--save_seconds", type=float, default=30.0, help="between saves of a conversation that goes on; default: 30")
    add("--token", help="what clients must know: pass it on as http://HOST:PORT/#token=TOKEN")
    add("--allow_anyone", action="store_true", help="let other machines in without --token")
    add("--origin", action="append", default=[], help="another page that may talk here, as https://example.org")
    add("--static", default="own", help="page: own, official (moshi's, from the hub), none, or a folder; default: own")
    add("--ssl", type=Path, help="folder with cert.pem and key.pem; browsers ask for it on other machines")
    add_options(parser)
    parser.set_defaults(seed=None)
    options = parser.parse_args(argv)
    check_options(options)
    settings = _settings(options)
    context = _ssl_context(options.ssl)
    page = _page(options.static)
    connections = _connections(options)
    # The port is taken before minutes of loading, and PyTorch imported only after all that may be mistyped.
    sockets = _listen(options)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        speaker, sampling = open_speaker(options, Console(stderr=True, highlight=False))
        from ttt_moshi.inference import Slots
        from ttt_moshi.inference.app import make_app
        from ttt_moshi.inference.server import Server
        from ttt_moshi.inference.sessions import Sessions
        from ttt_moshi.moshi.device import use_device

        sessions = None if options.sessions == "none" else Sessions(Path(options.sessions))
        slots = Slots(speaker, options.slots, sampling, watched=True)
        start = open_prompt(options, speaker, sampling)
        prepare = partial(use_device, str(speaker.model.device))

        async def run() -> int:
            server = Server(slots, settings, sessions, options.seed, start, prepare)
            return await _serve(server, make_app(server, page), sockets, context, connections)

        return asyncio.run(run())
    finally:
        # Nothing is left to be freed that matters, and the interpreter's last collections would look at every object
        # of PyTorch: a second of a process that is told to end.
        gc.freeze()
        for one in sockets:
            one.close()


async def _serve(
    server: Server,
    app: web.Application,
    sockets: list[socket.socket],
    context: ssl.SSLContext | None,
    connections: int,
) -> int:
    """Serves until a signal comes, or the model fails; so many connections at the same time."""
    from aiohttp import web

    from ttt_moshi.inference.door import Door

    door = Door(app, connections)
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_SECONDS, **door.runner_options)
    await runner.setup()  # until the model is warm nobody has anything to lose, and a signal ends the process as usual
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stopped.set)
    try:
        assert runner.server is not None
        for one in sockets:
            door.listen(one, runner.server, context)
        scheme = "http" if context is None else "https"
        for one in sockets:
            host, port = one.getsockname()[:2]
            logger.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
        await server.stopped.wait()
        logger.info("stopping")
    finally:
        await door.close()
        await runner.cleanup()
    return 0 if server.failure is None and not server.lost else 1


def _settings(options: Any) -> Settings:
    """What was asked for, checked."""
    for name, low, high in (("slots", 1, MAX_SLOTS), ("queue", 0, 100_000), ("port", 0, 65535)):
        if not low <= getattr(options, name) <= high:
            raise UserError(f"--{name} must be between {low} and {high}, not {getattr(options, name)}")
    if not options.max_lag >= 0.08:
        raise UserError(f"--max_lag must be at least 0.08 (one frame), not {options.max_lag}")
    for name in ("idle_seconds", "save_seconds"):
        if not getattr(options, name) > 0.0:
            raise UserError(f"--{name} must be greater than 0, not {getattr(options, name)}")
    for name in ("token", "sessions", "host"):
        if getattr(options, name) == "":
            raise UserError(f"--{name} is empty")
    origins = frozenset(_origin(origin) for origin in options.origin)
    loopback = all(ipaddress.ip_address(address).is_loopback for _, address in _addresses(options))
    if not loopback and options.token is None and not options.allow_anyone:
        raise UserError(
            f"--host {options.host} lets other machines in: give them a --token to know, or pass --allow_anyone"
        )
    if options.sessions != "none":
        folder = Path(options.sessions)
        try:
            if folder.is_file():
                raise UserError(f"--sessions: {folder} is a file, and conversations are kept in a folder")
            try_folder(folder)
        except OSError as error:
            raise UserError(
                f"--sessions: conversations cannot be kept in {folder}: {error.strerror}; name a folder that can be "
                "written, or none"
            ) from error
    from ttt_moshi.inference.settings import Settings

    return Settings(
        max_lag=None if math.isinf(options.max_lag) else options.max_lag,
        max_queue=options.queue,
        idle_seconds=options.idle_seconds,
        save_seconds=options.save_seconds,
        greeting=not options.no_greeting,
        token=options.token,
        # Another name that leads here is a trick of another page's, unless other machines are let in.
        hosts=frozenset({"localhost", "127.0.0.1", "::1", options.host.lower()}) if loopback else None,
        origins=origins,
    )


def _origin(text: str) -> str:
    """`--origin` as browsers write it: in small letters, without the port that is usual, other alphabets in ASCII.

    Raises:
        UserError: it is no origin.
    """
    wrong = UserError(f"--origin reads https://HOST or https://HOST:PORT, not {text!r}")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        if host and ":" in host:
            host = f"[{ipaddress.IPv6Address(host)}]"
        elif host and not host.isascii():
            host = host.encode("idna").decode()
    except ValueError as error:
        raise wrong from error
    usual = {"http": 80, "https": 443}
    beyond = parts.username is not None or parts.path or parts.query or parts.fragment
    if parts.scheme not in usual or not host or beyond:
        raise wrong
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual[parts.scheme]) else f":{port}")


def _connections(options: Any) -> int:
    """How many connections there may be at the same time: fewer than this process may open files.

    Raises:
        UserError: not even one for each who talks.
    """
    wanted = options.slots + options.queue + ASKING
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return wanted
    free = most - len(os.listdir("/dev/fd")) - OWN_FILES
    if free < options.slots + FEWEST_ASKING:
        raise UserError(
            f"--slots {options.slots}: this process may open {most} files, too few for so many connections; "
            f"`ulimit -n {2 * wanted}` lets it open more"
        )
    return min(wanted, free)


def _addresses(options: Any) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(options.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {options.host}: no such host ({error})") from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _listen(options: Any) -> list[socket.socket]:
    """A bound socket for every address of the host, all on one port."""
    sockets: list[socket.socket] = []
    port = options.port
    try:
        for family, address in _addresses(options):
            one = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address, port))
            port = one.getsockname()[1]
    except OSError as error:
        for one in sockets:
            one.close()
        raise UserError(
            f"port {port} of {options.host} cannot be taken: {error.strerror}; choose another --port"
        ) from error
    return sockets


def _ssl_context(folder: Path | None) -> ssl.SSLContext | None:
    if folder is None:
        return None
    for name in ("cert.pem", "key.pem"):
        if not (folder / name).is_file():
            raise UserError(f"--ssl: there is no {name} in {folder}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except ssl.SSLError as error:
        raise UserError(f"--ssl: cert.pem and key.pem in {folder} are no certificate and its key: {error}") from error
    return context


def _page(static: str) -> Path | None:
    """The folder of the web page."""
    if static == "none":
        return None
    if static == "official":
        return _official_page()
    folder = Path(__file__).parents[1] / "inference" / "page" if static == "own" else Path(static)
    if not (folder / "index.html").is_file():
        raise UserError(f"--static: there is no index.html in {folder}")
    return folder


def _official_page() -> Path:
    from huggingface_hub.errors import LocalEntryNotFoundError

    from ttt_moshi.moshi.paths import hub_file

    try:
        archive = hub_file("kyutai/moshi-artifacts", "dist.tgz")
    except LocalEntryNotFoundError as error:
        raise UserError(
            "the official web page cannot be fetched from the hub: leave --static out for our own page, or pass "
            "--static FOLDER with a copy of it"
        ) from error
    page = archive.parent / "dist"
    if not page.exists():
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(archive.parent, filter="data")
    return page
