"""How fast texts are scored, all tokens at once and token by token; then `figures/SPEED.md` anew.

    python benchmarks/scoring.py --text jsonl:articles.jsonl:body

The second halves of windows of 512 tokens are scored with SmolLM2-135M, dense and then under the 2 % plan. The same
tokens are scored token by token, as text is generated, under a load rule that changes nothing. Rounds are interleaved,
and the first is not counted. The difference of the losses says whether both compute the same. Results go to
`benchmarks/results/scoring.jsonl`.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from statistics import median
from typing import Any

from speed_page import publish
from stored import write_lines
from tqdm import tqdm

from clada import load_model
from clada.assembly import DENSE, assemble, choose, vocabulary_of
from clada.measure.loss import Loss, Scorer
from clada.measure.texts import read_windows
from clada.methods.coefficients import NONE, Coefficients
from clada.methods.plan import plan_of
from clada.models.open import model_revision
from clada.system.machine import available_cores, set_threads

MODEL, PROMPT, WINDOW, WINDOWS, ROUNDS = "smollm2-135m", 256, 512, 16, 3
DTYPES = ("float32", "bfloat16", "int8")
METHODS = ("dense", "clada")

# Every token's load is judged, and none is high: scored as under any other rule, with the thresholds of no rule.
NO_EFFECT = Coefficients(1e-12, 0.0, tau_surprisal_bits=1e6, tau_entropy_bits=1e6)


def measure(model: Any, dtype: str, windows: list[list[int]]) -> list[dict[str, Any]]:
    """A line for every method."""
    plan = plan_of(MODEL, model.config.num_hidden_layers, None)
    choices = [DENSE, choose("clada", plan, NONE, vocabulary_of(model), dtype)]
    dense, clada = assemble(model, choices, dtype, available_cores())
    rules = {
        (method, way): replace(policy, coefficients=rule)
        for method, policy in zip(METHODS, (dense.policy, clada.policy), strict=True)
        for way, rule in (("at_once", NONE), ("by_steps", NO_EFFECT))
    }
    losses: dict[tuple[str, str], Loss] = {}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in rules}
    for _ in tqdm(range(ROUNDS + 1), dtype):
        scorer = Scorer(dense.decoder, windows, PROMPT, dense.policy)
        for key, policy in rules.items():
            begin = time.perf_counter()
            losses[key] = scorer.score(policy)
            seconds[key].append(time.perf_counter() - begin)
    lines = []
    for method in METHODS:
        ways = [(method, way) for way in ("at_once", "by_steps")]
        once, steps = (losses[way] for way in ways)
        times = [seconds[way][1:] for way in ways]
        difference = (once.surprisal - steps.surprisal) * math.log(2)
        lines.append(
            {
                "model": MODEL, "dtype": dtype, "method": method, "tokens": once.tokens, "rounds": ROUNDS,
                "at_once": once.tokens / median(times[0]), "by_steps": once.tokens / median(times[1]),
                "ratio": median(b / a for a, b in zip(*times, strict=True)),
                "nll": float(once.nll.mean()), "difference": float(difference.mean()),
                "standard_error": float(difference.std(ddof=1) / math.sqrt(difference.size)),
            }
        )  # fmt: skip
    return lines


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="what is scored, as `clada bench` takes it")
    args = parser.parse_args()
    set_threads(available_cores())
    model, tokenizer = load_model(MODEL)
    windows, _ = read_windows(args.text, tokenizer, model_revision(MODEL), WINDOW, WINDOWS)
    write_lines("scoring.jsonl", [line for dtype in DTYPES for line in measure(model, dtype, windows)])
    publish()


if __name__ == "__main__":
    main()
