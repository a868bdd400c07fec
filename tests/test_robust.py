"""Robustness checks against other libraries, by hand, by simulation; placebo hybrids and controls on a real study."""

import ast
import json
import math
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
import torch
from linearmodels.panel import PanelOLS
from scipy import stats
from test_regress import TRUE, same, simulate_panel, unbalanced_panel

from clada.errors import InputError, NotIdentifiedError, StudyError
from clada.models.open import load_model, load_tokenizer
from cladastats.activations.parts import read_parts
from cladastats.cli import main
from cladastats.controls import controls
from cladastats.figures import coefficient_figure, layer_figure
from cladastats.panel.case_study import CLAIMS, activation_maps, case_gaps, case_study
from cladastats.panel.claims import claims, in_words
from cladastats.panel.columns import complete_rows, fit_columns
from cladastats.panel.overview import across_measures, descriptive, side_by_side
from cladastats.panel.robustness import (
    between,
    confirmatory,
    controlled,
    group_difference,
    layers,
    mixed,
    ordered,
    placebos,
    power,
    ratio_effects,
    two_way_clusters,
)
from cladastats.panel.within import (
    Within,
    bootstrap,
    pair_effects_ols,
    pair_effects_summary,
    per_pair,
    permutation,
    within_summary,
)
from cladastats.placebo import earlier_token
from cladastats.results.fit import COLUMNS, FORMATS
from cladastats.results.robustness import ROBUST_COLUMNS, render_robustness, robustness_rows
from cladastats.sequences.placebos import PLACEBOS, make_placebo, placebo_sequences
from cladastats.study import Study

FULL = ("prefix_len", "surprisal_norm", "entropy_norm")
Y = "shift_toward"


def nls(panel: pd.DataFrame) -> pd.DataFrame:
    return complete_rows(panel, "nls", Y, FULL)[0]


@pytest.mark.parametrize("panel", [simulate_panel(), unbalanced_panel()], ids=["balanced", "unbalanced"])
def test_a_pair_of_one_row_counts_in_no_check():
    panel = simulate_panel(n_pairs=30)
    single = panel["pair"].isin(range(25, 30)) & (panel["ratio"] > 0.25)
    with_singles, without = panel[~single], panel[panel["pair"] < 25]
    data, other = nls(with_singles), nls(without)
    pd.testing.assert_frame_equal(data, other)
    whole = with_singles[with_singles["group"] == "nls"].set_index(["pair", "ratio"]).astype({"prefix_len": float})
    assert Within.of(whole, Y, FULL).xy.shape == (25, 3)
    assert pair_effects_ols(whole[Y], whole[list(FULL)]).nobs == 75
    kinds = [part.assign(placebo=kind) for part in (with_singles, without) for kind in PLACEBOS]
    half = len(PLACEBOS)
    assert placebos(pd.concat(kinds[:half]), with_singles, Y) == placebos(pd.concat(kinds[half:]), without, Y)
    assert layers(with_singles.assign(layer=0), Y) == layers(without.assign(layer=0), Y)


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
            assert (term["coef"], term["se"], term["p"]) == pytest.approx((ours["coef"], ours["se"], ours["p"]), rel=1e-8)
            assert term["ci"] == pytest.approx(ours["ci"], rel=1e-10)


