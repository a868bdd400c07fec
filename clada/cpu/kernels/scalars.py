"""Numbers as the kernels read them: stored weights, scales, exponentials, the nonlinearity of the MLP."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from clada.cpu.precision import of_element

# Sums may be reordered into vector lanes; infinities and NaN keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


@intrinsic
def bits_to_float(_context: Any, _bits: Any) -> Any:
    """The float32 of these 32 bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def widen(_context: Any, v: Any) -> Any:
    """A stored weight as float32, without its scale."""

    def codegen(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return of_element(signature.args[0]).to_float32(builder, args[0], 1)

    return types.float32(v), codegen


@intrinsic
def narrow(_context: Any, _v: Any, like: Any) -> Any:
    """A float32 as the array `like` stores it."""

    def codegen(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return of_element(signature.args[1].dtype).from_float32(builder, args[0])

    return like.dtype(types.float32, like), codegen


def scale_of(rows, scales, i):  # type: ignore[no-untyped-def]
    """The scale of output i, 1 where the precision has none."""
    raise NotImplementedError


@overload(scale_of, jit_options={"forceinline": True})
def _typed_scale_of(rows, scales, i):  # type: ignore[no-untyped-def]
    if of_element(rows.dtype).scaled:
        return lambda rows, scales, i: scales[i]
    return lambda rows, scales, i: np.float32(1)


def bias_of(bias, i):  # type: ignore[no-untyped-def]
    """The bias of output i, of biases or of the one that all outputs have."""
    raise NotImplementedError


@overload(bias_of, jit_options={"forceinline": True})
def _typed_bias_of(bias, i):  # type: ignore[no-untyped-def]
    if isinstance(bias, types.Array):
        return lambda bias, i: bias[i]
    return lambda bias, i: bias


@njit(fastmath=FASTMATH, forceinline=True)
def fast_exp(x):  # type: ignore[no-untyped-def]
    """Exp in float32 to 2 units in the last place; unlike math.exp it turns into vector instructions.

    Cephes' expf: x = n ln 2 + r, exp(r) by a polynomial, 2^n by its bits. Below -87 the result is not exactly zero.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * bits_to_float(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


@njit(fastmath=FASTMATH, forceinline=True)
def fast_tanh(x):  # type: ignore[no-untyped-def]
    """Tanh in float32, from `fast_exp`."""
    # Large arguments go to 1 by themselves; near zero the difference of near equals costs 1e-7 absolute, no more.
    return np.float32(1) - np.float32(2) / (fast_exp(np.float32(2) * x) + np.float32(1))


@njit(fastmath=FASTMATH)
def activate(values, activation):  # type: ignore[no-untyped-def]
    """The MLP's nonlinearity, in place."""
    if activation == 0:
        for i in range(values.shape[0]):
            values[i] = values[i] / (np.float32(1) + fast_exp(-values[i]))
    elif activation == 1:
        for i in range(values.shape[0]):
            v = values[i]
            inner = np.float32(0.7978845608028654) * (v + np.float32(0.044715) * v * v * v)
            values[i] = np.float32(0.5) * v * (np.float32(1) + fast_tanh(inner))
    elif activation == 2:
        for i in range(values.shape[0]):
            values[i] = max(values[i], np.float32(0))
    else:
        for i in range(values.shape[0]):
            v = values[i]
            values[i] = np.float32(0.5 * v * (1.0 + math.erf(v * 0.7071067811865476)))
