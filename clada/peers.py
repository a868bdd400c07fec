"""The dense engines that `clada bench` compares with: transformers' generate, and llama.cpp on the same weights.

llama.cpp comes with the optional package xllamacpp. It reads GGUF files, so the weights of the model at hand are
written as one, at the precision it is to be compared at.

    with LlamaCpp(cached_gguf(model, "F16"), threads=2, context=1024) as peer:
        peer.decode_speed(prompt_ids, new_tokens=128)
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import gguf
import numpy as np
import torch
import transformers
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.pytorch_utils import Conv1D

from clada.assets import cache_dir, locked_scratch
from clada.errors import InputError, ModelError
from clada.llama_server import serve
from clada.models import model_revision
from clada.paths import replacing

PATIENCE_S = 1800  # with llama.cpp: a long prompt on a slow machine

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


def cached_gguf(model: transformers.PreTrainedModel, kind: Kind) -> Path:
    """The GGUF file of a model that `clada.load_model` opened, written into the cache when it is not there yet.

    Args:
        model: with its weights unchanged: the file is looked up by the model's name and revision.
        kind: precision of the weights.

    Returns:
        Path of the file.

    Raises:
        ModelError: the model has no name; or as for `write_gguf`.
        AssetError: the cache folder cannot be written to.
    """
    if not model.name_or_path:
        raise ModelError("a model without a name has no place in the cache; open it with clada.load_model")
    revision = model_revision(model.name_or_path).removeprefix("sha256:")
    dtype = str(model.dtype).removeprefix("torch.")  # weights that were rounded at loading are other weights
    path = cache_dir() / "gguf" / f"{revision}-{dtype}-{kind}.gguf"
    if not path.is_file():
        with locked_scratch(path) as scratch:
            if not path.is_file():  # another process may have finished it while this one waited for the lock
                write_gguf(model, scratch / path.name, kind)
                (scratch / path.name).replace(path)
    return path


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


class Transformers:
    """transformers' greedy `generate` in float32 with a dynamic key-value cache.

    Args:
        model: a transformers causal language model.
        threads: for torch.

    Attributes:
        version: of transformers.

    Raises:
        ModelError: the model is not in float32.
    """

    def __init__(self, model: transformers.PreTrainedModel, threads: int) -> None:
        if model.dtype != torch.float32:
            raise ModelError(f"transformers is timed in float32 and the model is {model.dtype}; load it as float32")
        self.version: str = transformers.__version__
        self._threads = threads
        # A shallow copy shares the weights. Its settings name no end of text, no sampling and no penalties; the
        # model's own would fill whatever a call leaves open.
        self._model = copy.copy(model)
        self._model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)

    def decode_speed(self, prompt_ids: list[int], new_tokens: int) -> float:
        """Tokens per second of decoding; the prompt's time is not counted.

        Args:
            prompt_ids: tokens of the prompt.
            new_tokens: tokens to generate, at least 2: the first comes out of the prompt's pass.

        Returns:
            tokens/s.

        Raises:
            InputError: fewer than 2 new tokens.
        """
        _check_timeable(new_tokens)
        prompt = torch.tensor([prompt_ids], device=self._model.device)
        clock = _Clock()
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=DynamicCache(config=self._model.config),
                max_new_tokens=new_tokens,
                streamer=clock,
            )
        finally:
            torch.set_num_threads(threads_before)
        _prompt, first, *_others, last = clock.times
        return (new_tokens - 1) / (last - first)


class _Clock(BaseStreamer):
    """Notes when generate hands over the prompt and then each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class LlamaCpp:
    """llama.cpp on the CPU, in a process of its own. A context manager: the process ends with it.

    Flash attention and the cache's precision (float16) are llama.cpp's defaults.

    Args:
        path: a GGUF file.
        threads: for prompt and decoding.
        context: the most tokens that a prompt and its continuation take together.
        exact: no flash attention, and the cache in float32; for tests of what is computed.

    Attributes:
        version: of xllamacpp; its last number is llama.cpp's build.

    Raises:
        InputError: xllamacpp is not installed.
        ModelError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, threads: int, context: int, *, exact: bool = False) -> None:
        try:
            import xllamacpp
        except ImportError as error:  # not there, or a system library it needs is not
            raise InputError(
                f"llama.cpp cannot be loaded ({error}); install it with pip install 'clada[bench]'"
            ) from None
        self.version: str = xllamacpp.__version__
        spawning = multiprocessing.get_context("spawn")
        self._connection, other = spawning.Pipe()
        # A daemon: it ends with this process even where nobody closes it.
        self._process = spawning.Process(target=serve, args=(other, str(path), threads, context, exact), daemon=True)
        self._process.start()
        other.close()
        try:
            complaint = self._answer()
        except ModelError:
            complaint = "it ended"
        if complaint is not None:
            self.close()
            raise ModelError(f"llama.cpp cannot load {path}; what it says is on stderr")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()  # its own way to end hangs now and then
        self._process.join()

    def decode_speed(self, prompt_ids: list[int], new_tokens: int) -> float:
        """Tokens per second of greedy decoding, past any end of text; the prompt's time is not counted.

        Args:
            prompt_ids: tokens of the prompt.
            new_tokens: tokens to generate, at least 2: the first comes out of the prompt's pass.

        Returns:
            tokens/s.

        Raises:
            InputError: fewer than 2 new tokens.
            ModelError: prompt and new tokens do not fit the context.
        """
        _check_timeable(new_tokens)
        timings = self._complete(prompt_ids, new_tokens)["timings"]
        # Its clock starts when the first token has come out of the prompt's pass. Older versions divide by one pass
        # too many in `predicted_per_second`.
        return (new_tokens - 1) / (timings["predicted_ms"] / 1000)

    def _complete(self, prompt_ids: list[int], tokens: int, **options: Any) -> dict[str, Any]:
        """The server's answer: `tokens` greedy tokens after the prompt."""
        request = {
            "prompt": prompt_ids,
            "max_tokens": tokens,
            "ignore_eos": True,
            "samplers": ["top_k"],  # the others would sort the vocabulary for nothing
            "top_k": 1,
            **options,
        }
        answer: dict[str, Any] = self._answer(request)
        if "error" in answer:
            raise ModelError(f"llama.cpp refuses the prompt ({answer['error']['message']}); shorten it")
        if answer["timings"]["predicted_n"] != tokens:
            raise ModelError(
                f"llama.cpp's context is full after {answer['timings']['predicted_n']} new tokens; ask for fewer"
            )
        return answer

    def _answer(self, request: dict[str, Any] | None = None) -> Any:
        try:
            if request is not None:
                self._connection.send(request)
            if self._connection.poll(PATIENCE_S):
                return self._connection.recv()
        except (EOFError, OSError):
            raise ModelError("llama.cpp's process ended; what it says is on stderr") from None
        self.close()
        raise ModelError(f"llama.cpp did not answer in {PATIENCE_S // 60} minutes; ask for fewer tokens")


def _check_timeable(new_tokens: int) -> None:
    if new_tokens < 2:
        raise InputError(f"{new_tokens} new tokens leave no decoding to time; ask for 2 or more")


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
