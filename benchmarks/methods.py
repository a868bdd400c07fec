"""Every method at every loss budget: a figure of speed against loss, and `figures/SPEED.md` anew.

    python benchmarks/methods.py --text jsonl:articles.jsonl:body          # SmolLM2-135M, bfloat16

Each method leaves out what calibration found within the budget (the shipped plan; `clada-mlp` as many neurons as
`clada`); losses are measured here, on the text given: 4,096 tokens (`benchmarks/results/methods-*.json`).
Speeds are of runs of their own, nine interleaved rounds at prompt 512 and 128 new tokens (`methods-speed-*.json`), as
single rounds differ by a tenth.
Results that are there are kept; delete them to measure again.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from speed_page import publish
from stored import bench, save

BUDGETS = (0.01, 0.02, 0.05)
METHODS = ("clada", "clada-mlp", "tt", "top-p", "cats", "griffin", "teal", "wina")
MARKERS = dict(zip(METHODS, "os^v<>Dd", strict=True))


def main() -> None:
    """Measure what is missing, draw the figure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    results, speeds = {}, {}
    for budget in BUDGETS:
        options = f"--methods {','.join(METHODS)} --max-loss {budget} --dtype bfloat16"
        name = f"bfloat16-{round(100 * budget)}"
        results[budget] = bench(
            f"methods-{name}", text, f"{options} --repeats 3 --scored-tokens 4096 --peers llama.cpp"
        )
        timed = bench(f"methods-speed-{name}", text, f"{options} --repeats 9 --scored-tokens 0")
        speeds[budget] = {row["method"]: row["ratio_to_dense"] for row in timed["rows"]}
    figure, axis = plt.subplots(figsize=(3.5, 3))
    for method in METHODS:
        rows = [next(r for r in results[budget]["rows"] if r["method"] == method) for budget in BUDGETS]
        ratios = [speeds[budget][method] for budget in BUDGETS]
        axis.plot(
            [100 * r["ppl_rise"] for r in rows],
            ratios,
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
    publish()


if __name__ == "__main__":
    main()
