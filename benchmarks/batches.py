"""Several sequences side by side: dense and the 2 % plan at batch sizes 1 to 16, as a table.

    python benchmarks/batches.py --text jsonl:articles.jsonl:body          # both models, bfloat16

A batch reads what any of its sequences needs, so that what can be left out shrinks as it grows. Two interleaved rounds
at prompt 512 and 64 new tokens; results go to `benchmarks/results/batch-MODEL-*.json`, those that are there are kept.
"""

from __future__ import annotations

import argparse

from stored import RESULTS, bench
from tabulate import tabulate

MODELS = ("smollm2-135m", "gemma3-270m")
SIZES = (1, 2, 4, 8, 16)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    rows = []
    for model in MODELS:
        if text is None and not any(RESULTS.glob(f"batch-{model}-*.json")):
            continue
        for size in SIZES:
            options = (
                f"--model {model} --methods clada --dtype bfloat16 --batch-size {size} --new-tokens 64 --repeats 2 "
                "--scored-tokens 0 --prompt-tokens 512"
            )
            dense, clada = bench(f"batch-{model}-bfloat16-{size}", text, options)["rows"]
            rows.append(
                [
                    model,
                    size,
                    f"{dense['tokens_per_s']:.0f}",
                    f"{clada['tokens_per_s']:.0f}",
                    f"{clada['ratio_to_dense']:.2f}",
                    f"{dense['bytes_per_token'] / clada['bytes_per_token']:.2f}",
                    f"{clada['mlp_bytes_fraction']:.0%}",
                ]
            )
    headers = ["", "batch", "dense, tokens/s", "clada", "ratio", "bytes allow", "MLP bytes"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
