"""Speed in long contexts: `clada bench` at several lengths, a table and a figure.

    python benchmarks/contexts.py --text jsonl:articles.jsonl:body        # both models, bfloat16 and int8

Two interleaved rounds at every length, 64 new tokens, the 2 % plan. Results go to `benchmarks/results/context-*.json`;
those that are there are kept, so that an interrupted run goes on and the figure can be drawn alone, of the models that
were measured. Delete them to measure again. The share of prefill is of the time that 1,024 new tokens would take, or as
many as fit, at the speed of the 64.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from stored import RESULTS, bench, save
from tabulate import tabulate

# The last lengths end at the models' limits, with `ROOM` for new tokens.
LENGTHS = {"smollm2-135m": (1024, 4096, 8064), "gemma3-270m": (1024, 8192, 32_640)}
ROOM = 128
DTYPES = ("bfloat16", "int8")


def _whole(model: str, lengths: tuple[int, ...]) -> bool:
    """Whether every result of a model is stored."""
    names = [f"context-{model}-{dtype}-{length}.json" for dtype in DTYPES for length in lengths]
    return all((RESULTS / name).is_file() for name in names)


def main() -> None:
    """Measure what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    rows = []
    # A model whose measurement was interrupted waits for the text.
    measured = [m for m, lengths in LENGTHS.items() if text is not None or _whole(m, lengths)]
    figure, axes = plt.subplots(1, len(measured), figsize=(3.5 * len(measured), 2.8), squeeze=False)
    for axis, model in zip(axes[0], measured, strict=True):
        lengths = LENGTHS[model]
        for dtype, shade in zip(DTYPES, ("k", "0.55"), strict=True):
            speeds: dict[str, list[float]] = {"dense": [], "clada": []}
            for length in lengths:
                dense, clada = bench(
                    f"context-{model}-{dtype}-{length}",
                    text,
                    f"--model {model} --methods clada --dtype {dtype} --prompt-tokens {length} --new-tokens 64 "
                    "--repeats 2 --scored-tokens 0",
                )["rows"]
                for row in (dense, clada):
                    speeds[row["method"]].append(row["tokens_per_s"])
                new, prefill = min(1024, lengths[-1] + ROOM - length), clada["prefill_s"]
                rows.append(
                    [
                        model,
                        dtype,
                        f"{length:,}",
                        f"{dense['tokens_per_s']:.0f}",
                        f"{clada['tokens_per_s']:.0f}",
                        f"{clada['ratio_to_dense']:.2f}",
                        f"{dense['bytes_per_token'] / clada['bytes_per_token']:.2f}",
                        f"{prefill / (prefill + new / clada['tokens_per_s']):.0%} (with {new:,} new)",
                    ]
                )
            for method, style in (("clada", "-o"), ("dense", "--s")):
                axis.plot(lengths, speeds[method], style, color=shade, markersize=4, label=f"{method}, {dtype}")
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("tokens in context")
        axis.set_title(model, fontsize=9)
    axes[0, 0].set_ylabel("tokens/s")
    axes[0, 0].legend(fontsize=7, frameon=False)
    save(figure, "contexts")
    headers = ["", "", "context", "dense, tokens/s", "clada", "ratio", "bytes allow", "prefill's share of the time"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
