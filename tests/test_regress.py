"""The regression against a second library, by hand, and against every panel it must refuse."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from linearmodels.panel import PanelOLS
from linearmodels.shared.exceptions import SingletonWarning
from scipy import stats
from statsmodels.stats.outliers_influence import variance_inflation_factor

from clada.errors import CladaError, InputError, NotIdentifiedError
from cladastats.panel.columns import fit_columns, summary_sentences
from cladastats.regress import coefficients_from_fit
from cladastats.results.fit import COLUMNS, Column, Fit

TRUE = {
    "nls": {"prefix_len": 0.5, "surprisal_norm": -0.8, "entropy_norm": -0.12},
    "rts": {"prefix_len": 0.7, "surprisal_norm": 0.0, "entropy_norm": 0.3},
}
LENGTH = 2048
VOCAB_SIZE = 49_152


def same(expected: Any) -> Any:
    """Equal to rounding: both sides solve a well-conditioned system of at most five unknowns in float64 (1e-16)."""
    return pytest.approx(expected, rel=1e-9, abs=1e-12)


def simulate_panel(n_pairs: int = 60, seed: int = 0, noise: float = 0.03) -> pd.DataFrame:
    """A panel with the coefficients TRUE, pair effects, and errors correlated and unequal within pairs."""
    rng = np.random.default_rng(seed)
    groups = []
    for group, true in TRUE.items():
        pair = np.repeat(np.arange(n_pairs), 3)
        ratio = np.tile([0.25, 0.375, 0.5], n_pairs)
        pair_scale = np.repeat(rng.uniform(0.5, 1.5, n_pairs), 3)
        surprisal = np.repeat(rng.random(n_pairs), 3) / 2 + rng.random(3 * n_pairs) / 2
        entropy = surprisal / 2 + rng.random(3 * n_pairs) / 2
        error = noise * pair_scale * (rng.normal(size=3 * n_pairs) + np.repeat(rng.normal(size=n_pairs), 3) * ratio)
        load = true["surprisal_norm"] * surprisal + true["entropy_norm"] * entropy
        shift = 0.1 + true["prefix_len"] * ratio * LENGTH / 1000 + load + np.repeat(rng.normal(size=n_pairs), 3) + error
        groups.append(
            pd.DataFrame(
                {
                    "group": group,
                    "pair": pair,
                    "ratio": ratio,
                    "shift_toward": shift,
                    "shift_away": -shift,
                    "sim_hb": shift / 2,
                    "surprisal_norm": surprisal,
                    "entropy_norm": entropy,
                    "surprisal_bits": surprisal * np.log2(VOCAB_SIZE),
                    "prefix_len": np.round(ratio * LENGTH).astype(int),
                    "token_len": LENGTH,
                }
            )
        )
    return pd.concat(groups, ignore_index=True)


def unbalanced_panel() -> pd.DataFrame:
    """Pairs with one, two and three rows, by undefined responses and absent rows."""
    panel = simulate_panel()
    panel.loc[[0, 4, 5, 200], "shift_toward"] = np.nan
    return panel.drop(index=[10, 11, 300])


def rows_of(panel: pd.DataFrame, column: Column) -> tuple[pd.Series, pd.DataFrame, pd.Series]:
    """Response, regressors (prefix in 1,000 tokens) and pairs that a column was fitted on."""
    rows = panel[panel["group"] == column.group].dropna(subset=["shift_toward"])
    rows = rows[rows.groupby("pair")["pair"].transform("size") > 1]
    X = rows[list(column.regressors)].astype(float)
    X["prefix_len"] /= 1000
    return rows["shift_toward"], X, rows["pair"]


def demean(values: Any, pair: pd.Series) -> Any:
    return values - values.groupby(pair).transform("mean")


@pytest.fixture(scope="module", params=[simulate_panel, unbalanced_panel])
def panel(request: pytest.FixtureRequest) -> pd.DataFrame:
    return request.param()


@pytest.fixture(scope="module")
def fit(panel: pd.DataFrame) -> Fit:
    return fit_columns(panel, "cka")


def test_columns_are_the_papers_six(fit: Fit) -> None:
    assert [(c.column, c.group, c.regressors) for c in fit.columns] == [(n, *COLUMNS[n]) for n in range(1, 7)]
    assert [c.group for c in fit.columns] == ["rts", "nls"] * 3


def test_known_coefficients_are_recovered(fit: Fit) -> None:
    for number, group in ((5, "rts"), (6, "nls")):
        column = fit.column(number)
        for term, true in TRUE[group].items():
            # Six estimates of a seeded panel: beyond four standard errors one in 2,600 such sets would fall by chance.
            assert abs(column.coef[term] - true) < 4 * column.se[term]
            assert column.se[term] < 0.1


def test_slopes_and_clustered_errors_agree_with_statsmodels_and_pair_dummies(panel: pd.DataFrame, fit: Fit) -> None:
    for column in fit.columns:
        y, X, pair = rows_of(panel, column)
        n, G, k = len(y), pair.nunique(), len(column.regressors)
        dummies = pd.get_dummies(pair, dtype=float)
        plain = sm.OLS(y.to_numpy(), np.column_stack([X, dummies])).fit(
            cov_type="cluster", cov_kwds={"groups": pair.to_numpy(), "use_correction": False}
        )
        # Ours: G / (G - 1) for the clusters, (n - 1) / (n - k - 1) for k slopes and the constant; the pair effects,
        # nested in the clusters, do not count.
        factor = G / (G - 1) * (n - 1) / (n - k - 1)
        for i, name in enumerate(column.regressors):
            assert column.coef[name] == pytest.approx(plain.params[i], rel=1e-6)  # the agreement the project promises
            assert column.se[name] == pytest.approx(plain.bse[i] * np.sqrt(factor), rel=1e-6)


def test_constant_and_its_error_agree_with_statsmodels(panel: pd.DataFrame, fit: Fit) -> None:
    for column in fit.columns:
        y, X, pair = rows_of(panel, column)
        # The constant belongs to the mean pair: deviations from pair means, moved to the grand mean.
        within = sm.OLS(demean(y, pair) + y.mean(), sm.add_constant(demean(X, pair) + X.mean())).fit(
            cov_type="cluster", cov_kwds={"groups": pair, "use_correction": True}
        )
        assert column.coef["const"] == pytest.approx(within.params["const"], rel=1e-6)
        assert column.se["const"] == pytest.approx(within.bse["const"], rel=1e-6)


def test_t_p_and_intervals_are_students_with_one_less_than_the_clusters(fit: Fit) -> None:
    for column in fit.columns:
        student = stats.t(column.n_clusters - 1)
        for term in (*column.regressors, "const"):
            t = column.coef[term] / column.se[term]
            assert column.t[term] == same(t)
            assert column.p[term] == same(2 * student.cdf(-abs(t)))
            interval = column.coef[term] + np.array(student.interval(0.95)) * column.se[term]
            assert column.ci[term] == same(tuple(interval))


def test_r_squared_by_hand(panel: pd.DataFrame, fit: Fit) -> None:
    for column in fit.columns:
        y, X, pair = rows_of(panel, column)
        slopes = np.array([column.coef[name] for name in column.regressors])
        predicted = column.coef["const"] + X @ slopes
        residual_within = demean(y - predicted, pair)
        means, predicted_means = y.groupby(pair).mean(), predicted.groupby(pair).mean()
        total = ((y - y.mean()) ** 2).sum()
        n, G, k = len(y), pair.nunique(), len(column.regressors)
        inclusive = 1 - (residual_within**2).sum() / total
        assert column.r2 == same(
            {
                "within": 1 - (residual_within**2).sum() / (demean(y, pair) ** 2).sum(),
                "between": 1 - ((means - predicted_means) ** 2).sum() / ((means - means.mean()) ** 2).sum(),
                "overall": 1 - ((y - predicted) ** 2).sum() / total,
                "inclusive": inclusive,
                "adjusted": 1 - (1 - inclusive) * (n - 1) / (n - G - k),
            }
        )


def test_standardised_effects_variance_shares_and_inflation_by_hand(panel: pd.DataFrame, fit: Fit) -> None:
    for column in fit.columns:
        y, X, pair = rows_of(panel, column)
        X_within = demean(X, pair)
        df = len(y) - pair.nunique()
        sd_y = np.sqrt((demean(y, pair) ** 2).sum() / df)
        for i, name in enumerate(column.regressors):
            sum_within = (X_within[name] ** 2).sum()
            share = sum_within / ((X[name] - X[name].mean()) ** 2).sum()
            assert column.within[name] == same({"sd_within": np.sqrt(sum_within / df), "share_within": share})
            assert column.standardised[name] == same(column.coef[name] * np.sqrt(sum_within / df) / sd_y)
            # A single regressor has nothing to share variance with; statsmodels refuses to say so.
            vif = variance_inflation_factor(X_within.to_numpy(), i) if len(column.regressors) > 1 else 1
            assert column.vif[name] == same(vif)


def test_a_constant_added_to_the_response_moves_only_the_constant(fit: Fit, panel: pd.DataFrame) -> None:
    moved = fit_columns(panel.assign(shift_toward=panel["shift_toward"] + 3), "cka")
    for before, after in zip(fit.columns, moved.columns, strict=True):
        assert after.coef == same(before.coef | {"const": before.coef["const"] + 3})
        assert after.se == same(before.se)
        assert after.r2 == same(before.r2)


def test_prefix_counted_in_other_units_scales_only_its_own_coefficient(fit: Fit, panel: pd.DataFrame) -> None:
    scaled = fit_columns(panel.assign(prefix_len=panel["prefix_len"] * 4), "cka")
    for before, after in zip(fit.columns, scaled.columns, strict=True):
        assert after.coef == same(before.coef | {"prefix_len": before.coef["prefix_len"] / 4})
        assert after.t == same(before.t)
        assert after.standardised == same(before.standardised)


@pytest.mark.parametrize("change", ["row order", "pair labels"])
def test_row_order_and_pair_labels_do_not_matter(fit: Fit, panel: pd.DataFrame, change: Any) -> None:
    if change == "row order":
        changed = panel.sample(frac=1, random_state=0)
    else:
        labels = np.random.default_rng(0).permutation(panel["pair"].max() + 1) + 1000
        changed = panel.assign(pair=labels[panel["pair"]])
    for before, after in zip(fit.columns, fit_columns(changed, "cka").columns, strict=True):
        assert after.coef == same(before.coef)
        assert after.se == same(before.se)
        assert (after.n_obs, after.n_pairs, after.notes) == (before.n_obs, before.n_pairs, before.notes)


def test_response_chooses_the_panel_column() -> None:
    panel = simulate_panel()
    toward = fit_columns(panel, "cka").column(6).coef
    away = fit_columns(panel, "cka", "away").column(6).coef
    raw = fit_columns(panel, "cka", "raw").column(6).coef
    assert away == same({term: -value for term, value in toward.items()})
    assert raw == same({term: value / 2 for term, value in toward.items()})


def test_controls_enter_every_column() -> None:
    panel = simulate_panel()
    panel["log_frequency"] = np.random.default_rng(1).normal(size=len(panel))
    panel["shift_toward"] += 2 * panel["log_frequency"]
    for column in fit_columns(panel, "cka", controls=["log_frequency"]).columns:
        assert column.regressors == (*COLUMNS[column.column][1], "log_frequency")
        assert abs(column.coef["log_frequency"] - 2) < 4 * column.se["log_frequency"]  # as for the coefficients above


def test_undefined_rows_and_single_rows_are_counted() -> None:
    panel = simulate_panel()
    nls = panel.index[panel["group"] == "nls"]
    panel.loc[nls[[0, 1]], "shift_toward"] = np.nan  # leaves pair 0 with one row
    panel.loc[nls[3], "surprisal_norm"] = np.inf
    panel.loc[nls[4], ["shift_toward", "surprisal_norm"]] = np.nan  # counted once, for its response
    fit = fit_columns(panel, "cka")
    for column in fit.columns:
        if column.group == "rts":
            assert (column.n_obs, column.notes) == (180, ())
        else:
            # All columns of a group use the same rows, so the one without surprisal is out of column 2 too. Pairs 0 and
            # 1 have one row each, which goes with them.
            assert (column.n_obs, column.n_pairs) == (174, 58)
            assert column.notes == (
                "4 of 180 rows left out: 3 without a response, 1 without a regressor",
                "pairs of one row left out: 2; they say nothing about differences within pairs",
            )


def test_pairs_of_one_row_change_nothing_and_linearmodels_drops_them_too() -> None:
    panel = simulate_panel(n_pairs=60)
    single = panel["pair"].isin(range(55, 60)) & (panel["ratio"] > 0.25)
    with_singles, without = fit_columns(panel[~single], "cka"), fit_columns(panel[panel["pair"] < 55], "cka")
    for ours, column in zip(with_singles.columns, without.columns, strict=True):
        assert replace(ours, notes=()) == replace(column, notes=())
        assert (ours.n_obs, ours.n_pairs) == (165, 55)
        rows = panel[~single & (panel["group"] == ours.group)].set_index(["pair", "ratio"])
        X = rows[list(ours.regressors)].assign(prefix_len=rows["prefix_len"] / 1000, const=1.0)
        options = {"cov_type": "clustered", "cluster_entity": True, "group_debias": True, "debiased": True}
        with pytest.warns(SingletonWarning, match="5 singleton observations dropped"):
            theirs = PanelOLS(rows["shift_toward"], X, entity_effects=True, singletons=False).fit(
                **options, count_effects=False
            )
        assert ours.coef == same(theirs.params.to_dict())
        assert ours.se == same(theirs.std_errors.to_dict())
        # Counted as clusters they make the errors smaller: a factor of 60 / 59 in the place of 55 / 54, and more rows.
        kept = PanelOLS(rows["shift_toward"], X, entity_effects=True).fit(
            cov_type="clustered", cluster_entity=True, group_debias=True, debiased=True, count_effects=False
        )
        assert kept.std_errors["prefix_len"] < ours.se["prefix_len"]


def test_little_variance_within_pairs_is_noted() -> None:
    panel = simulate_panel()
    nls = panel["group"] == "nls"
    panel.loc[nls, "entropy_norm"] = panel["pair"] / 60 + panel["entropy_norm"] / 100
    fit = fit_columns(panel, "cka")
    assert fit.column(6).within["entropy_norm"]["share_within"] < 0.01
    assert [c.column for c in fit.columns if any("entropy_norm" in note for note in c.notes)] == [6]


def test_a_group_the_panel_lacks_is_left_out_and_noted() -> None:
    panel = simulate_panel()
    fit = fit_columns(panel[panel["group"] == "rts"], "cka")
    assert [c.column for c in fit.columns] == [1, 3, 5]
    assert all("no rows of group NLS: its columns are left out" in c.notes for c in fit.columns)
    assert fit.columns[0].coef == fit_columns(panel, "cka").column(1).coef


@pytest.mark.parametrize(
    ("change", "controls", "message"),
    [
        ({}, ["token_len"], r"token_len takes one value only \(2048\)"),
        ({"surprisal_norm": 0.0}, [], r"column 3 \(RTS\): surprisal_norm takes one value only \(0\)"),
        ({"surprisal_norm": lambda p: p["pair"] / 7}, [], "surprisal_norm is constant within every pair"),
        ({"entropy_norm": lambda p: 1e-9 * (1 + p["pair"])}, [], "entropy_norm is constant within every pair"),
        # Rounding to float32 leaves differences within pairs that are no information.
        (
            {"entropy_norm": lambda p: (1 + p["pair"]) / 7 * (1 + 1e-7 * (p.index % 3))},
            [],
            "entropy_norm is constant within every pair",
        ),
        ({}, ["pair"], "pair is constant within every pair"),
        ({}, ["surprisal_bits"], "surprisal_bits follows exactly from surprisal_norm within pairs"),
        ({}, ["ratio"], "ratio follows exactly from prefix_len within pairs"),
        (
            {"entropy_norm": lambda p: 2 * p["surprisal_norm"] - 1e-3 * p["prefix_len"] + p["pair"]},
            [],
            "entropy_norm follows exactly from prefix_len, surprisal_norm within pairs",
        ),
    ],
)
def test_unidentified_regressors_are_refused_by_name(change: Any, controls: list[str], message: str) -> None:
    panel = simulate_panel().assign(**change)
    with pytest.raises(NotIdentifiedError, match=message) as raised:
        fit_columns(panel, "cka", controls=controls)
    assert "\n" not in str(raised.value)


def test_regressors_in_any_unit_are_identified() -> None:
    panel = simulate_panel()
    fit = fit_columns(panel, "cka").column(6)
    tiny = fit_columns(panel.assign(entropy_norm=panel["entropy_norm"] * 1e-12), "cka").column(6)
    assert tiny.coef["entropy_norm"] == same(fit.coef["entropy_norm"] * 1e12)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda p: p,
            {"response": "sideways"},
            "unknown response 'sideways'; choose one of toward, matched, away, raw",
        ),
        (lambda p: p, {"controls": ["frequency"]}, "no column frequency; it has group, pair, ratio"),
        (lambda p: p, {"controls": ["group"]}, "column group does not hold numbers"),
        (lambda p: p, {"controls": ["entropy_norm"]}, "already in the model: entropy_norm"),
        (lambda p: p, {"controls": ["shift_toward"]}, "already in the model: shift_toward"),
        (lambda p: p, {"controls": ["ratio", "ratio"]}, "already in the model: ratio"),
        (lambda p: p.drop(columns="entropy_norm"), {}, "no column entropy_norm"),
        (lambda p: p.assign(group="other"), {}, "no rows of group nls or rts"),
        (lambda p: pd.concat([p, p.iloc[[7]]]), {}, "NLS pair 2 at ratio 0.375 more than once"),
        (lambda p: p[p["pair"] == 3], {}, "1 pairs with several complete rows, and clustered errors need 2"),
        # Pair 4 has one row, which says nothing about slopes: again a single cluster.
        (lambda p: p[(p["pair"] == 3) | ((p["pair"] == 4) & (p["ratio"] == 0.5))], {}, "1 pairs with several"),
        (lambda p: p.assign(shift_toward=np.nan), {}, "0 pairs with several complete rows"),
        (lambda p: p[p["ratio"] == 0.25], {}, "0 pairs with several complete .*nothing identifies prefix_len; build"),
        (lambda p: p[(p["pair"] < 2) & (p["ratio"] < 0.5)], {}, "4 rows for 4 parameters"),
        (
            lambda p: p.assign(cluster=7),
            {},
            r"^column 1 \(RTS\): all 60 pairs share documents, so that they are one cluster, and clustered errors need "
            "2; build the study with pairs of other documents$",
        ),
        (
            lambda p: p.assign(cluster=p["pair"] + (p.index == 4)),
            {},
            "^NLS pair 1 is in no cluster, or in several, and its effect needs one; mend the panel's column cluster$",
        ),
        (lambda p: p.assign(shift_toward=0.0), {}, "response shift_toward is constant within every pair"),
        (lambda p: p.assign(shift_toward=p["pair"] / 3), {}, "response shift_toward is constant within every pair"),
    ],
)
def test_unusable_panels_and_options_are_refused_in_one_line(
    change: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        fit_columns(change(simulate_panel()), "cka", **options)
    assert "\n" not in str(raised.value)


def test_the_fit_survives_strict_json(fit: Fit) -> None:
    assert Fit.from_dict(json.loads(json.dumps(fit.to_dict(), allow_nan=False))) == fit


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["columns"][0].update(regressors=["prefix_len", "entropy_norm"]),
        lambda data: data["columns"][5]["coef"].update(entropy_norm=0.0),
        lambda data: data.update(robustness={"confirmatory": []}),
        lambda data: data.pop("sha256"),
    ],
)
def test_an_altered_fit_is_refused(fit: Fit, change: Any) -> None:
    data = json.loads(json.dumps(fit.to_dict()))
    change(data)
    with pytest.raises(ValueError, match="altered"):
        Fit.from_dict(data)


def test_undefined_numbers_are_null_in_json(fit: Fit) -> None:
    column = fit.column(1)
    undefined = replace(column, r2=column.r2 | {"between": np.nan}, t=column.t | {"prefix_len": np.inf})
    text = json.dumps(replace(fit, columns=(undefined,)).to_dict(), allow_nan=False)
    assert json.loads(text)["columns"][0]["r2"]["between"] is None
    read = Fit.from_dict(json.loads(text)).column(1)
    assert np.isnan(read.r2["between"])
    assert np.isnan(read.t["prefix_len"])
    assert read.coef == column.coef


def test_the_json_follows_the_contract(fit: Fit) -> None:
    data = fit.to_dict()
    assert list(data) == ["schema", "metric", "response", "columns", "robustness", "sha256"]
    assert (data["schema"], data["metric"], data["response"]) == ("cladastats/fit/1", "cka", "toward")
    contract = {"column", "group", "regressors", "coef", "se", "t", "p", "ci", "r2", "n_obs", "n_pairs", "cov", "notes"}
    contract |= {"n_clusters", "wild_p"}
    for column in data["columns"]:
        assert set(column) == contract | {"standardised", "vif", "within"}
        assert set(column["coef"]) == {*column["regressors"], "const"}


def coefficients(fit: Fit) -> dict[str, Any]:
    return coefficients_from_fit(
        fit,
        tau_surprisal_bits=4.5,
        tau_entropy_bits=3.5,
        tau_quantile=0.7,
        vocab_size=VOCAB_SIZE,
        model="smollm2-135m",
        study={"seed": 1},
    )


def test_coefficients_are_those_of_column_six(fit: Fit) -> None:
    content = coefficients(fit)
    six = fit.column(6)
    symbols = {"lambda": "surprisal_norm", "gamma": "entropy_norm"}
    assert content == {
        "schema": "clada/coefficients/1",
        **{symbol: six.coef[term] for symbol, term in symbols.items()},
        "se": {symbol: six.se[term] for symbol, term in symbols.items()},
        "ci": {symbol: list(six.ci[term]) for symbol, term in symbols.items()},
        "p": {symbol: six.p[term] for symbol, term in symbols.items()},
        "metric": "cka",
        "response": "toward",
        "group": "nls",
        "column": 6,
        "tau_surprisal_bits": 4.5,
        "tau_entropy_bits": 3.5,
        "tau_quantile": 0.7,
        "vocab_size": VOCAB_SIZE,
        "model": "smollm2-135m",
        "study": {"seed": 1},
    }


def test_coefficients_need_column_six() -> None:
    panel = simulate_panel()
    with pytest.raises(CladaError, match="no column 6: its panel had no NLS rows"):
        coefficients(fit_columns(panel[panel["group"] == "rts"], "cka"))


@pytest.mark.parametrize("response", ["toward", "away"])  # of opposite signs
def test_summary_says_every_effect_with_its_interval(response: str) -> None:
    fit = fit_columns(simulate_panel(), "cka", response)
    prefix, load, reach = summary_sentences(fit, vocab_size=VOCAB_SIZE)
    for number in (1, 2):
        step = fit.column(number).within["prefix_len"]["sd_within"]
        low, high = (bound * step for bound in fit.column(number).ci["prefix_len"])
        assert f"{fit.column(number).coef['prefix_len'] * step:+.3g} [{low:+.3g}, {high:+.3g}] points" in prefix
        assert f"({step * 1000:.0f} tokens)" in prefix
        assert f"{fit.column(number).standardised['prefix_len']:+.2f}" in prefix
    for number in (5, 6):
        column = fit.column(number)
        for term in ("surprisal_norm", "entropy_norm"):
            step = column.within[term]["sd_within"]
            low, high = (bound * step for bound in column.ci[term])
            assert f"{column.coef[term] * step:+.3g} [{low:+.3g}, {high:+.3g}] points" in load
            assert f"{step * np.log2(VOCAB_SIZE):.2f}" in load
            assert f"{column.within[term]['share_within']:.1%} in {column.group.upper()}" in reach
    # Only the effect of surprisal in RTS is zero in the simulation.
    assert reach.endswith("the intervals that include zero are: surprisal in RTS.")


def test_summary_of_one_group_is_silent_on_the_other() -> None:
    panel = simulate_panel()
    sentences = summary_sentences(fit_columns(panel[panel["group"] == "nls"], "cka"), vocab_size=VOCAB_SIZE)
    assert len(sentences) == 3
    assert all("NLS" in sentence and "RTS" not in sentence for sentence in sentences)
    assert sentences[2].endswith("the intervals that include zero are: none.")
