"""The rule of verdicts case by case, what each claim is judged by, strata, and power before a study."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_regress import TRUE, same, simulate_panel

from clada.errors import InputError, StudyError
from cladastats.cli import main
from cladastats.panel.claims import claims, family
from cladastats.panel.columns import complete_rows, fit_columns
from cladastats.panel.contrasts import group_difference, monotone_weights, ordered
from cladastats.panel.power import Design, paper_correlation, plan
from cladastats.panel.robustness import confirmatory, ratio_effects
from cladastats.panel.strata import strata, trimmed_form
from cladastats.panel.within import Within, within_summary
from cladastats.results.fit import CONFIRMATORY, FORMATS, LOADS
from cladastats.results.verdicts import CLAIM_COLUMNS, VERDICTS, Agreeing, Evidence, in_words, judge, render_verdicts

FULL = ("prefix_len", *LOADS)
Y = "shift_toward"

# -- The rule -------------------------------------------------------------------------------------------------------

AGREES = Agreeing("same", 1.0, 0.01, smallest_margin=0.1)
CLEAR = Evidence(1, 1.0, 0.01, 1.0, (AGREES,))
NO_EFFECT = replace(CLEAR, claimed_sign=0, p=0.5, margin=0.5, smallest_margin=0.4)


@pytest.mark.parametrize(
    ("evidence", "found"),
    [
        (CLEAR, "supported"),
        (replace(CLEAR, estimate=-1.0, agreeing=()), "contradicted"),
        (replace(CLEAR, p=0.05), "undecided"),
        # Without this rule a p of 0.01 would decide what 0.99 % of a regressor's variance says.
        (replace(CLEAR, share_within=0.0099), "not testable"),
        (replace(CLEAR, share_within=0.0101), "supported"),
        (replace(CLEAR, share_within=0.0099, p=0.9), "not testable"),
        # Fits that must agree: the same sign, and significant.
        (replace(CLEAR, agreeing=(AGREES, Agreeing("other", -1.0, 0.01))), "undecided"),
        (replace(CLEAR, agreeing=(AGREES, Agreeing("other", 1.0, 0.06))), "undecided"),
        (replace(CLEAR, agreeing=(AGREES, Agreeing("other", None))), "undecided"),
        (replace(CLEAR, estimate=-1.0), "undecided"),
        # What goes most against the estimate need not be significant, but must not be so against it.
        (replace(CLEAR, agreeing=(AGREES, Agreeing("step", -1.0, 0.06, only_opposes=True))), "supported"),
        (replace(CLEAR, agreeing=(AGREES, Agreeing("step", -1.0, 0.04, only_opposes=True))), "undecided"),
        # No effect: a test that finds none supports nothing, an equivalence test does.
        (replace(NO_EFFECT, margin=None), "undecided"),
        (replace(NO_EFFECT, smallest_margin=0.6), "undecided"),
        (NO_EFFECT, "supported"),
        (replace(NO_EFFECT, agreeing=(replace(AGREES, smallest_margin=0.6),)), "undecided"),
        (replace(NO_EFFECT, agreeing=(replace(AGREES, smallest_margin=None),)), "undecided"),
        (replace(NO_EFFECT, agreeing=(AGREES, Agreeing("step", -1.0, 0.01, only_opposes=True))), "supported"),
        (replace(NO_EFFECT, p=0.01), "supported"),  # it differs from zero by less than counts
        (replace(NO_EFFECT, p=0.01, margin=None), "contradicted"),
        (replace(NO_EFFECT, p=0.01, smallest_margin=0.6), "contradicted"),
        (replace(NO_EFFECT, p=0.01, margin=None, agreeing=(Agreeing("other", -1.0, 0.01),)), "undecided"),
    ],
)  # fmt: skip
def test_a_verdict_follows_from_its_evidence(evidence, found):
    verdict, why = judge(evidence)
    assert verdict == found
    assert verdict in VERDICTS
    assert why


def test_the_reason_names_what_decides():
    assert judge(replace(CLEAR, share_within=0.0004))[1] == "0.04% of the regressor's variance lies within pairs"
    against = (
        AGREES,
        Agreeing("trimmed", -1.0, 0.2),
        Agreeing("contrast", None),
        Agreeing("step", -1, 0.01, None, True),
    )
    assert judge(replace(CLEAR, agreeing=against))[1] == (
        "significant, rises; does not agree: trimmed - n.s., contrast not there, step against"
    )


# -- The claims of a study ------------------------------------------------------------------------------------------


def checks(panel, fit, trimmed=None):
    """What verdicts rest on, as `robustness` makes it."""
    rows = {group: complete_rows(panel, group, Y, FULL)[0] for group in ("nls", "rts")}
    return {
        "ordered": {group: ordered(data, Y) for group, data in rows.items()},
        "ratio_effects": {group: ratio_effects(data, Y) for group, data in rows.items()},
        "group_difference": group_difference(fit, 0.5, "a pilot"),
        **({} if trimmed is None else trimmed_form(trimmed, fit, (0.5, "a pilot"))),
    }


@pytest.fixture(scope="module")
def panel():
    return simulate_panel(n_pairs=60)


def checked_fits(panel):
    """Of both metrics, which here are the same, with what verdicts rest on."""
    made = {metric: fit_columns(panel, metric) for metric in ("cka", "cosine")}
    return {
        metric: replace(fit, robustness=checks(panel, fit, panel if metric == "cka" else None))
        for metric, fit in made.items()
    }


@pytest.fixture(scope="module")
def fits(panel):
    return checked_fits(panel)


def study_of(fits, panel):
    """A study as far as claims look at it."""
    return SimpleNamespace(
        folder=Path("studies/x"),
        config=SimpleNamespace(equivalence_margin=0.5, equivalence_margin_source="a pilot"),
        fit=lambda metric: fits[metric],
        fit_path=lambda metric, _response: Path(f"studies/x/fits/{metric}.json"),
        panel=lambda _metric: panel,
    )


def rows_of(fits, panel, metric="cka"):
    table = claims(study_of(fits, panel))
    return table[table["metric"] == metric].set_index("claim")


def test_claims_of_a_panel_whose_truth_is_known(fits, panel):
    table = claims(study_of(fits, panel))
    assert list(table.columns) == list(CLAIM_COLUMNS)
    assert table["metric"].value_counts().to_dict() == {"cka": 14, "cosine": 14}
    own = rows_of(fits, panel)
    verdicts = own["verdict"].to_dict()
    follow, disturb = "activations follow a longer prefix", "disturbs flocking"
    assert {verdicts[f"2.1, {group}: {follow}"] for group in ("NLS", "RTS")} == {"supported"}
    assert {verdicts[f"2.1, {group}: every longer prefix is followed more"] for group in ("NLS", "RTS")} == {
        "supported"
    }
    assert verdicts["Obs. 2: NLS follows its prefix less than RTS"] == "supported"
    assert verdicts["Obs. 2's rival: NLS and RTS follow it alike"] == "supported"  # 0.2 within 0.5
    assert verdicts[f"2.2, NLS: surprisal {disturb}"] == verdicts[f"2.2, NLS: entropy {disturb}"] == "supported"
    assert verdicts["2.2, RTS: surprisal has no effect"] == "undecided"  # it has none
    assert verdicts["2.2, RTS: entropy has no effect"] == "contradicted"  # it has one of 0.3
    row = own.loc[f"2.2, NLS: surprisal {disturb}"]
    column = fits["cka"].column(6)
    assert row["estimate"] == column.coef["surprisal_norm"]
    assert (row["ci_low"], row["ci_high"]) == column.ci["surprisal_norm"]
    assert (row["test"], row["agreeing"]) == ("Holm of 12", "effect of every ratio -, trimmed -")
    assert row["share_within"] == column.within["surprisal_norm"]["share_within"]
    none = own.loc["2.2, RTS: surprisal has no effect"]
    column = fits["cka"].column(5)
    half = stats.t.ppf(0.95, 59) * column.se["surprisal_norm"]
    assert none["smallest_margin"] == same(abs(column.coef["surprisal_norm"]) + half)
    assert pd.isna(none["margin"])
    assert "margin 0.5 points per 1,000 tokens: a pilot" in table.attrs["notes"]
    assert not any("lacks" in note for note in table.attrs["notes"])


def test_every_row_is_traced_to_where_its_numbers_are(fits, panel):
    table = claims(study_of(fits, panel))
    for row in table.itertuples():
        folder, _, name = row.file.rpartition("/")
        if not folder:
            assert row.file == f"panel-{row.metric}.parquet"
            outcome, group, ratio = row.where.split(", ")
            values = panel[(panel["group"] == group) & (panel["ratio"] == float(ratio.removeprefix("ratio ")))][outcome]
            assert row.estimate == same(values.mean() if "mean response" in row.claim else values.median())
            continue
        assert (folder, name) == ("fits", f"{row.metric}.json")
        content = json.loads(json.dumps(fits[row.metric].to_dict()))
        if row.where.startswith("column"):
            number, term = row.where.removeprefix("column ").split(", ")
            found = next(c for c in content["columns"] if c["column"] == int(number))["coef"][term]
        else:
            for key in row.where.split("."):
                content = content[key]
            steps = content.get("steps")
            found = sum(step["change"] for step in steps) if steps else content["prefix_len"]["difference"]
        assert row.estimate == same(found)


def test_one_family_over_both_metrics(fits):
    """By hand; and a p that Holm's method over one metric's six tests would pass."""
    p = dict(zip(CONFIRMATORY, (0.009, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))

    def with_p(fit):
        columns = [
            replace(column, p={term: p.get((column.column, term), 0.9) for term in column.p}) for column in fit.columns
        ]
        return replace(fit, columns=tuple(columns))

    corrected = family([with_p(fits["cka"]), with_p(fits["cosine"])])
    assert len(corrected) == 12
    assert corrected["cka", 1, "prefix_len"] == same(12 * 0.009)  # six times would be 0.054
    assert corrected["cosine", 1, "prefix_len"] == same(12 * 0.009)  # not less than a smaller or equal p's
    assert corrected["cka", 2, "prefix_len"] == 1
    assert 6 * 0.008 < 0.05 < 12 * 0.008
    assert [test["p"] for test in confirmatory(with_p(fits["cka"]))] == list(p.values())
    assert "p_holm" not in confirmatory(fits["cka"])[0]


def changed(fits, metric, change):
    """The fits with one metric's checks changed."""
    robustness = json.loads(json.dumps(fits[metric].robustness))
    change(robustness)
    return {**fits, metric: replace(fits[metric], robustness=robustness)}


