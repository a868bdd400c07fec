"""How sure is a gain, how large an effect could have been seen, and what do several corpora say together?

Units are what is resampled as a whole: texts, or sentences where there are few texts.

    gain        mean over words, bootstrap interval over units, sign-flip test in the same units
    effects     coefficients with bootstrap intervals over units; the largest effect that is not excluded
    detectable  the smallest effect that the test of a gain shows four times in five
    pooled      random-effects meta-analysis
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

from cladastats.people.density import Rows
from cladastats.results.verdicts import SIGNIFICANCE

RESAMPLES = 10_000  # of units, for gains

EFFECT_RESAMPLES = 2000  # for coefficients, each a system of equations to solve

BATCH = 1000  # resamples in memory at once

SEED = 0

POWER = 0.8


def gain(differences: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Mean gain per word with its bootstrap interval over units, and the p-value of a sign-flip test for a gain.

    Args:
        differences: [U], of the units' log densities, nats.
        sizes: [U], their numbers of words.

    Returns:
        delta_ll, ci_low, ci_high, se (nats per word; 95 % percentile interval) and p (one-sided).
    """
    rng = np.random.default_rng(SEED)
    resampled = stats.bootstrap(
        (differences, sizes), lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=RESAMPLES, batch=BATCH, rng=rng,
    )  # fmt: skip
    flipped = stats.permutation_test(
        (differences,), lambda sums, axis: sums.sum(axis), permutation_type="samples", vectorized=True,
        alternative="greater", n_resamples=RESAMPLES, batch=BATCH, rng=rng,
    )  # fmt: skip
    return {
        "delta_ll": float(differences.sum() / sizes.sum()),
        "ci_low": float(resampled.confidence_interval.low),
        "ci_high": float(resampled.confidence_interval.high),
        "se": float(resampled.standard_error),
        "p": float(flipped.pvalue),
    }


def effects(rows: Rows, columns: Sequence[int], new: Sequence[int], spreads: Sequence[float]) -> dict[str, float]:
    """Coefficients of a predictor, of the word itself and summed over it and its lags, in the units of the measure.

    The variances stay those of the fit while units are resampled.

    Args:
        rows: The data.
        columns: Of the model.
        new: Those of them that the predictor brought, the word itself first.
        spreads: Standard deviations of these.

    Returns:
        effect, total: per standard deviation of the word's predictor, each with `_low`, `_high` (95 % percentile
        interval), `_se`, and `_bound` (the smallest margin around zero in which the 90 % interval lies: larger
        effects are excluded by two one-sided tests at 5 %); design: how much larger the variance of `effect` over
        units is than the model's own; gain_bound: the largest gain, nats per word, of the right coefficients in the
        place of the fitted ones that is not excluded at 5 %.
    """
    fit = rows.fit(columns)
    products = _products(rows, rows.weighted(fit, columns), columns)
    whole = products.sum(0)
    beta = np.linalg.solve(whole[:, :-1], whole[:, -1])
    drawn = _resampled(products)
    places = [1 + list(columns).index(column) for column in new]
    found: dict[str, float] = {}
    to_sum = rows.scale * spreads[0] / np.array(spreads)
    for name, weights in (("effect", np.eye(len(new))[0] * rows.scale), ("total", to_sum)):
        values = drawn[:, places] @ weights
        low, lower, upper, high = np.quantile(values, (0.025, 0.05, 0.95, 0.975))
        found |= {
            name: float(beta[places] @ weights),
            f"{name}_low": float(low),
            f"{name}_high": float(high),
            f"{name}_se": float(values.std()),
            f"{name}_bound": float(max(abs(lower), abs(upper))),
        }
    robust = np.cov(drawn[:, places].T).reshape(len(new), len(new))
    own = np.linalg.inv(whole[:, :-1])[np.ix_(places, places)]
    value = beta[places]
    in_sample, wald = (float(value @ np.linalg.solve(covariance, value)) for covariance in (own, robust))
    largest = in_sample / wald * largest_noncentrality(wald, len(new)) / 2 / len(rows.items)
    return found | {"design": float(robust[0, 0] / own[0, 0]), "gain_bound": largest}


