"""The fitted coefficients that the engine reads, and the load rule they parametrise (Eq. 11)."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired, TypedDict

import msgspec

from clada.errors import InputError
from clada.system.jsonfile import as_type, read_json

COEFFICIENTS_SCHEMA = "clada/coefficients/1"

# Eq. 11 scales a threshold by 1 + lambda + gamma. Fitted coefficients have no bounds, a threshold does: below zero it
# would keep everything whatever its size, and far above its calibrated value nothing says what is lost.
FACTOR_RANGE = (0.05, 1.5)


@dataclass(frozen=True)
class Coefficients:
    """lambda and gamma with the thresholds of load.

    Attributes:
        lambda_: change of the base threshold when surprisal is high, as a share; negative relaxes it.
        gamma: the same for entropy.
        tau_surprisal_bits: a token above this surprisal is under load; None: the quantile in the plan is used.
        tau_entropy_bits: the same for entropy.
        tau_quantile: the corpus quantile that both taus are.
        source: where they came from: `none`, `paper`, or a file.
        model: the model they were fitted on, None for the presets.
        response: the response of the regression, None for the presets.
    """

    lambda_: float
    gamma: float
    tau_surprisal_bits: float | None = None
    tau_entropy_bits: float | None = None
    tau_quantile: float = 0.7
    source: str = "none"
    model: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        for name in ("lambda_", "gamma", "tau_surprisal_bits", "tau_entropy_bits", "tau_quantile"):
            value = getattr(self, name)
            optional = name in ("tau_surprisal_bits", "tau_entropy_bits")
            if not (value is None and optional) and not (
                isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
            ):
                raise InputError(f"coefficients from {self.source}: {name} is not a finite number; fit them again")
        if not 0 <= self.tau_quantile <= 1:
            raise InputError(
                f"coefficients from {self.source}: tau_quantile {self.tau_quantile:g} is outside 0 to 1; fit them again"
            )
        if self.response == "away":
            raise InputError(
                f"coefficients from {self.source} were fitted on the response 'away', whose sign is opposite to what "
                "the engine needs; fit again with 'cladastats regress --response toward'"
            )

    def with_quantiles(self, quantiles: dict[str, dict[str, float]]) -> Coefficients:
        """These coefficients, missing taus filled in from a text's quantiles: `{"0.7": {"surprisal_bits": ...}}`."""
        known = quantiles.get(str(self.tau_quantile), {})
        return replace(
            self,
            tau_surprisal_bits=known.get("surprisal_bits")
            if self.tau_surprisal_bits is None
            else self.tau_surprisal_bits,
            tau_entropy_bits=known.get("entropy_bits") if self.tau_entropy_bits is None else self.tau_entropy_bits,
        )

    def loads(self, surprisal_bits: float, entropy_bits: float) -> tuple[bool, bool]:
        """Whether a token is under load by surprisal and by entropy: [s_t > tau_s], [H_t > tau_H]."""
        tau_s = math.inf if self.tau_surprisal_bits is None else self.tau_surprisal_bits
        tau_h = math.inf if self.tau_entropy_bits is None else self.tau_entropy_bits
        return surprisal_bits > tau_s, entropy_bits > tau_h

    def factor(self, load_surprisal: bool, load_entropy: bool) -> float:
        """What base thresholds are multiplied by: clamp(1 + lambda [s_t > tau_s] + gamma [H_t > tau_H]) (Eq. 11)."""
        low, high = FACTOR_RANGE
        return min(max(1 + self.lambda_ * load_surprisal + self.gamma * load_entropy, low), high)

    def factors(self) -> list[float]:
        """The factors of the four states of load: none, entropy, surprisal, both."""
        return [self.factor(s, h) for s in (False, True) for h in (False, True)]

    @property
    def has_rule(self) -> bool:
        """Whether a load changes what a token computes."""
        return self.lambda_ != 0 or self.gamma != 0

    def rule(self) -> tuple[float | None, ...]:
        """What decides which thresholds a token gets; equal rules give equal choices."""
        return (self.lambda_, self.gamma, self.tau_surprisal_bits, self.tau_entropy_bits)


NONE = Coefficients(0.0, 0.0)

# The values the paper uses for every model (section 3.2.3); the signs are those with which load relaxes a threshold.
PAPER = Coefficients(-0.80, -0.12, source="paper")


class CoefficientsFile(msgspec.Struct, rename={"lambda_": "lambda"}):
    """What the engine reads of a `coefficients.json`; see `Coefficients`."""

    lambda_: float
    gamma: float
    tau_surprisal_bits: float | None
    tau_entropy_bits: float | None
    tau_quantile: float
    model: str | None
    response: str | None


def read_coefficients(path: Path) -> Coefficients:
    """Read a `coefficients.json` as `cladastats regress` writes it.

    Raises:
        InputError: not such a file, a value missing, or fitted on the response `away`.
    """
    file = as_type(
        read_json(path, COEFFICIENTS_SCHEMA), CoefficientsFile, path, "write it again with 'cladastats regress'"
    )
    return Coefficients(**msgspec.structs.asdict(file), source=str(path))


def resolve_coefficients(name: Coefficients | str | Path | None) -> Coefficients:
    """The coefficients a user means.

    Args:
        name: coefficients, a file, `paper`, or `none` or None for no load rule.

    Raises:
        InputError: no such file, or it cannot be used.
    """
    if isinstance(name, Coefficients):
        return name
    if name is None or name == "none":
        return NONE
    return PAPER if name == "paper" else read_coefficients(Path(name))


def coefficients_for(name: str | None, model: str, studies: Path = Path("studies")) -> Coefficients:
    """The coefficients that a command runs a model with; only commands look into the working folder.

    Args:
        name: as for `resolve_coefficients`, but None is those of the newest study of this model, `none` without one.
        model: as given to `load_model`.
        studies: the folder of studies.

    Raises:
        InputError: those that are meant cannot be used. What other models' studies hold does not matter.
    """
    if name is not None:
        return resolve_coefficients(name)
    for folder in newest_studies(studies):
        path = folder / "coefficients.json"
        if path.is_file() and _model_of(folder) == model:
            try:
                return read_coefficients(path)
            except InputError as problem:
                raise InputError(f"{problem}, or use --coefficients none") from None
    return NONE


def _model_of(study: Path) -> str | None:
    """The model of a study's coefficients: as their file says or, where it is damaged, as the study says."""
    for name in ("coefficients.json", "study.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            model = json.loads((study / name).read_bytes())["model"]
            if isinstance(model, str):
                return model
    return None


def newest_studies(studies: Path) -> list[Path]:
    """The folders of studies below a folder, newest `study.json` first."""
    files = [path for path in studies.glob("*/study.json") if path.is_file()]
    return [path.parent for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)]


RecordedRule = TypedDict(
    "RecordedRule",
    {
        "lambda": float,
        "gamma": float,
        "tau_surprisal_bits": float | None,
        "tau_entropy_bits": float | None,
        "tau_quantile": float,
        "source": NotRequired[str],
        "model": NotRequired[str | None],
    },
)


def to_json(coefficients: Coefficients) -> RecordedRule:
    """The coefficients as they are recorded in plans."""
    return {
        "lambda": coefficients.lambda_,
        "gamma": coefficients.gamma,
        "tau_surprisal_bits": coefficients.tau_surprisal_bits,
        "tau_entropy_bits": coefficients.tau_entropy_bits,
        "tau_quantile": coefficients.tau_quantile,
        "source": Path(coefficients.source).name,
        "model": coefficients.model,
    }
