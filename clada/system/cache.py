"""The folder that keeps what is made or fetched once: built under a lock, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import platformdirs

from clada.errors import AssetError


def cache_dir() -> Path:
    """The folder that keeps what was fetched: `$CLADA_CACHE`, or the user's cache folder of this platform."""
    return Path(os.environ.get("CLADA_CACHE") or platformdirs.user_cache_dir("clada"))


@contextlib.contextmanager
def locked_scratch(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to build it in, while no other process builds the same target.

    What is finished there is renamed to `target`, so others see either nothing or the whole of it.

    Args:
        target: the file or folder to be built; its parent folders are made.

    Yields:
        The scratch folder, removed afterwards with whatever is left in it.

    Raises:
        AssetError: the folder cannot be written to, or the disk is full.
    """
    from filelock import FileLock  # only what writes needs it

    scratch = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            shutil.rmtree(scratch, ignore_errors=True)  # a killed process may have left one
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise AssetError(
            f"cannot write to the cache folder {target.parent} ({error.strerror or error}): "
            "free some space, or set CLADA_CACHE to a folder you may write to"
        ) from error


def sources_stamp(files: Iterable[Path], *others: str) -> str:
    """Checksum of source files, their names included, and of whatever else decides what they make."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    for other in others:
        digest.update(other.encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Checksum of a file, remembered by path, size and time of change: weights may be many gigabytes."""
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    note = cache_dir() / "checksums" / hashlib.sha256(identity.encode()).hexdigest()
    if not note.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with locked_scratch(note) as scratch:
            (scratch / "sha256").write_text(digest)
            (scratch / "sha256").replace(note)
    return note.read_text()
