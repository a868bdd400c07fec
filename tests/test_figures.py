"""Figures: their numbers are those of the tables, their words those of a reader, and print does not need colour."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats
from test_regress import same, simulate_panel

from cladastats.figures import (
    activation_figure,
    case_figure,
    coefficient_figure,
    gain_figure,
    gain_layers_figure,
    layer_figure,
    population_figure,
    prefix_figure,
    save,
)
from cladastats.panel.columns import fit_columns
from cladastats.panel.overview import responses_by_ratio
from cladastats.similarities.formulas import shifts

SMALLEST = 7  # points
WIDEST = 7.0  # inches, a journal's page


def panel_of(pairs: int = 20, seed: int = 0, effect: float = 0.02) -> pd.DataFrame:
    """A panel whose hybrids hardly move, with one huge response."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        [(g, pair, ratio) for g in ("nls", "rts") for pair in range(pairs) for ratio in (0.25, 0.375, 0.5)],
        columns=["group", "pair", "ratio"],
    )
    start = rng.uniform(0.1, 0.4, len(rows))
    sims = pd.DataFrame({"sim_ab": start, "sim_ab_matched": start + 0.3})
    sims["sim_hb"] = start + effect * rows["ratio"] + rng.normal(0, 0.005, len(rows))
    sims["sim_hb_matched"] = start + 0.3 + 2 * effect * rows["ratio"] + rng.normal(0, 0.005, len(rows))
    sims["sim_ha"] = 1 - rng.uniform(0, 0.1, len(rows))
    panel = pd.concat([rows, sims, shifts(sims)], axis=1)
    panel.loc[4, "shift_toward"] = -3.0
    return panel.assign(prefix_len=(panel["ratio"] * 512).astype(int), token_len=512)


def population_of(layers: int = 5) -> pd.DataFrame:
    """A table of population CKA, every number another."""
    rng = np.random.default_rng(1)
    rows = [
        {"group": group, "ratio": ratio, "layer": layer, "comparison": comparison}
        for group in ("nls", "rts")
        for ratio in (0.25, 0.375, 0.5)
        for layer in range(layers)
        for comparison in ("ab", "hb", "ha", "hb_matched")
    ]
    table = pd.DataFrame(rows)
    cka = rng.uniform(-0.2, 1, len(table))
    table = table.assign(cka=cka, se=rng.uniform(0.01, 0.1, len(table)), n_pairs=24)
    references = table[table["comparison"] == "ab"].groupby(["group", "layer"])[["cka", "se"]]
    references = references.transform("first")  # A and B are the same at every ratio
    table.loc[references.index, ["cka", "se"]] = references
    return table


def fit_with_layers():
    fit = fit_columns(simulate_panel(), "cka")
    rng = np.random.default_rng(2)
    records = []
    for group in ("rts", "nls"):
        for term in ("prefix_len", "surprisal_norm", "entropy_norm"):
            for layer in range(4):
                coef = float(rng.normal(0, 0.01))
                record = {"group": group, "term": term, "layer": layer, "coef": coef, "ci": [coef - 0.01, coef + 0.01]}
                records.append({**record, "p_bh": 0.01 if layer == 2 else 0.5})
    return replace(fit, robustness={"layers": records})


def gains_of() -> dict[str, pd.DataFrame]:
    measures = [("provo", "go_past_cond_ms"), ("mine", "rt")]
    rows = [
        {"corpus": corpus, "measure": measure, "predictor": predictor, "delta_ll": 0.002, "ci_low": -0.001}
        | {"ci_high": 0.005, "p_holm": 0.2}
        for predictor in ("surprisal", "entropy", "effort")
        for corpus, measure in measures
    ]
    return {"one": pd.DataFrame(rows), "two": pd.DataFrame(rows)}


def gain_layers_of():
    layers = [{"delta_ll": 0.001 * n, "ci_low": -0.001, "ci_high": 0.01} for n in range(4)]
    measure = {"measure": "go_past_cond_ms", "confirmatory": True, "layers": layers}
    return {model: [{"corpus": "provo", "measures": [measure]}] for model in ("one", "two")}


