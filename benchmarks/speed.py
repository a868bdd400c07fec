"""Speed and loss at every precision and budget, beside transformers and llama.cpp: the README's first table.

    python benchmarks/speed.py --text jsonl:articles.jsonl:body            # SmolLM2-135M
    python benchmarks/speed.py --speeds benchmarks/results/xeon            # what was measured on another machine

Speeds are medians of nine interleaved rounds at prompt 512 and 128 new tokens (`benchmarks/results/speed-*.json`); the
peers run with the 2 % plan. Losses are of 16,384 tokens (`loss-*.json`), all budgets on the same ones. Results that
are there are kept; delete them to measure again. Speeds of another machine have a folder of their own, which need not
be complete; losses do not depend on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from stored import RESULTS, bench
from tabulate import tabulate
from tqdm import tqdm

import clada
from clada.decoder import Decoder
from clada.loss import Scorer
from clada.models import model_revision
from clada.plan import Shares, resolve_plan
from clada.policies import basis_of, make_policy, resolve_shares
from clada.texts import read_windows
from clada.threads import available_cores, set_threads
from clada.weights import pack

PEERS = {"float32": "transformers,llama.cpp", "bfloat16": "transformers,llama.cpp", "int8": "llama.cpp"}
BUDGETS = (0.01, 0.02, 0.05)
MODEL, PROMPT, NEW, SCORED = "smollm2-135m", 512, 128, 16_384


def losses(dtype: str, text: str | None) -> dict[str, Any]:
    """What the plans cost, by budget ("0.02"), measured now where it is not stored."""
    path = RESULTS / f"loss-{dtype}.json"
    if not path.is_file():
        if text is None:
            raise SystemExit(f"no {path}; give --text to measure it")
        set_threads(available_cores())
        (model, tokenizer), revision = clada.load_model(MODEL), model_revision(MODEL)
        windows, text_sha256 = read_windows(text, tokenizer, revision, PROMPT + NEW, SCORED // NEW)
        plan = resolve_plan(None, MODEL, revision)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        shares = [resolve_shares("clada", plan, vocabulary, dtype, budget)[0] for budget in BUDGETS]
        weights = pack(model, dtype, basis_of(plan, shares[0]))
        del model
        dense = make_policy("dense", weights, None, Shares())
        policies = [make_policy("clada", weights, plan, some) for some in shares]
        with tqdm(desc=f"loss {dtype}", unit="batch", file=sys.stderr) as progress:
            scorer = Scorer(Decoder(weights, available_cores()), windows, PROMPT, dense, None, progress.update)
            reference, *found = scorer.score_all([dense, *policies], dense)
        result: dict[str, Any] = {"model": MODEL, "dtype": dtype, "text_sha256": text_sha256}
        for budget, loss in zip(BUDGETS, found, strict=True):
            rise, low, high = loss.rise(reference)
            result[str(budget)] = {
                "ppl_rise": rise,
                "ppl_rise_ci": [low, high],
                "kl_to_dense": float(loss.kl.mean()) if loss.kl is not None else 0.0,
                "scored_tokens": loss.tokens,
                "active_fraction": loss.active,
            }
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    parser.add_argument("--speeds", type=Path, default=RESULTS, help="folder of the speeds (default: %(default)s)")
    args = parser.parse_args()
    text, found = args.text, {}
    for dtype, peers in PEERS.items():
        for budget in BUDGETS:
            options = f"--methods clada --dtype {dtype} --max-loss {budget} --repeats 9 --scored-tokens 0"
            beside = f" --peers {peers}" if budget == 0.02 else ""
            name = f"speed-{dtype}-{round(100 * budget)}"
            if text or args.speeds == RESULTS or (args.speeds / f"{name}.json").is_file():
                found[dtype, budget] = bench(name, text, options + beside, args.speeds)
    engines, plans = [], []
    for dtype in PEERS:
        cost = losses(dtype, text)
        for budget in BUDGETS:
            timed = found.get((dtype, budget))
            if timed is None:
                continue
            dense, sparse = timed["rows"]
            loss = cost[str(budget)]
            low, high = (f"{100 * end:+.2f}" for end in loss["ppl_rise_ci"])
            plans.append(
                [
                    dtype,
                    f"{budget:.0%}",
                    f"{sparse['tokens_per_s']:.0f}",
                    f"{sparse['ratio_to_dense']:.2f}",
                    f"{dense['bytes_per_token'] / sparse['bytes_per_token']:.2f}",
                    f"{sparse['bytes_per_token'] / 1e6:.0f} of {dense['bytes_per_token'] / 1e6:.0f} MB",
                    f"{100 * loss['ppl_rise']:+.2f} % ({low} to {high})",
                    f"{loss['active_fraction']:.0%}",
                ]
            )
            if not timed["peers"]:
                continue
            speeds = {f"{peer['name']} {peer['dtype']}": peer["tokens_per_s"] for peer in timed["peers"]}
            rows = {**speeds, "`clada`, dense": dense["tokens_per_s"], "`clada`, 2 %": sparse["tokens_per_s"]}
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
