"""Speed and loss at every precision and budget, beside transformers and llama.cpp: the README's first table.

    python benchmarks/speed.py --text jsonl:articles.jsonl:body            # SmolLM2-135M
    python benchmarks/speed.py --speeds benchmarks/results/xeon            # what was measured on another machine

Speeds are medians of nine interleaved rounds at prompt 512 and 128 new tokens (`benchmarks/results/speed-*.json`); the
peers run with the 2 % plan. Losses are of 16,384 tokens (`loss-*.json`), in runs of their own, whose speeds do not
count. Results that are there are kept; delete them to measure again. Speeds of another machine have a folder of their
own, which need not be complete; losses do not depend on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stored import RESULTS, bench
from tabulate import tabulate

PEERS = {"float32": "transformers,llama.cpp", "bfloat16": "transformers,llama.cpp", "int8": "llama.cpp"}
BUDGETS = (0.01, 0.02, 0.05)


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    parser.add_argument("--speeds", type=Path, default=RESULTS, help="folder of the speeds (default: %(default)s)")
    args = parser.parse_args()
    text, found = args.text, {}
    for kind, more in (("speed", "--repeats 9 --scored-tokens 0"), ("loss", "--repeats 1 --scored-tokens 16384")):
        for dtype, peers in PEERS.items():
            for budget in BUDGETS:
                options = f"--methods clada --dtype {dtype} --max-loss {budget} {more}"
                beside = f" --peers {peers}" if kind == "speed" and budget == 0.02 else ""
                name = f"{kind}-{dtype}-{round(100 * budget)}"
                folder = args.speeds if kind == "speed" else RESULTS
                if text or folder == RESULTS or (folder / f"{name}.json").is_file():
                    found[kind, dtype, budget] = bench(name, text, options + beside, folder)
    engines, plans = [], []
    for dtype in PEERS:
        for budget in BUDGETS:
            timed = found.get(("speed", dtype, budget))
            if timed is None:
                continue
            dense, clada = timed["rows"]
            loss = found["loss", dtype, budget]["rows"][1]
            low, high = (f"{100 * end:+.2f}" for end in loss["ppl_rise_ci"])
            plans.append(
                [
                    dtype,
                    f"{budget:.0%}",
                    f"{clada['tokens_per_s']:.0f}",
                    f"{clada['ratio_to_dense']:.2f}",
                    f"{dense['bytes_per_token'] / clada['bytes_per_token']:.2f}",
                    f"{clada['bytes_per_token'] / 1e6:.0f} of {dense['bytes_per_token'] / 1e6:.0f} MB",
                    f"{100 * loss['ppl_rise']:+.2f} % ({low} to {high})",
                    f"{loss['active_fraction']:.0%}",
                ]
            )
            if not timed["peers"]:
                continue
            speeds = {f"{peer['name']} {peer['dtype']}": peer["tokens_per_s"] for peer in timed["peers"]}
            rows = {**speeds, "`clada`, dense": dense["tokens_per_s"], "`clada`, 2 %": clada["tokens_per_s"]}
            engines += [[dtype, engine, f"{speed:.0f}"] for engine, speed in rows.items()]
            machine = f"{timed['machine']}, {timed['bandwidth_gb_s']:.0f} GB/s"
            versions = ", ".join(sorted({f"{peer['name']} {peer['version']}" for peer in timed["peers"]}))
            print(f"{dtype}: {machine}; {versions}")
    if engines:
        print("\n" + tabulate(engines, ["run", "engine", "tokens/s"], tablefmt="github", disable_numparse=True))
    headers = ["", "plan", "tokens/s", "over dense", "bytes allow", "reads", "rise of perplexity [95 %]", "neurons"]
    print("\n" + tabulate(plans, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
