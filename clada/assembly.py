"""From a model and a method's name to what decodes: plan, load rule, policy, packed weights and decoder.

`choose` says what a method leaves out and by which load rule; `assemble` lays out weights for some choices and gives
each a decoder. torch is imported by the functions that take a transformers model: weights that are kept are read
without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clada.cpu.decoder import Decoder
from clada.cpu.kept import Kept, NotKeptError
from clada.cpu.kernels.arguments import box
from clada.cpu.precision import PRECISIONS
from clada.cpu.weights import Weights
from clada.errors import InputError, ModelError
from clada.methods.coefficients import Coefficients, resolve_coefficients
from clada.methods.plan import Plan, Setting, Shares, plan_of
from clada.methods.policy import Policy, basis_of, make_policy, resolve_shares
from clada.methods.registry import layout_of, method_of
from clada.methods.screen import Basis
from clada.methods.selection import Norms
from clada.models.description import Description
from clada.models.open import check_device
from clada.speculation.drafters import ModelDrafter, NgramDrafter, TextOrModelDrafter
from clada.speculation.pace import CHECKED, CHECKED_BYTES, Pace

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Choice:
    """What a method leaves out of a model, and by which load rule.

    Attributes:
        method: of `clada.methods.registry.EVALUATED`.
        plan: its tables; None leaves nothing out.
        coefficients: the load rule.
        shares: how much is left out.
        setting: of the plan, where the shares are what the plan measured.
    """

    method: str
    plan: Plan | None
    coefficients: Coefficients
    shares: Shares = field(default_factory=Shares)
    setting: Setting | None = None

    @property
    def basis(self) -> Basis | None:
        """Of the screen of the output head; None where it is not screened."""
        return basis_of(self.plan, self.shares)

    def policy(self, norms: Norms) -> Policy:
        """What it computes for a token of a model with these norms."""
        return make_policy(self.method, norms, self.plan, self.shares, self.coefficients)


DENSE = Choice("dense", None, Coefficients(0.0, 0.0))


@dataclass(frozen=True)
class Parts:
    """A method, ready to decode.

    Attributes:
        choice: what it leaves out.
        policy: the same as thresholds.
        weights: laid out for it.
        decoder: of these weights: `Decoder` on the CPU, else `TorchDecoder`.
    """

    choice: Choice
    policy: Policy
    weights: Weights
    decoder: Any


def plan_and_rule(
    name: str,
    layers: int,
    method: str,
    plan: Plan | str | Path | None,
    coefficients: Coefficients | str | Path | None,
    max_loss: float | None = None,
) -> tuple[Plan | None, Coefficients]:
    """The plan and the load rule that a user means for a model.

    Args:
        name: the model's, which it was opened by and is looked up by.
        layers: that it has.
        method: of `clada.methods.registry.EVALUATED`; `dense` needs no plan.
        plan: as `clada.methods.plan.plan_of` takes it.
        coefficients: `Coefficients`, or what `clada.methods.coefficients.resolve_coefficients` takes.
        max_loss: the budget that the plan is wanted for.

    Raises:
        InputError: neither is known, or one is another model's.
    """
    resolved = plan_of(name, layers, plan if method_of(method).needs_plan else "none", max_loss)
    return resolved, resolve_coefficients(coefficients)


def is_of_weights(
    sums: Callable[[], list[list[float]]], plan: Plan | None, *, rounded: bool = False, looked_up: bool
) -> bool:
    """Whether a plan was made of the weights that a model holds, which may have changed since its file was opened.

    Args:
        sums: gives `clada.methods.observed.weight_sums` of the model; called only where it is needed.
        plan: which says what weights it was made of; those that do not say are taken at their word.
        rounded: the model's weights are not in float32.
        looked_up: the plan was found by the model's name, not given.

    Raises:
        InputError: a plan that was looked up is of other weights.
    """
    if plan is None or "weights" not in plan.provenance:
        return True
    # Norms are float32 sums, in an order that depends on the machine; lower precisions round every weight.
    tolerance = 1e-3 if rounded else 2e-5
    known, these = plan.provenance["weights"], sums()
    same = [len(row) for row in known] == [len(row) for row in these] and all(
        np.allclose(a, b, rtol=tolerance, atol=0) for a, b in zip(known, these, strict=True)
    )
    if looked_up and not same:
        raise InputError(
            f"the weights of this model are not those of {plan.model}, which the plan was made of; save the model and "
            "make a plan with 'clada calibrate', or use plan 'none' (everything computed)"
        )
    if not same:
        message = f"the plan was made of other weights of {plan.model}: its loss was not measured here"
        warnings.warn(message, stacklevel=4)
    return same


def choose(
    method: str,
    plan: Plan | None,
    coefficients: Coefficients,
    vocabulary: int,
    dtype: str,
    max_loss: float | None = None,
    keep: float | None = None,
) -> Choice:
    """What a method leaves out; arguments and errors are those of `clada.methods.policy.resolve_shares`.

    Raises:
        InputError: as there, or the method leaves out inputs at a precision that cannot.
    """
    if PRECISIONS[dtype].in_blocks and layout_of(method) == "input":
        raise InputError(
            f"method {method} leaves out inputs, which weights in {dtype} are not stored for; use another dtype, or a "
            "method that leaves out neurons"
        )
    # A plan's settings at int8 leave out words alone where rows are short, and rows in blocks are shorter still.
    measured_at = "int8" if PRECISIONS[dtype].in_blocks else dtype
    shares, setting = resolve_shares(method, plan, vocabulary, measured_at, max_loss, keep)
    return Choice(method, plan, coefficients, shares, setting)


def check_head(model: Any) -> None:
    """Refuse a model that predicts no words.

    Raises:
        ModelError: it has no output head.
    """
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no output head to predict words with; open the model with clada.load_model or "
            "AutoModelForCausalLM"
        )


def device_of(model: Any, device: str | torch.device | None) -> str:
    """Where a model decodes: "cpu", or the name of another device.

    Args:
        model: a transformers model.
        device: what the user asked for; None: where the model is.

    Raises:
        ModelError: torch has no such device here.
    """
    import torch

    asked = model.device if device is None else device
    try:
        resolved = torch.device(asked)
    except (RuntimeError, TypeError):
        raise ModelError(f"unknown device {asked!r}: choose cpu or cuda") from None
    if resolved.type == "cpu":
        return "cpu"
    if resolved.type == "cuda":
        check_device("cuda")
    try:
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ModelError(f"torch cannot compute on device {str(resolved)!r} here: choose cpu or cuda") from None
    return str(resolved)


def vocabulary_of(model: Any) -> int:
    """How many words the model's output head has."""
    return int(model.get_output_embeddings().weight.shape[0])


