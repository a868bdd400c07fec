"""Similarities of two activation matrices, and the shift of a hybrid that follows from them: functions of arrays.

Matrices are [layers, neurons] in float64. Linear CKA comes in forms that differ in what counts as an observation.

Source: Yang et al., arXiv 2502.19078, section 2.1.3, Eqs. 2 to 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError

# Below this distance between A and B a shift is a ratio of two roundings. Why it is no larger: see `shifts`.
SMALLEST_DISTANCE = 0.01


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine similarity of each layer (Eq. 4).

    Args:
        x: [layers, neurons].
        y: [layers, neurons].

    Returns:
        [layers], in [-1, 1]; NaN where a layer is all zero.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each layer's neurons: the cosine after each layer's own mean is subtracted.

    Unlike its square, which `cka_within` is, it tells a layer from one whose pattern is turned upside down.

    Args:
        x: [layers, neurons].
        y: [layers, neurons].

    Returns:
        [layers], in [-1, 1]; NaN where all neurons of a layer are equal.
    """
    return cosine(x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True))


def cka_within(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Linear CKA of each layer with neurons as observations and one feature: the square of `pearson`.

    Args:
        x: [layers, neurons].
        y: [layers, neurons].

    Returns:
        [layers], in [0, 1]; NaN where all neurons of a layer are equal.
    """
    return pearson(x, y) ** 2


def cka_biased(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA as the paper writes it (Eq. 3; Kornblith et al. 2019): rows are observations, columns features.

    With layers as rows (30 or so) and thousands of neurons it is near 1 whatever the neurons do; kept for comparison.

    Args:
        x: [observations, features].
        y: [observations, features].

    Returns:
        in [0, 1].
    """
    x = x - x.mean(0)
    y = y - y.mean(0)
    # tr(XX'YY') = ||Y'X||^2: the smaller of observations x observations and features x features is enough.
    if len(x) > x.shape[1]:
        xy, xx, yy = ((a.T @ b) ** 2 for a, b in ((x, y), (x, x), (y, y)))
    else:
        k, m = x @ x.T, y @ y.T
        xy, xx, yy = k * m, k * k, m * m
    return float(xy.sum() / np.sqrt(xx.sum() * yy.sum()))


def hsic1(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased estimator HSIC_1 of the Hilbert-Schmidt independence criterion (Song et al. 2012, Eq. 5).

    Args:
        k: Gram matrix [n, n] of the first variable; n > 3.
        m: Gram matrix [n, n] of the second.

    Returns:
        may be negative.

    Raises:
        InputError: n <= 3.
    """
    return float(_hsic1_sums(*_hsic1_terms(k, m), len(k)))


def cka_debiased(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA from HSIC_1: right on average for independent data, noisy with few rows; never clipped.

    Args:
        x: [observations, features], more than 3 observations.
        y: [observations, features].

    Returns:
        at most 1, may be negative.
    """
    k, m = _gram(x), _gram(y)
    return hsic1(k, m) / np.sqrt(hsic1(k, k) * hsic1(m, m))


def cka_debiased_jackknife(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Debiased linear CKA with the jackknife standard error over observations.

    Not the bootstrap: a resample holds observations twice, whose similarity to themselves is not left out as the
    diagonal is, so a U-statistic like HSIC_1 is biased in it.

    Args:
        x: [observations, features], more than 4 observations.
        y: [observations, features].

    Returns:
        (estimate, standard error).

    Raises:
        InputError: 4 observations or fewer: HSIC_1 of the rest is not defined.
    """
    n = len(x)
    if n <= 4:
        raise InputError(f"the error of debiased CKA needs more than 4 observations, there are {n}; use more pairs")
    k, m = _gram(x), _gram(y)
    whole = hsic1(k, m) / np.sqrt(hsic1(k, k) * hsic1(m, m))
    without = _hsic1_without_each(k, m) / np.sqrt(_hsic1_without_each(k, k) * _hsic1_without_each(m, m))
    return whole, float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def jaccard(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Overlap of the top half of each layer's neurons by magnitude (Eq. 9): intersection over union.

    A neuron that is silent is never among the top half: where ReLU leaves fewer than half of them active, ties at zero
    would otherwise be broken alike in both matrices and count as overlap.

    Args:
        x: magnitudes [layers, neurons].
        y: magnitudes [layers, neurons].

    Returns:
        [layers], in [0, 1]; 1/3 on average for independent magnitudes; NaN where both layers are silent.
    """
    half = x.shape[1] // 2
    top_x, top_y = np.zeros(x.shape, dtype=bool), np.zeros(y.shape, dtype=bool)
    for top, magnitudes in ((top_x, np.abs(x)), (top_y, np.abs(y))):
        np.put_along_axis(top, np.argpartition(-magnitudes, half, axis=1)[:, :half], True, axis=1)
        top &= magnitudes > 0
    with np.errstate(invalid="ignore"):
        return (top_x & top_y).sum(1) / (top_x | top_y).sum(1)


def shifts(sims: pd.DataFrame) -> pd.DataFrame:
    """The responses that are computed from similarities (Eq. 2 and its variants).

    A response divides by the distance of A and B, so a single one may be far outside 0 to 1, and tables that show
    means show medians beside them. The bound of the distance stays at 0.01, where a response stops being one. In the
    two real studies of 100 pairs no distance was below 0.038, and of 600 responses to a prefix at most one exceeded 1
    in size. That row made the excess kurtosis of `shift_matched` by `cka` 374 in one model (8 in the other, which
    has no such row); its distance is 0.13, and 0.53 in `shift_toward`. A bound of 0.1 would leave out 21 rows and
    keep it. One of 0.2 would leave out a third of all rows, and not at random: the smaller the distance, the larger
    is the response (rank correlations -0.4 to -0.8, but by `cosine_centred` toward B). It would choose rows by what
    is to be explained. Of single layers the bound leaves out `shift_matched` in the first one alone (in a
    study of 24 pairs), whose activations the word itself decides nearly alone.

    Args:
        sims: columns sim_ab, sim_hb, sim_ha, sim_hb_matched, sim_ab_matched.

    Returns:
        columns shift_toward, shift_matched: 0 when the prefix changes nothing, 1 when A' acts like B (like B*); NaN
        where A and B are too similar to tell (1 - sim < 0.01). shift_away: 1 - sim(A', A).
    """

    def toward(hybrid: pd.Series, start: pd.Series) -> pd.Series:
        return ((hybrid - start) / (1 - start)).where(1 - start >= SMALLEST_DISTANCE)

    return pd.DataFrame(
        {
            "shift_toward": toward(sims["sim_hb"], sims["sim_ab"]),
            "shift_matched": toward(sims["sim_hb_matched"], sims["sim_ab_matched"]),
            "shift_away": 1 - sims["sim_ha"],
        }
    )


def _gram(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)  # HSIC_1 does not change by it, its rounding error does
    return centred @ centred.T


def _hsic1_terms(k: np.ndarray, m: np.ndarray) -> tuple[Any, Any, Any, Any]:
    if len(k) <= 3:
        raise InputError(
            f"debiased CKA needs more than 3 observations, there are {len(k)}; use more pairs (of layers as "
            "observations: another estimator)"
        )
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    return (k * m).sum(), k.sum(), m.sum(), k.sum(0) @ m.sum(0)


def _hsic1_sums(trace: Any, k_sum: Any, l_sum: Any, cross: Any, n: int) -> Any:
    return (trace + k_sum * l_sum / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def _hsic1_without_each(k: np.ndarray, m: np.ndarray) -> np.ndarray:
    """HSIC_1 with each observation left out in turn, from row sums: n values for the price of one."""
    n = len(k)
    trace, k_sum, l_sum, cross = _hsic1_terms(k, m)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    k_row, l_row, product_row = k.sum(0), m.sum(0), (k * m).sum(0)
    return np.asarray(
        _hsic1_sums(
            trace - 2 * product_row,
            k_sum - 2 * k_row,
            l_sum - 2 * l_row,
            cross - k_row * l_row - m @ k_row - k @ l_row + product_row,
            n - 1,
        )
    )
