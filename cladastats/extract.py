"""Neuron activations, surprisal and entropy at the target token, on disk, resumable (sections 2.1.2 and 2.2.1).

A *block* is one pair of one group; a *shard* is a few blocks and becomes one `activations/part-*.safetensors`. A shard
is a pure function of the corpus and its number, and appears by an atomic rename with its checksum, so a killed run
loses at most the shard in flight.

Within a block, work that sequences share is done once: B runs in segments that end where a hybrid leaves it, its keys
and values are copied there as the start of the hybrid, and once more at the end as the context of B*.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["extract", *sys.argv[1:]]))

import argparse
import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import DynamicCache

from clada.errors import StudyError
from clada.families import capture_last_activations, check_length, down_norms
from clada.jsonfile import replacing
from clada.load import surprisal_and_entropy_bits
from clada.models import load_model, model_revision
from cladastats.corpus import tokens_sha256
from cladastats.study import Study, is_current, write_table

# A shard is redone whole when a run is killed in it: 4 blocks are about a minute and a half at length 2,048 on two
# cores, and about 3 MB (SmolLM2-135M) to 40 MB (7 B) of activations, neither too many files nor too much to lose.
BLOCKS_PER_SHARD = 4

TENSORS = ("activations", "surprisal_bits", "entropy_bits", "previous_surprisal_bits", "target_id")
# Tokens at the end whose surprisal is kept while running: the previous one is a control, and what is one token here
# may be several of an independent model.
RECENT = 8


@dataclass(frozen=True)
class Measurement:
    """What is known of one sequence at its target.

    Attributes:
        activations: float [layers, neurons], input of each layer's down-projection at the target token.
        recent_bits: surprisal of the last tokens, at most `RECENT`; the last is that of the target.
        entropy_bits: of the distribution that predicts the target.
        target_id: the target token.
    """

    activations: np.ndarray
    recent_bits: np.ndarray
    entropy_bits: float
    target_id: int

    @property
    def surprisal_bits(self) -> float:
        """Of the target."""
        return float(self.recent_bits[-1])

    @property
    def previous_surprisal_bits(self) -> float:
        """Of the token before the target; NaN where nothing predicts it."""
        return float(self.recent_bits[-2]) if len(self.recent_bits) > 1 else float("nan")


class PrefixSharingRunner:
    """Runs sequences through a model; what several of them begin with runs once.

    Attributes:
        token_forwards: tokens that went through the model so far.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.token_forwards = 0

    @torch.inference_mode()
    def measure(self, sequences: Mapping[str, np.ndarray]) -> dict[str, Measurement]:
        """Measure sequences, each under its name.

        Args:
            sequences: token ids of at least two tokens; the last is the target.
        """
        found: dict[str, Measurement] = {}
        with capture_last_activations(self.model) as captured:
            self._descend(sequences, 0, DynamicCache(config=self.model.config), [], captured, found)
        return found

    def _descend(
        self,
        sequences: Mapping[str, np.ndarray],
        begin: int,
        cache: DynamicCache,
        tail: list[torch.Tensor],
        captured: list[torch.Tensor],
        found: dict[str, Measurement],
    ) -> None:
        """Run on from a beginning of `begin` tokens that these sequences share: its cache, and its last logits."""
        first = next(iter(sequences.values()))
        end = begin + _shared([ids[begin:] for ids in sequences.values()])
        if end > begin:
            tail = [*tail, *self._forward(first[begin:end], cache)][-RECENT - 1 :]
        branches: dict[int, dict[str, np.ndarray]] = {}
        for name, ids in sequences.items():
            if len(ids) == end:
                found[name] = _measurement(captured, tail, ids)
            else:
                branches.setdefault(int(ids[end]), {})[name] = ids
        # The branch of most sequences takes the cache itself, last, so that there is one copy at a time.
        ordered = sorted(branches.values(), key=len)
        for i, branch in enumerate(ordered):
            own = cache if i == len(ordered) - 1 else copy.deepcopy(cache)
            self._descend(branch, end, own, tail, captured, found)

    def _forward(self, token_ids: np.ndarray, cache: DynamicCache) -> torch.Tensor:
        """Run tokens after a cache; logits [positions, vocabulary] of the last of them."""
        ids = torch.tensor(token_ids, dtype=torch.long, device=self.model.device)[None]
        self.token_forwards += len(token_ids)
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=RECENT + 1).logits[0]


