"""The six fitted columns of a metric and response, and the table they show themselves as."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from clada.errors import InputError
from clada.system.jsonfile import check_checksum, with_checksum
from cladastats.results.labels import metric_title
from cladastats.results.tables import TEXT_STYLES, html_table, latex_table, number_text, plain_table

if TYPE_CHECKING:
    from maketables import MTable

FIT_SCHEMA = "cladastats/fit/1"

PAPER_METRICS = ("cka", "cosine")
"""Metrics of the paper's Tables 2 and 3."""

RESPONSES = {"toward": "shift_toward", "matched": "shift_matched", "away": "shift_away", "raw": "sim_hb"}
"""Panel column of each response."""

RESPONSE_SCALES = {
    "toward": "0: the prefix changes nothing, 1: the hybrid acts like the text its prefix is from",
    "matched": "0: the prefix changes nothing, 1: the hybrid acts like the prefix's text before the same last word",
    "away": "0: the hybrid acts like the text it ends with, growing as it departs from that",
    "raw": "the similarity of the hybrid to the text its prefix is from",
}

COLUMNS = {
    1: ("rts", ("prefix_len",)),
    2: ("nls", ("prefix_len",)),
    3: ("rts", ("prefix_len", "surprisal_norm")),
    4: ("nls", ("prefix_len", "surprisal_norm")),
    5: ("rts", ("prefix_len", "surprisal_norm", "entropy_norm")),
    6: ("nls", ("prefix_len", "surprisal_norm", "entropy_norm")),
}
"""Group and regressors of the paper's six columns."""

LOADS = {"surprisal_norm": "surprisal", "entropy_norm": "entropy"}

CONFIRMATORY = ((1, "prefix_len"), (2, "prefix_len"), *((column, load) for column in (5, 6) for load in LOADS))
"""The hypotheses (2.1 and 2.2) as column and term: what the paper's conclusions rest on. `cladastats.panel.claims`
corrects them together, over both of the paper's metrics."""

LABELS = {
    "prefix_len": "Prefix (1,000 tokens)",
    "surprisal_norm": "Surprisal (norm.)",
    "entropy_norm": "Entropy (norm.)",
}

FORMATS = ("text", "markdown", "latex", "csv", "html", "json")


