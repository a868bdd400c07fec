"""The metrics: a row per similarity, with what it does to activations before it compares them.

`cka` is the per-layer form, since neuron i of one layer has nothing to do with neuron i of the next: relabelling the
neurons of a layer, in the same way in both matrices, must change nothing, and no one layer's scale may decide the
result. With one column it is a squared correlation, and readers are told so by its label.

A metric is added as a row of `METRICS`. Where it transforms activations first, it is a subclass with a `prepare` of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clada.errors import InputError
from cladastats.activations.parts import read_norms, read_parts
from cladastats.results.labels import metric_label
from cladastats.similarities.blocks import Block, read_blocks
from cladastats.similarities.formulas import cka_biased, cka_debiased, cka_within, cosine, jaccard, pearson
from cladastats.study import Study

TRIMMED = 0.01
"""Share of each layer's neurons that `cka_trimmed` leaves out, those of the largest mean square."""

POPULATION = "cka_population"
"""Name of CKA with pairs as observations: it compares sets of pairs, so it fills no panel and is no row below."""

Transform = Callable[[np.ndarray, Block], np.ndarray]
"""What a metric does to a matrix [layers, neurons] of a block before it compares it."""


@dataclass(frozen=True)
class Metric:
    """A similarity of two activation matrices.

    Attributes:
        name: of its panel.
        compare: two matrices [layers, neurons] -> [layers], or one number where `per_layer` is False.
        per_layer: False for the forms of CKA that compare whole matrices.
        estimator: the value of `--estimator` that chooses it beside `--metric cka`; None: chosen by its name.
    """

    name: str
    compare: Callable[[np.ndarray, np.ndarray], Any]
    per_layer: bool = True
    estimator: str | None = None

    @property
    def label(self) -> str:
        """What it is, in words for tables and figures: its row of `cladastats.results.labels.METRIC_LABELS`."""
        return metric_label(self.name)

    def prepare(self, study: Study) -> Transform:  # noqa: ARG002
        """The transformation of a study's activations that this metric compares; here they stay as they are.

        Args:
            study: with activations.

        Returns:
            A function of a matrix and the block it belongs to.

        Raises:
            InputError: The study has too few pairs for it.
            StudyError: Activations are missing or damaged.
        """
        return lambda matrix, _block: matrix


class CentredMetric(Metric):
    """A metric of activations from which each neuron's mean over the other pairs of the group is subtracted."""

    def prepare(self, study: Study) -> Transform:
        """Subtract the mean of A and B of all other pairs; B* and the hybrids are made of these."""
        if study.config.pairs < 2:
            raise InputError(
                f"{self.name} needs at least 2 pairs, as the mean comes from other pairs; use more --pairs"
            )

        def sum_of(block: Block) -> np.ndarray:
            return block.matrices["A"] + block.matrices["B"]

        totals: dict[str, np.ndarray | float] = {}
        for block in read_blocks(study):
            totals[block.group] = totals.get(block.group, 0.0) + sum_of(block)
        others = 2 * (study.config.pairs - 1)
        return lambda matrix, block: matrix - (totals[block.group] - sum_of(block)) / others


class MagnitudeMetric(Metric):
    """A metric of magnitudes: activations times the norm of their neuron's down-projection column (Eq. 9)."""

    def prepare(self, study: Study) -> Transform:
        """Multiply by the norms [layers, neurons] of the study's model."""
        norms = read_norms(study).astype(float)
        return lambda matrix, _block: matrix * norms


class TrimmedMetric(Metric):
    """A metric of all neurons but the few of massive activity (`TRIMMED`), which can dominate any similarity."""

    def prepare(self, study: Study) -> Transform:
        """Leave out the same neurons everywhere: chosen anew for each comparison, the choice would make them alike."""
        squares: np.ndarray | float = 0.0
        for part, _ in read_parts(study):
            squares = squares + (part.tensors["activations"].astype(float) ** 2).sum(0)
        squares = np.asarray(squares)
        few = max(1, round(TRIMMED * squares.shape[1]))
        kept = np.sort(np.argsort(squares, axis=1)[:, :-few], axis=1)
        return lambda matrix, _block: np.take_along_axis(matrix, kept, axis=1)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("cka", cka_within, estimator="within"),
        TrimmedMetric("cka_trimmed", cka_within, estimator="trimmed"),
        Metric("cosine", cosine),
        CentredMetric("cosine_centred", cosine),
        Metric("pearson", pearson),
        MagnitudeMetric("jaccard", jaccard),
        Metric("cka_neurons", lambda x, y: cka_biased(x.T, y.T), per_layer=False, estimator="neurons"),
        Metric("cka_debiased", cka_debiased, per_layer=False, estimator="debiased"),
        Metric("cka_biased", cka_biased, per_layer=False, estimator="biased"),
    )
}

ESTIMATORS: dict[str, str] = {
    **{metric.estimator: name for name, metric in METRICS.items() if metric.estimator is not None},
    "population": POPULATION,
}
"""Name of the panel that each `--estimator` of `--metric cka` makes."""


def metric_name(metric: str, estimator: str | None = None) -> str:
    """The name of a metric's panel: `cka` with the estimator `biased` is `cka_biased`.

    Args:
        metric: A key of `METRICS`.
        estimator: A key of `ESTIMATORS`, with the metric `cka` only.

    Returns:
        A key of `METRICS`, or `POPULATION`.

    Raises:
        InputError: The metric or the estimator is unknown, or an estimator is given with another metric than `cka`.
    """
    if estimator is not None and metric != "cka":
        raise InputError(f"--estimator belongs to --metric cka, not to '{metric}'; leave it out")
    if estimator is not None:
        metric = ESTIMATORS.get(estimator, f"cka_{estimator}")
    if metric not in METRICS and metric != POPULATION:
        raise InputError(f"unknown metric '{metric}'; use {', '.join(METRICS)}")
    return metric
