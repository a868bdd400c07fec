"""`cladastats extract`: neuron activations, surprisal and entropy at the target token, on disk, resumable.

What is computed in one go is a shard (`cladastats.activations.parts`): a killed run loses at most that one.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["extract", *sys.argv[1:]]))

import argparse
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields

import numpy as np
import pandas as pd
import safetensors.numpy
from tqdm import tqdm

from clada.errors import StudyError
from clada.system.files import is_local, replacing
from clada.system.machine import torch_threads
from cladastats.activations.parts import (
    Part,
    index_path,
    is_finished,
    norms_path,
    part_path,
    read_norms,
    shard_ids,
    shards_of,
    write_index,
    write_part,
)
from cladastats.activations.work import Task, sequences_of
from cladastats.sequences.pairs import tokens_sha256
from cladastats.study import Study, is_current

BYTES_BESIDE = 200  # of a sequence besides its activations: its other values, its id, the index

WORTH_SAYING = 1e9  # bytes: smaller studies fit everywhere


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    extract(Study(args.study), args.shard, args.cluster)


def extract(study: Study, shard: tuple[int, int] | None = None, cluster: str | None = None) -> None:
    """Extract what is missing of a study, and write `activations/index.parquet`.

    Parts that are whole are kept, damaged ones redone (and said so on stderr).

    Args:
        study: the study.
        shard: (i, n) extracts only every n-th part from the i-th on, 1 <= i <= n, and leaves the index to
            `cladastats merge`: for schedulers that start n processes which know nothing of each other.
        cluster: where to compute, as `cladastats.activations.clusters.connect` reads it; None: here.

    Raises:
        StudyError: the model or its tokenizer is not the one the study was made with, a part is of another study, or
            the disk is full.
        ModelError: the model cannot be opened, or its positions do not reach the study's length.
        InputError: no such cluster.
    """
    config = study.config
    identity = config.identity()
    corpus = study.corpus
    if tokens_sha256(corpus) != config.corpus_sha256:
        raise StudyError(
            f"{study.folder}/corpus.parquet was altered since it was built; delete the folder and build it again"
        )
    shards = shards_of(corpus)
    numbers = range(len(shards)) if shard is None else range(shard[0] - 1, len(shards), shard[1])
    todo = [n for n in numbers if not is_finished(part_path(study, n), identity, shard_ids(shards[n]))]
    norms_there = _has_norms(study)
    if not todo and norms_there and (shard is not None or is_current(index_path(study), identity)):
        return

    if todo or not norms_there:
        _compute(study, shards, todo, cluster)
    if shard is None:
        write_index(study)


def _compute(study: Study, shards: list[list[pd.DataFrame]], todo: list[int], cluster: str | None) -> None:
    """Measure these shards and write their parts, and the norms."""
    config, identity = study.config, study.config.identity()
    work = {number: sequences_of(shards[number]) for number in todo}
    n_blocks = sum(map(len, work.values()))
    task = Task(**{field.name: getattr(config, field.name) for field in fields(Task)})
    with torch_threads(config.threads), ExitStack() as stack:
        if cluster is None:
            worker = task.worker()
            norms = worker.norms
            parts: Iterator[tuple[int, tuple[Part, int]]] = ((n, worker.part(blocks)) for n, blocks in work.items())
        else:
            from cladastats.activations.clusters import measured_on_cluster

            norms, parts = stack.enter_context(measured_on_cluster(task, work, cluster))
        _check_disk_space(study, sum(len(shard_ids(shards[number])) for number in todo), norms.size)
        with replacing(norms_path(study)) as temporary:
            temporary.write_bytes(safetensors.numpy.save({"down_norms": norms}))
        forwards = 0
        progress = tqdm(total=n_blocks, unit="pair", desc="extract", file=sys.stderr, disable=not todo)
        with progress:
            for number, (part, cost) in parts:
                write_part(part_path(study, number), part, identity)
                forwards += cost
                progress.update(len(work[number]))
    if todo and "placebos" not in config.corpus:
        _report_cost(forwards, n_blocks, config.length, len(config.ratios))


def _check_disk_space(study: Study, sequences: int, neurons: int) -> None:
    """Say what the activations of so many sequences of so many neurons need, and refuse where it cannot fit."""
    needed = sequences * (neurons * np.dtype(study.config.storage_dtype).itemsize + BYTES_BESIDE)
    if not is_local(study.folder):
        return  # no file system says what a URL has room for
    free = shutil.disk_usage(study.folder).free
    if needed > free:
        raise StudyError(
            f"the activations of {sequences:,} sequences need {needed / 1e9:.2f} GB and {study.folder} has "
            f"{free / 1e9:.2f} GB free; free some, or use --study on another disk"
        )
    if needed > WORTH_SAYING:
        print(
            f"cladastats: {needed / 1e9:.1f} GB for {sequences:,} sequences, {free / 1e9:.1f} GB free", file=sys.stderr
        )


def _has_norms(study: Study) -> bool:
    try:
        read_norms(study)
    except StudyError:
        return False
    return True


def _report_cost(forwards: int, blocks: int, length: int, ratios: int) -> None:
    """Say what sharing saved, against three roles at every ratio run whole, and against the distinct sequences."""
    whole = blocks * (length + 1)
    print(
        f"cladastats: {forwards:,} token forwards for {blocks} pairs: {forwards / (whole * 3 * ratios):.3f} of the "
        f"{3 * ratios} whole runs a pair, {forwards / (whole * (2 + ratios)):.3f} of its {2 + ratios} distinct ones "
        "(B* included)",
        file=sys.stderr,
    )
