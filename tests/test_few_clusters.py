"""Errors of clusters, few and many, against pyfixest, linearmodels, a jackknife and a bootstrap by hand."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyfixest
import pytest
import statsmodels.api as sm
from linearmodels.panel import PanelOLS
from scipy import stats
from test_regress import same, simulate_panel
from test_robust import FULL, Y, nls

from clada.errors import NotIdentifiedError
from cladastats.panel.clustered import WILD_DRAWS, FewClusters
from cladastats.panel.columns import complete_rows, fit_columns, summary_sentences
from cladastats.panel.contrasts import group_difference, ordered
from cladastats.panel.power import power
from cladastats.panel.robustness import between
from cladastats.panel.within import (
    FEW_CLUSTERS,
    Within,
    bootstrap,
    clusters_of,
    mean_summary,
    pair_effects_summary,
    per_pair,
    permutation,
    within_summary,
)
from cladastats.results.fit import COLUMNS, Fit


def few_panel() -> pd.DataFrame:
    """20 pairs, some with two rows, in 14 clusters of one to three."""
    panel = simulate_panel(n_pairs=20).drop(index=[4, 11, 70])
    return panel.assign(cluster=np.array([0, 1, 1, 2, 2, 2, *range(3, 14), 13, 13, 12])[panel["pair"]])


@pytest.fixture(scope="module")
def few_fit() -> Fit:
    return fit_columns(few_panel(), "cka")


def test_errors_of_few_clusters_are_pyfixests_with_pair_effects(few_fit: Fit) -> None:
    factor = np.sqrt(13 / 14)
    for column in few_fit.columns:
        data = complete_rows(few_panel(), column.group, Y, FULL)[0]
        theirs = pyfixest_with_pair_effects(data, column.regressors)
        # pyfixest demeans by iteration, to 1e-8 of a value; its own small-sample factors, meant for CR1, are off.
        assert [column.coef[name] for name in column.regressors] == pytest.approx(list(theirs.coef()), rel=1e-6)
        assert [column.se[name] for name in column.regressors] == pytest.approx(list(theirs.se() * factor), rel=1e-6)
        assert column.cov == "clustered by document, CR3 (jackknife)"
        assert (column.n_pairs, column.n_clusters) == (20, 14)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, for what pyfixest does to its own copy
def pyfixest_with_pair_effects(data: pd.DataFrame, names: Any) -> Any:
    with pytest.warns(DeprecationWarning, match="inplace"):
        return pyfixest.feols(
            f"{Y} ~ {' + '.join(names)} | pair", data.reset_index(), vcov={"CRV3": "cluster"},
            ssc=pyfixest.ssc(k_adj=False, G_adj=False),
        )  # fmt: skip


def test_errors_of_few_clusters_are_a_jackknife_by_hand(few_fit: Fit) -> None:
    for column in few_fit.columns:
        data = complete_rows(few_panel(), column.group, Y, FULL)[0]
        names = list(column.regressors)

        def slopes(rows: pd.DataFrame, names: list[str] = names) -> np.ndarray:
            dummies = pd.get_dummies(rows.index.get_level_values("pair"), dtype=float).to_numpy()
            return np.linalg.lstsq(np.column_stack([rows[names], dummies]), rows[Y])[0][: len(names)]

        moved = np.array([slopes(data[data["cluster"] != c]) - slopes(data) for c in data["cluster"].unique()])
        variance = 13 / 14 * moved.T @ moved
        assert [column.se[name] for name in names] == same(np.sqrt(np.diag(variance)).tolist())
        # The constant is the response less the regressors' part, at the means of all rows.
        mean = data[names].mean()
        assert column.coef["const"] == same(data[Y].mean() - mean @ slopes(data))
        assert column.se["const"] == same(np.sqrt(mean @ variance @ mean))
        student = stats.t(13)
        for term in (*names, "const"):
            assert column.p[term] == same(2 * student.sf(abs(column.coef[term] / column.se[term])))
            interval = column.coef[term] + np.array(student.interval(0.95)) * column.se[term]
            assert column.ci[term] == same(tuple(interval))


def test_errors_of_many_clusters_of_pairs_are_those_of_linearmodels_and_statsmodels() -> None:
    panel = simulate_panel(n_pairs=120)
    panel["cluster"] = panel["pair"] // 2
    for column in fit_columns(panel, "cka").columns:
        assert (column.cov, column.n_pairs, column.n_clusters, column.wild_p) == (
            "clustered by document, CR1", 120, 60, {}
        )  # fmt: skip
        data = complete_rows(panel, column.group, Y, FULL)[0]
        names = list(column.regressors)
        theirs = PanelOLS(data[Y], data[names].assign(const=1.0), entity_effects=True).fit(
            cov_type="clustered", clusters=data[["cluster"]], group_debias=True, debiased=True, auto_df=False,
            count_effects=False,
        )  # fmt: skip
        assert column.se == same(theirs.std_errors.to_dict())
        dummies = pd.get_dummies(data.index.get_level_values("pair"), dtype=float).to_numpy()
        plain = sm.OLS(data[Y].to_numpy(), np.column_stack([data[names], dummies])).fit(
            cov_type="cluster", cov_kwds={"groups": data["cluster"].to_numpy(), "use_correction": False}
        )
        factor = 60 / 59 * 359 / (360 - len(names) - 1)
        # 120 dummies are a worse conditioned system.
        expected = (plain.bse[: len(names)] * np.sqrt(factor)).tolist()
        assert [column.se[name] for name in names] == pytest.approx(expected, rel=1e-8)
        interval = column.coef["prefix_len"] + np.array(stats.t(59).interval(0.95)) * column.se["prefix_len"]
        assert column.ci["prefix_len"] == same(tuple(interval))


def test_jackknife_errors_end_at_fifty_clusters() -> None:
    panel = simulate_panel(n_pairs=FEW_CLUSTERS)
    many = fit_columns(panel, "cka")
    assert {column.cov for column in many.columns} == {"clustered by pair, CR1"}
    assert all(column.wild_p == {} for column in many.columns)
    fewer = fit_columns(panel[panel["pair"] > 0], "cka")
    assert {column.cov for column in fewer.columns} == {"clustered by pair, CR3 (jackknife)"}
    for column in fewer.columns:
        assert list(column.wild_p) == list(column.regressors)
        assert all(1 / (1 + WILD_DRAWS) <= p <= 1 for p in column.wild_p.values())


def test_every_pair_is_a_cluster_where_the_panel_says_nothing_or_so() -> None:
    panel = simulate_panel()
    fit = fit_columns(panel, "cka")
    assert fit_columns(panel.assign(cluster=panel["pair"] + 100), "cka") == fit
    assert fit_columns(panel.drop(columns="token_len"), "cka") == fit


@pytest.mark.parametrize("panel", [few_panel(), simulate_panel(n_pairs=9)], ids=["documents", "pairs"])
def test_sums_have_the_errors_of_the_libraries(panel: pd.DataFrame) -> None:
    data = nls(panel)
    deviations = data - data.groupby(level="pair").transform("mean")
    for number in (2, 4, 6):
        names = list(COLUMNS[number][1])
        expected = FewClusters(deviations[Y], deviations[names], clusters_of(data)).errors()
        coef, se = Within.of(data, Y, names).fit()
        assert se.tolist() == same(list(expected.values()))
        theirs = PanelOLS(data[Y], data[names].assign(const=1.0), entity_effects=True).fit()
        assert coef.tolist() == same(theirs.params[names].tolist())
        for i, (name, term) in enumerate(within_summary(Within.of(data, Y, names)).items()):
            half = stats.t.ppf(0.975, data["cluster"].nunique() - 1) * se[i]
            assert term["ci"] == same([coef[i] - half, coef[i] + half]), name


def brute_force_p(data: pd.DataFrame, names: list[str], i: int, points: np.ndarray) -> float:
    """The restricted wild cluster bootstrap with pair dummies, every draw fitted anew, by CR1 t statistics."""
    dummies = pd.get_dummies(data.index.get_level_values("pair"), dtype=float).to_numpy()
    x = np.column_stack([data[names], dummies])
    clusters = clusters_of(data)
    inverse = np.linalg.pinv(x)

    def t_of(y: np.ndarray) -> np.ndarray:
        coef = inverse @ y
        scores = inverse[i][:, None] * (y - x @ coef)
        sums = np.array([scores[clusters == g].sum(0) for g in range(clusters.max() + 1)])
        return coef[i] / np.sqrt((sums**2).sum(0))

    y = data[Y].to_numpy()[:, None]
    others = np.delete(x, i, axis=1)
    fitted = others @ (np.linalg.pinv(others) @ y)
    weights = np.random.default_rng(5).choice(points, (clusters.max() + 1, WILD_DRAWS))[clusters]
    return float((abs(t_of(fitted + (y - fitted) * weights)) >= abs(t_of(y))).mean())


@pytest.mark.parametrize(
    ("pairs", "points"),
    [
        (16, np.array([-1, 1])),  # Rademacher
        (9, np.sqrt([0.5, 1, 1.5, 0.5, 1, 1.5]) * [1, 1, 1, -1, -1, -1]),  # Webb
        (13, np.sqrt([0.5, 1, 1.5, 0.5, 1, 1.5]) * [1, 1, 1, -1, -1, -1]),  # 2^13 patterns, fewer than draws
        (14, np.array([-1, 1])),
    ],
)
def test_wild_p_is_that_of_a_bootstrap_by_brute_force(pairs: int, points: np.ndarray) -> None:
    data = nls(simulate_panel(n_pairs=pairs, noise=1.0))
    names = list(FULL)
    deviations = data - data.groupby(level="pair").transform("mean")
    model = FewClusters(deviations[Y], deviations[names], clusters_of(data))
    found = model.wild_p()
    assert found == model.wild_p()  # seeded
    for i, name in enumerate(names):
        expected = brute_force_p(data, names, i, points)
        # Two bootstraps of 9,999 draws with draws of their own: four standard errors of their difference.
        assert found[name] == pytest.approx(
            expected, abs=4 * np.sqrt(2 * expected * (1 - expected) / WILD_DRAWS) + 1e-4
        )


def test_a_coefficient_of_which_one_cluster_tells_all_is_refused() -> None:
    panel = simulate_panel(n_pairs=12)
    alone = panel["entropy_norm"].where(panel["pair"] == 3, panel["pair"] / 12)
    with pytest.raises(NotIdentifiedError, match="not identified without one of the 12 clusters") as raised:
        fit_columns(panel.assign(entropy_norm=alone), "cka")
    assert str(raised.value).startswith("column 5 (RTS): prefix_len, surprisal_norm, entropy_norm are")
    data = nls(panel.assign(entropy_norm=alone))
    assert not Within.of(data, Y, FULL).identified()
    # Without one of two pairs there is one left, whose three rows do not tell three regressors apart.
    with pytest.raises(NotIdentifiedError) as raised:
        fit_columns(panel[panel["pair"] < 2], "cka")
    assert str(raised.value) == (
        "column 5 (RTS): prefix_len, surprisal_norm, entropy_norm are not identified without one of the 2 clusters, "
        "and errors of fewer than 50 leave out each in turn (jackknife); add pairs"
    )
    with pytest.raises(NotIdentifiedError, match="without one of 12 clusters, which jackknife errors need; add pairs"):
        pair_effects_summary(data, Y, FULL)
    assert bootstrap(Within.of(data, Y, FULL), np.random.default_rng(0), 99) == {}


def test_steps_means_and_pairs_follow_the_same_rule() -> None:
    data = nls(few_panel())
    labels = data["cluster"].unique()

    def jackknife(estimate: Any) -> float:
        whole = estimate(data)
        return np.sqrt(13 / 14 * sum((estimate(data[data["cluster"] != c]) - whole) ** 2 for c in labels))

    mean = mean_summary(data, Y)
    assert mean["coef"] == same(data.groupby(level="pair")[Y].mean().mean())
    assert mean["se"] == same(jackknife(lambda rows: rows.groupby(level="pair")[Y].mean().mean()))
    assert mean["p"] == same(2 * stats.t.sf(abs(mean["coef"] / mean["se"]), 13))

    def step(rows: pd.DataFrame) -> float:
        dummies = pd.get_dummies(rows.index.get_level_values("pair"), dtype=float).to_numpy()
        ratio = rows.index.get_level_values("ratio").to_numpy()
        x = np.column_stack([ratio >= 0.375, ratio >= 0.5, dummies])
        return np.linalg.lstsq(x.astype(float), rows[Y])[0][1]

    second = ordered(data, Y)["steps"][1]
    half = stats.t.ppf(0.975, 13) * jackknife(step)
    assert second["ci"] == same([step(data) - half, step(data) + half])

    names = ["surprisal_norm", "entropy_norm"]

    def across(rows: pd.DataFrame) -> float:
        means = rows.groupby(level="pair").mean()
        return np.linalg.lstsq(np.column_stack([means[names], np.ones(len(means))]), means[Y])[0][0]

    found = between(data, Y, names)["surprisal_norm"]
    assert (found["coef"], found["se"]) == same((across(data), jackknife(across)))
    # 14 clusters leave 13 degrees of freedom, 20 pair means less three coefficients 17.
    assert found["p"] == same(2 * stats.t.sf(abs(found["coef"] / found["se"]), 13))

    assert per_pair(data, Y)["slopes"] == 14


def test_means_of_many_clusters_have_the_plain_error() -> None:
    data = nls(simulate_panel(n_pairs=60))
    means = data.groupby(level="pair")[Y].mean()
    assert mean_summary(data, Y)["se"] == same(means.sem())
    fewer = data.loc[:40]  # the jackknife's is the same
    assert mean_summary(fewer, Y)["se"] == same(fewer.groupby(level="pair")[Y].mean().sem())
    both = data.assign(cluster=np.minimum(data.index.get_level_values("pair"), 54))
    theirs = sm.OLS(means, np.ones(60)).fit(
        cov_type="cluster", cov_kwds={"groups": np.minimum(means.index, 54), "use_correction": False}
    )
    assert mean_summary(both, Y)["se"] == same(float(theirs.bse.iloc[0]) * np.sqrt(55 / 54))


def test_pairs_of_a_cluster_have_one_slope_and_are_dealt_the_same_order() -> None:
    data = nls(simulate_panel(n_pairs=12, noise=1.0))
    twice = pd.concat({0: data, 100: data}, names=["copy"]).reset_index()
    twice["pair"] += twice.pop("copy")
    twice["cluster"] = twice["pair"] % 100
    twice = twice.set_index(["pair", "ratio"])
    # Every pair twice in one cluster says no more than every pair once.
    for key in ("median", "rising", "wilcoxon_p", "slopes"):
        assert per_pair(twice, Y)[key] == same(per_pair(data, Y)[key])
    once, copied = (permutation(rows, Y, np.random.default_rng(0), 199) for rows in (data, twice))
    assert once["p"] == copied["p"]
    coef, se = Within.of(data, Y, FULL).fit()
    for a, b in zip((coef, se), Within.of(twice, Y, FULL).fit(), strict=True):
        assert a.tolist() == same(b.tolist())
    assert bootstrap(Within.of(twice, Y, FULL), np.random.default_rng(0), 99) == {
        name: {key: same(value) for key, value in term.items()}
        for name, term in bootstrap(Within.of(data, Y, FULL), np.random.default_rng(0), 99).items()
    }


def test_differences_and_power_count_clusters(few_fit: Fit) -> None:
    found = group_difference(few_fit, 0.05)
    assert found is not None
    a, b = few_fit.column(1).se["prefix_len"], few_fit.column(2).se["prefix_len"]
    assert found["prefix_len"]["df"] == same((a**2 + b**2) ** 2 / ((a**4 + b**4) / 13))
    smallest = next(p for p in power(few_fit) if (p["column"], p["term"]) == (6, "entropy_norm"))
    t = stats.t.ppf([0.975, 0.8], 13).sum()
    assert smallest["smallest_effect"] == same(t * few_fit.column(6).se["entropy_norm"])
    reach = summary_sentences(few_fit, vocab_size=2)[2]
    assert "20 NLS pairs (58 rows; errors clustered by document, CR3 (jackknife))" in reach


def test_fits_of_earlier_versions_are_read_as_clustered_by_pair(few_fit: Fit) -> None:
    data = json.loads(json.dumps(few_fit.to_dict()))
    assert Fit.from_dict(data) == few_fit
    del data["sha256"]
    from clada.system.jsonfile import with_checksum

    for column in data["columns"]:
        del column["n_clusters"], column["wild_p"]
        column["cov"] = "clustered by pair"
    old = Fit.from_dict(with_checksum(data))
    assert {(column.n_clusters, column.cov) for column in old.columns} == {(20, "clustered by pair")}
    assert "p, wild bootstrap" not in old.table()