TEXT = "text"  # the text so far drafts alone

# Who can draft for weights of a precision: those of another one where the text has nothing, or the text alone. First
# the one that does where none is named.
DRAFTED_BY = {
    "float32": ("int8", "bfloat16", "int4", TEXT),
    "bfloat16": ("int8", "int4", TEXT),
    "int8": ("int4", TEXT),
    "int4": (TEXT,),
    "file": (TEXT,),
}

# With its part of a group's scale; files have from half a byte to one.
WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.625, "file": 0.625}


def who_drafts(dtype: str, draft: str | None = None, device: str = "cpu") -> str:
    """The precision of the weights that draft, or `TEXT`.

    Args:
        dtype: of those that check.
        draft: as it was asked for, or None.
        device: where the model decodes.

    Raises:
        InputError: nobody drafts on this device, or not what was asked for.
    """
    if device != "cpu":
        raise InputError(f"method speculative runs on the CPU, not on {device}; use method dense there")
    if draft is not None and draft not in DRAFTED_BY[dtype]:
        raise InputError(f"weights in {draft} cannot draft for {dtype}; use {' or '.join(DRAFTED_BY[dtype])}")
    return draft or DRAFTED_BY[dtype][0]


def drafter_of(
    assembled: Callable[[Choice, str], Parts],
    description: Description,
    dtype: str,
    draft: str,
    plan: Plan | str | Path | None,
    coefficients: Coefficients,
) -> NgramDrafter | TextOrModelDrafter:
    """Whoever drafts for a model: the text, and weights at a lower precision, less computed where a plan is known.

    Args:
        assembled: gives what decodes by a choice at a precision.
        description: of the model.
        dtype: precision of the weights that check.
        draft: of those that draft, or `TEXT`, see `who_drafts`.
        plan: as `plan_and_rule` takes it; None for the shipped or cached plan, or everything where there is none.
        coefficients: their taus, or the plan's quantiles where they have none, say which tokens are under load.

    Raises:
        InputError: a plan that was given cannot be used.
    """
    position_cost = CHECKED * CHECKED_BYTES / WEIGHT_BYTES[dtype]
    if draft == TEXT:
        return NgramDrafter(Pace(position_cost))
    known: Plan | None = None
    try:
        known = plan_of(description.name, description.layers, plan)
    except InputError:
        if plan is not None:
            raise
    choice = DENSE
    if known is not None:
        coefficients = coefficients.with_quantiles(known.quantiles)
        without_rule = replace(coefficients, lambda_=0.0, gamma=0.0)
        choice = choose("clada", known, without_rule, description.vocabulary, draft)
    parts = assembled(choice, draft)
    pace = Pace(position_cost, WEIGHT_BYTES[draft] / WEIGHT_BYTES[dtype])
    return TextOrModelDrafter(ModelDrafter(parts.decoder, parts.policy, coefficients.loads, pace), NgramDrafter(pace))


