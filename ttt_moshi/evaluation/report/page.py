"""One self-contained HTML page: no script, no network, pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
figure { margin: 1rem 0; } summary { cursor: pointer; } summary h2 { display: inline; font-size: 1.2rem; }
details { border-top: 1px solid var(--line); padding: .6rem 0; } audio { width: 100%; max-width: 30rem; }
</style></head>
<body>
{{ body | safe }}
</body></html>
"""

PLAYERS = """{% for one in recordings %}<p><strong>{{ one.name }}</strong>: {{ one.words or "(no word)" }}<br>
user <audio controls preload="none" src="{{ one.folder | urlencode }}/input.wav"></audio>
model <audio controls preload="none" src="{{ one.folder | urlencode }}/output.wav"></audio></p>
{% endfor %}"""


@dataclass(frozen=True)
class Recorded:
    """A conversation that can be listened to; `folder` is relative to the page."""

    name: str
    folder: str
    words: str


def page(
    title: str,
    markdown: str,
    figures: Mapping[str, str],
    recordings: Mapping[str, Sequence[Recorded]] | None = None,
    folds: bool = False,
) -> str:
    """HTML of a report from its Markdown.

    Args:
        figures: the SVG `figures[name]` follows the heading `## name`.
        recordings: so do players of `recordings[name]`, whose files lie beside the page.
        folds: whether everything below a heading of the second level is folded away until it is asked for.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    players = Environment(autoescape=True).from_string(PLAYERS)
    opened = False

    def before_heading(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        nonlocal opened
        opening = renderer.renderToken(tokens, place, options, env)
        if not folds or tokens[place].tag != "h2":
            return opening
        before, opened = "</details>" if opened else "", True
        return f"{before}<details><summary>{opening}"

    def after_heading(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
        closing = renderer.renderToken(tokens, place, options, env)
        if tokens[place].tag != "h2":
            return closing
        name = tokens[place - 1].content
        if folds:
            closing += "</summary>"
        if (svg := figures.get(name)) is not None:
            closing += f"<figure>{svg[svg.index('<svg') :]}</figure>\n"
        if recordings and recordings.get(name):
            closing += players.render(recordings=recordings[name])
        return closing

    parser.add_render_rule("heading_open", before_heading)
    parser.add_render_rule("heading_close", after_heading)
    body = parser.render(markdown) + ("</details>" if opened else "")
    return Environment(autoescape=True).from_string(TEMPLATE).render(title=title, body=body)