def test_a_load_needs_the_fit_with_an_effect_of_every_ratio(fits, panel):
    weak = changed(fits, "cosine", lambda r: r["ratio_effects"]["nls"]["entropy_norm"].update(p=0.2))
    row = rows_of(weak, panel, "cosine").loc["2.2, NLS: entropy disturbs flocking"]
    assert (row["verdict"], row["agreeing"]) == ("undecided", "effect of every ratio - n.s.")
    assert rows_of(fits, panel, "cosine").loc["2.2, NLS: entropy disturbs flocking"]["verdict"] == "supported"


def test_cka_needs_its_trimmed_form(fits, panel):
    def flip(robustness):
        for term in robustness["trimmed"]["nls"].values():
            term["coef"] *= -1
        robustness["trimmed_checks"]["ordered"]["nls"]["p_rising"] = 0.2
        robustness["trimmed_checks"]["group_difference"]["prefix_len"]["p"] = 0.2
        robustness["trimmed_checks"]["group_difference"]["prefix_len"]["ci_90"] = [-0.6, 0.1]

    undecided = rows_of(changed(fits, "cka", flip), panel)["verdict"].eq("undecided")
    before = rows_of(fits, panel)["verdict"].eq("undecided")
    assert set(undecided.index[undecided & ~before]) == {
        "2.1, NLS: activations follow a longer prefix", "2.1, NLS: every longer prefix is followed more",
        "2.2, NLS: surprisal disturbs flocking", "2.2, NLS: entropy disturbs flocking",
        "Obs. 2: NLS follows its prefix less than RTS",
        "Obs. 2's rival: NLS and RTS follow it alike",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "agreeing"),
    [
        (lambda ordered: ordered["contrast"].update(p=0.06), "ordered contrast + n.s., step 0.375 to 0.5 not against"),
        (lambda ordered: ordered.update(p_some_fall=0.01), "ordered contrast +, step 0.375 to 0.5 against"),
    ],
)
def test_a_prefix_needs_the_ordered_contrast_and_no_step_against(fits, panel, change, agreeing):
    made = changed(fits, "cosine", lambda r: change(r["ordered"]["nls"]))
    row = rows_of(made, panel, "cosine").loc["2.1, NLS: activations follow a longer prefix"]
    steps = fits["cosine"].robustness["ordered"]["nls"]["steps"]
    least = min(steps, key=lambda step: step["change"])
    agreeing = agreeing.replace("0.375 to 0.5", f"{least['from']:g} to {least['to']:g}")
    assert (row["verdict"], row["agreeing"]) == ("undecided", agreeing)


