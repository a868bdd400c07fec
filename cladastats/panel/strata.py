"""The prefix's effect in parts of the pairs and in other forms of the hybrid or the similarity.

Strata ask what stands between the prefix and the target, placebo hybrids whether it is the prefix that matters, and the
trimmed similarity whether a few neurons decide. Slopes are in response points per 1,000 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from cladastats.panel.columns import complete_rows, fit_columns
from cladastats.panel.contrasts import group_difference, ordered
from cladastats.panel.within import Within, mean_summary, within_summary
from cladastats.results.fit import CONFIRMATORY, LOADS, RESPONSES, Fit
from cladastats.sequences.placebos import PLACEBOS

SEPARATOR_STRATA = ("no separator at any ratio", "a separator at some ratios", "a separator at every ratio")
"""Pairs by what stands between the end of their prefix and their target."""

DISTANCE_STRATA = 3
"""Parts of equal size into which pairs are divided by the target's distance from the beginning of its document."""


def slope_and_mean(rows: pd.DataFrame, group: str, outcome: str) -> dict[str, Any] | None:
    """The prefix's slope and the mean response of some pairs of a group.

    Args:
        rows: Of a panel, one per pair and ratio.
        group: "nls" or "rts".
        outcome: Response column.

    Returns:
        `coef`, `se`, `ci`, `p` of the slope (prefix alone); `mean` of the response, `mean_ci`, `median` of the rows;
        `n_pairs`. None where there are too few pairs of several complete rows.
    """
    data, _ = complete_rows(rows, group, outcome, ("prefix_len",))
    within = Within.of(data, outcome, ["prefix_len"])
    if not within.identified():
        return None
    mean = mean_summary(data, outcome)
    slope = within_summary(within)["prefix_len"]
    return {
        **slope,
        "mean": mean["coef"],
        "mean_ci": mean["ci"],
        "median": float(data[outcome].median()),
        "n_pairs": within.pairs,
    }


def strata(panel: pd.DataFrame, outcome: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The prefix's slope and the mean response by what stands between the prefix and the target.

    A document separator there is a rival explanation of every null result, because a model is trained to forget what
    stands before it. Pairs are divided by whether one is there, and by how far the target is from the beginning of its
    document.

    Args:
        panel: Of a study.
        outcome: Response column.

    Returns:
        A record per group and stratum: `group`, `stratum` and what `slope_and_mean` gives; and notes on strata that are
        left out. A division in which all pairs of a group are alike has no records.
    """
    missing = [name for name in ("separator_between", "target_distance") if name not in panel]
    if missing:
        return [], [
            f"the panel has no {' and no '.join(missing)}, as an earlier version made it: no strata by what stands "
            "between prefix and target; 'cladastats similarity' makes it again"
        ]
    records, left_out = [], dict[str, list[str]]()
    for group, rows in panel.groupby("group"):
        for strata_of_pairs in (_by_separator(rows), _by_distance(rows)):
            names = [name for name, pairs in strata_of_pairs.items() if len(pairs)]
            if len(names) == 1:
                left_out.setdefault(f"every pair is in the stratum '{names[0]}'", []).append(group)
                continue
            for name, pairs in strata_of_pairs.items():
                found = slope_and_mean(rows[rows["pair"].isin(pairs)], group, outcome)
                if found is None:
                    left_out.setdefault(f"too few pairs are in the stratum '{name}', which is left out", []).append(
                        group
                    )
                else:
                    records.append({"group": group, "stratum": name, **found})
    notes = [f"{' and '.join(group.upper() for group in groups)}: {note}" for note, groups in left_out.items()]
    return records, notes


def _by_separator(rows: pd.DataFrame) -> dict[str, pd.Index]:
    """The pairs of each of `SEPARATOR_STRATA`."""
    share = rows.groupby("pair")["separator_between"].mean()
    kinds = np.select([share == 0, share == 1], [0, 2], 1)
    return {name: share.index[kinds == kind] for kind, name in enumerate(SEPARATOR_STRATA)}


def _by_distance(rows: pd.DataFrame) -> dict[str, pd.Index]:
    """Pairs in parts of equal size by the target's distance from the beginning of its document."""
    distance = rows.groupby("pair")["target_distance"].first()
    # Ranks, so that equal distances do not leave a part empty; equal ones stay together.
    place = distance.rank(method="min", pct=True)
    part = np.minimum((place * DISTANCE_STRATA).to_numpy() - 1e-9, DISTANCE_STRATA - 1e-9).astype(int)
    return dict(_named(distance, part))


def _named(distance: pd.Series, part: np.ndarray) -> Iterator[tuple[str, pd.Index]]:
    for number in np.unique(part):
        own = distance[part == number]
        tokens = " to ".join(f"{end:,.0f}" for end in dict.fromkeys((own.min(), own.max())))
        yield f"target {tokens} tokens into its document", own.index


def placebos(panel: pd.DataFrame, genuine: pd.DataFrame, outcome: str) -> dict[str, dict[str, Any]]:
    """The prefix's slope and the mean response of placebo hybrids, beside those of the genuine ones of the same pairs.

    Args:
        panel: Of the placebo study.
        genuine: The study's panel.
        outcome: Response column.

    Returns:
        Per group and kind, `genuine` first, what `slope_and_mean` gives; kinds with too few pairs are left out.
    """
    effects: dict[str, dict[str, Any]] = {}
    for group, rows in panel.groupby("group"):
        same = genuine[(genuine["group"] == group) & genuine["pair"].isin(rows["pair"].unique())]
        parts = {"genuine": same, **{kind: rows[rows["placebo"] == kind] for kind in PLACEBOS}}
        found = {kind: slope_and_mean(part, group, outcome) for kind, part in parts.items()}
        effects[group] = {kind: effect for kind, effect in found.items() if effect is not None}
    return effects


def trimmed_form(panel: pd.DataFrame, fit: Fit, margin: tuple[float, str]) -> dict[str, Any]:
    """What the verdicts rest on, without the few neurons of massive activity, which dominate similarities.

    Args:
        panel: Of the trimmed similarity.
        fit: Of the whole one.
        margin: Of the groups' difference, and its source.

    Returns:
        `trimmed`: per group the prefix's slope (alone) and the loads' (beside it); `trimmed_checks`: `ordered` per
        group, and `group_difference`.
    """
    same = fit_columns(panel, fit.metric, fit.response)
    terms: dict[str, dict[str, Any]] = {}
    for number, term in CONFIRMATORY:
        for column in same.columns:
            if column.column == number:
                value = {"coef": column.coef[term], "se": column.se[term], "ci": list(column.ci[term])}
                terms.setdefault(column.group, {})[term] = {**value, "p": column.p[term]}
    outcome = RESPONSES[fit.response]
    rows = {group: complete_rows(panel, group, outcome, ("prefix_len", *LOADS))[0] for group in terms}
    steps = {group: ordered(data, outcome) for group, data in rows.items()}
    checks = {"ordered": steps, "group_difference": group_difference(same, *margin)}
    return {"trimmed": terms, "trimmed_checks": checks}
