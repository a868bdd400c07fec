"""The parts of a study's activations: shards of the corpus, each a file that says what it belongs to and is checked.

A shard is a few blocks (a block is one pair of one group) and a pure function of the corpus and its number; it becomes
one `activations/part-*.safetensors`, by an atomic rename, with its checksum and the identity of its study.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from clada.errors import StudyError
from clada.system.files import local_copy, replacing
from cladastats.study import Study, write_table

ACTIVATIONS_SCHEMA = "cladastats/activations/1"

# A shard is redone whole when a run is killed in it: 4 blocks are a few minutes of work at length 2,048, and about 3 MB
# (SmolLM2-135M) to 40 MB (7 B) of activations, neither too many files nor too much to lose.
BLOCKS_PER_SHARD = 4

TENSORS = ("activations", "surprisal_bits", "entropy_bits", "previous_surprisal_bits", "target_id")


@dataclass(frozen=True)
class Part:
    """One finished shard.

    Attributes:
        sequence_ids: of its rows.
        tensors: `TENSORS` by name; activations are [rows, layers, neurons] in the storage dtype.
    """

    sequence_ids: list[str]
    tensors: dict[str, np.ndarray]

    def checksum(self, identity: str) -> str:
        """SHA-256 over everything the part says, the identity of its study included."""
        digest = hashlib.sha256(json.dumps([identity, self.sequence_ids]).encode())
        for name in TENSORS:
            array = np.ascontiguousarray(self.tensors[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def part_path(study: Study, shard: int) -> Path:
    """Where the activations of a shard are."""
    return study.folder / "activations" / f"part-{shard:05d}.safetensors"


def write_part(path: Path, part: Part, identity: str) -> None:
    """Write a part atomically, with its identity and checksum in its metadata."""
    metadata = {
        "schema": ACTIVATIONS_SCHEMA,
        "identity": identity,
        "sequence_ids": part.sequence_ids,
        "sha256": part.checksum(identity),
    }
    # One entry: safetensors writes several in an order that changes, and a shard's bytes should not.
    content = safetensors.numpy.save(part.tensors, {"cladastats": json.dumps(metadata)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_part(path: Path, identity: str, sequence_ids: list[str]) -> Part:
    """Read a part and check it.

    Args:
        path: the part.
        identity: of the study.
        sequence_ids: of the sequences the part is for.

    Raises:
        StudyError: it is truncated, altered or another shard's (`DamagedPartError`), or of another study.
        PermissionError: it may not be read, which says nothing about what is in it.
    """
    try:
        with local_copy(path) as file, safe_open(file, framework="numpy") as handle:
            metadata = _metadata(handle)
            tensors = {name: handle.get_tensor(name) for name in TENSORS}
        part = Part(list(metadata["sequence_ids"]), tensors)
        whole = part.checksum(metadata["identity"]) == metadata["sha256"]
    except PermissionError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        whole = False
    if not whole:
        raise DamagedPartError(path, "is truncated or altered")
    if metadata["identity"] == identity and part.sequence_ids != sequence_ids:
        raise DamagedPartError(path, "holds another shard")
    if metadata["identity"] != identity:
        raise StudyError(
            f"{path} belongs to a study of another model or corpus; move it away, or use another --study folder"
        )
    return part


def _metadata(handle: Any) -> dict[str, Any]:
    return dict(json.loads((handle.metadata() or {})["cladastats"]))


class DamagedPartError(StudyError):
    """A part whose content is not what its checksum says, or not what its name says.

    Attributes:
        what: is wrong with it, without its name and the remedy.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}; run 'cladastats extract --study {path.parent.parent}' to redo it")
        self.what = what


def read_parts(study: Study) -> Iterator[tuple[Part, list[pd.DataFrame]]]:
    """All parts of a study in order, checked, one in memory at a time, each with the blocks of its shard.

    Raises:
        StudyError: one is missing, damaged or foreign.
    """
    for number, blocks in enumerate(shards_of(study.corpus)):
        path = part_path(study, number)
        if not path.exists():
            raise StudyError(f"{path} is missing; run 'cladastats extract --study {study.folder}'")
        yield read_part(path, study.config.identity(), shard_ids(blocks)), blocks


