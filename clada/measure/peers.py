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
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import transformers
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from clada.errors import InputError, ModelError
from clada.measure.gguf_export import Kind, write_gguf
from clada.measure.llama_server import serve
from clada.models.open import model_revision
from clada.system.cache import cache_dir, locked_scratch
from clada.system.machine import torch_threads

PATIENCE_S = 1800  # with llama.cpp: a long prompt on a slow machine


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
        with torch_threads(self._threads):
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=DynamicCache(config=self._model.config),
                max_new_tokens=new_tokens,
                streamer=clock,
            )
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

    def prompt_speed(self, prompt_ids: list[int]) -> float:
        """Tokens per second of running a prompt, all of it.

        Args:
            prompt_ids: tokens of the prompt.

        Returns:
            tokens/s.

        Raises:
            ModelError: the prompt does not fit the context.
        """
        timings = self._complete(prompt_ids, 1, cache_prompt=False)["timings"]
        return float(timings["prompt_n"] / (timings["prompt_ms"] / 1000))

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
