"""The one rule by which claims of the paper and of a study are judged, and the table of verdicts.

A claim of a direction is *supported* or *contradicted* by a significant test whose sign says so, if the fits that must
agree with it do: they have the same sign and are significant too. A claim of no effect is contradicted in the same way.
It is supported only by an equivalence test within a margin that was fixed beforehand, because a test that finds no
effect may only have seen too little (Altman and Bland 1995, Absence of evidence is not evidence of absence). A claim
whose regressor hardly varies within pairs is *not testable*, whatever its p. Everything else is *undecided*.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from clada.errors import InputError
from cladastats.results.fit import FORMATS, undefined_to_none
from cladastats.results.labels import metric_label
from cladastats.results.tables import TEXT_STYLES, html_table, latex_table, number_text, plain_table

SIGNIFICANCE = 0.05

LITTLE_WITHIN = 0.01
"""Below this within-pair share of its variance, a regressor is nearly a property of the pair, and not testable."""

VERDICTS = {
    "supported": "its test is significant in the claimed direction, or equivalent to no effect where that is claimed, "
    "and the fits that must agree do",
    "contradicted": "its test is significant against the claim, and the fits that must agree do",
    "undecided": "its test is not significant, or a fit that must agree does not",
    "not testable": f"less than {LITTLE_WITHIN:.0%} of the regressor's variance lies within pairs",
    "estimate": "a size, not a test",
}
"""Every verdict there is, and what it means."""


@dataclass(frozen=True)
class Agreeing:
    """A fit that must agree with a claim's own test.

    Attributes:
        name: As the table says it.
        estimate: None: an earlier version of the study's files lacks it, so that it does not agree.
        p: Two-sided, not corrected.
        smallest_margin: With which it is equivalent to no effect; None: it says nothing about equivalence.
        only_opposes: It is what goes most against the estimate. It need not be significant, but must not be so against
            it; `p` is one-sided and of that direction.
    """

    name: str
    estimate: float | None
    p: float = 1.0
    smallest_margin: float | None = None
    only_opposes: bool = False

    def agrees(self, estimate: float) -> bool:
        """Whether it has the sign of a claim's significant estimate, significantly."""
        if self.estimate is None:
            return False
        if self.only_opposes:
            return self.p >= SIGNIFICANCE
        return self.p < SIGNIFICANCE and self.estimate * estimate > 0

    def equivalent(self, margin: float) -> bool:
        """Whether it finds no effect larger than a margin."""
        return self.only_opposes or (self.smallest_margin is not None and self.smallest_margin < margin)

    def __str__(self) -> str:
        if self.estimate is None:
            return f"{self.name} not there"
        if self.only_opposes:
            return f"{self.name} {'' if self.p < SIGNIFICANCE else 'not '}against"
        return f"{self.name} {'-' if self.estimate < 0 else '+'}{'' if self.p < SIGNIFICANCE else ' n.s.'}"


@dataclass(frozen=True)
class Evidence:
    """What a claim is judged by.

    Attributes:
        claimed_sign: +1 or -1; 0: the claim is that there is no effect.
        estimate: Its sign counts.
        p: Of the claim's own test, corrected where several are judged together.
        share_within: Share of the regressor's variance that lies within pairs.
        agreeing: The fits that must agree.
        margin: Largest effect that counts as none; None: none was fixed beforehand.
        smallest_margin: That would pass the equivalence test: the larger end of the 90 % interval.
    """

    claimed_sign: int
    estimate: float
    p: float
    share_within: float
    agreeing: tuple[Agreeing, ...] = ()
    margin: float | None = None
    smallest_margin: float | None = None


def verdict(claimed_sign: int, effect: float, p: float) -> str:
    """Judge a claim about the sign of an effect by its own test alone.

    Args:
        claimed_sign: +1 or -1; 0: the claim is that there is no effect.
        effect: The estimate; only its sign counts.
        p: The test's p-value, corrected where several claims are judged together.

    Returns:
        "supported", "contradicted" or "undecided"; never "supported" for a claim of no effect.
    """
    if p >= SIGNIFICANCE:
        return "undecided"
    return "supported" if effect * claimed_sign > 0 else "contradicted"


def judge(evidence: Evidence) -> tuple[str, str]:
    """Judge a claim by its own test, the fits that must agree, and how much its regressor varies within pairs.

    Returns:
        One of `VERDICTS`, and the reason.
    """
    if evidence.share_within < LITTLE_WITHIN:
        return "not testable", f"{evidence.share_within:.2%} of the regressor's variance lies within pairs"
    margin, smallest = evidence.margin, evidence.smallest_margin
    if evidence.claimed_sign == 0 and margin is not None and smallest is not None and smallest < margin:
        # An effect within the margin counts as none, also where it differs from zero: that is what the margin means.
        found, reason = "supported", "equivalent to no effect within the margin"
        against = [fit for fit in evidence.agreeing if not fit.equivalent(margin)]
    else:
        found = verdict(evidence.claimed_sign, evidence.estimate, evidence.p)
        reason = f"significant, {'falls' if evidence.estimate < 0 else 'rises'}"
        if found == "undecided":
            no_effect = ", and not equivalent to no effect" if evidence.claimed_sign == 0 and margin is not None else ""
            return found, f"not significant{no_effect}"
        against = [fit for fit in evidence.agreeing if not fit.agrees(evidence.estimate)]
    if against:
        return "undecided", f"{reason}; does not agree: {', '.join(map(str, against))}"
    return found, reason


