"""JSON files that are whole or absent, and that say which schema they follow."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clada.errors import CladaError, InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name in the same folder; it takes its place only when the block succeeds.

    Yields:
        the temporary path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; give it the permissions an ordinary new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write strict JSON (no NaN) atomically; `value` carries its own `schema`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, schema: str, error: type[CladaError] = InputError) -> dict[str, Any]:
    """Read a JSON file of one of our schemas.

    Raises:
        error: no such file, not JSON, or of another schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from None
    except ValueError:  # not UTF-8 and not JSON alike
        raise error(f"{path} is not a JSON file; write it again or give another one") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != schema:
        raise error(f"{path} has schema {found!r}, not {schema!r}; give a file of that kind")
    return dict(value)
