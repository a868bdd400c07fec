"""Similarities against formulas written independently, and what each form does and does not react to."""

import argparse
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import pearsonr

from clada.errors import InputError
from cladastats.cli import COMMANDS
from cladastats.results.labels import METRIC_LABELS, metric_title
from cladastats.similarities.formulas import (
    SMALLEST_DISTANCE,
    cka_biased,
    cka_debiased,
    cka_debiased_jackknife,
    cka_within,
    cosine,
    hsic1,
    jaccard,
    pearson,
    shifts,
)
from cladastats.similarities.metrics import ESTIMATORS, METRICS, POPULATION, metric_name

LAYERS, NEURONS = 30, 2000
# Two ways to sum a few thousand float64 products differ by well under 1e-12 of their value.
SAME = 1e-10


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260)


@pytest.fixture
def related(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two [30, 2000] matrices with a common part, skewed and shifted as activations are."""
    common = rng.exponential(size=(LAYERS, NEURONS))
    return common + rng.normal(size=common.shape) + 0.3, common + rng.normal(size=common.shape) - 0.2


def relabelled_per_layer(rng: np.random.Generator, *matrices: np.ndarray) -> list[np.ndarray]:
    """The neurons of each layer in another order, the same one in every matrix."""
    orders = np.array([rng.permutation(NEURONS) for _ in range(LAYERS)])
    return [np.take_along_axis(matrix, orders, axis=1) for matrix in matrices]


# -- per layer ----------------------------------------------------------------------------------------------------


def test_cosine_is_scipys_of_each_layer(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = related
    expected = [1 - cosine_distance(a, b) for a, b in zip(x, y, strict=True)]
    assert cosine(x, y) == pytest.approx(expected, rel=SAME)


def test_cosine_of_known_angles() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    y = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 1.0], [1.0, 1.0]])
    # 1e-15: one rounding of the square root of two.
    assert cosine(x, y) == pytest.approx([1, 0, -np.sqrt(0.5), np.nan], abs=1e-15, nan_ok=True)


def test_within_is_the_squared_correlation_of_each_layer(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = related
    expected = [pearsonr(a, b).statistic ** 2 for a, b in zip(x, y, strict=True)]
    assert cka_within(x, y) == pytest.approx(expected, rel=SAME)


def test_pearson_is_scipys_of_each_layer_and_within_its_square(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = related
    expected = [pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert METRICS["pearson"].compare(x, y) == pytest.approx(expected, rel=SAME)
    assert pearson(x, y) ** 2 == pytest.approx(METRICS["cka"].compare(x, y), rel=SAME)


def test_only_pearson_sees_that_a_layer_is_turned_upside_down(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = related
    turned = y.copy()
    turned[3] = -turned[3] + 5
    assert cka_within(x, turned) == pytest.approx(cka_within(x, y), rel=SAME)
    signs = np.where(np.arange(LAYERS) == 3, -1, 1)
    assert pearson(x, turned) == pytest.approx(signs * pearson(x, y), rel=SAME)
    assert pearson(x, turned)[3] < 0


def test_within_is_linear_cka_with_neurons_as_rows_and_one_column(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (matrix[:2, :50] for matrix in related)
    centre = np.eye(50) - 1 / 50
    for layer, value in enumerate(cka_within(x, y)):
        k, m = (centre @ np.outer(v, v) @ centre for v in (x[layer], y[layer]))
        expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
        assert value == pytest.approx(expected, rel=SAME)


def test_within_does_not_depend_on_how_neurons_are_numbered(
    related: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    assert cka_within(*relabelled_per_layer(rng, *related)) == pytest.approx(cka_within(*related), rel=SAME)


def test_within_does_not_depend_on_scale_or_offset_of_a_layer(
    related: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    x, y = related
    scale_x, scale_y = rng.uniform(0.01, 100, size=(2, LAYERS, 1))
    assert cka_within(x * scale_x + 3, y * scale_y - 5) == pytest.approx(cka_within(x, y), rel=SAME)


def test_within_sees_which_neurons_fire(related: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
    x, y = related
    other = rng.permuted(y, axis=1)
    assert cka_within(x, y).min() > 0.1
    # The squared correlation of independent neurons has mean 1/1999; over 30 layers its largest is about 4/1999.
    assert cka_within(x, other).max() < 0.01


def test_within_of_one_value_is_undefined() -> None:
    x = np.array([[2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert cka_within(x, x) == pytest.approx([np.nan, 1], rel=SAME, nan_ok=True)


@pytest.mark.parametrize("neurons", [10, 11])
def test_jaccard_compares_the_sets_of_the_larger_half(rng: np.random.Generator, neurons: int) -> None:
    x, y = rng.normal(size=(2, 6, neurons))
    expected = []
    for a, b in zip(x, y, strict=True):
        top = [set(np.argsort(-abs(v))[: neurons // 2].tolist()) for v in (a, b)]
        expected.append(len(top[0] & top[1]) / len(top[0] | top[1]))
    assert jaccard(x, y).tolist() == expected


def test_jaccard_goes_from_nothing_in_common_to_all() -> None:
    x = np.array([[4.0, -3.0, 0.0, 1.0]])
    assert jaccard(x, x).tolist() == [1]
    assert jaccard(x, -2 * x).tolist() == [1]
    assert jaccard(x, x[:, ::-1]).tolist() == [0]


def test_jaccard_does_not_count_silent_neurons(rng: np.random.Generator) -> None:
    # As after ReLU: two disjoint fifths of the neurons fire, and then the same fifth does.
    x, y = np.zeros((2, 1, 100))
    x[0, :20], y[0, 20:40] = rng.random((2, 20)) + 0.1
    assert jaccard(x, y).tolist() == [0]
    assert jaccard(x, 2 * x).tolist() == [1]
    assert np.isnan(jaccard(0 * x, 0 * y)).all()


def test_jaccard_of_independent_magnitudes_is_a_third(rng: np.random.Generator) -> None:
    # The overlap k of two halves of 2,000 is hypergeometric: mean 500, sd 11.2; k/(2000-k) so 1/3, sd 0.010 a layer,
    # 0.0018 for the mean of 30. Five of these.
    assert jaccard(*rng.normal(size=(2, LAYERS, NEURONS))).mean() == pytest.approx(1 / 3, abs=0.009)


# -- matrix forms -------------------------------------------------------------------------------------------------


def test_biased_is_the_formula_with_a_centring_matrix(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = related
    centre = np.eye(LAYERS) - 1 / LAYERS
    k, m = x @ x.T, y @ y.T

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ centre @ b @ centre))

    assert cka_biased(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)), rel=SAME)


def test_biased_is_near_one_for_independent_matrices(rng: np.random.Generator) -> None:
    # The known defect for which it is not the default: 30 rows, 2,000 columns give 0.985 whatever the neurons do.
    assert cka_biased(*rng.normal(size=(2, LAYERS, NEURONS))) > 0.98


def test_biased_does_not_see_which_neurons_fire(
    related: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    x, y = related
    assert cka_biased(x, y[:, rng.permutation(NEURONS)]) == pytest.approx(cka_biased(x, y), rel=SAME)


def test_neurons_form_changes_when_the_neurons_of_each_layer_are_renumbered(rng: np.random.Generator) -> None:
    # The known defect for which `within` is the default: its rows run through layers that share no neuron. Each
    # neuron number here is a large or a small one in all layers of x, and of y.
    x, y = rng.normal(size=(2, LAYERS, NEURONS)) + 2 * rng.normal(size=NEURONS)
    before = METRICS["cka_neurons"].compare(x, y)
    after = METRICS["cka_neurons"].compare(*relabelled_per_layer(rng, x, y))
    assert before > 0.9
    assert after < 0.8
    assert before == pytest.approx(cka_biased(x.T, y.T), rel=SAME)


def u_centred(gram: np.ndarray) -> np.ndarray:
    """U-centring of a Gram matrix (Szekely and Rizzo 2014), element by element."""
    n = len(gram)
    off = gram.copy()
    np.fill_diagonal(off, 0)
    rows, total = off.sum(1) / (n - 2), off.sum() / ((n - 1) * (n - 2))
    centred = np.empty_like(off)
    for i in range(n):
        for j in range(n):
            centred[i, j] = 0 if i == j else off[i, j] - rows[i] - rows[j] + total
    return centred


@pytest.mark.parametrize("rows", [4, 5, 12])
def test_hsic1_is_the_mean_product_of_u_centred_grams(rng: np.random.Generator, rows: int) -> None:
    x, y = rng.normal(size=(rows, 7)) + 2, rng.normal(size=(rows, 5)) - 1
    k, m = x @ x.T, y @ y.T
    product = u_centred(k) * u_centred(m)
    # Here and below the diagonal cancels against larger sums: absolute, as the value itself may be near 0.
    assert hsic1(k, m) == pytest.approx(product.sum() / (rows * (rows - 3)), rel=1e-9, abs=1e-9)


def test_hsic1_is_the_mean_over_quadruples(rng: np.random.Generator) -> None:
    """The definition (Song et al. 2012, Eq. 3-5): the U-statistic over distinct i, j, q, r."""
    rows = 7
    x, y = rng.normal(size=(2, rows, 3))
    k, m = x @ x.T, y @ y.T
    index = np.stack(np.meshgrid(*[range(rows)] * 4, indexing="ij"), -1).reshape(-1, 4)
    i, j, q, r = index[[len(set(row)) == 4 for row in index.tolist()]].T
    expected = (k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])).mean()
    assert hsic1(k, m) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_debiased_is_the_cosine_of_u_centred_grams(related: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = related
    k, m = u_centred(x @ x.T), u_centred(y @ y.T)
    expected = (k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m))
    assert cka_debiased(x, y) == pytest.approx(expected, rel=1e-9)


def test_debiased_of_a_matrix_with_itself_is_one(rng: np.random.Generator) -> None:
    x = rng.normal(size=(LAYERS, NEURONS))
    assert cka_debiased(x, x) == pytest.approx(1, rel=SAME)
    # Neither rotation nor scale of the columns' space matters, nor where its origin is.
    rotation, _ = np.linalg.qr(rng.normal(size=(50, 50)))
    assert cka_debiased(x[:, :50], 3 * x[:, :50] @ rotation + 10) == pytest.approx(1, rel=1e-9)


def test_debiased_is_zero_on_average_for_independent_matrices(rng: np.random.Generator) -> None:
    values = np.array([cka_debiased(*rng.normal(size=(2, 12, 40))) for _ in range(2_000)])
    # Unbiased up to Monte-Carlo error: four standard errors of the mean, about 0.01.
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert error < 0.005
    assert values.min() < -0.1  # never clipped
    assert cka_biased(*rng.normal(size=(2, 12, 40))) > 0.5


@pytest.mark.parametrize("rows", [5, 9, 25])
def test_jackknife_leaves_out_each_observation_in_turn(rng: np.random.Generator, rows: int) -> None:
    x = rng.normal(size=(rows, 40))
    y = x @ rng.normal(size=(40, 30)) + 5 * rng.normal(size=(rows, 30)) + 1
    estimate, se = cka_debiased_jackknife(x, y)
    without = np.array([cka_debiased(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(rows)])
    assert estimate == pytest.approx(cka_debiased(x, y), rel=SAME)
    assert se == pytest.approx(np.sqrt((rows - 1) * np.var(without)), rel=1e-8)


def test_debiased_needs_four_observations_and_the_jackknife_five(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 4, 10))
    assert -1 <= cka_debiased(x, y) <= 1
    with pytest.raises(InputError, match="use more pairs"):
        cka_debiased(x[:3], y[:3])
    with pytest.raises(InputError, match="use more pairs"):
        cka_debiased_jackknife(x, y)


# -- names --------------------------------------------------------------------------------------------------------


def test_every_metric_has_a_label_of_its_own_that_says_what_cka_is() -> None:
    labels = {name: metric.label for name, metric in METRICS.items()}
    assert set(METRIC_LABELS) == {*METRICS, POPULATION}
    assert len(set(labels.values())) == len(labels)
    assert labels["cka"] == "r², one-feature CKA"
    assert [metric_title(name) for name in ("cka", "cosine", "mine")] == ["r², one-feature CKA (cka)", "cosine", "mine"]


def test_the_command_offers_every_estimator_of_the_registry() -> None:
    parser = argparse.ArgumentParser()
    COMMANDS["similarity"][1](parser)
    action = next(a for a in parser._actions if a.dest == "estimator")
    assert sorted(action.choices or ()) == sorted(ESTIMATORS)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_a_matrix_with_itself_is_one(name: str, rng: np.random.Generator) -> None:
    x = rng.exponential(size=(LAYERS, NEURONS))
    value = np.asarray(METRICS[name].compare(x, x))
    assert value.shape == ((LAYERS,) if METRICS[name].per_layer else ())
    assert value == pytest.approx(np.ones(value.shape), rel=SAME)


@pytest.mark.parametrize(
    ("metric", "estimator", "name"),
    [
        ("cka", None, "cka"),
        ("cka", "within", "cka"),
        ("cka", "biased", "cka_biased"),
        ("cka", "debiased", "cka_debiased"),
        ("cka", "neurons", "cka_neurons"),
        ("cka", "population", "cka_population"),
        ("cka_biased", None, "cka_biased"),
        ("cosine", None, "cosine"),
        ("cosine_centred", None, "cosine_centred"),
        ("pearson", None, "pearson"),
        ("jaccard", None, "jaccard"),
    ],
)
def test_metrics_are_found_by_name(metric: str, estimator: str | None, name: str) -> None:
    assert metric_name(metric, estimator) == name


@pytest.mark.parametrize(
    ("metric", "estimator", "cause"),
    [
        ("euclid", None, "unknown metric 'euclid'; use cka, cka_trimmed, cosine"),
        ("", None, "unknown metric ''"),
        ("cka", "median", "unknown metric 'cka_median'"),
        ("cosine", "biased", "belongs to --metric cka"),
        ("cosine", "within", "belongs to --metric cka"),
        ("cka_biased", "within", "belongs to --metric cka"),
    ],
)
def test_unknown_metrics_are_refused(metric: str, estimator: str | None, cause: str) -> None:
    with pytest.raises(InputError) as error:
        metric_name(metric, estimator)
    assert cause in str(error.value)
    assert "\n" not in str(error.value)


# -- shifts -------------------------------------------------------------------------------------------------------


def panel(**columns: list[float]) -> pd.DataFrame:
    size = len(next(iter(columns.values())))
    names = ("sim_ab", "sim_hb", "sim_ha", "sim_hb_matched", "sim_ab_matched")
    return pd.DataFrame({name: columns.get(name, [0.0] * size) for name in names})


def test_shift_toward_runs_from_a_to_b_and_is_not_clipped() -> None:
    found = shifts(panel(sim_ab=[0.2] * 5, sim_hb=[0.2, 1.0, 0.6, 0.1, 0.9]))["shift_toward"]
    assert found.tolist() == pytest.approx([0, 1, 0.5, -0.125, 0.875], rel=1e-12, abs=1e-15)  # rounding of 1 - 0.2


def test_shift_matched_has_its_own_anchors() -> None:
    found = shifts(panel(sim_ab=[0.99] * 3, sim_hb=[0.5] * 3, sim_ab_matched=[0.6] * 3, sim_hb_matched=[0.6, 1.0, 0.7]))
    assert found["shift_matched"].tolist() == pytest.approx([0, 1, 0.25], rel=1e-12, abs=1e-15)


def test_shift_away_is_the_distance_from_a() -> None:
    found = shifts(panel(sim_ha=[1.0, 0.25, -0.5]))["shift_away"]
    assert found.tolist() == [0, 0.75, 1.5]


def test_shifts_of_anchors_from_real_matrices(rng: np.random.Generator) -> None:
    """A' = A gives 0 and A' = B gives 1 with every metric that fills a panel."""
    a, b, matched = rng.exponential(size=(3, 8, 200))
    for metric in METRICS.values():

        def sim(x: np.ndarray, y: np.ndarray, compare=metric.compare) -> float:  # type: ignore[no-untyped-def]
            return float(np.mean(compare(x, y)))

        table = panel(
            sim_ab=[sim(a, b)] * 2,
            sim_hb=[sim(a, b), sim(b, b)],
            sim_ha=[sim(a, a), sim(b, a)],
            sim_ab_matched=[sim(a, matched)] * 2,
            sim_hb_matched=[sim(a, matched), sim(matched, matched)],
        )
        found = shifts(table)
        # sim(b, b) is 1 up to rounding, divided by at least 0.01.
        assert found["shift_toward"].tolist() == pytest.approx([0, 1], abs=1e-9)
        assert found["shift_matched"].tolist() == pytest.approx([0, 1], abs=1e-9)
        assert found["shift_away"].tolist() == pytest.approx([0, 1 - sim(a, b)], abs=1e-9)


def test_shift_is_missing_where_a_and_b_cannot_be_told_apart() -> None:
    near, far = 1 - 0.9 * SMALLEST_DISTANCE, 1 - 1.1 * SMALLEST_DISTANCE
    start = [near, far, 1.0, np.nan, 0.5]
    with warnings.catch_warnings(action="error"):
        found = shifts(
            panel(sim_ab=start, sim_hb=[0.5] * 4 + [np.nan], sim_ab_matched=start[::-1], sim_hb_matched=[0.5] * 5)
        )
    assert found["shift_toward"].isna().tolist() == [True, False, True, True, True]
    assert found["shift_matched"].isna().tolist() == [False, True, True, False, True]
    assert found["shift_away"].tolist() == [1] * 5


def test_cka_and_hsic_agree_with_independent_libraries(related: tuple[np.ndarray, np.ndarray]) -> None:
    """Other people's code in float64 and float32: rounding of its own precision."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which they use
        from ckatorch import cka_base
        from ignite.metrics import HSIC

    x, y = related
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    assert cka_biased(x, y) == pytest.approx(float(cka_base(tx, ty)), rel=1e-9)
    assert cka_debiased(x, y) == pytest.approx(float(cka_base(tx, ty, unbiased=True)), rel=1e-9)
    metric = HSIC(sigma_x=6.0, sigma_y=5.0)  # Gaussian kernels exp(-d^2 / (2 sigma^2))
    metric.update((tx[:, :20].float(), ty[:, :20].float()))

    def gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
        return np.exp(-((values[:, None] - values[None]) ** 2).sum(-1) / (2 * sigma**2))

    expected = hsic1(gaussian(x[:, :20], 6.0), gaussian(y[:, :20], 5.0))
    assert expected > 1e-4  # so that the tolerance means something
    assert metric.compute() == pytest.approx(expected, rel=1e-3, abs=1e-6)
