"""A model taken apart by its family's row: every linear map, norm and number that decoding needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clada.errors import ModelError
from clada.models.architectures import (
    Family,
    check_plain,
    decoder_layers,
    family_of,
    head_dim_of,
    norm_eps,
    rope_parameters,
)

if TYPE_CHECKING:
    from torch import nn

# What the engine computes, as transformers' configurations call it, and as `clada.cpu.kernels` numbers it.
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1, "relu": 2, "gelu": 3}

# Rotary embeddings whose frequencies do not change with the length of the sequence.
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Projection:
    """A linear map of a layer: all outputs of a module, or one of several parts that are fused in it.

    The outputs of a fused module are `groups` groups, in each of which the parts lie side by side.

    Attributes:
        module: which computes it.
        transposed: its weight is [inputs, outputs].
        part: which of the parts.
        parts: how many there are, all of one width.
        groups: how many times they come.
    """

    module: Any
    transposed: bool = False
    part: int = 0
    parts: int = 1
    groups: int = 1

    @property
    def matrix(self) -> torch.Tensor:
        """The weight as [outputs, inputs], in memory; a view of the module's where that is possible."""
        weight = self.module.weight.detach().cpu()  # what is packed lies in memory, also of a model that does not
        return self.of(weight if self.transposed else weight.t()).t()

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias [outputs], or None."""
        return None if self.module.bias is None else self.of(self.module.bias.detach())

    def of(self, outputs: torch.Tensor) -> torch.Tensor:
        """This projection's share of the module's outputs [..., outputs]; a view where they lie in one piece."""
        if self.parts == 1:
            return outputs
        return outputs.unflatten(-1, (self.groups, self.parts, -1))[..., self.part, :].flatten(-2)

    def put(self, outputs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The module's outputs with this projection's share replaced."""
        if self.parts == 1:
            return own
        changed = outputs.clone()
        share = changed.unflatten(-1, (self.groups, self.parts, -1))[..., self.part, :]
        share.copy_(own.unflatten(-1, (self.groups, -1)))
        return changed


