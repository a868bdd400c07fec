"""The plan: what calibration found about a model, and what each method may leave out at a given loss (Eq. 10).

A plan is two files: `NAME.json` for people and programs, and `NAME.safetensors` beside it with the tables that
thresholds are looked up in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import safetensors
from safetensors.numpy import load_file, save

from clada.errors import InputError
from clada.methods.coefficients import Coefficients, RecordedRule
from clada.models.assets import ASSETS
from clada.models.open import model_revision
from clada.system.cache import cache_dir
from clada.system.files import replacing
from clada.system.jsonfile import as_type, read_json, write_json

PLAN_SCHEMA = "clada/plan/3"

GRID = np.linspace(0, 1, 101)  # shares that tables give quantiles at

BUDGET = 0.02  # loss that is meant when none is named


@dataclass(frozen=True)
class Shares:
    """How much a method leaves out, as shares of the calibration text's values that fall below a threshold.

    Attributes:
        neurons: of magnitudes, by layer.
        gate: of gate tests, by layer.
        output: of inputs of the attention's output projection, by layer.
        inputs: of inputs of the other projections, by layer.
        attention: in long contexts, positions that get less than this share of the average attention weight are
            given the mean of all values.
        prompt: of neurons left out for a whole sequence, by the prompt's statistics.
        screen: of the terms that screen the vocabulary; 1 leaves only the mean term.
        margin: words of a screened log-probability (nats) below the negative of it are not computed in full; None:
            the head is not screened.
    """

    neurons: float = 0.0
    gate: float = 0.0
    output: float = 0.0
    inputs: float = 0.0
    attention: float = 0.0
    prompt: float = 0.0
    screen: float = 0.0
    margin: float | None = None

    def __post_init__(self) -> None:
        for name in ("neurons", "gate", "output", "inputs", "attention", "prompt", "screen"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"the share '{name}' is {getattr(self, name)}; shares lie within 0 and 1")
        if self.margin is not None and not self.margin >= 0:
            raise InputError(f"the margin is {self.margin}; it is at least 0")


@dataclass(frozen=True)
class Setting:
    """What a method leaves out within a loss budget.

    Attributes:
        method: of `clada.methods.registry.METHODS`.
        max_loss: the budget, a share of perplexity.
        shares: the most that was found to stay within it.
        loss: what was measured there: ppl_rise and its upper 95 % bound, kl_to_dense, scored_tokens, active_fraction.
        coefficients: the load rule that was active.
        dtype: precision that it was measured at.
    """

    method: str
    max_loss: float
    shares: Shares
    loss: dict[str, Any]
    coefficients: RecordedRule
    dtype: str = "bfloat16"

    @property
    def measured_with(self) -> Coefficients:
        """The load rule that was active."""
        c = self.coefficients
        return Coefficients(c["lambda"], c["gamma"], c["tau_surprisal_bits"], c["tau_entropy_bits"], c["tau_quantile"])

    def covers(self, coefficients: Coefficients, *, rolling: bool = False) -> bool:
        """Whether the loss holds with these coefficients too.

        It does with the same rule, unless a rolling window decides what counts as load, and with one that in no state
        of load has thresholds above the lowest measured.
        """
        measured = self.measured_with
        same = not rolling and coefficients.rule() == measured.rule()
        return same or max(coefficients.factors()) <= min(measured.factors())


class LoadQuantiles(msgspec.Struct):
    """Loads that a share of the calibration text's tokens lies below, in bits."""

    surprisal_bits: float
    entropy_bits: float


