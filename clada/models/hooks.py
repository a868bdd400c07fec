"""The one place that puts hooks into a model and takes them out again, errors included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clada.models.architectures import down_projections

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def observe_activations(model: nn.Module, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Within the block every forward pass shows its neuron activations, layer by layer.

    One hook a layer, on the input of the down-projection; all are removed on exit, errors included. One sequence at a
    time: OPT flattens batch and positions before its MLP.

    Args:
        model: a supported model.
        seen: called with the number of the layer and its activations [tokens, neurons].
    """

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen(layer, inputs[0].reshape(-1, inputs[0].shape[-1]).detach())

        return hook

    handles = [module.register_forward_pre_hook(hook_of(i)) for i, module in enumerate(down_projections(model))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture_last_activations(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the block every forward pass leaves the neuron activations of its last token in the list it yields.

    Yields:
        list of one tensor [neurons] per layer, filled anew by each forward pass.
    """
    captured: list[torch.Tensor] = [None] * len(down_projections(model))  # type: ignore[list-item]
    with observe_activations(model, lambda layer, activations: captured.__setitem__(layer, activations[-1])):
        yield captured


@contextmanager
def replaced_forwards(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., torch.Tensor]]) -> Iterator[None]:
    """Within the block each module computes the function given for it; undone on exit, errors included."""
    before = [module.__dict__.get("forward") for module in modules]  # accelerate's hooks put one there, say
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.forward = forward
        yield
    finally:
        for module, forward_before in zip(modules, before, strict=True):
            if forward_before is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward_before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model does not drop out at random; every module's own mode is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
