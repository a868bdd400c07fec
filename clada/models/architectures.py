"""The one place that knows model architectures: a row per `config.model_type`.

A row names the parts of a decoder layer. The input of the down-projection is the activation of the MLP's neurons for
every architecture: act(gate) * up where the MLP is gated, act(up) where it is not. Adding a family is adding a row here
and its tiny model in `tests/tiny_models.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from clada.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Where things are in one architecture: paths from the model to its stack, from the stack, and from a layer.

    Attributes:
        label: the name people use.
        stack: path from the model to the module that holds embeddings, layers and the final norm.
        layers: path from the stack to its list of decoder layers.
        attention: path from a layer to its attention.
        qkv: names in the attention of the query, key and value projections, or of the one that is all three.
        output: name in the attention of its output projection.
        mlp: names in the layer of the gate (None without one), up- and down-projection.
        before: norms in front of attention and MLP.
        after: norms of what attention and MLP give, before it is added to the residual stream.
        final_norm: name in the stack.
        rms: True for RMSNorm, False for LayerNorm.
        unit_offset: norms scale by one plus their weight.
        windowed: the sliding window of the configuration holds in every layer.
        position_table: positions are a table of learned rows, so that a longer sequence cannot run at all.
    """

    label: str
    stack: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    mlp: tuple[str | None, str, str] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    before: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    after: tuple[str, str] | None = None
    final_norm: str = "norm"
    rms: bool = True
    unit_offset: bool = False
    windowed: bool = False
    position_table: bool = False


_SANDWICH: dict[str, Any] = {
    "before": ("input_layernorm", "pre_feedforward_layernorm"),
    "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "unit_offset": True,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LLaMA 2/3, SmolLM2"),
    "mistral": Family("Mistral", windowed=True),
    "qwen2": Family("Qwen 2"),
    "qwen3": Family("Qwen 3"),
    "gemma": Family("Gemma", unit_offset=True),
    "gemma2": Family("Gemma 2", **_SANDWICH),
    "gemma3_text": Family("Gemma 3", **_SANDWICH),
    "opt": Family(
        "OPT",
        stack="model.decoder",
        output="out_proj",
        mlp=(None, "fc1", "fc2"),
        before=("self_attn_layer_norm", "final_layer_norm"),
        final_norm="final_layer_norm",
        rms=False,
        position_table=True,
    ),
    "gpt2": Family(
        "GPT-2",
        stack="transformer",
        layers="h",
        attention="attn",
        qkv=("c_attn",),
        output="c_proj",
        mlp=(None, "mlp.c_fc", "mlp.c_proj"),
        before=("ln_1", "ln_2"),
        final_norm="ln_f",
        rms=False,
        position_table=True,
    ),
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
    family = family_of(model.config)
    return list(model.get_submodule(f"{family.stack}.{family.layers}").children())


def down_projections(model: nn.Module) -> list[nn.Module]:
    """The down-projection of every layer, first to last.

    Raises:
        ModelError: a layer is not a plain linear layer (a quantised one, say), so its weights cannot be read.
    """
    path = family_of(model.config).mlp[2]
    found = [layer.get_submodule(path) for layer in decoder_layers(model)]
    check_plain(found)
    return found


