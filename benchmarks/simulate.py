"""Do the intervals cover and the tests keep their size? Panels with known coefficients, as many as asked.

    python benchmarks/simulate.py             # 2,000 panels at 10, 30 and 100 pairs

Panels have the design of a study: three prefix lengths per pair, pair effects, surprisal that is mostly a property of
the pair and differs a little within it, entropy that goes along with it. Errors come in three kinds:

    plain       independent, of one variance
    clustered   a slope of its own for every pair around the common one, which correlates a pair's errors, and variances
                that differ fourfold between pairs and twofold between prefix lengths
    documents   the same, but slopes and variances belong to clusters of one, two or three pairs that share documents

The default errors are those of the six columns: CR3 under 50 clusters, else CR1, with t(G - 1). Coverage is of the 95 %
interval around the true coefficients of column 6; size is how often a true null hypothesis is rejected at 5 %, on other
panels than coverage; bias is the mean error of a coefficient. Every row says how far that is from the nominal value in
Monte-Carlo standard errors. The wild bootstrap has 399 draws here, and 9,999 in a study. The mixed model is fitted to
fewer panels. `benchmarks/results/simulation.jsonl` has a line per design and procedure; designs that are there are not
simulated again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from stored import RESULTS
from tabulate import tabulate
from tqdm.contrib.concurrent import process_map

from cladastats.panel.contrasts import equivalence, ordered, welch
from cladastats.panel.robustness import between, mixed
from cladastats.panel.within import Within, bootstrap, few, per_pair, permutation, within_summary

RATIOS = (0.25, 0.375, 0.5)
LENGTH = 2048
TRUE = {"prefix_len": 0.05, "surprisal_norm": -0.02, "entropy_norm": 0.01}
MARGIN = 0.05
ERRORS = ("clustered", "plain", "documents")  # the place is part of a panel's seed
# Panels that the mixed model is fitted to, which is slow and knows pairs only, no clusters of them.
MIXED = {"plain": 100, "clustered": 300}
WILD_DRAWS = 399
Y = "shift_toward"
LOADS = ["surprisal_norm", "entropy_norm"]


def panel(rng: np.random.Generator, pairs: int, errors: str) -> pd.DataFrame:
    """Complete rows of one group, indexed by pair and ratio, prefix in 1,000 tokens; `noise` is the error."""
    n = len(RATIOS)
    prefix = np.tile(np.round(np.array(RATIOS) * LENGTH) / 1000, (pairs, 1))
    surprisal = np.clip(rng.gamma(2, 0.15, (pairs, 1)) + 0.03 * rng.normal(size=(pairs, n)), 0, None)
    entropy = 0.2 + 0.4 * surprisal + 0.1 * rng.normal(size=(pairs, 1)) + 0.02 * rng.normal(size=(pairs, n))
    noise = rng.normal(size=(pairs, n))
    cluster = np.arange(pairs)
    if errors == "documents":
        cluster = np.repeat(cluster, np.resize([1, 2, 3], pairs))[:pairs]
    if errors != "plain":
        scale = np.exp(rng.uniform(-math.log(2), math.log(2), (cluster[-1] + 1, 1)))[cluster]  # a fourfold range
        slope = 3 * rng.normal(size=(cluster[-1] + 1, 1))[cluster]
        noise = scale * (noise * np.linspace(1, 2, n) + slope * (prefix - prefix.mean()))
    noise = 0.02 * noise
    effect = TRUE["prefix_len"] * prefix + TRUE["surprisal_norm"] * surprisal + TRUE["entropy_norm"] * entropy
    response = rng.normal(0.1, 0.05, (pairs, 1)) + effect + noise
    index = pd.MultiIndex.from_product([range(pairs), RATIOS], names=["pair", "ratio"])
    values = {Y: response, "noise": noise, "prefix_len": prefix, "surprisal_norm": surprisal, "entropy_norm": entropy}
    table = pd.DataFrame({name: value.ravel() for name, value in values.items()}, index=index)
    return table.assign(cluster=np.repeat(cluster, n))


def wild_p(within: Within, i: int, rng: np.random.Generator) -> float:
    """P of coefficient i by the restricted wild cluster bootstrap, as wildboottest has it, from sums."""
    bread = np.linalg.inv(within.xx.sum(0))
    coef = bread @ within.xy.sum(0)
    restricted = coef - bread[:, i] / bread[i, i] * coef[i]
    scores = within.xy - within.xx @ restricted
    own = scores @ bread[i]  # what each cluster's score moves the coefficient by
    moves = bread[i] @ within.xx @ bread @ scores.T  # [G, G]: and by the other coefficients' drawn values
    clusters = len(own)
    points = np.sqrt([0.5, 1, 1.5]) if 2**clusters < 9999 else np.ones(1)  # Webb's, or Rademacher's
    weights = rng.choice([*points, *-points], (clusters, WILD_DRAWS))
    drawn = own @ weights / np.sqrt(((own[:, None] * weights - moves @ weights) ** 2).sum(0))
    t = coef[i] / math.sqrt((((within.xy - within.xx @ coef) @ bread[i]) ** 2).sum())
    return (1 + int((abs(drawn) >= abs(t)).sum())) / (1 + WILD_DRAWS)


Outcome = tuple[str, str, float]  # procedure, what of it, nominal value


DEFAULT = "default errors, t(G - 1)"


def outcomes(rng: np.random.Generator, pairs: int, errors: str) -> Iterator[tuple[Outcome, float]]:
    """What happened (1, 0), or the error of an estimate, for one panel and a second one of another group."""
    data, other = panel(rng, pairs, errors), panel(rng, pairs, errors)
    within = Within.of(data, Y, list(TRUE))
    yield from _estimates(DEFAULT, within_summary(within))
    for name, term in bootstrap(within, rng, 399).items():
        for kind, label in (("ci", "studentised"), ("ci_percentile", "percentile")):
            covered = term[kind][0] <= TRUE[name] <= term[kind][1]
            yield (f"cluster bootstrap, {label}", f"coverage, {name}", 0.95), covered
    null, second = (one.assign(**{Y: one["noise"]}) for one in (data, other))
    full = Within.of(second, Y, list(TRUE))
    for i, (name, term) in enumerate(within_summary(full).items()):
        yield (DEFAULT, f"size, {name}", 0.05), term["p"] < 0.05
        if few(len(full.xy)):
            what = f"size, {name} ({WILD_DRAWS} draws)"
            yield ("wild cluster bootstrap", what, 0.05), wild_p(full, i, rng) <= 0.05
    prefix, unlike = (within_summary(Within.of(one, Y, ["prefix_len"]))["prefix_len"] for one in (null, second))
    yield (DEFAULT, "size, prefix alone", 0.05), prefix["p"] < 0.05
    yield ("permuted ratios", "size, prefix alone", 0.05), permutation(null, Y, rng, 199)["p"] <= 0.05
    yield ("Wilcoxon of the pairs' slopes", "size, prefix alone", 0.05), per_pair(null, Y)["wilcoxon_p"] < 0.05
    steps = ordered(null, Y)
    yield ("Wald test of a line", "size", 0.05), steps["p_nonlinear"] < 0.05
    yield ("every step rises", "size, no step does (at most)", 0.05), steps["p_rising"] < 0.05
    yield from _difference(prefix, unlike, len(within.xy))
    found = between(null, Y, LOADS)
    if found:
        yield ("between pairs", "size, surprisal", 0.05), found["surprisal_norm"]["p"] < 0.05


def mixed_outcomes(rng: np.random.Generator, pairs: int, errors: str) -> Iterator[tuple[Outcome, float]]:
    """The same of the mixed model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = mixed(panel(rng, pairs, errors), Y, list(TRUE))
    yield ("mixed model", "no fit", 0.0), not fitted["terms"]
    if fitted["terms"]:
        yield from _estimates("mixed model", fitted["terms"])


