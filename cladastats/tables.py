"""A fit as a table: text, Markdown, LaTeX, CSV, HTML or JSON."""

import json
import re
import statistics
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from clada.errors import InputError

if TYPE_CHECKING:
    from cladastats.regress import Column, Fit
    from cladastats.study import Study

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


# Yang et al., arXiv 2502.19078, Tables 2 (CKA) and 3 (cosine): t statistics by column, and the few coefficients that
# can still be read in the text we have (starred ones were lost on the way). Its load coefficients of column 6 are the
# 0.80 and 0.12 of section 3.2.3; their signs are those of its conclusion.
PUBLISHED: dict[str, dict[str, dict[str, tuple[float | None, ...]]]] = {
    "cka": {
        "t": {
            "prefix_len": (22.03, 20.16, 21.53, 21.37, 19.22, 18.84),
            "surprisal_norm": (None, None, -0.26, -8.19, -0.14, -8.13),
            "entropy_norm": (None, None, None, None, -4.38, -5.87),
        },
        "coef": {
            "surprisal_norm": (None, None, -0.02, None, -0.09, -0.80),
            "entropy_norm": (None, None, None, None, -0.36, -0.12),
        },
    },
    "cosine": {
        "t": {
            "prefix_len": (22.12, 20.41, 21.35, 21.15, 19.46, 18.53),
            "surprisal_norm": (None, None, -0.26, -7.32, -0.12, -8.14),
            "entropy_norm": (None, None, None, None, -4.25, -5.85),
        },
        "coef": {
            "surprisal_norm": (None, None, -0.01, None, -0.07, None),
            "entropy_norm": (None, None, None, None, -0.35, None),
        },
    },
}


def side_by_side(fits: Sequence["Fit"]) -> pd.DataFrame:
    """The six-column tables of several metrics above each other, the paper's published values in rows of their own.

    Args:
        fits: of a study, for instance `cka` and `cosine`.

    Returns:
        index (metric, row), a column per model; an empty cell is what the model does not have, "lost" what the paper
        has but our copy of it does not.
    """
    parts = {}
    for fit in fits:
        cells = layout(fit)
        published = PUBLISHED.get(fit.metric)
        if published is not None:
            for term, values in published["t"].items():
                coefs = published["coef"].get(term, (None,) * 6)
                shown = {
                    name: ""
                    if (t := values[column.column - 1]) is None
                    else f"{'lost' if (c := coefs[column.column - 1]) is None else f'{c:.2f}'} ({t:.2f})"
                    for name, column in zip(cells.columns, fit.columns, strict=True)
                }
                cells.loc[f"{LABELS[term]}, published (t)"] = shown
        parts[fit.metric] = cells
    return pd.concat(parts, names=["metric", "row"])


def descriptive(panel: pd.DataFrame, response: str = "shift_toward") -> pd.DataFrame:
    """Mean, standard deviation (also within pairs), minimum and maximum of what enters the table (the paper's Table 9).

    Args:
        panel: of a study.
        response: its response column.

    Returns:
        index (group, variable): mean, std, std_within, min, max, n.
    """
    names = ["prefix_len", "surprisal_norm", "entropy_norm", "surprisal_bits", "entropy_bits", "token_len", response]
    parts = {}
    for group, rows in panel.groupby("group"):
        values = rows[names].astype(float)
        around = values - values.groupby(rows["pair"]).transform("mean")
        table = values.agg(["mean", "std", "min", "max", "count"]).T
        freedom = len(values) - rows["pair"].nunique()
        table.insert(2, "std_within", np.sqrt((around**2).sum() / freedom) if freedom else np.nan)
        parts[group] = table.rename(columns={"count": "n"})
    return pd.concat(parts, names=["group", "variable"])


ROBUST_COLUMNS = ("check", "group", "term", "estimate", "ci_low", "ci_high", "p", "note")


