"""JSON files that are whole or absent, and that say which schema they follow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from clada.errors import CladaError, InputError
from clada.system.files import local_copy, replacing


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


def read_json(path: Path, schema: str, error: type[CladaError] = InputError) -> dict[str, Any]:
    """Read a JSON file of one of our schemas.

    Raises:
        error: no such file, not JSON, or of another schema.
        InputError: the connection to a URL breaks.
    """
    try:
        with local_copy(path) as file:
            value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or 'no such file'}") from None
    except ValueError:  # not UTF-8 and not JSON alike
        raise error(f"{path} is not a JSON file; write it again or give another one") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != schema:
        raise error(f"{path} has schema {found!r}, not {schema!r}; give a file of that kind")
    return dict(value)