def test_a_step_that_falls_contradicts_monotony_and_the_groups_are_alike_within_the_margin_alone(fits, panel):
    def fall(robustness):
        for checked in (robustness, robustness["trimmed_checks"]):
            checked["ordered"]["nls"].update(p_some_fall=0.01, p_rising=0.99)

    own = rows_of(changed(fits, "cka", fall), panel)
    assert own.loc["2.1, NLS: every longer prefix is followed more"]["verdict"] == "contradicted"
    narrow = changed(fits, "cka", lambda r: r["group_difference"]["prefix_len"].update(margin=0.1))
    row = rows_of(narrow, panel).loc["Obs. 2's rival: NLS and RTS follow it alike"]
    assert row["verdict"] == "contradicted"
    assert row["margin"] < abs(row["estimate"]) < row["smallest_margin"]


def test_little_variance_within_pairs_is_not_testable(panel):
    """A true effect, seen with a small p, of a surprisal that hardly varies within pairs."""
    rng = np.random.default_rng(0)
    steady = panel.assign(surprisal_norm=rng.random(60)[panel["pair"]] + 0.02 * rng.standard_normal(len(panel)))
    steady[Y] = panel[Y] - 50 * (
        steady["surprisal_norm"] - steady.groupby(["group", "pair"])["surprisal_norm"].transform("mean")
    )
    fit = fit_columns(steady, "cosine")
    made = {m: replace(fit, metric=m, robustness=checks(steady, fit, steady)) for m in ("cka", "cosine")}
    row = rows_of(made, steady, "cosine").loc["2.2, NLS: surprisal disturbs flocking"]
    assert row["p"] < 1e-6
    assert (row["verdict"], row["agreeing"]) == ("not testable", "effect of every ratio -")


