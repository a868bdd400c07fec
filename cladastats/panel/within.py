"""Regression with pair effects in the sums of each cluster, and the one rule of its errors.

Clusters are pairs, or pairs that share documents. Under `FEW_CLUSTERS` of them errors are CR3, the jackknife over
clusters, else CR1; intervals and p are from t with one degree of freedom less than clusters. `Within` makes all this
from sums that are made once, so that a bootstrap draw costs products of small matrices in the place of a pass over the
rows. The tests hold it to linearmodels (CR1) and pyfixest (CR3), which fit the six columns
(`cladastats.panel.clustered`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from clada.errors import NotIdentifiedError

DRAWS = 1999  # of the bootstrap and of permutations: the Monte-Carlo error of a p-value of 0.05 is 0.005

# CR1 errors of fewer clusters are too small: at 30 pairs intervals of the loads cover 0.93 (benchmarks/simulate.py).
FEW_CLUSTERS = 50

# Log-probabilities and activations are float32, whose relative rounding is 1.2e-7, and sums of them round a few times
# more. A spread below 1e-6 of a variable's own root mean square is that rounding, whatever the variable's unit.
ROUNDING = 1e-6


def few(clusters: int) -> bool:
    """Whether errors of that many clusters are CR3 in the place of CR1: the rule of all regressions of a study."""
    return clusters < FEW_CLUSTERS


def clusters_of(data: pd.DataFrame) -> np.ndarray:
    """The cluster of every row, counted from 0: the column `cluster` where there is one, else the pair.

    Args:
        data: [n], indexed by pair and ratio.
    """
    labels = data["cluster"] if "cluster" in data else data.index.get_level_values("pair")
    return np.unique(labels, return_inverse=True)[1]


def without_singletons(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of pairs that have several; a pair of one row says nothing about differences within pairs.

    Args:
        data: Indexed by pair and ratio.

    Source: Correia (2015), Singletons, cluster-robust standard errors and fixed effects: a bad mix.
    """
    _, place, rows = np.unique(data.index.get_level_values("pair"), return_inverse=True, return_counts=True)
    return data[rows[place] > 1]


