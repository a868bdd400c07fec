"""Attention of many tokens after a cache on a CPU, without computing what the causal mask hides.

Given a mask, torch's kernel computes every score and then hides those of later tokens and, with a sliding window, of
all that lie before it: on Gemma 3's windows of 512 at 2,049 tokens nine of ten. In blocks of queries, each against the
keys its block can see, most of that is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from clada.models.hooks import Hooks

NAME = "cladastats"

BLOCK = 256  # queries


@contextmanager
def causal_blocks(model: Any) -> Iterator[None]:
    """Within the block the model attends as `attend` does, where it would with torch's kernel on a CPU.

    Only for runs of one sequence at a time, from a cache or from nothing: a mask the caller gives is not looked at.
    """
    with Hooks() as hooks:
        if model.config._attn_implementation == "sdpa" and model.device.type == "cpu":
            hooks.change(model.config, "_attn_implementation", NAME)
        yield


def attend(
    module: torch.nn.Module,  # noqa: ARG001  # transformers gives it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of the last tokens of a sequence, in blocks of them.

    An attention function for transformers.

    Args:
        module: the attention layer.
        query: [B, heads, T, D], of the last T tokens.
        key: [B, kv heads, C, D], of the C tokens up to the last one, C >= T; with a window, those before it may lack.
        value: the same shape.
        attention_mask: not used; causality and the window are all there is to hide.
        scaling: of scores; None: one over the square root of D.
        sliding_window: how many tokens a token sees, itself included; None: all before it.
        softcap: of scores, which torch's kernel does not know.

    Returns:
        [B, T, heads, D], None.

    Raises:
        ValueError: the scores are capped; transformers gives such models its own attention.
    """
    if softcap is not None:
        raise ValueError("attention in blocks has no softcap")
    tokens, seen = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    places = torch.arange(seen, device=key.device)
    out = query.new_empty(query.shape[0], tokens, query.shape[1], value.shape[3])
    for begin in range(seen - tokens, seen, BLOCK):
        end = min(begin + BLOCK, seen)
        first = 0 if sliding_window is None else max(0, begin - sliding_window + 1)
        query_places, keys = places[begin:end, None], places[first:end]
        visible = keys <= query_places
        if sliding_window is not None:
            visible &= keys > query_places - sliding_window
        rows = slice(begin - (seen - tokens), end - (seen - tokens))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, rows], key[:, :, first:end], value[:, :, first:end], attn_mask=visible, scale=scaling
        )
        out[:, rows] = mixed.transpose(1, 2)
    return out, None


AttentionInterface.register(NAME, attend)  # without a mask of its own: transformers then makes none
