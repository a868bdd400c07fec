"""What each method computes for a token: thresholds by layer, adapted to the load, and neurons chosen by the prompt."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clada.errors import InputError
from clada.methods.coefficients import NONE, Coefficients
from clada.methods.plan import GRID, Plan, Setting, Shares
from clada.methods.registry import method_of, shares_of
from clada.methods.rules import needed_by_prompt
from clada.methods.screen import Basis
from clada.methods.selection import ATTENTION_INPUT, MLP_INPUT, Norms, Selection

KEPT_SELECTIONS = 16  # more than the four states of load that a sequence knows

# Values of fewer positions are read sooner than chosen among: measured at 640 and 4,096, benchmarks/selection-log.md.
LEAST_POSITIONS = 1024


def resolve_shares(
    method: str,
    plan: Plan | None,
    vocabulary: int,
    dtype: str,
    max_loss: float | None = None,
    keep: float | None = None,
) -> tuple[Shares, Setting | None]:
    """What a method leaves out here, and the plan's setting where that is what the plan measured.

    Args:
        method: of `EVALUATED`.
        plan: None leaves nothing out.
        vocabulary: how many words the head has.
        dtype: of the weights.
        max_loss: which of the plan's budgets; None for 2 %.
        keep: compute this share of the neurons instead.

    Returns:
        the plan's setting for the method; where it has none, that of `clada` for `clada-no-load`, and for other methods
        as many neurons as `clada` leaves out, whatever that costs.

    Raises:
        InputError: a share out of range or without tables, or a budget that the plan does not have.
    """
    row = method_of(method)
    if keep is not None and not 0 < keep <= 1:
        raise InputError(f"keep {keep} is outside (0, 1]; it is the share of neurons to compute")
    if keep is not None and keep < 1 and plan is None and row.needs_plan:
        raise InputError("keeping a share needs the plan's tables; leave --plan none out")
    if plan is None or not row.needs_plan:
        return Shares(), None
    if keep is None:
        measured = method if any(setting.method == method for setting in plan.settings) else row.setting_of
        if measured is not None:
            setting = plan.setting(measured, max_loss, dtype)
            return setting.shares, setting if measured == method else None
    dropped = plan.setting("clada", max_loss).shares.neurons if keep is None else 1 - keep
    if row.magnitude == "summed":
        dropped = summed_share(plan, dropped)
    return shares_of(method, dropped, vocabulary), None


@dataclass(frozen=True)
class Policy:
    """Base thresholds and the rule that adapts them to the load of a token; L layers, N neurons.

    Attributes:
        method: of `EVALUATED`.
        shares: how much it leaves out.
        coefficients: the load rule (Eq. 11).
        gate_weight: [L, N], of the gate test |act(gate_i)| gate_weight_i.
        gate: [L].
        weight: [L, N], of the magnitude test |h_i| weight_i.
        magnitude: [L], tau_l (Eq. 10).
        output_weight: [L, Q].
        output: [L].
        input_weight: [L, 2, H].
        inputs: [L, 2].
        screen: threshold of the screen's terms.
        prior: [L, N], root mean square magnitude of each neuron over the calibration text; None without a plan.
    """

    method: str
    shares: Shares
    coefficients: Coefficients
    gate_weight: np.ndarray
    gate: np.ndarray
    weight: np.ndarray
    magnitude: np.ndarray
    output_weight: np.ndarray
    output: np.ndarray
    input_weight: np.ndarray
    inputs: np.ndarray
    screen: float
    prior: np.ndarray | None
    _made: dict[tuple[tuple[bool, bool], ...], Selection] = field(default_factory=dict, init=False, repr=False)

    def selection(self, loads: Sequence[tuple[bool, bool]], needed: np.ndarray | None = None) -> Selection:
        """What tokens under these loads need (Eq. 11), one per sequence.

        Args:
            loads: by surprisal and by entropy.
            needed: [B, L, N], neurons the prompts need; None for all.
        """
        # Made once for a state of load: with caches that the weights have just swept, it takes a noticeable part of a
        # token in int8 (the log in benchmarks/selection-log.md has the times).
        states = tuple(loads)
        made = self._made.get(states)
        if made is None:
            factors = np.array([self.coefficients.factor(*load) for load in loads], np.float32)
            # A factor below one computes more, of the vocabulary too.
            margin = np.float32(np.inf) if self.shares.margin is None else np.float32(self.shares.margin) / factors
            made = self._selection(factors, np.broadcast_to(margin, len(loads)).copy())
            if len(self._made) >= KEPT_SELECTIONS:
                self._made.clear()
            self._made[states] = made
        return made if needed is None else made._replace(needed=needed)

    def dense(self, batch: int) -> Selection:
        """What leaves nothing out."""
        return self._selection(np.zeros(batch, np.float32), np.full(batch, np.inf, np.float32))

    def _selection(self, factors: np.ndarray, margin: np.ndarray) -> Selection:
        return Selection(
            gate_weight=self.gate_weight,
            gate_threshold=factors[:, None] * self.gate,
            weight=self.weight,
            threshold=factors[:, None] * self.magnitude,
            output_weight=self.output_weight,
            output_threshold=factors[:, None] * self.output,
            input_weight=self.input_weight,
            input_threshold=factors[:, None, None] * self.inputs,
            needed=np.empty((0, *self.weight.shape), np.uint8),
            attention_threshold=factors * np.float32(self.shares.attention),
            attention_from=LEAST_POSITIONS,
            screen_threshold=factors * np.float32(self.screen),
            head_margin=margin,
        )

    @property
    def statistics(self) -> str | None:
        """The kind of `clada.methods.rules.statistics_of_sums` that the method chooses neurons by; None for none."""
        return method_of(self.method).statistics if self.shares.prompt else None

    def needed(self, statistics: np.ndarray | None) -> np.ndarray | None:
        """Neurons that prompts need: all but the share with the lowest scores.

        Args:
            statistics: [B, L, N], see `clada.methods.rules.statistics_of_sums`, or None.

        Returns:
            uint8 [B, L, N]; None for all, where the method does not ask. A prompt of one token, over which nothing was
            collected, needs all.
        """
        if statistics is None or not self.shares.prompt:
            return None
        scores = statistics
        if self.statistics == "magnitude" and self.prior is not None:
            # The geometric mean: a neuron is left out that neither the prompt nor the calibration text used much.
            scores = np.sqrt(statistics * self.prior)
        needed = needed_by_prompt(scores, self.shares.prompt)
        needed[~statistics.any((1, 2))] = 1
        return needed


def basis_of(plan: Plan | None, shares: Shares) -> Basis | None:
    """The basis that the head is screened in; None where it is not."""
    if plan is None or shares.margin is None:
        return None
    return Basis(plan.tables["basis"].astype(np.float32), plan.tables["center"].astype(np.float32))


def make_policy(
    method: str, weights: Norms, plan: Plan | None, shares: Shares, coefficients: Coefficients = NONE
) -> Policy:
    """The policy of a method.

    Args:
        method: of `EVALUATED`.
        weights: the packed model, or its norms.
        plan: tables that thresholds are looked up in; None: all zero, nothing is left out.
        shares: how much is left out.
        coefficients: lambda, gamma and the taus; taus that are None are taken from the plan's calibration text. Only
            methods of ours have a load rule.

    Raises:
        InputError: unknown method, or a load rule without load thresholds.
    """
    row = method_of(method)
    if not row.load_rule:
        coefficients = NONE
    layers, neurons = weights.down_norm.shape
    inputs = np.zeros((layers, 2), np.float32)
    weight, output_weight = weights.down_norm, weights.output_norm
    gate_weight, input_weight = np.ones((layers, neurons), np.float32), weights.input_norm
    gate = magnitude = output = np.zeros(layers, np.float32)
    screen, prior = 0.0, None
    if plan is not None:
        plain = "_plain" if row.plain else ""
        if plain:
            weight, output_weight, input_weight = (np.ones_like(w) for w in (weight, output_weight, input_weight))
        prior = plan.tables["prior"]
        gate = plan.threshold(row.gate, shares.gate)
        if row.gate == "gate":
            gate_weight = plan.tables["gate_weight"]
        if row.magnitude == "summed":
            magnitude = top_p_threshold(plan, shares)
        elif row.magnitude == "share":
            magnitude = plan.threshold("magnitude" + plain, shares.neurons)
        output = plan.threshold("output" + plain, shares.output)
        inputs[:, ATTENTION_INPUT] = plan.threshold("attention_input" + plain, shares.inputs)
        inputs[:, MLP_INPUT] = plan.threshold("mlp_input" + plain, shares.inputs)
        screen = float(plan.threshold("screen", shares.screen)[0])
        coefficients = _with_taus(coefficients, plan)

    def f32(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array, np.float32)

    return Policy(
        method,
        shares,
        coefficients,
        f32(gate_weight),
        f32(gate),
        f32(weight),
        f32(magnitude),
        f32(output_weight),
        f32(output),
        f32(input_weight),
        inputs,
        screen,
        prior,
    )


def _with_taus(coefficients: Coefficients, plan: Plan) -> Coefficients:
    """The load rule, taus that it lacks from the plan's calibration text."""
    complete = coefficients.with_quantiles(plan.quantiles)
    if max(map(abs, (complete.lambda_, complete.gamma))) > 0 and None in complete.rule():
        raise InputError(
            f"neither the coefficients ({coefficients.source}) nor the plan say what high load is (quantile "
            f"{coefficients.tau_quantile}); use coefficients of a study"
        )
    return complete


