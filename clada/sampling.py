"""How the next token is chosen from the model's distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clada.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy, else at least 1e-6.
        top_p: sample from the smallest set of tokens with this probability; 1 keeps all.
        top_k: sample from so many tokens; 0 keeps all.
        seed: of the draws; None: another one every time.

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

    def chooser(self) -> Callable[[np.ndarray, int], int]:
        """A function from logits [V] and the most likely token to the token chosen."""
        if self.temperature == 0:
            return lambda _logits, best: best
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)

        def choose(logits: np.ndarray, _best: int) -> int:
            scores = warpers(None, torch.from_numpy(logits)[None].clone())[0]
            return int(torch.multinomial(scores.softmax(-1), 1, generator=generator)[0])

        return choose


GREEDY = Sampling()
