"""Similarities of every pair of a study, row by row."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from clada.errors import InputError
from clada.system.files import local_folder
from cladastats.activations.parts import Part, read_layer, read_norms, read_parts
from cladastats.similarities.metrics import Metric, cka_debiased_jackknife
from cladastats.study import Study

TRIMMED = 0.01  # of each layer's neurons, those of the largest mean square


def compare_all(study: Study, metric: Metric, name: str) -> pd.DataFrame:
    """Similarities of every row, and of every layer where the metric is per layer (column `layer`)."""
    keys = panel_keys(study)
    prepare = _Preparation(study, metric.prepare, keys)
    records: list[dict[str, Any]] = []
    blocks = study.corpus.groupby(["group", "pair"], sort=True)
    with tqdm(total=blocks.ngroups, unit="pair", desc=f"similarity {name}", file=sys.stderr, leave=False) as progress:
        for part, members in read_parts(study):
            for block in members:
                group, pair = block["group"].iloc[0], int(block["pair"].iloc[0])
                matrices = _block_matrices(part, block, keys)
                get = {key: prepare(matrix, group, matrices) for key, matrix in matrices.items()}
                fixed = {
                    "sim_ab": metric.compare(get["A"], get["B"]),
                    "sim_ab_matched": metric.compare(get["A"], get["matched"]),
                }
                for key in sorted(key for key in get if isinstance(key, tuple)):
                    hybrid = get[key]
                    sims = {
                        **fixed,
                        "sim_hb": metric.compare(hybrid, get["B"]),
                        "sim_ha": metric.compare(hybrid, get["A"]),
                        "sim_hb_matched": metric.compare(hybrid, get["matched"]),
                    }
                    row = dict(zip(keys, (group, pair, *key), strict=True))
                    if metric.per_layer:
                        layers = range(len(get["A"]))
                        records += [{**row, "layer": i, **{k: v[i] for k, v in sims.items()}} for i in layers]
                    else:
                        records.append({**row, **sims})
                progress.update()
    return pd.DataFrame.from_records(records)


def panel_keys(study: Study) -> list[str]:
    """What tells the rows of a panel apart."""
    return ["group", "pair", "ratio", *(["placebo"] if "placebos" in study.config.corpus else [])]


def _block_matrices(part: Part, block: pd.DataFrame, keys: list[str]) -> dict[str | tuple[Any, ...], np.ndarray]:
    """Activations of one block in float64: under "A", "B", "matched", and of each hybrid its keys from `ratio` on."""
    row_of = {sequence_id: row for row, sequence_id in enumerate(part.sequence_ids)}
    names = [
        role if role != "hybrid" else tuple(key)
        for role, *key in block[["role", *keys[2:]]].itertuples(index=False, name=None)
    ]
    return {
        name: part.tensors["activations"][row_of[sequence_id]].astype(float)
        for name, sequence_id in zip(names, block["sequence_id"], strict=True)
    }


class _Preparation:
    """What a metric wants done to activations before it compares them."""

    def __init__(self, study: Study, kind: str, keys: list[str]) -> None:
        self.kind = kind
        if kind == "magnitude":
            self.norms = read_norms(study).astype(float)
        if kind == "centre":
            if study.config.pairs < 2:
                raise InputError(
                    "cosine_centred needs at least 2 pairs, as the mean comes from other pairs; use more --pairs"
                )
            self.total: dict[str, np.ndarray | float] = {}
            for part, members in read_parts(study):
                for block in members:
                    group = block["group"].iloc[0]
                    self.total[group] = self.total.get(group, 0.0) + _own_sum(_block_matrices(part, block, keys))
            self.others = 2 * (study.config.pairs - 1)
        if kind == "trim":
            # The same neurons for every comparison: chosen by comparison, the choice itself would make them alike.
            squares: np.ndarray | float = 0.0
            for part, _ in read_parts(study):
                squares = squares + (part.tensors["activations"].astype(float) ** 2).sum(0)
            squares = np.asarray(squares)
            few = max(1, round(TRIMMED * squares.shape[1]))
            self.kept = np.sort(np.argsort(squares, axis=1)[:, :-few], axis=1)

    def __call__(self, matrix: np.ndarray, group: str, block: dict[str | tuple[Any, ...], np.ndarray]) -> np.ndarray:
        if self.kind == "magnitude":
            return matrix * self.norms
        if self.kind == "trim":
            return np.take_along_axis(matrix, self.kept, axis=1)
        if self.kind == "centre":
            return matrix - (self.total[group] - _own_sum(block)) / self.others
        return matrix


def _own_sum(block: dict[str | tuple[Any, ...], np.ndarray]) -> np.ndarray:
    """What a block gives to its group's mean: A and B. B* and the hybrids are made of them."""
    return block["A"] + block["B"]


def row_facts(study: Study, index: pd.DataFrame) -> pd.DataFrame:
    """Load of the hybrids and lengths, a row per group, pair and ratio."""
    corpus = study.corpus
    hybrids = corpus.loc[corpus["role"] == "hybrid", [*panel_keys(study), "prefix_len", "sequence_id"]]
    facts = hybrids.merge(index[["sequence_id", "surprisal_bits", "entropy_bits"]], on="sequence_id").drop(
        columns="sequence_id"
    )
    bits = np.log2(study.config.vocab_size)
    return facts.assign(
        surprisal_norm=facts["surprisal_bits"] / bits,
        entropy_norm=facts["entropy_bits"] / bits,
        prefix_len=facts["prefix_len"].astype("int64"),
        token_len=study.config.length,
    )


def population_cka(study: Study) -> pd.DataFrame:
    """Debiased linear CKA of each layer with pairs as observations (for figures).

    One layer of one group is in memory at a time.

    Returns:
        columns group, ratio, layer, comparison (ab, hb, ha, hb_matched), cka, se (jackknife over pairs), n_pairs.
    """
    for part, _ in read_parts(study):  # checked once, as layers are then read without their checksums
        layers = part.tensors["activations"].shape[1]
    index = study.index
    records: list[dict[str, Any]] = []
    with local_folder(study.folder / "activations") as activations:
        for group, members in study.corpus.groupby("group"):
            roles: dict[str | float, list[str]] = {}
            for row in members.sort_values("pair").itertuples():
                roles.setdefault(float(row.ratio) if row.role == "hybrid" else row.role, []).append(row.sequence_id)
            for layer in tqdm(range(layers), desc=f"population cka {group}", file=sys.stderr, leave=False):
                layer_of = {
                    role: read_layer(activations, index, ids, layer).astype(float) for role, ids in roles.items()
                }
                for ratio in sorted(role for role in layer_of if isinstance(role, float)):
                    for comparison, x, y in (
                        ("ab", "A", "B"),
                        ("hb", ratio, "B"),
                        ("ha", ratio, "A"),
                        ("hb_matched", ratio, "matched"),
                    ):
                        cka, se = cka_debiased_jackknife(layer_of[x], layer_of[y])
                        records.append(
                            {"group": group, "ratio": ratio, "layer": layer, "comparison": comparison}
                            | {"cka": cka, "se": se, "n_pairs": len(layer_of[x])}
                        )
    return pd.DataFrame.from_records(records)
