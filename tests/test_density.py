"""Held-out densities against a multivariate normal of all rows, and fits against other libraries."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from cladastats.people.density import FOLDS, Rows, fit_intercepts, folds_of
from cladastats.people.mixed import mixed_model


def averages(rng, n=400, texts=12, between=2.0):
    """Rows of texts, with sentences of about six rows."""
    items = np.sort(rng.integers(0, texts, n))
    items = np.unique(items, return_inverse=True)[1]
    x = rng.normal(size=(n, 3)) + rng.normal(size=(texts, 3))[items]
    y = 5 + x @ [1.0, -2.0, 0.0] + rng.normal(0, between, texts)[items] + rng.normal(0, 3, n)
    units = np.unique(items * n + np.arange(n) // 6, return_inverse=True)[1]
    return y, x, items, units


def trials(rng, texts=9, subjects=7, words=5, between=(2.0, 3.0)):
    """Rows of texts and subjects, in no order, a third missing; the last subject has read the last text alone."""
    items, people, parts = (
        part.ravel() for part in np.meshgrid(range(texts), range(subjects), range(words), indexing="ij")
    )
    kept = (rng.random(len(items)) < 0.67) & ((people < subjects - 1) | (items == texts - 1))
    kept = rng.permutation(np.flatnonzero(kept))
    items, people, parts = items[kept], people[kept], parts[kept]
    x = rng.normal(size=(len(items), 3)) + rng.normal(size=(subjects, 3))[people]
    y = 300 + 40 * (
        x @ [1.0, -2.0, 0.0] + rng.normal(0, between[0], texts)[items] + rng.normal(0, between[1], subjects)[people]
    )
    y += rng.normal(0, 80, len(items))
    units = np.unique(items * words + parts // 2, return_inverse=True)[1]
    return y, x, items, units, people


def brute_force(rows, y, x, ratios):
    """Log densities of units by the normal distribution of all rows, conditional on those that are known."""
    design = np.column_stack([np.ones(len(y)), x])
    found = np.empty(rows.units.max() + 1)
    for fold in range(rows.folds.max() + 1):
        train = rows.folds != fold
        fit_y = y[train]
        whole = np.eye(len(y)) + ratios[fold][0] * (rows.items[:, None] == rows.items)
        if rows.subjects is not None:
            whole += ratios[fold][1] * (rows.subjects[:, None] == rows.subjects)
        inverse = np.linalg.inv(whole[np.ix_(train, train)])
        beta = np.linalg.solve(design[train].T @ inverse @ design[train], design[train].T @ inverse @ fit_y)
        errors = y - design @ beta
        whole *= errors[train] @ inverse @ errors[train] / train.sum()
        for unit in np.unique(rows.units[~train]):
            new = rows.units == unit
            known = train | ((rows.items == rows.items[new][0]) & (rows.units < unit))
            gain = whole[np.ix_(new, known)] @ np.linalg.inv(whole[np.ix_(known, known)])
            mean = design[new] @ beta + gain @ errors[known]
            covariance = whole[np.ix_(new, new)] - gain @ whole[np.ix_(known, new)]
            found[unit] = stats.multivariate_normal(mean, (covariance + covariance.T) / 2).logpdf(y[new])
    return found


# Both are exact; inverses of 250 rows leave 1e-11 at most.
EXACT = {"rtol": 1e-8}


@pytest.mark.parametrize("sentences", [False, True])
def test_averages_have_the_density_of_one_normal_distribution(sentences):
    y, x, items, units = averages(np.random.default_rng(1), n=120)
    rows = Rows(y, x, items, units if sentences else items)
    ratios = rows.ratios([0, 1, 2])
    assert all(ratio > 0 for ratio, _ in ratios)
    np.testing.assert_allclose(rows.density([0, 1, 2]), brute_force(rows, y, x, ratios), **EXACT)
    given = [(0.7, 0.0)] * len(ratios)
    np.testing.assert_allclose(rows.density([0, 2], given), brute_force(rows, y, x[:, [0, 2]], given), **EXACT)


@pytest.mark.parametrize("sentences", [False, True])
def test_trials_have_the_density_of_one_normal_distribution_given_the_training_data(sentences):
    """With a subject who is not in the training data of one fold, and has the prior there."""
    y, x, items, units, people = trials(np.random.default_rng(2))
    rows = Rows(y, x, items, units if sentences else items, people)
    assert any(set(people[rows.folds == fold]) - set(people[rows.folds != fold]) for fold in set(rows.folds))
    ratios = rows.ratios([0, 1, 2])
    assert all(first > 0 and second > 0 for first, second in ratios)
    np.testing.assert_allclose(rows.density([0, 1, 2]), brute_force(rows, y, x, ratios), **EXACT)
    for given in ((0.7, 0.0), (0.0, 0.4), (0.0, 0.0), (30.0, 8.0)):
        fixed = [given] * len(ratios)
        np.testing.assert_allclose(rows.density([0, 1, 2], fixed), brute_force(rows, y, x, fixed), **EXACT)


def test_more_subjects_than_texts_is_the_same_model():
    """The factor with more groups goes first; which that is must not matter."""
    y, x, items, _, people = trials(np.random.default_rng(3), texts=9, subjects=5)
    one = Rows(y, x, items, items, people).fit([0, 1, 2])
    other = Rows(y, x, people, people, items).fit([0, 1, 2])
    # Both searches stop at a gradient of 1e-5 of a deviance whose curvature is about 10.
    np.testing.assert_allclose(one.beta, other.beta, rtol=1e-5)
    np.testing.assert_allclose(one.ratios, other.ratios[::-1], rtol=1e-4)


def test_sentences_add_up_to_their_text():
    y, x, items, units, people = trials(np.random.default_rng(4))
    for subjects in (None, people):
        texts = Rows(y, x, items, items, subjects).density([0, 1])
        sentences = Rows(y, x, items, units, subjects).density([0, 1])
        text_of = np.zeros(len(sentences), int)
        text_of[units] = items
        np.testing.assert_allclose(np.bincount(text_of, sentences), texts, **EXACT)


def test_the_density_is_joint_and_no_product_of_rows():
    y, x, items, _ = averages(np.random.default_rng(5), between=4.0)
    joint = Rows(y, x, items, items).density([0, 1, 2])
    alone = []
    for fold, (ratio, _) in enumerate((rows := Rows(y, x, items, items)).ratios([0, 1, 2])):
        test = rows.folds == fold
        fit = fit_intercepts(Rows(y[~test], x[~test], *[np.unique(items[~test], return_inverse=True)[1]] * 2).whole)
        shift, scale = y[~test].mean(), y[~test].std()
        means = shift + scale * (np.column_stack([np.ones(test.sum()), x[test]]) @ fit.beta)
        alone.append(stats.norm.logpdf(y[test], means, scale * np.sqrt(fit.residual * (1 + ratio))).sum())
    assert joint.sum() > sum(alone) + 50  # what one row of a text says of the others


@pytest.mark.parametrize("between", [2.0, 0.7])
def test_one_intercept_is_that_of_statsmodels(between):
    y, x, items, _ = averages(np.random.default_rng(4), between=between)
    rows = Rows(y, x, items, items)
    ours = rows.fit([0, 1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = MixedLM(y, np.column_stack([np.ones(len(y)), x]), items).fit(reml=False)
    # statsmodels stops searching the variances at about 1e-5 of them.
    np.testing.assert_allclose(ours.beta[1:] * rows.scale, theirs.fe_params[1:], rtol=1e-4)
    np.testing.assert_allclose(ours.beta[0] * rows.scale + rows.center, theirs.fe_params[0], rtol=1e-4)
    np.testing.assert_allclose(ours.residual * rows.scale**2, theirs.scale, rtol=1e-3)
    np.testing.assert_allclose(ours.residual * ours.ratios[0] * rows.scale**2, theirs.cov_re[0, 0], rtol=1e-2)
    np.testing.assert_allclose(ours.deviance + 2 * len(y) * np.log(rows.scale), -2 * theirs.llf, rtol=1e-6)


@pytest.mark.parametrize("subjects", [7, 25])
def test_crossed_intercepts_are_those_of_another_library(subjects):
    """mixedlm's, which `tests/test_mixed.py` compares with lme4; with fewer subjects than texts, and with more."""
    y, x, items, _, people = trials(np.random.default_rng(6), texts=15, subjects=subjects)
    rows = Rows(y, x, items, items, people)
    ours = rows.fit([0, 1, 2])
    frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(
        y=y, item=[f"i{i}" for i in items], subject=[f"s{s}" for s in people]
    )
    theirs = mixed_model(frame, "y ~ a + b + c + (1 | subject) + (1 | item)")
    # Both stop searching the ratios at about 1e-4 of them, where the likelihood is flat.
    np.testing.assert_allclose(ours.beta[1:] * rows.scale, theirs.coef.iloc[1:], rtol=1e-3)
    np.testing.assert_allclose(ours.deviance + 2 * len(y) * np.log(rows.scale), -2 * theirs.loglik, atol=1e-3)
    variances = theirs.variances.set_index("grp")["vcov"]
    np.testing.assert_allclose(ours.residual * rows.scale**2, variances["Residual"], rtol=1e-3)
    np.testing.assert_allclose(
        ours.residual * rows.scale**2 * np.array(ours.ratios), variances[["item", "subject"]], rtol=1e-3
    )


