"""Attention that leaves out values of little weight, as a function that transformers calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from clada.cpu.pack import PackedModel
from clada.methods.rules import keeps_value, mean_for_left_out
from clada.models.hooks import Hooks


def selective_attention(
    module: torch.nn.Module,  # noqa: ARG001  # transformers gives it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    least_weight: float,
    least_positions: int,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one token that gives the mean of all values to positions whose weights are small.

    An attention function for transformers; the mean in the place of what is left out is SparQ's (Ribar et al. 2024).

    Args:
        module: the attention layer.
        query: [B, heads, 1, D].
        key: [B, kv heads, C, D].
        value: the same shape.
        attention_mask: added to the scores, or None.
        scaling: of scores.
        softcap: of scores.
        least_weight: as a share of the average weight; a position's value counts for all heads that share it if one
            of them gives it as much.
        least_positions: to be seen, else all values count.

    Returns:
        [B, 1, heads, D], None.
    """
    batch, heads, _, width = query.shape
    shared = query.reshape(batch, key.shape[1], -1, width)  # heads that share keys side by side
    scores = shared @ key.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., -key.shape[2] :]
    visible = scores[:, :1, :1] > torch.finfo(scores.dtype).min / 2
    weights, seen = scores.softmax(-1), visible.sum(-1, keepdim=True)
    kept = keeps_value(weights, seen, least_weight, least_positions)
    mean = (value * visible.transpose(2, 3)).sum(2, keepdim=True) / seen
    mixed = mean_for_left_out(weights, kept, value, mean)
    return mixed.reshape(batch, 1, heads, width), None


AttentionInterface.register("clada", selective_attention)


AttentionMaskInterface.register("clada", eager_mask)


@contextmanager
def attention_of(weights: PackedModel, least_weight: float, least_positions: int) -> Iterator[dict[str, float]]:
    """Within the block the model attends selectively, given these arguments; dense where the least weight is 0."""
    if least_weight == 0:
        yield {}
        return
    with Hooks() as hooks:
        hooks.change(weights.model.config, "_attn_implementation", "clada")
        yield {"least_weight": least_weight, "least_positions": least_positions}