def test_a_bootstrap_draw_is_the_fit_of_the_drawn_pairs():
    data = nls(simulate_panel(n_pairs=20))
    within = Within.of(data, Y, FULL)
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20))
    drawn = [data.xs(pair, level="pair") for pair in np.repeat(np.arange(20), weights)]
    copies = pd.concat(dict(enumerate(drawn)), names=["pair"])
    result = PanelOLS(copies[Y], copies[list(FULL)].assign(const=1.0), entity_effects=True).fit(
        cov_type="clustered", cluster_entity=True, group_debias=True, debiased=True, count_effects=False
    )
    coef, se = within.fit(np.stack([weights, np.ones(20)]))
    assert coef[0].tolist() == same(result.params[list(FULL)].tolist())
    assert se[0].tolist() == same(result.std_errors[list(FULL)].tolist())
    assert coef[1].tolist() == same(within.fit()[0].tolist())


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
    panel = simulate_panel(n_pairs=40)
    data = nls(panel)
    y = data[Y].to_numpy().reshape(40, 3)
    found = ordered(data, Y)
    factor = 40 / 39 * 119 / 117  # groups, and rows less two dummies and the constant
    for step, (i, j) in zip(found["steps"], [(0, 1), (1, 2)], strict=True):
        difference = y[:, j] - y[:, i]
        assert step["change"] == same(difference.mean())
        se = math.sqrt(((difference - difference.mean()) ** 2).sum() * factor) / 40
        half = stats.t.ppf(0.975, 39) * se
        assert step["ci"] == same([difference.mean() - half, difference.mean() + half])
        assert step["p_rise"] == same(stats.t.sf(difference.mean() / se, 39))
    # The ratios are equally far apart, so that a line means equal steps.
    bend = y[:, 2] - 2 * y[:, 1] + y[:, 0]
    se = math.sqrt(((bend - bend.mean()) ** 2).sum() * factor) / 40
    assert found["p_nonlinear"] == pytest.approx(2 * stats.t.sf(abs(bend.mean() / se), 39), rel=1e-6)
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


def test_holm_over_the_hypotheses_tests():
    fit = fit_columns(simulate_panel(n_pairs=25, noise=0.3), "cka")
    found = confirmatory(fit)
    assert [(t["column"], t["term"]) for t in found] == [
        (1, "prefix_len"), (2, "prefix_len"), (5, "surprisal_norm"), (5, "entropy_norm"), (6, "surprisal_norm"),
        (6, "entropy_norm"),
    ]  # fmt: skip
    expected, worst = {}, 0.0
    for rank, i in enumerate(np.argsort([t["p"] for t in found])):
        worst = max(worst, min(1.0, (6 - rank) * found[i]["p"]))
        expected[i] = worst
    assert [t["p_holm"] for t in found] == same([expected[i] for i in range(6)])


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
    data = nls(simulate_panel(n_pairs=40))
    found = between(data, Y, ["surprisal_norm", "entropy_norm"])
    means = data.groupby(level="pair").mean()
    result = sm.OLS(means[Y], sm.add_constant(means[["surprisal_norm", "entropy_norm"]])).fit(cov_type="HC3")
    for name, term in found.items():
        assert (term["coef"], term["se"]) == same((result.params[name], result.bse[name]))
    assert between(data[:9], Y, ["surprisal_norm", "entropy_norm"]) == {}


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
    sizes = [
        next(p for p in power(fit_columns(simulate_panel(n_pairs=pairs, seed=seed), "cka"))
             if (p["column"], p["term"]) == (6, "surprisal_norm"))["smallest_effect"]
        for seed in range(20)
    ]  # fmt: skip
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

    # Cameron, Gelbach and Miller: the variances by one text and by the other, less that by both together.
    def variance(clusters):
        result = PanelOLS(data[Y], data[list(FULL)].assign(const=1.0), entity_effects=True).fit(
            cov_type="clustered", clusters=pd.DataFrame({"c": clusters}, index=data.index), group_debias=True,
            debiased=True, count_effects=False,
        )  # fmt: skip
        return result.cov.loc["prefix_len", "prefix_len"]

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


# -- a real study -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(small_study, tmp_path_factory):
    """A copy of the small study with placebo hybrids, an independent model's surprisal and robustness checks."""
    folder = tmp_path_factory.mktemp("robust") / "study"
    shutil.copytree(small_study.folder, folder)
    assert main(["placebo", "--study", str(folder), "--pairs", "3"]) == 0
    assert main(["controls", "--study", str(folder), "--independent", "gemma3-270m"]) == 0
    for metric in ("cosine", "cka"):
        assert main(["regress", "--study", str(folder), "--metric", metric, "--robust"]) == 0
    return Study(folder)


