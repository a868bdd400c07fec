"""Speed and loss at every precision and budget, beside transformers and llama.cpp (docs/speed-and-quality.md).

    python benchmarks/speed.py --text jsonl:articles.jsonl:body            # SmolLM2-135M
    python benchmarks/speed.py --speeds benchmarks/results/xeon            # what was measured on another machine

Three runs of five interleaved rounds at prompt 512, 128 new tokens (`benchmarks/results/speed-*.json`), all precisions
and budgets once before any comes again, as a shared machine's memory is faster in some minutes than in others. Speeds
are medians over all fifteen rounds, ratios medians of the rounds' own; beside them the lowest and the highest run. The
peers run with the 2 % plan. Losses are of 16,384 tokens (`loss-*.json`), all budgets on the same ones. Results that are
there are kept; delete them to measure again. Speeds of another machine have a folder of their own, one run each, of
plans and kernels of their time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from stored import RESULTS, bench
from tabulate import tabulate
from tqdm import tqdm

import clada
from clada.cpu.decoder import Decoder
from clada.cpu.pack import pack
from clada.measure.loss import Scorer
from clada.measure.texts import read_windows
from clada.methods.plan import Shares, resolve_plan
from clada.methods.policy import basis_of, make_policy, resolve_shares
from clada.models.open import model_revision
from clada.system.machine import available_cores, set_threads

PEERS = {"float32": "transformers,llama.cpp", "bfloat16": "transformers,llama.cpp", "int8": "llama.cpp"}
BUDGETS = (0.01, 0.02, 0.05)
RUNS = 3
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


def pooled(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Tokens per second of every round of some runs, by engine; rounds of the same place belong together."""
    speeds: dict[str, list[float]] = {}
    for run in runs:
        for row in run["rows"]:
            speeds.setdefault(row["method"], []).extend(row["tokens_per_s_all"])
        for peer in run["peers"]:
            speeds.setdefault(f"{peer['name']} {peer['dtype']}", []).extend(peer["tokens_per_s_all"])
    return speeds


def ratio(speeds: list[float], others: list[float]) -> float:
    """Median over the rounds of how many times faster: the memory's speed changes from round to round."""
    return float(np.median(np.array(speeds) / np.array(others)))


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    parser.add_argument("--speeds", type=Path, help="print another machine's speeds, from this folder")
    args = parser.parse_args()
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in range(1, RUNS + 1):
        for dtype, peers in PEERS.items():
            for budget in BUDGETS:
                name = f"speed-{dtype}-{round(100 * budget)}"
                options = f"--methods clada --dtype {dtype} --max-loss {budget} --repeats 5 --scored-tokens 0"
                beside = f" --peers {peers}" if budget == 0.02 else ""
                if args.speeds is None:
                    timed = bench(f"{name}-run{run}", args.text, options + beside)
                elif run == 1 and (args.speeds / f"{name}.json").is_file():
                    timed = bench(name, None, "", args.speeds)
                else:
                    continue
                found.setdefault((dtype, budget), []).append(timed)
    engines, plans = [], []
    for (dtype, budget), runs in found.items():
        speeds, (dense, sparse) = pooled(runs), runs[0]["rows"]
        ratios = [ratio(own["clada"], own["dense"]) for own in (pooled([run]) for run in runs)]
        row = [
            dtype,
            f"{budget:.0%}",
            f"{np.median(speeds['clada']):.0f}",
            f"{ratio(speeds['clada'], speeds['dense']):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else "",
            f"{dense['bytes_per_token'] / sparse['bytes_per_token']:.2f}",
            f"{sparse['bytes_per_token'] / 1e6:.0f} of {dense['bytes_per_token'] / 1e6:.0f} MB",
        ]
        if args.speeds is None:  # another machine's plans were others
            loss = losses(dtype, args.text)[str(budget)]
            low, high = (f"{100 * end:+.2f}" for end in loss["ppl_rise_ci"])
            row += [f"{100 * loss['ppl_rise']:+.2f} % ({low} to {high})", f"{loss['active_fraction']:.0%}"]
        plans.append(row)
        if runs[0]["peers"]:
            for engine, values in speeds.items():
                times = [ratio(speeds[ours], values) for ours in ("dense", "clada")]
                engines.append([dtype, engine, f"{np.median(values):.0f}", *(f"{value:.2f}" for value in times)])
            memory = [run["bandwidth_gb_s"] for run in runs]
            versions = ", ".join(sorted({f"{peer['name']} {peer['version']}" for run in runs for peer in run["peers"]}))
            print(f"{dtype}: {runs[0]['machine']}, {min(memory):.0f} to {max(memory):.0f} GB/s; {versions}")
    if engines:
        headers = ["run", "engine", "tokens/s", "clada dense over it", "clada 2 % over it"]
        print("\n" + tabulate(engines, headers, tablefmt="github", disable_numparse=True))
    headers = ["", "plan", "tokens/s", "over dense", "runs", "bytes allow", "reads"]
    headers += ["rise of perplexity [95 %]", "neurons"] if args.speeds is None else []
    print("\n" + tabulate(plans, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
