"""A causal language model of any class, taken apart without knowing its name: what stands before its output head.

The base model gives hidden states; the class around it makes logits of them, by its head and whatever it does after
that (a cap, a scale). `Lens.logits` lets that code of the class run on any hidden states, a piece at a time, so that
no more logits are in memory than are looked at. The final norm is found as what the base model runs after its last
layer; applied to the states of earlier layers it is the logit lens (nostalgebraist 2020, "interpreting GPT: the logit
lens"). Both are compared with the model's own logits before they are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clada.errors import ModelError
from clada.models.hooks import Hooks

EQUAL_BITS = 1e-3  # differences of log-probabilities that float32 sums in another order make stay far below


class Lens:
    """The parts of a model that words are measured by.

    Args:
        model: a transformers causal language model.

    Attributes:
        layers: its layers, first to last; `check` finds them; empty where no list of modules that is run has as many
            as the configuration says.
        base: the module that gives the hidden states that logits are made of.
        split: whether logits are made of them piece by piece; `check` finds out.
        states: of the last run of `run`, by layer, 0 the embeddings: [B, T, H] each, of those that were asked for.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, model.base_model
        self.split = False
        self.layers: list[Any] = []
        self.states: dict[int, torch.Tensor] = {}
        self._tail: list[Any] = []
        # Nothing is read again, so no model has to keep keys, and not every one could.
        takes = "use_cache" in inspect.signature(self.base.forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if takes else {}

    def run(self, ids: torch.Tensor, wanted: tuple[int, ...] = ()) -> torch.Tensor:
        """Let the model read sequences, without a mask: what a causal model is given later changes nothing before.

        Args:
            ids: [B, T], shorter sequences filled up behind.
            wanted: layers whose states are kept in `states`, 0 for what enters the first.

        Returns:
            hidden states [B, T, H] that the head reads or, of a class that is not split, logits [B, T, V].
        """
        self.states = {}
        with Hooks() as hooks:
            for layer in wanted:
                if layer == 0:
                    hooks.before(self.layers[0], self._entered, with_kwargs=True)
                else:
                    hooks.after(self.layers[layer - 1], self._left(layer))
            if self.split:
                return _first(self.base(input_ids=ids, **self._options))
            return self.model(input_ids=ids, **self._options).logits

    def _entered(self, _module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.states[0] = inputs[0] if inputs else named["hidden_states"]

    def _left(self, layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            self.states[layer] = _first(output)

        return hook

    @contextmanager
    def head(self) -> Iterator[Any]:
        """Within the block the class makes logits of hidden states: a function from [n, H] to [n, V]."""
        if not self.split:
            yield lambda logits: logits
            return
        given: list[torch.Tensor] = []

        def forward(*_inputs: Any, **_named: Any) -> Any:
            return self._output(last_hidden_state=given.pop())

        def logits(states: torch.Tensor) -> torch.Tensor:
            given.append(states[None])
            ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
            return self.model(input_ids=ids, **self._options).logits[0]

        with Hooks() as hooks:
            hooks.replace(self.base, forward)
            yield logits

    def through_norm(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states of a layer as the head would read them: [..., H]."""
        for module in self._tail:
            states = _first(module(states))
        return states

    def check(self, ids: torch.Tensor, lens: bool) -> None:
        """Compare what is taken apart with the whole, on one sequence [1, T]; what differs is not used.

        Args:
            ids: some tokens of the text.
            lens: the logit lens is wanted too.

        Raises:
            ModelError: it is, and the final norm of this model cannot be found.
        """
        whole = torch.log_softmax(self._find_layers(ids)[0].float(), -1)
        self.split = self._is_split(whole, ids)
        if lens:
            found, last = False, len(self.layers)
            if self.split:
                self._find_tail(ids)
                self.run(ids, (last,))
                with self.head() as head:
                    found = _equal(whole, head(self.through_norm(self.states[last])[0]))
            if not found:
                raise ModelError(
                    f"the logit lens needs the norm before the output head, which cannot be found in "
                    f"{type(self.model).__name__}; leave --layers out"
                )
        self.states = {}

    def _find_layers(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits [1, T, V] of a run that shows which list of modules is the layers."""
        number = getattr(self.model.config.get_text_config(decoder=True), "num_hidden_layers", None)
        lists = [m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == number]
        run: list[Any] = []
        with Hooks() as hooks:
            for modules in lists:
                hooks.after(modules[-1], lambda module, *_: run.append(module))
            logits = self.model(input_ids=ids, **self._options).logits
        # A model of pictures and words has other lists too; experts are a list within each layer.
        self.layers = list(next((m for m in lists if any(m[-1] is module for module in run)), ()))
        return logits

    def _is_split(self, whole: torch.Tensor, ids: torch.Tensor) -> bool:
        """Choose the base: of the modules around the layers the outermost that the class makes its logits of."""
        if not self.layers:
            return False
        around = [m for m in self.model.modules() if any(part is self.layers[-1] for part in m.modules())]
        for self.base in around[1:-2]:  # between the model itself and the list of layers
            try:
                self._output = type(self.base(input_ids=ids, **self._options))
                self.split = True
                hidden = self.run(ids)[0]
                with self.head() as head:
                    if _equal(whole, head(hidden)):
                        return True
            except Exception:  # a class whose code needs more than the hidden states: its logits are used as they are
                continue
        return False

    def _find_tail(self, ids: torch.Tensor) -> None:
        """What the base model runs after its last layer, in order: the final norm and, in a few, a projection."""
        around = [m for m in self.base.modules() if any(part is self.layers[-1] for part in m.modules())]
        beside = [part for m in around for part in m.children() if not any(part is other for other in around)]
        inside = {id(part) for layer in self.layers for part in layer.modules()}
        self._tail = []

        def left(module: Any, _inputs: Any, _output: Any) -> None:
            if module is self.layers[-1]:
                self._tail.clear()  # what ran before it
            else:
                self._tail.append(module)

        with Hooks() as hooks:
            for module in [self.layers[-1], *(part for part in beside if id(part) not in inside)]:
                hooks.after(module, left)
            self.run(ids)


def _first(output: Any) -> torch.Tensor:
    """The hidden states in what a module gives."""
    return output if isinstance(output, torch.Tensor) else output[0]


def _equal(whole: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether logits give the same log-probabilities, of all words that are not next to impossible."""
    if whole.shape != logits.shape:
        return False
    likely = whole > -20  # nats; what is rarer by far adds nothing, and its logits are rounded more coarsely
    difference = (torch.log_softmax(logits.float(), -1) - whole)[likely].abs()
    return bool(difference.numel() > 0 and difference.max() < EQUAL_BITS)
