"""Arrays in a folder, a file each, which are mapped into memory when they are read: no start waits for a copy."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from clada.errors import InputError
from clada.system.jsonfile import as_type, check_checksum, read_json, with_checksum, write_json

SCHEMA_OF_ARRAYS = "clada/arrays/1"

INDEX = "arrays.json"

LEAST_MAPPED = 2**16  # bytes; smaller arrays are read, as a mapping takes longer

SAMPLED = 256  # bytes of a file that are looked at when it is read: reading all would take as long as packing


class StoredArray(msgspec.Struct):
    """An array, or the name of another one that it is."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    sample: int = 0
    same_as: str = ""


class ArraysFile(msgspec.Struct):
    """The index of a folder."""

    arrays: dict[str, StoredArray]


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into a new folder; one that stands under two names is written once.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir()
    stored: dict[str, StoredArray] = {}
    names: dict[Any, str] = {}
    for name, array in arrays.items():
        first = names.setdefault(_place(array), name)
        if first != name and array.size:
            stored[name] = StoredArray(same_as=first)
            continue
        np.save(folder / f"{name}.npy", array)
        stored[name] = StoredArray(array.dtype.str, array.shape, _sample(array))
    index = {"schema": SCHEMA_OF_ARRAYS, "arrays": {name: msgspec.to_builtins(one) for name, one in stored.items()}}
    write_json(folder / INDEX, with_checksum(index))


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder. They may be written to, which changes the memory of this process only.

    Large ones begin on a line of the processor's cache, in pages of the file's size: what is read from them comes some
    per cent slower than from `clada.system.machine.aligned`.

    Raises:
        ValueError: a file is missing, cut or damaged. Single wrong bytes are not looked for.
    """
    try:
        value = read_json(folder / INDEX, SCHEMA_OF_ARRAYS)
        check_checksum(value)
        stored = as_type(value, ArraysFile, folder / INDEX, "write it again").arrays
        arrays = {name: _read(folder / f"{name}.npy", one) for name, one in stored.items() if not one.same_as}
        return {name: arrays[one.same_as or name] for name, one in stored.items()}
    except (InputError, OSError, KeyError, EOFError) as problem:
        raise ValueError(str(problem)) from None


def stored_bytes(arrays: Iterable[np.ndarray]) -> int:
    """How many bytes `write_arrays` writes of arrays."""
    return sum({_place(array): array.nbytes for array in arrays}.values())


def _place(array: np.ndarray) -> Any:
    """Where an array lies, which is the same for the same array."""
    return array.ctypes.data, array.shape, array.dtype.str


def _read(path: Path, stored: StoredArray) -> np.ndarray:
    mapped = path.stat().st_size >= LEAST_MAPPED
    array = np.asarray(np.load(path, mmap_mode="c" if mapped else None))
    if (array.dtype.str, array.shape, _sample(array)) != (stored.dtype, stored.shape, stored.sample):
        raise ValueError(f"{path.name} is not what was written")
    return array


def _sample(array: np.ndarray) -> int:
    """A checksum of some bytes, spread over an array."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return zlib.crc32(content[:: max(1, len(content) // SAMPLED)].tobytes())
