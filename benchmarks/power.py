"""Is a study large enough to see the paper's effects? What a pilot's errors say before the study is made.

    cladastats run --study studies/pilot --pairs 30 ...                 # on other texts than the study's
    python benchmarks/power.py studies/pilot --pairs 100,300,900        # seconds

Of the pilot only errors and variances count, and no estimate: the standard error of a coefficient shrinks with the
square root of the number of pairs. The smallest effect is the one that a two-sided test at 5 % finds with probability
0.8. It stands in the coefficient's unit (response points per 1,000 tokens of prefix, or per log2 of the vocabulary of
load) and as a partial correlation within pairs (r).

The paper's coefficients of the prefix are lost. Its t values are not, and r = t / sqrt(t^2 + rows - pairs - regressors)
with 12,000 rows of 4,000 pairs, as we read its tables (both groups pooled; 6,000 rows of 2,000 pairs would make r
larger). That holds for errors that are alike and independent; the paper does not say which it used. Of its loads'
coefficients some can be read, but its surprisal is scaled by its own minimum and maximum and ours by log2 of the
vocabulary, so that r is the safer comparison. Effects of random words' loads are shown too, although the paper claims
that there are none.

A pilot knows its own error only roughly, to a share of about 1 / sqrt(2 (pairs - 1)), and numbers of pairs to twice
that share. `--json` prints one object with everything, unrounded.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from clada.errors import CladaError
from cladastats.panel.columns import fit_columns
from cladastats.panel.power import plan
from cladastats.results.fit import CONFIRMATORY, PAPER_METRICS
from cladastats.study import Study


def designs(pilot: Study, pairs: list[int]) -> pd.DataFrame:
    """A row per metric, hypothesis' test and number of pairs, as `cladastats.panel.power.plan` gives them."""
    tests = len(CONFIRMATORY) * len(PAPER_METRICS)
    fits = [fit_columns(pilot.panel(metric), metric) for metric in PAPER_METRICS]
    return pd.concat([plan(fit, pairs, tests) for fit in fits], ignore_index=True)


def name(row: Any) -> str:
    """A test's term and group in words."""
    return f"{row.term.removesuffix('_norm').removesuffix('_len')} in {row.group.upper()}"


def shown(rows: pd.DataFrame) -> str:
    """A row per test: the paper's effect, the pairs that see it, and the smallest effect of each design with its r."""

    def count(value: Any) -> str:
        return "" if value is None or pd.isna(value) else f"{value:,.0f}"

    cells = []
    for _, designs_of in rows.groupby(["metric", "column", "term"], sort=False):
        row = next(designs_of.itertuples())
        cells.append(
            [row.metric, name(row), f"{row.paper_r:.3f}", count(row.pairs_for_r), count(row.pairs_for_r_corrected)]
            + ["" if pd.isna(row.paper_coef) else f"{row.paper_coef:g}", count(row.pairs_for_coef)]
            + [f"{design.smallest_effect:.3g} ({design.smallest_r:.3f})" for design in designs_of.itertuples()]
        )
    heads = ["metric", "test", "paper's\nr", "pairs\nfor it", "pairs,\ncorrected", "paper's\ncoef.", "pairs\nfor it"]
    heads += [f"smallest (r)\nof {n:,} pairs" for n in dict.fromkeys(rows["pairs"])]
    return tabulate(cells, heads, tablefmt="simple", disable_numparse=True, stralign="right")


def sentences(rows: pd.DataFrame) -> list[str]:
    """A sentence per metric and number of pairs: which of the paper's effects would be seen."""
    said = []
    for (metric, n), part in rows.groupby(["metric", "pairs"], sort=False):
        for scale, column in (("partial correlations", "sees_r"), ("coefficients that can be read", "sees_coef")):
            seen, missed = (
                [name(row) for row in part.itertuples() if getattr(row, column) is s] for s in (True, False)
            )
            said.append(
                f"{metric}, {n:,} pairs a group, by the paper's {scale}: enough for {', '.join(seen) or 'nothing'}; "
                f"too few for {', '.join(missed) or 'nothing'}."
            )
    return said


def main() -> None:
    """Read the pilot and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pilot", type=Path, help="the folder of a study with panels of cka and cosine")
    parser.add_argument("--pairs", type=lambda text: [int(n) for n in text.split(",")], default=[100, 300, 900])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if min(args.pairs) < 2:
        parser.error("--pairs are 2 or more")
    try:
        pilot = Study(args.pilot)
        rows = designs(pilot, args.pairs)
    except CladaError as problem:
        raise SystemExit(f"power.py: {problem}") from None
    config = pilot.config
    if args.json:
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        print(json.dumps({"pilot": {"pairs": config.pairs, "length": config.length}, "rows": records}))
        return
    share = 1 / math.sqrt(2 * (config.pairs - 1))
    print(shown(rows))
    tests = len(CONFIRMATORY) * len(PAPER_METRICS)
    print(f"\nPilot: {config.model}, {config.source}, {config.pairs} pairs, length {config.length}.")
    print(f"It knows its errors to {share:.0%}, and numbers of pairs to {2 * share:.0%}.")
    print(f"'Corrected' is the strictest level of Holm's method: 5 % by {tests} tests.\n")
    print("\n".join(sentences(rows)))


if __name__ == "__main__":
    main()