@dataclass(frozen=True)
class Column:
    """One column of the table: one group, one set of regressors.

    Attributes:
        column: 1 to 6, as in the paper.
        group: "rts" or "nls".
        regressors: Names in order, controls last, without the constant.
        coef: Coefficient of each regressor and of "const"; `prefix_len` per 1,000 tokens.
        se: Standard errors, clustered, as `cov` says.
        t: `coef / se`.
        p: Two-sided, from Student's t with `n_clusters - 1` degrees of freedom.
        ci: 95 % interval from the same distribution.
        standardised: Coefficient in within-pair standard deviations of the response per within-pair standard
            deviation of the regressor.
        vif: Variance inflation factors after the within transformation.
        within: For each regressor `sd_within`, its standard deviation around the pair means (n_obs - n_pairs degrees
            of freedom), and `share_within`, the share of its sum of squares that lies within pairs.
        r2: `within`, `between` and `overall` for the regressors alone; `inclusive` with the pair effects; `adjusted`
            = 1 - (1 - inclusive) (n - 1) / (n - G - k) for n rows, G pairs and k regressors, so that every pair effect
            counts as a parameter.
        n_obs: Rows used: complete, and of pairs with several of them.
        n_pairs: Pairs used.
        n_clusters: Clusters of the errors: pairs, or pairs that share documents together.
        cov: How the standard errors were made, in words: "clustered by pair, CR1", "clustered by document, CR3
            (jackknife)".
        wild_p: With few clusters, two-sided p of each regressor by the restricted wild cluster bootstrap; else empty.
        notes: What the reader must know about this column.
    """

    column: int
    group: str
    regressors: tuple[str, ...]
    coef: dict[str, float]
    se: dict[str, float]
    t: dict[str, float]
    p: dict[str, float]
    ci: dict[str, tuple[float, float]]
    standardised: dict[str, float]
    vif: dict[str, float]
    within: dict[str, dict[str, float]]
    r2: dict[str, float]
    n_obs: int
    n_pairs: int
    n_clusters: int
    cov: str
    wild_p: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Fit:
    """The table for one metric and response; it shows itself as a table in JupyterLab and at the prompt.

    Attributes:
        metric: Name of the similarity the panel was made with.
        response: A key of `RESPONSES`.
        columns: In the paper's order; those of an absent group are left out.
        robustness: Results of robustness checks by name, ready for JSON.
    """

    metric: str
    response: str
    columns: tuple[Column, ...]
    robustness: dict[str, Any] = field(default_factory=dict)

    def column(self, number: int) -> Column:
        """The column of that number.

        Raises:
            InputError: The fit has no such column.
        """
        for column in self.columns:
            if column.column == number:
                return column
        group, _ = COLUMNS[number]
        raise InputError(
            f"the fit has no column {number}: its panel had no {group.upper()} rows; build the study with that group"
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `fits/<metric>.json`; undefined numbers are None, so that the JSON is strict."""
        return with_checksum({"schema": FIT_SCHEMA, **undefined_to_none(asdict(self))})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Fit:
        """The fit that `to_dict` wrote, its None read as NaN.

        Raises:
            ValueError: It was altered since.
        """
        check_checksum(data)
        columns = tuple(_column_from_dict(column) for column in data["columns"])
        return cls(data["metric"], data["response"], columns, data["robustness"])

    def table(self, fmt: str = "text") -> str:
        """The fit as text, markdown, latex, csv, html or json (see `cladastats.results.fit.render`)."""
        return render(self, fmt)

    def maketable(self) -> MTable:
        """The table as an object of maketables: `.save("docx", "fit.docx")` writes Word, `.make("typst")` is Typst."""
        from maketables import MTable  # it imports libraries of Word files, which no other format needs

        return MTable(layout(self), caption=_title(self), notes=". ".join(_notes(self)))

    def great_table(self) -> Any:
        """The table as an object of great_tables, to be styled further in a notebook."""
        return self.maketable().make("gt")

    def __repr__(self) -> str:
        return self.table("text")

    def _repr_html_(self) -> str:
        return self.table("html")


def render(fit: Fit, fmt: str) -> str:
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
    cells = layout(fit)
    align = ["left"] + ["right"] * len(fit.columns)
    if fmt in TEXT_STYLES:
        return "\n\n".join([_title(fit), plain_table(cells, fmt, align, index=True), *_notes(fit)])
    if fmt == "latex":
        return latex_table(cells, [_title(fit), *_notes(fit)], align, index=True)
    if fmt == "html":
        return html_table(cells, [_title(fit), *_notes(fit)], "fit", index=True)
    raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")


def tidy(fit: Fit) -> pd.DataFrame:
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
            "wild_p": column.wild_p.get(term),
            "ci_low": column.ci[term][0],
            "ci_high": column.ci[term][1],
            "standardised": column.standardised.get(term),
            "vif": column.vif.get(term),
            "n_obs": column.n_obs,
            "n_pairs": column.n_pairs,
            "n_clusters": column.n_clusters,
            "cov": column.cov,
            **{f"r2_{name}": value for name, value in column.r2.items()},
        }
        for column in fit.columns
        for term in (*column.regressors, "const")
    )


def layout(fit: Fit) -> pd.DataFrame:
    """The table's cells as text: rows as in the paper's Table 2 with intervals for stars, one column a model."""
    terms = list(dict.fromkeys(term for column in fit.columns for term in column.regressors))
    wild = any(column.wild_p for column in fit.columns)
    below = ["(t)", "95 % CI low", "95 % CI high", *(["p, wild bootstrap"] if wild else [])]
    labels = [label for term in terms for label in (LABELS.get(term, term), *below)]
    labels += ["Observations", "Pairs", "Clusters", "Errors", "Within R-squared", "Overall R-squared"]
    labels += ["Adjusted R-squared", "Individual FE", "Constant"]
    cells = {f"({column.column}) {column.group.upper()}": _cells(column, terms, wild) for column in fit.columns}
    return pd.DataFrame(cells, index=labels)


def _cells(column: Column, terms: list[str], wild: bool) -> list[str]:
    cells = []
    for term in terms:
        shown = [""] * (5 if wild else 4)
        if term in column.regressors:
            low, high = column.ci[term]
            shown[:4] = number_text(column.coef[term]), f"({column.t[term]:.2f})", number_text(low), number_text(high)
            if column.wild_p:
                shown[4] = f"{column.wild_p[term]:.4f}"
        cells += shown
    _, _, errors = column.cov.partition(", ")
    cells += [f"{column.n_obs:,}", f"{column.n_pairs:,}", f"{column.n_clusters:,}", errors.partition(" ")[0]]
    cells += [number_text(column.r2[name]) for name in ("within", "overall", "adjusted")]
    return [*cells, "YES", "YES"]


def _title(fit: Fit) -> str:
    errors = {column.cov for column in fit.columns}
    same = f", errors {errors.pop()}" if len(errors) == 1 else ""
    return f"Response {fit.response}, metric {metric_title(fit.metric)}: pair fixed effects{same}"


def _notes(fit: Fit) -> list[str]:
    """Each note once, with the columns it belongs to; how errors were made, where that is not the same in all."""
    differ = len({column.cov for column in fit.columns}) > 1
    notes = {column.column: ((f"errors {column.cov}",) if differ else ()) + column.notes for column in fit.columns}
    return [
        f"({', '.join(str(column) for column, own in notes.items() if note in own)}) {note}"
        for note in dict.fromkeys(note for own in notes.values() for note in own)
    ]


def undefined_to_none(value: Any) -> Any:
    """The value with every NaN and infinity, at any depth, as None, and every tuple as a list."""
    if isinstance(value, dict):
        return {key: undefined_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [undefined_to_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _none_to_nan(value: Any) -> Any:
    """The value with every None, at any depth, as NaN."""
    if isinstance(value, dict):
        return {key: _none_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_none_to_nan(item) for item in value]
    return math.nan if value is None else value


def _column_from_dict(data: dict[str, Any]) -> Column:
    # Fits of earlier versions were clustered by pair, with CR1 errors.
    values = {"n_clusters": data["n_pairs"], "wild_p": {}, **_none_to_nan(data)}
    values["regressors"], values["notes"] = tuple(values["regressors"]), tuple(values["notes"])
    values["ci"] = {name: tuple(interval) for name, interval in values["ci"].items()}
    return Column(**values)
