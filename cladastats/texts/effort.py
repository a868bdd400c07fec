"""Which magnitude makes a neuron a needed one: the thresholds that a word's effort is counted by."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clada.errors import InputError
from clada.methods.coefficients import PAPER, Coefficients
from clada.methods.plan import Plan, resolve_plan
from clada.methods.policy import resolve_shares
from clada.methods.rules import magnitude
from clada.models.architectures import FAMILIES, down_norms
from clada.models.hooks import evaluating, observe_activations
from clada.models.open import load_config, model_revision
from clada.models.quiet import quiet_transformers
from clada.surprisal import surprisal_and_entropy_bits

MAX_LOSS = 0.02

# Of the neurons, where thresholds come from the texts themselves and nothing says what a model loses by them: what the
# budget of 2 % leaves of SmolLM2's (its plan, magnitude test alone, leaves out 0.40).
KEEP = 0.6

CALIBRATION_TEXTS = 64  # that thresholds are found on, evenly over all

CALIBRATION_TOKENS = 512  # whose magnitudes are in memory: 0.1 GB of SmolLM2's 30 layers of 1,536 neurons


@dataclass(frozen=True)
class EffortRule:
    """What makes a neuron a needed one, L layers.

    Attributes:
        thresholds: float32 [L], of magnitudes c_i = |h_i| ||w_down_i|| (Eq. 9 of arXiv 2502.19078): tau_l (Eq. 10).
        rule: of `effort_load`, with the loads from which on a token is under load (Eq. 11).
        source: where the thresholds come from, for the table's metadata.
    """

    thresholds: np.ndarray
    rule: Coefficients
    source: str


def effort_rule(
    model: str,
    plan: str | None = None,
    max_loss: float | None = None,
    keep: float | None = None,
    coefficients: Coefficients = PAPER,
    revision: str | None = None,
) -> EffortRule | None:
    """The thresholds of a model's plan, those of the magnitude test alone (method `tt`).

    Where the plan was not measured with that test, the threshold that leaves out as many neurons as `clada` does,
    whatever that costs, and this is said on stderr. Where a model has no plan, one line there says what would bring
    effort.

    Args:
        model: its name.
        plan: a file; `none` for no effort; None: the plan of the model, if there is one.
        max_loss: rise of perplexity within which neurons below the threshold may be left out; None: 2 %.
        keep: share of the neurons to call needed instead, over the plan's calibration text.
        coefficients: the load rule, which gets the plan's taus where it has none of its own.
        revision: of a hub id.

    Returns:
        None where effort cannot be had, or is not wanted.

    Raises:
        InputError: the plan, budget or share that was asked for cannot be used.
    """
    if plan == "none":
        return None
    config = load_config(model, revision)
    if plan is None and config.model_type not in FAMILIES:
        kind = config.model_type
        _say_none(
            f"the family '{kind}' of {model} has no row that says where its neurons are", "docs/models.md lists them"
        )
        return None
    content = model_revision(model, revision)
    try:
        resolved = resolve_plan(plan, model, content, max_loss)
    except InputError:
        if plan is not None or max_loss is not None or keep is not None:
            raise
        _say_none(
            f"{model} has no plan", f"--calibrate, or 'clada calibrate --model {model} --text FILE', brings thresholds"
        )
        return None
    assert resolved is not None
    resolved.check_model(content, config.num_hidden_layers)
    return _of_plan(resolved, model, config.vocab_size, MAX_LOSS if max_loss is None else max_loss, keep, coefficients)


def _say_none(why: str, remedy: str) -> None:
    print(f"cladastats: no columns of effort, as {why}; {remedy}; --no-effort leaves this line out", file=sys.stderr)


def _of_plan(
    plan: Plan, model: str, vocabulary: int, max_loss: float, keep: float | None, coefficients: Coefficients
) -> EffortRule:
    shares, setting = resolve_shares("tt", plan, vocabulary, "bfloat16", max_loss, keep)
    if setting is None and keep is None:
        print(
            f"cladastats: the plan of {model} was not measured with the magnitude test alone (method tt): neurons "
            f"count as needed above the threshold that leaves out {shares.neurons:.0%} of them, whatever that costs; "
            f"'clada calibrate --methods clada,tt' measures it",
            file=sys.stderr,
        )
    source = f"plan of {plan.model}: {1 - shares.neurons:.2f} of the neurons of its calibration text"
    thresholds = plan.threshold("magnitude", shares.neurons)
    return EffortRule(thresholds, coefficients.with_quantiles(plan.quantiles), source)


@torch.inference_mode()
def calibrated_rule(
    model: Any, texts: Sequence[Sequence[int]], keep: float | None = None, coefficients: Coefficients = PAPER
) -> EffortRule:
    """Thresholds found on the texts themselves: those which a share of their neurons reaches, layer by layer.

    For a language, or a model, of which there is no plan. What the model would lose by leaving the others out is not
    known: efforts of words are comparable within the texts, not with those by a plan.

    Args:
        model: an open model of a known family.
        texts: token ids, each with the token that it begins after and no longer than the model's window.
        keep: the share; None: 0.6.
        coefficients: the load rule; where it has no taus, they are quantiles of these texts too.

    Raises:
        ModelError: the family is not known.
        InputError: a share out of range.
    """
    share = KEEP if keep is None else keep
    if not 0 < share <= 1:
        raise InputError(f"keep {share} is outside (0, 1]; it is the share of neurons to call needed")
    norms = down_norms(model).to(model.device)
    places = np.unique(np.linspace(0, len(texts) - 1, CALIBRATION_TEXTS).astype(int))
    sample, each = np.random.default_rng(0), -(-CALIBRATION_TOKENS // len(places))
    kept: list[list[np.ndarray]] = [[] for _ in norms]
    loads: list[np.ndarray] = []
    chosen = torch.zeros(0, dtype=torch.long)

    def seen(layer: int, activations: torch.Tensor) -> None:
        kept[layer].append(magnitude(activations[chosen].float(), norms[layer]).cpu().numpy().ravel())

    with evaluating(model), quiet_transformers(), observe_activations(model, seen):
        for place in places:
            ids = torch.tensor(texts[place], device=model.device)
            # Tokens that are predicted: not the start, which is no word.
            picked = sample.choice(np.arange(1, len(ids)), min(each, len(ids) - 1), replace=False)
            chosen = torch.from_numpy(np.sort(picked)).to(model.device)
            logits = model(ids[None], use_cache=False, logits_to_keep=chosen - 1).logits[0]
            loads.append(np.stack([part.cpu().numpy() for part in surprisal_and_entropy_bits(logits, ids[chosen])]))
    quantile = coefficients.tau_quantile
    surprisal, entropy = np.quantile(np.concatenate(loads, 1), quantile, axis=1).tolist()
    rule = coefficients.with_quantiles({str(quantile): {"surprisal_bits": surprisal, "entropy_bits": entropy}})
    thresholds = np.array([np.quantile(np.concatenate(values), 1 - share) for values in kept], np.float32)
    return EffortRule(thresholds, rule, f"the texts themselves: {share:g} of the neurons of their tokens")