class PlanFile(msgspec.Struct):
    """What the JSON file of a plan holds; see `Plan`."""

    model: str
    revision: str
    settings: tuple[Setting, ...]
    quantiles: dict[Annotated[str, msgspec.Meta(pattern=r"^[01]\.[0-9]+$")], LoadQuantiles]
    tables_sha256: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What calibration found about a model.

    Attributes:
        model: name it was calibrated as.
        revision: content of that model, as `clada.models.open.model_revision` says it.
        settings: by method and budget.
        quantiles: of the calibration text, by name ("0.7"): surprisal_bits and entropy_bits.
        tables: arrays by name; `clada.calibrate` says which.
        provenance: text and its hash, versions.
    """

    model: str
    revision: str
    settings: tuple[Setting, ...]
    quantiles: dict[str, dict[str, float]]
    tables: dict[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    def setting(self, method: str, max_loss: float | None = None, dtype: str = "bfloat16") -> Setting:
        """The setting of a method for a budget; None: 2 %.

        Where the plan was not measured at this precision, the setting of another one.

        Raises:
            InputError: the plan has none.
        """
        settings = [s for s in self.settings if s.method == method]
        settings = [s for s in settings if s.dtype == dtype] or [s for s in settings if s.dtype == settings[0].dtype]
        budget = BUDGET if max_loss is None else max_loss
        for s in settings:
            if abs(s.max_loss - budget) < 1e-9:
                return s
        budgets = ", ".join(f"{s.max_loss:g}" for s in settings)
        have = (
            f"only for losses of {budgets}; name one of them with --max-loss, or add it"
            if settings
            else "not at all; add it"
        )
        methods = method if method == "clada" else f"clada,{method}"  # a plan made anew takes the place of another
        command = f"clada calibrate --model {self.model} --text FILE --methods {methods} --max-loss {budget:g}"
        raise InputError(f"the plan of {self.model} was measured with method {method} {have} with '{command}'")

    def threshold(self, table: str, share: float) -> np.ndarray:
        """Per layer, the value that a share of the calibration text's values lies below; 0 for share 0."""
        rows = self.tables[table]
        if share == 0:
            return np.zeros(rows.shape[:-1], np.float32)
        place = share * (len(GRID) - 1)
        low = min(int(place), len(GRID) - 2)
        return np.asarray(rows[..., low] + (place - low) * (rows[..., low + 1] - rows[..., low]), np.float32)

    def load_quantile(self, name: str, quantile: float) -> float:
        """Surprisal or entropy (`surprisal_bits`, `entropy_bits`) that a share of the calibration tokens lies below.

        Raises:
            InputError: outside the quantiles that the plan holds.
        """
        known = sorted((float(q), values[name]) for q, values in self.quantiles.items())
        low, high = (known[0][0], known[-1][0]) if known else (math.nan, math.nan)
        if not low <= quantile <= high:
            raise InputError(f"the quantile {quantile} is outside those of the plan, {low} to {high}; give one of them")
        return float(np.interp(quantile, [q for q, _ in known], [v for _, v in known]))

    def digest(self) -> str:
        """SHA-256 of all that a method takes from the plan."""
        tables = {name: hashlib.sha256(table.tobytes()).hexdigest() for name, table in self.tables.items()}
        parts = [repr(self.settings), repr(self.quantiles), self.revision, tables]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write both files, each atomically; tables first, and only where they changed.

        Only when tables of a plan that exists change (`dejavu` trained later) is there a moment, between two renames,
        in which the JSON is of the tables before; a plan that is left so is refused and made again.
        """
        tables = path.with_suffix(".safetensors")
        content = save({name: np.ascontiguousarray(value) for name, value in self.tables.items()})
        if not (tables.is_file() and tables.read_bytes() == content):
            with replacing(tables) as temporary:
                temporary.write_bytes(content)
        value = {
            "schema": PLAN_SCHEMA,
            "model": self.model,
            "revision": self.revision,
            "settings": [asdict(setting) for setting in self.settings],
            "quantiles": self.quantiles,
            "tables_sha256": hashlib.sha256(content).hexdigest(),
            "provenance": self.provenance,
        }
        write_json(path, value)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            InputError: no such file, not a plan, or its tables are missing or another plan's.
        """
        remedy = "make it again with 'clada calibrate'"
        value = read_json(path, PLAN_SCHEMA)
        file = as_type(value, PlanFile, path, remedy)
        known = {share.name for share in fields(Shares)}
        if unknown := {name for setting in value["settings"] for name in setting["shares"]} - known:
            raise InputError(f"{path}: no share is called {', '.join(sorted(unknown))}; {remedy}")
        tables = path.with_suffix(".safetensors")
        try:
            if hashlib.sha256(tables.read_bytes()).hexdigest() != file.tables_sha256:
                raise InputError(f"{tables} does not belong to {path}; {remedy}")
            arrays = load_file(tables)
        except OSError:
            raise InputError(f"{path} needs {tables.name} beside it; copy both files, or {remedy}") from None
        except (ValueError, safetensors.SafetensorError):
            raise InputError(f"{tables} cannot be read; {remedy}") from None
        quantiles = {share: msgspec.structs.asdict(loads) for share, loads in file.quantiles.items()}
        return cls(file.model, file.revision, file.settings, quantiles, arrays, file.provenance)

    def check_model(self, revision: str, layers: int) -> None:
        """Refuse a plan of another model: a threshold means nothing there.

        Raises:
            InputError: the model's content or number of layers is another.
        """
        if self.revision != revision or len(self.tables["magnitude"]) != layers:
            raise InputError(
                f"the plan is for {self.model} ({self.revision[:20]}), the model {revision[:20]} has {layers} layers; "
                "make one with 'clada calibrate' or use --plan none"
            )