@pytest.mark.parametrize("crossed", [False, True])
def test_the_search_follows_the_slope_of_the_deviance(crossed):
    y, x, items, _, people = trials(np.random.default_rng(7))
    moments = Rows(y, x, items, items, people if crossed else None).whole
    for place in range(1 + crossed):
        at, step = np.array([0.3, 0.6 * crossed]), np.eye(2)[place] * 1e-5
        slope = (moments.profile(at + step)[0] - moments.profile(at - step)[0]) / 2e-5
        assert moments.profile(at)[1][place] == pytest.approx(slope, rel=1e-5)  # central differences: step squared


def test_without_differences_between_texts_it_is_least_squares():
    y, x, items, _ = averages(np.random.default_rng(5), between=0.0)
    y -= np.array([y[items == g].mean() for g in range(items.max() + 1)])[items]  # less than chance
    x -= np.array([x[items == g].mean(0) for g in range(items.max() + 1)])[items]
    rows = Rows(y, x, items, items)
    fit = rows.fit([0, 1, 2])
    assert fit.ratios == (0.0, 0.0)
    np.testing.assert_allclose(fit.beta[1:] * rows.scale, np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-8)


def test_folds_are_of_whole_texts_and_held_out_rows_do_not_count():
    y, x, items, _ = averages(np.random.default_rng(6), texts=25)
    folds = folds_of(items)
    assert len(set(folds)) == FOLDS
    assert all(len(set(folds[items == g])) == 1 for g in set(items))
    changed = y.copy()
    changed[folds == 3] += 100
    before, after = (Rows(values, x, items, items) for values in (y, changed))
    # The measure is centred and scaled by all rows, which rounding alone notices.
    np.testing.assert_allclose(after.ratios([0, 1])[3], before.ratios([0, 1])[3], rtol=1e-3)
    ratios = before.ratios([0, 1])
    out = np.unique(items[folds == 3])
    assert (after.density([0, 1], ratios)[out] < before.density([0, 1], ratios)[out]).all()
    np.testing.assert_allclose(after.density([0, 1], ratios)[out], brute_force(after, changed, x[:, :2], ratios)[out])