def test_files_of_an_earlier_version_are_read_and_leave_the_prefix_undecided(fits, panel):
    def older(robustness):
        robustness.pop("trimmed_checks", None)
        for group in robustness["ordered"].values():
            del group["contrast"], group["p_some_rise"]

    old = changed(changed(fits, "cka", older), "cosine", older)
    table = claims(study_of(old, panel))
    own = table[table["metric"] == "cka"].set_index("claim")
    assert own.loc["2.1, NLS: activations follow a longer prefix"]["verdict"] == "undecided"
    assert own.loc["2.2, NLS: surprisal disturbs flocking"]["verdict"] == "supported"
    lacks = [note for note in table.attrs["notes"] if "lacks" in note]
    assert lacks == [
        "fits/cka.json lacks ordered contrast, steps of the trimmed form, difference of ordered contrasts, trimmed "
        "difference, as an earlier version made it, so that verdicts which need that are undecided; 'cladastats "
        "regress --study studies/x --claims --robust' makes it again",
        "fits/cosine.json lacks ordered contrast, difference of ordered contrasts, as an earlier version made it, so "
        "that verdicts which need that are undecided; 'cladastats regress --study studies/x --claims --robust' makes "
        "it again",
    ]
    with pytest.raises(
        StudyError, match="has no robustness checks of cka; run 'cladastats regress --study studies/x --cl"
    ):
        claims(study_of({**fits, "cka": replace(fits["cka"], robustness={})}, panel))


