"""The answers of the robustness checks as one table."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from tabulate import tabulate

from clada.errors import InputError
from cladastats.results.fit import FORMATS, LABELS, latex_text, number_text

if TYPE_CHECKING:
    from cladastats.results.fit import Fit

ROBUST_COLUMNS = ("check", "group", "term", "estimate", "ci_low", "ci_high", "p", "note")


def robustness_rows(fit: Fit) -> pd.DataFrame:
    """The answers of `cladastats.panel.robustness` as one table, a row per estimate, in columns `ROBUST_COLUMNS`.

    Layers are summed up (their estimates are in the fit's `robustness["layers"]`).
    """
    found, rows = fit.robustness, []

    def add(
        check: str, group: str, term: str, value: Any, ci: Any = (None, None), p: Any = None, note: str = ""
    ) -> None:
        rows.append((check, group.upper(), LABELS.get(term, term), value, *(ci or (None, None)), p, note))

    def terms(check: str, group: str, values: dict[str, Any], note: str = "") -> None:
        for term, v in values.items():
            add(check, group, term, v["coef"], v["ci"], v["p"], note)

    for test in found["confirmatory"]:
        add("Holm", test["group"], test["term"], test["coef"], p=test["p_holm"], note=f"column {test['column']}")
    for column in fit.columns:
        for term, v in found["bootstrap"][str(column.column)].items():
            note = f"column {column.column}, studentised"
            add("cluster bootstrap", column.group, term, column.coef[term], v["ci"], note=note)
    for group, v in found["permutation"].items():
        add("permuted ratios", group, "prefix_len", v["coef"], p=v["p"])
    for group, v in found["per_pair"].items():
        add("median of the pairs' slopes", group, "prefix_len", v["median"], p=v["wilcoxon_p"], note="Wilcoxon")
        add("share of pairs that rise", group, "prefix_len", v["rising"], v["rising_ci"])
    for group, v in found["ordered"].items():
        for step in v["steps"]:
            check = f"step {step['from']:g} to {step['to']:g}"
            add(check, group, "response", step["change"], step["ci"], step["p_rise"], "one-sided, rise")
        add("every step rises", group, "response", None, p=v["p_rising"], note="intersection-union")
        if v["p_nonlinear"] is not None:
            add("not a line", group, "response", None, p=v["p_nonlinear"], note="Wald")
    for term, v in (found["group_difference"] or {}).items():
        add("NLS - RTS", "both", term, v["difference"], v["ci"], v["p"])
        if "verdict" in v:
            note = f"margin {v['margin']:g}: {v['verdict']}"
            note += f", 90 % interval {number_text(v['ci_90'][0])} to {number_text(v['ci_90'][1])}"
            add("equivalence", "both", term, v["difference"], p=v["equivalence_p"], note=note)
    for group, v in found["ratio_effects"].items():
        terms("with ratio effects", group, v)
    for group, v in found["mixed"].items():
        terms("mixed model", group, v["terms"], "" if v["converged"] else "did not converge")
        add("mixed model", group, "sd of the pairs' slopes", v["sd_slope"])
    for group, v in found["controls"].items():
        terms("with controls", group, v["with_controls"])
        terms("moderated", group, v["moderators"])
    for group, v in found["between"].items():
        terms("between pairs", group, v)
    for group, v in found["reuse"].items():
        if group != "reused":
            terms("clustered by both texts", group, v)
    for group, v in (found["trimmed"] or {}).items():
        terms("without massive neurons", group, v)
    for group, kinds in found.get("placebo", {}).items():
        for kind, v in kinds.items():
            note = f"{v['n_pairs']} pairs, mean response {with_interval(v['mean'], v['mean_ci'])}"
            add(f"placebo: {kind}" if kind != "genuine" else "placebo's pairs, genuine", group, "prefix_len",
                v["coef"], v["ci"], v["p"], note)  # fmt: skip
    for group, term in dict.fromkeys((r["group"], r["term"]) for r in found.get("layers", [])):
        own = [r for r in found["layers"] if (r["group"], r["term"]) == (group, term)]
        clear = [r for r in own if r["p_bh"] < 0.05]
        up = sum(r["coef"] > 0 for r in clear)
        values = sorted(r["coef"] for r in own)
        note = (
            f"of {len(own)} layers {up} positive and {len(clear) - up} negative at 5 % (Benjamini-Hochberg); "
            f"{number_text(values[0])} to {number_text(values[-1])}"
        )
        add("median of the layers", group, term, statistics.median(values), note=note)
    for v in found["power"]:
        note = f"column {v['column']}; {v['standardised']:.2f} standard deviations"
        add("smallest effect seen at 80 % power", v["group"], v["term"], v["smallest_effect"], note=note)
    return pd.DataFrame(rows, columns=list(ROBUST_COLUMNS))


def with_interval(value: float, ci: Sequence[float]) -> str:
    """An estimate and its interval as text."""
    return f"{value:.3g} [{ci[0]:.3g}, {ci[1]:.3g}]"


def render_robustness(fit: Fit, fmt: str) -> str:
    """The answers of `cladastats.panel.robustness` in one of `FORMATS` but JSON.

    Raises:
        InputError: The fit has none, or the format is unknown.
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
    title = f"Robustness of response {fit.response}, metric {fit.metric} (prefix per 1,000 tokens)"
    styles = {"text": "simple", "markdown": "pipe", "latex": "latex_raw", "html": "html"}
    if fmt not in styles:
        raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")
    parts = [title, *fit.robustness["notes"]]
    if fmt == "latex":
        cells = cells.rename(columns=latex_text).map(
            lambda cell: cell.replace("-", "$-$") if re.fullmatch(r"-[\d.e+-]+", cell) else latex_text(cell)
        )
        parts = [latex_text(part) for part in parts]
    body = tabulate(
        cells.to_numpy().tolist(), list(cells.columns), tablefmt=styles[fmt], disable_numparse=True,
        colalign=["left", "left", "left", "right", "right", "right", "right", "left"],
    )  # fmt: skip
    return "\n\n".join([parts[0], body, *parts[1:]])
