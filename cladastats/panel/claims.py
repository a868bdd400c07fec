"""The paper's claims of section 2 against a study: what each is judged by, and the verdict.

Verdicts follow the one rule of `cladastats.results.verdicts`. The tests of the two hypotheses, six of each of the
paper's two metrics, are one family, which Holm's method corrects here and nowhere else. The other tests stand by
themselves, and every row names its own. Fits that must agree are not corrected: each only confirms a test that was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from clada.errors import StudyError
from cladastats.panel.contrasts import equivalence, welch
from cladastats.panel.within import clusters_of, mean_summary
from cladastats.results.fit import CONFIRMATORY, LOADS, PAPER_METRICS, RESPONSE_SCALES, RESPONSES, Column, Fit
from cladastats.results.verdicts import CLAIM_COLUMNS, SIGNIFICANCE, VERDICTS, Agreeing, Claim, Evidence, judge
from cladastats.study import Study

CLAIMED = {
    (1, "prefix_len"): ("2.1, RTS: activations follow a longer prefix", 1),
    (2, "prefix_len"): ("2.1, NLS: activations follow a longer prefix", 1),
    (5, "surprisal_norm"): ("2.2, RTS: surprisal has no effect", 0),
    (5, "entropy_norm"): ("2.2, RTS: entropy has no effect", 0),
    (6, "surprisal_norm"): ("2.2, NLS: surprisal disturbs flocking", -1),
    (6, "entropy_norm"): ("2.2, NLS: entropy disturbs flocking", -1),
}
"""The hypotheses by column and term: the claim, and the sign it claims (0: no effect)."""

NO_LOAD_MARGIN = (
    "no margin is fixed for loads, so that a claim that they have no effect can be contradicted and not supported; the "
    "margin that would pass is the larger end of the 90 % interval"
)


def claims(study: Study) -> pd.DataFrame:
    """Judge every claim of section 2.

    Args:
        study: With `cladastats regress --robust` of the metrics `cka` and `cosine`.

    Returns:
        Rows in columns `CLAIM_COLUMNS`. `attrs["notes"]` has what a reader must know of all of them.

    Raises:
        StudyError: A fit is missing, or has no robustness checks.
    """
    fits = {metric: checked_fit(study, metric) for metric in PAPER_METRICS}
    corrected = family(list(fits.values()))
    rows: list[Claim] = []
    notes = ["NLS is natural text, RTS random words", f"response {RESPONSE_SCALES['toward']}"]
    for metric, fit in fits.items():
        judged = Judged(fit, f"fits/{study.fit_path(metric, fit.response).name}", corrected)
        rows += [
            *judged.hypotheses("prefix_len"),
            *judged.monotonicity(),
            *judged.group_difference(),
            *judged.hypotheses(*LOADS),
            *_domination(study.panel(metric), metric),
        ]
        if judged.lacking:
            notes.append(
                f"{judged.file} lacks {', '.join(judged.lacking)}, as an earlier version made it, so that verdicts "
                f"which need that are undecided; 'cladastats regress --study {study.folder} --claims --robust' makes "
                "it again"
            )
    source = study.config.equivalence_margin_source or "its source was not recorded"
    notes += [f"margin {study.config.equivalence_margin:g} points per 1,000 tokens: {source}", NO_LOAD_MARGIN]
    table = pd.DataFrame([vars(row) for row in rows], columns=list(CLAIM_COLUMNS))
    table.attrs["notes"] = notes
    return table


def checked_fit(study: Study, metric: str) -> Fit:
    """A metric's fit with its robustness checks.

    Raises:
        StudyError: There is none.
    """
    fit = study.fit(metric)
    if not fit.robustness:
        raise StudyError(
            f"{study.folder} has no robustness checks of {metric}; run 'cladastats regress --study {study.folder} "
            "--claims'"
        )
    return fit


def family(fits: Sequence[Fit]) -> dict[tuple[str, int, str], float]:
    """P-values of the hypotheses' tests of all fits, corrected together by Holm's method.

    Args:
        fits: One of each of the paper's metrics.

    Returns:
        By metric, column and term.
    """
    tests = {
        (fit.metric, column.column, term): column.p[term]
        for fit in fits
        for column in fit.columns
        for number, term in CONFIRMATORY
        if column.column == number
    }
    return dict(zip(tests, map(float, multipletests(list(tests.values()), method="holm")[1]), strict=True))


@dataclass(frozen=True)
class Judged:
    """The claims that one metric's fit can be asked about.

    Attributes:
        fit: With robustness checks.
        file: Its name in the study.
        corrected: P-values of the family, as `family` gives them.
        lacking: Names of fits that must agree and are not in the file; filled while the claims are judged.
    """

    fit: Fit
    file: str
    corrected: Mapping[tuple[str, int, str], float]
    lacking: dict[str, None] = field(default_factory=dict, init=False)

    def hypotheses(self, *terms: str) -> Iterator[Claim]:
        """Claims about single coefficients, their p-values corrected together."""
        columns = {column.column: column for column in self.fit.columns}
        for (number, term), (claim, sign) in CLAIMED.items():
            if term in terms and number in columns:
                column = columns[number]
                coef, se = column.coef[term], column.se[term]
                agreeing = self._of_prefix(column) if term == "prefix_len" else self._of_load(column.group, term)
                evidence = Evidence(
                    sign,
                    coef,
                    self.corrected[self.fit.metric, number, term],
                    column.within[term]["share_within"],
                    agreeing,
                    # No margin counts here: the study's is of the prefix.
                    smallest_margin=equivalence(coef, se, column.n_clusters - 1, 0.0)["smallest_margin"],
                )
                test = f"Holm of {len(self.corrected)}"
                if term in column.wild_p:  # of few clusters; it stands beside and decides nothing
                    test += f" (wild p {column.wild_p[term]:.3f}, not corrected)"
                yield self._row(claim, evidence, column.ci[term], test, f"column {number}, {term}")

    def _of_prefix(self, column: Column) -> tuple[Agreeing, ...]:
        """The ordered contrast of the ratios, no step against it, and of `cka` the slope of the trimmed form.

        That every step goes the same way is a stronger claim, with a row of its own. But where ratios are equally far
        apart, the contrast is almost the slope itself, so that a step that clearly goes the other way counts too.
        """
        ordered = self.fit.robustness["ordered"][column.group]
        contrast = self._fit("ordered contrast", ordered.get("contrast"))
        rises = column.coef["prefix_len"] > 0
        p = ordered.get("p_some_fall" if rises else "p_some_rise")
        step = (min if rises else max)(ordered["steps"], key=lambda step: step["change"])
        name = f"step {step['from']:g} to {step['to']:g}"
        steps = self._fit("steps", None) if p is None else Agreeing(name, step["change"], p, only_opposes=True)
        return (contrast, steps, *self._trimmed(column.group, "prefix_len"))

    def _of_load(self, group: str, term: str) -> tuple[Agreeing, ...]:
        """The fit with an effect of every ratio, and of `cka` the same fit of the trimmed form."""
        same = self.fit.robustness["ratio_effects"][group][term]
        return (self._fit("effect of every ratio", same), *self._trimmed(group, term))

    def _trimmed(self, group: str, term: str) -> tuple[Agreeing, ...]:
        if self.fit.metric != "cka":
            return ()
        return (self._fit("trimmed", ((self.fit.robustness.get("trimmed") or {}).get(group) or {}).get(term)),)

    def _fit(self, name: str, found: Mapping[str, Any] | None) -> Agreeing:
        """A fit that must agree, from its coefficient and p; noted where it is not there."""
        if found is None:
            self.lacking[name] = None
            return Agreeing(name, None)
        return Agreeing(name, found["coef"], found["p"])

    def monotonicity(self) -> Iterator[Claim]:
        """The claim that every longer prefix is followed more: refuted by one step that falls, else that all rise."""
        columns = {column.group: column for column in self.fit.columns}
        for group, ordered in self.fit.robustness["ordered"].items():
            sign, p = _monotone(ordered)
            agreeing: tuple[Agreeing, ...] = ()
            if self.fit.metric == "cka":
                trimmed = (self.fit.robustness.get("trimmed_checks") or {}).get("ordered", {}).get(group)
                found = None if trimmed is None else dict(zip(("coef", "p"), _monotone(trimmed), strict=True))
                agreeing = (self._fit("steps of the trimmed form", found),)
            share = columns[group].within["prefix_len"]["share_within"]
            claim = f"2.1, {group.upper()}: every longer prefix is followed more"
            test = "some step falls" if sign < 0 else "every step rises"
            row = self._row(claim, Evidence(1, sign, p, share, agreeing), None, test, f"robustness.ordered.{group}")
            yield replace(row, estimate=sum(step["change"] for step in ordered["steps"]))

    def group_difference(self) -> Iterator[Claim]:
        """The claim that natural text follows its prefix less than random words, and its rival, that both are alike."""
        difference = self.fit.robustness["group_difference"]
        if difference is None:
            return
        prefix = difference["prefix_len"]
        columns = {column.column: column for column in self.fit.columns}
        agreeing = [self._contrasts_differ(columns[1].n_clusters, columns[2].n_clusters)]
        if self.fit.metric == "cka":
            trimmed = (self.fit.robustness.get("trimmed_checks") or {}).get("group_difference")
            agreeing.append(self._difference("trimmed difference", None if trimmed is None else trimmed["prefix_len"]))
        share = min(columns[number].within["prefix_len"]["share_within"] for number in (1, 2))
        evidence = Evidence(-1, prefix["difference"], prefix["p"], share, tuple(agreeing))
        where = "robustness.group_difference"
        claim = "Obs. 2: NLS follows its prefix less than RTS"
        yield self._row(claim, evidence, prefix["ci"], "Welch", where)
        alike = replace(evidence, claimed_sign=0, margin=prefix["margin"], smallest_margin=_smallest(prefix["ci_90"]))
        claim = "Obs. 2's rival: NLS and RTS follow it alike"
        yield self._row(claim, alike, prefix["ci"], "Welch, and equivalence", where)

    def _contrasts_differ(self, *clusters: int) -> Agreeing:
        """The difference of the groups' ordered contrasts."""
        rts, nls = (self.fit.robustness["ordered"][group].get("contrast") for group in ("rts", "nls"))
        name = "difference of ordered contrasts"
        if rts is None or nls is None:
            return self._difference(name, None)
        found = welch(nls["coef"] - rts["coef"], (rts["se"], nls["se"]), (clusters[0], clusters[1]))
        return self._difference(name, found | equivalence(found["difference"], found["se"], found["df"], 0.0))

    def _difference(self, name: str, found: Mapping[str, Any] | None) -> Agreeing:
        if found is None:
            return self._fit(name, None)
        return Agreeing(name, found["difference"], found["p"], _smallest(found["ci_90"]))

    def _row(self, claim: str, evidence: Evidence, ci: Sequence[float] | None, test: str, where: str) -> Claim:
        low, high = ci or (None, None)
        verdict, why = judge(evidence)
        no_effect = evidence.claimed_sign == 0
        return Claim(
            claim,
            self.fit.metric,
            evidence.estimate,
            low,
            high,
            test,
            evidence.p,
            evidence.share_within,
            ", ".join(map(str, evidence.agreeing)),
            evidence.margin,
            evidence.smallest_margin if no_effect else None,
            verdict,
            why,
            self.file,
            where,
        )


