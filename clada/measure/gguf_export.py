"""A model's weights as a GGUF file that llama.cpp computes as transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from clada.errors import ModelError
from clada.models.architectures import (
    FAMILIES,
    LlamaCppRow,
    decoder_layers,
    down_norms,
    family_of,
    head_dim_of,
    norm_eps,
    rope_parameters,
)
from clada.system.files import replacing

Kind = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def write_gguf(model: transformers.PreTrainedModel, path: Path, kind: Kind) -> None:
    """Write a model's weights for llama.cpp.

    The vocabulary is a placeholder of the right size: prompts are token ids. Norms and biases stay float32, as do
    learned positions; a row that the blocks of `kind` do not divide becomes F16. In a Q4_0 or Q4_1 file the embeddings
    and the output head are Q8_0, which llama.cpp's own quantiser chooses for them where it cannot have Q6_K.

    Args:
        model: a transformers causal language model of a family that llama.cpp computes in the same way.
        path: file to write; whole or not there at all.
        kind: precision of the weight matrices.

    Raises:
        ModelError: llama.cpp does not know the family, or not this variant of it.
    """
    row = _row_of(model)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[row.arch]])
        try:
            _add_hyperparameters(writer, model, row)
            _add_placeholder_vocabulary(writer, model)
            for name, tensor in _tensors(model, row):
                values = tensor.contiguous().numpy()
                stored_as = _stored_as(name, values, kind)
                writer.add_tensor(name, gguf.quants.quantize(values, stored_as), raw_dtype=stored_as)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _row_of(model: transformers.PreTrainedModel) -> LlamaCppRow:
    """How llama.cpp computes a model as transformers does.

    Raises:
        ModelError: it would compute something else, or cannot at all.
    """
    config = model.config
    family = family_of(config)
    row = family.llama_cpp
    if row is None:
        known = ", ".join(known.label for known in FAMILIES.values() if known.llama_cpp is not None)
        raise ModelError(
            f"{family.label} cannot be written for llama.cpp; compare with transformers alone, or use one of {known}"
        )
    layers = range(1, config.num_hidden_layers + 1)
    layer_types = ["full_attention" if layer % row.full_every == 0 else "sliding_attention" for layer in layers]
    ropes = rope_parameters(config)
    windowed = ropes.get("sliding_attention", {"rope_type": "default"})
    rope = _rope(config)
    # What a configuration can set and llama.cpp has built in: the setting, its value here, the values there. A field
    # that transformers does not read for the family is none.
    settings: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("activation", getattr(config, family.activation), (row.activation,)),
        ("rope_type", rope.get("rope_type", "default"), row.rope_types),
        ("rope_type of windowed layers", windowed["rope_type"], ("default",)),
        *((name, getattr(config, name), (None, False)) for name in family.refused),
    ]
    if family.unrotated is not None:
        unrotated = [layer for layer in layers if not getattr(config, family.unrotated)[layer - 1]]
        built_in = [layer for layer in layers if row.unrotated_every and layer % row.unrotated_every == 0]
        settings.append((f"layers of {family.unrotated}", unrotated, (built_in,)))
    if family.windowed == "by layer":
        settings.append(("layer_types", config.layer_types, (layer_types,)))
    for name in (family.softcap, family.final_softcap):
        if name is not None:
            settings.append((f"softcapping by {name}", bool(getattr(config, name)), (row.softcapped,)))
    scaling = {layer.get_submodule(family.attention).scaling for layer in decoder_layers(model)}
    settings.append(("scores of attention scaled by", scaling, ({head_dim_of(config) ** -0.5},)))
    for setting, value, known_values in settings:
        if value not in known_values:
            raise ModelError(
                f"llama.cpp cannot compute {family.label} with {setting} = {value!r}; compare with transformers alone"
            )
    return row


def _rope(config: Any) -> dict[str, Any]:
    """Rotary parameters of layers that see all tokens; empty without rotary embedding."""
    ropes = rope_parameters(config)
    return ropes.get("full_attention", ropes.get("", {}))


def _add_hyperparameters(writer: gguf.GGUFWriter, model: transformers.PreTrainedModel, row: LlamaCppRow) -> None:
    config, family = model.config, family_of(model.config)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(down_norms(model).shape[1])
    writer.add_head_count(config.num_attention_heads)
    context = config.max_position_embeddings
    window = None
    if family.windowed == "every layer" or (
        family.windowed == "by layer" and "sliding_attention" in config.layer_types
    ):
        window = config.sliding_window
    if window and row.full_every == 1:
        context = min(context, window)  # Mistral's window is unknown there: all is the same until it is full
    elif window:
        writer.add_sliding_window(window)
    writer.add_context_length(context)
    add_eps = writer.add_layer_norm_rms_eps if family.rms else writer.add_layer_norm_eps
    add_eps(norm_eps(config))
    rope = _rope(config)
    if not rope:
        return
    width = head_dim_of(config)
    writer.add_head_count_kv(config.num_key_value_heads if family.grouped else config.num_attention_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    if family.parallel is not None:
        writer.add_parallel_residual(getattr(config, family.parallel))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base_swa(rope_parameters(config).get("sliding_attention", rope)["rope_theta"])
    if row.softcapped:
        writer.add_attn_logit_softcapping(getattr(config, str(family.softcap)))
        writer.add_final_logit_softcapping(getattr(config, str(family.final_softcap)))


def _add_placeholder_vocabulary(writer: gguf.GGUFWriter, model: transformers.PreTrainedModel) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    writer.add_tokenizer_model("t5")  # the kind that asks for the least
    writer.add_token_list([f"<{token}>" for token in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    end = model.config.eos_token_id
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end or 0)


def _tensors(model: transformers.PreTrainedModel, row: LlamaCppRow) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 values of every weight as llama.cpp expects them; a tied output head is left out."""
    config, family = model.config, family_of(model.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[row.arch], config.num_hidden_layers)
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().cpu().float()
        if name in transposed:
            tensor = tensor.T
        if family.qkv_by_head and f".{family.qkv[0]}." in name:
            tensor = tensor.unflatten(0, (config.num_attention_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        if name.endswith("norm.weight") and family.unit_offset:
            tensor = tensor + 1.0
        if row.neighbours and (".q_proj." in name or ".k_proj." in name):
            # [head, half, dimension of the half] becomes [head, dimension of the half, half].
            tensor = tensor.unflatten(0, (-1, 2, head_dim_of(config) // 2)).transpose(1, 2).flatten(0, 2)
        name_there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name_there is None:
            raise ModelError(f"llama.cpp has no place for the weights {name}; compare with transformers alone")
        yield name_there, tensor
    if _rope(config).get("rope_type") == "llama3":
        dim = head_dim_of(config)
        unscaled = _rope(config)["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        yield "rope_freqs.weight", unscaled / model.model.rotary_emb.inv_freq.cpu()


def _stored_as(name: str, values: np.ndarray, kind: Kind) -> gguf.GGMLQuantizationType:
    """The type of a tensor in a file of this kind."""
    types = gguf.GGMLQuantizationType
    if values.ndim == 1 or name == "position_embd.weight":
        return types.F32
    stored_as = (
        types.Q8_0 if kind in ("Q4_0", "Q4_1") and name in ("token_embd.weight", "output.weight") else types[kind]
    )
    block, _bytes = gguf.GGML_QUANT_SIZES[stored_as]
    return stored_as if values.shape[-1] % block == 0 else types.F16