def test_everything_is_answered_and_shown_in_every_format(checked):
    fit = checked.fit("cka")
    rows = robustness_rows(fit)
    assert list(rows.columns) == list(ROBUST_COLUMNS)
    for check in (
        "Holm", "cluster bootstrap", "permuted ratios", "every step rises", "NLS - RTS", "equivalence", "mixed model",
        "with controls", "without massive neurons", "placebo: end", "median of the layers", "with ratio effects",
        "smallest effect seen at 80 % power", "share of pairs that rise",
    ):  # fmt: skip
        assert check in set(rows["check"]), check
    assert "independent_surprisal_norm" in set(rows["term"])
    assert fit.robustness["notes"] == ["too few pairs to fit loads and controls between pairs"]  # six of them
    assert fit.robustness["reuse"] == {"reused": False}
    equivalent = rows[rows["check"] == "equivalence"].iloc[0]
    assert "90 % interval" in equivalent["note"]
    assert pd.isna(equivalent["ci_low"])  # the columns are of 95 %
    layer = rows[(rows["check"] == "median of the layers") & (rows["group"] == "NLS")].iloc[0]
    values = [r["coef"] for r in fit.robustness["layers"] if (r["group"], r["term"]) == ("nls", "prefix_len")]
    assert layer["estimate"] == same(float(np.median(values)))
    for fmt in FORMATS:
        if fmt != "json":
            shown = render_robustness(fit, fmt)
            assert "cluster bootstrap" in shown
            if fmt == "latex":
                assert "$-$" in shown
                assert not re.search(r"(?<!\\)[_%&#](?!\S*\})", re.sub(r" & ", " ", shown)), shown
            assert "nan" not in shown.lower().replace("dominant", "")
    json.loads(checked.fit_path("cka", "toward").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_answers_outlive_a_plain_fit_of_the_same_panel(checked):
    before = checked.fit("cka").robustness
    assert main(["regress", "--study", str(checked.folder)]) == 0
    assert checked.fit("cka").robustness == before
    with pytest.raises(InputError, match="has no robustness checks; run 'cladastats regress --robust'"):
        render_robustness(replace(checked.fit("cosine"), robustness={}), "text")
    assert main(["regress", "--study", str(checked.folder), "--robust", "--controls", "frequency_zipf"]) == 2


def test_a_control_by_name_and_one_that_pairs_absorb(checked, capsys):
    study = str(checked.folder)
    assert main(["regress", "--study", study, "--controls", "previous_surprisal_norm"]) == 0
    assert "previous_surprisal_norm" in capsys.readouterr().out
    assert main(["regress", "--study", study, "--controls", "frequency_zipf"]) == 2
    assert "frequency_zipf is constant within every pair, so the pair effects absorb it" in capsys.readouterr().err


def test_placebo_panel_has_every_kind_and_its_study_is_its_own(checked, small_study, capsys):
    placebo = make_placebo(checked)
    panel = placebo.panel("cka")
    assert len(panel) == 2 * 3 * len(checked.config.ratios) * len(PLACEBOS)
    assert set(panel["placebo"]) == set(PLACEBOS)
    # A and B are the study's own, so that what placebo hybrids are compared with is the same.
    both = panel.merge(checked.panel("cka"), on=["group", "pair", "ratio"])
    np.testing.assert_allclose(both["sim_ab_x"], both["sim_ab_y"], rtol=1e-4)  # float32 forwards in other segments
    with pytest.raises(StudyError, match="has 3 pairs, not 5; delete it to make another"):
        make_placebo(checked, 5)
    with pytest.raises(InputError, match="placebo hybrids need 2 pairs"):
        make_placebo(small_study, 1)
    # Commands that are of a study, not of one made from it, say so.
    assert main(["figures", "--study", str(placebo.folder)]) == 2
    assert "holds hybrids of several kinds" in capsys.readouterr().err
    assert main(["similarity", "--study", str(placebo.folder), "--estimator", "population"]) == 2
    assert "population CKA is of one kind" in capsys.readouterr().err
    corpus = placebo.folder / "corpus.parquet"
    kept = corpus.rename(placebo.folder / "kept")
    assert main(["corpus", "--study", str(placebo.folder)]) == 2
    assert "has lost its corpus.parquet, which was made of another study's" in capsys.readouterr().err
    kept.rename(corpus)
    assert main(["corpus", "--study", str(placebo.folder)]) == 2
    assert "is made of another study's corpus; give that study's own folder" in capsys.readouterr().err


def test_controls_are_of_the_target_and_its_word(checked):
    table = controls(checked)
    corpus = checked.corpus
    hybrids = corpus[corpus["role"] == "hybrid"]
    assert len(table) == len(hybrids)
    tokenizer = load_tokenizer(checked.config.model)
    for row, (_, hybrid) in zip(table.itertuples(), hybrids.iterrows(), strict=True):
        assert row.target_length == len(tokenizer.decode(hybrid["token_ids"][-1:]).strip())
    assert table.groupby(["group", "pair"])["frequency_zipf"].nunique().max() == 1
    assert table["frequency_zipf"].between(0, 8).all()
    assert table["frequency_zipf"].max() > 4  # some target is a common word


def test_every_claim_has_the_estimate_and_the_test_it_names(checked):
    table = claims(checked)
    for metric in ("cka", "cosine"):
        own = table[table["metric"] == metric].set_index("claim")
        assert len(own) == 11
        fit = checked.fit(metric)
        row = own.loc["2.2, NLS: surprisal disturbs flocking"]
        assert row["estimate"] == fit.column(6).coef["surprisal_norm"]
        assert (row["ci_low"], row["ci_high"]) == tuple(fit.column(6).ci["surprisal_norm"])
        holm = {(test["column"], test["term"]): test["p_holm"] for test in fit.robustness["confirmatory"]}
        assert (row["test"], row["p"]) == ("Holm of six", holm[6, "surprisal_norm"])
        half = own.loc["RTS: activations are dominated by a prefix of 50% (response above 0.5)"]
        panel = checked.panel(metric)
        values = panel[(panel["group"] == "rts") & (panel["ratio"] == 0.5)]["shift_toward"]
        assert half["estimate"] == same(values.mean())
        assert half["p"] == same(stats.ttest_1samp(values, 0.5).pvalue)


def test_verdicts_follow_from_the_numbers():
    """Fits made by hand: every verdict that there is, and the correction where it decides."""
    fit = fit_columns(simulate_panel(), "cka")

    def verdict(claim, holm=0.01, coef=1.0, rising=0.5, fall=0.5, difference=-1.0, p=0.01):
        columns = tuple(replace(c, coef=dict.fromkeys(c.coef, coef), p=dict.fromkeys(c.p, 0.001)) for c in fit.columns)
        checks = {
            "confirmatory": [
                {"column": n, "term": term, "p_holm": holm}
                for n, term in [(1, "prefix_len"), (2, "prefix_len")]
                + [(n, f"{load}_norm") for n in (5, 6) for load in ("surprisal", "entropy")]
            ],
            "ordered": {"nls": {"steps": [{"change": 0.1}], "p_rising": rising, "p_some_fall": fall}},
            "group_difference": {"prefix_len": {"difference": difference, "ci": (-2.0, 0.0), "p": p}},
        }
        made = replace(fit, columns=columns, robustness=checks)
        panel = simulate_panel().assign(ratio=0.5)
        study = SimpleNamespace(
            fit=lambda metric: replace(made, metric=metric), panel=lambda _metric: panel, folder="x"
        )
        table = claims(study)
        (row,) = table[(table["metric"] == "cka") & table["claim"].str.startswith(claim)].itertuples()
        return row.verdict

    follow, disturb, none = "2.1, NLS: activations", "2.2, NLS: surprisal", "2.2, RTS: entropy"
    assert [verdict(follow), verdict(follow, coef=-1.0)] == ["supported", "contradicted"]
    assert verdict(follow, holm=0.06) == "undecided"  # 0.001 before correction
    assert [verdict(disturb), verdict(disturb, coef=-1.0)] == ["contradicted", "supported"]
    assert [verdict(none), verdict(none, holm=0.06)] == ["contradicted", "not contradicted"]
    steps = "2.1, NLS: every longer"
    assert [verdict(steps), verdict(steps, rising=0.01), verdict(steps, fall=0.01)] == [
        "undecided", "supported", "contradicted",
    ]  # fmt: skip
    between_groups = "Observation 2"
    assert [verdict(between_groups), verdict(between_groups, difference=1.0), verdict(between_groups, p=0.06)] == [
        "supported", "contradicted", "undecided",
    ]  # fmt: skip
    assert verdict("NLS: activations are dominated") == "contradicted"


def test_verdicts_in_words_name_every_claim_once():
    table = pd.DataFrame({
        "claim": ["one", "two", "one"], "metric": ["cka", "cka", "cosine"],
        "verdict": ["undecided", "supported", "undecided"],
    })  # fmt: skip
    assert in_words(table) == ["Undecided: one (cka, cosine).", "Supported: two (cka)."]


def test_every_measure_beside_each_other(checked):
    table = across_measures([checked])
    assert list(table["metric"]) == ["cka", "cka", "cosine", "cosine"]
    assert list(table["group"]) == ["NLS", "RTS"] * 2
    row, fit = table.iloc[1], checked.fit("cka")
    low, high = fit.column(1).ci["prefix_len"]
    assert row["prefix"] == f"{fit.column(1).coef['prefix_len']:.3g} [{low:.3g}, {high:.3g}]"
    same = fit.robustness["ratio_effects"]["rts"]["entropy_norm"]
    assert row["entropy at equal ratio"].startswith(f"{same['coef']:.3g} [")
    assert row["entropy"].startswith(f"{fit.column(5).coef['entropy_norm']:.3g} [")


def test_claims_of_the_case_study_are_counted_as_written():
    similarity = np.eye(13)
    similarity[3, 0] = similarity[5, 0] = similarity[8, 0] = 0.9  # 4, 6 and 9 to 1
    similarity[3, 1] = 0.95  # but 4 is nearer to 2
    gaps = case_gaps(similarity, *CLAIMS["a"][1:])
    assert gaps.tolist() == pytest.approx([-0.05, 0.9, 0.9, 0.9, 0.9, 0.9])
    _, samples, near, far = CLAIMS["e"]
    assert len(case_gaps(similarity, samples, near, far)) == 3 * 11  # a sample does not compete with itself


def test_case_study_on_a_real_model():
    model, tokenizer = load_model("smollm2-135m")
    found = case_study(model, tokenizer)
    assert found.layers.shape == (30, 13, 13)
    np.testing.assert_allclose(found.similarity, found.layers.mean(0))
    np.testing.assert_allclose(found.similarity, found.similarity.T)
    assert found.similarity[0, 7] == pytest.approx(1)  # sample 8 is sample 1
    # The last word decides: sentences that end in "city" are nearer to each other than to those that do not.
    assert found.similarity[:8, :8].min() > found.similarity[:8, 8:].max()
    assert list(found.claims["claim"]) == list("abcde")


def test_maps_end_in_the_activations_of_the_study(checked):
    model, _ = load_model(checked.config.model)
    maps = activation_maps(model, checked, layer=4)
    corpus = checked.corpus
    block = corpus[(corpus["group"] == "nls") & (corpus["pair"] == 0)]
    part, _ = next(iter(read_parts(checked)))
    for name, row in (("A", block[block["role"] == "A"].iloc[0]), ("A'", block[block["role"] == "hybrid"].iloc[0])):
        stored = part.tensors["activations"][part.sequence_ids.index(row["sequence_id"])][4]
        assert maps[name].shape == (65, 1536)
        # float32 sums in another order
        assert np.abs(maps[name][-1] - stored).max() <= 1e-4 * np.abs(stored).max()
    p = int(block[block["role"] == "hybrid"]["prefix_len"].iloc[0])
    assert np.abs(maps["A'"][:p] - maps["B"][:p]).max() <= 1e-4 * np.abs(maps["B"][:p]).max()


def test_the_notebook_draws_maps_of_a_study_without_its_texts(small_copy, capsys):
    """As the repository's studies are kept: the maps are then of the embedded news."""
    (small_copy.folder / "corpus.parquet").unlink()
    path = Path(__file__).parents[1] / "notebooks" / "03_visual_evidence.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    model, _ = load_model(small_copy.config.model)
    names: dict[str, object] = {"study": small_copy, "model": model}
    figures = []
    for source in sources:
        if "activation_maps" in source or "means" in source:
            *_, last = ast.parse(source).body
            exec(source, names)  # what a reader of the notebook runs
            if isinstance(last, ast.Expr) and "figure" in ast.unparse(last):
                figures.append(eval(ast.unparse(last), names))
    assert [values.shape for values in names["maps"].values()] == [(513, 1536)] * 3
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes[:3]] == ["A", "B", "A'"]
    assert "A' and B: r = 0." in capsys.readouterr().out