def _products(rows: Rows, weighted: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Each unit's part of the normal equations, [U, k, k + 1], the measure last."""
    values = rows.values[:, [0, *(column + 1 for column in columns)]]
    order = np.argsort(rows.units, kind="stable")
    stops = np.cumsum(np.bincount(rows.units))
    return np.stack(
        [values[chosen].T @ weighted[chosen] for chosen in np.split(order, stops[:-1])]  # a unit's rows
    )


def _resampled(products: np.ndarray) -> np.ndarray:
    """Coefficients of resampled units, [EFFECT_RESAMPLES, k]."""
    rng = np.random.default_rng(SEED)
    units, coefficients, _ = products.shape
    # A resample may lack what tells two columns apart; a hair of the diagonal lets it be solved all the same.
    ridge = 1e-9 * np.diag(np.diag(products.sum(0)[:, :-1]))
    found = []
    for start in range(0, EFFECT_RESAMPLES, BATCH):
        times = rng.multinomial(units, np.full(units, 1 / units), min(BATCH, EFFECT_RESAMPLES - start))
        sums = (times @ products.reshape(units, -1)).reshape(-1, coefficients, coefficients + 1)
        found.append(np.linalg.solve(sums[:, :, :-1] + ridge, sums[:, :, -1:])[:, :, 0])
    return np.concatenate(found)


def largest_noncentrality(wald: float, freedom: int) -> float:
    """The largest noncentrality of a chi-square variable that is not excluded at 5 % by a value of it."""

    def lower_tail(noncentrality: float) -> float:
        return float(stats.ncx2.cdf(wald, freedom, noncentrality)) - SIGNIFICANCE

    if stats.chi2.cdf(wald, freedom) <= SIGNIFICANCE:
        return 0.0
    return float(optimize.brentq(lower_tail, 1e-9, wald + 10 * math.sqrt(wald + freedom) + 50))


def detectable(error: float, design: float, words: int, family: int, cost: float) -> tuple[float, float]:
    """The smallest effect, and its gain, that the test of a held-out gain shows with a power of 80 %.

    An effect of q standard errors gains q^2 / 2 nats (times the design effect) in all, with a standard deviation of q,
    less what coefficients learnt on other texts lose: half a nat for each, times the ratio of all texts to those they
    are learnt on. With z the sum of the normal quantiles of level and power, q^2 / 2 - cost = z q. (A test of the
    coefficient would need q = z; that a gain must show on unseen texts costs a factor of two.) In simulations it is
    shown 74 to 85 times in a hundred, but with 24 texts, few units with skewed sums, 50 to 86 times
    (`figures/GAINS_POWER.md`).

    Args:
        error: Standard error of the coefficient.
        design: How much larger its variance over units is than the model's own.
        words: Number of words.
        family: Tests among which Holm corrects; the level is that of its first step.
        cost: Nats that are lost by learning the coefficients.

    Returns:
        the effect of the word itself in the unit of its standard error, and the expected gain in nats per word.
    """
    z = stats.norm.isf(SIGNIFICANCE / family) + stats.norm.ppf(POWER)
    q = z + math.sqrt(z**2 + 2 * cost)
    return float(q * error), float(design * (q**2 / 2 - cost) / words)


def holm(p: Sequence[float], family: int) -> np.ndarray:
    """P-values corrected by Holm within a family, of which those that were not computed count as 1."""
    missing = max(0, family - len(p))
    return np.asarray(multipletests([*p, *[1.0] * missing], method="holm")[1][: len(p)])


def pooled(estimates: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """Random-effects meta-analysis: Paule and Mandel's variance, Hartung and Knapp's interval.

    Their standard error is not let fall under the one without their correction, as is advised for few studies
    (Roever, Knapp and Friede 2015).

    Args:
        estimates: At least two.
        errors: Their standard errors.

    Returns:
        estimate, low, high (95 % interval), bound (of the 90 % interval), tau (standard deviation between), studies.
    """
    with np.errstate(divide="ignore"):  # of estimates that are the same, in a number that is not used here
        found = combine_effects(np.array(estimates), np.array(errors) ** 2, method_re="iterated", use_t=True)
    error = max(found.sd_eff_w_re, found.sd_eff_w_re_hksj)
    wide, narrow = (error * stats.t.ppf(level, len(estimates) - 1) for level in (0.975, 0.95))
    value = float(found.mean_effect_re)
    return {
        "estimate": value,
        "low": value - wide,
        "high": value + wide,
        "bound": float(max(abs(value - narrow), abs(value + narrow))),
        "tau": math.sqrt(max(0.0, float(found.tau2))),
        "studies": len(estimates),
    }
