"""JSON: files that are whole or absent and say which schema they follow, files of an object a line, results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clada.errors import CladaError, InputError
from clada.system.files import local_copy, replacing

T = TypeVar("T")

DEFAULT_FIELD = "text"  # of the objects of a JSONL file


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write strict JSON (no NaN) atomically; `value` carries its own `schema`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """The same with `sha256`, for content whose parts depend on each other: if one changed, none can be trusted."""
    return {**value, "sha256": _digest(value)}


def check_checksum(value: dict[str, Any]) -> None:
    """Compare what `with_checksum` added.

    Raises:
        ValueError: it was altered since, or never there.
    """
    if value.get("sha256") != _digest({key: item for key, item in value.items() if key != "sha256"}):
        raise ValueError("it was altered since it was written")


def _digest(value: dict[str, Any]) -> str:
    read_back = json.loads(json.dumps(value))  # keys are text from here on, and sort as such
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def json_line(value: Any) -> str:
    """A result as one line of strict JSON.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON cannot say.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def split_field(name: str) -> tuple[str, str]:
    """Path and field of `PATH[:FIELD]`. A path may hold a colon itself: what exists as a file is a path."""
    if ":" not in name or Path(name).is_file():
        return name, DEFAULT_FIELD
    path, _, field = name.rpartition(":")
    return path, field


def json_lines(text: str, name: str | Path) -> Iterator[tuple[int, Any]]:
    """The values of a text with one a line; lines of blanks are passed over.

    Args:
        text: of the file.
        name: what messages call it.

    Yields:
        (number of the line, from 1; its value).

    Raises:
        InputError: a line is not JSON; with its number.
    """
    # At line feeds alone, not by `splitlines`: other line breaks may stand within a string of JSON.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{name}, line {number:,}: not JSON; give one object a line") from None
        yield number, value


def text_records(text: str, name: str | Path, field: str, remedy: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a text with one a line, each with a string in one of its fields.

    Args:
        text: of the file.
        name: what messages call it.
        field: with the string.
        remedy: how to name another field, for the message.

    Returns:
        (number of the line, from 1; the object).

    Raises:
        InputError: a line is not such an object; with its number and the fields that it has.
    """
    records = []
    for number, record in json_lines(text, name):
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            fields = ", ".join(map(repr, record)) if isinstance(record, dict) else "no fields"
            raise InputError(f"{name}, line {number:,}: no text in field '{field}' (there: {fields}); {remedy}")
        records.append((number, record))
    return records


def read_json(path: Path, schema: str, error: type[CladaError] = InputError) -> dict[str, Any]:
    """Read a JSON file of one of our schemas.

    Raises:
        error: no such file, not JSON, or of another schema.
        InputError: the connection to a URL breaks.
    """
    try:
        with local_copy(path) as file:
            content = file.read_bytes()
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or 'no such file'}") from None
    try:
        value = json.loads(content)  # a byte-order mark is none of it
    except (ValueError, RecursionError):  # not UTF-8, not JSON and nested too deep alike
        raise error(f"{path} is not a JSON file; write it again or give another one") from None
    schema_there = value.get("schema") if isinstance(value, dict) else None
    if schema_there != schema:
        raise error(f"{path} has schema {schema_there!r}, not {schema!r}; give a file of that kind")
    return dict(value)


def as_type(value: Any, kind: type[T], path: Path, remedy: str, error: type[CladaError] = InputError) -> T:
    """What a JSON file holds, as a type: fields there, their values of their kinds; fields beyond it are left out.

    Args:
        value: as `read_json` gives it.
        kind: a `msgspec.Struct` or a dataclass.
        path: the file, for the message.
        remedy: for the message.
        error: what to raise.

    Raises:
        error: the first field that is missing or holds something else, by its place in the file.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as problem:
        what, _, place = str(problem).replace("`", "").partition(" - at ")
        field = f", {place.replace('$.', '')}" if place else ""
        raise error(f"{path}{field}: {what[0].lower()}{what[1:]}; {remedy}") from None
    except InputError as problem:  # of a dataclass that checks its values
        raise error(f"{path}: {problem}; {remedy}") from None
