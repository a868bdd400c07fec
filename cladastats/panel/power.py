"""Power: the smallest effect that a design sees, of a study from its own fit, and before a study from a pilot's.

Effects stand in the coefficient's unit and as partial correlations within pairs. The paper's coefficients of the prefix
are lost, but its t values are not, and a t value with its degrees of freedom gives the partial correlation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import optimize, stats

from cladastats.panel.overview import PAPER_VALUES
from cladastats.results.fit import COLUMNS, CONFIRMATORY, Column, Fit
from cladastats.results.labels import GROUP_LABELS
from cladastats.results.verdicts import SIGNIFICANCE

POWER = 0.8

PAPER_ROWS, PAPER_PAIRS = 12_000, 4_000
"""Behind each column of the paper's tables, as we read it. 2,000 pairs of a group at three ratios are 6,000 rows, so
that the 12,000 it prints are both groups. The other reading, 6,000 rows of 2,000 pairs, makes the paper's effects
larger; this one asks for more pairs."""

MOST_PAIRS = 1e12
"""Where more pairs than this would be needed, no number is given."""


@dataclass(frozen=True)
class Design:
    """One term of a pilot's regression: how large its error is, and what a coefficient explains.

    Attributes:
        se: Standard error of the coefficient.
        pairs: Of the pilot.
        clusters: Of the pilot's errors, fewer than pairs where pairs share documents.
        unit: Coefficient at which the term explains as much within pairs as is left unexplained. It turns coefficients
            into partial correlations.
    """

    se: float
    pairs: int
    clusters: int
    unit: float

    @classmethod
    def of(cls, column: Column, term: str) -> Design:
        """From a fitted column: its unexplained variance within pairs, and the term's own, not shared with others."""
        left = math.sqrt((1 - column.r2["within"]) * column.vif[term])
        return cls(column.se[term], column.n_pairs, column.n_clusters, left / _standard_unit(column, term))

    def smallest_effect(self, pairs: int | None = None, level: float = SIGNIFICANCE) -> float:
        """The smallest true coefficient that is found with probability 0.8: (t_0.975 + t_0.8) standard errors.

        Args:
            pairs: Of the design; its error is the pilot's times the root of the pilot's pairs over these. None: the
                pilot's own.
            level: Of the two-sided test.
        """
        return self._smallest(self.pairs if pairs is None else pairs, level)

    def _smallest(self, pairs: float, level: float) -> float:
        df = max(pairs * self.clusters / self.pairs - 1, 1)  # clusters in proportion
        quantiles = stats.t.ppf([1 - level / 2, POWER], df).sum()
        return float(quantiles * self.se * math.sqrt(self.pairs / pairs))

    def pairs_for(self, effect: float, level: float = SIGNIFICANCE) -> int | None:
        """The fewest pairs that find this coefficient with probability 0.8; None: more than can be said."""
        effect = abs(effect)
        if effect <= self._smallest(MOST_PAIRS, level):
            return None
        if effect >= self._smallest(2, level):
            return 2
        found = optimize.brentq(
            lambda log: self._smallest(math.exp(log), level) - effect, math.log(2), math.log(MOST_PAIRS)
        )
        return math.ceil(math.exp(found) - 1e-6)  # the root's own error, where it is a whole number of pairs

    def correlation(self, effect: float) -> float:
        """The partial correlation within pairs that a coefficient is, its sign left out."""
        return abs(effect) / math.hypot(effect, self.unit)

    def coefficient(self, correlation: float) -> float:
        """The coefficient that a partial correlation is, its sign left out."""
        return abs(self.unit) * correlation / math.sqrt(1 - correlation**2)


def power(fit: Fit) -> list[dict[str, Any]]:
    """The smallest true effect that a study finds with probability 0.8 at the 5 % level.

    Args:
        fit: Of the study.

    Returns:
        A record per column and term: `smallest_effect` in the coefficient's unit, and `standardised`, in within-pair
        standard deviations of the response per one of the regressor.
    """
    effects = []
    for column in fit.columns:
        for term in column.regressors:
            size = Design.of(column, term).smallest_effect()
            effects.append(
                {
                    "column": column.column,
                    "group": column.group,
                    "term": term,
                    "smallest_effect": size,
                    "standardised": size * _standard_unit(column, term),
                }
            )
    return effects