@dataclass(frozen=True)
class Claim:
    """A row of the table of verdicts.

    Attributes:
        claim: In words.
        metric: Of the similarity.
        estimate: Response points; per 1,000 tokens of prefix, or per log2 of the vocabulary of load.
        ci_low: Of the 95 % interval, not corrected; None: there is none.
        ci_high: The same.
        test: Its name, with the family it is corrected in.
        p: Of that test; None: there is none.
        share_within: Share of the regressor's variance that lies within pairs.
        agreeing: The fits that must agree, with sign; "n.s." where p is 0.05 or more.
        margin: Of a claim of no effect, the largest effect that counts as none.
        smallest_margin: Of a claim of no effect, the smallest margin that would pass the equivalence test.
        verdict: One of `VERDICTS`.
        why: The reason for it.
        file: Of the study, where the numbers are.
        where: In that file.
    """

    claim: str
    metric: str
    estimate: float
    ci_low: float | None
    ci_high: float | None
    test: str
    p: float | None
    share_within: float | None
    agreeing: str
    margin: float | None
    smallest_margin: float | None
    verdict: str
    why: str
    file: str
    where: str


CLAIM_COLUMNS = tuple(field.name for field in fields(Claim))


def in_words(verdicts: pd.DataFrame) -> list[str]:
    """A sentence per verdict: what it means, and the claims and metrics it was reached for.

    Args:
        verdicts: The table of `cladastats.panel.claims.claims`, or some of its rows.
    """
    sentences = []
    for name, rows in verdicts.groupby("verdict", sort=False):
        if name == "estimate":
            parts = [f"{row.claim}: {_estimate(row)} ({metric_label(row.metric)})" for row in rows.itertuples()]
        else:
            parts = [
                f"{claim} ({'; '.join(map(metric_label, of['metric']))})"
                for claim, of in rows.groupby("claim", sort=False)
            ]
        sentences.append(f"{str(name).capitalize()} ({VERDICTS[str(name)]}): {'; '.join(parts)}.")
    return sentences


def _estimate(row: Any) -> str:
    low, high = row.ci_low, row.ci_high
    interval = "" if pd.isna(low) else f" [{number_text(low)}, {number_text(high)}]"
    return number_text(row.estimate) + interval


def render_verdicts(verdicts: pd.DataFrame, fmt: str, notes: Sequence[str] = ()) -> str:
    """The table of verdicts in one of `FORMATS`.

    Text, Markdown, LaTeX and HTML show two tables: the verdicts, and by the same numbers the evidence with the file
    that it is from. CSV and JSON have every column, unrounded.

    Args:
        verdicts: The table of `cladastats.panel.claims.claims`.
        fmt: The format.
        notes: Sentences without their full stops, below the tables; CSV has no place for them.

    Raises:
        InputError: The format is unknown.
    """
    if fmt == "csv":
        return verdicts.to_csv(index=False)
    if fmt == "json":
        missing = verdicts.astype(object).where(verdicts.notna(), None)
        content = {"schema": "cladastats/claims/1", "claims": missing.to_dict("records"), "notes": list(notes)}
        return json.dumps(undefined_to_none(content), indent=2, allow_nan=False)
    shown, evidence = _cells(verdicts)
    titles = (
        "Claims of the paper's section 2 (95 % intervals, not corrected)",
        "What the verdicts rest on (passing margin: the smallest with which no effect would be shown)",
    )
    alignments = (["right", *["left"] * 3, "right", "left"], ["right", *["left"] * 2, "right", "right", "left"])
    widths = [None, 42, *[None] * 4], [None, None, 28, None, None, 28]  # so that a row fits a screen
    parts = []
    tables = zip(titles, (shown, evidence), alignments, widths, ([], notes), strict=True)
    for title, cells, align, wide, below in tables:
        if fmt in TEXT_STYLES:
            parts += [title, plain_table(cells, fmt, align, index=False, widths=wide), *below]
        elif fmt == "latex":
            parts.append(latex_table(cells, [title, *below], align, index=False))
        elif fmt == "html":
            parts.append(html_table(cells, [title, *below], title.split()[0].lower(), index=False))
        else:
            raise InputError(f"unknown table format {fmt!r}; choose one of {', '.join(FORMATS)}")
    return "\n\n".join(parts)


def _cells(verdicts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The finished cells of both tables."""
    rows = [(str(i), row) for i, row in enumerate(verdicts.itertuples(), 1)]
    shown = pd.DataFrame(
        {
            "": number,
            "claim": row.claim,
            "metric": metric_label(row.metric),
            "estimate": _estimate(row),
            "p": "" if pd.isna(row.p) else f"{row.p:.3f}" if row.p >= 0.001 else "<0.001",
            "verdict": row.verdict,
        }
        for number, row in rows
    )
    evidence = pd.DataFrame(
        {
            "": number,
            "test": row.test,
            "must agree": row.agreeing,
            "within pairs": "" if pd.isna(row.share_within) else f"{row.share_within:.2%}",
            "passing margin": "" if pd.isna(row.smallest_margin) else number_text(row.smallest_margin),
            "file": f"{row.file}: {row.where}",
        }
        for number, row in rows
    )
    return shown, evidence
