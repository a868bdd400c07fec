"""Regression with pair effects: by linearmodels, and in the sums of each pair for what is fitted thousands of times.

`pair_effects_ols` is the estimator. `Within` gives the same coefficients and errors from sums that are made once, so
that a bootstrap draw costs a product of small matrices in the place of a pass over the rows; the tests hold it to
linearmodels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from linearmodels.panel import PanelOLS
from scipy import stats

DRAWS = 1999  # of the bootstrap and of permutations: the Monte-Carlo error of a p-value of 0.05 is 0.005


def without_singletons(data: pd.DataFrame) -> pd.DataFrame:
    """The rows of pairs that have several; a pair of one row says nothing about differences within pairs.

    Args:
        data: Indexed by pair and ratio.

    Source: Correia (2015), Singletons, cluster-robust standard errors and fixed effects: a bad mix.
    """
    return data[data.groupby(level="pair").transform("size") > 1]


def pair_effects_ols(response: pd.Series, regressors: pd.DataFrame, clusters: pd.DataFrame | None = None) -> Any:
    """Least squares with pair effects and a constant, by linearmodels; pairs of one row are left out.

    Standard errors are clustered, with the small-sample factor G / (G - 1) * (n - 1) / (n - k - 1) for n rows, G
    clusters and k regressors: pair effects are nested in the clusters and do not count.

    Args:
        response: [n], indexed by pair and ratio.
        regressors: [n, k], without the constant.
        clusters: [n, 1 or 2] numbers of the clusters; None: pairs.

    Returns:
        linearmodels' `PanelEffectsResults`, with the constant `const` last.
    """
    regressors = without_singletons(regressors)
    rows = regressors.index
    by = {"cluster_entity": True} if clusters is None else {"clusters": clusters.loc[rows]}
    return PanelOLS(response[rows], regressors.assign(const=1.0), entity_effects=True).fit(
        cov_type="clustered",
        **by,
        group_debias=True,
        debiased=True,
        auto_df=False,  # else linearmodels ignores the next choice and makes its own
        count_effects=False,
    )


@dataclass(frozen=True)
class Within:
    """A regression with pair effects, in the sums of each pair: G pairs, k regressors.

    Kept beside linearmodels for the bootstrap, twelve thousand fits a table, and for the layers, four fits each: a fit
    of sums that are there is hundreds of times as fast.

    Attributes:
        names: of the regressors.
        xx: [G, k, k], of regressors around their pair's mean.
        xy: [G, k].
        rows: of the panel.
    """

    names: tuple[str, ...]
    xx: np.ndarray
    xy: np.ndarray
    rows: int

    @classmethod
    def of(cls, data: pd.DataFrame, outcome: str, names: Sequence[str]) -> Within:
        """From complete rows indexed by pair and ratio; pairs of one row are left out."""
        data = without_singletons(data)
        pairs, place = np.unique(data.index.get_level_values("pair"), return_inverse=True)
        values = data[[outcome, *names]].to_numpy(float)
        sums = np.zeros((len(pairs), values.shape[1]))
        np.add.at(sums, place, values)
        values = values - (sums / np.bincount(place)[:, None])[place]
        y, x = values[:, 0], values[:, 1:]
        xx = np.zeros((len(pairs), x.shape[1], x.shape[1]))
        np.add.at(xx, place, x[:, :, None] * x[:, None, :])
        xy = np.zeros((len(pairs), x.shape[1]))
        np.add.at(xy, place, x * y[:, None])
        return cls(tuple(names), xx, xy, len(data))

    def fit(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and their standard errors clustered by pair, as `cladastats.panel.columns.fit_columns` has them.

        Args:
            weights: [..., G], how often each pair counts; None: once.

        Returns:
            ([..., k], [..., k]).
        """
        pairs, k = self.xy.shape
        weights = np.ones(pairs) if weights is None else np.asarray(weights, float)
        bread = np.linalg.inv(np.tensordot(weights, self.xx, 1))
        coef = np.einsum("...ij,...j->...i", bread, weights @ self.xy)
        scores = self.xy - np.einsum("gij,...j->...gi", self.xx, coef)
        meat = np.einsum("...g,...gi,...gj->...ij", weights, scores, scores)
        factor = pairs / (pairs - 1) * (self.rows - 1) / (self.rows - k - 1)
        variance = factor * np.einsum("...ij,...jk,...ki->...i", bread, meat, bread)
        return coef, np.sqrt(variance)


def bootstrap(within: Within, rng: np.random.Generator, draws: int = DRAWS) -> dict[str, dict[str, Any]]:
    """Cluster bootstrap over pairs: studentised (bootstrap-t) and percentile 95 % intervals.

    Not scipy's bootstrap, which has no studentised interval; the tests compare the percentile one with it.

    Args:
        within: The regression.
        rng: Of the draws.
        draws: Of as many pairs as there are, with replacement.

    Returns:
        Per regressor `se`, `ci` (studentised) and `ci_percentile`; empty where most draws of so few pairs do not
        identify the coefficients.

    Source: Cameron, Gelbach and Miller (2008), Bootstrap-based improvements for inference with clustered errors.
    """
    pairs, k = within.xy.shape
    weights = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=draws)
    weights = weights[(weights > 0).sum(1) > k]  # fewer distinct pairs than that may not identify the coefficients
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
    own that cancel are against it, and rejected more often than 5 %. Not scipy's permutation test, which needs equally
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
    sums = np.zeros((len(pairs), 2))
    np.add.at(sums, place, values)
    y, x = (values - (sums / np.bincount(place)[:, None])[place]).T
    slope = float(y @ x / (x @ x))
    extreme = 0
    for _ in range(draws):
        extreme += abs(y @ x[np.lexsort((rng.random(len(x)), place))]) >= abs(y @ x) * (1 - 1e-12)
    return {"coef": slope, "p": (1 + int(extreme)) / (1 + draws), "draws": draws}


def per_pair(data: pd.DataFrame, outcome: str) -> dict[str, Any]:
    """The prefix's slope of every pair by itself: their median, the share that rises, Wilcoxon's signed-rank test.

    Needs no variance and no normality, and no outlier decides it.

    Args:
        data: Complete rows, indexed by pair and ratio.
        outcome: Response column.

    Returns:
        `median` slope per 1,000 tokens, `rising` (a share) with `rising_ci` (95 %, Wilson), `wilcoxon_p`, `n_pairs`.
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
        "n_pairs": len(slopes),
    }


def pair_effects_summary(data: pd.DataFrame, outcome: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Coefficients of a regression with pair effects, with clustered errors, intervals and p from t(G - 1).

    Args:
        data: Complete rows, indexed by pair and ratio.
        outcome: Response column.
        names: Regressors.

    Returns:
        Per regressor `coef`, `se`, `ci` (95 %) and `p`.
    """
    result = pair_effects_ols(data[outcome], data[list(names)])
    return summary_of(names, result.params, result.std_errors, data.index.get_level_values("pair").nunique() - 1)


def within_summary(within: Within) -> dict[str, dict[str, Any]]:
    """The same as `pair_effects_summary`, of sums that are there."""
    return summary_of(within.names, *within.fit(), len(within.xy) - 1)


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
