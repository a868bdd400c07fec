"""The paper's claims of section 2 against a study: claim, estimate with interval, verdict.

A claim of a direction is *supported* where its test is significant at 5 % in that direction, *contradicted* where it is
so in the other one, *undecided* otherwise. A claim of no effect cannot be supported by a test that finds none: it is
*not contradicted*, with the interval to judge by. The six coefficients of the two hypotheses are corrected together
(Holm); the other tests stand by themselves, and every row names its own. Intervals are not corrected.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy import stats

from clada.errors import StudyError
from cladastats.results.fit import Fit
from cladastats.study import Study

METRICS = ("cka", "cosine")  # the paper's Tables 2 and 3

COLUMNS = ("claim", "metric", "estimate", "ci_low", "ci_high", "test", "p", "verdict")


def claims(study: Study) -> pd.DataFrame:
    """Judge every claim of section 2.

    Args:
        study: with `cladastats regress --robust` of the metrics `cka` and `cosine`.

    Returns:
        rows in columns `COLUMNS`; prefix effects are per 1,000 tokens, load effects per log2 of the vocabulary.

    Raises:
        StudyError: a fit is missing, or has no robustness checks.
    """
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        fit = study.fit(metric)
        if not fit.robustness:
            raise StudyError(
                f"{study.folder} has no robustness checks of {metric}; run 'cladastats regress --study {study.folder} "
                f"--metric {metric} --robust'"
            )
        rows += _of_fit(fit)
        rows += _dominance(study.panel(metric), metric)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def in_words(verdicts: pd.DataFrame) -> list[str]:
    """A sentence per verdict, with the claims and metrics it was reached for.

    Args:
        verdicts: of `claims`, or some of its rows.
    """
    found = []
    for verdict, rows in verdicts.groupby("verdict", sort=False):
        names = [f"{claim} ({', '.join(own['metric'])})" for claim, own in rows.groupby("claim", sort=False)]
        found.append(f"{str(verdict).capitalize()}: {'; '.join(names)}.")
    return found


def _of_fit(fit: Fit) -> list[dict[str, Any]]:
    columns = {column.column: column for column in fit.columns}
    holm = {(test["column"], test["term"]): test["p_holm"] for test in fit.robustness["confirmatory"]}
    found = []

    def tested(claim: str, number: int, term: str, sign: int) -> None:
        """Of one coefficient: `sign` is the claimed one, 0 for none."""
        if number in columns:
            column = columns[number]
            p = holm[number, term]
            found.append(_row(claim, fit.metric, column.coef[term], column.ci[term], "Holm of six", p, sign))

    tested("2.1, RTS: activations follow a longer prefix", 1, "prefix_len", 1)
    tested("2.1, NLS: activations follow a longer prefix", 2, "prefix_len", 1)
    for group, ordered in fit.robustness["ordered"].items():
        total = sum(step["change"] for step in ordered["steps"])
        falls = ordered["p_some_fall"] < 0.05
        rises = ordered["p_rising"] < 0.05
        found.append(
            {
                "claim": f"2.1, {group.upper()}: every longer prefix is followed more",
                "metric": fit.metric,
                "estimate": total,
                "test": "some step falls" if falls else "every step rises",
                "p": ordered["p_some_fall" if falls else "p_rising"],
                "verdict": "contradicted" if falls else "supported" if rises else "undecided",
            }
        )
    difference = fit.robustness["group_difference"]
    if difference is not None:
        prefix = difference["prefix_len"]
        name = "Observation 2: natural text follows its prefix less than random words"
        found.append(_row(name, fit.metric, prefix["difference"], prefix["ci"], "Welch", prefix["p"], -1))
    tested("2.2, RTS: surprisal has no effect", 5, "surprisal_norm", 0)
    tested("2.2, RTS: entropy has no effect", 5, "entropy_norm", 0)
    tested("2.2, NLS: surprisal disturbs flocking", 6, "surprisal_norm", -1)
    tested("2.2, NLS: entropy disturbs flocking", 6, "entropy_norm", -1)
    return found


def _row(claim: str, metric: str, value: float, ci: Any, test: str, p: float, sign: int) -> dict[str, Any]:
    clear = p < 0.05
    if sign == 0:
        verdict = "contradicted" if clear else "not contradicted"
    else:
        verdict = "undecided" if not clear else "supported" if value * sign > 0 else "contradicted"
    return {
        "claim": claim, "metric": metric, "estimate": value, "ci_low": ci[0], "ci_high": ci[1], "test": test,
        "p": p, "verdict": verdict,
    }  # fmt: skip


def _dominance(panel: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """Section 2's "dominated by the prefix": with half of the context from B, does A' act more like B than not?

    The response is 0 where the prefix changes nothing and 1 where A' acts like B; one half is the border.
    """
    found = []
    ratio = min(panel["ratio"].unique(), key=lambda r: abs(r - 0.5))
    for group, rows in panel[panel["ratio"] == ratio].groupby("group"):
        values = rows["shift_toward"].dropna()
        mean, se, df = values.mean(), values.std() / math.sqrt(len(values)), len(values) - 1
        half = stats.t.ppf(0.975, df) * se
        t = (mean - 0.5) / se
        p = float(2 * stats.t.sf(abs(t), df))
        row = _row(
            f"{group.upper()}: activations are dominated by a prefix of {ratio:.0%} (response above 0.5)",
            metric,
            mean - 0.5,
            (mean - half, mean + half),
            "t against 0.5",
            p,
            1,
        )
        found.append({**row, "estimate": mean})
    return found