def test_a_column_that_training_data_cannot_tell_from_others_predicts_nothing():
    """A word class of one text only: the fold that holds that text out cannot learn it, and must not be led astray."""
    y, x, items, _ = averages(np.random.default_rng(9), texts=4)
    rare = np.column_stack([x, (items == 2).astype(float), x[:, 0] + x[:, 1]])
    rows = Rows(y, rare, items, items)
    assert rows.whole.independent() == [0, 1, 2, 3, 4, 6]  # the last is the measure
    np.testing.assert_allclose(rows.density([0, 1, 2, 3])[2], rows.density([0, 1, 2])[2], rtol=1e-6)
    np.testing.assert_allclose(rows.density([0, 1, 2, 4]), rows.density([0, 1, 2]), rtol=1e-6)


def test_columns_weighted_by_the_inverse_covariance_are_those_of_the_matrix():
    y, x, items, _, people = trials(np.random.default_rng(8))
    for subjects in (None, people):
        rows = Rows(y, x, items, items, subjects)
        fit = rows.fit([0, 2])
        whole = np.eye(len(y)) + fit.ratios[0] * (items[:, None] == items)
        if subjects is not None:
            whole += fit.ratios[1] * (people[:, None] == people)
        values = rows.values[:, [0, 1, 3, 4]]
        expected = np.linalg.solve(whole * fit.residual, values)
        np.testing.assert_allclose(rows.weighted(fit, [0, 2]), expected, rtol=1e-7, atol=1e-10)  # exact but rounding