def shards_of(corpus: pd.DataFrame) -> list[list[pd.DataFrame]]:
    """The shards of a corpus in order, each a list of blocks: the corpus rows of one pair of one group."""
    blocks = [block for _, block in corpus.groupby(["group", "pair"], sort=True)]
    return [blocks[i : i + BLOCKS_PER_SHARD] for i in range(0, len(blocks), BLOCKS_PER_SHARD)]


def shard_ids(blocks: list[pd.DataFrame]) -> list[str]:
    """The sequences of a shard in the order of its part's rows, each once."""
    return list(dict.fromkeys(sequence_id for block in blocks for sequence_id in block["sequence_id"]))


def index_path(study: Study) -> Path:
    """Where the index of all parts is."""
    return study.folder / "activations" / "index.parquet"


def write_index(study: Study) -> None:
    """Write `activations/index.parquet` of a study whose parts are all there; their checksums are not looked at.

    Raises:
        StudyError: one cannot be read at all.
    """
    tables = []
    for number in range(len(shards_of(study.corpus))):
        path = part_path(study, number)
        try:
            with local_copy(path) as file, safe_open(file, framework="numpy") as handle:
                ids = _metadata(handle)["sequence_ids"]
                columns = {name: handle.get_tensor(name) for name in TENSORS[1:]}
        except (SafetensorError, KeyError, ValueError, TypeError):
            raise DamagedPartError(path, "is truncated or altered") from None
        tables.append(pd.DataFrame({"sequence_id": ids, "part": path.name, "row": range(len(ids)), **columns}))
    table = pd.concat(tables).drop_duplicates("sequence_id", ignore_index=True)
    write_table(index_path(study), table, study.config.identity())


def is_finished(path: Path, identity: str, sequence_ids: list[str]) -> bool:
    """Whether a part is there and whole; a damaged one is removed, and a line on stderr says so.

    Raises:
        StudyError: it is of another study.
    """
    if not path.exists():
        return False
    try:
        read_part(path, identity, sequence_ids)
    except DamagedPartError as damage:
        print(f"cladastats: {path} {damage.what}; it is done again", file=sys.stderr)
        path.unlink()
        return False
    return True


def read_norms(study: Study) -> np.ndarray:
    """Norms of the columns of each layer's down-projection, [layers, neurons].

    Raises:
        StudyError: the file is missing or damaged.
    """
    path = norms_path(study)
    try:
        with local_copy(path) as file:
            return safetensors.numpy.load(file.read_bytes())["down_norms"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        raise StudyError(
            f"{path} is missing or damaged; delete it and run 'cladastats extract --study {study.folder}'"
        ) from None


def norms_path(study: Study) -> Path:
    """Where the norms of the down-projections are."""
    return study.folder / "activations" / "down_norms.safetensors"


def read_layer(activations: Path, index: pd.DataFrame, sequence_ids: list[str], layer: int) -> np.ndarray:
    """One layer of some sequences, [sequences, neurons] in the storage dtype; nothing else is read from the disk.

    Args:
        activations: the folder of a study's parts, a real one.
        index: the study's index.
        sequence_ids: the sequences, in the order that is wanted.
        layer: from 0 on.
    """
    places = index.set_index("sequence_id").loc[sequence_ids, ["part", "row"]].reset_index(drop=True)
    rows: np.ndarray | None = None
    for name, members in places.groupby("part"):
        with safe_open(activations / str(name), framework="numpy") as handle:
            whole = handle.get_slice("activations")[:, layer : layer + 1]
        if rows is None:
            rows = np.empty((len(places), whole.shape[2]), whole.dtype)
        rows[members.index] = whole[members["row"], 0]
    assert rows is not None
    return rows
