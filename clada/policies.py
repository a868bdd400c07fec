"""Which neurons a token computes: the methods, as thresholds per layer and load."""

from __future__ import annotations

from dataclasses import dataclass

from clada.coefficients import NONE, Coefficients
from clada.errors import InputError
from clada.plan import Plan

METHODS = ("clada", "dense")


@dataclass(frozen=True)
class Policy:
    """Base thresholds and the rule that adapts them to the load of a token.

    Attributes:
        gate: per layer, on |act(gate_i)| * ||w_down_i||.
        magnitude: per layer, tau_l on c_i (Eq. 10).
        coefficients: the load rule (Eq. 11).
    """

    gate: tuple[float, ...]
    magnitude: tuple[float, ...]
    coefficients: Coefficients

    def thresholds(self, load_surprisal: bool, load_entropy: bool) -> list[tuple[float, float]]:
        """(gate, magnitude) thresholds of every layer for a token under this load (Eq. 11)."""
        factor = self.coefficients.factor(load_surprisal, load_entropy)
        return [(g * factor, m * factor) for g, m in zip(self.gate, self.magnitude, strict=True)]


def make_policy(method: str, plan: Plan | None, coefficients: Coefficients, layers: int) -> Policy:
    """The policy of a method.

    Args:
        method: `dense` (all neurons) or `clada` (the plan's thresholds, adapted to the load).
        plan: base thresholds; None: all zero, nothing is left out.
        coefficients: lambda, gamma and the taus; taus that are None are taken from the plan's calibration text.
        layers: of the model.

    Raises:
        InputError: unknown method, or a load rule without load thresholds.
    """
    if method not in METHODS:
        raise InputError(f"unknown method '{method}'; use {', '.join(METHODS)}")
    zeros = (0.0,) * layers
    if method == "dense":
        return Policy(zeros, zeros, NONE)
    if plan is None:
        return Policy(zeros, zeros, coefficients)
    complete = coefficients.with_quantiles(plan.quantiles)
    if max(map(abs, (complete.lambda_, complete.gamma))) > 0 and None in complete.rule():
        raise InputError(
            f"neither the coefficients ({coefficients.source}) nor the plan say what high load is (quantile "
            f"{coefficients.tau_quantile}); use coefficients of a study"
        )
    return Policy(plan.gate, plan.magnitude, complete)