def _estimates(procedure: str, terms: dict) -> Iterator[tuple[Outcome, float]]:
    """Coverage and error of every coefficient."""
    for name, true in TRUE.items():
        low, high = terms[name]["ci"]
        yield (procedure, f"coverage, {name}", 0.95), low <= true <= high
        yield (procedure, f"bias, {name}", 0.0), terms[name]["coef"] - true


def _difference(a: dict, b: dict, clusters: int) -> Iterator[tuple[Outcome, float]]:
    """The test of equal slopes, and the equivalence test where the true difference is the margin."""
    found = welch(b["coef"] - a["coef"], (a["se"], b["se"]), (clusters, clusters))
    yield ("NLS - RTS, Welch", "size", 0.05), found["p"] < 0.05
    at_margin = equivalence(found["difference"] + MARGIN, found["se"], found["df"], MARGIN)
    yield ("equivalence", "size, at the margin (at most)", 0.05), at_margin["equivalence_p"] < 0.05


def one(i: int, pairs: int, errors: str, part: str) -> list[tuple[Outcome, float]]:
    """The outcomes of panel i of a design."""
    rng = np.random.default_rng([pairs, ERRORS.index(errors), i])
    of = mixed_outcomes if part == "mixed model" else outcomes
    return [(outcome, float(value)) for outcome, value in of(rng, pairs, errors)]


def design(pairs: int, errors: str, part: str, panels: int) -> list[dict]:
    """The rows of one design: of the mixed model, or of all else."""
    happened: dict[Outcome, list[float]] = {}
    run = partial(one, pairs=pairs, errors=errors, part=part)
    drawn = min(panels, MIXED[errors]) if part == "mixed model" else panels
    title = f"{pairs} pairs, {errors}, {part}"
    for found in process_map(run, range(drawn), desc=title, max_workers=os.cpu_count(), chunksize=8):
        for outcome, value in found:
            happened.setdefault(outcome, []).append(value)
    rows = []
    for (procedure, what, nominal), values in happened.items():
        spread = math.sqrt(nominal * (1 - nominal)) if nominal else float(np.std(values, ddof=1))
        away = float(np.mean(values)) - nominal
        rows.append(
            {
                "pairs": pairs,
                "errors": errors,
                "procedure": procedure,
                "what": what,
                "nominal": nominal,
                "mean": float(np.mean(values)),
                "monte_carlo_errors": away / (spread / math.sqrt(len(values))) if away else 0.0,
                "panels": len(values),
                "drawn": panels,
            }
        )
    return rows


def main() -> None:
    """Simulate what is not there, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", type=int, default=2000)
    parser.add_argument("--pairs", type=lambda text: [int(n) for n in text.split(",")], default=[10, 30, 100])
    parser.add_argument("--out", type=Path, default=RESULTS / "simulation.jsonl")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text("utf-8").splitlines()] if args.out.is_file() else []
    rows = [row for row in rows if row["drawn"] == args.panels]
    done = {(row["pairs"], row["errors"], row["procedure"] == "mixed model") for row in rows}
    parts = [(errors, "all else") for errors in ERRORS] + [(errors, "mixed model") for errors in MIXED]
    for pairs in args.pairs:
        for errors, part in parts:
            if (pairs, errors, part == "mixed model") not in done:
                rows += design(pairs, errors, part, args.panels)
                args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(tabulate([list(row.values()) for row in rows], list(rows[0]), tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()
