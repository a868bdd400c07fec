"""The one place that knows model architectures: a row per `config.model_type` that states everything that differs.

A row says where the parts of a model are, what they compute, which fields of the configuration transformers reads for
it, and how llama.cpp computes the same. What a row does not name is not used: a field of the configuration that
transformers ignores for a family changes nothing here. The input of the down-projection is the activation of the MLP's
neurons for every architecture: act(gate) * up where the MLP is gated, act(up) where it is not.

How to add a family:

1. Read `modeling_<family>.py` of the installed transformers: the attention, the MLP, the decoder layer, the model.
2. Add a row to `FAMILIES`, keyed by `config.model_type`. State every attribute of `Family` that differs from a LLaMA.
   Weights that are fused in one module need no code where they are fused in one of the known ways: `qkv` with one name
   (queries, keys and values one after the other, or `qkv_by_head`), `mlp` with the same name for gate and up.
   `clada.models.anatomy.Projection` turns them into separate matrices, for packing, norms and hooks alike.
3. Add its tiny configuration to `tests/tiny_models.py`, with a sliding window of `SLIDING_WINDOW` where it can have one
   and biases where it can have them. All tests that are parametrised by `CONFIGS` now run it: greedy ids of the kernels
   against transformers' generate, the kernels against plain torch, `clada.sparse`, the extraction of studies.
4. Where a layer computes what no other family does, three files follow: `clada/cpu/kernels/arguments.py` (a constant),
   `clada/cpu/kernels/attention.py` or `step.py` (the computation), `clada/cpu/pack.py` (its value from the row).
   The reference in plain torch runs transformers' own code and needs nothing.
5. If llama.cpp computes the family as transformers does, state it as the row's `llama_cpp` and add the family to
   `VARIANTS` of `tests/test_peers.py`, which compares their log-probabilities. Without it the family is refused there.
6. `tests/test_families.py` holds what is special of a family; refuse in one line what the engine cannot compute
   (`refused`, or a check in `clada.models.anatomy`), and test the line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clada.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class LlamaCppRow:
    """How llama.cpp computes a family; what it has built in is stated, so that other values can be refused.

    Attributes:
        arch: its name in `gguf.MODEL_ARCH`.
        activation: of the MLP, as transformers calls it.
        neighbours: rotary embedding turns neighbouring dimensions of a head, not those half a head apart.
        full_every: every so many-th layer attends to all tokens, the others to a window; 1: all to all tokens.
        rope_types: rotary embeddings that it can be told to compute.
        unrotated_every: every so many-th layer has no rotary embedding; 0: all have.
        softcapped: scores and logits are capped.
        by_hidden: a model of so many layers divides scores by the root of the hidden size per head (the largest of
            Gemma 2 and 3), and not by that of the width of heads.
    """

    arch: str
    activation: str = "silu"
    neighbours: bool = False
    full_every: int = 1
    rope_types: tuple[str, ...] = ("default", "linear")
    unrotated_every: int = 0
    softcapped: bool = False
    by_hidden: int | None = None


@dataclass(frozen=True)
class Family:
    """One architecture: where its parts are, what they compute, and which fields of its configuration say so.

    Paths lead from the model to its stack, from the stack, and from a layer. Fields are names in the configuration. The
    attention module of every family has a `scaling`, which multiplies the scores.

    Attributes:
        label: the name people use.
        stack: path from the model to the module that holds embeddings, layers and the final norm.
        layers: path from the stack to its list of decoder layers.
        attention: path from a layer to its attention.
        qkv: names in the attention of the query, key and value projections, or of the one that is all three.
        qkv_by_head: the one has query, key and value of head 0, then those of head 1, and so on (GPT-NeoX).
        output: name in the attention of its output projection.
        mlp: names in the layer of the gate (None without one), up- and down-projection; gate and up have the same name
            where they are one module, whose outputs are those of the gate, then those of up.
        transposed: weights of projections are [inputs, outputs] (transformers' `Conv1D`), not [outputs, inputs].
        before: norms in front of attention and MLP; None: they take the residual stream as it is.
        after: norms of what attention and MLP give, before it is added to the residual stream.
        head_norms: norms of queries and keys, `q_norm` and `k_norm` of the attention: of each head, or of the width of
            all heads.
        final_norm: name in the stack; the module may be None.
        rms: True for RMSNorm, False for LayerNorm.
        eps: of the norms: a field, or the value where the configuration has none.
        unit_offset: norms scale by one plus their weight.
        norm_first: field that says whether norms are in front of attention and MLP; if not, they are of the residual
            stream after it (OPT-350M).
        parallel: field that says whether the MLP gets the residual stream from before the attention.
        activation: field of the MLP's nonlinearity.
        grouped: the configuration may have fewer heads of keys and values, and a width of heads that is not the hidden
            size divided by the heads.
        rotary: the rotary embedding `rotary_emb` of the stack is one for all layers, or one per type of layer; None:
            positions are a learned table.
        partial: only a share of a head's dimensions may be rotated.
        unrotated: field with one number per layer, 0 where it has no rotary embedding.
        table: path from the stack to the table of positions, and the row of position 0.
        windowed: the field `sliding_window` holds in every layer, or in layers whose attention has a `sliding_window`.
        scaled_embedding: the embedding multiplies its rows with its `scalar_embed_scale`.
        softcap: field of the cap of attention scores.
        final_softcap: field of the cap of logits.
        scalar: field whose root divides the scores; None: the root of the width of heads does.
        between: names in the stack of the projections between embedding and first layer, and between final norm and
            head; the modules may be None.
        refused: fields that must not be set, as the engine does not compute what they say.
        llama_cpp: how llama.cpp computes the family; None: not the same, or not at all.
    """

    label: str
    stack: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    qkv_by_head: bool = False
    output: str = "o_proj"
    mlp: tuple[str | None, str, str] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    transposed: bool = False
    before: tuple[str, str] | None = ("input_layernorm", "post_attention_layernorm")
    after: tuple[str, str] | None = None
    head_norms: Literal["head", "width"] | None = None
    final_norm: str = "norm"
    rms: bool = True
    eps: str | float = "rms_norm_eps"
    unit_offset: bool = False
    norm_first: str | None = None
    parallel: str | None = None
    activation: str = "hidden_act"
    grouped: bool = True
    rotary: Literal["one", "by layer type"] | None = "one"
    partial: bool = False
    unrotated: str | None = None
    table: tuple[str, int] | None = None
    windowed: Literal["every layer", "by layer"] | None = None
    scaled_embedding: bool = False
    softcap: str | None = None
    final_softcap: str | None = None
    scalar: str | None = None
    between: tuple[str, str] | None = None
    refused: tuple[str, ...] = ()
    llama_cpp: LlamaCppRow | None = None


_GEMMA: dict[str, Any] = {
    "unit_offset": True,
    "scaled_embedding": True,
    "refused": ("use_bidirectional_attention",),
}

_SANDWICH: dict[str, Any] = {
    **_GEMMA,
    "before": ("input_layernorm", "pre_feedforward_layernorm"),
    "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "activation": "hidden_activation",
    "windowed": "by layer",
    "final_softcap": "final_logit_softcapping",
    "scalar": "query_pre_attn_scalar",
}

_TABLE: dict[str, Any] = {"rms": False, "activation": "activation_function", "grouped": False, "rotary": None}

_LLAMA = LlamaCppRow("LLAMA", neighbours=True, rope_types=("default", "linear", "llama3"))

FAMILIES: dict[str, Family] = {
    "llama": Family("LLaMA 2/3, SmolLM2", llama_cpp=_LLAMA),
    "mistral": Family("Mistral", windowed="every layer", llama_cpp=_LLAMA),
    "qwen2": Family("Qwen 2", windowed="by layer", llama_cpp=LlamaCppRow("QWEN2")),
    "qwen3": Family("Qwen 3", windowed="by layer", head_norms="head", llama_cpp=LlamaCppRow("QWEN3")),
    "gemma": Family("Gemma", **_GEMMA, llama_cpp=LlamaCppRow("GEMMA", "gelu_pytorch_tanh")),
    "gemma2": Family(
        "Gemma 2",
        **_SANDWICH,
        softcap="attn_logit_softcapping",
        llama_cpp=LlamaCppRow("GEMMA2", "gelu_pytorch_tanh", full_every=2, softcapped=True, by_hidden=46),
    ),
    "gemma3_text": Family(
        "Gemma 3",
        **_SANDWICH,
        head_norms="head",
        rotary="by layer type",
        llama_cpp=LlamaCppRow("GEMMA3", "gelu_pytorch_tanh", full_every=6, by_hidden=62),
    ),
    "opt": Family(
        "OPT",
        **_TABLE,
        stack="model.decoder",
        output="out_proj",
        mlp=(None, "fc1", "fc2"),
        before=("self_attn_layer_norm", "final_layer_norm"),
        final_norm="final_layer_norm",
        eps=1e-5,  # torch's default
        norm_first="do_layer_norm_before",
        table=("embed_positions", 2),
        between=("project_in", "project_out"),
    ),
    "gpt2": Family(
        "GPT-2",
        **_TABLE,
        stack="transformer",
        layers="h",
        attention="attn",
        qkv=("c_attn",),
        output="c_proj",
        mlp=(None, "mlp.c_fc", "mlp.c_proj"),
        transposed=True,
        before=("ln_1", "ln_2"),
        final_norm="ln_f",
        eps="layer_norm_epsilon",
        table=("wpe", 0),
        refused=("add_cross_attention",),
        llama_cpp=LlamaCppRow("GPT2", "gelu_new"),
    ),
    "gpt_neox": Family(
        "GPT-NeoX, Pythia",
        stack="gpt_neox",
        attention="attention",
        qkv=("query_key_value",),
        qkv_by_head=True,
        output="dense",
        mlp=(None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        final_norm="final_layer_norm",
        rms=False,
        eps="layer_norm_eps",
        parallel="use_parallel_residual",
        grouped=False,
        partial=True,
        llama_cpp=LlamaCppRow("GPTNEOX", "gelu_new"),  # its only GELU is the one by tanh; Pythia's is exact
    ),
    "olmo2": Family(
        "OLMo 2",
        before=None,
        after=("post_attention_layernorm", "post_feedforward_layernorm"),
        head_norms="width",
        llama_cpp=LlamaCppRow("OLMO2"),
    ),
    "phi3": Family(
        "Phi-3",
        qkv=("qkv_proj",),
        mlp=("mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        partial=True,
        windowed="every layer",
        llama_cpp=LlamaCppRow("PHI3"),
    ),
    "smollm3": Family(
        "SmolLM3",
        unrotated="no_rope_layers",
        windowed="by layer",
        llama_cpp=LlamaCppRow("SMOLLM3", neighbours=True, unrotated_every=4),
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
    family = family_of(model.config)
    found = [layer.get_submodule(family.mlp[2]) for layer in decoder_layers(model)]
    check_plain(found, family)
    return found


def check_plain(modules: Iterable[nn.Module], family: Family) -> None:
    """Refuse projections that compute something else than their `weight` says: quantised ones, adapters (LoRA).

    By class, not by its name: PEFT's LoRA layers are called `Linear` too.

    Raises:
        ModelError: one is no `torch.nn.Linear`, in a family with transposed weights no `Conv1D` of transformers.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    plain = Conv1D if family.transposed else torch.nn.Linear
    for module in modules:
        if type(module) is not plain:
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

    inputs = 1 if family_of(model.config).transposed else 0
    norms = [m.get_parameter("weight").float().norm(dim=inputs) for m in down_projections(model)]
    return torch.stack(norms).detach().cpu()


def rope_parameters(config: Any) -> dict[str, dict[str, Any]]:
    """Parameters of the rotary embeddings of a supported model by type of layer, "" where there is one for all."""
    kind = family_of(config).rotary
    if kind is None:
        return {}
    return dict(config.rope_parameters) if kind == "by layer type" else {"": config.rope_parameters}


def head_dim_of(config: Any) -> int:
    """The width of a head of a supported model."""
    width = getattr(config, "head_dim", None) if family_of(config).grouped else None  # transformers' own rule
    return width or config.hidden_size // config.num_attention_heads


def norm_eps(config: Any) -> float:
    """What a supported model's norms add to the variance."""
    eps = family_of(config).eps
    return float(getattr(config, eps)) if isinstance(eps, str) else eps


# What configurations call the number of positions.
POSITION_FIELDS = ("max_position_embeddings", "max_seq_len", "context_length", "seq_length")


def positions_of(config: Any) -> int | None:
    """How many positions a model was made for; None where its configuration does not say.

    Qwen's recipe for YaRN leaves `max_position_embeddings` at the length before the scaling, and the frequencies are
    made for its `factor` times the original length. LongRoPE has other frequencies beyond the original length, which
    keys that were kept from before do not follow.

    Args:
        config: a transformers configuration, of any family.
    """
    config = config.get_text_config(decoder=True)
    named = (getattr(config, name, None) for name in POSITION_FIELDS)
    limit = next((number for number in named if number is not None and number > 0), None)
    if limit is None or config.model_type not in FAMILIES:
        return limit
    for rope in rope_parameters(config).values():
        original = rope.get("original_max_position_embeddings") or limit
        if rope["rope_type"] == "yarn":
            limit = max(limit, int(original * (rope.get("factor") or 1)))
        elif rope["rope_type"] == "longrope":
            limit = min(limit, original)
    return int(limit)


@dataclass(frozen=True)
class Positions:
    """How long a model's sequences can be.

    Attributes:
        model_type: of its configuration, for messages.
        limit: how many positions there are; None where the configuration does not say.
    """

    model_type: str
    limit: int | None

    @classmethod
    def of(cls, config: Any) -> Positions:
        """What a transformers configuration, of any family, says of them."""
        return cls(config.model_type, positions_of(config))

    def check(self, tokens: int, remedy: str) -> None:
        """Refuse a sequence that is longer; arguments and errors are those of `check_length`."""
        if self.limit is None or tokens <= self.limit:
            return
        family = FAMILIES.get(self.model_type)  # positions are a matter of every model, not of these families alone
        kind = "its position table has" if family is not None and family.table else "it was trained for"
        raise ModelError(f"{tokens:,} tokens do not fit {self.model_type}: {kind} {self.limit:,} positions; {remedy}")


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
    Positions.of(config).check(tokens, remedy)
