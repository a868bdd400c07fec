"""The one place that knows model architectures: a row per `config.model_type`.

A row says where the decoder layers are and where in a layer the MLP's down-projection is. The input of the
down-projection is the activation of the MLP's neurons for every architecture: act(gate) * up where the MLP is gated,
act(up) where it is not. Adding a family is adding a row here and its tiny model in `tests/tiny_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clada.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Where things are in one architecture.

    Attributes:
        label: the name people use.
        layers: path from the model to its list of decoder layers.
        down: path from a layer to its down-projection.
        gated: path from a layer to an MLP with `gate_proj`, `up_proj` and `down_proj`, None where the MLP has no gate.
        position_table: True where positions are a table of learned rows, so that a longer sequence cannot run at all.
    """

    label: str
    layers: str
    down: str
    gated: str | None
    position_table: bool = False


def _gated(label: str) -> Family:
    return Family(label, layers="model.layers", down="mlp.down_proj", gated="mlp")


FAMILIES: dict[str, Family] = {
    "llama": _gated("LLaMA 2/3, SmolLM2"),
    "mistral": _gated("Mistral"),
    "qwen2": _gated("Qwen 2"),
    "qwen3": _gated("Qwen 3"),
    "gemma": _gated("Gemma"),
    "gemma2": _gated("Gemma 2"),
    "gemma3_text": _gated("Gemma 3"),
    "opt": Family("OPT", layers="model.decoder.layers", down="fc2", gated=None, position_table=True),
    "gpt2": Family("GPT-2", layers="transformer.h", down="mlp.c_proj", gated=None, position_table=True),
}


def family_of(config: Any) -> Family:
    """The row of a model.

    Args:
        config: a transformers configuration.

    Raises:
        ModelError: the family is not supported; the message lists those that are.
    """
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        known = ", ".join(f"{f.label} ({model_type})" for model_type, f in FAMILIES.items())
        raise ModelError(f"model family '{config.model_type}' is not supported; supported are: {known}") from None


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a supported model, first to last."""
    return list(model.get_submodule(family_of(model.config).layers).children())


def down_projections(model: nn.Module) -> list[nn.Module]:
    """The down-projection of every layer, first to last.

    Raises:
        ModelError: a layer is not a plain linear layer (a quantised one, say), so its weights cannot be read.
    """
    path = family_of(model.config).down
    found = [layer.get_submodule(path) for layer in decoder_layers(model)]
    for module in found:
        if type(module).__name__ not in ("Linear", "Conv1D"):
            raise ModelError(
                f"the down-projection is a {type(module).__name__}, whose weights cannot be read; "
                "load the model unquantised (float32, bfloat16)"
            )
    return found


def down_norms(model: nn.Module) -> torch.Tensor:
    """||w_down[:, i]|| of every neuron, the weight of its activation in the magnitude c_i (Eq. 9).

    Returns:
        float32 [layers, neurons] on the CPU.
    """
    import torch

    # Linear keeps its weight as [hidden, neurons], GPT-2's Conv1D as [neurons, hidden].
    hidden_dim = {"Linear": 0, "Conv1D": 1}
    norms = [m.get_parameter("weight").float().norm(dim=hidden_dim[type(m).__name__]) for m in down_projections(model)]
    return torch.stack(norms).detach().cpu()


def check_length(config: Any, tokens: int, remedy: str) -> None:
    """Refuse a sequence that is longer than the model's positions.

    Args:
        config: a transformers configuration.
        tokens: the sequence's length.
        remedy: what the user can do, said at the end of the message.

    Raises:
        ModelError: `tokens` exceeds them. Learned tables (OPT, GPT-2) cannot go on at all; rotary positions beyond
            the trained range would run and give nonsense, which is worse.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        kind = "its position table has" if family_of(config).position_table else "it was trained for"
        raise ModelError(f"{tokens:,} tokens do not fit {config.model_type}: {kind} {limit:,} positions; {remedy}")


@contextmanager
def capture_last_activations(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the block every forward pass leaves the neuron activations of its last token in the list it yields.

    One hook a layer, on the input of the down-projection; all are removed on exit, errors included. One sequence at a
    time: OPT flattens batch and positions before its MLP, so the last row is the last token only without a batch.

    Yields:
        list of one tensor [neurons] per layer, filled anew by each forward pass.
    """
    modules = down_projections(model)
    captured: list[torch.Tensor] = [None] * len(modules)  # type: ignore[list-item]

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            captured[layer] = inputs[0].reshape(-1, inputs[0].shape[-1])[-1].detach()

        return hook

    handles = [module.register_forward_pre_hook(hook_of(i)) for i, module in enumerate(modules)]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


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


def gated_mlps(model: nn.Module) -> list[nn.Module]:
    """The MLP modules of a family with gated MLPs, first layer to last.

    Raises:
        ModelError: the family's MLPs have no gate, and the engine cannot decode them yet.
    """
    family = family_of(model.config)
    if family.gated is None:
        decodable = ", ".join(f.label for f in FAMILIES.values() if f.gated)
        raise ModelError(f"the engine cannot decode {family.label} yet (its MLP has no gate); it decodes {decodable}")
    return [layer.get_submodule(family.gated) for layer in decoder_layers(model)]


def gate_activation(config: Any) -> str:
    """The name of the gate's activation; Gemma's configurations call it by a name of their own."""
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)
