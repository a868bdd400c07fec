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
        name: of a file or folder here, or an fsspec URL with its protocol; a `UPath` with options of its own stays it.

    Raises:
        InputError: no file system for that protocol is installed, or it cannot be reached.
    """
    if not isinstance(name, str):
        return name
    if "://" not in name:
        return Path(name)
    from upath import UPath  # not needed by those who have no URL

    try:
        path: Any = UPath(name)
        path.exists()
    except Exception as problem:  # every file system has errors of its own
        raise InputError(
            f"cannot use {name}: {_reason(problem)}; install its file system, or give another folder"
        ) from None
    return Path(path.path) if path.protocol in ("file", "local") else cast("Path", path)


def _reason(problem: Exception) -> str:
    return (str(problem).splitlines() or [""])[0] or type(problem).__name__


def read_text(path: str | Path) -> str:
    """The text of a file that a user names, as it is but for a byte-order mark at its beginning.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    return decode_text(read_bytes(path), path)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file that a user names.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}; check the path") from None


def decode_text(content: bytes, name: str | Path) -> str:
    """The text that bytes hold, without a byte-order mark.

    Args:
        content: of a file or of standard input.
        name: what a message calls it.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise InputError(f"{name} is not UTF-8 (byte {problem.start:,}); convert it, with iconv for instance") from None


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
        try:
            with path.open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
        except FileNotFoundError:
            raise
        except Exception as problem:
            raise InputError(f"cannot read {path}: {_reason(problem)}; run the same command again") from None
        yield copy


@contextmanager
def local_folder(path: Path) -> Iterator[Path]:
    """A real folder with the files of a folder: itself, or copies of all at a URL for as long as the block runs.

    Raises:
        InputError: they cannot be read.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in path.iterdir():
            with local_copy(file) as copy:
                shutil.copyfile(copy, Path(folder) / file.name)
        yield Path(folder)


def check_target(path: Path) -> None:
    """Refuse, before the work, a name that no file can be written under.

    Raises:
        InputError: it is a folder or a device, or its folder cannot be written to.
    """
    if not is_local(path):
        return
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}, which is not a file; give another name")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise InputError(f"cannot write {path}: {above} is no folder that can be written to; give another name")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it takes its place, in one step, only when the block succeeds.

    At a URL the step is the upload of the whole file, which object stores show when it is complete. Others (SFTP, say)
    may keep a part of it when the connection breaks; what reads it finds that by its checksum.

    Yields:
        the temporary path to write to, on this machine.

    Raises:
        InputError: as `check_target`.
    """
    beside = None
    check_target(path)
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
            try:
                remote.parent.mkdir(parents=True, exist_ok=True)
                remote.fs.put_file(str(temporary), remote.path)
            except Exception as problem:
                raise InputError(f"cannot write {path}: {_reason(problem)}; run the same command again") from None
            return
        # mkstemp makes the file private; give it the permissions an ordinary new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
