"""The paper's claims of section 2 against a study: claim, estimate with interval, verdict.

Verdicts follow the one rule of `cladastats.results.verdicts`. The six coefficients of the two hypotheses are corrected
together (Holm); the other tests stand by themselves, and every row names its own. Intervals are not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from clada.errors import StudyError
from cladastats.results.fit import PAPER_METRICS, Fit
from cladastats.results.labels import metric_label
from cladastats.results.verdicts import SIGNIFICANCE, verdict
from cladastats.study import Study

CLAIM_COLUMNS = ("claim", "metric", "estimate", "ci_low", "ci_high", "test", "p", "verdict")

PREFIX_CLAIMS = (
    ("2.1, RTS: activations follow a longer prefix", 1, "prefix_len", 1),
    ("2.1, NLS: activations follow a longer prefix", 2, "prefix_len", 1),
)
"""Claims about one coefficient: text, column, term, claimed sign (0: no effect)."""

LOAD_CLAIMS = (
    ("2.2, RTS: surprisal has no effect", 5, "surprisal_norm", 0),
    ("2.2, RTS: entropy has no effect", 5, "entropy_norm", 0),
    ("2.2, NLS: surprisal disturbs flocking", 6, "surprisal_norm", -1),
    ("2.2, NLS: entropy disturbs flocking", 6, "entropy_norm", -1),
)


def claims(study: Study) -> pd.DataFrame:
    """Judge every claim of section 2.

    Args:
        study: With `cladastats regress --robust` of the metrics `cka` and `cosine`.

    Returns:
        Rows in columns `CLAIM_COLUMNS`; prefix effects are per 1,000 tokens, load effects per log2 of the vocabulary.

    Raises:
        StudyError: A fit is missing, or has no robustness checks.
    """
    rows: list[dict[str, Any]] = []
    for metric in PAPER_METRICS:
        fit = study.fit(metric)
        if not fit.robustness:
            raise StudyError(
                f"{study.folder} has no robustness checks of {metric}; run 'cladastats regress --study {study.folder} "
                f"--metric {metric} --robust'"
            )
        rows += [
            *_coefficient_claims(fit, PREFIX_CLAIMS),
            *_monotonicity(fit),
            *_group_difference(fit),
            *_coefficient_claims(fit, LOAD_CLAIMS),
            *_dominance(study.panel(metric), metric),
        ]
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def in_words(verdicts: pd.DataFrame) -> list[str]:
    """A sentence per verdict, with the claims and metrics it was reached for.

    Args:
        verdicts: Of `claims`, or some of its rows.
    """
    sentences = []
    for name, rows in verdicts.groupby("verdict", sort=False):
        parts = [
            f"{claim} ({'; '.join(map(metric_label, of['metric']))})" for claim, of in rows.groupby("claim", sort=False)
        ]
        sentences.append(f"{str(name).capitalize()}: {'; '.join(parts)}.")
    return sentences


def _coefficient_claims(fit: Fit, wanted: Sequence[tuple[str, int, str, int]]) -> Iterator[dict[str, Any]]:
    """Claims about single coefficients, their p-values corrected together."""
    columns = {column.column: column for column in fit.columns}
    holm = {(test["column"], test["term"]): test["p_holm"] for test in fit.robustness["confirmatory"]}
    for claim, number, term, sign in wanted:
        if number in columns:
            column, p = columns[number], holm[number, term]
            yield _row(claim, fit.metric, column.coef[term], column.ci[term], "Holm of six", p, sign)


def _monotonicity(fit: Fit) -> Iterator[dict[str, Any]]:
    """The claim that every longer prefix is followed more: refuted by one step that falls, else that all rise."""
    for group, ordered in fit.robustness["ordered"].items():
        falls = ordered["p_some_fall"] < SIGNIFICANCE
        sign, p = (-1, ordered["p_some_fall"]) if falls else (1, ordered["p_rising"])
        yield {
            "claim": f"2.1, {group.upper()}: every longer prefix is followed more",
            "metric": fit.metric,
            "estimate": sum(step["change"] for step in ordered["steps"]),
            "test": "some step falls" if falls else "every step rises",
            "p": p,
            "verdict": verdict(1, sign, p),
        }


def _group_difference(fit: Fit) -> Iterator[dict[str, Any]]:
    difference = fit.robustness["group_difference"]
    if difference is not None:
        prefix = difference["prefix_len"]
        claim = "Observation 2: natural text follows its prefix less than random words"
        yield _row(claim, fit.metric, prefix["difference"], prefix["ci"], "Welch", prefix["p"], -1)


def _row(
    claim: str, metric: str, estimate: float, ci: Sequence[float], test: str, p: float, claimed_sign: int
) -> dict[str, Any]:
    return {
        "claim": claim, "metric": metric, "estimate": estimate, "ci_low": ci[0], "ci_high": ci[1], "test": test,
        "p": p, "verdict": verdict(claimed_sign, estimate, p),
    }  # fmt: skip


def _dominance(panel: pd.DataFrame, metric: str) -> Iterator[dict[str, Any]]:
    """Section 2's "dominated by the prefix": with half of the context from B, does A' act more like B than not?

    The response is 0 where the prefix changes nothing and 1 where A' acts like B; one half is the border.
    """
    ratio = min(panel["ratio"].unique(), key=lambda r: abs(r - 0.5))
    for group, rows in panel[panel["ratio"] == ratio].groupby("group"):
        values = rows["shift_toward"].dropna()
        mean, se, df = values.mean(), values.std() / math.sqrt(len(values)), len(values) - 1
        half = stats.t.ppf(0.975, df) * se
        t = (mean - 0.5) / se
        p = float(2 * stats.t.sf(abs(t), df))
        claim = f"{group.upper()}: activations are dominated by a prefix of {ratio:.0%} (response above 0.5)"
        row = _row(claim, metric, mean - 0.5, (mean - half, mean + half), "t against 0.5", p, 1)
        yield {**row, "estimate": mean}
