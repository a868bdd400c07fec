"""Speed and loss at every precision and budget, beside transformers and llama.cpp; then `figures/SPEED.md` anew.

    python benchmarks/speed.py --text jsonl:articles.jsonl:body            # SmolLM2-135M

Three runs of five interleaved rounds at prompt 512, 128 new tokens (`benchmarks/results/speed-*.json`), all precisions
and budgets once before any comes again, as a shared machine's memory is faster in some minutes than in others. Speeds
are medians over all fifteen rounds, ratios medians of the rounds' own; beside them the lowest and the highest run. The
peers run with the 2 % plan. Losses are of 16,384 tokens (`loss-*.json`), all budgets on the same ones. Results that are
there are kept; delete them to measure again. Results of another machine are moved into a folder of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from speed_page import publish
from stored import RESULTS, bench
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


def measure_losses(dtype: str, text: str | None) -> None:
    """Store what the plans cost, by budget ("0.02"), where it is not stored."""
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


def main() -> None:
    """Measure what is missing, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it")
    text = parser.parse_args().text
    for run in range(1, RUNS + 1):
        for dtype, peers in PEERS.items():
            for budget in BUDGETS:
                options = f"--methods clada --dtype {dtype} --max-loss {budget} --repeats 5 --scored-tokens 0"
                beside = f" --peers {peers}" if budget == 0.02 else ""
                bench(f"speed-{dtype}-{round(100 * budget)}-run{run}", text, options + beside)
    for dtype in PEERS:
        measure_losses(dtype, text)
    publish()


if __name__ == "__main__":
    main()
