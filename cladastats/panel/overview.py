"""Fits side by side: with the published values, over metrics and responses; what enters them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from cladastats.results.fit import LABELS, LOADS, layout
from cladastats.results.labels import metric_label
from cladastats.results.robustness import with_interval

if TYPE_CHECKING:
    from cladastats.results.fit import Fit
    from cladastats.study import Study

# Yang et al., arXiv 2502.19078, Tables 2 (CKA) and 3 (cosine): t statistics by column, and the few coefficients that
# can still be read in the text we have (starred ones were lost on the way). Its load coefficients of column 6 are the
# 0.80 and 0.12 of section 3.2.3; their signs are those of its conclusion.
PAPER_VALUES: dict[str, dict[str, dict[str, tuple[float | None, ...]]]] = {
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


def side_by_side(fits: Sequence[Fit]) -> pd.DataFrame:
    """The six-column tables of several metrics above each other, the paper's published values in rows of their own.

    Args:
        fits: of a study, for instance `cka` and `cosine`.

    Returns:
        index (label of the metric, row), a column per model; an empty cell is what the model does not have, "lost"
        what the paper has but our copy of it does not.
    """
    parts = {}
    for fit in fits:
        cells = layout(fit)
        published = PAPER_VALUES.get(fit.metric)
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
        parts[metric_label(fit.metric)] = cells
    return pd.concat(parts, names=["metric", "row"])


def descriptive(panel: pd.DataFrame, response: str = "shift_toward") -> pd.DataFrame:
    """Mean, median, spread (also within pairs) and range of what enters the table (the paper's Table 9).

    Args:
        panel: of a study.
        response: its response column.

    Returns:
        index (group, variable): mean, median, std, std_within, min, max, n.
    """
    names = ["prefix_len", "surprisal_norm", "entropy_norm", "surprisal_bits", "entropy_bits", "token_len", response]
    parts = {}
    for group, rows in panel.groupby("group"):
        values = rows[names].astype(float)
        around = values - values.groupby(rows["pair"]).transform("mean")
        table = values.agg(["mean", "median", "std", "min", "max", "count"]).T
        freedom = len(values) - rows["pair"].nunique()
        table.insert(3, "std_within", np.sqrt((around**2).sum() / freedom) if freedom else np.nan)
        parts[group] = table.rename(columns={"count": "n"})
    return pd.concat(parts, names=["group", "variable"])


def responses_by_ratio(panel: pd.DataFrame, response: str = "shift_toward") -> pd.DataFrame:
    """The mean response at every prefix share, with the median, which single huge responses do not move.

    Args:
        panel: Of a study, or of several of the same pairs.
        response: Its response column, or one of similarities.

    Returns:
        A row per group and ratio: `prefix_len`, `mean` with its 95 % interval `ci_low`, `ci_high`, `median`, `beyond`
        (share of pairs whose response is outside -1 to 1), `pairs` (those that have a response). The interval is from
        Student's t over pairs, or over the clusters of pairs that share documents where the panel names them.
    """
    rows = panel.dropna(subset=[response]).assign(cluster=panel["cluster"] if "cluster" in panel else panel["pair"])
    records = []
    for (group, ratio), part in rows.groupby(["group", "ratio"]):
        values = part[response]
        # Errors of pairs of one cluster add up before they are squared; of single pairs this is the usual error.
        sums = (values - values.mean()).groupby(part["cluster"]).sum()
        n, clusters = len(values), len(sums)
        se = math.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / n if clusters > 1 else math.nan
        half = stats.t.ppf(0.975, clusters - 1) * se
        record = {"group": group, "ratio": ratio, "prefix_len": part["prefix_len"].iloc[0], "mean": values.mean()}
        record |= {"ci_low": values.mean() - half, "ci_high": values.mean() + half, "median": values.median()}
        records.append({**record, "beyond": (values.abs() > 1).mean(), "pairs": n})
    columns = ["group", "ratio", "prefix_len", "mean", "ci_low", "ci_high", "median", "beyond", "pairs"]
    return pd.DataFrame(records, columns=columns)


def beside(fits: Sequence[Fit]) -> pd.DataFrame:
    """Prefix and load effects by several metrics, to see whether the measure decides.

    Args:
        fits: Of one response to the same pairs.

    Returns:
        A row per metric and effect: `metric` (its label), `effect` (prefix, surprisal, entropy), and for each group
        that is there, NLS or RTS, the estimate with its 95 % interval as text, uncorrected: of the prefix alone
        (columns 1 and 2), of the loads beside it (5 and 6).
    """
    rows = []
    for fit in fits:
        found = list(_rows_beside(fit))
        for effect in ("prefix", *LOADS.values()):
            cells = {row["group"]: row[effect] for row in found}
            rows.append({"metric": metric_label(fit.metric), "effect": effect, **cells})
    return pd.DataFrame(rows)


def _rows_beside(fit: Fit) -> Iterator[dict[str, str]]:
    columns = {column.column: column for column in fit.columns}
    for group, alone, full in (("nls", 2, 6), ("rts", 1, 5)):
        if full in columns:
            prefix, loads = columns[alone], columns[full]
            yield {
                "response": fit.response,
                "metric": metric_label(fit.metric),
                "group": group.upper(),
                "prefix": with_interval(prefix.coef["prefix_len"], prefix.ci["prefix_len"]),
                **{name: with_interval(loads.coef[load], loads.ci[load]) for load, name in LOADS.items()},
            }


def across_measures(studies: Sequence[Study]) -> pd.DataFrame:
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
            for row in _rows_beside(fit):
                same = fit.robustness.get("ratio_effects", {}).get(row["group"].lower())
                equal = {
                    f"{name} at equal ratio": with_interval(same[load]["coef"], same[load]["ci"]) if same else ""
                    for load, name in LOADS.items()
                }
                rows.append({"prefixes": shares, **row, **equal})
    return pd.DataFrame(rows)
