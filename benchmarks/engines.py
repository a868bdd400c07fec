"""Every method that people pick and every other engine, in one run of `clada bench` for each precision.

    python benchmarks/engines.py --text jsonl:articles.jsonl:body            # SmolLM2-135M; then figures/SPEED.md anew

Results that are there are kept; delete `benchmarks/results/engines-*.json` to measure again.
"""

from __future__ import annotations

import argparse

from speed_page import publish
from stored import bench

DTYPES = ("float32", "bfloat16", "int8")
OPTIONS = "--methods dense,clada,speculative --peers transformers,llama.cpp --repeats 5 --scored-tokens 0"


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    for dtype in DTYPES:
        bench(f"engines-{dtype}", text, f"{OPTIONS} --dtype {dtype}")
    publish()


if __name__ == "__main__":
    main()
