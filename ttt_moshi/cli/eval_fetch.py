"""`ttt-moshi eval fetch`: data sets of benchmarks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from ttt_moshi.cli.arguments import Parser
from ttt_moshi.cli.eval_screen import Bars
from ttt_moshi.errors import UserError


def main(argv: list[str], console: Console) -> int:
    """Fetches one data set; status 0 when all of it is there and right."""
    parser = Parser(
        prog="ttt-moshi eval fetch",
        description="Fetches the data of a benchmark to where --data_root finds it. What was interrupted goes on. Each "
        "digest is held against the published one, and else against that of the first time, in fetched.json.",
    )
    parser.add_argument("name", nargs="?", help="data set; `list` shows them with their licences")
    parser.add_argument("--out", type=Path, help="folder for benchmarks, later --data_root")
    parser.add_argument(
        "--revision", help="commit, branch or tag of a data set of the hub (HF_ENDPOINT names another hub)"
    )
    parser.add_argument("--url", help="instead of a name: address of an archive or a file, as of a record of Zenodo")
    parser.add_argument("--sha256", help="with --url: what its digest must be")
    parser.add_argument("--into", default="", help="with --url: folder below --out for what it holds")
    options = parser.parse_args(argv)
    from ttt_moshi.evaluation.fetching.sources import DATA_SETS

    if options.name == "list":
        for name, data_set in DATA_SETS.items():
            place = data_set.repository or data_set.url
            console.print(f"[bold]{name}[/]  {data_set.size}, licence: {data_set.licence}", soft_wrap=True)
            console.print(f"  for {data_set.tasks}; {place}", soft_wrap=True, highlight=False)
        return 0
    _check(options)
    from ttt_moshi.evaluation.fetching.download import Expected
    from ttt_moshi.evaluation.fetching.fetch import alone_in, fetch_repository, fetch_url

    with alone_in(options.out), Bars(console) as bars:
        if options.url is not None:
            expected = Expected(sha256=options.sha256 and options.sha256.lower())
            found = fetch_url(options.url, options.url, expected, options.out, options.into, bars.update)
        else:
            known = DATA_SETS[options.name]
            if known.repository is not None:
                found = fetch_repository(
                    options.name,
                    known.repository,
                    known.patterns,
                    options.out,
                    known.folder,
                    options.revision,
                    bars.update,
                )
            else:
                assert known.url is not None
                expected = Expected(md5=known.md5)
                found = fetch_url(options.name, known.url, expected, options.out, known.folder, bars.update)
    where = f"{found.source} at {found.revision}" if found.revision else found.source
    console.print(f"{len(found.files)} files of {where} are in {options.out}", soft_wrap=True, markup=False)
    return 0


def _check(options: Any) -> None:
    from ttt_moshi.evaluation.fetching.sources import DATA_SETS

    name, url, out = options.name, options.url, options.out
    if (name is None) == (url is None):
        raise UserError(f"name one data set ({', '.join(DATA_SETS)}), or its --url")
    if name is not None and name not in DATA_SETS:
        raise UserError(f"unknown data set `{name}` (there are {', '.join(DATA_SETS)}; any other by --url)")
    if out is None:
        raise UserError("name a folder for the data: --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    for key in ("sha256", "into"):
        if url is None and getattr(options, key):
            raise UserError(f"--{key} goes with --url alone")
    if options.revision and (url is not None or DATA_SETS[name].repository is None):
        raise UserError("--revision is for data sets of the hub alone")
    if url is not None and not _is_address(url):
        raise UserError(f"--url {url} is no address: https://..., http://... or file://...")
    if options.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", options.sha256):
        raise UserError(f"--sha256 {options.sha256} is not one: 64 hexadecimal digits")
    into = Path(options.into)
    if into.is_absolute() or ".." in into.parts:
        raise UserError(f"--into {into} is not a folder below --out")


def _is_address(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https", "file") and "://" in url
    except ValueError:  # brackets that are no address of IPv6
        return False
