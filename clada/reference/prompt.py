"""Prompts in transformers' modules on packed weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from clada.cpu.pack import PackedModel
from clada.cpu.precision import Precision

PIECE = 1024  # tokens of a prompt that run at once: enough for the full speed of matrix products


class RoundedCache(DynamicCache):
    """Keys and values as numbers that a precision stores without scales.

    Args:
        config: of the model.
        precision: of its weights.
    """

    def __init__(self, config: Any, precision: Precision) -> None:
        super().__init__(config=config)
        self._rounded = precision.unscaled.rounded

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Round, then go on as usual."""
        return super().update(self._rounded(key_states), self._rounded(value_states), *args, **kwargs)


def new_cache(weights: PackedModel) -> DynamicCache:
    """An empty cache for a packed model."""
    return RoundedCache(weights.model.config, weights.precision)


def run_prompt(weights: PackedModel, ids: torch.Tensor, cache: DynamicCache) -> None:
    """Fill a cache with tokens [1, T], a piece after the other.

    At once, attention would need memory for T^2 positions, also in layers whose window lets a token see few of them.
    """
    for piece in ids.split(PIECE, dim=1):
        weights.stack(piece, past_key_values=cache, use_cache=True)
