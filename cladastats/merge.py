"""`cladastats merge`: one study of parts that were extracted apart, with the index that the next stages read."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["merge", *sys.argv[1:]]))

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from clada.errors import StudyError
from clada.system.files import local_copy, replacing
from cladastats.activations.parts import (
    index_path,
    norms_path,
    part_path,
    read_norms,
    read_part,
    shard_ids,
    shards_of,
    write_index,
)
from cladastats.study import Study
from cladastats.verify import problems


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        StudyError: parts are missing, or not in order.
    """
    merge(Study(args.study), args.folders, verify=args.verify)


def merge(study: Study, folders: Sequence[str | Path] = (), *, verify: bool = False) -> None:
    """Take in the parts that other folders have, and write `activations/index.parquet`.

    Args:
        study: where all parts shall be.
        folders: of the same study, extracted elsewhere (`cladastats extract --shard i/n` on machines without a common
            disk, each with a copy of `study.json` and `corpus.parquet`); what they have is checked and copied.
        verify: read every part and compare its checksum, not only those that are copied.

    Raises:
        StudyError: a folder is of another study, a part is damaged, or parts are missing.
    """
    identity, shards = study.config.identity(), shards_of(study.corpus)
    norms = norms_path(study)
    for other in map(Study, folders):
        if other.config.identity() != identity:
            raise StudyError(f"{other.folder} has another model or corpus than {study.folder}; leave it out")
        sources = [(part_path(other, n), part_path(study, n), shard_ids(blocks)) for n, blocks in enumerate(shards)]
        for source, target, ids in sources:
            if source.exists() and not target.exists():
                read_part(source, identity, ids)
                _copy(source, target)
        if not norms.exists() and norms_path(other).exists():
            read_norms(other)
            _copy(norms_path(other), norms)
    missing = [number for number in range(len(shards)) if not part_path(study, number).exists()]
    if missing:
        raise StudyError(
            f"{len(missing)} of {len(shards)} parts are missing, the first {part_path(study, missing[0])}; merge the "
            f"folders that have them, or run 'cladastats extract --study {study.folder}'"
        )
    damaged = problems(study) if verify else []
    if damaged:
        path, what, remedy = damaged[0]
        raise StudyError(
            f"{path}: {what}; {remedy} ({len(damaged)} in all: 'cladastats verify --study {study.folder}')"
        )
    write_index(study)
    print(f"cladastats: {len(shards)} parts, index in {index_path(study)}", file=sys.stderr)


def _copy(source: Path, target: Path) -> None:
    with local_copy(source) as file, replacing(target) as temporary:
        shutil.copyfile(file, temporary)
