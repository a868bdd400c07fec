"""A model's weights as a GGUF file that llama.cpp computes as transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from clada.errors import ModelError
from clada.system.files import replacing

Kind = Literal["F32", "F16", "BF16", "Q8_0", "Q4_1"]


@dataclass(frozen=True)
class _Architecture:
    """How llama.cpp computes one family.

    Attributes:
        arch: its name there.
        activation: of the MLP, as transformers calls it.
        neighbours: rotary embedding turns neighbouring dimensions of a head, not those half a head apart.
        norm_offset: added to the weight of every norm; Gemma's norms multiply by 1 + weight.
        full_every: every so many-th layer attends to all tokens, the others to a window; 1: all to all tokens.
    """

    arch: gguf.MODEL_ARCH
    activation: str
    neighbours: bool = False
    norm_offset: float = 0.0
    full_every: int = 1


_LLAMA = _Architecture(gguf.MODEL_ARCH.LLAMA, "silu", neighbours=True)

# By the model's class, as in llama.cpp's own converter.
_ARCHITECTURES = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _Architecture(gguf.MODEL_ARCH.QWEN2, "silu"),
    "Qwen3ForCausalLM": _Architecture(gguf.MODEL_ARCH.QWEN3, "silu"),
    "GemmaForCausalLM": _Architecture(gguf.MODEL_ARCH.GEMMA, "gelu_pytorch_tanh", norm_offset=1.0),
    "Gemma2ForCausalLM": _Architecture(gguf.MODEL_ARCH.GEMMA2, "gelu_pytorch_tanh", norm_offset=1.0, full_every=2),
    "Gemma3ForCausalLM": _Architecture(gguf.MODEL_ARCH.GEMMA3, "gelu_pytorch_tanh", norm_offset=1.0, full_every=6),
    "GPT2LMHeadModel": _Architecture(gguf.MODEL_ARCH.GPT2, "gelu_new"),
}

_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def write_gguf(model: transformers.PreTrainedModel, path: Path, kind: Kind) -> None:
    """Write a model's weights for llama.cpp.

    The vocabulary is a placeholder of the right size: prompts are token ids. Norms and biases stay float32, as do
    learned positions; a row that the blocks of `kind` do not divide becomes F16. In a Q4_1 file the embeddings and the
    output head are Q8_0, which llama.cpp's own quantiser chooses for them where it cannot have Q6_K.

    Args:
        model: a transformers causal language model of a family that llama.cpp computes in the same way.
        path: file to write; whole or not there at all.
        kind: precision of the weight matrices.

    Raises:
        ModelError: llama.cpp does not know the family, or not this variant of it.
    """
    architecture = _architecture_of(model)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[architecture.arch])
        try:
            _add_hyperparameters(writer, model.config, architecture)
            _add_placeholder_vocabulary(writer, model)
            for name, tensor in _tensors(model, architecture):
                values = tensor.contiguous().numpy()
                stored_as = _stored_as(name, values, kind)
                writer.add_tensor(name, gguf.quants.quantize(values, stored_as), raw_dtype=stored_as)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _architecture_of(model: transformers.PreTrainedModel) -> _Architecture:
    """The row of a model that llama.cpp computes as transformers does.

    Raises:
        ModelError: it would compute something else, or cannot at all.
    """
    architecture = _ARCHITECTURES.get(type(model).__name__)
    if architecture is None:
        raise ModelError(
            f"{type(model).__name__} cannot be written for llama.cpp; "
            f"compare with transformers alone, or use one of {', '.join(_ARCHITECTURES)}"
        )
    config = model.config
    layers = range(1, config.num_hidden_layers + 1)
    layer_types = [
        "full_attention" if layer % architecture.full_every == 0 else "sliding_attention" for layer in layers
    ]
    activation = next(
        getattr(config, name)
        for name in ("hidden_activation", "hidden_act", "activation_function")
        if getattr(config, name, None)
    )
    rope_types = ("default", "linear", *(["llama3"] if architecture is _LLAMA else []))
    windowed = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention", {})
    softcaps = tuple(bool(getattr(config, name, None)) for name in _SOFTCAPS)
    softcapped = architecture.arch is gguf.MODEL_ARCH.GEMMA2
    # What a configuration can set and llama.cpp has built in: the setting, its value here, the values there.
    settings = [
        ("activation", activation, (architecture.activation,)),
        ("layer_types", getattr(config, "layer_types", None) or layer_types, (layer_types,)),
        ("rope_type", _rope(config).get("rope_type", "default"), rope_types),
        ("rope_type of windowed layers", windowed.get("rope_type", "default"), ("default",)),
        (" and ".join(_SOFTCAPS), softcaps, ((softcapped, softcapped),)),
        ("query_pre_attn_scalar", getattr(config, "query_pre_attn_scalar", _head_dim(config)), (_head_dim(config),)),
        ("use_bidirectional_attention", getattr(config, "use_bidirectional_attention", None), (None, False)),
        ("scale_attn_weights", getattr(config, "scale_attn_weights", True), (True,)),
        ("scale_attn_by_inverse_layer_idx", getattr(config, "scale_attn_by_inverse_layer_idx", False), (False,)),
    ]
    for setting, value, known in settings:
        if value not in known:
            raise ModelError(
                f"llama.cpp cannot compute {type(model).__name__} with {setting} = {value!r}; "
                "compare with transformers alone"
            )
    return architecture


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: Any, layer_type: str = "full_attention") -> dict[str, Any]:
    """Rotary parameters of a type of layer; empty without rotary embedding."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return parameters.get(layer_type, parameters)


