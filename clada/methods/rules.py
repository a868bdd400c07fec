"""What keeps a neuron, an input, a value, a word: pure functions on arrays of numpy or torch.

These are the definitions. `clada.sparse` and the decoder in plain torch call them; the CPU's kernels, which read
weights while they decide, are written out by hand and tested against them.

Arrays broadcast: values of tokens [T, N], weights [N], thresholds [T, 1] or a number. A function returns booleans.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # of numpy or torch; a function gives back what it was given


def magnitude(values: Array, weight: Array) -> Array:
    """What a value can give to the output, |x_i| w_i; for a neuron c_i = |h_i| ||w_down_i|| (Eq. 9).

    Args:
        values: activations or inputs.
        weight: norms of the weights that they meet.
    """
    return abs(values) * weight


def keeps_gated(gate: Array, weight: Array, threshold: Array) -> Array:
    """The gate test: a neuron is kept whose |act(gate_i)| w_i reaches the threshold; its up-projection is computed.

    Args:
        gate: act(gate_i).
        weight: E|up_i| ||w_down_i|| of the calibration text, or 1 (CATS, Lee et al. 2024).
        threshold: of the layer, 0 keeps all.
    """
    return magnitude(gate, weight) >= threshold


def keeps_neuron(h: Array, weight: Array, threshold: Array) -> Array:
    """The magnitude test: a neuron is kept whose c_i reaches tau_l (Eq. 10); its row of the down-projection is read.

    Args:
        h: activations.
        weight: ||w_down_i||, or 1 (TEAL, Liu et al. 2024).
        threshold: tau_l of the token, 0 keeps all.
    """
    return magnitude(h, weight) >= threshold


def keeps_input(x: Array, weight: Array, threshold: Array) -> Array:
    """The test of an input of a projection: kept where |x_j| ||w_j|| reaches the threshold (TEAL, WINA).

    Args:
        x: inputs.
        weight: norms of the projections' columns, or 1.
        threshold: of the place, 0 keeps all.
    """
    return magnitude(x, weight) >= threshold


def keeps_value(weights: Array, seen: Array, least_weight: Array, least_positions: int) -> Array:
    """The test of a value in attention: all heads that share it keep it if one gives its position enough weight.

    Args:
        weights: attention weights of one token after the softmax [..., heads that share, positions].
        seen: positions that are seen, each weight's average share is 1 / seen.
        least_weight: as a share of that average.
        least_positions: where fewer are seen, all are kept.

    Returns:
        [..., 1, positions].
    """
    return (weights >= least_weight / seen).any(-2, keepdims=True) | (seen < least_positions)


def mean_for_left_out(weights: Array, kept: Array, value: Array, mean: Array) -> Array:
    """Attention's sum of values, where those left out give the mean of all (SparQ, Ribar et al. 2024).

    Args:
        weights: [..., queries, positions], which sum up to 1.
        kept: booleans of the same shape or one that broadcasts.
        value: [..., positions, D].
        mean: [..., 1, D], of the values seen.
    """
    return (weights * kept) @ value + (weights * ~kept).sum(-1, keepdims=True) * mean


def keeps_term(z: Array, weight: Array, threshold: Array) -> Array:
    """The test of a term of the head's screen, |z_k| w_k; the first term, of the mean input, is always kept.

    Args:
        z: [T, K], the head's input along the directions of the screen.
        weight: [K], norms of the terms.
        threshold: [T, 1].
    """
    keep = magnitude(z, weight) >= threshold
    keep[..., 0] = True
    return keep


def keeps_word(estimate: Array, log_total: Array, margin: Array) -> Array:
    """The test of a word of the vocabulary: computed in full where its screened log-probability is at least -margin.

    Args:
        estimate: [T, V], logits by the screen.
        log_total: [T], log of the sum of their exponentials.
        margin: [T] nats; infinite keeps all.
    """
    return estimate >= (log_total - margin)[..., None]


def neuron_sums(h: Array, kind: str) -> Array:
    """What neurons did over some tokens, as sums that add up over more of them.

    Args:
        h: activations [T, N].
        kind: `flocking`, the squares of z_j / ||z_t||_2 (GRIFFIN, Dong et al. 2024), or `magnitude`, of h_j.

    Returns:
        [N].
    """
    squares = h * h
    if kind == "flocking":
        total = squares.sum(-1)[..., None]
        squares = squares / (total + (total == 0))
    return squares.sum(0)


def statistics_of_sums(sums: np.ndarray, tokens: int, kind: str, down_norm: np.ndarray) -> np.ndarray:
    """The statistics that neurons of a prompt are chosen by.

    `flocking` gives GRIFFIN's || z_j / ||z_t||_2 ||_2 over tokens t (Dong et al. 2024), `magnitude` the root mean
    square of c_i = |h_i| ||w_down_i|| (Eq. 9).

    Args:
        sums: [..., N], see `neuron_sums`.
        tokens: that they are of, at least 1.
        kind: as there.
        down_norm: [..., N].

    Returns:
        float32 [..., N].
    """
    values = np.sqrt(sums) if kind == "flocking" else np.sqrt(sums / tokens) * down_norm
    return values.astype(np.float32)


def needed_by_prompt(scores: np.ndarray, share: float) -> np.ndarray:
    """Neurons that a prompt needs: all but the share of each layer with the lowest scores.

    Args:
        scores: [B, L, N].
        share: left out, above 0.

    Returns:
        uint8 [B, L, N].
    """
    dropped = round(share * scores.shape[2])
    needed = np.ones(scores.shape, np.uint8)
    np.put_along_axis(needed, np.argpartition(scores, dropped - 1, axis=2)[..., :dropped], 0, axis=2)
    return needed
