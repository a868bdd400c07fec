"""The plan: base thresholds per layer, and the loss they were measured at (Eq. 10)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clada.assets import ASSETS, cache_dir
from clada.coefficients import NONE, Coefficients
from clada.errors import InputError
from clada.jsonfile import read_json, write_json

SCHEMA = "clada/plan/1"


@dataclass(frozen=True)
class Plan:
    """Base thresholds of a model.

    Attributes:
        model: name it was calibrated as.
        revision: content of that model, as `clada.models.model_revision` says it.
        gate: per layer, threshold on |act(gate_i)| * ||w_down_i||.
        magnitude: per layer, threshold tau_l on c_i = |h_i| * ||w_down_i||.
        max_loss: the budget that was given: perplexity rise as a share.
        loss: what was measured at these thresholds: ppl_rise, its 95 % upper bound, scored tokens, active share.
        quantiles: of the calibration text, by name ("0.7"): surprisal_bits and entropy_bits.
        coefficients: the load rule that was active while searching.
        provenance: text and its hash, command, versions.
    """

    model: str
    revision: str
    gate: tuple[float, ...]
    magnitude: tuple[float, ...]
    max_loss: float
    loss: dict[str, Any]
    quantiles: dict[str, dict[str, float]]
    coefficients: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the plan as JSON, atomically."""
        write_json(path, {"schema": SCHEMA, **asdict(self)})

    def covers(self, coefficients: Coefficients) -> bool:
        """Whether the loss measured here holds with these coefficients too.

        It does with the same rule, and with one that in no state of load has thresholds above the lowest measured.
        """
        measured = self.measured_with.with_quantiles(self.quantiles)
        return coefficients.rule() == measured.rule() or max(coefficients.factors()) <= min(measured.factors())

    @property
    def measured_with(self) -> Coefficients:
        """The load rule that was active while searching."""
        c = self.coefficients
        return Coefficients(c["lambda"], c["gamma"], c["tau_surprisal_bits"], c["tau_entropy_bits"], c["tau_quantile"])

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            InputError: no such file, or not a plan.
        """
        value = read_json(path, SCHEMA)
        value.pop("schema")
        try:
            plan = cls(**{**value, "gate": tuple(value["gate"]), "magnitude": tuple(value["magnitude"])})
            valid = all(isinstance(t, (int, float)) and t >= 0 for t in (*plan.gate, *plan.magnitude))
            plan.covers(NONE)
        except (KeyError, TypeError, AttributeError):
            valid = False
        if not valid or len(plan.gate) != len(plan.magnitude):
            raise InputError(f"{path} is not a whole plan; make it again with 'clada calibrate'")
        return plan

    def check_model(self, revision: str, layers: int) -> None:
        """Refuse a plan of another model: a threshold means nothing there.

        Raises:
            InputError: the model's content or number of layers is another.
        """
        if self.revision != revision or len(self.magnitude) != layers:
            raise InputError(
                f"the plan is for {self.model} ({self.revision[:20]}), the model {revision[:20]} has {layers} layers; "
                "make one with 'clada calibrate' or use --plan none"
            )


def resolve_plan(name: str | Path | None, model: str, revision: str) -> Plan | None:
    """The plan a user means.

    Args:
        name: a file, `none` (everything computed), or None for the shipped or cached plan of this model.
        model: the model's name.
        revision: the model's content.

    Raises:
        InputError: no such file, or no plan of this model is shipped or cached.
    """
    if name == "none":
        return None
    if name is not None:
        return Plan.load(Path(name))
    shipped = [Path(__file__).parent / "plans" / f"{model}.json"] if model in ASSETS else []
    for path in (*shipped, cached_plan_path(revision)):
        if path.is_file():
            plan = Plan.load(path)
            if plan.revision == revision:
                return plan
    raise InputError(
        f"no plan for {model}; make one with 'clada calibrate --model {model} --text FILE', or use --plan none "
        "(everything computed)"
    )


def cached_plan_path(revision: str) -> Path:
    """Where `clada calibrate` keeps the plan of a model when no other place is asked for."""
    return cache_dir() / "plans" / f"{revision.replace(':', '-').replace('/', '-')}.json"