@dataclass(frozen=True)
class Within:
    """A regression with pair effects, in the sums of each cluster: G clusters, k regressors.

    Attributes:
        names: of the k regressors.
        xx: [G, k, k], of regressors around their pair's mean.
        xy: [G, k].
        rows: [G], of the panel.
        pairs: How many have an effect.
    """

    names: tuple[str, ...]
    xx: np.ndarray
    xy: np.ndarray
    rows: np.ndarray
    pairs: int

    @classmethod
    def of(cls, data: pd.DataFrame, outcome: str, names: Sequence[str]) -> Within:
        """From complete rows indexed by pair and ratio, clusters as `clusters_of` has them.

        Pairs of one row are left out.
        """
        data = without_singletons(data)
        pairs, place = np.unique(data.index.get_level_values("pair"), return_inverse=True)
        values = data[[outcome, *names]].to_numpy(float)
        sums = np.zeros((len(pairs), values.shape[1]))
        np.add.at(sums, place, values)
        values = values - (sums / np.bincount(place)[:, None])[place]
        return cls(tuple(names), *_sums(values[:, 1:], values[:, 0], clusters_of(data)), len(pairs))

    @classmethod
    def across(cls, means: pd.DataFrame, outcome: str, names: Sequence[str]) -> Within:
        """The same without pair effects, of a row a pair with its `cluster`: the constant is the last coefficient."""
        x = np.column_stack([means[list(names)], np.ones(len(means))])
        return cls(tuple(names), *_sums(x, means[outcome].to_numpy(float), clusters_of(means)), 0)

    @property
    def df(self) -> int:
        """Degrees of freedom of intervals and tests: clusters less one."""
        return len(self.xy) - 1

    def identified(self, weights: np.ndarray | None = None) -> np.ndarray:
        """[...]: whether the coefficients are identified and, with few clusters, stay so without any one of these.

        Args:
            weights: [..., G], how often each cluster counts; None: once.
        """
        weights = np.ones(len(self.xy)) if weights is None else np.asarray(weights, float)
        size = np.sqrt(np.einsum("gii->i", self.xx))
        if (size == 0).any() or self.df < 1 or self.rows.sum() <= self.pairs + len(size):
            return np.zeros(weights.shape[:-1], bool)
        left = self._without_each(weights) if few(len(self.xy)) else np.tensordot(weights, self.xx, 1)[..., None, :, :]
        # A variance of the regressors, in any direction, below that of rounding is none.
        return np.all(np.linalg.eigvalsh(left / size[:, None] / size)[..., 0] > ROUNDING**2, axis=-1)

    def _without_each(self, weights: np.ndarray) -> np.ndarray:
        """[..., G, k, k]: `xx` of all clusters, each less one copy of one cluster that counts."""
        total = np.tensordot(weights, self.xx, 1)
        return total[..., None, :, :] - (weights > 0)[..., None, None] * self.xx

    def estimate(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and their clustered covariance: CR3 under `FEW_CLUSTERS` clusters, else CR1.

        CR3 is (G - 1) / G times the sum of outer products of the differences that leaving out a cluster makes, CR1 has
        the factor G / (G - 1) * (n - 1) / (n - k - 1) for n rows.

        Args:
            weights: [..., G], how often each cluster counts; None: once.

        Returns:
            ([..., k], [..., k, k]).

        Source: MacKinnon, Nielsen and Webb (2023), Cluster-robust inference: a guide to empirical practice.
        """
        clusters, k = len(self.xy), len(self.names)
        weights = np.ones(clusters) if weights is None else np.asarray(weights, float)
        bread = np.linalg.inv(np.tensordot(weights, self.xx, 1))
        xy = weights @ self.xy
        coef = np.einsum("...ij,...j->...i", bread, xy)
        if few(clusters):
            left = xy[..., None, :] - (weights > 0)[..., None] * self.xy
            moved = np.linalg.solve(self._without_each(weights), left[..., None])[..., 0] - coef[..., None, :]
            factor = np.asarray((clusters - 1) / clusters)
        else:
            scores = self.xy - np.einsum("gij,...j->...gi", self.xx, coef)
            moved = np.einsum("...ij,...gj->...gi", bread, scores)
            n = weights @ self.rows
            factor = np.asarray(clusters / (clusters - 1) * (n - 1) / (n - k - 1))
        return coef, factor[..., None, None] * np.einsum("...g,...gi,...gj->...ij", weights, moved, moved)

    def fit(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and their standard errors, as `cladastats.panel.columns.fit_columns` has them.

        Args:
            weights: [..., G], how often each cluster counts; None: once.

        Returns:
            ([..., k], [..., k]).
        """
        coef, cov = self.estimate(weights)
        return coef, np.sqrt(np.einsum("...ii->...i", cov))


def _sums(x: np.ndarray, y: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`xx`, `xy` and `rows` of every cluster."""
    rows = np.bincount(cluster)
    xx = np.zeros((len(rows), x.shape[1], x.shape[1]))
    np.add.at(xx, cluster, x[:, :, None] * x[:, None, :])
    xy = np.zeros((len(rows), x.shape[1]))
    np.add.at(xy, cluster, x * y[:, None])
    return xx, xy, rows


def bootstrap(within: Within, rng: np.random.Generator, draws: int = DRAWS) -> dict[str, dict[str, Any]]:
    """Cluster bootstrap: studentised (bootstrap-t) and percentile 95 % intervals.

    Not scipy's bootstrap, which has no studentised interval; the tests compare the percentile one with it.

    Args:
        within: The regression.
        rng: Of the draws.
        draws: Of as many clusters as there are, with replacement.

    Returns:
        Per regressor `se`, `ci` (studentised) and `ci_percentile`; empty where most draws of so few clusters do not
        identify the coefficients and their errors.

    Source: Cameron, Gelbach and Miller (2008), Bootstrap-based improvements for inference with clustered errors.
    """
    clusters, k = within.xy.shape
    weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
    weights = weights[(weights > 0).sum(1) > k]  # fewer distinct ones have no error to speak of, whatever they identify
    weights = weights[within.identified(weights)]
    if len(weights) < draws / 2:
        return {}
    coef, se = within.fit()
    drawn = [within.fit(part) for part in np.array_split(weights, max(1, len(weights) // 200))]
    coefs, ses = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    low, high = np.quantile((coefs - coef) / ses, [0.025, 0.975], axis=0)
    percentile = np.quantile(coefs, [0.025, 0.975], axis=0)
    return {
        name: {
            "se": float(coefs[:, i].std(ddof=1)),
            "ci": [float(coef[i] - high[i] * se[i]), float(coef[i] - low[i] * se[i])],
            "ci_percentile": percentile[:, i].tolist(),
        }
        for i, name in enumerate(within.names)
    }


def permutation(data: pd.DataFrame, outcome: str, rng: np.random.Generator, draws: int = DRAWS) -> dict[str, Any]:
    """Within-pair permutation of the ratios: is the prefix's slope larger than when ratios are dealt at random?

    Exact for the hypothesis that the ratio changes nothing about any pair's responses; two-sided. Slopes of the pairs'
    own that cancel are against it, and rejected more often than 5 %. The pairs of a cluster are dealt the same order,
    as their responses may move together. Not scipy's permutation test, which needs equally
    many rows in every pair; the tests compare with it where there are.

    Args:
        data: Complete rows, indexed by pair and ratio.
        outcome: Response column.
        rng: Of the permutations.
        draws: Permutations of all pairs.

    Returns:
        `coef`, the slope per 1,000 tokens, its `p` and `draws`.
    """
    pairs, place = np.unique(data.index.get_level_values("pair"), return_inverse=True)
    order = np.argsort(place, kind="stable")
    place = place[order]
    values = data[[outcome, "prefix_len"]].to_numpy(float)[order]
    cluster = clusters_of(data)[order]
    ratios, ratio = np.unique(data.index.get_level_values("ratio")[order], return_inverse=True)
    sums = np.zeros((len(pairs), 2))
    np.add.at(sums, place, values)
    y, x = (values - (sums / np.bincount(place)[:, None])[place]).T
    slope = float(y @ x / (x @ x))
    extreme = 0
    for _ in range(draws):
        key = rng.random((cluster.max() + 1, len(ratios)))[cluster, ratio]
        extreme += abs(y @ x[np.lexsort((key, place))]) >= abs(y @ x) * (1 - 1e-12)
    return {"coef": slope, "p": (1 + int(extreme)) / (1 + draws), "draws": draws}


def per_pair(data: pd.DataFrame, outcome: str) -> dict[str, Any]:
    """The prefix's slope of every pair by itself: their median, the share that rises, Wilcoxon's signed-rank test.

    Needs no variance and no normality, and no outlier decides it. Pairs that share documents have one slope together,
    as the test is of independent ones.

    Args:
        data: Complete rows, indexed by pair and ratio.
        outcome: Response column.

    Returns:
        `median` slope per 1,000 tokens, `rising` (a share) with `rising_ci` (95 %, Wilson), `wilcoxon_p`, `slopes`
        (how many).
    """
    within = Within.of(data, outcome, ["prefix_len"])
    several = within.xx[:, 0, 0] > 0  # lengths that rounding makes equal give no slope
    slopes = within.xy[several, 0] / within.xx[several, 0, 0]
    rising = int((slopes > 0).sum())
    share = stats.binomtest(rising, len(slopes)).proportion_ci(method="wilson")
    return {
        "median": float(np.median(slopes)),
        "rising": rising / len(slopes),
        "rising_ci": [float(share.low), float(share.high)],
        "wilcoxon_p": float(stats.wilcoxon(slopes).pvalue) if slopes.any() else 1.0,
        "slopes": len(slopes),
    }


def mean_summary(data: pd.DataFrame, outcome: str) -> dict[str, Any]:
    """The mean over pairs of a response, by the rule of the regressions' errors.

    Where every pair is a cluster of its own, CR1 and CR3 are the plain standard error of a mean.

    Args:
        data: Rows indexed by pair and ratio.
        outcome: Response column.

    Returns:
        `coef`, `se`, `ci` (95 %) and `p` (against 0).
    """
    means = data.assign(cluster=clusters_of(data)).groupby(level="pair")[[outcome, "cluster"]].mean()
    sums, sizes = (means.groupby("cluster")[outcome].agg(what).to_numpy() for what in ("sum", "size"))
    clusters, mean = len(sums), float(means[outcome].mean())
    if few(clusters):
        variance = (clusters - 1) / clusters * (((sums.sum() - sums) / (sizes.sum() - sizes) - mean) ** 2).sum()
    else:
        variance = clusters / (clusters - 1) * ((sums - mean * sizes) ** 2).sum() / sizes.sum() ** 2
    return summary_of(["mean"], [mean], [np.sqrt(variance)], clusters - 1)["mean"]


def pair_effects_summary(data: pd.DataFrame, outcome: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Coefficients of a regression with pair effects, with clustered errors, intervals and p from t(G - 1).

    Args:
        data: Complete rows, indexed by pair and ratio.
        outcome: Response column.
        names: Regressors.

    Returns:
        Per regressor `coef`, `se`, `ci` (95 %) and `p`.

    Raises:
        NotIdentifiedError: One of the coefficients or its error is not identified.
    """
    return within_summary(Within.of(data, outcome, names))


def within_summary(within: Within) -> dict[str, dict[str, Any]]:
    """The same as `pair_effects_summary`, of sums that are there."""
    if not within.identified():
        raise NotIdentifiedError(
            f"{', '.join(within.names)} are not identified in all data, or in those without one of {len(within.xy)} "
            "clusters, which jackknife errors need; add pairs"
        )
    return summary_of(within.names, *within.fit(), within.df)


def summary_of(names: Sequence[str], coef: Any, se: Any, df: int) -> dict[str, dict[str, Any]]:
    """Estimates with 95 % intervals and two-sided p from t(df).

    Args:
        names: Of the estimates.
        coef: At least as many values, in order; what follows, the constant say, is left out.
        se: Their standard errors.
        df: Degrees of freedom.

    Returns:
        Per name `coef`, `se`, `ci` and `p`.
    """
    return {
        name: {
            "coef": float(value),
            "se": float(error),
            "ci": [float(value + side * stats.t.ppf(0.975, df) * error) for side in (-1, 1)],
            "p": float(2 * stats.t.sf(abs(value / error), df)),
        }
        for name, value, error in zip(names, coef, se, strict=False)
    }
