"""The methods by name: what each leaves out, and along which family of settings it is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from clada.errors import InputError
from clada.methods.plan import Shares

# Methods of our own and of others; all run in the same kernels.
METHODS = {
    "clada": "neurons by magnitude, attention and vocabulary screened, load rule",
    "clada-no-load": "clada with thresholds that ignore the load",
    "clada-mlp": "clada in the MLP alone: no screen, whole attention",
    "tt": "one magnitude threshold per layer",
    "top-p": "magnitude thresholds that keep a share of the layer's summed magnitude",
    "cats": "thresholds on |act(gate)|",
    "griffin": "neurons chosen by the prompt, fixed while decoding",
    "teal": "thresholds on the inputs of every projection",
    "wina": "the same, inputs weighted by the norms of their columns",
    "dense": "everything",
}

EVALUATED = {**METHODS, "dejavu": "neurons of the highest scores by a trained predictor of low rank, without kernels"}

INPUT_METHODS = ("teal", "wina")

CLADA = tuple(method for method in METHODS if method.startswith("clada"))


def layout_of(method: str) -> str:
    """How weights are laid out for a method, see `clada.cpu.pack.pack`: so that it decodes fastest.

    Raises:
        InputError: the kernels do not know the method.
    """
    if method not in METHODS:
        raise InputError(f"method {method} has no kernels; score it with 'clada evaluate' or run it by clada.sparse")
    return "input" if method in INPUT_METHODS else "matrix"


def shares_of(method: str, dropped: float, vocabulary: int = 1, words_alone: bool = False) -> Shares:
    """The one-parameter family of settings that a method is searched along.

    Args:
        method: of `EVALUATED`.
        dropped: share of the neurons (of the inputs for `teal` and `wina`) to leave out, within 0 and 1.
        vocabulary: how many words the head has.
        words_alone: `clada` computes all neurons, and `dropped` says how likely the words are that it leaves out.

    Raises:
        InputError: unknown method.
    """
    check_method(method)
    if method in CLADA:
        # The proportions trade time for loss at about the same rate; see benchmarks/selection-log.md. The screen and
        # the mean in the place of values cost next to nothing: words are left out that it finds at most a twenty-fifth
        # as likely as a word is on average, values that get less than half the average weight. Where more is left
        # out, so are more likely words. Not by the gate: of the up-projection's rows it finds a sixth, whose time is
        # not saved, at the loss of leaving out more neurons by their magnitude.
        of_rows, narrower = (0.0, 5.0) if words_alone else (dropped, 2.5)
        shares = Shares(
            neurons=of_rows,
            output=0.5 * of_rows,
            attention=0.5,
            screen=0.7,
            margin=math.log(vocabulary) + math.log(25) - narrower * dropped,
        )
        return _without(method, shares)
    if method == "griffin":
        return Shares(prompt=dropped)
    if method == "cats":
        return Shares(gate=dropped)
    if method in INPUT_METHODS:
        return Shares(neurons=dropped, output=dropped, inputs=dropped)
    return Shares(neurons=dropped) if method in ("tt", "top-p", "dejavu") else Shares()


def _without(method: str, shares: Shares) -> Shares:
    """The shares of an ablation: those of `clada` without its part."""
    return replace(shares, output=0.0, attention=0.0, screen=0.0, margin=None) if method == "clada-mlp" else shares


def check_method(method: str) -> None:
    """Refuse a method that is not one.

    Raises:
        InputError: with those that are.
    """
    if method not in EVALUATED:
        raise InputError(f"unknown method '{method}'; use {', '.join(EVALUATED)}")


def with_dense(methods: Sequence[str] | None) -> list[str]:
    """The methods to compare, `dense` first and each once; `clada` where none is named.

    Raises:
        InputError: one that is not a method.
    """
    compared = list(dict.fromkeys(["dense", *(methods or ["clada"])]))
    for method in compared:
        check_method(method)
    return compared