def assemble(model: Any, choices: Sequence[Choice], dtype: str, threads: int, device: str = "cpu") -> list[Parts]:
    """Pack a model for methods that will decode it.

    All that read the same layout read the same weights, as where these lie in memory can make some per cent of speed;
    the head has a screen if one of them uses it.

    Args:
        model: a transformers model in float32; the parts keep no reference to it.
        choices: what is left out.
        dtype: of the packed weights.
        threads: of the kernels.
        device: the CPU runs the kernels, others plain torch.

    Raises:
        ModelError: the engine cannot decode this model.
        InputError: the kernels do not know a method.
    """
    import torch

    from clada.cpu.pack import pack
    from clada.reference.decoder import TorchDecoder

    basis = next((choice.basis for choice in choices if choice.basis is not None), None)
    decoders: dict[str, Decoder | TorchDecoder] = {}
    with ThreadPoolExecutor(1) as beside:
        # At its first call numba sets itself up, while packing waits for memory.
        beside.submit(box, 0)
        layouts = dict.fromkeys(layout_of(choice.method) for choice in choices)
        packed = {layout: pack(model, dtype, basis, layout=layout) for layout in layouts}
    policies = [choice.policy(packed[layout_of(choice.method)]) for choice in choices]
    for layout, weights in packed.items():
        weights.model.to(torch.device(device))
        decoders[layout] = Decoder(weights, threads) if device == "cpu" else TorchDecoder(weights)
    return [
        Parts(choice, policy, packed[layout_of(choice.method)], decoders[layout_of(choice.method)])
        for choice, policy in zip(choices, policies, strict=True)
    ]


def assemble_kept(kept: Kept, choice: Choice, threads: int) -> Parts:
    """The same of a packed model in the cache, for one method.

    Args:
        kept: laid out for the method.
        choice: what is left out.
        threads: of the kernels.

    Raises:
        NotKeptError: the model must be opened and packed: what the method needs is not there, or is damaged.
    """
    weights = kept.weights(choice.basis)
    policy = choice.policy(weights)
    if policy.statistics is not None:  # of prompts, which torch collects
        raise NotKeptError
    return Parts(choice, policy, weights, Decoder(weights, threads))