def _shared(sequences: Sequence[np.ndarray]) -> int:
    """How many tokens all of them begin with."""
    shortest = min(map(len, sequences))
    ids = np.stack([sequence[:shortest] for sequence in sequences])
    differ = (ids != ids[0]).any(0)
    return int(differ.argmax()) if differ.any() else shortest


def _measurement(captured: list[torch.Tensor], tail: list[torch.Tensor], ids: np.ndarray) -> Measurement:
    last = torch.tensor(ids[1:][-RECENT:], dtype=torch.long, device=tail[0].device)
    surprisal, entropy = surprisal_and_entropy_bits(torch.stack(tail[-len(last) - 1 : -1]), last)
    activations = torch.stack(captured).float().cpu().numpy()
    return Measurement(activations, surprisal.double().cpu().numpy(), float(entropy[-1]), int(ids[-1]))


# -- parts --------------------------------------------------------------------------------------------------------


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
    facts = {
        "schema": "cladastats/activations/1",
        "identity": identity,
        "sequence_ids": part.sequence_ids,
        "sha256": part.checksum(identity),
    }
    # One entry: safetensors writes several in an order that changes, and a shard's bytes should not.
    content = safetensors.numpy.save(part.tensors, {"cladastats": json.dumps(facts)})
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
    """
    try:
        with safe_open(path, framework="numpy") as handle:
            facts = _facts(handle)
            tensors = {name: handle.get_tensor(name) for name in TENSORS}
        part = Part(list(facts["sequence_ids"]), tensors)
        whole = part.checksum(facts["identity"]) == facts["sha256"]
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        whole = False
    if not whole:
        raise DamagedPartError(
            f"{path} is truncated or altered; run 'cladastats extract --study {path.parent.parent}' to redo it"
        )
    if facts["identity"] == identity and part.sequence_ids != sequence_ids:
        raise DamagedPartError(
            f"{path} holds another shard; run 'cladastats extract --study {path.parent.parent}' to redo it"
        )
    if facts["identity"] != identity:
        raise StudyError(
            f"{path} belongs to a study of another model or corpus; move it away, or use another --study folder"
        )
    return part


def _facts(handle: Any) -> dict[str, Any]:
    return dict(json.loads((handle.metadata() or {})["cladastats"]))


class DamagedPartError(StudyError):
    """A part whose content is not what its checksum says."""


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


# -- the stage ----------------------------------------------------------------------------------------------------


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    extract(Study(args.study))


def extract(study: Study) -> None:
    """Extract what is missing of a study, and write `activations/index.parquet`.

    Parts that are whole are kept, damaged ones redone (and said so on stderr).

    Raises:
        StudyError: the model is not the one the study was made for, or a part is of another study.
        ModelError: the model cannot be opened, or its positions do not reach the study's length.
    """
    config = study.config
    identity = config.identity()
    corpus = study.corpus
    if tokens_sha256(corpus) != config.corpus_sha256:
        raise StudyError(
            f"{study.folder}/corpus.parquet was altered since it was built; delete the folder and build it again"
        )
    shards = shards_of(corpus)
    todo = [n for n, blocks in enumerate(shards) if not _finished(part_path(study, n), identity, shard_ids(blocks))]
    index_path = study.folder / "activations" / "index.parquet"
    norms_path = study.folder / "activations" / "down_norms.safetensors"
    if not todo and _readable(norms_path) and is_current(index_path, identity):
        return

    if model_revision(config.model) != config.revision:
        raise StudyError(
            f"{study.folder} is a study of {config.model} at {config.revision[:20]}, which is not what that name opens "
            "now; use another --study folder"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        model, _ = load_model(config.model, dtype=config.dtype)
        check_length(model.config, config.length + 1, "make a study with a shorter --length")
        with replacing(norms_path) as temporary:
            temporary.write_bytes(safetensors.numpy.save({"down_norms": down_norms(model).numpy()}))
        runner = PrefixSharingRunner(model)
        n_blocks = sum(len(shards[number]) for number in todo)
        with tqdm(total=n_blocks, unit="pair", desc="extract", file=sys.stderr, disable=not todo) as progress:
            for number in todo:
                part = run_shard(runner, shards[number], config.storage_dtype, progress)
                write_part(part_path(study, number), part, identity)
    finally:
        torch.set_num_threads(threads)
    write_table(index_path, _index(study, len(shards)), identity)
    if todo and "placebos" not in config.corpus:
        _report_cost(runner.token_forwards, n_blocks, config.length, len(config.ratios))


def run_shard(runner: PrefixSharingRunner, blocks: list[pd.DataFrame], storage_dtype: str, progress: Any) -> Part:
    """Measure the blocks of one shard.

    Raises:
        StudyError: an activation is not finite, or too large for the storage dtype.
    """
    measured: dict[str, Measurement] = {}
    for block in blocks:
        measured |= runner.measure(dict(zip(block["sequence_id"], block["token_ids"], strict=True)))
        progress.update()
    rows = [measured[sequence_id] for sequence_id in shard_ids(blocks)]
    activations = np.stack([m.activations for m in rows])
    with np.errstate(over="ignore"):  # an overflow becomes inf and is reported below
        stored = activations.astype(storage_dtype)
    if not np.isfinite(stored).all():
        largest = np.abs(activations).max()
        raise StudyError(
            f"an activation of {largest:.3g} does not fit {storage_dtype}; make the study with --storage-dtype float32"
            if np.isfinite(largest)
            else "the model gives activations that are not numbers; try another dtype or model"
        )
    return Part(
        shard_ids(blocks),
        {
            "activations": stored,
            "surprisal_bits": np.array([m.surprisal_bits for m in rows]),
            "entropy_bits": np.array([m.entropy_bits for m in rows]),
            "previous_surprisal_bits": np.array([m.previous_surprisal_bits for m in rows]),
            "target_id": np.array([m.target_id for m in rows]),
        },
    )


def _finished(path: Path, identity: str, sequence_ids: list[str]) -> bool:
    if not path.exists():
        return False
    try:
        read_part(path, identity, sequence_ids)
    except DamagedPartError as damage:
        print(f"cladastats: {str(damage).partition(';')[0]}; it is done again", file=sys.stderr)
        path.unlink()
        return False
    return True


def _readable(path: Path) -> bool:
    try:
        safetensors.numpy.load_file(path)
    except (OSError, SafetensorError):
        return False
    return True


def _index(study: Study, shards: int) -> pd.DataFrame:
    tables = []
    for number in range(shards):
        path = part_path(study, number)
        with safe_open(path, framework="numpy") as handle:
            ids = _facts(handle)["sequence_ids"]
            columns = {name: handle.get_tensor(name) for name in TENSORS[1:]}
        tables.append(pd.DataFrame({"sequence_id": ids, "part": path.name, "row": range(len(ids)), **columns}))
    return pd.concat(tables).drop_duplicates("sequence_id", ignore_index=True)


def _report_cost(forwards: int, blocks: int, length: int, ratios: int) -> None:
    """Say what sharing saved, against three roles at every ratio run whole, and against the distinct sequences."""
    whole = blocks * (length + 1)
    print(
        f"cladastats: {forwards:,} token forwards for {blocks} pairs: {forwards / (whole * 3 * ratios):.3f} of the "
        f"{3 * ratios} whole runs a pair, {forwards / (whole * (2 + ratios)):.3f} of its {2 + ratios} distinct ones "
        "(B* included)",
        file=sys.stderr,
    )
