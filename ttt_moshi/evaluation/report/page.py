"""One self-contained HTML page: no script, no network, pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width"><style>
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
</style></head>
<body>
{{ body | safe }}
</body></html>
"""


def page(title: str, markdown: str, figures: Mapping[str, str]) -> str:
    """HTML of a report from its Markdown; the SVG `figures[name]` follows the heading `## name`."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def after_heading(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        closing = renderer.renderToken(tokens, place, options, env)
        svg = figures.get(tokens[place - 1].content) if tokens[place].tag == "h2" else None
        return closing if svg is None else f"{closing}<figure>{svg[svg.index('<svg') :]}</figure>\n"

    parser.add_render_rule("heading_close", after_heading)
    return Environment(autoescape=True).from_string(TEMPLATE).render(title=title, body=parser.render(markdown))