def resolve_plan(name: str | Path | None, model: str, revision: str, max_loss: float | None = None) -> Plan | None:
    """The plan a user means.

    Args:
        name: a file, `none` (everything computed), or None for the cached or shipped plan of this model.
        model: the model's name.
        revision: the model's content.
        max_loss: the budget it is wanted for, None for 2 %: a cached plan without it does not hide the shipped one.

    Raises:
        InputError: no such file, or no plan of this model is shipped or cached.
    """
    if name == "none":
        return None
    if name is not None:
        return Plan.load(Path(name))
    shipped = [Path(__file__).parents[1] / "plans" / f"{model}.json"] if model in ASSETS else []
    other_budgets: list[Plan] = []
    for path in (cached_plan_path(revision), *shipped):  # one made here says more than one made elsewhere
        if path.is_file():
            # What an earlier version or a full disk left is no reason to refuse the shipped one, nor another budget.
            with contextlib.suppress(InputError):
                plan = Plan.load(path)
                if plan.revision == revision:
                    other_budgets.append(plan)
                    plan.setting("clada", max_loss)
                    return plan
    if other_budgets:
        return other_budgets[0]  # which says what it was measured for
    raise InputError(
        f"no plan for {model}; make one with 'clada calibrate --model {model} --text FILE', or use --plan none "
        "(everything computed)"
    )


def plan_of(name: str, layers: int, plan: Plan | str | Path | None, max_loss: float | None = None) -> Plan | None:
    """The plan a user means for a model; as `resolve_plan`, but a `Plan` is one already.

    Args:
        name: the model's, which it was opened by and is looked up by.
        layers: that it has.
        plan: what the user gave.
        max_loss: as there.

    Raises:
        InputError: none is known, or it is another model's.
    """
    if not isinstance(plan, Plan) and plan != "none" and not name:
        raise InputError(
            "this model has no name to look its plan up by; give a Plan, or plan='none' (everything computed)"
        )
    revision = "" if plan == "none" or not name else model_revision(name)
    resolved = plan if isinstance(plan, Plan) else resolve_plan(plan, name, revision, max_loss)
    if resolved is not None:
        resolved.check_model(revision or resolved.revision, layers)
    return resolved


def cached_plan_path(revision: str) -> Path:
    """Where `clada calibrate` keeps the plan of a model when no other place is asked for."""
    return cache_dir() / "plans" / f"{revision.replace(':', '-').replace('/', '-')}.json"
