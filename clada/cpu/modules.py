"""Prompts in transformers' modules on packed weights, where statistics of neurons can be collected.

The kernels run prompts too (`clada.cpu.decoder`), of weights without modules; nothing that only decodes needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from clada.cpu.kernels.arguments import Scratch
from clada.cpu.kernels.vectors import LANES
from clada.cpu.pack import PackedModel
from clada.cpu.precision import Precision
from clada.methods.observed import prompt_statistics

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


@torch.inference_mode()
def observed_prompt(
    weights: PackedModel, prompt: Sequence[int], statistics: str | None, scratch: Scratch, b: int
) -> np.ndarray | None:
    """Run a prompt but its last token, into the kernels' caches.

    Args:
        weights: the packed model.
        prompt: token ids, at least one.
        statistics: kind of `clada.methods.observed.prompt_statistics`.
        scratch: of the decoder.
        b: number of the sequence there.

    Returns:
        the statistics, float32 [L, N]; None where none are asked for.
    """
    with prompt_statistics(weights.down, weights.down_norm, statistics) as of_prompt:
        if len(prompt) > 1:
            cache = new_cache(weights)
            run_prompt(weights, torch.tensor([prompt[:-1]]), cache)
            _copy_cache(weights, cache, scratch, b, len(prompt) - 1)
    return of_prompt


def _copy_cache(weights: PackedModel, cache: DynamicCache, scratch: Scratch, b: int, n: int) -> None:
    """Copy keys and values of n positions; sliding windows keep only their last ones."""
    blocks, precision = -(-n // LANES), weights.precision.unscaled
    for layer, cached in enumerate(cache.layers):
        keys, values = cached.keys[0], cached.values[0]
        positions = slice(n - keys.shape[1], n)
        scratch.values[b, layer, :, positions] = precision.array(values.to(precision.storage))
        # Without the position that the next token's window no longer reaches.
        in_window = values[:, max(0, values.shape[1] + 1 - int(weights.constants.window[layer])) :]
        scratch.value_sum[b, layer] = precision.rounded(in_window).sum(1).numpy()
        padded = keys.new_zeros(keys.shape[0], blocks * LANES, keys.shape[2])
        padded[:, positions] = keys
        blocked = padded.unflatten(1, (blocks, LANES)).transpose(2, 3).flatten(2)
        scratch.keys[b, layer, :, :blocks] = precision.array(blocked.to(precision.storage))
