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
Monte-Carlo standard errors. The wild bootstrap has 399 draws here, and 9,999 in a study. Checks have 500 panels, the
mixed model 100 or 300. `benchmarks/results/simulation.jsonl` has a line per design and procedure; designs that are
there are not simulated again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from stored import RESULTS
from tabulate import tabulate
from tqdm.contrib.concurrent import process_map

from cladastats.panel.contrasts import equivalence, ordered, welch
from cladastats.panel.robustness import between, mixed
from cladastats.panel.within import Within, bootstrap, few, per_pair, permutation

RATIOS = (0.25, 0.375, 0.5)
LENGTH = 2048
TRUE = {"prefix_len": 0.05, "surprisal_norm": -0.02, "entropy_norm": 0.01}
MARGIN = 0.05
ERRORS = ("clustered", "plain", "documents")  # the place is part of a panel's seed
WILD_DRAWS = 399
Y = "shift_toward"
LOADS = ["surprisal_norm", "entropy_norm"]


@dataclass(frozen=True)
class Drawn:
    """A panel of one group.

    Attributes:
        regressors: [pairs, ratios, 3], in the order of `TRUE`, prefix in 1,000 tokens.
        response: [pairs, ratios].
        noise: [pairs, ratios], the response without effects.
        cluster: [pairs].
    """

    regressors: np.ndarray
    response: np.ndarray
    noise: np.ndarray
    cluster: np.ndarray

    @classmethod
    def of(cls, rng: np.random.Generator, pairs: int, errors: str) -> Drawn:
        """Draw one."""
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
        regressors = np.stack([prefix, surprisal, entropy], axis=-1)
        response = rng.normal(0.1, 0.05, (pairs, 1)) + regressors @ np.array(list(TRUE.values())) + noise
        return cls(regressors, response, noise, cluster)

    def rows(self, outcome: np.ndarray) -> pd.DataFrame:
        """As a study's complete rows, indexed by pair and ratio."""
        pairs, n = outcome.shape
        index = pd.MultiIndex.from_product([range(pairs), RATIOS], names=["pair", "ratio"])
        values = pd.DataFrame(self.regressors.reshape(-1, len(TRUE)), index, list(TRUE))
        return values.assign(**{Y: outcome.ravel()}, cluster=np.repeat(self.cluster, n))

    def sums(self, outcome: np.ndarray, k: int) -> Within:
        """`Within.of` of the first k regressors, without a table on the way."""
        x = self.regressors[..., :k] - self.regressors[..., :k].mean(1, keepdims=True)
        y = outcome - outcome.mean(1, keepdims=True)
        of = np.eye(self.cluster[-1] + 1)[self.cluster]
        xx = np.einsum("pg,pri,prj->gij", of, x, x, optimize=True)
        xy = np.einsum("pg,pri,pr->gi", of, x, y, optimize=True)
        rows = len(RATIOS) * of.sum(0).astype(int)
        return Within(tuple(TRUE)[:k], xx, xy, rows, len(self.cluster))


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


@cache
def critical(df: int) -> float:
    """The 97.5 % point of Student's t."""
    return float(stats.t.ppf(0.975, df))


def default_outcomes(rng: np.random.Generator, pairs: int, errors: str) -> Iterator[tuple[Outcome, float]]:
    """What happened (1, 0), or the error of an estimate, for one panel and a second one of another group."""
    one, other = Drawn.of(rng, pairs, errors), Drawn.of(rng, pairs, errors)
    within = one.sums(one.response, 3)
    for name, true, coef, se in zip(TRUE, TRUE.values(), *within.fit(), strict=True):
        yield (DEFAULT, f"coverage, {name}", 0.95), abs(coef - true) <= critical(within.df) * se
        yield (DEFAULT, f"bias, {name}", 0.0), coef - true
    null = other.sums(other.noise, 3)
    for i, (name, coef, se) in enumerate(zip(TRUE, *null.fit(), strict=True)):
        yield (DEFAULT, f"size, {name}", 0.05), abs(coef) > critical(null.df) * se
        if few(len(null.xy)):
            what = f"size, {name} ({WILD_DRAWS} draws)"
            yield ("wild cluster bootstrap", what, 0.05), wild_p(null, i, rng) <= 0.05
    alone = [drawn.sums(drawn.noise, 1) for drawn in (one, other)]
    (a, b), (se_a, se_b) = (np.concatenate(values) for values in zip(*(each.fit() for each in alone), strict=True))
    yield (DEFAULT, "size, prefix alone", 0.05), abs(a) > critical(within.df) * se_a
    found = welch(b - a, (se_a, se_b), (within.df + 1, null.df + 1))
    yield ("NLS - RTS, Welch", "size", 0.05), found["p"] < 0.05
    at_margin = equivalence(found["difference"] + MARGIN, found["se"], found["df"], MARGIN)
    yield ("equivalence", "size, at the margin (at most)", 0.05), at_margin["equivalence_p"] < 0.05


