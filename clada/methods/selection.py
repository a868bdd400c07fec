"""What a token needs as arrays, a `Selection`, and the norms of weights that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The two inputs that `Selection.input_threshold` is about.
ATTENTION_INPUT, MLP_INPUT = range(2)

# Where the weights that may be left out lie, see `clada.cpu.pack.pack`.
BY_MATRIX, BY_INPUT = range(2)


class Selection(NamedTuple):
    """Which rows a token of each sequence needs; B sequences."""

    gate_weight: np.ndarray  # [L, N]
    gate_threshold: np.ndarray  # [B, L], on |act(gate_i)| gate_weight_i
    weight: np.ndarray  # [L, N]
    threshold: np.ndarray  # [B, L], on |h_i| weight_i
    output_weight: np.ndarray  # [L, Q]
    output_threshold: np.ndarray  # [B, L], on |a_j| output_weight_j
    input_weight: np.ndarray  # [L, 2, H], by input
    input_threshold: np.ndarray  # [B, L, 2], on |x_j| input_weight_j
    needed: np.ndarray  # [B, L, N] uint8, 0: never computed; or [0, L, N]
    attention_threshold: np.ndarray  # [B], on attention weights, as a share of their average
    attention_from: int  # positions from which on it counts
    screen_threshold: np.ndarray  # [B], on |z_k| screen_weight_k
    head_margin: np.ndarray  # [B], words whose screened log-probability is below the negative of it keep it

    def leaves_out_in_layers(self, positions: int) -> bool:
        """Whether anything before the output head may be left out, within so many positions."""
        thresholds = (self.gate_threshold, self.threshold, self.output_threshold, self.input_threshold)
        values = positions >= self.attention_from and self.attention_threshold.any()
        return bool(values or len(self.needed) or any(threshold.any() for threshold in thresholds))


@dataclass(frozen=True)
class Norms:
    """Norms of a model's weights, which tests of magnitude weigh with; L layers.

    Attributes:
        input_norm: [L, 2, H], of the columns of the query, key and value and of the gate and up projections.
        output_norm: [L, Q], of the columns of the attention's output projection.
        down_norm: [L, N], ||w_down[:, i]||.
    """

    input_norm: np.ndarray
    output_norm: np.ndarray
    down_norm: np.ndarray
