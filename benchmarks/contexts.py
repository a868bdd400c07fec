"""Speed in long contexts: `clada bench` at several lengths, a figure, and `figures/SPEED.md` anew.

    python benchmarks/contexts.py --text jsonl:articles.jsonl:body        # both models, bfloat16 and int8

Two interleaved rounds at every length, 64 new tokens, the 2 % plan. Results go to `benchmarks/results/context-*.json`;
those that are there are kept, so that an interrupted run goes on and the figure can be drawn alone, of the models that
were measured. Delete them to measure again.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt
from speed_page import publish
from stored import RESULTS, bench, save

# The last lengths end at the models' limits, with room for 128 new tokens.
LENGTHS = {"smollm2-135m": (1024, 4096, 8064), "gemma3-270m": (1024, 8192, 32_640)}
DTYPES = ("bfloat16", "int8")


def _whole(model: str, lengths: tuple[int, ...]) -> bool:
    """Whether every result of a model is stored."""
    names = [f"context-{model}-{dtype}-{length}.json" for dtype in DTYPES for length in lengths]
    return all((RESULTS / name).is_file() for name in names)


def main() -> None:
    """Measure what is missing, draw the figure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
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
    publish()


if __name__ == "__main__":
    main()
