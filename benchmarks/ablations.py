"""What each part of CLADA brings at equal average work: load rules, load thresholds, the prompt's statistics (Table 6).

    python benchmarks/ablations.py --text jsonl:articles.jsonl:body --fitted studies/mine/coefficients.json
    python benchmarks/ablations.py --text jsonl:articles.jsonl:body --model gemma3-270m

bfloat16, the MLP alone (`clada-mlp`), so that work is the share of neurons computed. Variants: `none`, the thresholds
alone; load rules `fitted` (the coefficients of a study), `paper` (-0.80, -0.12, load above the 0.7 quantile), the same
above the 0.5 and the 0.9 quantile, and `inverted`, the paper's with the other sign, so that load leaves out more; and
`statistics`, the tenth or third of the neurons with the lowest scores over prompt and calibration text left out for the
whole sequence. For every variant the base share is searched at which as many neurons are computed as in `none` (0.99
where more are computed even so); then 64 windows of held text are scored (16,384 tokens). The rise over dense, and the
difference to `none` on the same windows, both with their 95 % intervals, go to
`benchmarks/results/ablations-MODEL.jsonl`; what is there is kept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from stored import RESULTS
from tabulate import tabulate

from clada.cpu.decoder import Decoder
from clada.cpu.pack import pack
from clada.measure.loss import Loss, Scorer
from clada.measure.texts import read_windows
from clada.methods.coefficients import NONE, PAPER, Coefficients, read_coefficients
from clada.methods.plan import Shares, resolve_plan
from clada.methods.policy import Policy, make_policy
from clada.methods.registry import shares_of
from clada.models.open import load_model, model_revision
from clada.system.machine import available_cores, set_threads

METHOD = "clada-mlp"
DROPPED = (0.4, 0.6)  # the 2 % plan's share on SmolLM2-135M, and one at which more is lost
WINDOWS, SEARCHED, PROMPT = 64, 8, 256
CLOSE = 0.0005  # difference in active share that counts as equal: a thousandth of the work
MOST = 0.99  # the highest base share searched


@dataclass(frozen=True)
class Variant:
    """One way to spend the same work."""

    name: str
    rule: Coefficients = NONE
    prompt: float = 0.0


def variants(fitted: Path | None) -> list[Variant]:
    """All of them, `none` first."""
    return [
        Variant("none"),
        *([] if fitted is None else [Variant("fitted", read_coefficients(fitted))]),
        Variant("paper", PAPER),
        Variant("paper, quantile 0.5", replace(PAPER, tau_quantile=0.5)),
        Variant("paper, quantile 0.9", replace(PAPER, tau_quantile=0.9)),
        Variant("inverted", replace(PAPER, lambda_=-PAPER.lambda_, gamma=-PAPER.gamma, source="inverted")),
        Variant("statistics, a tenth", prompt=0.1),
        Variant("statistics, a third", prompt=1 / 3),
    ]


def main() -> None:
    """Search equal work, score what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", help="what to decode, as `clada bench` takes it; without it nothing is scored")
    parser.add_argument("--fitted", type=Path, help="coefficients.json of a study of the model")
    args = parser.parse_args()
    path = RESULTS / f"ablations-{args.model}.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    if args.text:
        found = measure(args, path, found)
    headers = ["share", "variant", "neurons", "rise over dense [95 %]", "against none [95 %]"]
    cells = [
        [f"{line['dropped']:.0%}", line["variant"], f"{line['active_fraction']:.1%}", *map(_interval, _rises(line))]
        for line in found
    ]
    print(tabulate(cells, headers, tablefmt="github", disable_numparse=True))


def _rises(line: dict[str, Any]) -> tuple[list[float], list[float]]:
    return [line["ppl_rise"], *line["ppl_rise_ci"]], [line["against_none"], *line["against_none_ci"]]


def _interval(rise: list[float]) -> str:
    return f"{rise[0]:+.2%} [{rise[1]:+.2%}, {rise[2]:+.2%}]"


def measure(args: argparse.Namespace, path: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of all variants, those that are missing measured and added to the file."""
    model, tokenizer = load_model(args.model)
    set_threads(available_cores())
    revision = model_revision(args.model)
    windows, _ = read_windows(args.text, tokenizer, revision, 2 * PROMPT, WINDOWS)
    plan = resolve_plan(None, args.model, revision)
    weights = pack(model, "bfloat16")
    del model
    decoder = Decoder(weights, available_cores())
    dense = make_policy("dense", weights, None, Shares())
    some, held = (Scorer(decoder, part, PROMPT, dense, "magnitude") for part in (windows[:SEARCHED], windows))

    def policy(dropped: float, variant: Variant) -> Policy:
        shares = replace(shares_of(METHOD, dropped), prompt=variant.prompt)
        return make_policy(METHOD, weights, plan, shares, variant.rule)

    reference = held.score(dense)
    for dropped in DROPPED:
        wanted = some.score(policy(dropped, Variant("none"))).active
        without: Loss | None = None
        for variant in variants(args.fitted):
            if any((line["dropped"], line["variant"]) == (dropped, variant.name) for line in found):
                continue
            if without is None:
                without = held.score(policy(dropped, Variant("none")))

            @cache
            def excess(share: float, variant: Variant = variant, wanted: float = wanted) -> float:
                difference = some.score(policy(share, variant)).active - wanted
                return 0.0 if abs(difference) < CLOSE else difference

            if variant.name == "none":
                share = dropped
            elif excess(MOST) > 0:
                share = MOST  # the rule asks for more neurons under load alone than `none` computes: as near as it gets
            else:
                share = float(brentq(excess, 0.0, MOST, xtol=1e-3))
            chosen = policy(share, variant)
            loss = without if variant.name == "none" else held.score(chosen)
            rise, *interval = loss.rise(reference)
            against, *against_interval = loss.rise(without)
            found.append(
                {
                    "dropped": dropped,
                    "variant": variant.name,
                    "lambda": variant.rule.lambda_,
                    "gamma": variant.rule.gamma,
                    "tau_surprisal_bits": chosen.coefficients.tau_surprisal_bits,
                    "tau_entropy_bits": chosen.coefficients.tau_entropy_bits,
                    "prompt_share": variant.prompt,
                    "base_share": share,
                    "active_fraction": loss.active,
                    "ppl_rise": rise,
                    "ppl_rise_ci": interval,
                    "against_none": against,
                    "against_none_ci": against_interval,
                    "perplexity": float(np.exp(loss.nll.mean())),
                    "scored_tokens": loss.tokens,
                }
            )
            path.write_text("".join(json.dumps(line) + "\n" for line in found), encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
