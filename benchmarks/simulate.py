"""Do the intervals cover and the tests keep their size? Panels with known coefficients, as many as asked.

    python benchmarks/simulate.py             # 2,000 panels at 30 and at 100 pairs, ten minutes on two cores

Panels have the design of a study: three prefix lengths per pair, pair effects, surprisal that is mostly a property of
the pair and differs a little within it, entropy that goes along with it. Errors come in two kinds:

    plain       independent, of one variance
    clustered   a slope of its own for every pair around the common one, which correlates a pair's errors, and variances
                that differ fourfold between pairs and twofold between prefix lengths

Coverage is of the 95 % interval around the true coefficients of column 6; size is how often a true null hypothesis is
rejected at 5 %; bias is the mean error of a coefficient. Every row says how far that is from the nominal value in
Monte-Carlo standard errors. `benchmarks/results/simulation.jsonl` has a line per design and procedure; designs that are
there are not simulated again.
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
from cladastats.panel.within import Within, bootstrap, per_pair, permutation, within_summary

RATIOS = (0.25, 0.375, 0.5)
LENGTH = 2048
TRUE = {"prefix_len": 0.05, "surprisal_norm": -0.02, "entropy_norm": 0.01}
MARGIN = 0.05
# Panels that the mixed model is fitted to: a fit takes a second, and several where slopes do not vary.
MIXED = {"plain": 100, "clustered": 300}
Y = "shift_toward"
LOADS = ["surprisal_norm", "entropy_norm"]


def panel(rng: np.random.Generator, pairs: int, errors: str) -> pd.DataFrame:
    """Complete rows of one group, indexed by pair and ratio, prefix in 1,000 tokens; `noise` is the error."""
    n = len(RATIOS)
    prefix = np.tile(np.round(np.array(RATIOS) * LENGTH) / 1000, (pairs, 1))
    surprisal = np.clip(rng.gamma(2, 0.15, (pairs, 1)) + 0.03 * rng.normal(size=(pairs, n)), 0, None)
    entropy = 0.2 + 0.4 * surprisal + 0.1 * rng.normal(size=(pairs, 1)) + 0.02 * rng.normal(size=(pairs, n))
    noise = rng.normal(size=(pairs, n))
    if errors == "clustered":
        scale = np.exp(rng.uniform(-math.log(2), math.log(2), (pairs, 1)))  # a fourfold range
        noise = scale * (noise * np.linspace(1, 2, n) + 3 * rng.normal(size=(pairs, 1)) * (prefix - prefix.mean()))
    noise = 0.02 * noise
    effect = TRUE["prefix_len"] * prefix + TRUE["surprisal_norm"] * surprisal + TRUE["entropy_norm"] * entropy
    response = rng.normal(0.1, 0.05, (pairs, 1)) + effect + noise
    index = pd.MultiIndex.from_product([range(pairs), RATIOS], names=["pair", "ratio"])
    values = {Y: response, "noise": noise, "prefix_len": prefix, "surprisal_norm": surprisal, "entropy_norm": entropy}
    return pd.DataFrame({name: value.ravel() for name, value in values.items()}, index=index)


Outcome = tuple[str, str, float]  # procedure, what of it, nominal value


def outcomes(rng: np.random.Generator, pairs: int, errors: str, slow: bool) -> Iterator[tuple[Outcome, float]]:
    """What happened (1, 0), or the error of an estimate, for one panel and a second one of another group."""
    data, other = panel(rng, pairs, errors), panel(rng, pairs, errors)
    names = list(TRUE)
    within = Within.of(data, Y, names)
    yield from _estimates("clustered errors, t(G - 1)", within_summary(within))
    for name, term in bootstrap(within, rng, 499).items():
        for kind, label in (("ci", "studentised"), ("ci_percentile", "percentile")):
            covered = term[kind][0] <= TRUE[name] <= term[kind][1]
            yield (f"cluster bootstrap, {label}", f"coverage, {name}", 0.95), covered
    null = data.assign(**{Y: data["noise"]})
    prefix = within_summary(Within.of(null, Y, ["prefix_len"]))["prefix_len"]
    yield ("clustered errors, t(G - 1)", "size, prefix alone", 0.05), prefix["p"] < 0.05
    yield ("permuted ratios", "size, prefix alone", 0.05), permutation(null, Y, rng, 199)["p"] <= 0.05
    yield ("Wilcoxon of the pairs' slopes", "size, prefix alone", 0.05), per_pair(null, Y)["wilcoxon_p"] < 0.05
    steps = ordered(null, Y)
    yield ("Wald test of a line", "size", 0.05), steps["p_nonlinear"] < 0.05
    yield ("every step rises", "size, no step does (at most)", 0.05), steps["p_rising"] < 0.05
    second = within_summary(Within.of(other.assign(**{Y: other["noise"]}), Y, ["prefix_len"]))["prefix_len"]
    yield from _difference(prefix, second, pairs)
    found = between(null, Y, LOADS)
    yield ("between pairs, HC3", "size, surprisal", 0.05), found["surprisal_norm"]["p"] < 0.05
    if not slow:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = mixed(data, Y, names)
    yield ("mixed model", "no fit", 0.0), not fitted["terms"]
    if fitted["terms"]:
        yield from _estimates("mixed model", fitted["terms"])


def _estimates(procedure: str, terms: dict) -> Iterator[tuple[Outcome, float]]:
    """Coverage and error of every coefficient."""
    for name, true in TRUE.items():
        low, high = terms[name]["ci"]
        yield (procedure, f"coverage, {name}", 0.95), low <= true <= high
        yield (procedure, f"bias, {name}", 0.0), terms[name]["coef"] - true


def _difference(a: dict, b: dict, pairs: int) -> Iterator[tuple[Outcome, float]]:
    """The test of equal slopes, and the equivalence test where the true difference is the margin."""
    found = welch(b["coef"] - a["coef"], (a["se"], b["se"]), (pairs, pairs))
    yield ("NLS - RTS, Welch", "size", 0.05), found["p"] < 0.05
    at_margin = equivalence(found["difference"] + MARGIN, found["se"], found["df"], MARGIN)
    yield ("equivalence", "size, at the margin (at most)", 0.05), at_margin["equivalence_p"] < 0.05


def one(i: int, pairs: int, errors: str) -> list[tuple[Outcome, float]]:
    """The outcomes of panel i of a design."""
    rng = np.random.default_rng([pairs, errors == "plain", i])
    return [(outcome, float(value)) for outcome, value in outcomes(rng, pairs, errors, i < MIXED[errors])]


def design(pairs: int, errors: str, panels: int) -> list[dict]:
    """The rows of one design."""
    happened: dict[Outcome, list[float]] = {}
    run = partial(one, pairs=pairs, errors=errors)
    for found in process_map(
        run, range(panels), desc=f"{pairs} pairs, {errors}", max_workers=os.cpu_count(), chunksize=8
    ):
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
    parser.add_argument("--pairs", type=lambda text: [int(n) for n in text.split(",")], default=[30, 100])
    parser.add_argument("--out", type=Path, default=RESULTS / "simulation.jsonl")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text("utf-8").splitlines()] if args.out.is_file() else []
    rows = [row for row in rows if row["drawn"] == args.panels]
    done = {(row["pairs"], row["errors"]) for row in rows}
    for pairs in args.pairs:
        for errors in ("plain", "clustered"):
            if (pairs, errors) not in done:
                rows += design(pairs, errors, args.panels)
                args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(tabulate([list(row.values()) for row in rows], list(rows[0]), tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()