def other_outcomes(rng: np.random.Generator, pairs: int, errors: str) -> Iterator[tuple[Outcome, float]]:
    """The same of the checks."""
    drawn = Drawn.of(rng, pairs, errors)
    for name, term in bootstrap(drawn.sums(drawn.response, 3), rng, 199).items():
        for kind, label in (("ci", "studentised"), ("ci_percentile", "percentile")):
            covered = term[kind][0] <= TRUE[name] <= term[kind][1]
            yield (f"cluster bootstrap, {label}", f"coverage, {name}", 0.95), covered
    null = drawn.rows(drawn.noise)
    yield ("permuted ratios", "size, prefix alone", 0.05), permutation(null, Y, rng, 199)["p"] <= 0.05
    yield ("Wilcoxon of the pairs' slopes", "size, prefix alone", 0.05), per_pair(null, Y)["wilcoxon_p"] < 0.05
    steps = ordered(null, Y)
    yield ("Wald test of a line", "size", 0.05), steps["p_nonlinear"] < 0.05
    yield ("every step rises", "size, no step does (at most)", 0.05), steps["p_rising"] < 0.05
    found = between(null, Y, LOADS)
    if found:
        yield ("between pairs", "size, surprisal", 0.05), found["surprisal_norm"]["p"] < 0.05


def mixed_outcomes(rng: np.random.Generator, pairs: int, errors: str) -> Iterator[tuple[Outcome, float]]:
    """The same of the mixed model, which knows pairs only, no clusters of them."""
    drawn = Drawn.of(rng, pairs, errors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = mixed(drawn.rows(drawn.response), Y, list(TRUE))
    yield ("mixed model", "no fit", 0.0), not fitted["terms"]
    for name, term in fitted["terms"].items():
        if name in TRUE:
            yield ("mixed model", f"coverage, {name}", 0.95), term["ci"][0] <= TRUE[name] <= term["ci"][1]
            yield ("mixed model", f"bias, {name}", 0.0), term["coef"] - TRUE[name]


PARTS = {
    "default": (default_outcomes, dict.fromkeys(ERRORS, math.inf)),
    "checks": (other_outcomes, dict.fromkeys(ERRORS, 500)),
    "mixed model": (mixed_outcomes, {"plain": 100, "clustered": 300}),  # fits are slow
}
"""Of a design: what happens, and the most panels for each kind of errors."""


def one(i: int, pairs: int, errors: str, part: str) -> list[tuple[Outcome, float]]:
    """The outcomes of panel i of a design."""
    rng = np.random.default_rng([pairs, ERRORS.index(errors), i])
    return [(outcome, float(value)) for outcome, value in PARTS[part][0](rng, pairs, errors)]


def design(pairs: int, errors: str, part: str, panels: int) -> list[dict]:
    """The rows of one part of a design."""
    happened: dict[Outcome, list[float]] = {}
    run = partial(one, pairs=pairs, errors=errors, part=part)
    drawn = int(min(panels, PARTS[part][1][errors]))
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
                "part": part,
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
    done = {(row["part"], row["pairs"], row["errors"]) for row in rows}
    for part, (_, most) in PARTS.items():
        for pairs, errors in product(args.pairs, most):
            if (part, pairs, errors) not in done:
                rows += design(pairs, errors, part, args.panels)
                args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(tabulate([list(row.values()) for row in rows], list(rows[0]), tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()