def case_of():
    return SimpleNamespace(similarity=np.eye(13), sentences=tuple("abcdefghijklm"), metric="cka")


FIGURES = {
    "prefix": lambda: prefix_figure(panel_of(), "cosine"),
    "prefix, trimmed": lambda: prefix_figure(panel_of(), "cka", panel_of(seed=3)),
    "population": lambda: population_figure(population_of()),
    "coefficients": lambda: coefficient_figure({name: fit_with_layers() for name in ("cka", "cka_trimmed")}),
    "layers": lambda: layer_figure(fit_with_layers()),
    "case": lambda: case_figure(case_of()),
    "maps": lambda: activation_figure({name: np.ones((9, 8)) * n for n, name in enumerate(["A", "B", "A'"])}, 3),
    "gains": lambda: gain_figure(gains_of()),
    "gains of layers": lambda: gain_layers_figure(gain_layers_of()),
}


def texts_of(figure: Figure) -> list[Text]:
    """What a reader can read, tick labels included."""
    figure.canvas.draw()
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("name", FIGURES)
def test_words_are_a_readers_type_is_large_enough_and_nothing_needs_colour(name):
    figure = FIGURES[name]()
    assert figure.get_figwidth() <= WIDEST
    texts = texts_of(figure)
    assert min(text.get_fontsize() for text in texts) >= SMALLEST
    words = " ".join(text.get_text() for text in texts)
    assert not re.search(r"\w_\w", words), words  # a column's name
    assert not re.search(r"\bcka\b", words), words
    colors = {to_rgb(line.get_color()) for axis in figure.axes for line in axis.lines}
    assert all(red == green == blue for red, green, blue in colors)


