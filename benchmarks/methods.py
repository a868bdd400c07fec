"""Every method at every loss budget: `clada bench`, a table and a figure of speed against loss.

    python benchmarks/methods.py --text jsonl:articles.jsonl:body          # SmolLM2-135M, bfloat16

Each method leaves out what calibration found within the budget (the shipped plan); the loss in the table is measured
here, on the text given. Three interleaved rounds at prompt 512 and 128 new tokens, 4,096 tokens scored. Results go to
`benchmarks/results/methods-*.json`; those that are there are kept. Delete them to measure again.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from stored import bench, save
from tabulate import tabulate

BUDGETS = (0.01, 0.02, 0.05)
METHODS = ("clada", "clada-mlp", "tt", "top-p", "cats", "griffin", "teal", "wina")
MARKERS = dict(zip(METHODS, "os^v<>Dd", strict=True))


def main() -> None:
    """Measure what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    results = {
        budget: bench(
            f"methods-bfloat16-{round(100 * budget)}",
            text,
            f"--methods {','.join(METHODS)} --max-loss {budget} --dtype bfloat16 --repeats 3 --scored-tokens 4096 "
            "--peers llama.cpp",
        )
        for budget in BUDGETS
    }
    figure, axis = plt.subplots(figsize=(3.5, 3))
    table = []
    for method in METHODS:
        rows = [next(r for r in results[budget]["rows"] if r["method"] == method) for budget in BUDGETS]
        cells = [
            f"{r['ratio_to_dense']:.2f} ({100 * r['ppl_rise']:+.1f} %, {100 * r['active_fraction']:.0f} %)"
            for r in rows
        ]
        table.append([f"`{method}`", *cells])
        axis.plot(
            [100 * r["ppl_rise"] for r in rows],
            [r["ratio_to_dense"] for r in rows],
            "-" + MARKERS[method],
            color="k" if method == "clada" else "0.55",
            markersize=4,
            linewidth=0.8,
            label=method,
        )
    axis.axhline(1, color="0.7", linewidth=0.8)
    axis.set_xlabel("rise of perplexity over dense (%)")
    axis.set_ylabel("speed over dense")
    axis.legend(fontsize=6, frameon=False)
    save(figure, "methods")
    print(tabulate(table, ["speed over dense (loss, neurons)", *(f"{b:.0%} plan" for b in BUDGETS)], tablefmt="github"))


if __name__ == "__main__":
    main()
