"""The largest share that a method may leave out within a loss budget (Eq. 10).

The share grows step by step as long as the loss stays within three quarters of the budget, the rest being for other
texts: the rise of perplexity over the dense model, its upper 95 % bound, on held windows, by the engine's own rules
with the load rule active. Steps are fixed beforehand and the first failure ends the search (fixed-sequence testing), so
the bound of the chosen step holds although several were tried on the same text.

Thresholds are judged by the model's output alone. Giving every layer the same error of its own is ruinous: a few
massive activations own it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from clada.assembly import DENSE, Choice, assemble, vocabulary_of
from clada.measure.loss import Loss, Scorer
from clada.methods.coefficients import Coefficients, to_json
from clada.methods.plan import Plan, Setting, Shares
from clada.methods.policy import Policy
from clada.methods.registry import method_of, shares_of

PROMPT = 256

DIVERGENCE_BATCHES = 2  # of windows

# Shares that are tested, one after the other; below the first little is saved.
SHARES = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)

DTYPE = "bfloat16"  # thresholds and losses hardly depend on it

# Of a budget, what the bound may take on the calibration's text: on XSum the shipped plans lost 1.1 to 2 times as much.
CAREFUL = 0.75

# Bytes. On some machines three fifths of rows that are shorter take as long to read as all; see
# benchmarks/selection-log.md.
SHORT_ROW = 1024


def dtypes_of(method: str, config: Any) -> list[str]:
    """Precisions that need a setting of their own: others have the first one's."""
    separate = method_of(method).settings_by_dtype and words_alone_are_left_out(config, "int8")
    return [DTYPE, *(["int8"] if separate else [])]


def words_alone_are_left_out(config: Any, dtype: str) -> bool:
    """Whether leaving out neurons saves too little: a row of the down-projection, a byte an element, is short."""
    return dtype == "int8" and config.hidden_size < SHORT_ROW


def search(
    model: Any,
    plan: Plan,
    method: str,
    windows: Sequence[Sequence[int]],
    budgets: Sequence[float],
    coefficients: Coefficients,
    dtype: str = DTYPE,
) -> Plan:
    """Find what a method may leave out within each budget.

    Args:
        model: a transformers model in float32.
        plan: its tables.
        method: of `clada.methods.registry.METHODS`.
        windows: token ids, scored.
        budgets: rises of perplexity allowed, as shares, ascending.
        coefficients: the load rule, active while searching.
        dtype: precision to measure at.

    Returns:
        the plan with this method's settings, those of the same method, precision and budgets replaced.
    """
    coefficients = coefficients.with_quantiles(plan.quantiles)
    vocabulary = vocabulary_of(model)
    words_alone = words_alone_are_left_out(model.config, dtype)
    family = Choice(method, plan, coefficients, shares_of(method, 0.5, vocabulary, words_alone))
    (parts,) = assemble(model, [family], dtype, torch.get_num_threads())

    def policy(shares: Shares) -> Policy:
        return replace(family, shares=shares).policy(parts.weights)

    dense = DENSE.policy(parts.weights)
    with tqdm(desc=f"calibrate {method} {dtype}", unit="batch", file=sys.stderr) as progress:
        held_out = Scorer(parts.decoder, windows, PROMPT, dense, parts.policy.statistics, progress.update)
        dense_loss = held_out.score(dense)
        best: dict[float, tuple[Shares, Loss]] = {budget: (Shares(), dense_loss) for budget in budgets}
        open_budgets = list(budgets)
        for dropped in (*method_of(method).finer, *SHARES):
            shares = shares_of(method, dropped, vocabulary, words_alone)
            loss = held_out.score(policy(shares))
            rise, _, upper = loss.rise(dense_loss)
            progress.set_postfix_str(f"{dropped:.0%} dropped: {rise:+.2%}, bound {upper:+.2%}")
            open_budgets = [budget for budget in open_budgets if upper <= CAREFUL * budget]
            best.update(dict.fromkeys(open_budgets, (shares, loss)))
            if not open_budgets:
                break

        # The divergence from the model that leaves nothing out; it varies far less than the loss, so that a part of
        # the windows is enough for what needs the dense model's every distribution beside the method's own.
        chosen = list(dict.fromkeys(shares for shares, _ in best.values()))
        some = held_out.score_all([policy(shares) for shares in chosen], dense, DIVERGENCE_BATCHES)
        diverged = dict(zip(chosen, some, strict=True))
    settings = []
    for budget, (shares, loss) in best.items():
        rise, _, upper = loss.rise(dense_loss)
        kl = diverged[shares].kl
        measured = {
            "ppl_rise": rise,
            "ppl_rise_upper": upper,
            "kl_to_dense": 0.0 if kl is None else float(kl.mean()),
            "dense_perplexity": float(np.exp(dense_loss.nll.mean())),
            "scored_tokens": loss.tokens,
            "active_fraction": loss.active,
        }
        settings.append(Setting(method, budget, shares, measured, to_json(policy(shares).coefficients), dtype))

    def key(setting: Setting) -> tuple[str, str, float]:
        return setting.method, setting.dtype, setting.max_loss

    kept = [s for s in plan.settings if key(s) not in map(key, settings)]
    return replace(plan, settings=tuple(sorted([*kept, *settings], key=key)))
