"""What a GGUF file states beyond what transformers' conversion reads: honoured where it is known, else refused by name.

The names are those of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and what they
mean is what llama.cpp computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from clada.errors import ModelError
from clada.models.architectures import Family, family_of, head_dim_of, rope_parameters

ROPE_FACTORS = "rope_freqs.weight"

# Pre-tokenizers of byte-level vocabularies that split text as GPT-2's does, which is transformers' conversion. These
# and the next ones gave llama.cpp's own ids for 408 strings each; a name that was not compared is refused.
AS_GPT2 = ("gpt-2", "phi-2", "jina-es", "jina-de")

# The same after every digit has become a piece of its own.
DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")

# LLaMA 3's: llama.cpp puts BOS before a text unless the file says otherwise.
BOS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")

# Statements about the vocabulary that transformers reads, or that change no ids of a text.
_TOKENIZER = {
    "model", "pre", "tokens", "scores", "token_type", "merges", "precompiled_charsmap", "add_space_prefix",
    "add_bos_token", "add_eos_token", "token_type_count", "remove_extra_whitespaces",
}  # fmt: skip


@dataclass(frozen=True)
class Statements:
    """The metadata of a GGUF file.

    Attributes:
        arch: llama.cpp's name of the family.
        fields: by name.
        tensors: names.
        rope_factors: what frequencies of the rotary embedding are divided by; None where the file does not say.
    """

    arch: str
    fields: dict[str, Any]
    tensors: tuple[str, ...]
    rope_factors: np.ndarray | None

    def get(self, key: str, default: Any = None) -> Any:
        """A statement about the architecture."""
        return self.fields.get(f"{self.arch}.{key}", default)


def read_statements(path: Path) -> Statements:
    """Read a file's metadata.

    Raises:
        ModelError: it is one part of several, or no model.
    """
    fields, tensors = read_gguf_metadata(str(path))  # arrays as their lengths: gguf's reader takes seconds for them
    if fields.get("split.count", 1) > 1:
        raise ModelError(f"it is one of {fields['split.count']} parts; merge them with llama-gguf-split --merge")
    factors = None
    if ROPE_FACTORS in tensors:
        (factors,) = (np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors if tensor.name == ROPE_FACTORS)
    return Statements(str(fields["general.architecture"]), fields, tuple(tensors), factors)


def corrected_config(stated: Statements, config: Any) -> Any:
    """A configuration with what the file states about the architecture.

    Args:
        stated: by the file.
        config: as transformers reads it.

    Raises:
        ModelError: a statement that is not understood, with its name.
    """
    family = family_of(config)
    known = set(GGUF_CONFIG_MAPPING.get(stated.arch, {}))
    for key, value in stated.fields.items():
        if key.startswith(f"{stated.arch}."):
            name = key.removeprefix(f"{stated.arch}.")
            if name not in known | set(_HONOURED) and _HARMLESS.get(name, ...) != value:
                raise ModelError(f"its statement {key} = {value!r} is not understood")
    values: dict[str, Any] = config.to_dict()
    for name, honour in _HONOURED.items():
        if (value := stated.get(name)) is not None:
            honour(stated, family, values, value)
    for name in ("bos", "eos", "pad"):  # a configuration's own defaults are those of one vocabulary
        stated_as = f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id"
        values[f"{name}_token_id"] = stated.fields.get(stated_as)
    corrected = type(config).from_dict(values)
    if family.scalar is not None and family.llama_cpp is not None:  # llama.cpp's own value, which files do not state
        by_hidden = corrected.num_hidden_layers == family.llama_cpp.by_hidden
        per_head = corrected.hidden_size // corrected.num_attention_heads
        values[family.scalar] = per_head if by_hidden else head_dim_of(corrected)
    width = stated.get("attention.key_length")
    if width is not None and width != head_dim_of(corrected):
        raise ModelError(f"its statement {stated.arch}.attention.key_length = {width} is not understood")
    _set_rotary(stated, family, values, corrected)
    return type(config).from_dict(values)


# Statements that say what holds anyway.
_HARMLESS = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.finetuned": True,
}


def _as_field(*names: str | None) -> Callable[..., None]:
    def honour(_stated: Statements, _family: Family, values: dict[str, Any], value: Any) -> None:
        for name in names:
            values[str(name)] = value

    return honour


def _cap(which: str) -> Callable[..., None]:
    def honour(stated: Statements, family: Family, values: dict[str, Any], value: Any) -> None:
        field = family.softcap if which.startswith("attn") else family.final_softcap
        if field is not None:
            values[field] = value or None
        elif value:
            raise ModelError(f"its statement {stated.arch}.{which} = {value} is not computed for {family.label}")

    return honour


def _window(stated: Statements, family: Family, values: dict[str, Any], value: int) -> None:
    if family.windowed == "every layer" or "sliding_attention" in (values.get("layer_types") or ()):
        values["sliding_window"] = value or None
    elif value:
        raise ModelError(f"its statement {stated.arch}.attention.sliding_window = {value} is not understood")


def _pattern(stated: Statements, family: Family, _values: dict[str, Any], value: Any) -> None:
    if family.llama_cpp is None or value != family.llama_cpp.full_every:
        raise ModelError(f"its statement {stated.arch}.attention.sliding_window_pattern = {value} is not understood")


def _head_width(_stated: Statements, family: Family, values: dict[str, Any], value: int) -> None:
    if family.grouped:
        values["head_dim"] = value


def _nothing(_stated: Statements, _family: Family, _values: dict[str, Any], _value: Any) -> None:
    """Honoured elsewhere, or already by transformers."""


_HONOURED: dict[str, Callable[..., None]] = {
    "attention.key_length": _head_width,
    "attention.value_length": _nothing,  # as the keys' for every family there is
    "attention.head_count_kv": _nothing,
    "attention.sliding_window": _window,
    "attention.sliding_window_pattern": _pattern,
    "attn_logit_softcapping": _cap("attn_logit_softcapping"),
    "final_logit_softcapping": _cap("final_logit_softcapping"),
    "vocab_size": _nothing,
    "tensor_data_layout": _nothing,
    "rope.dimension_count": _nothing,  # these by `_set_rotary`
    "rope.freq_base": _nothing,
    "rope.freq_base_swa": _nothing,
    "rope.scaling.type": _nothing,
    "rope.scaling.factor": _nothing,
    "rope.scaling.original_context_length": _nothing,
}


def _set_rotary(stated: Statements, family: Family, values: dict[str, Any], config: Any) -> None:
    """The parameters of the rotary embedding, as the file states them."""
    if family.rotary is None:
        # transformers reads these two of GPT-2 under names that its configuration does not have.
        values["n_positions"] = stated.get("context_length", config.n_positions)
        values["n_inner"] = stated.get("feed_forward_length")
        return
    base = float(stated.get("rope.freq_base", 10_000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    kind, factor = stated.get("rope.scaling.type", "none"), stated.get("rope.scaling.factor", 1.0)
    if kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        original = stated.get("rope.scaling.original_context_length") or config.max_position_embeddings
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    elif kind != "none":
        raise ModelError(f"its statement {stated.arch}.rope.scaling.type = {kind!r} is not understood")
    width, rotated = head_dim_of(config), stated.get("rope.dimension_count")
    if rotated is not None and rotated != width:
        if not family.partial:
            raise ModelError(f"its statement {stated.arch}.rope.dimension_count = {rotated} is not understood")
        rope["partial_rotary_factor"] = rotated / width
    if stated.rope_factors is not None:
        rope = llama3_rope(stated.rope_factors, rope, config)
    windowed = float(stated.get("rope.freq_base_swa", base))
    if family.rotary == "by layer type":
        before = rope_parameters(config)["sliding_attention"]
        windowed = float(stated.get("rope.freq_base_swa", before["rope_theta"]))
        values["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": windowed},
        }
        return
    if windowed != base:
        raise ModelError(f"its statement {stated.arch}.rope.freq_base_swa = {windowed} is not understood")
    values["rope_parameters"] = rope


def llama3_rope(factors: np.ndarray, rope: dict[str, Any], config: Any) -> dict[str, Any]:
    """The scaling of LLaMA 3's rotary embedding that a file's factors come from.

    llama.cpp's converter writes the factors and not the four numbers they are made of. Two of these are the same in
    every model (1 and 4); the largest factor is the third, and every factor between it and 1 gives the fourth.

    Args:
        factors: what each frequency is divided by, [width / 2].
        rope: parameters without scaling.
        config: of the model.

    Raises:
        ModelError: no four numbers give these factors.
    """
    refusal = ModelError(f"its tensor {ROPE_FACTORS} is not LLaMA 3's scaling, and no other is understood")
    if rope["rope_type"] != "default":
        raise refusal
    width = 2 * len(factors)
    wave = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    largest = float(factors.max())
    if np.allclose(factors, 1):
        return rope
    between = (factors > 1 + 1e-4) & (factors < largest * (1 - 1e-4))
    share = (1 / factors - 1 / largest) / (1 - 1 / largest)
    lengths = [round(length) for length in wave[between] * (3 * share[between] + 1)] or [2**k for k in range(5, 21)]
    for original in lengths:
        scaled = {
            **rope,
            "rope_type": "llama3",
            "factor": round(largest, 4),  # float32
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        probe = type(config).from_dict(config.to_dict() | {"rope_parameters": scaled})
        frequencies = ROPE_INIT_FUNCTIONS["llama3"](probe, "cpu")[0].numpy()
        # Both are float32: a frequency is known to one part in ten million, its factor too.
        same = len(frequencies) == len(factors) and np.allclose(2 * math.pi / frequencies, wave * factors, rtol=1e-5)
        if same:
            return scaled
    raise refusal


def pre_tokenizer_of(stated: Statements) -> PreTokenizer | None:
    """What splits text before byte pairs are merged, where transformers' conversion has another.

    Raises:
        ModelError: the file names one that is not known.
    """
    model, name = stated.fields.get("tokenizer.ggml.model"), stated.fields.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or name in AS_GPT2 or name in GGUF_PRE_TOKENIZER_SPLITS:
        return None  # vocabularies of other kinds are split by nothing
    whole = ByteLevel(add_prefix_space=False, use_regex=True)
    if name in DIGITS_FIRST:
        return Sequence([Digits(individual_digits=True), whole])
    if name == "default":  # llama.cpp's own, for vocabularies whose origin its converter did not know
        first = [Split(Regex(r"[\p{P}\$\+<=>\^~\|]+"), "isolated")]
        last = [Split(Regex(r"\p{N}+"), "isolated"), Split(Regex("[0-9][0-9][0-9]"), "isolated")]
        return Sequence([*first, Split(Regex(_GPT2), "isolated"), *last, ByteLevel(False, use_regex=False)])
    raise ModelError(f"its pre-tokenizer tokenizer.ggml.pre = {name!r} is not known")


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def correct_tokenizer(stated: Statements, tokenizer: Any) -> None:
    """Let a converted tokenizer split text and begin it as the file states.

    Raises:
        ModelError: a statement that is not understood, or that the converted tokenizer does not follow.
    """
    prefix = "tokenizer.ggml."
    for key, value in stated.fields.items():
        # What is switched off holds anyway, and the id of a special token changes no ids of a text.
        if not key.startswith(prefix) or value is False or key.endswith("_token_id"):
            continue
        if key.removeprefix(prefix) not in _TOKENIZER:
            raise ModelError(f"its statement {key} = {value!r} is not understood")
    splits = pre_tokenizer_of(stated)
    backend = tokenizer.backend_tokenizer
    if splits is not None:
        backend.pre_tokenizer = splits
    name, model = stated.fields.get(f"{prefix}pre"), stated.fields.get(f"{prefix}model")
    if name in BOS_FIRST:
        backend.model.ignore_merges = True  # a piece that is a token is that token, whatever the merges
    ids = tokenizer("a").input_ids
    bos = stated.fields.get(f"{prefix}bos_token_id")
    adds = stated.fields.get(f"{prefix}add_bos_token", model == "llama" or name in BOS_FIRST)
    if bos is not None and adds != (ids[:1] == [bos]):
        if not adds:
            raise ModelError(f"its statement {prefix}add_bos_token = False is not followed by transformers' tokenizer")
        token = tokenizer.convert_ids_to_tokens(bos)
        backend.post_processor = TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, bos)]
        )
    if stated.fields.get(f"{prefix}add_eos_token", False):
        raise ModelError(f"its statement {prefix}add_eos_token = True is not understood")
    if model == "llama":
        pieces = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)
        spaced = stated.fields.get(f"{prefix}add_space_prefix", True)
        if pieces[0].startswith("▁") != spaced:
            raise ModelError(f"its statement {prefix}add_space_prefix = {spaced} is not followed by transformers")
    if stated.fields.get(f"{prefix}remove_extra_whitespaces", False):
        raise ModelError(f"its statement {prefix}remove_extra_whitespaces = True is not understood")


def stop_ids(stated: Statements) -> int | list[int] | None:
    """Ids that end a text: of the end of the text, of a turn, and of a message; None where the file states none."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    stated_ids = [stated.fields.get(f"tokenizer.ggml.{name}") for name in names]
    ids = list(dict.fromkeys(int(i) for i in stated_ids if i is not None))
    return ids if len(ids) > 1 else ids[0] if ids else None
