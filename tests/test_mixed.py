"""Mixed models: lme4's values, another library's, and formulas and data that are refused."""

import json
from dataclasses import replace
from pathlib import Path

import mixedlm
import numpy as np
import pandas as pd
import pytest
from mixed_designs import CODINGS, DESIGNS, checksum, crossed_intercepts, near_singular
from scipy.stats import multivariate_normal, t
from statsmodels.regression.mixed_linear_model import MixedLM

import cladastats
from clada.errors import InputError
from cladastats.people.formula import grouping, model_columns, parse, variable

REFERENCE = json.loads((Path(__file__).parent / "reference" / "lme4.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trials():
    """A small experiment with columns of many kinds."""
    random = np.random.RandomState(0)
    subject, item = np.divmod(np.arange(12 * 10), 10)
    x = random.normal(0, 1, 120)
    rt = 400 + 20 * x + random.normal(0, 30, 12)[subject] + random.normal(0, 20, 10)[item]
    return pd.DataFrame(
        {
            "subject": subject,
            "item": item,
            "x": x,
            "length": random.randint(2, 9, 120),
            "condition": np.array(["plain", "odd"], dtype=object)[(subject + item) % 2],
            "rt": rt + random.normal(0, 40, 120),
        }
    )


# -- The right values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reml", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("name", DESIGNS)
def test_estimates_are_those_of_lme4(name, reml):
    """Tolerances are those of the specification; where both are at the maximum they agree to 1e-5 and better."""
    make, formula = DESIGNS[name]
    table = make()
    stored = REFERENCE["designs"][name]
    assert (checksum(table), formula) == (stored["checksum"], stored["formula"])
    wanted = stored["reml" if reml else "ml"]
    fit = cladastats.mixed_model(table, formula, reml=reml)
    assert list(fit.coef.index) == list(fit.se.index) == list(wanted["coef"])
    np.testing.assert_allclose(fit.coef, list(wanted["coef"].values()), rtol=1e-4)
    np.testing.assert_allclose(fit.se, list(wanted["se"].values()), rtol=5e-4)
    variances = pd.DataFrame(wanted["variances"]).reindex(columns=fit.variances.columns)
    names = ["grp", "var1", "var2"]
    assert fit.variances[names].fillna("").values.tolist() == variances[names].fillna("").values.tolist()
    # A variance of zero has no relative error; what either calls zero is a millionth of the residual's.
    np.testing.assert_allclose(
        fit.variances["vcov"], variances["vcov"], rtol=1e-3, atol=1e-6 * variances["vcov"].iloc[-1]
    )
    assert abs(fit.loglik - wanted["loglik"]) < 0.01
    assert (fit.singular, fit.n, fit.dropped) == (wanted["singular"], wanted["n"], len(table) - wanted["n"])


def test_singular_and_other_fits_are_among_the_stored():
    singular = {name: values["ml"]["singular"] for name, values in REFERENCE["designs"].items()}
    assert {name for name, value in singular.items() if value} == {"singular", "category_slopes"}


@pytest.mark.parametrize("coding", REFERENCE["codings"], ids=lambda coding: coding["formula"])
def test_columns_are_those_of_lme4(coding):
    assert (coding["design"], coding["formula"]) in CODINGS
    table = DESIGNS[coding["design"]][0]()
    parts = parse(coding["formula"])
    found = {text: variable(table, tree, text) for text, tree in parts.trees.items()}
    columns, names = model_columns(parts.fixed, found, len(table))
    assert names == list(coding["fixed"])
    # R keeps 15 digits of a number in JSON.
    np.testing.assert_allclose(columns.sum(axis=0), list(coding["fixed"].values()), rtol=1e-12, atol=1e-9)
    # lme4 sorts terms by their number of levels, and numbers those of one factor.
    effects = sorted((term.group, model_columns(term.terms, found, len(table))[1]) for term in parts.random)
    wanted = [name.rpartition(".")[0] if name[-1].isdigit() else name for name in coding["groups"]]
    assert effects == sorted(zip(wanted, coding["effects"], strict=True))


def test_one_grouping_factor_agrees_with_statsmodels():
    table = near_singular()
    fit = cladastats.mixed_model(table, "rt ~ x + (1 + x | subject)", reml=True)
    columns = np.column_stack([np.ones(len(table)), table["x"]])
    other = MixedLM(table["rt"].to_numpy(), columns, table["subject"], columns).fit(reml=True, method="lbfgs")
    # The search of statsmodels ends earlier: it leaves a part in 1e4 of standard errors, and 1e-3 of variances.
    np.testing.assert_allclose(fit.coef, other.fe_params, rtol=1e-6)
    np.testing.assert_allclose(fit.se, other.bse_fe, rtol=5e-4)
    np.testing.assert_allclose(
        fit.variances["vcov"].iloc[[0, 1, 2]], other.cov_re[np.array([0, 1, 1]), np.array([0, 1, 0])], rtol=1e-3
    )
    np.testing.assert_allclose(fit.variances["vcov"].iloc[3], other.scale, rtol=1e-5)
    assert abs(fit.loglik - other.llf) < 1e-5


def covariance(fit, table):
    """The responses' covariance that a fit of (1 | subject) + (1 | item) states, row by row."""
    value = dict(zip(fit.variances["grp"], fit.variances["vcov"], strict=True))
    same = {name: np.equal.outer(table[name].to_numpy(), table[name].to_numpy()) for name in ("subject", "item")}
    return value["Residual"] * np.eye(len(table)) + sum(value[name] * same[name] for name in same)


def test_the_likelihood_is_that_of_the_normal_distribution(trials):
    fit = cladastats.mixed_model(trials, "rt ~ x + (1 | subject) + (1 | item)")
    mean = fit.coef["(Intercept)"] + fit.coef["x"] * trials["x"]
    assert fit.loglik == pytest.approx(
        multivariate_normal(mean, covariance(fit, trials)).logpdf(trials["rt"]), abs=1e-8
    )


def test_degrees_of_freedom_are_satterthwaites(trials):
    """2 var(c)^2 / var(var(c)) by differences of the dense covariance; the variances' own by the likelihood's."""
    table = trials.assign(x=trials["x"] + 5)  # the intercept, at zero, is far from the data
    fit = cladastats.mixed_model(table, "rt ~ x + (1 | subject) + (1 | item)", reml=True)
    columns = np.column_stack([np.ones(len(table)), table["x"]])
    parts = [np.equal.outer(table[name].to_numpy(), table[name].to_numpy()) * 1.0 for name in ("subject", "item")]
    parts.append(np.eye(len(table)))
    found = fit.variances["vcov"].to_numpy()

    def deviance(variances):
        whole = sum(value * part for value, part in zip(variances, parts, strict=True))
        inverse = np.linalg.inv(whole)
        vcov = np.linalg.inv(columns.T @ inverse @ columns)
        left = table["rt"] - columns @ (vcov @ columns.T @ inverse @ table["rt"])
        volume = np.linalg.slogdet(whole)[1] - np.linalg.slogdet(vcov)[1]
        return volume + left @ inverse @ left, np.diag(vcov)

    steps = np.diag(found * 1e-3)
    gradient = np.array([(deviance(found + h)[1] - deviance(found - h)[1]) / (2 * h.sum()) for h in steps])
    hessian = np.array(
        [
            [
                sum(
                    sign * deviance(found + a * g + b * h)[0]
                    for a, b, sign in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
                )
                / (4 * g.sum() * h.sum())
                for h in steps
            ]
            for g in steps
        ]
    )
    wanted = 2 * fit.se.to_numpy() ** 4 / np.einsum("ki,kl,li->i", gradient, 2 * np.linalg.inv(hessian), gradient)
    np.testing.assert_allclose(fit.df, wanted, rtol=1e-3)  # of second differences
    np.testing.assert_allclose(fit.p, 2 * t.sf(np.abs(fit.t), fit.df))
    np.testing.assert_allclose(fit.ci["high"] - fit.coef, fit.se * t.ppf(0.975, fit.df))


def test_units_change_nothing_but_units():
    """A predictor in other units and far from zero, and a response likewise."""
    table = crossed_intercepts()
    formula = "rt ~ surprisal + (1 + surprisal | subject) + (1 | item)"
    plain = cladastats.mixed_model(table, formula, reml=True)
    moved = table.assign(rt=1e-3 * table["rt"] + 50, surprisal=1e6 * table["surprisal"])
    fit = cladastats.mixed_model(moved, formula, reml=True)
    # Far from the maximum's own precision: products of numbers that differ by 1e6 keep ten digits.
    assert fit.coef["surprisal"] == pytest.approx(1e-9 * plain.coef["surprisal"], rel=1e-7)
    np.testing.assert_allclose(fit.t["surprisal"], plain.t["surprisal"], rtol=1e-5)
    np.testing.assert_allclose(fit.df, plain.df, rtol=1e-3)
    np.testing.assert_allclose(fit.variances["vcov"].iloc[-1], 1e-6 * plain.variances["vcov"].iloc[-1], rtol=1e-5)
    assert fit.singular == plain.singular


def test_the_order_of_rows_and_the_kind_of_columns_change_nothing(trials):
    formula = "rt ~ condition * length + (1 | subject) + (1 | item)"
    plain = cladastats.mixed_model(trials, formula)
    other = trials.sample(frac=1, random_state=1).assign(
        subject=lambda frame: frame["subject"].map("s{:02d}".format).astype("category"),
        item=lambda frame: frame["item"].astype("string"),
        condition=lambda frame: pd.Categorical(frame["condition"], ["odd", "never", "plain"]),
        length=lambda frame: frame["length"].astype("Int64"),
        rt=lambda frame: frame["rt"].astype("Float64"),
    )
    fit = cladastats.mixed_model(other, formula)
    assert list(fit.coef.index) == ["(Intercept)", "conditionplain", "length", "conditionplain:length"]
    np.testing.assert_allclose(fit.coef, plain.coef, rtol=1e-6)  # sums in another order
    assert fit.loglik == pytest.approx(plain.loglik, abs=1e-8)
    truth = trials.assign(condition=trials["condition"] == "plain")
    for kind in ("bool", "boolean", "object"):
        fit = cladastats.mixed_model(truth.astype({"condition": kind}), formula)
        assert list(fit.coef.index)[1] == "conditionTRUE"
        np.testing.assert_allclose(fit.coef, plain.coef, rtol=1e-6)


def test_rows_with_missing_values_are_left_out_and_counted(trials):
    holes = trials.astype({"length": "Int64", "subject": "string"})
    holes.loc[[3, 4], "rt"] = np.nan
    holes.loc[4, "x"] = None
    holes.loc[7, "length"] = pd.NA
    holes.loc[9, "subject"] = None
    formula = "rt ~ x + length + (1 | subject) + (1 | item)"
    fit = cladastats.mixed_model(holes.assign(unused=np.nan), formula)
    assert (fit.n, fit.dropped) == (116, 4)
    pd.testing.assert_series_equal(fit.coef, cladastats.mixed_model(holes.dropna(), formula).coef)
    assert "4 rows left out because a value is missing" in repr(fit)


def test_a_fit_shows_itself(trials):
    fit = cladastats.mixed_model(trials, "rt ~ x + (1 | subject) + (1 | item)")
    table = fit.table
    assert list(table.columns) == ["coef", "se", "df", "t", "p", "ci_low", "ci_high"]
    assert fit.groups == {"subject": 12, "item": 10}
    assert fit.show() == repr(fit)
    assert fit.show().startswith("Linear mixed model by maximum likelihood: rt ~ x + (1 | subject) + (1 | item)\n")
    assert f"{fit.coef['x']:.4f}" in fit.show("markdown")
    latex = fit.show("latex")
    assert r"rt \textasciitilde{} x + (1 $|$ subject)" in latex
    assert latex.count(r"\begin{tabular}") == 2
    assert "<table" in fit._repr_html_()
    assert fit.show("csv").splitlines()[0] == "term,coef,se,df,t,p,ci_low,ci_high"
    loaded = json.loads(fit.show("json"))
    assert loaded["terms"][1]["coef"] == fit.coef["x"]
    assert loaded["variances"][-1] == {
        "grp": "Residual",
        "var1": None,
        "var2": None,
        "vcov": fit.variances["vcov"].iloc[-1],
    }
    with pytest.raises(InputError, match="unknown table format 'word'; choose one of text, markdown, latex, csv"):
        fit.show("word")


def test_groups_of_several_columns(trials):
    codes = grouping(
        trials.assign(subject=trials["subject"].astype(float).where(trials.index != 5)), ("subject", "condition")
    )
    assert codes[5] == -1
    assert len(set(codes)) == 12 * 2 + 1


def test_a_search_that_nothing_confirms_is_refused(trials, monkeypatch):
    """Searches that each end elsewhere, as where the likelihood has many maxima."""
    ends = iter(range(100))
    search = mixedlm.optimizeLmer
    monkeypatch.setattr(
        mixedlm, "optimizeLmer", lambda *args, **kwargs: replace(search(*args, **kwargs), deviance=next(ends))
    )
    with pytest.raises(InputError) as refused:
        cladastats.mixed_model(trials, "rt ~ x + (1 | subject) + (1 | item)")
    assert str(refused.value) == (
        "the model did not converge: no two of 12 searches ended at its highest likelihood; let fewer effects vary"
    )
    assert next(ends) == 12


# -- What is refused ------------------------------------------------------------------------------------------------

BROKEN = {
    "rt": (3, "'~' is missing between the response and its predictors"),
    "~ x + (1 | item)": (1, "the response is missing before '~'"),
    "rt ~ x + + (1 | item)": (10, "a column is expected here, not '+'"),
    "rt ~ x + (1 | item": (10, "this parenthesis is not closed"),
    "rt ~ x) + (1 | item)": (7, "')' is not expected"),
    "rt ~ x (1 | item)": (8, "'+' is missing before this random term"),
    "rt ~ x length + (1 | item)": (8, "'length' is not expected"),
    "rt ~ x & length + (1 | item)": (8, "'&' means nothing there"),
    "rt ~ x * (1 | item)": (10, "random terms can only be added"),
    "rt ~ (1 | item):x": (16, "numbers and random terms can only be added"),
    "rt ~ x - (1 | item)": (10, "a random term cannot be taken away"),
    "rt ~ x + (0 | item)": (10, "no effect is before the bar"),
    "rt ~ x + (1 | )": (15, "a grouping column is expected here"),
    "rt ~ x + (1 | cut(item))": (18, "functions of grouping columns are not supported; add the result as a column"),
    "rt ~ . + (1 | item)": (6, "a column is expected here, not '.'"),
    "rt ~ x^2 + (1 | item)": (8, "in formulas a power of one column is that column; its square is I(x^2)"),
    "rt ~ log() + (1 | item)": (6, "log() takes one expression"),
    "rt ~ I(x y) + (1 | item)": (6, "this is no expression of columns"),
    "rt ~ 2 * x + (1 | item)": (6, "a column is expected here, not '2'"),
}


@pytest.mark.parametrize("formula", BROKEN)
def test_a_formula_that_cannot_be_read_names_the_place(trials, formula):
    place, what = BROKEN[formula]
    with pytest.raises(InputError) as refused:
        cladastats.mixed_model(trials, formula)
    assert str(refused.value) == f"cannot read the formula {formula!r} at character {place}: {what}"


@pytest.mark.parametrize("function", ["poly(x, 2)", "offset(x)", "factor(length)", "ns(x)", "__import__(x)"])
def test_functions_that_are_not_known_are_refused_by_name(trials, function):
    name = function.partition("(")[0]
    with pytest.raises(InputError, match=rf"the function {name}\(\) is not supported, only I, abs, .* add its result"):
        cladastats.mixed_model(trials, f"rt ~ {function} + (1 | item)")


REFUSED = {
    "rt ~ x": "the formula 'rt ~ x' has no random effect; add one, as (1 | subject)",
    "rt ~ speed + (1 | item)": (
        "no column 'speed' in the data; columns are subject, item, x, length, condition, rt, twice, same, all_one, "
        "infinite, row, empty, when, mixed, ordered, one_group, item_too, gaps"
    ),
    "rt ~ x + (1 | reader)": "no column 'reader' in the data; columns are subject, item, x, length, condition, rt, "
    "twice, same, all_one, infinite, row, empty, when, mixed, ordered, one_group, item_too, gaps",
    "condition ~ x + (1 | item)": "the response condition holds categories, not numbers",
    "rt ~ all_one + (1 | item)": "all_one has the same value in every row, which the intercept holds already; "
    "leave it out",
    "all_one ~ x + (1 | item)": "the response all_one is 1 in every row; there is nothing to explain",
    "rt ~ one_group + (1 | item)": "one_group has one level only, 'a', in the rows that are used; leave it out",
    "rt ~ x + same + (1 | item)": "among the predictors, same is determined by x; leave one of them out",
    "rt ~ x + length + twice + (1 | item)": "among the predictors, twice is determined by x and length; "
    "leave one of them out",
    "rt ~ x + x:condition + length:condition + (1 + x + same | item)": "among the effects that vary by item, same is "
    "determined by x; leave one of them out",
    "rt ~ infinite + (1 | item)": "column 'infinite' is infinite in 1 row; leave these out",
    "rt ~ log(x) + (1 | item)": "log(x) is no finite number in 53 rows; leave these out or compute something else",
    "rt ~ scale(all_one) + (1 | item)": "scale(all_one) is no finite number in 120 rows; leave these out or compute "
    "something else",
    "rt ~ log(condition) + (1 | item)": "column 'condition' holds categories, with which nothing can be computed",
    "rt ~ when + (1 | item)": "column 'when' holds datetime64[us], neither numbers nor categories",
    "rt ~ mixed + (1 | item)": "column 'mixed' holds values of several kinds, neither numbers nor categories",
    "rt ~ ordered + (1 | item)": "column 'ordered' is an ordered category, which lme4 codes by polynomials; "
    "make it unordered with .cat.as_unordered(), or numeric",
    "rt ~ empty + (1 | item)": "no row has a value in every column of the formula",
    "rt ~ x + (1 | one_group)": "the grouping factor one_group has one level; an effect that varies needs several",
    "rt ~ x + (1 | row)": "the grouping factor row has a level for every row, so that its effect is the residual; "
    "leave it out",
    "rt ~ x + (1 | subject:item)": "the grouping factor subject:item has a level for every row, so that its effect is "
    "the residual; leave it out",
    "rt ~ x + (1 + x * length * condition | subject) + (1 + x * length * condition * gaps | item)": (
        "10 levels of item with 16 effects each are too many for 120 rows; let fewer effects vary"
    ),
    "rt ~ x + (1 | item) + (1 + x | item)": "(Intercept) varies by item in two terms, which cannot be told apart; "
    "keep one",
    "rt ~ x + (1 | item) + (1 | item_too)": "(Intercept) varies by item_too, whose levels are those of item, in two "
    "terms, which cannot be told apart; keep one",
    "rt ~ 0 + (1 | item)": "the formula has neither an intercept nor a predictor outside of bars; leave the 0 out",
    "I(3 * x + length) ~ x + length + (1 | item)": "the predictors determine the response exactly; a regression has no "
    "error to estimate",
}


@pytest.mark.parametrize("formula", REFUSED)
def test_data_that_cannot_be_used_are_refused(trials, formula):
    table = trials.assign(
        twice=3 * trials["x"] - trials["length"],
        same=trials["x"],
        all_one=1,
        infinite=trials["x"].where(trials.index != 4, np.inf),
        row=trials.index,
        empty=np.nan,
        when=pd.Timestamp("2026-01-01"),
        mixed=[1, "a"] * 60,
        ordered=pd.Categorical(trials["condition"], ordered=True),
        one_group="a",
        item_too=trials["item"].map("i{}".format),
        gaps=trials["x"] ** 2,
    )
    with pytest.raises(InputError) as refused:
        cladastats.mixed_model(table, formula)
    assert str(refused.value) == REFUSED[formula]


def test_other_things_than_a_frame_and_a_formula_are_refused(trials):
    with pytest.raises(InputError, match="the data must be a pandas DataFrame, not dict"):
        cladastats.mixed_model(trials.to_dict(), "rt ~ x + (1 | item)")
    with pytest.raises(InputError, match="a formula is text, as 'rt ~ surprisal"):
        cladastats.mixed_model(trials, None)
    twice = pd.concat([trials, trials[["x"]]], axis=1)
    with pytest.raises(InputError, match="the data has several columns 'x'; give each its own name"):
        cladastats.mixed_model(twice, "rt ~ x + (1 | item)")
    with pytest.raises(InputError, match="2 rows are too few for 2 coefficients"):
        cladastats.mixed_model(trials.head(2), "rt ~ x + (1 | item)")