def _standard_unit(column: Column, term: str) -> float:
    """Within-pair standard deviations of the response in one of the regressor, of a coefficient of 1."""
    return column.standardised[term] / column.coef[term] if column.coef[term] else math.nan


def paper_correlation(metric: str, column: int, term: str) -> float:
    """The paper's effect as a partial correlation, from its t value: t / sqrt(t^2 + df).

    df are the rows less the pairs and the regressors (`PAPER_ROWS`, `PAPER_PAIRS`). The paper does not say which errors
    its t values rest on; this holds for errors that are alike and independent.

    Args:
        metric: "cka" or "cosine".
        column: Of the paper's table, 1 to 6.
        term: A regressor of that column.

    Source: Yang et al., arXiv 2502.19078, Tables 2 and 3; Cohen (1988), Statistical power analysis, section 9.2.
    """
    t = PAPER_VALUES[metric]["t"][term][column - 1]
    assert t is not None, "every regressor of a column has a t value"
    df = PAPER_ROWS - PAPER_PAIRS - len(COLUMNS[column][1])
    return abs(t) / math.sqrt(t**2 + df)


def seen(fit: Fit) -> pd.DataFrame:
    """Which effects a study of this size finds, and whether the paper's are as large; nothing counts but errors.

    Args:
        fit: Of the metric `cka` or `cosine`.

    Returns:
        A row per hypothesis' test: `column`, `term`, `texts` (the group); `smallest_effect`, found with probability
        0.8, and `paper_here`, the coefficient that the paper's partial correlation `paper_r` would be, both in the
        coefficient's unit; `large_enough`.
    """
    columns = {column.column: column for column in fit.columns}
    rows = []
    for number, term in CONFIRMATORY:
        if number in columns:
            design = Design.of(columns[number], term)
            smallest, r = design.smallest_effect(), paper_correlation(fit.metric, number, term)
            size = design.coefficient(r)
            row = {"column": number, "term": term, "texts": GROUP_LABELS[columns[number].group]}
            row |= {"smallest_effect": smallest, "paper_r": r, "paper_here": size, "large_enough": size >= smallest}
            rows.append(row)
    return pd.DataFrame(rows)


def plan(pilot: Fit, pairs: Sequence[int], tests: int) -> pd.DataFrame:
    """Which effects designs of so many pairs see, beside the paper's own, from a pilot's fit.

    Args:
        pilot: Of the metric `cka` or `cosine`. Nothing but its errors and variances counts, and no estimate.
        pairs: Of each group.
        tests: Of the family that Holm's method corrects; its strictest level is 5 % by their number.

    Returns:
        A row per hypothesis' test and design: `metric`, `column`, `group`, `term`, `pairs`; `smallest_effect`, in the
        coefficient's unit, and `smallest_r`, as a partial correlation; `paper_t`, `paper_r`, and `paper_coef` where it
        can be read; `sees_r`, `sees_coef`: whether that is as large as the smallest effect; `pairs_for_r`,
        `pairs_for_coef`: pairs that see it, and `pairs_for_r_corrected` at the family's strictest level.
    """
    published = PAPER_VALUES[pilot.metric]
    columns = {column.column: column for column in pilot.columns}
    rows = []
    for number, term in CONFIRMATORY:
        if number not in columns:
            continue
        design = Design.of(columns[number], term)
        r = paper_correlation(pilot.metric, number, term)
        coefficient = design.coefficient(r)
        read = published["coef"].get(term, (None,) * len(COLUMNS))[number - 1]
        for n in pairs:
            smallest = design.smallest_effect(n)
            rows.append(
                {
                    "metric": pilot.metric,
                    "column": number,
                    "group": columns[number].group,
                    "term": term,
                    "pairs": n,
                    "smallest_effect": smallest,
                    "smallest_r": design.correlation(smallest),
                    "paper_t": published["t"][term][number - 1],
                    "paper_r": r,
                    "sees_r": coefficient >= smallest,
                    "pairs_for_r": design.pairs_for(coefficient),
                    "pairs_for_r_corrected": design.pairs_for(coefficient, SIGNIFICANCE / tests),
                    "paper_coef": read,
                    "sees_coef": None if read is None else abs(read) >= smallest,
                    "pairs_for_coef": None if read is None else design.pairs_for(read),
                }
            )
    return pd.DataFrame(rows)