def _monotone(ordered: Mapping[str, Any]) -> tuple[float, float]:
    """Which way the steps decide, as a sign, and the p-value of that."""
    falls = ordered["p_some_fall"] < SIGNIFICANCE
    return (-1.0, ordered["p_some_fall"]) if falls else (1.0, ordered["p_rising"])


def _smallest(ci_90: Sequence[float]) -> float:
    return max(abs(end) for end in ci_90)


def _domination(panel: pd.DataFrame, metric: str) -> Iterator[Claim]:
    """Section 2's "dominated by the prefix": how far do hybrids act like a text that half of their context is from?

    A size and no test, as where domination begins would be a border of our own. The median is over clusters, which are
    independent, and its interval is exact for any distribution.
    """
    outcome = RESPONSES["toward"]
    ratio = min(panel["ratio"].unique(), key=lambda r: abs(r - 0.5))
    for group, rows in panel[panel["ratio"] == ratio].groupby("group"):
        data = rows.dropna(subset=[outcome]).set_index(["pair", "ratio"])
        mean = mean_summary(data, outcome)
        values = data[outcome].groupby(clusters_of(data)).mean()
        ends = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
        for what, value, (low, high) in (
            ("mean", mean["coef"], mean["ci"]),
            ("median", float(values.median()), (float(ends.low), float(ends.high))),
        ):
            claim = f"{group.upper()}: prefix of {ratio:.0%}, {what} response"
            yield Claim(
                claim, metric, value, low, high, f"{what}, {len(values)} clusters", None, None, "", None, None,
                "estimate", VERDICTS["estimate"], f"panel-{metric}.parquet", f"{outcome}, {group}, ratio {ratio:g}",
            )  # fmt: skip
