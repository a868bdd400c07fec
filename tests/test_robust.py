"""Robustness checks against other libraries, by hand and by simulation."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from linearmodels.panel import PanelOLS
from scipy import stats
from test_regress import TRUE, same, simulate_panel, unbalanced_panel

from clada.errors import NotIdentifiedError
from cladastats.panel.columns import complete_rows, fit_columns
from cladastats.panel.contrasts import group_difference, ordered
from cladastats.panel.power import power
from cladastats.panel.robustness import (
    between,
    controlled,
    layers,
    mixed,
    ratio_effects,
    two_way_clusters,
)
from cladastats.panel.strata import placebos
from cladastats.panel.within import (
    Within,
    bootstrap,
    pair_effects_summary,
    per_pair,
    permutation,
    within_summary,
)
from cladastats.results.fit import COLUMNS
from cladastats.sequences.placebos import PLACEBOS, placebo_sequences

FULL = ("prefix_len", "surprisal_norm", "entropy_norm")
Y = "shift_toward"


def nls(panel: pd.DataFrame) -> pd.DataFrame:
    return complete_rows(panel, "nls", Y, FULL)[0]


def test_a_pair_of_one_row_counts_in_no_check():
    panel = simulate_panel(n_pairs=30)
    single = panel["pair"].isin(range(25, 30)) & (panel["ratio"] > 0.25)
    with_singles, without = panel[~single], panel[panel["pair"] < 25]
    data, other = nls(with_singles), nls(without)
    pd.testing.assert_frame_equal(data, other)
    whole = with_singles[with_singles["group"] == "nls"].set_index(["pair", "ratio"]).astype({"prefix_len": float})
    assert Within.of(whole, Y, FULL).xy.shape == (25, 3)
    kinds = [part.assign(placebo=kind) for part in (with_singles, without) for kind in PLACEBOS]
    half = len(PLACEBOS)
    assert placebos(pd.concat(kinds[:half]), with_singles, Y) == placebos(pd.concat(kinds[half:]), without, Y)
    assert layers(with_singles.assign(layer=0), Y) == layers(without.assign(layer=0), Y)


# 60 pairs, so that errors are CR1 and linearmodels has them; those of few clusters are in test_few_clusters.py.
@pytest.mark.parametrize("panel", [simulate_panel(), unbalanced_panel()], ids=["balanced", "unbalanced"])
def test_sums_of_pairs_are_linearmodels(panel):
    fit = fit_columns(panel, "cka")
    for number, (group, names) in COLUMNS.items():
        data = complete_rows(panel, group, Y, FULL)[0]
        within = Within.of(data, Y, names)
        column = fit.column(number)
        theirs = PanelOLS(data[Y], data[list(names)].assign(const=1.0), entity_effects=True).fit(
            cov_type="clustered", cluster_entity=True, group_debias=True, debiased=True, count_effects=False
        )
        # 1e-10: two ways to solve a well-conditioned system of at most three unknowns in float64.
        for coef, se in (
            within.fit(),
            (theirs.params[list(names)], theirs.std_errors[list(names)]),
        ):
            assert list(coef) == pytest.approx([column.coef[name] for name in names], rel=1e-10)
            assert list(se) == pytest.approx([column.se[name] for name in names], rel=1e-10)
        for name, term in pair_effects_summary(data, Y, names).items():
            ours = within_summary(within)[name]
            assert [term[key] for key in ("coef", "se")] == pytest.approx([ours["coef"], ours["se"]], rel=1e-10)
            assert term["p"] == pytest.approx(ours["p"], rel=1e-8)  # far out in the tail of t
            assert term["ci"] == pytest.approx(ours["ci"], rel=1e-10)


@pytest.mark.parametrize("pairs", [20, 60])  # CR3 and CR1
def test_a_bootstrap_draw_is_the_fit_of_the_drawn_pairs(pairs):
    data = nls(simulate_panel(n_pairs=pairs))
    within = Within.of(data, Y, FULL)
    weights = np.random.default_rng(0).multinomial(pairs, np.full(pairs, 1 / pairs))
    drawn = [data.xs(pair, level="pair") for pair in np.repeat(np.arange(pairs), weights)]
    copies = pd.concat(dict(enumerate(drawn)), names=["pair"]).drop(columns="cluster")
    coef, se = within.fit(np.stack([weights, np.ones(pairs)]))
    result = PanelOLS(copies[Y], copies[list(FULL)].assign(const=1.0), entity_effects=True).fit(
        cov_type="clustered", cluster_entity=True, group_debias=True, debiased=True, count_effects=False
    )
    assert coef[0].tolist() == same(result.params[list(FULL)].tolist())
    if pairs == 60:
        assert se[0].tolist() == same(result.std_errors[list(FULL)].tolist())
    assert se[0].tolist() == same(Within.of(copies, Y, FULL).fit()[1].tolist())
    for ours, whole in zip((coef[1], se[1]), within.fit(), strict=True):
        assert ours.tolist() == same(whole.tolist())


def test_bootstrap_intervals_hold_the_clustered_ones_to_their_own_error():
    within = Within.of(nls(simulate_panel(n_pairs=200)), Y, FULL)
    coef, se = within.fit()
    found = bootstrap(within, np.random.default_rng(1))
    for name, c, s in zip(FULL, coef, se, strict=True):
        # 200 pairs and 1,999 draws: both intervals estimate the same, to a tenth of their length.
        for kind in ("ci", "ci_percentile"):
            assert found[name][kind] == pytest.approx([c - 1.97 * s, c + 1.97 * s], abs=0.4 * s)
        assert found[name]["se"] == pytest.approx(s, rel=0.1)


def test_percentile_intervals_are_scipys():
    within = Within.of(nls(simulate_panel(n_pairs=40)), Y, FULL)
    found = bootstrap(within, np.random.default_rng(1))

    def coefficient(pairs, axis, i):
        counts = np.apply_along_axis(np.bincount, axis, pairs.astype(int), minlength=40)
        return within.fit(counts)[0][..., i]

    for i, name in enumerate(FULL):
        theirs = stats.bootstrap(
            (np.arange(40),), lambda pairs, axis, i=i: coefficient(pairs, axis, i), vectorized=True,
            method="percentile", n_resamples=1999, rng=np.random.default_rng(2),
        )  # fmt: skip
        low, high = theirs.confidence_interval
        # The Monte-Carlo error of a percentile of 1,999 draws is about 1.5 % of the interval's length; five of these.
        assert found[name]["ci_percentile"] == pytest.approx([low, high], abs=0.08 * (high - low))
        assert found[name]["se"] == pytest.approx(theirs.standard_error, rel=0.1)  # 1.6 % of Monte-Carlo error each


def test_permutation_p_is_that_of_scipys_exact_test():
    data = nls(simulate_panel(n_pairs=4, noise=0.5))
    responses = data[Y].to_numpy().reshape(4, 3).T
    prefix = data["prefix_len"].to_numpy()[:3] - data["prefix_len"].to_numpy()[:3].mean()
    exact = stats.permutation_test(
        list(responses), lambda *ratios: abs(prefix @ np.sum(ratios, axis=-1)), permutation_type="samples",
        alternative="greater", n_resamples=np.inf, vectorized=False,
    ).pvalue  # fmt: skip
    draws = 4000
    found = permutation(data, Y, np.random.default_rng(0), draws)
    assert found["p"] == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / draws) + 1 / draws)
    assert found["coef"] == same(Within.of(data, Y, ["prefix_len"]).fit()[0][0])


def test_steps_are_mean_differences_within_pairs():
    panel = simulate_panel(n_pairs=60)
    data = nls(panel)
    y = data[Y].to_numpy().reshape(60, 3)
    found = ordered(data, Y)
    factor = 60 / 59 * 179 / 177  # groups, and rows less two dummies and the constant
    for step, (i, j) in zip(found["steps"], [(0, 1), (1, 2)], strict=True):
        difference = y[:, j] - y[:, i]
        assert step["change"] == same(difference.mean())
        se = math.sqrt(((difference - difference.mean()) ** 2).sum() * factor) / 60
        half = stats.t.ppf(0.975, 59) * se
        assert step["ci"] == same([difference.mean() - half, difference.mean() + half])
        assert step["p_rise"] == same(stats.t.sf(difference.mean() / se, 59))
    # The ratios are equally far apart, so that a line means equal steps.
    bend = y[:, 2] - 2 * y[:, 1] + y[:, 0]
    se = math.sqrt(((bend - bend.mean()) ** 2).sum() * factor) / 60
    assert found["p_nonlinear"] == pytest.approx(2 * stats.t.sf(abs(bend.mean() / se), 59), rel=1e-6)
    assert found["p_rising"] == max(step["p_rise"] for step in found["steps"])
    assert found["p_rising"] < 0.05 < 0.95 < found["p_some_fall"]
    # One step that falls refutes that every step rises, whatever the others do.
    bent = data.assign(**{Y: (y - [0, 0, 1]).ravel()})
    found = ordered(bent, Y)
    assert found["p_some_fall"] == same(2 * (1 - found["steps"][1]["p_rise"]))
    assert found["p_some_fall"] < 0.05 < 0.95 < found["p_rising"]
    one = data[data.index.get_level_values("ratio") == 0.25]
    with pytest.raises(NotIdentifiedError, match="a study of one ratio has no steps"):
        ordered(one, Y)


def test_slopes_of_pairs_by_themselves():
    data = nls(simulate_panel(n_pairs=30))
    slopes = [np.polyfit(rows["prefix_len"], rows[Y], 1)[0] for _, rows in data.groupby(level="pair")]
    found = per_pair(data, Y)
    assert found["median"] == pytest.approx(np.median(slopes))
    assert found["rising"] == np.mean(np.array(slopes) > 0)
    assert found["wilcoxon_p"] == pytest.approx(stats.wilcoxon(slopes).pvalue)


def test_group_difference_is_the_interaction_and_the_equivalence_test_is_two_one_sided():
    panel = simulate_panel(n_pairs=50)
    fit = fit_columns(panel, "cka")
    found = group_difference(fit, 0.05)
    assert found is not None
    dummies = panel.assign(unit=panel["group"] + panel["pair"].astype(str), x=panel["prefix_len"] / 1000)
    pooled = smf.ols("shift_toward ~ x + x:C(group, Treatment('rts')) + C(unit)", dummies).fit()
    prefix = found["prefix_len"]
    interaction = next(value for name, value in pooled.params.items() if name.startswith("x:"))
    assert prefix["difference"] == pytest.approx(interaction, rel=1e-8)  # 100 dummies: a worse conditioned system
    a, b = fit.column(1).se["prefix_len"], fit.column(2).se["prefix_len"]
    assert prefix["se"] == same(math.hypot(a, b))
    assert prefix["df"] == pytest.approx((a**2 + b**2) ** 2 / ((a**4 + b**4) / 49))
    wide, narrow = group_difference(fit, 10.0), group_difference(fit, 1e-6)
    assert wide is not None
    assert narrow is not None
    assert wide["prefix_len"]["verdict"].startswith("equivalent within the margin")
    assert narrow["prefix_len"]["verdict"].startswith("no decision")
    for test, margin in ((wide, 10.0), (narrow, 1e-6)):
        low, high = test["prefix_len"]["ci_90"]
        assert (test["prefix_len"]["equivalence_p"] < 0.05) == (-margin < low and high < margin)
    assert group_difference(fit_columns(panel[panel["group"] == "nls"], "cka"), 0.05) is None


def test_mixed_model_finds_what_was_put_in_and_agrees_with_statsmodels_formula():
    panel = simulate_panel(n_pairs=80)
    data = nls(panel)
    found = mixed(data, Y, FULL)
    assert found["converged"]
    for name in FULL:
        term = found["terms"][name]
        assert term["coef"] == pytest.approx(TRUE["nls"][name], abs=4 * term["se"])
    flat = data.reset_index()
    for name in ("surprisal_norm", "entropy_norm"):
        flat[f"{name}_mean"] = flat.groupby("pair")[name].transform("mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = smf.mixedlm(
            f"{Y} ~ prefix_len + surprisal_norm + entropy_norm + surprisal_norm_mean + entropy_norm_mean", flat,
            groups="pair", re_formula="~prefix_len",
        ).fit()  # fmt: skip
    for name in FULL:
        # Two optimisers of one likelihood, in other units: they agree to a hundredth of the standard error.
        assert found["terms"][name]["coef"] == pytest.approx(other.params[name], abs=0.01 * other.bse[name])
        assert found["terms"][name]["se"] == pytest.approx(other.bse[name], rel=0.02)


def test_between_pairs_is_ordinary_least_squares_on_means():
    names = ["surprisal_norm", "entropy_norm"]
    data = nls(simulate_panel(n_pairs=40))
    means = data.groupby(level="pair").mean()
    few = sm.OLS(means[Y], sm.add_constant(means[names])).fit(cov_type="HC3", use_t=True)
    for name, term in between(data, Y, names).items():
        # HC3 leaves out every pair too; the jackknife's factor makes it a little smaller.
        assert (term["coef"], term["se"]) == same((few.params[name], few.bse[name] * math.sqrt(39 / 40)))
        assert term["p"] == same(2 * stats.t.sf(abs(term["coef"] / term["se"]), 37))
    data = nls(simulate_panel(n_pairs=60))
    means = data.groupby(level="pair").mean()
    many = sm.OLS(means[Y], sm.add_constant(means[names])).fit(
        cov_type="cluster", cov_kwds={"groups": np.arange(60)}, use_t=True
    )
    for name, term in between(data, Y, names).items():
        assert (term["coef"], term["se"]) == same((many.params[name], many.bse[name]))
    assert between(data[:9], Y, names) == {}


def test_layers_are_fits_of_their_own_rows_with_benjamini_hochberg():
    parts = [simulate_panel(n_pairs=12, seed=seed, noise=1.0).assign(layer=seed) for seed in range(6)]
    panel = pd.concat(parts, ignore_index=True)
    panel.loc[panel["layer"] == 5, Y] = np.nan
    found = layers(panel, Y)
    own = [r for r in found if (r["group"], r["term"]) == ("nls", "entropy_norm")]
    assert [r["layer"] for r in own] == [0, 1, 2, 3, 4]
    for record, part in zip(own, parts[:5], strict=True):
        column = fit_columns(part, "cka").column(6)
        assert (record["coef"], record["p"]) == same((column.coef["entropy_norm"], column.p["entropy_norm"]))
    p = np.array([r["p"] for r in own])
    order = np.argsort(p)
    expected = np.minimum.accumulate((p[order] * 5 / np.arange(1, 6))[::-1])[::-1]
    assert [own[i]["p_bh"] for i in order] == same(np.minimum(expected, 1).tolist())
    # A layer that pairs explain, but for rounding, has no slope, and takes nothing from the others.
    rng = np.random.default_rng(0)
    constant = panel["pair"] * (1 + 1e-8 * rng.standard_normal(len(panel)))
    again = layers(panel.assign(**{Y: panel[Y].where(panel["layer"] != 5, constant)}), Y)
    assert again == found


def test_coverage_size_and_power_by_simulation():
    """400 panels of 30 pairs with correlated and unequal errors: within three Monte-Carlo standard errors."""
    draws, pairs = 400, 30
    covered = rejected = 0
    for seed in range(draws):
        data = nls(simulate_panel(n_pairs=pairs, seed=1000 + seed))
        coef, se = Within.of(data, Y, FULL).fit()
        t = stats.t.ppf(0.975, pairs - 1)
        covered += abs(coef[1] - TRUE["nls"]["surprisal_norm"]) <= t * se[1]
        null = data.assign(**{Y: data[Y] - TRUE["nls"]["prefix_len"] * data["prefix_len"]})
        coef, se = Within.of(null, Y, ["prefix_len"]).fit()
        rejected += abs(coef[0] / se[0]) > t
    error = 3 * math.sqrt(0.05 * 0.95 / draws)
    assert covered / draws == pytest.approx(0.95, abs=error)
    assert rejected / draws == pytest.approx(0.05, abs=error)
    fit = fit_columns(simulate_panel(n_pairs=pairs, seed=1000), "cka")
    smallest = next(p for p in power(fit) if (p["column"], p["term"]) == (6, "surprisal_norm"))
    t = stats.t.ppf([0.975, 0.8], pairs - 1).sum()
    assert smallest["smallest_effect"] == same(t * fit.column(6).se["surprisal_norm"])


def test_the_smallest_effect_seen_is_found_in_four_panels_of_five():
    draws, pairs = 400, 30
    t = stats.t.ppf([0.975, 0.8], pairs - 1).sum()  # as `power` has it, see above
    sizes = [t * Within.of(nls(simulate_panel(n_pairs=pairs, seed=seed)), Y, FULL).fit()[1][1] for seed in range(20)]
    added = float(np.mean(sizes)) - TRUE["nls"]["surprisal_norm"]
    found = 0
    for seed in range(draws):
        data = nls(simulate_panel(n_pairs=pairs, seed=1000 + seed))
        data[Y] += added * data["surprisal_norm"]
        found += within_summary(Within.of(data, Y, FULL))["surprisal_norm"]["p"] < 0.05
    # Three Monte-Carlo standard errors of a share of 0.8, and as much again as the panels' own errors differ.
    assert found / draws == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / draws) + 0.02)


def test_too_few_pairs_for_a_bootstrap_give_none():
    data = nls(simulate_panel(n_pairs=3))
    assert bootstrap(Within.of(data, Y, FULL), np.random.default_rng(0), 99) == {}
    assert set(bootstrap(Within.of(data, Y, ["prefix_len"]), np.random.default_rng(0), 99)) == {"prefix_len"}


def test_effects_of_ratios_take_a_bend_off_the_loads():
    """Load that grows with the ratio's square, and a response that does too: a line leaves the bend to the load."""
    panel = simulate_panel(n_pairs=40)
    data = nls(panel)
    bend = data.index.get_level_values("ratio").to_numpy() ** 4
    noise = np.random.default_rng(0).normal(size=(2, len(data)))
    data = data.assign(surprisal_norm=bend + 0.001 * noise[0], **{Y: bend + 0.001 * noise[1]})
    assert within_summary(Within.of(data, Y, FULL))["surprisal_norm"]["p"] < 1e-6
    found = ratio_effects(data, Y)
    dummies = pd.get_dummies(data.index.get_level_values("ratio"), prefix="r", drop_first=True, dtype=float)
    exog = pd.concat([dummies.set_index(data.index), data[["surprisal_norm", "entropy_norm"]]], axis=1)
    expected = PanelOLS(data[Y], exog.assign(const=1.0), entity_effects=True).fit()
    for name in ("surprisal_norm", "entropy_norm"):
        assert found[name]["coef"] == same(expected.params[name])
    assert found["surprisal_norm"]["p"] > 0.05