def test_the_token_before_is_a_study_of_sequences_cut_by_one(checked):
    table = earlier_token(checked, pairs=3)
    assert table.groupby("token").size().to_dict() == {"earlier": 2, "target": 2}
    assert (table["n_pairs"] == 3).all()
    earlier = Study(checked.folder / "earlier").corpus.set_index(["group", "pair", "role"])["token_ids"]
    whole = checked.corpus.set_index(["group", "pair", "role"])["token_ids"]
    for role in ("A", "B"):
        assert earlier["rts", 2, role].tolist() == whole["rts", 2, role].tolist()[:-1]


def test_figures_and_tables_of_a_checked_study(checked):
    fits = {metric: checked.fit(metric) for metric in ("cka", "cosine")}
    axis = coefficient_figure(fits).axes[0]
    assert len(axis.get_yticklabels()) == 2 * 2 * 3
    assert len(layer_figure(fits["cka"]).axes) == 3
    with pytest.raises(StudyError, match="has no layers; run 'cladastats regress --metric cka --robust'"):
        layer_figure(replace(fits["cka"], robustness={}))
    table = side_by_side(list(fits.values()))
    assert table.loc[("cka", "Prefix (1,000 tokens), published (t)"), "(2) NLS"] == "lost (20.16)"
    assert table.loc[("cosine", "Entropy (norm.), published (t)"), "(5) RTS"] == "-0.35 (-4.25)"
    panel = checked.panel("cka")
    shown = descriptive(panel).loc[("nls", "surprisal_bits")]
    rows = panel[panel["group"] == "nls"]
    assert shown["mean"] == pytest.approx(rows["surprisal_bits"].mean())
    spread = (rows.groupby("pair")["surprisal_bits"].var() * 2).sum() / 12  # 3 rows a pair, 6 pairs: 12 of freedom
    assert shown["std_within"] == pytest.approx(math.sqrt(spread))


def test_independent_surprisal_is_the_other_models_of_the_same_text(checked):
    table = controls(checked)
    model, other = load_model("gemma3-270m")
    tokenizer = load_tokenizer(checked.config.model)
    corpus = checked.corpus
    hybrids = corpus[(corpus["role"] == "hybrid") & (corpus["group"] == "nls")].iloc[:4]
    values = table[table["group"] == "nls"]["independent_surprisal_bits"].to_numpy()
    compared = 0
    for ids, value in zip(hybrids["token_ids"], values, strict=False):
        whole, context = (tokenizer.decode(part).replace("<|endoftext|>", "<eos>") for part in (ids, ids[:-1]))
        tokens = other(whole)["input_ids"]
        known = len(other(context)["input_ids"])
        if tokens[:known] != other(context)["input_ids"]:
            continue  # the target grows onto the token before it
        with torch.inference_mode():
            log_p = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1)
        expected = -sum(float(log_p[i - 1, tokens[i]]) for i in range(known, len(tokens))) / math.log(2)
        assert value == pytest.approx(expected, abs=1e-3)  # float32 logits, shared beginnings
        compared += 1
    assert compared
    with pytest.raises(InputError, match="is the study's own model"):
        controls(checked, checked.config.model)
