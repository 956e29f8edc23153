"""One self-contained HTML page: no script, no network, pictures inside."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { margin-bottom: .3rem; } h2 { margin: 2.4rem 0 .5rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
table { display: block; overflow-x: auto; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td:not(:last-child) { white-space: nowrap; }
thead th { background: var(--soft); } code { background: var(--soft); padding: .1rem .3rem; border-radius: .25rem; }
code { overflow-wrap: anywhere; } svg { width: 100%; height: auto; }
figure { margin: 1rem 0; }
"""


def page(title: str, markdown: str, figures: Mapping[str, str]) -> str:
    """HTML of a report from its Markdown; the SVG `figures[name]` follows the heading `## name`."""
    body = []
    for block in re.split(r"\n\n+", markdown.strip()):
        block = block.strip("\n")
        if block.startswith("## "):
            name = block[3:].strip()
            body.append(f"<h2>{_inline(name)}</h2>")
            if name in figures:
                body.append(f"<figure>{_embedded(figures[name])}</figure>")
        elif block.startswith("# "):
            body.append(f"<h1>{_inline(block[2:])}</h1>")
        elif block.startswith("|"):
            body.append(_table(block.splitlines()))
        else:
            body.append(f"<p>{_inline(block)}</p>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _embedded(svg: str) -> str:
    return svg[svg.index("<svg") :]


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _table(lines: list[str]) -> str:
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in rows[0])
    body = "\n".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
