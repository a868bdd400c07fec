"""Every table format is parsed back by something that knows it, and holds the numbers of the fit."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import docx
import pandas as pd
import pytest

from clada.errors import InputError
from cladastats.results.fit import COLUMNS, FORMATS, Column, Fit, layout

COEF = {
    "prefix_len": 0.54321987,
    "surprisal_norm": -0.8,
    "entropy_norm": 0.00001234,
    "previous_surprisal": 12345.678,
    "const": 0.1,
}
NOTE = "pairs of one row left out: 2; they say nothing about differences within pairs & slopes"


def column(number: int, notes: tuple[str, ...] = ()) -> Column:
    """A column with recognisable numbers: se is a tenth of the coefficient, the interval two of them wide."""
    group, names = COLUMNS[number]
    regressors = (*names, "previous_surprisal")
    coef = {term: COEF[term] * number for term in (*regressors, "const")}
    return Column(
        column=number,
        group=group,
        regressors=regressors,
        coef=coef,
        se={term: value / 10 for term, value in coef.items()},
        t=dict.fromkeys(coef, -10.0),
        p=dict.fromkeys(coef, 0.001),
        ci={term: (value - 0.2, value + 0.2) for term, value in coef.items()},
        standardised=dict.fromkeys(regressors, 0.5),
        vif=dict.fromkeys(regressors, 1.5),
        within={term: {"sd_within": 1.0, "share_within": 0.5} for term in regressors},
        r2={"within": 0.11, "between": math.nan, "overall": -0.33, "inclusive": 0.44, "adjusted": 0.55},
        n_obs=6000,
        n_pairs=2000,
        n_clusters=2000,
        cov="clustered by pair, CR1",
        wild_p={},
        notes=notes,
    )


@pytest.fixture
def fit() -> Fit:
    columns = tuple(column(number, (NOTE,) if number in (2, 4, 6) else ()) for number in COLUMNS)
    return Fit("cosine_centred", "toward", columns)


# CSV holds every digit; reading it back may miss the last one in some versions of pandas.
LAST_DIGIT = 1e-15

HEADERS = ["(1) RTS", "(2) NLS", "(3) RTS", "(4) NLS", "(5) RTS", "(6) NLS"]
TERM_LABELS = ["Prefix (1,000 tokens)", "previous_surprisal", "Surprisal (norm.)", "Entropy (norm.)"]
FOOT_LABELS = [
    "Observations",
    "Pairs",
    "Clusters",
    "Errors",
    "Within R-squared",
    "Overall R-squared",
    "Adjusted R-squared",
    "Individual FE",
    "Constant",
]
LABELS = [label for term in TERM_LABELS for label in (term, "(t)", "95 % CI low", "95 % CI high")] + FOOT_LABELS


def test_layout_is_the_papers_table_with_intervals(fit: Fit) -> None:
    cells = layout(fit)
    assert list(cells.columns) == HEADERS
    assert list(cells.index) == LABELS
    # Four decimals, or three digits where those would show 0.0000 or a string of digits.
    assert list(cells["(1) RTS"]) == [
        *["0.5432", "(-10.00)", "0.3432", "0.7432"],
        *["1.23e+04", "(-10.00)", "1.23e+04", "1.23e+04"],
        *[""] * 8,
        *["6,000", "2,000", "2,000", "CR1", "0.1100", "-0.3300", "0.5500", "YES", "YES"],
    ]
    assert list(cells["(6) NLS"][8:16]) == [
        *["-4.8000", "(-10.00)", "-5.0000", "-4.6000"],
        *["7.40e-05", "(-10.00)", "-0.1999", "0.2001"],
    ]


def test_few_clusters_show_their_errors_and_the_wild_bootstraps_p(fit: Fit) -> None:
    assert fit.table().splitlines()[0].endswith("pair fixed effects, errors clustered by pair, CR1")
    few = {
        column.column: replace(
            column,
            n_clusters=12,
            cov="clustered by document, CR3 (jackknife)",
            wild_p=dict.fromkeys(column.regressors, 0.0321),
        )
        for column in fit.columns
        if column.group == "nls"
    }
    mixed = replace(fit, columns=tuple(few.get(column.column, column) for column in fit.columns))
    cells = layout(mixed)
    assert cells.loc["p, wild bootstrap"].to_numpy().tolist() == [
        [*["", "0.0321"] * 3],
        [*["", "0.0321"] * 3],
        [*[""] * 3, "0.0321", "", "0.0321"],
        [*[""] * 5, "0.0321"],
    ]
    assert list(cells.loc["Errors"]) == ["CR1", "CR3"] * 3
    assert list(cells.loc["Clusters"]) == ["2,000", "12"] * 3
    for fmt in FORMATS:
        shown = mixed.table(fmt)
        assert "0.0321" in shown
        assert "clustered by document, CR3 (jackknife)" in shown
    lines = mixed.table().splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].endswith("pair fixed effects")
    assert "(1, 3, 5) errors clustered by pair, CR1" in lines
    assert "(2, 4, 6) errors clustered by document, CR3 (jackknife)" in lines
    rows = pd.read_csv(io.StringIO(mixed.table("csv"))).query("column == 6").set_index("term")
    assert rows["wild_p"].drop("const").to_dict() == dict.fromkeys(mixed.column(6).regressors, 0.0321)
    assert math.isnan(rows.loc["const", "wild_p"])


def test_tables_for_word_typst_and_notebooks_hold_the_same_cells(fit: Fit, tmp_path: Path) -> None:
    expected = [["", *HEADERS]]
    expected += [[label, *cells] for label, cells in zip(LABELS, layout(fit).to_numpy().tolist(), strict=True)]
    parser = TableCells()
    page = fit.great_table().as_raw_html()
    parser.feed(page[page.index("<thead>") : page.index("</tbody>")])
    assert [row for row in parser.rows if len(row) == 7] == expected
    assert NOTE.replace("&", "&amp;") in page
    fit.maketable().save("docx", str(tmp_path / "fit.docx"), show=False)
    document = docx.Document(str(tmp_path / "fit.docx"))
    rows = [[cell.text for cell in row.cells] for row in document.tables[0].rows]
    assert rows[: len(expected)] == expected
    typst = fit.maketable().make("typst")
    assert "[Surprisal (norm.)]" in typst


def test_text_fits_a_terminal_and_names_the_columns_of_a_note(fit: Fit) -> None:
    lines = fit.table().splitlines()
    assert max(map(len, lines)) <= 120
    assert "toward" in lines[0]
    assert "cosine_centred" in lines[0]
    rows = [line for line in lines if line.startswith(tuple(LABELS))]
    for row, (label, cells) in zip(rows, layout(fit).iterrows(), strict=True):
        assert row.split() == [*str(label).split(), *(cell for cell in cells if cell)]
    assert lines[-1] == f"(2, 4, 6) {NOTE}"


def test_markdown_rows_have_as_many_cells_as_the_header(fit: Fit) -> None:
    rows = [line.strip("|").split("|") for line in fit.table("markdown").splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in row] for row in rows]
    assert header == ["", *HEADERS]
    assert body == [[label, *cells] for label, cells in zip(LABELS, layout(fit).to_numpy().tolist(), strict=True)]


def test_latex_is_balanced_and_escaped(fit: Fit) -> None:
    latex = fit.table("latex")
    opened = re.findall(r"\\begin\{(\w+)\}", latex)
    assert opened == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", latex) == opened[::-1]
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(rule) == 1
    body = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(LABELS)
    assert all(row.count("&") == 6 for row in rows)
    assert "$-$4.8000" in body
    # What LaTeX reads as markup stands nowhere without its backslash: not in labels, not in the caption.
    outside = latex.replace(body, re.sub("&", "", body))
    assert not re.search(r"(?<!\\)[_%&#]", outside)
    assert r"cosine\_centred" in latex
    assert r"previous\_surprisal" in latex


def test_captions_say_what_cka_is(fit: Fit) -> None:
    caption = replace(fit, metric="cka").table().splitlines()[0]
    assert caption.startswith("Response toward, metric r², one-feature CKA (cka): ")
    assert "metric r$^2$, one-feature CKA (cka)" in replace(fit, metric="cka").table("latex")


def test_a_fit_shows_itself_as_its_table(fit: Fit) -> None:
    assert repr(fit) == fit.table("text")


def test_csv_is_tidy_and_exact(fit: Fit) -> None:
    table = pd.read_csv(io.StringIO(fit.table("csv")))
    assert len(table) == sum(len(column.coef) for column in fit.columns)
    assert set(table["metric"]) == {"cosine_centred"}
    for column in fit.columns:
        rows = table[table["column"] == column.column].set_index("term")
        assert list(rows.index) == [*column.regressors, "const"]
        assert set(rows["group"]) == {column.group}
        assert rows["coef"].to_dict() == pytest.approx(column.coef, rel=LAST_DIGIT)
        assert rows["se"].to_dict() == pytest.approx(column.se, rel=LAST_DIGIT)
        assert rows["t"].to_dict() == pytest.approx(column.t, rel=LAST_DIGIT)
        assert rows["p"].to_dict() == pytest.approx(column.p, rel=LAST_DIGIT)
        for bound, name in enumerate(("ci_low", "ci_high")):
            expected = {term: interval[bound] for term, interval in column.ci.items()}
            assert rows[name].to_dict() == pytest.approx(expected, rel=LAST_DIGIT)
        assert rows["standardised"].drop("const").to_dict() == column.standardised
        assert rows["vif"].drop("const").to_dict() == column.vif
        assert rows.loc["const", ["standardised", "vif"]].isna().all()
        assert set(rows["n_obs"]) == {6000}
        assert set(rows["n_pairs"]) == {2000}
        assert set(rows["r2_adjusted"]) == {0.55}
        assert rows["r2_between"].isna().all()


class TableCells(HTMLParser):
    """The rows of cells of the one table in a page, and its caption; fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.caption = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()
        if self.open and self.open[-1] == "caption":
            self.caption += data


def test_html_shows_the_same_cells_in_jupyterlab(fit: Fit) -> None:
    parser = TableCells()
    parser.feed(fit._repr_html_())
    parser.close()
    assert parser.open == []
    header, *body = parser.rows
    assert header == ["", *HEADERS]
    assert body == [[label, *cells] for label, cells in zip(LABELS, layout(fit).to_numpy().tolist(), strict=True)]
    assert f"(2, 4, 6) {NOTE}" in parser.caption
    assert fit.table("html") == fit.table("html")


def test_json_is_the_file_of_the_fit(fit: Fit) -> None:
    assert json.loads(fit.table("json")) == fit.to_dict()


def test_unknown_format_is_refused(fit: Fit) -> None:
    with pytest.raises(InputError, match=f"unknown table format 'docx'; choose one of {', '.join(FORMATS)}"):
        fit.table("docx")
