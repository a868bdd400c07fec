"""A fit as a table: text, Markdown, LaTeX, CSV, HTML or JSON."""

import json
import re
from html import escape
from typing import TYPE_CHECKING

import pandas as pd
from tabulate import tabulate

from clada.errors import InputError

if TYPE_CHECKING:
    from cladastats.regress import Column, Fit

LABELS = {
    "prefix_len": "Prefix (1,000 tokens)",
    "surprisal_norm": "Surprisal (norm.)",
    "entropy_norm": "Entropy (norm.)",
}

FORMATS = ("text", "markdown", "latex", "csv", "html", "json")


def render(fit: "Fit", fmt: str) -> str:
    """The fit in one of `FORMATS`.

    Text, Markdown, LaTeX (needs booktabs) and HTML show the six columns as the paper's Table 2 does; CSV is tidy, one
    row per column and term; JSON is the content of `fits/<metric>.json`.

    Raises:
        InputError: The format is unknown.
    """
    if fmt == "json":
        return json.dumps(fit.to_dict(), indent=2, allow_nan=False)
    if fmt == "csv":
        return tidy(fit).to_csv(index=False)
    if fmt == "text":
        return _plain(fit, "simple")
    if fmt == "markdown":
        return _plain(fit, "pipe")
    if fmt == "latex":
        return _latex(fit)
    if fmt == "html":
        return _html(fit)
    raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")


def tidy(fit: "Fit") -> pd.DataFrame:
    """One row per column and term, numbers unrounded."""
    return pd.DataFrame(
        {
            "metric": fit.metric,
            "response": fit.response,
            "column": column.column,
            "group": column.group,
            "term": term,
            "coef": column.coef[term],
            "se": column.se[term],
            "t": column.t[term],
            "p": column.p[term],
            "ci_low": column.ci[term][0],
            "ci_high": column.ci[term][1],
            "standardised": column.standardised.get(term),
            "vif": column.vif.get(term),
            "n_obs": column.n_obs,
            "n_pairs": column.n_pairs,
            **{f"r2_{name}": value for name, value in column.r2.items()},
        }
        for column in fit.columns
        for term in (*column.regressors, "const")
    )


def layout(fit: "Fit") -> pd.DataFrame:
    """The table's cells as text: rows as in the paper's Table 2 with intervals for stars, one column a model."""
    terms = list(dict.fromkeys(term for column in fit.columns for term in column.regressors))
    labels = [label for term in terms for label in (LABELS.get(term, term), "(t)", "95 % CI low", "95 % CI high")]
    labels += ["Observations", "Pairs", "Within R-squared", "Overall R-squared", "Adjusted R-squared"]
    labels += ["Individual FE", "Constant"]
    cells = {f"({column.column}) {column.group.upper()}": _cells(column, terms) for column in fit.columns}
    return pd.DataFrame(cells, index=labels)


def _cells(column: "Column", terms: list[str]) -> list[str]:
    cells = []
    for term in terms:
        if term in column.regressors:
            low, high = column.ci[term]
            cells += [_number(column.coef[term]), f"({column.t[term]:.2f})", _number(low), _number(high)]
        else:
            cells += [""] * 4
    cells += [f"{column.n_obs:,}", f"{column.n_pairs:,}"]
    cells += [_number(column.r2[name]) for name in ("within", "overall", "adjusted")]
    return [*cells, "YES", "YES"]


def _number(value: float) -> str:
    """Four decimals, or three significant digits where these would hide the value."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def _title(fit: "Fit") -> str:
    return f"Response {fit.response}, metric {fit.metric}: pair fixed effects, errors clustered by pair"


def _notes(fit: "Fit") -> list[str]:
    """Each note once, with the columns it belongs to."""
    notes = dict.fromkeys(note for column in fit.columns for note in column.notes)
    return [
        f"({', '.join(str(column.column) for column in fit.columns if note in column.notes)}) {note}" for note in notes
    ]


def _latex(fit: "Fit") -> str:
    # A hyphen would be set as one; cells hold nothing else that LaTeX reads as markup.
    cells = layout(fit).map(lambda cell: cell.replace("-", "$-$"))
    caption = " ".join(f"{line}." for line in [_title(fit), *_notes(fit)])
    return (
        cells.style.format_index(escape="latex", axis=0)
        .format_index(escape="latex", axis=1)
        .to_latex(
            hrules=True,
            column_format="l" + "r" * len(fit.columns),
            position_float="centering",
            caption=re.sub(r"([_%&#$])", r"\\\1", caption),
        )
    )


def _html(fit: "Fit") -> str:
    # Without a fixed id every rendering of the same fit would differ.
    caption = "<br>".join(escape(line) for line in [_title(fit), *_notes(fit)])
    return (
        layout(fit)
        .style.format(escape="html")
        .format_index(escape="html", axis=0)
        .format_index(escape="html", axis=1)
        .set_uuid("fit")
        .set_caption(caption)
        .to_html()
    )


def _plain(fit: "Fit", style: str) -> str:
    # Cells are finished text: tabulate must not parse "(1.20)" or "1,200" as numbers again.
    cells = layout(fit)
    rows = [[label, *row] for label, row in zip(cells.index, cells.to_numpy(), strict=True)]
    alignment = ["left"] + ["right"] * len(fit.columns)
    table = tabulate(rows, headers=["", *cells.columns], tablefmt=style, colalign=alignment, disable_numparse=True)
    return "\n\n".join([_title(fit), table, *_notes(fit)])