def test_domination_is_a_size_over_clusters(fits, panel):
    """Copies of pairs that share their documents add nothing."""
    twice = pd.concat(
        [panel.assign(cluster=panel["pair"]), panel.assign(pair=panel["pair"] + 60, cluster=panel["pair"])]
    )
    once, doubled = rows_of(fits, panel), rows_of(fits, twice)
    for what in ("mean", "median"):
        claim = f"NLS: prefix of 50%, {what} response"
        row, again = once.loc[claim], doubled.loc[claim]
        assert row["verdict"] == "estimate"
        assert pd.isna(row["p"])
        assert row["test"] == again["test"] == f"{what}, 60 clusters"
        for name in ("estimate", "ci_low", "ci_high"):
            # 1e-9 of the interval's length: CR1 of clusters that are equally large is the plain error of a mean.
            assert again[name] == pytest.approx(row[name], abs=1e-9 * (row["ci_high"] - row["ci_low"]))
    values = panel[(panel["group"] == "nls") & (panel["ratio"] == 0.5)][Y]
    row = once.loc["NLS: prefix of 50%, mean response"]
    half = stats.t.ppf(0.975, 59) * values.std() / math.sqrt(60)
    assert [row["ci_low"], row["ci_high"]] == same([values.mean() - half, values.mean() + half])


def test_verdicts_in_words_name_every_claim_once(fits, panel):
    table = claims(study_of(fits, panel))
    sentences = in_words(table)
    assert [sentence.split(" (")[0] for sentence in sentences] == ["Supported", "Undecided", "Contradicted", "Estimate"]
    assert sentences[1].endswith("2.2, RTS: surprisal has no effect (r², one-feature CKA; cosine).")
    for claim in table["claim"].unique():
        assert sum(sentence.count(claim) for sentence in sentences) == (2 if "response" in claim else 1), claim
    assert "median response: " in sentences[-1]


def test_verdicts_in_every_format(fits, panel):
    table = claims(study_of(fits, panel))
    notes = table.attrs["notes"]
    for fmt in FORMATS:
        shown = render_verdicts(table, fmt, notes)
        assert "contradicted" in shown
        assert "nan" not in shown.lower().replace("dominant", "")
        if fmt == "text":  # long cells go on in the next line, so that a row fits a screen
            assert shown.count("fits/cosine.json: column 6,") == 2  # surprisal and entropy
            assert shown.count("entropy_norm") == 2 * 2  # two columns by two metrics
            assert max(len(line) for line in shown.splitlines() if line not in notes) <= 120
        elif fmt not in ("csv", "json"):
            assert shown.count("fits/cosine.json: column 6, entropy") == 1
        if fmt == "latex":
            assert " & $-$0." in shown  # a minus sign, no hyphen
    content = json.loads(render_verdicts(table, "json", notes), parse_constant=lambda name: pytest.fail(name))
    assert (content["schema"], content["notes"]) == ("cladastats/claims/1", notes)
    assert content["claims"][0]["estimate"] == table["estimate"][0]
    assert content["claims"][0]["margin"] is None
    with pytest.raises(InputError, match="unknown table format 'docx'"):
        render_verdicts(table, "docx")


