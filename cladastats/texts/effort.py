"""Which magnitude makes a neuron a needed one: the thresholds that a word's effort is counted by."""

from __future__ import annotations

import sys

import numpy as np

from clada.errors import InputError
from clada.methods.coefficients import PAPER, Coefficients
from clada.methods.plan import resolve_plan
from clada.methods.policy import resolve_shares
from clada.models.open import load_config, model_revision

MAX_LOSS = 0.02


def effort_rule(
    model: str,
    plan: str | None = None,
    max_loss: float | None = None,
    keep: float | None = None,
    coefficients: Coefficients = PAPER,
) -> tuple[np.ndarray, Coefficients]:
    """Per layer, the magnitude that a neuron which is needed has: tau_l of the magnitude test alone (`tt`).

    And the load rule with its taus, those of the plan's calibration text where it has none of its own. Where the plan
    was not measured with that test, the threshold that leaves out as many neurons as `clada` does, whatever that costs,
    and this is said on stderr.

    Args:
        model: its name.
        plan: as in `word_table`.
        max_loss: as there.
        keep: as there.
        coefficients: the load rule.

    Raises:
        InputError: there is no plan of the model, or not for that budget.
    """
    revision = model_revision(model)
    resolved = resolve_plan(plan, model, revision, max_loss)
    if resolved is None:
        raise InputError("effort needs thresholds, which plan 'none' has not; make one with 'clada calibrate'")
    config = load_config(model)
    resolved.check_model(revision, config.num_hidden_layers)
    limit = MAX_LOSS if max_loss is None else max_loss
    shares, setting = resolve_shares("tt", resolved, config.vocab_size, "bfloat16", limit, keep)
    if setting is None and keep is None:
        print(
            f"cladastats: the plan of {model} was not measured with the magnitude test alone (method tt): neurons "
            f"count as needed above the threshold that leaves out {shares.neurons:.0%} of them, whatever that costs; "
            f"'clada calibrate --methods clada,tt' measures it",
            file=sys.stderr,
        )
    return resolved.threshold("magnitude", shares.neurons), coefficients.with_quantiles(resolved.quantiles)