@dataclass(frozen=True)
class Layer:
    """The parts of one decoder layer.

    Attributes:
        qkv: the query, key and value projections, or the one that is all three.
        output: the attention's output projection.
        gate: None without one.
        up: the MLP's up-projection.
        down: its down-projection.
        norms: before attention, of its output, of the residual stream after it, and the same of the MLP; None where
            there is none.
        head_norms: of queries and keys; None where there are none.
        scaling: of attention scores.
        window: sliding window in tokens, itself included; None without one.
        rotary: layer type the rotary embedding is asked for, "" where there is only one; None without one.
    """

    qkv: tuple[Projection, ...]
    output: Projection
    gate: Projection | None
    up: Projection
    down: Projection
    norms: tuple[Any, ...]
    head_norms: tuple[Any, Any] | None
    scaling: float
    window: int | None
    rotary: str | None


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that decoding needs.

    Attributes:
        family: its row.
        layers: first to last.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_dim: their width.
        activation: of the MLP.
        parallel: the MLP gets the residual stream from before the attention.
        eps: of the norms.
        softcap: of attention scores, 0 for none.
        final_softcap: of logits, 0 for none.
        stack: the module that maps tokens to the last hidden states.
        embedding: module of the token embeddings; it scales them itself.
        embedding_factor: what it scales them with.
        project_in: from the embedding's width to the hidden one; None where they are the same.
        positions: rows added to the embeddings, one per position; None where positions are rotary.
        final_norm: None where there is none.
        project_out: from the hidden width to the head's; None where they are the same.
        head: the output head.
        tied: the head's weight is the embedding's.
    """

    family: Family
    layers: list[Layer]
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    parallel: bool
    eps: float
    softcap: float
    final_softcap: float
    stack: Any
    embedding: Any
    embedding_factor: float
    project_in: Any
    positions: torch.Tensor | None
    final_norm: Any
    project_out: Any
    head: Any
    tied: bool


def anatomy(model: Any) -> Anatomy:
    """Take a supported model apart, without changing it.

    Raises:
        ModelError: the family is not supported, or a variant of it has parts that the engine cannot compute.
    """
    config, family = model.config, family_of(model.config)
    stack: Any = model.get_submodule(family.stack)
    _check_variant(config, family)
    layers = [_layer(layer, config, family, i) for i, layer in enumerate(decoder_layers(model))]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.bias is not None:
        raise ModelError("an output head with a bias is not supported")
    parts = [p for layer in layers for p in (*layer.qkv, layer.output, layer.gate, layer.up, layer.down)]
    check_plain((part.module for part in parts if part is not None), family)
    check_plain([head], Family(family.label))  # GPT-2's head is a plain linear layer too
    table = None
    if family.table is not None:
        path, first = family.table
        table = stack.get_submodule(path).weight.detach()[first:]
    project_in, project_out = (getattr(stack, name) for name in family.between) if family.between else (None, None)
    return Anatomy(
        family=family,
        layers=layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads if family.grouped else config.num_attention_heads,
        head_dim=head_dim_of(config),
        activation=_field(config, family.activation),
        parallel=family.parallel is not None and _field(config, family.parallel),
        eps=norm_eps(config),
        softcap=_field(config, family.softcap) or 0.0,
        final_softcap=_field(config, family.final_softcap) or 0.0,
        stack=stack,
        embedding=embedding,
        embedding_factor=embedding.scalar_embed_scale if family.scaled_embedding else 1.0,
        project_in=project_in,
        positions=table,
        final_norm=getattr(stack, family.final_norm),
        project_out=project_out,
        head=head,
        tied=head.weight is embedding.weight,
    )


def _field(config: Any, name: str | None) -> Any:
    return None if name is None else getattr(config, name)


def _check_variant(config: Any, family: Family) -> None:
    """Refuse what a configuration asks for and the engine does not compute."""
    activation = _field(config, family.activation)
    if activation not in ACTIVATIONS:
        raise ModelError(f"activation '{activation}' is not supported; the engine computes {', '.join(ACTIVATIONS)}")
    ropes = rope_parameters(config).values()
    kinds = [rope["rope_type"] for rope in ropes]
    if not set(kinds) <= set(STATIC_ROTARY):
        raise ModelError(
            f"rotary embeddings of type {', '.join(kinds)} are not supported; supported are: {', '.join(STATIC_ROTARY)}"
        )
    if not family.partial and any(rope.get("partial_rotary_factor", 1.0) != 1.0 for rope in ropes):
        raise ModelError(f"{family.label} with a partial_rotary_factor is not supported; give a model without")
    if family.windowed is None and getattr(config, "sliding_window", None):
        raise ModelError(
            f"{family.label} with a sliding_window, which transformers' attention ignores and its cache does not, is "
            "not supported; set it to None"
        )
    for name in family.refused:
        if _field(config, name):
            raise ModelError(f"{family.label} with {name} is not supported; give a plain causal model")


def _layer(layer: nn.Module, config: Any, family: Family, index: int) -> Layer:
    attention: Any = layer.get_submodule(family.attention)
    before, after = (
        (None, None) if names is None else tuple(layer.get_submodule(name) for name in names)
        for names in (family.before, family.after)
    )
    norms: tuple[nn.Module | None, ...] = (before[0], after[0], None, before[1], after[1], None)
    if family.norm_first is not None and not _field(config, family.norm_first):
        norms = (None, None, before[0], None, None, before[1])
    rotary = None if family.rotary is None else ""
    if family.rotary == "by layer type":
        rotary = config.layer_types[index]
    if family.unrotated is not None and not _field(config, family.unrotated)[index]:
        rotary = None
    window = None
    if family.windowed is not None:
        window = config.sliding_window if family.windowed == "every layer" else attention.sliding_window
    return Layer(
        **_projections(layer, attention, config.num_attention_heads, family),
        norms=norms,
        head_norms=(attention.q_norm, attention.k_norm) if family.head_norms else None,
        scaling=attention.scaling,
        window=window,
        rotary=rotary,
    )


def _projections(layer: nn.Module, attention: nn.Module, heads: int, family: Family) -> dict[str, Any]:
    """The linear maps of a layer as separate ones, also where the model has them fused in one module."""

    def whole(owner: nn.Module, name: str) -> Projection:
        return Projection(owner.get_submodule(name), family.transposed)

    def fused(owner: nn.Module, name: str, parts: int, groups: int) -> tuple[Projection, ...]:
        module = owner.get_submodule(name)
        return tuple(Projection(module, family.transposed, part, parts, groups) for part in range(parts))

    gate, up, down = family.mlp
    if gate == up:
        gate_and_up: tuple[Projection | None, ...] = fused(layer, up, 2, 1)
    else:
        gate_and_up = (None if gate is None else whole(layer, gate), whole(layer, up))
    return {
        "qkv": fused(attention, family.qkv[0], 3, heads)
        if family.qkv_by_head
        else tuple(whole(attention, name) for name in family.qkv),
        "output": whole(attention, family.output),
        "gate": gate_and_up[0],
        "up": gate_and_up[1],
        "down": whole(layer, down),
    }


def rotary_frequencies(stack: Any, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of the rotary embeddings of a stack, and what its cosines and sines are multiplied with.

    Args:
        stack: of the model, whose `rotary_emb` holds them as buffers.
        kinds: layer types, [""] where there is only one, none where positions are a table.

    Returns:
        (float32 [kinds, rotary width / 2], float32 [kinds]).
    """
    if not kinds:
        return np.empty((0, 0), np.float32), np.empty(0, np.float32)
    names = [f"{kind}_" if kind else "" for kind in kinds]
    frequencies = [getattr(stack.rotary_emb, f"{name}inv_freq").detach().float().cpu().numpy() for name in names]
    scaling = [getattr(stack.rotary_emb, f"{name}attention_scaling") for name in names]
    return np.stack(frequencies), np.array(scaling, np.float32)
