"""Numbers with their intervals, and tables of them, in Markdown."""

from __future__ import annotations

from typing import Any


def interval(entry: dict[str, Any], digits: int = 4) -> str:
    """`0.7123 (0.69 - 0.73)` with as many digits as asked for."""
    low, high = entry["ci95"]
    return f"{entry['value']:.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