def _add_hyperparameters(writer: gguf.GGUFWriter, config: Any, architecture: _Architecture) -> None:
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    context = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if window and architecture.full_every == 1:
        context = min(context, window)  # Mistral's window is unknown there: all is the same until it is full
    elif window:
        writer.add_sliding_window(window)
    writer.add_context_length(context)
    if architecture.arch is gguf.MODEL_ARCH.GPT2:
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base_swa(_rope(config, "sliding_attention")["rope_theta"])
    if architecture.arch is gguf.MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_placeholder_vocabulary(writer: gguf.GGUFWriter, model: transformers.PreTrainedModel) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    writer.add_tokenizer_model("t5")  # the kind that asks for the least
    writer.add_token_list([f"<{token}>" for token in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    end = model.config.eos_token_id
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end or 0)


def _tensors(model: transformers.PreTrainedModel, architecture: _Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 values of every weight as llama.cpp expects them; a tied output head is left out."""
    config = model.config
    names = gguf.get_tensor_name_map(architecture.arch, config.num_hidden_layers)
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().cpu().float()
        if name in transposed:
            tensor = tensor.T
        if name.endswith("norm.weight"):
            tensor = tensor + architecture.norm_offset
        if architecture.neighbours and (".q_proj." in name or ".k_proj." in name):
            # [head, half, dimension of the half] becomes [head, dimension of the half, half].
            tensor = tensor.unflatten(0, (-1, 2, _head_dim(config) // 2)).transpose(1, 2).flatten(0, 2)
        name_there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name_there is None:
            raise ModelError(f"llama.cpp has no place for the weights {name}; compare with transformers alone")
        yield name_there, tensor
    if _rope(config).get("rope_type") == "llama3":
        dim = _head_dim(config)
        unscaled = _rope(config)["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        yield "rope_freqs.weight", unscaled / model.model.rotary_emb.inv_freq.cpu()


def _stored_as(name: str, values: np.ndarray, kind: Kind) -> gguf.GGMLQuantizationType:
    """The type of a tensor in a file of this kind."""
    types = gguf.GGMLQuantizationType
    if values.ndim == 1 or name == "position_embd.weight":
        return types.F32
    stored_as = types.Q8_0 if kind == "Q4_1" and name in ("token_embd.weight", "output.weight") else types[kind]
    block, _bytes = gguf.GGML_QUANT_SIZES[stored_as]
    return stored_as if values.shape[-1] % block == 0 else types.F16
