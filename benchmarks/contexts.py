"""Speed in long contexts: `clada bench` at several lengths, a table and a figure.

    python benchmarks/contexts.py --text jsonl:articles.jsonl:body        # SmolLM2-135M, bfloat16 and int8

Two interleaved rounds at every length, 64 new tokens. Results go to `benchmarks/results/context-*.json`; those that are
there are kept, so that an interrupted run goes on and the figure can be drawn alone. Delete them to measure again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from tabulate import tabulate

ROOT = Path(__file__).parent
LENGTHS = (1024, 4096, 8064)  # the last ends at SmolLM2's limit of 8,192, with room for new tokens
DTYPES = ("bfloat16", "int8")
NEW = 64


def measured(dtype: str, length: int, text: str | None) -> dict:
    """The result at a length, from its file or measured now."""
    path = ROOT / "results" / f"context-{dtype}-{length}.json"
    if not path.is_file():
        if text is None:
            raise SystemExit(f"no {path}; give --text to measure it")
        options = (
            f"--methods clada --coefficients none --dtype {dtype} --prompt-tokens {length} --new-tokens {NEW} "
            "--repeats 2 --scored-tokens 0 --json"
        )
        command = [sys.executable, "-m", "clada.bench", "--text", text, *options.split()]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        path.write_bytes(done.stdout)
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Measure what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    rows = []
    figure, axis = plt.subplots(figsize=(3.5, 2.8))
    for dtype, shade in zip(DTYPES, ("k", "0.55"), strict=True):
        speeds: dict[str, list[float]] = {"dense": [], "clada": []}
        for length in LENGTHS:
            dense, clada = measured(dtype, length, text)["rows"]
            for row in (dense, clada):
                speeds[row["method"]].append(row["tokens_per_s"])
            prefill = dense.get("prefill_s")
            rows.append(
                [
                    dtype,
                    f"{length:,}",
                    f"{dense['tokens_per_s']:.0f}",
                    f"{clada['tokens_per_s']:.0f}",
                    f"{clada['ratio_to_dense']:.2f}",
                    f"{dense['bytes_per_token'] / clada['bytes_per_token']:.2f}",
                    "" if prefill is None else f"{prefill / (prefill + 1024 / clada['tokens_per_s']):.0%}",
                ]
            )
        for method, style in (("clada", "-o"), ("dense", "--s")):
            axis.plot(LENGTHS, speeds[method], style, color=shade, markersize=4, label=f"{method}, {dtype}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("tokens in context")
    axis.set_ylabel("tokens/s")
    axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    for kind in ("png", "pdf"):
        figure.savefig(ROOT.parent / "figures" / f"contexts.{kind}", dpi=200)
    headers = ["", "context", "dense", "clada", "ratio", "bytes allow", "prefill, of 1,024 new tokens"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
