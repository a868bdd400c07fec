"""How the next token is chosen from the model's distribution."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clada.errors import InputError

# From logits [V], the most likely token and the tokens so far, the token chosen.
Chooser = Callable[[np.ndarray, int, Sequence[int]], int]

# What transformers' greedy `generate` would obey in a generation config, and the engine does not: a value, and whether
# it asks for something.
UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "num_beams": lambda value: value > 1,
    "num_return_sequences": lambda value: value > 1,
    "guidance_scale": lambda value: value != 1,
    "penalty_alpha": lambda value: value > 0,
    "dola_layers": lambda _value: True,
    "constraints": lambda _value: True,
    "force_words_ids": lambda _value: True,
    "stop_strings": lambda value: len(value) > 0,
    "max_time": lambda _value: True,
    "token_healing": bool,
}


def check_generation_config(config: Any) -> None:
    """Refuse what a model's generation config asks for and the engine does not do.

    Raises:
        InputError: which names it.
    """
    for name, asks in UNSUPPORTED.items():
        value = getattr(config, name, None)
        if value is not None and asks(value):
            raise InputError(
                f"the model's generation config asks for {name}={value!r}, which the engine does not do; set "
                f"model.generation_config.{name} to None"
            )


def processors_of(model: Any, config: Any, prompt: Sequence[int], max_new_tokens: int) -> LogitsProcessorList:
    """What transformers' `generate(do_sample=False)` would change logits with, by a model's generation config.

    Args:
        model: a transformers model that can generate.
        config: its generation config.
        prompt: token ids.
        max_new_tokens: that will follow.

    Returns:
        processors, to be called with token ids [1, T] and logits [1, V]; mostly none.

    Raises:
        InputError: a value that no processor takes.
    """
    config = copy.deepcopy(config)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    config.do_sample, config.max_length = False, len(prompt) + max_new_tokens
    ids = torch.tensor([list(prompt)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about options of encoders
            model._prepare_special_tokens(config, device="cpu")
            processors: LogitsProcessorList = model._get_logits_processor(
                config, input_ids_seq_length=ids.shape[1], encoder_input_ids=ids, device="cpu"
            )
    except (ValueError, TypeError) as problem:
        reason = str(problem).split("\n")[0]
        raise InputError(f"the model's generation config cannot be used ({reason}); correct it") from None
    return processors


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy, else at least 1e-6.
        top_p: sample from the smallest set of tokens with this probability; 1 keeps all.
        top_k: sample from so many tokens; 0 keeps all.
        seed: of the draws; None: another one every time. Every prompt of a batch has a stream of draws of its own,
            made from the seed and the prompt's number; that of the first is the seed's own.

    Raises:
        InputError: a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        # Below a millionth logits would leave the range of float32.
        temperate = self.temperature == 0 or 1e-6 <= self.temperature < math.inf
        if not (temperate and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise InputError(
                "sampling needs a temperature of 0 or at least 1e-6, top-p within (0, 1] and top-k of at least 0"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} is outside 0 to 2^63 - 1")

    def chooser(self, stream: int = 0, processors: LogitsProcessorList | None = None) -> Chooser:
        """How tokens of one sequence are chosen.

        Args:
            stream: number of the sequence, which draws differently from others of the same seed.
            processors: change the logits before, given the tokens so far.
        """
        if self.temperature == 0 and not processors:
            return lambda _logits, best, _ids: best
        change = LogitsProcessorList(processors or [])
        if self.temperature == 0:

            def most_likely(logits: np.ndarray, _best: int, ids: Sequence[int]) -> int:
                return int(change(torch.tensor([ids]), torch.from_numpy(logits)[None].clone())[0].argmax())

            return most_likely
        change.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            change.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            change.append(TopPLogitsWarper(self.top_p))
        generator = self._generator(stream)

        def drawn(logits: np.ndarray, _best: int, ids: Sequence[int]) -> int:
            history = torch.tensor([ids]) if processors else None
            scores = change(history, torch.from_numpy(logits)[None].clone())[0]
            return int(torch.multinomial(scores.softmax(-1), 1, generator=generator)[0])

        return drawn

    def _generator(self, stream: int) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        elif stream == 0:
            generator.manual_seed(self.seed)
        else:
            own = np.random.SeedSequence(self.seed, spawn_key=(stream,)).generate_state(1, np.uint64)[0]
            generator.manual_seed(int(own) >> 1)  # torch takes 63 bits
        return generator


GREEDY = Sampling()
