"""The sparse gated MLP of one token: y = W_down (act(W_gate x) * W_up x), neuron by neuron, leaving early.

A neuron is left after its gate when |act(gate_i)| * ||w_down_i|| is below the gate threshold (its row of W_up is not
read), and after its activation h_i when its magnitude c_i = |h_i| * ||w_down_i|| (Eq. 9) is below the magnitude
threshold (its column of W_down is not read). Decoding is bound by the bytes of weights read, so that is time saved.
Thresholds of zero leave nothing out: the dense MLP.

Two implementations of the same choice: a fused numba loop for the CPU in float32, and plain torch, for other devices
and as the reference the loop is tested against.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba import prange
from torch import nn

from clada.errors import ModelError

# Numba's default pool is a second OpenMP runtime beside torch's. Both keep their threads spinning between regions, so
# taking turns on the same cores made a decoded token five times slower. This pool sleeps. It must not be entered by two
# Python threads at once, which the loop's holding the GIL ensures (no nogil below).
numba.config.THREADING_LAYER = "workqueue"

# What the fused loop can compute by itself, as transformers' configurations call it.
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}


@dataclass(frozen=True)
class GatedMLP:
    """Weights of one layer's MLP, laid out so that each neuron is three contiguous rows.

    Attributes:
        gate: [neurons, hidden].
        up: [neurons, hidden].
        down: [neurons, hidden], the transposed down-projection.
        gate_bias: [neurons], zeros where the model has none.
        up_bias: [neurons].
        down_bias: [hidden].
        norm: [neurons], ||w_down[:, i]||.
        activation: name of the gate's activation.
        act: the activation as a module.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    gate_bias: torch.Tensor
    up_bias: torch.Tensor
    down_bias: torch.Tensor
    norm: torch.Tensor
    activation: str
    act: Any

    @classmethod
    def from_module(cls, mlp: Any, activation: str) -> GatedMLP:
        """Take the weights of a transformers MLP; the module stays as it is (the down-projection is copied).

        Raises:
            ModelError: a projection is not a plain linear layer, or the activation is not one the kernels compute.
        """
        if activation not in ACTIVATIONS:
            raise ModelError(
                f"activation '{activation}' is not supported by the engine; it computes {', '.join(ACTIVATIONS)}"
            )
        projections = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        for projection in projections:
            if type(projection) is not nn.Linear:
                kind = type(projection).__name__
                raise ModelError(f"the MLP has {kind} layers, which the engine cannot read; load the model unquantised")
        gate, up, down = (p.weight.detach() for p in projections)
        gate_bias, up_bias, down_bias = (
            p.weight.new_zeros(p.out_features) if p.bias is None else p.bias.detach() for p in projections
        )
        return cls(
            gate=gate,
            up=up,
            down=down.t().contiguous(),
            gate_bias=gate_bias,
            up_bias=up_bias,
            down_bias=down_bias,
            norm=down.float().norm(dim=0),
            activation=activation,
            act=mlp.act_fn,
        )


def sparse_mlp(w: GatedMLP, x: torch.Tensor, gate_threshold: float, threshold: float) -> tuple[torch.Tensor, int]:
    """One token through a sparse MLP.

    Args:
        w: the layer's weights.
        x: [hidden], the MLP's input.
        gate_threshold: least |act(gate_i)| * ||w_down_i|| for a neuron to read its up-projection.
        threshold: least c_i for a neuron to add to the output.

    Returns:
        (output [hidden], number of neurons that added to it).
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _sparse_mlp_fused(w, x, gate_threshold, threshold)
    return sparse_mlp_reference(w, x, gate_threshold, threshold)


def sparse_mlp_reference(
    w: GatedMLP, x: torch.Tensor, gate_threshold: float, threshold: float
) -> tuple[torch.Tensor, int]:
    """The same as `sparse_mlp` in plain torch, on any device: only the rows that are needed are gathered."""
    gate = w.act(torch.addmv(w.gate_bias, w.gate, x))
    kept = (gate.abs() * w.norm >= gate_threshold).nonzero().squeeze(1)
    h = gate[kept] * torch.addmv(w.up_bias[kept], w.up[kept], x)
    active = h.abs() * w.norm[kept] >= threshold
    return torch.addmv(w.down_bias, w.down[kept[active]].t(), h[active]), int(active.sum())


def neuron_mask(
    w: GatedMLP, gate: torch.Tensor, h: torch.Tensor, gate_threshold: torch.Tensor, threshold: torch.Tensor
) -> torch.Tensor:
    """Which neurons `sparse_mlp` computes, for many tokens at once (calibration runs whole texts).

    Args:
        w: the layer's weights.
        gate: act(gate), [tokens, neurons].
        h: activations, [tokens, neurons].
        gate_threshold: of each token, [tokens].
        threshold: of each token, [tokens].

    Returns:
        bool [tokens, neurons].
    """
    return (gate.abs() * w.norm >= gate_threshold[:, None]) & (h.abs() * w.norm >= threshold[:, None])


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Use this many threads in torch and in the fused loop; both run in turn, so each may have all of them."""
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _sparse_mlp_fused(
    w: GatedMLP, x: torch.Tensor, gate_threshold: float, threshold: float
) -> tuple[torch.Tensor, int]:
    # Each thread adds into a row of its own; summed here, as threads cannot share one output.
    partial = np.zeros((numba.get_num_threads(), x.shape[0]), dtype=np.float32)
    active = _fused_loop(
        x.contiguous().numpy(),
        w.gate.numpy(),
        w.up.numpy(),
        w.down.numpy(),
        w.gate_bias.numpy(),
        w.up_bias.numpy(),
        w.norm.numpy(),
        ACTIVATIONS[w.activation],
        np.float32(gate_threshold),
        np.float32(threshold),
        partial,
    )
    return w.down_bias + torch.from_numpy(partial.sum(0)), int(active)


# fastmath without "nnan" and "ninf": sums may be reordered into vector lanes, infinities keep their meaning.
@numba.njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
def _fused_loop(  # type: ignore[no-untyped-def]  # numba infers the types
    x, gate, up, down, gate_bias, up_bias, norm, activation, gate_threshold, threshold, partial
):
    neurons, hidden = gate.shape
    threads = partial.shape[0]
    active = 0
    for thread in prange(threads):
        for i in range(neurons * thread // threads, neurons * (thread + 1) // threads):
            g = np.float32(0)
            for j in range(hidden):
                g += gate[i, j] * x[j]
            g += gate_bias[i]
            if activation == 0:  # silu
                a = g / (np.float32(1) + np.exp(-g))
            else:  # gelu_pytorch_tanh
                inner = np.float32(0.7978845608028654) * (g + np.float32(0.044715) * g * g * g)
                a = np.float32(0.5) * g * (np.float32(1) + np.tanh(inner))
            if abs(a) * norm[i] < gate_threshold:
                continue
            u = np.float32(0)
            for j in range(hidden):
                u += up[i, j] * x[j]
            h = a * (u + up_bias[i])
            if abs(h) * norm[i] < threshold:
                continue
            active += 1
            for j in range(hidden):
                partial[thread, j] += h * down[i, j]
    return active