def top_p_threshold(plan: Plan, shares: Shares) -> np.ndarray:
    """Per layer, the magnitude above which neurons hold a share 1 - `neurons` of the layer's summed magnitude."""
    rows = zip(_summed_below(plan), plan.tables["magnitude"], strict=True)
    return np.array([np.interp(shares.neurons, below, values) for below, values in rows], np.float32)


def summed_share(plan: Plan, dropped: float) -> float:
    """The share of the summed magnitude that a share of the neurons, the smallest ones, holds; mean over layers."""
    return float(np.mean([np.interp(dropped, GRID, below) for below in _summed_below(plan)]))


def _summed_below(plan: Plan) -> np.ndarray:
    """Share of the layer's summed magnitude below each quantile of `GRID`, [L, G]."""
    values = plan.tables["magnitude"].astype(np.float64)
    mass = np.diff(GRID) * (values[:, 1:] + values[:, :-1]) / 2
    below = np.concatenate([np.zeros((len(values), 1)), np.cumsum(mass, 1)], 1)
    return np.asarray(below / below[:, -1:])


class RollingLoad:
    """Load thresholds from the last tokens instead of the corpus: their quantiles, once there are enough of them.

    Args:
        window: how many tokens count.
        surprisal_quantile: surprisal is high above it.
        entropy_quantile: the same of entropy.
    """

    def __init__(self, window: int, surprisal_quantile: float, entropy_quantile: float) -> None:
        self.quantiles = (surprisal_quantile, entropy_quantile)
        self.seen: deque[tuple[float, float]] = deque(maxlen=window)

    def __call__(self, surprisal: float, entropy: float) -> tuple[bool, bool]:
        """Whether a token is under load, compared with those before it; it joins them."""
        full = len(self.seen) == self.seen.maxlen
        limits = [math.inf, math.inf]
        if full:
            seen = zip(*self.seen, strict=True)
            limits = [float(np.quantile(values, q)) for values, q in zip(seen, self.quantiles, strict=True)]
        self.seen.append((surprisal, entropy))
        return bool(surprisal > limits[0]), bool(entropy > limits[1])
