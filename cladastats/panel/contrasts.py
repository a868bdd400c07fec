"""Contrasts of the response: between the ratios of a group, and between the groups, with an equivalence test.

Effects of the prefix are in response points per 1,000 tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from clada.errors import NotIdentifiedError
from cladastats.panel.within import Within, summary_of
from cladastats.results.fit import LOADS, Fit


def ordered(data: pd.DataFrame, outcome: str) -> dict[str, Any]:
    """An effect of every ratio in the place of a line: its steps, their ordered contrast, whether a line is enough.

    Args:
        data: Complete rows of one group, indexed by pair and ratio, prefix in 1,000 tokens.
        outcome: Response column.

    Returns:
        `steps`, each with its interval and one-sided p for a rise; `contrast`, the ordered contrast, per 1,000 tokens;
        `p_rising`, of the test that every step is a rise (intersection-union: the largest of the steps' p);
        `p_some_fall`, that some step is a fall (the smallest p of a fall times the number of steps: Bonferroni), and
        `p_some_rise`; `p_nonlinear`, of the Wald test that means lie on a line in
        tokens (F with clusters - 1 degrees of freedom); None with two ratios.

    Raises:
        NotIdentifiedError: There is one ratio only.
    """
    lengths = data.groupby(level="ratio")["prefix_len"].first()
    ratios = lengths.index.to_numpy()
    if len(ratios) < 2:
        raise NotIdentifiedError("a study of one ratio has no steps between ratios; build it with more --ratios")
    place = data.index.get_level_values("ratio").to_numpy()
    dummies = {f"r{i}": (place == r).astype(float) for i, r in enumerate(ratios[1:])}
    within = Within.of(data.assign(**dummies), outcome, list(dummies))
    means, cov = within.estimate()  # of every ratio around the first one's
    k, df = len(ratios) - 1, within.df
    contrast = np.eye(k) - np.eye(k, k=-1)
    size, se = contrast @ means, np.sqrt(np.diag(contrast @ cov @ contrast.T))
    t, half = size / se, stats.t.ppf(0.975, df) * se
    steps = [
        {
            "from": float(ratios[i]),
            "to": float(ratios[i + 1]),
            "change": float(size[i]),
            "ci": [float(size[i] - half[i]), float(size[i] + half[i])],
            "p_rise": float(stats.t.sf(t[i], df)),
        }
        for i in range(k)
    ]
    nonlinear = None
    if k > 1:  # what is left of the means after the best line through the first ratio's zero, k - 1 directions
        line = (lengths.to_numpy()[1:] - lengths.iloc[0])[:, None]
        away = np.linalg.svd(line)[0][:, 1:].T
        d, v = away @ means, away @ cov @ away.T
        nonlinear = float(stats.f.sf(d @ np.linalg.solve(v, d) / (k - 1), k - 1, df))
    rises, falls = stats.t.sf(t, df), stats.t.cdf(t, df)
    weights = monotone_weights(lengths.to_numpy())[1:]
    trend = summary_of(["trend"], [weights @ means], [math.sqrt(weights @ cov @ weights)], df)["trend"]
    return {
        "steps": steps,
        "contrast": trend,
        "p_rising": float(rises.max()),
        "p_some_fall": float(min(1.0, k * falls.min())),
        "p_some_rise": float(min(1.0, k * rises.min())),
        "p_nonlinear": nonlinear,
    }


def monotone_weights(lengths: np.ndarray) -> np.ndarray:
    """Weights of ratios' means in the contrast that sees the least favourable monotone growth best.

    With three ratios they are those of the last mean less the first, whatever the distances between them.

    Args:
        lengths: [k], prefix of each ratio in 1,000 tokens, in order.

    Returns:
        [k], which sum to 0, in units that make the contrast a slope per 1,000 tokens.

    Source: Abelson and Tukey (1963), Efficient utilization of non-numerical information in quantitative analysis.
    """
    k = len(lengths)
    j = np.arange(1, k + 1)
    weights = np.sqrt((j - 1) * (1 - (j - 1) / k)) - np.sqrt(j * (1 - j / k))
    return weights / (weights @ lengths)


def group_difference(fit: Fit, margin: float, source: str = "") -> dict[str, dict[str, Any]] | None:
    """NLS minus RTS of every coefficient (the interaction with the group), and an equivalence test of the prefix's.

    The margin was fixed before anything was measured.

    Args:
        fit: With columns of both groups.
        margin: Largest difference of the prefix's coefficients that counts as none.
        source: Where the margin is from.

    Returns:
        Per term; for the prefix (columns 1 and 2) also what `equivalence` gives, `margin_source` and a verdict; None
        without one of the groups.
    """
    columns = {column.column: column for column in fit.columns}
    if len({column.group for column in fit.columns}) < 2:
        return None
    differences: dict[str, dict[str, Any]] = {}
    for term, (rts, nls) in {"prefix_len": (1, 2), **dict.fromkeys(LOADS, (5, 6))}.items():
        a, b = columns[rts], columns[nls]
        difference = b.coef[term] - a.coef[term]
        differences[term] = welch(difference, (a.se[term], b.se[term]), (a.n_clusters, b.n_clusters))
        if term == "prefix_len":
            differences[term] |= equivalence(difference, differences[term]["se"], differences[term]["df"], margin)
            differences[term]["margin_source"] = source
            equivalent, differs = differences[term]["equivalence_p"] < 0.05, differences[term]["p"] < 0.05
            differences[term]["verdict"] = (
                "equivalent within the margin" if equivalent else "no decision on equivalence"
            ) + (", different from zero" if differs else ", not different from zero")
    return differences


def welch(difference: float, se: tuple[float, float], clusters: tuple[int, int]) -> dict[str, Any]:
    """Test of a difference between two groups that share no cluster: errors add, degrees of freedom are Welch's.

    Args:
        difference: Of the two estimates.
        se: Their standard errors.
        clusters: Their numbers of clusters.

    Returns:
        `difference`, `se`, `df`, `ci` (95 %), `p` (two-sided).

    Source: Welch (1947), The generalization of "Student's" problem when several different variances are involved.
    """
    parts = [(one**2, n - 1) for one, n in zip(se, clusters, strict=True)]
    total = math.sqrt(sum(variance for variance, _ in parts))
    df = total**4 / sum(variance**2 / n for variance, n in parts)
    half = stats.t.ppf(0.975, df) * total
    return {
        "difference": difference,
        "se": total,
        "df": df,
        "ci": [difference - half, difference + half],
        "p": float(2 * stats.t.sf(abs(difference) / total, df)),
    }


def equivalence(difference: float, se: float, df: float, margin: float) -> dict[str, Any]:
    """Two one-sided tests that a difference is smaller than the margin, and its 90 % interval.

    Args:
        difference: The estimate.
        se: Its standard error.
        df: Degrees of freedom of its t distribution.
        margin: The largest difference that counts as none.

    Returns:
        `margin`, `equivalence_p` (the larger of the two tests' p), `ci_90`, `smallest_margin` that would pass at 5 %.

    Source: Schuirmann (1987), A comparison of the two one-sided tests procedure and the power approach.
    """
    p = max(stats.t.sf((difference + margin) / se, df), stats.t.cdf((difference - margin) / se, df))
    half = stats.t.ppf(0.95, df) * se
    low, high = float(difference - half), float(difference + half)
    return {
        "margin": margin,
        "equivalence_p": float(p),
        "ci_90": [low, high],
        "smallest_margin": max(abs(low), abs(high)),
    }
