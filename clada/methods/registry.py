"""The methods: one row of data each says what a method leaves out, by which tests, and how it is searched.

Adding a method is adding a row to `EVALUATED`; a test of a new kind is a function in `clada.methods.rules` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from clada.errors import InputError
from clada.methods.plan import Shares

# What a family of settings is called with: the share that is left out, how many words the head has, and whether words
# are all that is left out. See `shares_of`.
SharesOf = Callable[[float, int, bool], Shares]


def _of(*names: str) -> SharesOf:
    """The family that leaves out the same share of everything that is named."""
    return lambda dropped, _vocabulary, _words_alone: Shares(**dict.fromkeys(names, dropped))


def _clada(dropped: float, vocabulary: int, words_alone: bool) -> Shares:
    # The proportions trade time for loss at about the same rate; see benchmarks/selection-log.md. The screen and the
    # mean in the place of values cost next to nothing: words are left out that it finds at most a twenty-fifth as
    # likely as a word is on average, values that get less than half the average weight. Where more is left out, so are
    # more likely words. Not by the gate: of the up-projection's rows it finds a sixth, whose time is not saved, at the
    # loss of leaving out more neurons by their magnitude.
    of_rows, narrower = (0.0, 5.0) if words_alone else (dropped, 2.5)
    return Shares(
        neurons=of_rows,
        output=0.5 * of_rows,
        attention=0.5,
        screen=0.7,
        margin=math.log(vocabulary) + math.log(25) - narrower * dropped,
    )


def _clada_mlp(dropped: float, vocabulary: int, words_alone: bool) -> Shares:
    whole = _clada(dropped, vocabulary, words_alone)
    return replace(whole, output=0.0, attention=0.0, screen=0.0, margin=None)


@dataclass(frozen=True)
class Method:
    """A row of the registry.

    Attributes:
        help: what it leaves out, in a few words.
        family: the one-parameter family of settings that it is searched along.
        needs_plan: thresholds are looked up in a plan; without one (`dense`) nothing is left out.
        gate: the plan's table that thresholds of the gate test are looked up in: `gate` (of |act(gate_i)| times
            `gate_weight`) or `activation` (of |act(gate_i)| alone).
        magnitude: how thresholds of the magnitude test are found: `share` of the neurons, `summed` (a share of the
            layer's summed magnitude), or None where there is no such test.
        plain: magnitudes and inputs are not weighted with the norms of the weights they meet.
        inputs: of projections are left out, not neurons' rows: weights lie by input.
        statistics: kind of `clada.methods.rules.statistics_of_sums` that neurons of a prompt are chosen by.
        predicted: neurons are chosen by the plan's trained predictors (`clada.methods.dejavu`).
        load_rule: thresholds adapt to the load of a token (Eq. 11).
        kernels: the CPU's kernels run it; others are scored by `clada.sparse`.
        setting_of: the method whose measured setting it takes where the plan has none of its own; None: as many
            neurons are left out as `clada` leaves out, whatever that costs.
        settings_by_dtype: a precision at which leaving out neurons saves too little has a setting of its own.
        drafts: the model's dense words, of which some are drafted and checked at once (`clada.speculation`).
        finer: shares that the search tests before the common ones.
    """

    help: str
    family: SharesOf
    needs_plan: bool = True
    gate: str = "gate"
    magnitude: str | None = "share"
    plain: bool = False
    inputs: bool = False
    statistics: str = "magnitude"
    predicted: bool = False
    load_rule: bool = False
    kernels: bool = True
    setting_of: str | None = None
    settings_by_dtype: bool = False
    drafts: bool = False
    finer: tuple[float, ...] = ()

    @property
    def layout(self) -> str:
        """How weights are laid out for it, of `clada.cpu.pack.LAYOUTS`: so that it decodes fastest."""
        return "input" if self.inputs else "matrix"


# Methods of our own and of others.
EVALUATED = {
    "clada": Method(
        "neurons by magnitude, attention and vocabulary screened, load rule",
        _clada,
        load_rule=True,
        setting_of="clada",
        settings_by_dtype=True,
    ),
    "clada-no-load": Method("clada with thresholds that ignore the load", _clada, setting_of="clada"),
    "clada-mlp": Method("clada in the MLP alone: no screen, whole attention", _clada_mlp, load_rule=True),
    "tt": Method("one magnitude threshold per layer", _of("neurons")),
    "top-p": Method(
        "magnitude thresholds that keep a share of the layer's summed magnitude",
        _of("neurons"),
        magnitude="summed",
        finer=(0.01, 0.02, 0.03, 0.04, 0.05, 0.07),  # the smallest tenth of the summed magnitude is most neurons
    ),
    "cats": Method("thresholds on |act(gate)|", _of("gate"), gate="activation"),
    "griffin": Method("neurons chosen by the prompt, fixed while decoding", _of("prompt"), statistics="flocking"),
    "teal": Method(
        "thresholds on the inputs of every projection", _of("neurons", "output", "inputs"), plain=True, inputs=True
    ),
    "wina": Method(
        "the same, inputs weighted by the norms of their columns", _of("neurons", "output", "inputs"), inputs=True
    ),
    "dense": Method("everything", _of(), needs_plan=False),
    "speculative": Method(
        "everything; drafts of the text or of cheaper weights are checked some tokens at once",
        _of(),
        needs_plan=False,
        drafts=True,
    ),
    "dejavu": Method(
        "neurons of the highest scores by a trained predictor of low rank, without kernels",
        _of("neurons"),
        magnitude=None,  # neurons are not chosen by what they give
        predicted=True,
        kernels=False,
    ),
}

# Those that run in the kernels.
METHODS = {name: row for name, row in EVALUATED.items() if row.kernels}


def method_of(name: str) -> Method:
    """The row of a method.

    Raises:
        InputError: there is none of this name; with those that there are.
    """
    if name not in EVALUATED:
        raise InputError(f"unknown method '{name}'; use {', '.join(EVALUATED)}")
    return EVALUATED[name]


def layout_of(method: str) -> str:
    """How weights are laid out for a method in the kernels, see `clada.cpu.pack.pack`.

    Raises:
        InputError: the kernels do not know the method.
    """
    if method not in METHODS:
        raise InputError(f"method {method} has no kernels; score it with 'clada evaluate' or run it by clada.sparse")
    return METHODS[method].layout


def shares_of(method: str, dropped: float, vocabulary: int = 1, words_alone: bool = False) -> Shares:
    """A setting of the one-parameter family that a method is searched along.

    Args:
        method: of `EVALUATED`.
        dropped: share of the neurons (of the inputs for `teal` and `wina`) to leave out, within 0 and 1.
        vocabulary: how many words the head has.
        words_alone: `clada` computes all neurons, and `dropped` says how likely the words are that it leaves out.

    Raises:
        InputError: unknown method.
    """
    return method_of(method).family(dropped, vocabulary, words_alone)


def check_method(method: str) -> None:
    """Refuse a method that is not one.

    Raises:
        InputError: with those that are.
    """
    method_of(method)


def check_leaves_out(method: str) -> None:
    """Refuse a method whose words are the dense model's by another way, where only the words matter.

    Raises:
        InputError: it is one, or no method.
    """
    if method_of(method).drafts:
        raise InputError(f"method {method} gives the dense model's words, faster; use method dense here")


def with_dense(methods: Sequence[str] | None) -> list[str]:
    """The methods to compare, `dense` first and each once; `clada` where none is named.

    Raises:
        InputError: one that is not a method.
    """
    compared = list(dict.fromkeys(["dense", *(methods or ["clada"])]))
    for method in compared:
        check_method(method)
    return compared
