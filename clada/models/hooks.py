"""The one manager of hooks: what is put into a model, or changed in it, and taken out again, errors included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from clada.models.anatomy import Projection
from clada.models.architectures import down_projections

if TYPE_CHECKING:
    import torch
    from torch import nn


class Hooks:
    """A context manager that owns every change of a model; on exit all are undone, the last one first.

    Made after baukit's nethook (Bau et al.), so that no other code registers a hook or puts an attribute back by hand:

        with Hooks() as hooks:
            hooks.before(module, look)
            model(ids)
    """

    def __init__(self) -> None:
        self._undo = ExitStack()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def before(self, part: nn.Module | Projection, hook: Callable[..., Any], **options: Any) -> None:
        """Call a hook in front of a module: `hook(module, args)`, which may return other arguments.

        Args:
            part: a module, or a projection, whose input is that of its module.
            hook: as torch calls it.
            **options: of `torch.nn.Module.register_forward_pre_hook`.
        """
        module = part.module if isinstance(part, Projection) else part
        self._undo.callback(module.register_forward_pre_hook(hook, **options).remove)

    def after(self, part: nn.Module | Projection, hook: Callable[..., Any], **options: Any) -> None:
        """Call a hook after a module: `hook(module, args, output)`, which may return another output.

        Args:
            part: a module, or a projection: the hook then sees and gives its share of a fused module's output.
            hook: as torch calls it.
            **options: of `torch.nn.Module.register_forward_hook`.
        """
        module = part.module if isinstance(part, Projection) else part
        if isinstance(part, Projection):
            hook = _for_share(part, hook)
        self._undo.callback(module.register_forward_hook(hook, **options).remove)

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Let a module compute another function."""
        own = vars(module)
        if "forward" in own:  # accelerate's hooks put one there, say
            self._undo.callback(setattr, module, "forward", own["forward"])
        else:
            self._undo.callback(own.pop, "forward", None)
        module.forward = forward

    def change(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, of a configuration say; on exit it has the value from before."""
        self._undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)


def _for_share(part: Projection, hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module from one of a projection."""

    def of_module(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        changed = hook(module, args, part.of(output))
        return None if changed is None else part.put(output, changed)

    return of_module


@contextmanager
def observe_activations(model: nn.Module, seen: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Within the block every forward pass shows its neuron activations, layer by layer.

    One hook a layer, on the input of the down-projection. One sequence at a time: OPT flattens batch and positions
    before its MLP.

    Args:
        model: a supported model.
        seen: called with the number of the layer and its activations [tokens, neurons].
    """

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen(layer, inputs[0].reshape(-1, inputs[0].shape[-1]).detach())

        return hook

    with Hooks() as hooks:
        for i, module in enumerate(down_projections(model)):
            hooks.before(module, hook_of(i))
        yield


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
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model does not drop out at random; every module's own mode is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
