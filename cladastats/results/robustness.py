"""The answers of the robustness checks as one table, a row per estimate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from clada.errors import InputError
from cladastats.results.fit import CONFIRMATORY, FORMATS, LABELS
from cladastats.results.labels import GROUP_LABELS, metric_title
from cladastats.results.tables import TEXT_STYLES, html_table, latex_table, number_text, plain_table

if TYPE_CHECKING:
    from cladastats.results.fit import Fit


@dataclass(frozen=True)
class RobustnessRow:
    """One estimate of one check.

    Attributes:
        check: What was done differently from the table.
        group: "NLS", "RTS" or "BOTH".
        term: Label of the regressor, or what is estimated in its place.
        estimate: None where the check gives a p-value only.
        ci_low: Of the 95 % interval; None: the check has none.
        ci_high: The same.
        p: None: the check has none.
        note: What the reader must know.
    """

    check: str
    group: str
    term: str
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    note: str


ROBUST_COLUMNS = tuple(field.name for field in fields(RobustnessRow))

RowsOfCheck = Iterator[RobustnessRow]


def robustness_rows(fit: Fit) -> pd.DataFrame:
    """The answers of `cladastats.panel.robustness` as one table, a row per estimate, in columns `ROBUST_COLUMNS`.

    Layers are summed up (their estimates are in the fit's `robustness["layers"]`).

    Args:
        fit: With robustness checks.
    """
    rows = [astuple(row) for rows_of in _ROWS_OF_CHECKS for row in rows_of(fit)]
    return pd.DataFrame(rows, columns=list(ROBUST_COLUMNS))


def _row(
    check: str,
    group: str,
    term: str,
    estimate: float | None,
    ci: Sequence[float] | None = None,
    p: float | None = None,
    note: str = "",
) -> RobustnessRow:
    low, high = ci or (None, None)
    return RobustnessRow(check, group.upper(), LABELS.get(term, term), estimate, low, high, p, note)


def _terms(check: str, group: str, terms: Mapping[str, Mapping[str, Any]], note: str = "") -> RowsOfCheck:
    """Rows of a regression's coefficients."""
    for term, value in terms.items():
        yield _row(check, group, term, value["coef"], value["ci"], value["p"], note)


def _of_each_group(name: str, check: str) -> Callable[[Fit], RowsOfCheck]:
    """Rows of a check whose answer is the coefficients of a regression for each group."""

    def rows(fit: Fit) -> RowsOfCheck:
        for group, terms in (fit.robustness[name] or {}).items():
            yield from _terms(check, group, terms)

    return rows


def _confirmatory(fit: Fit) -> RowsOfCheck:
    for test in fit.robustness["confirmatory"]:
        note = f"column {test['column']}, not corrected: 'cladastats regress --claims' is"
        yield _row("test of a hypothesis", test["group"], test["term"], test["coef"], p=test["p"], note=note)


def _bootstrap(fit: Fit) -> RowsOfCheck:
    for column in fit.columns:
        note = f"column {column.column}, studentised"
        for term, value in fit.robustness["bootstrap"][str(column.column)].items():
            yield _row("cluster bootstrap", column.group, term, column.coef[term], value["ci"], note=note)


def _permutation(fit: Fit) -> RowsOfCheck:
    for group, value in fit.robustness["permutation"].items():
        yield _row("permuted ratios", group, "prefix_len", value["coef"], p=value["p"])


def _per_pair(fit: Fit) -> RowsOfCheck:
    for group, value in fit.robustness["per_pair"].items():
        check = "median of the pairs' slopes"
        slopes = value["slopes"] if "slopes" in value else value["n_pairs"]  # of earlier fits, one a pair
        note = f"{slopes} slopes, one a cluster"
        yield _row(check, group, "prefix_len", value["median"], p=value["wilcoxon_p"], note=f"Wilcoxon; {note}")
        yield _row("share of pairs that rise", group, "prefix_len", value["rising"], value["rising_ci"], note=note)


def _ordered(fit: Fit) -> RowsOfCheck:
    for group, value in fit.robustness["ordered"].items():
        for step in value["steps"]:
            check = f"step {step['from']:g} to {step['to']:g}"
            yield _row(check, group, "response", step["change"], step["ci"], step["p_rise"], "one-sided, rise")
        if "contrast" in value:  # fits of earlier versions lack it
            contrast = value["contrast"]
            yield _row("ordered contrast", group, "prefix_len", contrast["coef"], contrast["ci"], contrast["p"])
        yield _row("every step rises", group, "response", None, p=value["p_rising"], note="intersection-union")
        if value["p_nonlinear"] is not None:
            yield _row("not a line", group, "response", None, p=value["p_nonlinear"], note="Wald")


def _group_difference(fit: Fit) -> RowsOfCheck:
    for term, value in (fit.robustness["group_difference"] or {}).items():
        yield _row("NLS - RTS", "both", term, value["difference"], value["ci"], value["p"])
        if "verdict" in value:
            smallest = max(abs(end) for end in value["ci_90"])
            note = f"margin {value['margin']:g} ({value.get('margin_source') or 'source not recorded'}): "
            note += f"{value['verdict']}, 90 % interval {number_text(value['ci_90'][0])} to "
            note += f"{number_text(value['ci_90'][1])}; smallest margin that would pass: {number_text(smallest)}"
            yield _row("equivalence", "both", term, value["difference"], p=value["equivalence_p"], note=note)


def _mixed(fit: Fit) -> RowsOfCheck:
    for group, value in fit.robustness["mixed"].items():
        yield from _terms("mixed model", group, value["terms"], "" if value["converged"] else "did not converge")
        yield _row("mixed model", group, "sd of the pairs' slopes", value["sd_slope"])


def _controls(fit: Fit) -> RowsOfCheck:
    for group, value in fit.robustness["controls"].items():
        yield from _terms("with controls", group, value["with_controls"])
        yield from _terms("moderated", group, value["moderators"])


def _two_way_clusters(fit: Fit) -> RowsOfCheck:
    for group, value in fit.robustness["reuse"].items():
        if group != "reused":
            yield from _terms("clustered by both texts", group, value)


def _slope_and_mean(check: str, group: str, value: Mapping[str, Any]) -> RobustnessRow:
    """The row of some pairs' slope; their mean response stands in the note."""
    note = f"{value['n_pairs']} pairs, mean response {with_interval(value['mean'], value['mean_ci'])}"
    note += f", median {value['median']:.3g}" if "median" in value else ""  # earlier fits have none
    return _row(check, group, "prefix_len", value["coef"], value["ci"], value["p"], note)


def _strata(fit: Fit) -> RowsOfCheck:
    for value in fit.robustness.get("strata", []):
        yield _slope_and_mean(f"stratum: {value['stratum']}", value["group"], value)


def _placebos(fit: Fit) -> RowsOfCheck:
    for group, kinds in fit.robustness.get("placebo", {}).items():
        for kind, value in kinds.items():
            check = f"placebo: {kind}" if kind != "genuine" else "placebo's pairs, genuine"
            yield _slope_and_mean(check, group, value)


def _layers(fit: Fit) -> RowsOfCheck:
    records = fit.robustness.get("layers", [])
    for group, term in dict.fromkeys((record["group"], record["term"]) for record in records):
        layers = [record for record in records if (record["group"], record["term"]) == (group, term)]
        significant = [record for record in layers if record["p_bh"] < 0.05]
        positive = sum(record["coef"] > 0 for record in significant)
        coefs = sorted(record["coef"] for record in layers)
        note = (
            f"of {len(layers)} layers {positive} positive and {len(significant) - positive} negative at 5 % "
            f"(Benjamini-Hochberg); {number_text(coefs[0])} to {number_text(coefs[-1])}"
        )
        yield _row("median of the layers", group, term, statistics.median(coefs), note=note)


def _power(fit: Fit) -> RowsOfCheck:
    for value in fit.robustness["power"]:
        note = f"column {value['column']}; {value['standardised']:.2f} standard deviations"
        check = "smallest effect seen at 80 % power"
        yield _row(check, value["group"], value["term"], value["smallest_effect"], note=note)


_ROWS_OF_CHECKS: tuple[Callable[[Fit], RowsOfCheck], ...] = (
    _confirmatory,
    _bootstrap,
    _permutation,
    _per_pair,
    _ordered,
    _group_difference,
    _of_each_group("ratio_effects", "with ratio effects"),
    _mixed,
    _controls,
    _of_each_group("between", "between pairs"),
    _two_way_clusters,
    _of_each_group("trimmed", "without massive neurons"),
    _strata,
    _placebos,
    _layers,
    _power,
)


def with_interval(value: float, ci: Sequence[float]) -> str:
    """An estimate and its interval as text."""
    return f"{value:.3g} [{ci[0]:.3g}, {ci[1]:.3g}]"


def checks_of_term(fit: Fit, term: str) -> pd.DataFrame:
    """One coefficient of every group, estimated in all the ways of the robustness checks.

    Args:
        fit: With robustness checks.
        term: `prefix_len`, `surprisal_norm` or `entropy_norm`.

    Returns:
        A row per check, a column per group, the estimate with its 95 % interval (else its p) as text. Of checks of
        several columns, that of the hypothesis' test: 1 and 2 for the prefix, 5 and 6 for loads.
    """
    rows = robustness_rows(fit)
    rows = rows[rows["term"] == LABELS[term]]
    tested = [f"column {number}" for number, of in CONFIRMATORY if of == term]
    rows = rows[~rows["note"].str.startswith("column") | rows["note"].str.startswith(tuple(tested))]
    shown = rows.assign(
        cell=[
            with_interval(row.estimate, (row.ci_low, row.ci_high))
            if pd.notna(row.ci_low)
            else f"{row.estimate:.3g}" + ("" if pd.isna(row.p) else f", p = {row.p:.2g}")
            for row in rows.itertuples()
        ]
    )
    cells = shown.pivot(index="check", columns="group", values="cell").reindex(rows["check"].unique())
    groups = [group.upper() for group in GROUP_LABELS if group.upper() in cells]
    return cells[groups].dropna(how="all").fillna("").rename_axis(columns=None)


def render_robustness(fit: Fit, fmt: str) -> str:
    """The answers of `cladastats.panel.robustness` in one of `FORMATS` but JSON.

    Args:
        fit: A fit.
        fmt: text, markdown, latex, csv or html.

    Raises:
        InputError: The fit has no robustness checks, or the format is unknown.
    """
    if not fit.robustness:
        raise InputError(f"the fit of {fit.metric} has no robustness checks; run 'cladastats regress --robust'")
    table = robustness_rows(fit)
    if fmt == "csv":
        return table.to_csv(index=False)
    numbers = ["estimate", "ci_low", "ci_high"]
    cells = table.assign(
        **{name: table[name].map(lambda v: "" if pd.isna(v) else number_text(v)) for name in numbers},
        p=table["p"].map(lambda v: "" if pd.isna(v) else f"{v:.3f}" if v >= 0.001 else "<0.001"),
    ).rename(columns={"ci_low": "95 % CI low", "ci_high": "95 % CI high"})
    title = f"Robustness of response {fit.response}, metric {metric_title(fit.metric)} (prefix per 1,000 tokens)"
    align = ["left"] * 3 + ["right"] * 4 + ["left"]
    notes = fit.robustness["notes"]
    if fmt in TEXT_STYLES:
        return "\n\n".join([title, plain_table(cells, fmt, align, index=False), *notes])
    if fmt == "latex":
        return latex_table(cells, [title, *notes], align, index=False)
    if fmt == "html":
        return html_table(cells, [title, *notes], "robustness", index=False)
    raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")
