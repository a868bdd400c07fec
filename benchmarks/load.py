"""What load awareness (Eq. 11) brings at equal average work.

    python benchmarks/load.py --text jsonl:articles.jsonl:body --fitted studies/mine/coefficients.json

SmolLM2-135M in bfloat16, the MLP alone (`clada-mlp`), so that work is the share of neurons computed. Rules: `none`;
`fitted`, the coefficients of a study; `paper` (-0.80, -0.12); `inverted`, the paper's with the other sign, so that load
leaves out more. For every rule the base share is searched at which as many neurons are computed as without a rule; then
64 windows of held text are scored (16,384 tokens). The rise over dense, and the difference to `none` on the same
windows with its 95 % interval, go to `benchmarks/results/load.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from stored import RESULTS

from clada.coefficients import NONE, PAPER, Coefficients, read_coefficients
from clada.decoder import Decoder
from clada.loss import Scorer
from clada.models import load_model, model_revision
from clada.plan import Shares, resolve_plan
from clada.policies import Policy, make_policy, shares_of
from clada.texts import read_windows
from clada.threads import available_cores, set_threads
from clada.weights import pack

MODEL = "smollm2-135m"
DROPPED = (0.4, 0.6)  # the 2 % plan's share, and one at which more is lost
WINDOWS, SEARCHED, PROMPT = 64, 8, 256
CLOSE = 0.0005  # difference in active share that counts as equal: a thousandth of the work


def main() -> None:
    """Search equal work, score, print and write one line per share and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="what to decode, as `clada bench` takes it")
    parser.add_argument("--fitted", required=True, type=Path, help="coefficients.json of a study of the model")
    args = parser.parse_args()
    model, tokenizer = load_model(MODEL)
    set_threads(available_cores())
    revision = model_revision(MODEL)
    windows, _ = read_windows(args.text, tokenizer, revision, 2 * PROMPT, WINDOWS)
    plan = resolve_plan(None, MODEL, revision)
    weights = pack(model, "bfloat16")
    del model
    decoder = Decoder(weights, available_cores())
    dense = make_policy("dense", weights, None, Shares())
    some, held = (Scorer(decoder, part, PROMPT, dense) for part in (windows[:SEARCHED], windows))
    reference = held.score(dense)
    rules = {
        "none": NONE,
        "fitted": read_coefficients(args.fitted),
        "paper": PAPER,
        "inverted": replace(PAPER, lambda_=-PAPER.lambda_, gamma=-PAPER.gamma, source="inverted"),
    }

    def policy(dropped: float, rule: Coefficients) -> Policy:
        return make_policy("clada-mlp", weights, plan, shares_of("clada-mlp", dropped), rule)

    with (RESULTS / "load.jsonl").open("w", encoding="utf-8") as file:
        for dropped in DROPPED:
            wanted = some.score(policy(dropped, NONE)).active
            without = None
            for name, rule in rules.items():

                def excess(share: float, rule: Coefficients = rule, wanted: float = wanted) -> float:
                    difference = some.score(policy(share, rule)).active - wanted
                    return 0.0 if abs(difference) < CLOSE else difference

                share = dropped if name == "none" else brentq(excess, 0.05, 0.95, xtol=1e-3)
                loss = held.score(policy(share, rule))
                without = without or loss
                rise, low, high = loss.rise(reference)
                against, against_low, against_high = loss.rise(without)
                complete = policy(share, rule).coefficients
                line = {
                    "rule": name,
                    "lambda": rule.lambda_,
                    "gamma": rule.gamma,
                    "tau_surprisal_bits": complete.tau_surprisal_bits,
                    "tau_entropy_bits": complete.tau_entropy_bits,
                    "base_share": float(share),
                    "active_fraction": loss.active,
                    "ppl_rise": rise,
                    "ppl_rise_ci": [low, high],
                    "against_none": against,
                    "against_none_ci": [against_low, against_high],
                    "perplexity": float(np.exp(loss.nll.mean())),
                    "scored_tokens": loss.tokens,
                }
                print(json.dumps(line), flush=True)
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
