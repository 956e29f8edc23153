"""Files of text as people, programs and the web leave them: JSON, JSON by lines, tables.

A byte order mark and any ends of lines are taken; what cannot be read is an `EvaluationError` with the file, and the
line where there is one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ttt_moshi.evaluation.errors import EvaluationError, line_of, well_formed
from ttt_moshi.files import read_text

ENCODING = "utf-8-sig"


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `EvaluationError` where it cannot be read."""
    with well_formed(path):
        return json.loads(read_text(path, encoding=ENCODING))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with their lines' numbers; empty lines are left out.

    Raises:
        EvaluationError: a line that is no JSON object, a file that cannot be read.
    """
    with well_formed(path):
        lines = read_text(path, encoding=ENCODING).split("\n")  # texts may hold other ends of lines
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with line_of(path, number):
            values = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("is no JSON object")
        yield number, values


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a comma-separated table by the names in its first line, each with the number of its last line.

    Raises:
        EvaluationError: a file that cannot be read, a row with more or fewer fields than the first line has names.
    """
    with well_formed(path):
        reader = csv.reader(io.StringIO(read_text(path, encoding=ENCODING), newline=""))
        names = [name.strip() for name in next(reader, [])]
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise EvaluationError(f"{path}, line {reader.line_num}: {error}") from None
        if fields is None:
            return
        if not fields:  # an empty line
            continue
        if len(fields) != len(names):
            raise EvaluationError(
                f"{path}, line {reader.line_num}: {len(fields)} fields, and the first line names {len(names)}"
            )
        yield reader.line_num, dict(zip(names, fields, strict=True))
