"""Rows of a file of prompts: text, CSV, TSV, JSON or JSON lines, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from npnet_training.errors import PromptsError

GZIP = b"\x1f\x8b"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_NAMES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (".txt", *DELIMITERS, *JSON_NAMES)


def kind_of(path: Path) -> str:
    """The suffix that says how a file is written, without `.gz` and in lower case."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and the row: a text, or what a table or JSON has there.

    A table with a single column has the whole line as its value, delimiters and all. A file of another name
    is JSON if it is JSON, else it has a prompt a line.

    Args:
        path: in UTF-8, with or without a mark at the beginning; `~` is the user's folder.

    Raises:
        PromptsError: no such file, or one that is not what it is named. A row's error is raised when it is
            reached.
    """
    kind = kind_of(path)
    try:
        with _text(path.expanduser()) as file:
            if kind in DELIMITERS:
                yield from _table(path, file, DELIMITERS[kind])
            else:
                yield from _lines(path, file, kind in JSON_NAMES)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise PromptsError(f"{path}: expected a file of prompts in UTF-8 ({error})") from error


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Opened, and unzipped by content, not by name; a pipe is not read twice."""
    with path.open("rb") as file:
        zipped = file.peek(2)[:2] == GZIP
        with gzip.GzipFile(fileobj=file) if zipped else file as octets:
            yield io.TextIOWrapper(octets, encoding="utf-8-sig", newline="")


def _table(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[str, Any]]:
    rows, number = csv.DictReader(file, strict=True, delimiter=delimiter, restkey="\0"), 1
    try:
        names = list(rows.fieldnames or ())
        number += rows.line_num if names else 0  # where the next row begins
        for row in rows:
            if len(names) == 1:
                row = {names[0]: delimiter.join([row[names[0]], *row.get("\0", [])])}
            elif more := row.get("\0"):
                raise PromptsError(
                    f"{path}:{number}: expected {len(names)} values, as the first line names "
                    f"{', '.join(names)}; given {len(names) + len(more)}: put a prompt with {delimiter!r} in "
                    f"it in quotes, or leave the prompts as the only column"
                )
            yield f"{path}:{number}", row
            number = rows.line_num + 1
    except csv.Error as error:
        raise PromptsError(
            f"{path}:{number}: expected separated values, quotes closed and doubled inside ({error})"
        ) from error


def _lines(path: Path, file: TextIO, named_json: bool) -> Iterator[tuple[str, Any]]:
    blank = 0
    for first in file:
        if first.strip():
            break
        blank += 1
    else:
        return
    lines: Iterator[str] = chain([first], file)
    opening = first.strip()[0]
    of_json_lines = opening == "{" and _json(first) is not None
    if opening in "[{" and not of_json_lines:
        text = first + file.read()  # one value over many lines; or none
        if (value := _json(text)) is not None:
            for number, row in enumerate(value if isinstance(value, list) else [value], 1):
                yield f"{path}, item {number}", row
            return
        lines = iter(text.splitlines(keepends=True))
    as_json = named_json or of_json_lines
    for number, line in enumerate(lines, blank + 1):
        where = f"{path}:{number}"
        if "\0" in line:
            raise PromptsError(f"{where}: expected prompts, given a file that is not text")
        if not as_json:
            yield where, line
        elif line.strip():
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise PromptsError(f"{where}: expected a JSON object, given {line[:60]!r}") from error


def _json(text: str) -> dict[str, Any] | list[Any] | None:
    """The object or list that a text is, None if it is neither."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, (dict, list)) else None
