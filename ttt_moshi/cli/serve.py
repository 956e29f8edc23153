"""Let people talk to a checkpoint, through moshi's web page or its command-line client."""

from __future__ import annotations

import logging
import ssl
import tarfile
from pathlib import Path

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.talking import add_options, check_options, open_speaker
from ttt_moshi.errors import UserError


def main(argv: list[str]) -> int:
    """`ttt-moshi serve --checkpoint_dir D`; runs until it is interrupted."""
    parser = Parser(
        prog="ttt-moshi serve",
        description="Serves one conversation at a time to moshi's web page (at /) and to `python -m moshi.client`. The "
        "memory of a conversation is its own: every visitor begins anew.",
    )
    parser.add_argument("--host", default="localhost", help="default: %(default)s; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8998, help="default: %(default)s")
    parser.add_argument("--static", help="folder of the web page, or none; default: the official page, from the hub")
    parser.add_argument(
        "--ssl", type=Path, help="folder with cert.pem and key.pem; browsers ask for it on other machines"
    )
    add_options(parser)
    options = parser.parse_args(argv)
    check_options(options)
    context = _ssl_context(options.ssl)
    page = _page(options.static)
    # PyTorch is imported only now: a mistyped flag must not wait for it.
    from aiohttp import web

    from ttt_moshi.inference import Conversation
    from ttt_moshi.inference.server import make_app

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    speaker, sampling = open_speaker(options)
    with Conversation(speaker, sampling) as conversation:
        logging.info("loading is done; stop with Ctrl-C")
        web.run_app(
            make_app(conversation, page), host=options.host, port=options.port, ssl_context=context, access_log=None
        )
    return 0


def _ssl_context(folder: Path | None) -> ssl.SSLContext | None:
    if folder is None:
        return None
    for name in ("cert.pem", "key.pem"):
        if not (folder / name).is_file():
            raise UserError(f"--ssl: there is no {name} in {folder}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def _page(static: str | None) -> Path | None:
    """The folder of the web page, fetched from the hub if none is named."""
    if static == "none":
        return None
    if static is None:
        return _official_page()
    if not (Path(static) / "index.html").is_file():
        raise UserError(f"--static: there is no index.html in {static}")
    return Path(static)


def _official_page() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        archive = Path(hf_hub_download("kyutai/moshi-artifacts", "dist.tgz"))
    except LocalEntryNotFoundError as error:
        raise UserError(
            "the official web page cannot be fetched from the hub: pass --static FOLDER with a copy of it, or "
            "--static none to serve the command-line client alone"
        ) from error
    page = archive.parent / "dist"
    if not page.exists():
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(archive.parent, filter="data")
    return page