def robustness_rows(fit: "Fit") -> pd.DataFrame:
    """The answers of `cladastats.robust` as one table, a row per estimate, in columns `ROBUST_COLUMNS`.

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
            note += f", 90 % interval {_number(v['ci_90'][0])} to {_number(v['ci_90'][1])}"
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
            f"{_number(values[0])} to {_number(values[-1])}"
        )
        add("median of the layers", group, term, statistics.median(values), note=note)
    for v in found["power"]:
        note = f"column {v['column']}; {v['standardised']:.2f} standard deviations"
        add("smallest effect seen at 80 % power", v["group"], v["term"], v["smallest_effect"], note=note)
    return pd.DataFrame(rows, columns=list(ROBUST_COLUMNS))


def across_measures(studies: "Sequence[Study]") -> pd.DataFrame:
    """Prefix and load effects by every metric and response that was fitted, to see whether the choice decides.

    Args:
        studies: of the same pairs, for instance with shorter and longer prefixes.

    Returns:
        a row per study, response, metric and group; estimates with their 95 % intervals as text, uncorrected: the
        prefix alone (columns 1 and 2), the loads beside it (5 and 6), and, of fits with robustness checks, beside an
        effect of every ratio in the place of the prefix.
    """
    rows = []
    for study in studies:
        shares = f"{100 * min(study.config.ratios):g} to {100 * max(study.config.ratios):g} %"
        for path in sorted((study.folder / "fits").glob("*.json"), key=lambda p: ("-" in p.stem, p.stem)):
            metric, _, response = path.stem.partition("-")
            fit = study.fit(metric, response or "toward")
            columns = {column.column: column for column in fit.columns}
            for group, alone, full in (("nls", 2, 6), ("rts", 1, 5)):
                if full not in columns:
                    continue
                prefix, loads = columns[alone], columns[full]
                row = {"prefixes": shares, "response": fit.response, "metric": metric, "group": group.upper()}
                row["prefix"] = with_interval(prefix.coef["prefix_len"], prefix.ci["prefix_len"])
                for load in ("surprisal_norm", "entropy_norm"):
                    name, same = load.removesuffix("_norm"), fit.robustness.get("ratio_effects", {}).get(group)
                    row[name] = with_interval(loads.coef[load], loads.ci[load])
                    row[f"{name} at equal ratio"] = with_interval(same[load]["coef"], same[load]["ci"]) if same else ""
                rows.append(row)
    return pd.DataFrame(rows)


def with_interval(value: float, ci: Sequence[float]) -> str:
    """An estimate and its interval as text."""
    return f"{value:.3g} [{ci[0]:.3g}, {ci[1]:.3g}]"


def render_robustness(fit: "Fit", fmt: str) -> str:
    """The answers of `cladastats.robust` in one of `FORMATS` but JSON.

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
        **{name: table[name].map(lambda v: "" if pd.isna(v) else _number(v)) for name in numbers},
        p=table["p"].map(lambda v: "" if pd.isna(v) else f"{v:.3f}" if v >= 0.001 else "<0.001"),
    ).rename(columns={"ci_low": "95 % CI low", "ci_high": "95 % CI high"})
    title = f"Robustness of response {fit.response}, metric {fit.metric} (prefix per 1,000 tokens)"
    styles = {"text": "simple", "markdown": "pipe", "latex": "latex_raw", "html": "html"}
    if fmt not in styles:
        raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")
    parts = [title, *fit.robustness["notes"]]
    if fmt == "latex":
        cells = cells.rename(columns=_latex_text).map(
            lambda cell: cell.replace("-", "$-$") if re.fullmatch(r"-[\d.e+-]+", cell) else _latex_text(cell)
        )
        parts = [_latex_text(part) for part in parts]
    body = tabulate(
        cells.to_numpy().tolist(), list(cells.columns), tablefmt=styles[fmt], disable_numparse=True,
        colalign=["left", "left", "left", "right", "right", "right", "right", "left"],
    )  # fmt: skip
    return "\n\n".join([parts[0], body, *parts[1:]])


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
            caption=_latex_text(caption),
        )
    )


def _latex_text(text: str) -> str:
    return re.sub(r"([_%&#$])", r"\\\1", text)


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
