"""Cognitive load of a token: surprisal and entropy, in bits (Eqs. 6 and 7 of arXiv 2502.19078)."""

from __future__ import annotations

import math

import torch


def surprisal_and_entropy_bits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Surprisal of the targets and entropy of the distributions that predict them.

    s_t = -log2 P(w_t | w_<t) (Hale 2001; Levy 2008) and H_t = -sum_w p(w) log2 p(w), both from the raw softmax at
    temperature 1, whatever a token was sampled with.

    Args:
        logits: [..., vocabulary], any float type; computed in float64, as differences of large sums lose digits.
        targets: [...], token ids.

    Returns:
        (surprisal, entropy), float64 [...], in bits.
    """
    log_p = torch.log_softmax(logits.double(), dim=-1)
    surprisal = -_of_targets(log_p, targets)
    # xlogy(p, p) is 0 where p underflows to 0, where p * log p would be 0 * -inf = nan.
    entropy = -torch.xlogy(log_p.exp(), log_p.exp()).sum(-1)
    return surprisal / math.log(2), entropy / math.log(2)


def surprisal_bits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Surprisal of the targets alone, as `surprisal_and_entropy_bits` has it, without what the entropy costs.

    Args:
        logits: [..., vocabulary].
        targets: [...], token ids.

    Returns:
        float64 [...], in bits.
    """
    return -_of_targets(torch.log_softmax(logits.double(), dim=-1), targets) / math.log(2)


def _of_targets(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return log_p.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)
