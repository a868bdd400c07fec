"""Several sequences side by side: dense and the 2 % plan at batch sizes 1 to 16; then `figures/SPEED.md` anew.

    python benchmarks/batches.py --text jsonl:articles.jsonl:body          # both models, bfloat16

A batch reads what any of its sequences needs, so that what can be left out shrinks as it grows. Two interleaved rounds
at prompt 512 and 64 new tokens; results go to `benchmarks/results/batch-MODEL-*.json`, those that are there are kept.
"""

from __future__ import annotations

import argparse

from speed_page import publish
from stored import bench

MODELS = ("smollm2-135m", "gemma3-270m")
SIZES = (1, 2, 4, 8, 16)


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    for model in MODELS:
        for size in SIZES:
            options = (
                f"--model {model} --methods clada --dtype bfloat16 --batch-size {size} --new-tokens 64 --repeats 2 "
                "--scored-tokens 0 --prompt-tokens 512"
            )
            bench(f"batch-{model}-bfloat16-{size}", text, options)
    publish()


if __name__ == "__main__":
    main()
