"""Packed models in the cache: written once, and mapped into memory by every later start without torch or transformers.

    packed/REVISION-DTYPE-LAYOUT/   of the content, precision and layout that its name says
        about.json                  the description of the model, constants, sums of the weights
        tokenizer.json              of the library `tokenizers`
        weights/                    arrays
        screen-none/, screen-.../   arrays of the output head's screen, one folder for a basis

What is read is what packing made, bit for bit. A form that another version of the code made is not read. The forms used
last are kept, and older ones make room for new ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from clada.cpu.blocks.matrix import at_addresses
from clada.cpu.kernels.arguments import Constants, Tensors
from clada.cpu.weights import Rotary, Weights
from clada.errors import AssetError, InputError
from clada.methods.screen import Basis
from clada.methods.selection import Norms
from clada.models.architectures import Positions
from clada.models.description import Description
from clada.models.open import model_revision
from clada.models.tokenizer import Tokenizer
from clada.system.arrays import read_arrays, stored_bytes, write_arrays
from clada.system.cache import cache_dir, locked_scratch, sources_stamp
from clada.system.jsonfile import as_type, check_checksum, read_json, with_checksum, write_json

SCHEMA_OF_KEPT = "clada/packed/1"

MOST_KEPT = 16  # forms, a model at one precision each

SCREEN = ("screen", "screen_scale", "screen_basis", "screen_offset", "screen_weight", "head_mean")  # of `Tensors`

# What decides the content of a form: another version of these makes another one.
SOURCES = (
    "cpu/blocks/compiled.py", "cpu/blocks/kinds.py", "cpu/blocks/matrix.py", "cpu/blocks/rows.py", "cpu/fused.py",
    "cpu/kept.py",
    "cpu/kernels/arguments.py", "cpu/kernels/rows.py", "cpu/kernels/scalars.py", "cpu/kernels/vectors.py",
    "cpu/llvm.py", "cpu/pack.py", "cpu/precision.py", "cpu/sources.py", "cpu/storage.py", "cpu/weights.py",
    "methods/observed.py",
    "methods/screen.py", "methods/selection.py", "models/anatomy.py", "models/architectures.py",
    "models/description.py", "models/gguf.py", "models/gguf_blocks.py", "models/gguf_statements.py",
    "models/tokenizer.py", "system/arrays.py",
)  # fmt: skip
LIBRARIES = ("transformers", "tokenizers")


class NotKeptError(Exception):
    """What is asked for is not in the cache; the model must be opened and packed."""


class KeptFile(msgspec.Struct):
    """What `about.json` holds; see `Kept`."""

    stamp: str
    model_type: str
    layers: int
    vocabulary: int
    limit: int | None
    generation: dict[str, Any]
    chat_template: str | None
    special: dict[str, Any]
    numbers: dict[str, int | float]
    sums: list[list[float]]


@dataclass(frozen=True)
class Kept:
    """A packed model in the cache.

    Attributes:
        name: the model's, as the user gives it.
        dtype: of the weights.
        folder: of the form.
        about: what is read at once.
    """

    name: str
    dtype: str
    folder: Path
    about: KeptFile

    @property
    def description(self) -> Description:
        """Of the model."""
        about = self.about
        positions = Positions(about.model_type, about.limit)
        return Description(self.name, about.layers, about.vocabulary, positions, SimpleNamespace(**about.generation))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the model.

        Raises:
            NotKeptError: its file is damaged.
        """
        try:
            definition = (self.folder / "tokenizer.json").read_text(encoding="utf-8")
            return Tokenizer.read(definition, self.about.chat_template, self.about.special)
        except Exception as problem:  # the library raises Exception itself
            raise self._damaged(problem) from None

    def at(self, dtype: str, layout: str) -> Kept:
        """The same model at another precision.

        Raises:
            NotKeptError: it is not kept at this one.
        """
        other = find_kept(self.name, dtype, layout)
        if other is None:
            raise NotKeptError
        return other

    def weights(self, basis: Basis | None) -> Weights:
        """The weights, with the screen of the head that a basis gives.

        Raises:
            NotKeptError: there is no such screen, or a file is damaged.
        """
        screen = self.folder / _screen_name(basis)
        if not screen.is_dir():
            raise NotKeptError
        try:
            arrays = read_arrays(self.folder / "weights") | read_arrays(screen)
            return _weights(arrays, self.about.numbers, self.dtype)
        except (ValueError, TypeError) as problem:
            raise self._damaged(problem) from None

    def _damaged(self, problem: Exception) -> NotKeptError:
        """Says so, and that the form is made again; it is taken away, so that it can be."""
        print(f"clada: {self.folder} is damaged ({problem}); packing the model again", file=sys.stderr, flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return NotKeptError()


def find_kept(name: str, dtype: str, layout: str) -> Kept | None:
    """The packed model in the cache, or None.

    Args:
        name: the model's, of any kind.
        dtype: of the weights.
        layout: of `clada.cpu.pack.LAYOUTS`.

    Raises:
        ModelError: the name is unknown.
    """
    try:
        folder = _folder(name, dtype, layout)
    except AssetError:  # nothing can be written there, so nothing is kept there
        return None
    path = folder / "about.json"
    if not path.is_file():
        return None
    try:
        value = read_json(path, SCHEMA_OF_KEPT)
        check_checksum(value)
        kept = Kept(name, dtype, folder, as_type(value, KeptFile, path, "it is written again"))
    except (InputError, ValueError) as problem:
        print(f"clada: {path} is damaged ({problem}); packing the model again", file=sys.stderr, flush=True)
        return None
    if kept.about.stamp != stamp():
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used last, see `_make_room`
    return kept


def keep_packed(
    weights: Weights,
    layout: str,
    basis: Basis | None,
    description: Description,
    tokenizer: Tokenizer,
    sums: list[list[float]],
) -> None:
    """Write a packed model into the cache, and say so; where it cannot be written, say that, and no more.

    Args:
        weights: as `pack` made them.
        layout: that they have.
        basis: that the head's screen was made with.
        description: of the model.
        tokenizer: of the model.
        sums: of `clada.methods.observed.weight_sums`.
    """
    try:
        about = _about(weights, description, tokenizer, sums)
        folder = _folder(description.name, weights.dtype, layout)
        size = stored_bytes([*_arrays(weights).values(), *_screen_arrays(weights).values()])
        _check_room(folder, size)
        with locked_scratch(folder) as scratch:
            print(
                f"clada: keeping the packed weights of {description.name} at {weights.dtype} ({size / 1e6:,.0f} MB) in "
                f"{folder.parent}, for a start in a second from now on",
                file=sys.stderr,
                flush=True,
            )
            _write(folder, scratch / "form", weights, basis, about, tokenizer)
        _make_room(folder.parent)
    except (AssetError, OSError, TypeError) as problem:
        print(f"clada: every start packs {description.name} again: {problem}", file=sys.stderr, flush=True)


def _write(
    folder: Path, form: Path, weights: Weights, basis: Basis | None, about: dict[str, Any], tokenizer: Tokenizer
) -> None:
    """Write what is missing, under another name first."""
    form.mkdir()
    screen = _screen_name(basis)
    write_arrays(form / screen, _screen_arrays(weights))
    if _same(folder / "about.json", about):  # all but this screen is there
        if not (folder / screen).is_dir():
            for other in folder.glob("screen-*"):  # of a plan from before
                if other.name != "screen-none":
                    shutil.rmtree(other)
            (form / screen).rename(folder / screen)
        return
    write_arrays(form / "weights", _arrays(weights))
    (form / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
    write_json(form / "about.json", about)
    shutil.rmtree(folder, ignore_errors=True)  # of another version
    form.rename(folder)


def _same(path: Path, about: dict[str, Any]) -> bool:
    try:
        return read_json(path, SCHEMA_OF_KEPT) == json.loads(json.dumps(about))
    except InputError:
        return False


def _folder(name: str, dtype: str, layout: str) -> Path:
    revision = model_revision(name).replace(":", "-").replace("/", "-")
    return cache_dir() / "packed" / f"{revision}-{dtype}-{layout}"


def _screen_name(basis: Basis | None) -> str:
    if basis is None:
        return "screen-none"
    digest = hashlib.sha256(basis.rows.tobytes() + basis.center.tobytes())
    return f"screen-{digest.hexdigest()[:16]}"


@functools.cache
def stamp() -> str:
    """Checksum of the sources that decide what a form holds, with the versions of the libraries that they call."""
    root = Path(__file__).parents[1]
    versions = [f"{library} {importlib.metadata.version(library)}" for library in LIBRARIES]
    return sources_stamp([root / source for source in SOURCES], *versions)


def _check_room(folder: Path, size: int) -> None:
    """Refuse to fill the disk: as much as is written must be left.

    Raises:
        OSError: there is too little.
    """
    existing = next(path for path in folder.parents if path.is_dir())
    if shutil.disk_usage(existing).free < 2 * size:
        raise OSError(f"{existing} has no room for {size / 1e6:,.0f} MB; free some, or set CLADA_CACHE")


def _make_room(packed: Path) -> None:
    """Take away the forms that were used before the last `MOST_KEPT`."""
    used = []
    for path in packed.glob("*/about.json"):
        with contextlib.suppress(OSError):
            used.append((path.stat().st_mtime, path.parent))
    for _, folder in sorted(used)[:-MOST_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


# -- what a form holds ------------------------------------------------------------------------------------------------


def _about(weights: Weights, description: Description, tokenizer: Tokenizer, sums: list[list[float]]) -> dict[str, Any]:
    """The content of `about.json`.

    Raises:
        TypeError: the generation config holds what JSON cannot.
    """
    generation = {
        name: value
        for name, value in vars(description.generation).items()
        if value is not None and not name.startswith("_")
    }
    json.dumps(generation)
    constants = weights.constants._asdict()
    about = KeptFile(
        stamp=stamp(),
        model_type=description.positions.model_type,
        layers=description.layers,
        vocabulary=description.vocabulary,
        limit=description.positions.limit,
        generation=generation,
        chat_template=tokenizer.chat_template,
        special=dict(tokenizer.special),
        numbers={name: value for name, value in constants.items() if not isinstance(value, np.ndarray | np.generic)},
        sums=sums,
    )
    return with_checksum({"schema": SCHEMA_OF_KEPT, **msgspec.to_builtins(about)})


def _arrays(weights: Weights) -> dict[str, np.ndarray]:
    """All arrays but those of the screen, by the part they belong to and their name in it."""
    tensors = {name: array for name, array in weights.tensors._asdict().items() if name not in SCREEN}
    for name, memory in weights.memory.items():  # it lies at other addresses the next time
        tensors[name] = at_addresses(tensors[name], memory, -1)
    constants = {
        name: np.asarray(value)
        for name, value in weights.constants._asdict().items()
        if isinstance(value, np.ndarray | np.generic)
    }
    norms = {one.name: getattr(weights, one.name) for one in fields(Norms)}
    parts = {"tensors": tensors, "constants": constants, "norms": norms, "rotation": vars(weights.rotation)}
    parts["memory"] = weights.memory
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def _screen_arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {f"tensors.{name}": getattr(weights.tensors, name) for name in SCREEN}


def _weights(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, int | float], dtype: str) -> Weights:
    """The weights of arrays and numbers.

    Raises:
        TypeError: one is missing.
    """
    parts: dict[str, dict[str, Any]] = {"tensors": {}, "constants": dict(numbers), "norms": {}, "rotation": {}}
    parts["memory"] = {}
    for name, array in arrays.items():
        part, _, field = name.partition(".")
        parts[part][field] = array if array.shape else array[()]  # a number keeps its type: kernels are compiled for it
    for name, memory in parts["memory"].items():
        parts["tensors"][name] = at_addresses(parts["tensors"][name], memory)
    return Weights(
        **parts["norms"],
        tensors=Tensors(**parts["tensors"]),
        constants=Constants(**parts["constants"]),
        dtype=dtype,
        rotation=Rotary(**parts["rotation"]),
        memory=parts["memory"],
    )