def check_plain(modules: Iterable[nn.Module]) -> None:
    """Refuse projections that compute something else than their `weight` says: quantised ones, adapters (LoRA).

    By class, not by its name: PEFT's LoRA layers are called `Linear` too.

    Raises:
        ModelError: one is no `torch.nn.Linear` and no `Conv1D` of transformers.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in modules:
        if type(module) not in (torch.nn.Linear, Conv1D):
            raise ModelError(
                f"the model has projections of {type(module).__module__}.{type(module).__name__}, whose weights cannot "
                "be read; load it unquantised, with adapters merged into it"
            )


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


# What the engine computes, as transformers' configurations call it, and as `clada.cpu.kernels` numbers it.
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1, "relu": 2, "gelu": 3}

# Rotary embeddings whose frequencies do not change with the length of the sequence.
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")


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
        head_norms: of queries and keys, by head; None where there are none.
        scaling: of attention scores.
        window: sliding window in tokens, itself included; None without one.
        rotary: layer type the rotary embedding is asked for, "" where there is only one; None without one.
    """

    qkv: tuple[Any, ...]
    output: Any
    gate: Any
    up: Any
    down: Any
    norms: tuple[Any, ...]
    head_norms: tuple[Any, Any] | None
    scaling: float
    window: int | None
    rotary: str | None


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that decoding needs.

    Attributes:
        layers: first to last.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_dim: their width.
        activation: of the MLP.
        rms: RMSNorm or LayerNorm.
        unit_offset: norms scale by one plus their weight.
        eps: of the norms.
        softcap: of attention scores, 0 for none.
        final_softcap: of logits, 0 for none.
        stack: the module that maps tokens to the last hidden states.
        embedding: module of the token embeddings; it scales them itself.
        project_in: from the embedding's width to the hidden one; None where they are the same.
        positions: rows added to the embeddings, one per position; None where positions are rotary.
        final_norm: None where there is none.
        project_out: from the hidden width to the head's; None where they are the same.
        head: the output head.
        tied: the head's weight is the embedding's.
    """

    layers: list[Layer]
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    rms: bool
    unit_offset: bool
    eps: float
    softcap: float
    final_softcap: float
    stack: Any
    embedding: Any
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
    activation = str(
        getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or config.activation_function
    )
    if activation not in ACTIVATIONS:
        raise ModelError(f"activation '{activation}' is not supported; the engine computes {', '.join(ACTIVATIONS)}")
    rotary = getattr(stack, "rotary_emb", None)
    if rotary is not None:
        kinds = rotary.rope_type.values() if isinstance(rotary.rope_type, dict) else [rotary.rope_type]
        if not set(kinds) <= set(STATIC_ROTARY):
            raise ModelError(
                f"rotary embeddings of type {', '.join(kinds)} are not supported; supported are: "
                f"{', '.join(STATIC_ROTARY)}"
            )
    if getattr(config, "add_cross_attention", False) or getattr(config, "use_bidirectional_attention", False):
        raise ModelError("cross attention and bidirectional attention are not supported; give a plain causal model")
    layers = [_layer(layer, config, family, i, rotary) for i, layer in enumerate(decoder_layers(model))]
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head.bias is not None:
        raise ModelError("an output head with a bias is not supported")
    parts = [p for layer in layers for p in (*layer.qkv, layer.output, layer.gate, layer.up, layer.down)]
    check_plain(part for part in (*parts, head) if part is not None)
    table = None
    if family.position_table:
        table = model.get_submodule(f"{family.stack}.{'wpe' if hasattr(stack, 'wpe') else 'embed_positions'}")
        # OPT's table begins two rows before position 0.
        table = table.weight.detach()[getattr(table, "offset", 0) :]
    heads = config.num_attention_heads
    return Anatomy(
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        activation=activation,
        rms=family.rms,
        unit_offset=family.unit_offset,
        # OPT's configuration has no name for it: torch's default.
        eps=float(getattr(config, "rms_norm_eps", None) or getattr(config, "layer_norm_epsilon", None) or 1e-5),
        softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        final_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        stack=stack,
        embedding=embedding,
        project_in=getattr(stack, "project_in", None),
        positions=table,
        final_norm=getattr(stack, family.final_norm, None),
        project_out=getattr(stack, "project_out", None),
        head=head,
        tied=head.weight is embedding.weight,
    )


def _layer(layer: nn.Module, config: Any, family: Family, index: int, rotary: Any) -> Layer:
    attention: Any = layer.get_submodule(family.attention)
    before = [layer.get_submodule(name) for name in family.before]
    after = [layer.get_submodule(name) for name in family.after] if family.after else [None, None]
    norms: tuple[nn.Module | None, ...] = (before[0], after[0], None, before[1], after[1], None)
    if not getattr(config, "do_layer_norm_before", True):  # OPT-350M normalises the residual stream itself
        norms = (None, None, before[0], None, None, before[1])
    gate, up, down = (name and layer.get_submodule(name) for name in family.mlp)
    has_head_norms = hasattr(attention, "q_norm")
    kind = None if rotary is None else config.layer_types[index] if hasattr(rotary, "layer_types") else ""
    return Layer(
        qkv=tuple(attention.get_submodule(name) for name in family.qkv),
        output=attention.get_submodule(family.output),
        gate=gate,
        up=up,
        down=down,
        norms=norms,
        head_norms=(attention.q_norm, attention.k_norm) if has_head_norms else None,
        scaling=attention.scaling,
        window=config.sliding_window if family.windowed else getattr(attention, "sliding_window", None),
        rotary=kind,
    )


def rotary_rows(rotary: Any, kinds: Sequence[str], positions: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of positions, as the model's own module computes them.

    Args:
        rotary: the model's module that computes them, `rotary_emb` of its stack.
        kinds: layer types, [""] where there is only one.
        positions: [n].

    Returns:
        float32 [n, kinds, 2, rotary width].
    """
    import torch

    x = torch.zeros(1, dtype=torch.float32, device=positions.device)
    rows = [rotary(x, positions[None], *([kind] if kind else [])) for kind in kinds]
    return torch.stack([torch.stack([cos[0], sin[0]], 1) for cos, sin in rows], 1)


def matrix_of(module: Any) -> torch.Tensor:
    """A linear layer's weight as [outputs, inputs]; GPT-2's Conv1D keeps it transposed."""
    weight = module.weight.detach().cpu()  # what is packed lies in memory, also of a model that does not
    return weight.t() if type(module).__name__ == "Conv1D" else weight
