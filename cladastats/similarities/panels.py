"""Tables of a study's similarities: of every pair, and of its pairs as a population."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from clada.system.files import local_folder
from cladastats.activations.parts import read_layer, read_parts
from cladastats.similarities.blocks import Block, panel_keys, read_blocks
from cladastats.similarities.formulas import cka_debiased_jackknife
from cladastats.similarities.metrics import Metric, Transform
from cladastats.study import Study


def compare_all(study: Study, metric: Metric) -> pd.DataFrame:
    """Similarities of every hybrid of a study to A, B and the matched reference of its pair.

    Args:
        study: With activations.
        metric: A row of `cladastats.similarities.metrics.METRICS`.

    Returns:
        Columns `panel_keys(study)`, `layer` where the metric is per layer, and sim_ab, sim_ab_matched, sim_hb, sim_ha,
        sim_hb_matched; a row per hybrid, or per hybrid and layer.

    Raises:
        InputError: The study has too few pairs for the metric.
        StudyError: Activations are missing or damaged.
    """
    transform = metric.prepare(study)
    keys = panel_keys(study)
    pairs = study.corpus.groupby(["group", "pair"]).ngroups
    records: list[dict[str, Any]] = []
    with tqdm(total=pairs, unit="pair", desc=f"similarity {metric.name}", file=sys.stderr, leave=False) as progress:
        for block in read_blocks(study):
            for key, sims in _compare_block(block, metric, transform):
                row = dict(zip(keys, (block.group, block.pair, *key), strict=True))
                if metric.per_layer:
                    layers = range(len(block.matrices["A"]))
                    records += [{**row, "layer": i, **{name: v[i] for name, v in sims.items()}} for i in layers]
                else:
                    records.append({**row, **sims})
            progress.update()
    return pd.DataFrame.from_records(records)


def _compare_block(block: Block, metric: Metric, transform: Transform) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The similarities of each hybrid of a pair, beside those of its references, which are the same for all."""
    prepared = {key: transform(matrix, block) for key, matrix in block.matrices.items()}
    references = {
        "sim_ab": metric.compare(prepared["A"], prepared["B"]),
        "sim_ab_matched": metric.compare(prepared["A"], prepared["matched"]),
    }
    return [
        (
            key,
            {
                **references,
                "sim_hb": metric.compare(prepared[key], prepared["B"]),
                "sim_ha": metric.compare(prepared[key], prepared["A"]),
                "sim_hb_matched": metric.compare(prepared[key], prepared["matched"]),
            },
        )
        for key in block.hybrids
    ]


def row_facts(study: Study, index: pd.DataFrame) -> pd.DataFrame:
    """Load of the hybrids' targets, lengths of their sequences, and what stands between prefix and target.

    Args:
        study: A study.
        index: Its `activations/index.parquet`.

    Returns:
        A row per hybrid: `panel_keys(study)`, prefix_len and token_len (tokens), surprisal_bits, entropy_bits (bits),
        surprisal_norm, entropy_norm (the same in shares of log2 of the vocabulary); target_distance, tokens from the
        beginning of the target's document (in A, also where a prefix replaces it) to the target; separator_between,
        whether a separator of documents stands between the end of the prefix and the target; cluster, the number that
        pairs of a group share whose texts share a document.
    """
    corpus = study.corpus
    if "cluster" not in corpus:  # of an earlier version
        corpus = corpus.assign(cluster=corpus["pair"])
    hybrids = corpus.loc[corpus["role"] == "hybrid", [*panel_keys(study), "prefix_len", "cluster", "sequence_id"]]
    a = corpus.loc[corpus["role"] == "A", ["group", "pair", "target_distance", "documents"]]
    hybrids = hybrids.merge(a, on=["group", "pair"])
    # A document's first token follows its separator, so one that begins right at the prefix's end has lost that.
    between = [(row.documents > row.prefix_len).any() for row in hybrids.itertuples()]
    hybrids = hybrids.assign(separator_between=np.array(between, dtype=bool)).drop(columns="documents")
    facts = hybrids.merge(index[["sequence_id", "surprisal_bits", "entropy_bits"]], on="sequence_id").drop(
        columns="sequence_id"
    )
    bits = np.log2(study.config.vocab_size)
    return facts.assign(
        surprisal_norm=facts["surprisal_bits"] / bits,
        entropy_norm=facts["entropy_bits"] / bits,
        prefix_len=facts["prefix_len"].astype("int64"),
        cluster=facts["cluster"].astype("int64"),
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
