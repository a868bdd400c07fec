"""The regression with pair effects and clustered errors by the libraries, for the six columns: linearmodels, pyfixest.

`cladastats.panel.within` has the same estimates from sums, for what is fitted thousands of times; tests hold it to
these.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyfixest
from linearmodels.panel import PanelOLS

WILD_DRAWS = 9999  # of the wild bootstrap: the Monte-Carlo error of a p-value of 0.05 is 0.002
WILD_SEED = 1  # the same data give the same p


def pair_effects_ols(response: pd.Series, regressors: pd.DataFrame, clusters: np.ndarray) -> Any:
    """Least squares with pair effects and a constant, with CR1 errors, by linearmodels.

    CR1 has the small-sample factor G / (G - 1) * (n - 1) / (n - k - 1) for n rows, G clusters and k regressors: pair
    effects are nested in the clusters and do not count.

    Args:
        response: [n], indexed by pair and ratio, without pairs of one row.
        regressors: [n, k], without the constant.
        clusters: [n], number of each row's cluster.

    Returns:
        linearmodels' `PanelEffectsResults`, with the constant `const` last.
    """
    return PanelOLS(response, regressors.assign(const=1.0), entity_effects=True).fit(
        cov_type="clustered",
        clusters=pd.DataFrame({"cluster": clusters}, index=regressors.index),
        group_debias=True,
        debiased=True,
        auto_df=False,  # else linearmodels ignores the next choice and makes its own
        count_effects=False,
    )


class FewClusters:
    """The regression where clusters are few: jackknife errors and the wild bootstrap, by pyfixest and wildboottest.

    It is given deviations from pair means in the place of pair effects: the same estimates (Frisch, Waugh and Lovell)
    and, as pairs lie whole in clusters, the same estimates without a cluster. With pair effects pyfixest would fit
    every regression without a cluster from the start.

    Args:
        response: [n], deviations from pair means.
        regressors: [n, k], deviations from pair means.
        clusters: [n], number of each row's cluster.
    """

    def __init__(self, response: pd.Series, regressors: pd.DataFrame, clusters: np.ndarray) -> None:
        self.clusters = len(np.unique(clusters))
        # Names a formula can hold, and of one size, as pyfixest takes columns of little variance for collinear ones.
        self._sizes = {f"x{i}": float(regressors[name].std()) for i, name in enumerate(regressors)}
        self._terms = dict(zip(regressors, self._sizes, strict=True))
        columns = {term: regressors[name].to_numpy() / self._sizes[term] for name, term in self._terms.items()}
        data = pd.DataFrame({**columns, "y": response.to_numpy() / response.std(), "cluster": clusters})
        self._unit = float(response.std())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, for what pyfixest does to its own copy
            self._fit = pyfixest.feols(
                f"y ~ 0 + {' + '.join(columns)}",
                data,
                vcov={"CRV3": "cluster"},
                ssc=pyfixest.ssc(k_adj=False, G_adj=False),  # its own factors, meant for CR1; ours is in `errors`
            )

    def errors(self) -> dict[str, float]:
        """CR3 standard errors: the jackknife over clusters, around the estimate from all clusters.

        The variance is (G - 1) / G times the sum of squared differences that leaving out each of G clusters makes.

        Source: MacKinnon, Nielsen and Webb (2023), Fast and reliable jackknife and bootstrap methods for
        cluster-robust inference.
        """
        sums = self._fit.se()
        factor = np.sqrt((self.clusters - 1) / self.clusters) * self._unit
        return {name: float(sums[term] * factor / self._sizes[term]) for name, term in self._terms.items()}

    def wild_p(self) -> dict[str, float]:
        """Two-sided p of every coefficient by the restricted wild cluster bootstrap, `WILD_DRAWS` draws, seeded.

        Weights are Rademacher's, or Webb's six points where Rademacher's have fewer patterns than there are draws, that
        is up to 13 clusters: few patterns make p coarse (Webb advises his weights below about 12 clusters). The
        observed data count as a draw, so that no p is 0.

        Source: Cameron, Gelbach and Miller (2008), Bootstrap-based improvements for inference with clustered errors;
        Webb (2023), Reworking wild bootstrap-based inference for clustered errors.
        """
        weights = "webb" if 2**self.clusters < WILD_DRAWS else "rademacher"
        p = {}
        for name, term in self._terms.items():
            found = self._fit.wildboottest(param=term, reps=WILD_DRAWS, seed=WILD_SEED, weights_type=weights)
            p[name] = (1 + round(float(found["Pr(>|t|)"]) * WILD_DRAWS)) / (1 + WILD_DRAWS)
        return p