def test_texts_in_several_pairs_are_clustered_by_both():
    data = nls(simulate_panel(n_pairs=40))
    names = [(group, pair, role) for group in ("nls", "rts") for pair in range(40) for role in ("A", "B")]
    corpus = pd.DataFrame(names, columns=["group", "pair", "role"])
    study = SimpleNamespace(corpus=corpus.assign(sequence_id=[f"{g}{p}{r}" for g, p, r in names]))
    assert two_way_clusters(study, {"nls": data}, Y) == {"reused": False}
    text = [p % 10 if role == "A" else p // 4 for _, p, role in names]  # every A in four pairs, every B in four others
    study = SimpleNamespace(
        corpus=corpus.assign(sequence_id=[f"{n[0]}{t}{n[2]}" for n, t in zip(names, text, strict=True)])
    )
    found = two_way_clusters(study, {"nls": data}, Y)
    pair = data.index.get_level_values("pair").to_numpy()

    def slope(rows):
        return PanelOLS(rows[Y], rows[list(FULL)].assign(const=1.0), entity_effects=True).fit().params["prefix_len"]

    # Cameron, Gelbach and Miller: the variances by one text and by the other, less that by both together; each the
    # jackknife's, as there are fewer than 50 of either.
    def variance(clusters):
        labels = np.unique(clusters)
        moved = np.array([slope(data[clusters != label]) - slope(data) for label in labels])
        return (len(labels) - 1) / len(labels) * (moved**2).sum()

    both = variance(pair % 10) + variance(pair // 4) - variance(pair)
    assert found["nls"]["prefix_len"]["se"] ** 2 == pytest.approx(both, rel=1e-6)
    assert found["nls"]["prefix_len"]["coef"] == same(Within.of(data, Y, FULL).fit()[0][0])
    low, high = found["nls"]["prefix_len"]["ci"]  # ten texts of each kind: t with nine degrees of freedom
    assert (high - low) / 2 == same(stats.t.ppf(0.975, 9) * found["nls"]["prefix_len"]["se"])


def test_moderators_and_controls():
    data = nls(simulate_panel(n_pairs=40))
    rng = np.random.default_rng(0)
    static = np.repeat(rng.normal(size=40), 3)
    data = data.assign(
        frequency_zipf=static, target_length=1.0, previous_surprisal_norm=rng.random(120),
        **{Y: data[Y] + 0.4 * data["prefix_len"] * (static - static.mean())},
    )  # fmt: skip
    found = controlled(data, Y, ["previous_surprisal_norm"])
    assert set(found["with_controls"]) == {*FULL, "previous_surprisal_norm"}
    assert set(found["moderators"]) == {"prefix_len x frequency_zipf"}  # a constant moderates nothing
    term = found["moderators"]["prefix_len x frequency_zipf"]
    assert term["coef"] == pytest.approx(0.4, abs=4 * term["se"])


def test_placebo_sequences_keep_the_tokens_and_the_target():
    a, b, c = (np.arange(start, start + 21, dtype=np.int32) for start in (100, 200, 300))
    a[0] = b[0] = c[0] = 1
    found = placebo_sequences(a, b, c, 8, 1, np.random.default_rng(0))
    assert set(found) == set(PLACEBOS)
    for ids in found.values():
        assert (len(ids), ids[0], ids[-1], ids.dtype) == (21, 1, a[-1], np.int32)
    assert found["unrelated"].tolist() == [*c[:8], *a[8:]]
    assert sorted(found["shuffled"][:8]) == sorted(b[:8])
    assert found["shuffled"].tolist() != [*b[:8], *a[8:]]
    assert found["middle"].tolist() == [*a[:7], *b[1:8], *a[14:]]
    assert found["end"].tolist() == [*a[:13], *b[1:8], a[-1]]
