"""`cladastats similarity`: compare the activations of every pair and write the panels."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["similarity", *sys.argv[1:]]))

import argparse
import hashlib

import pandas as pd

from clada.errors import StudyError
from clada.system.machine import torch_threads
from cladastats.results.labels import metric_title
from cladastats.similarities.blocks import panel_keys
from cladastats.similarities.formulas import SMALLEST_DISTANCE, shifts
from cladastats.similarities.metrics import METRICS, POPULATION, Metric, metric_name
from cladastats.similarities.panels import compare_all, population_cka, row_facts
from cladastats.study import Study, is_current, write_table


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    similarity(Study(args.study), args.metric, args.estimator)


def similarity(study: Study, metric: str, estimator: str | None = None) -> None:
    """Write `panel-<metric>.parquet` and `panel-layers-<metric>.parquet` of a study; nothing if they are current.

    The estimator `population` writes `population-cka.parquet` instead: it compares sets of pairs, not pairs.

    Args:
        study: A study with activations.
        metric: A key of `cladastats.similarities.metrics.METRICS`.
        estimator: Of the metric `cka`: a key of `cladastats.similarities.metrics.ESTIMATORS`.

    Raises:
        InputError: The metric is unknown, or there are too few pairs for it.
        StudyError: Activations are missing or damaged, or a placebo study and the estimator `population`.
    """
    name = metric_name(metric, estimator)
    index = study.index
    inputs = hashlib.sha256(
        pd.util.hash_pandas_object(index).to_numpy().tobytes() + study.config.identity().encode()
    ).hexdigest()
    with torch_threads(study.config.threads):
        if name == POPULATION:
            _write_population(study, inputs)
        else:
            _write_panels(study, METRICS[name], index, inputs)


def _write_population(study: Study, inputs: str) -> None:
    if "placebos" in study.config.corpus:
        raise StudyError(
            f"{study.folder} holds hybrids of several kinds, which 'cladastats regress --robust' of its study "
            "compares; population CKA is of one kind: give that study"
        )
    path = study.folder / "population-cka.parquet"
    if not is_current(path, inputs):
        write_table(path, population_cka(study), inputs)


def _write_panels(study: Study, metric: Metric, index: pd.DataFrame, inputs: str) -> None:
    pooled_path, layered_path = (study.folder / f"panel-{kind}{metric.name}.parquet" for kind in ("", "layers-"))
    if is_current(pooled_path, inputs) and (not metric.per_layer or is_current(layered_path, inputs)):
        return
    layered = compare_all(study, metric)
    facts = row_facts(study, index)
    keys = panel_keys(study)
    sims = [column for column in layered.columns if column.startswith("sim_")]
    # skipna=False: a layer that cannot be compared makes the row NaN, which the regression counts, instead of
    # silently averaging other layers than in the next row.
    pooled = layered.groupby(keys, sort=True)[sims].agg(lambda values: values.mean(skipna=False)).reset_index()
    pooled = pd.concat([pooled, shifts(pooled)], axis=1).merge(facts, on=keys)
    missing = int(pooled[["shift_toward", "shift_matched"]].isna().any(axis=1).sum())
    if missing:
        print(
            f"cladastats: {metric_title(metric.name)}: {missing} of {len(pooled)} rows have no shift (1 - sim(A, B) < "
            f"{SMALLEST_DISTANCE})",
            file=sys.stderr,
        )
    if metric.per_layer:
        layered = pd.concat([layered, shifts(layered)], axis=1).merge(facts, on=keys)
        write_table(layered_path, layered, inputs)
    write_table(pooled_path, pooled, inputs)