def test_the_command_judges_both_metrics_and_takes_no_other_choice(capsys):
    kept = Path(__file__).parents[1] / "figures" / "studies" / "news-512-smollm2-135m"
    assert main(["regress", "--study", str(kept), "--claims", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {row["metric"] for row in content["claims"]} == {"cka", "cosine"}
    assert {row["verdict"] for row in content["claims"]} <= set(VERDICTS)
    for more in (["--metric", "jaccard"], ["--estimator", "trimmed"], ["--response", "away"], ["--controls", "x"]):
        assert main(["regress", "--study", str(kept), "--claims", *more]) == 2
        assert capsys.readouterr().err.strip() == (
            "cladastats: --claims judges both of the paper's metrics, cka and cosine, by the response toward; leave "
            "--metric, --estimator, --response and --controls out"
        )


# -- Contrast and strata --------------------------------------------------------------------------------------------


def test_the_ordered_contrast_sees_the_least_favourable_growth_best():
    assert monotone_weights(np.array([0.5, 0.7, 1.5])).tolist() == same([-1, 0, 1])
    lengths = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    weights = monotone_weights(lengths)
    assert weights.sum() == pytest.approx(0, abs=1e-12)
    assert weights @ lengths == same(1)

    # Growth in one step is the least favourable; the smallest correlation with any such is larger than a line's.
    def worst(contrast):
        return min(np.corrcoef(contrast, np.arange(5) >= step)[0, 1] for step in range(1, 5))

    assert worst(weights) > worst(lengths) + 0.05
    equal = [np.corrcoef(weights, np.arange(5) >= step)[0, 1] for step in range(1, 5)]
    assert equal == same([equal[0]] * 4)  # the property by which Abelson and Tukey define it


def test_the_contrast_of_three_ratios_is_the_last_less_the_first(panel):
    data, _ = complete_rows(panel, "nls", Y, FULL)
    found = ordered(data, Y)
    y = data[Y].to_numpy().reshape(60, 3)
    tokens = np.ptp(data["prefix_len"])
    slopes = (y[:, 2] - y[:, 0]) / tokens
    assert found["contrast"]["coef"] == same(slopes.mean())
    # Clustered errors of a mean, with the factor for 180 rows, two dummies and the constant.
    se = math.sqrt(((slopes - slopes.mean()) ** 2).sum() * 60 / 59 * 179 / 177) / 60
    assert found["contrast"]["se"] == same(se)
    assert found["p_some_rise"] == same(2 * min(step["p_rise"] for step in found["steps"]))
    falling = ordered(data.assign(**{Y: -data[Y]}), Y)
    assert falling["p_some_fall"] == same(found["p_some_rise"])
    assert falling["contrast"]["coef"] == same(-found["contrast"]["coef"])


def test_strata_are_fits_of_their_pairs(panel):
    never, always = panel["pair"] < 20, panel["pair"] >= 50
    placed = panel.assign(
        separator_between=np.select([never, always], [False, True], panel["ratio"] < 0.5),
        target_distance=np.where(panel["group"] == "nls", 100 + panel["pair"], 512),
    )
    records, notes = strata(placed, Y)
    found = {(record["group"], record["stratum"]): record for record in records}
    assert [stratum for group, stratum in found if group == "nls"] == [
        "no separator at any ratio", "a separator at some ratios", "a separator at every ratio",
        "target 100 to 119 tokens into its document", "target 120 to 139 tokens into its document",
        "target 140 to 159 tokens into its document",
    ]  # fmt: skip
    assert notes == ["RTS: every pair is in the stratum 'target 512 tokens into its document'"]
    own = panel[never & (panel["group"] == "nls")]
    record = found["nls", "no separator at any ratio"]
    column = fit_columns(own, "cka").column(2)
    assert (record["coef"], record["p"]) == same((column.coef["prefix_len"], column.p["prefix_len"]))
    assert record["ci"] == same(list(column.ci["prefix_len"]))
    assert record["mean"] == same(own[Y].mean())
    assert record["n_pairs"] == 20

    within = placed.assign(separator_between=False, target_distance=512)
    records, notes = strata(within, Y)
    assert records == []
    assert notes == [
        "NLS and RTS: every pair is in the stratum 'no separator at any ratio'",
        "NLS and RTS: every pair is in the stratum 'target 512 tokens into its document'",
    ]
    one = placed.assign(separator_between=panel["pair"] == 0, target_distance=512)
    records, notes = strata(one, Y)
    assert {record["stratum"] for record in records} == {"no separator at any ratio"}
    assert sorted(notes) == sorted([
        "NLS and RTS: too few pairs are in the stratum 'a separator at some ratios', which is left out",
        "NLS and RTS: too few pairs are in the stratum 'a separator at every ratio', which is left out",
        "NLS and RTS: every pair is in the stratum 'target 512 tokens into its document'",
    ])  # fmt: skip
    records, notes = strata(panel, Y)
    assert records == []
    assert notes == [
        "the panel has no separator_between and no target_distance, as an earlier version made it: no strata by what "
        "stands between prefix and target; 'cladastats similarity' makes it again"
    ]


# -- Power ----------------------------------------------------------------------------------------------------------


def test_the_papers_effects_as_partial_correlations():
    # t of 20.16 in column 2: 12,000 rows, 4,000 pairs, one regressor; -8.13 in column 6 with three.
    assert paper_correlation("cka", 2, "prefix_len") == same(20.16 / math.sqrt(20.16**2 + 7999))
    assert paper_correlation("cka", 6, "surprisal_norm") == same(8.13 / math.sqrt(8.13**2 + 7997))


def test_a_coefficients_partial_correlation_is_that_of_residuals(panel):
    fit = fit_columns(panel, "cka")
    data, _ = complete_rows(panel, "nls", Y, FULL)
    around = data[[Y, *FULL]] - data[[Y, *FULL]].groupby(level="pair").transform("mean")
    for term in FULL:
        others = around[[name for name in FULL if name != term]].to_numpy()
        left = [around[name] - others @ np.linalg.lstsq(others, around[name])[0] for name in (Y, term)]
        design = Design.of(fit.column(6), term)
        coef = fit.column(6).coef[term]
        assert design.correlation(coef) == same(abs(np.corrcoef(*left)[0, 1]))
        assert design.coefficient(design.correlation(coef)) == same(abs(coef))


def test_pairs_for_an_effect_are_the_fewest_that_see_it(panel):
    design = Design.of(fit_columns(panel, "cka").column(6), "surprisal_norm")
    for pairs in (2, 3, 30, 1000):
        effect = design.smallest_effect(pairs)
        assert design.pairs_for(effect) == pairs
        assert design.pairs_for(-effect * (1 - 1e-4)) == pairs + 1
    assert design.pairs_for(1e3) == 2
    assert design.pairs_for(0.0) is None
    stricter = design.pairs_for(design.smallest_effect(100), 0.05 / 12)
    # At large numbers pairs grow with the square of the sum of the normal quantiles.
    ratio = (stats.norm.ppf([1 - 0.025 / 12, 0.8]).sum() / stats.norm.ppf([0.975, 0.8]).sum()) ** 2
    assert stricter == pytest.approx(100 * ratio, rel=0.03)  # t of a hundred pairs is not quite normal


def test_a_pilot_says_how_many_pairs_see_a_known_effect():
    """Designs of as many pairs as pilots ask for find the effect in four panels of five."""
    effect = 0.15
    pilots = [
        Design.of(fit_columns(simulate_panel(n_pairs=100, seed=seed, noise=0.1), "cka").column(6), "surprisal_norm")
        for seed in range(20)
    ]
    asked = [pilot.pairs_for(effect) for pilot in pilots]
    pairs = round(float(np.mean(asked)))
    assert 50 < pairs < 400
    # A pilot knows its variance to sqrt(2 / 99), 14 %; four of these.
    assert np.std(asked) / pairs < 4 * math.sqrt(2 / 99)
    draws, found = 300, 0
    shift = effect - TRUE["nls"]["surprisal_norm"]
    for seed in range(draws):
        data, _ = complete_rows(simulate_panel(n_pairs=pairs, seed=1000 + seed, noise=0.1), "nls", Y, FULL)
        data[Y] += shift * data["surprisal_norm"]
        found += within_summary(Within.of(data, Y, FULL))["surprisal_norm"]["p"] < 0.05
    # Three Monte-Carlo standard errors of a share of 0.8, and what 3 % of uncertainty in the mean of the pilots makes.
    assert found / draws == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / draws) + 0.02)


def test_the_plan_says_for_every_test_whether_pairs_are_enough(panel):
    rows = plan(fit_columns(panel, "cka"), [30, 3000], 12)
    assert [(row.column, row.term) for row in rows.itertuples()][::2] == list(CONFIRMATORY)
    surprisal = rows[(rows["column"] == 6) & (rows["term"] == "surprisal_norm")].set_index("pairs")
    assert surprisal["sees_r"].tolist() == [False, True]
    assert surprisal["paper_coef"].tolist() == [-0.8, -0.8]
    assert 30 < surprisal["pairs_for_r"][30] < surprisal["pairs_for_r_corrected"][30]
    needed = surprisal["pairs_for_r"][30]
    again = plan(fit_columns(panel, "cka"), [needed, needed - 1], 12)
    again = again[(again["column"] == 6) & (again["term"] == "surprisal_norm")]
    assert again["sees_r"].tolist() == [True, False]
    assert again["smallest_r"].iloc[0] <= paper_correlation("cka", 6, "surprisal_norm") < again["smallest_r"].iloc[1]
    prefix = rows[rows["column"] == 2].iloc[0]
    assert pd.isna(prefix["paper_coef"])  # lost
    assert prefix["paper_t"] == 20.16
