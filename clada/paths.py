"""Files that are whole or absent, in folders here or, where fsspec has a file system for it, at a URL.

A path at a URL (`s3://bucket/study`) is a `upath.UPath`, which has the methods of `pathlib.Path`, so that nothing but
this module asks which of both a path is. Libraries that want a real file get one here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from clada.errors import InputError


def as_path(name: str | Path) -> Path:
    """The path that a user names.

    Args:
        name: of a file or folder here, or an fsspec URL with its protocol.

    Raises:
        InputError: no file system for that protocol is installed, or it cannot be reached.
    """
    text = str(name)
    if "://" not in text:
        return Path(name)
    from upath import UPath  # not needed by those who have no URL

    try:
        path: Any = UPath(text)
        path.exists()
    except Exception as problem:  # every file system has errors of its own
        reason = (str(problem).splitlines() or [""])[0] or type(problem).__name__
        raise InputError(f"cannot use {text}: {reason}; install its file system, or give another folder") from None
    return Path(path.path) if path.protocol in ("file", "local") else cast("Path", path)


def is_local(path: Path) -> bool:
    """Whether a path is one of this machine's."""
    return isinstance(path, Path)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A real file with the content of a file: the file itself, or a copy of one at a URL for as long as the block runs.

    Raises:
        OSError: there is no such file.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with path.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it takes its place, in one step, only when the block succeeds.

    At a URL the step is the upload of the whole file: object stores show it when it is complete.

    Yields:
        the temporary path to write to, on this machine.
    """
    beside = None
    if is_local(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.parent
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=beside)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if not is_local(path):
            remote: Any = path
            remote.parent.mkdir(parents=True, exist_ok=True)
            remote.fs.put_file(str(temporary), remote.path)
            return
        # mkstemp makes the file private; give it the permissions an ordinary new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