@pytest.mark.parametrize("name", ["prefix", "case"])
def test_the_same_input_gives_the_same_bytes(name, tmp_path):
    first, again = (save(FIGURES[name](), tmp_path / place) for place in ("first", "again"))
    assert [path.suffix for path in first] == [".png", ".pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def lines_at(axis, marker, fill=None):
    """y of the lines with a marker, and of those with this fill if one is given."""
    return [
        np.asarray(line.get_ydata())
        for line in axis.lines
        if line.get_marker() == marker and len(line.get_ydata()) > 2 and fill in (None, line.get_markerfacecolor())
    ]


def test_responses_stand_on_an_axis_that_reaches_one_and_once_more_magnified():
    panel, trimmed = panel_of(), panel_of(seed=3)
    figure = prefix_figure(panel, "cka", trimmed)
    axes = np.array(figure.axes).reshape(3, 3)
    for column, response in enumerate(("shift_toward", "shift_matched")):
        low, high = axes[0, column].get_ylim()
        assert low < 0 < 1 < high
        assert [label.get_text() for label in axes[0, column].get_yticklabels()][::2] == [
            "0: no change", f"1: acts like {('B', 'B*')[column]}",
        ]  # fmt: skip
        for row, form in enumerate((panel, panel, trimmed)):
            shown = responses_by_ratio(form, response)
            for group, marker in (("nls", "o"), ("rts", "s")):
                expected = shown[shown["group"] == group]
                lines = lines_at(axes[row, column], marker)
                assert lines[0] == same(expected["mean"].to_numpy())
                if row:
                    assert lines[1] == same(expected["median"].to_numpy())
        assert re.fullmatch(r"magnified \d+ times|the same", axes[1, column].get_title(loc="left"))
    # The panel has one huge response of an NLS pair: it moves the mean, not the median.
    huge = responses_by_ratio(panel).iloc[1]
    assert huge["mean"] < -0.1
    assert abs(huge["median"]) < 0.02
    assert huge["beyond"] == 1 / 20
    assert "Measure: r², one-feature CKA" in figure.get_suptitle()


def test_means_and_their_intervals_are_those_of_other_libraries():
    panel = panel_of()
    table = responses_by_ratio(panel)
    rows = panel[(panel["group"] == "rts") & (panel["ratio"] == 0.5)]["shift_toward"]
    found = table[(table["group"] == "rts") & (table["ratio"] == 0.5)].iloc[0]
    expected = stats.ttest_1samp(rows, 0).confidence_interval()
    assert (found["mean"], found["ci_low"], found["ci_high"]) == same((rows.mean(), expected.low, expected.high))
    assert (found["median"], found["pairs"]) == (rows.median(), 20)
    # Pairs that share documents: the clustered errors of statsmodels, whose factor is G / (G - 1) * (n - 1) / (n - 1).
    clusters = panel.assign(cluster=panel["pair"] // 3)
    found = responses_by_ratio(clusters).iloc[-1]
    values = clusters[(clusters["group"] == "rts") & (clusters["ratio"] == 0.5)]
    fit = sm.OLS(values["shift_toward"], np.ones(20)).fit(
        cov_type="cluster", cov_kwds={"groups": values["cluster"]}, use_t=True
    )
    assert (found["ci_low"], found["ci_high"]) == same(tuple(fit.conf_int().to_numpy()[0]))


def test_a_panel_of_one_pair_or_one_group_is_drawn_without_what_it_lacks():
    panel = panel_of(pairs=1)
    assert responses_by_ratio(panel)["ci_low"].isna().all()
    assert len(texts_of(prefix_figure(panel, "cosine"))) > 10
    natural = panel_of()[lambda rows: rows["group"] == "nls"].assign(shift_matched=np.nan)
    axes = prefix_figure(natural, "cosine").axes
    assert [len(lines_at(axis, "o")) for axis in axes[:2]] == [1, 0]


def test_population_cka_is_drawn_as_the_table_has_it():
    table = population_of()
    figure = population_figure(table)
    axes = np.array(figure.axes).reshape(2, 2)
    for column, group in enumerate(("nls", "rts")):
        for row, comparison in enumerate(("ha", "hb")):
            rows = table[(table["group"] == group) & (table["comparison"] == comparison)]
            for ratio, marker in ((0.25, "o"), (0.375, "s"), (0.5, "^")):
                (line,) = lines_at(axes[row, column], marker)
                assert line == same(rows.loc[rows["ratio"] == ratio, "cka"].to_numpy())
            # The bars of the last ratio are the jackknife's error times t of 23 degrees of freedom.
            bars = axes[row, column].containers[-1].lines[2][0].get_segments()
            expected = 2 * stats.t.ppf(0.975, 23) * rows.loc[rows["ratio"] == 0.5, "se"].to_numpy()
            assert [np.ptp(bar[:, 1]) for bar in bars] == same(expected.tolist())
        reference = table[(table["group"] == group) & (table["comparison"] == "ab") & (table["ratio"] == 0.25)]
        thick = [line for line in axes[1, column].lines if line.get_linewidth() > 2]
        assert thick[0].get_ydata() == same(reference["cka"].to_numpy())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "beginning of B: 0.25 of the text", "beginning of B: 0.375 of the text", "beginning of B: 0.5 of the text",
        "A and B, as they are",
    ]  # fmt: skip


def test_coefficients_of_layers_reach_one_and_are_magnified_where_they_are_smaller():
    axes = np.array(layer_figure(fit_with_layers()).axes).reshape(2, 3)
    for upper, lower in axes.T:
        low, high = upper.get_ylim()
        assert low < -1
        assert high > 1
        assert lower.get_visible()
        assert lower.get_title(loc="left").startswith("magnified ")
    wide = fit_with_layers()
    for record in wide.robustness["layers"]:
        record["ci"] = [-5.0, 5.0]
    axes = np.array(layer_figure(wide).axes).reshape(2, 3)
    assert not any(axis.get_visible() for axis in axes[1])


def test_measures_of_people_are_named_in_words():
    figure = gain_figure(gains_of())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Provo, go-past time", "mine, rt"]
    assert gain_layers_figure(gain_layers_of()).axes[0].get_title() == "Provo\ngo-past time"
