"""Prompts on the CPU: many tokens at once, whose products of matrices a BLAS computes.

The same layers as in `clada.cpu.kernels.step`, with nothing left out and sums in another order. A matrix is widened to
float32 once for a thousand tokens. Threads share the tokens by blocks; each of them calls numpy's BLAS, which for that
long runs in one thread itself: what lies between the products is shared too, then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from clada.cpu.kernels.arguments import (
    AFTER_ATTENTION,
    AFTER_MLP,
    ATTENTION_RESIDUAL,
    BEFORE_ATTENTION,
    BEFORE_MLP,
    MLP_RESIDUAL,
    Scratch,
    box,
)
from clada.cpu.kernels.attention import make_heads, read_cache, weigh
from clada.cpu.kernels.mlp import finish_neurons
from clada.cpu.kernels.rows import normalise_rows, widen_rows
from clada.cpu.weights import Weights
from clada.methods.rules import neuron_sums, statistics_of_sums
from clada.methods.selection import BY_INPUT

PIECE = 1024  # tokens for which a matrix is widened once

BLOCK = 256  # tokens at most that a thread takes at once; with fewer than some hundred, products are slower

ATTENDING = 64  # tokens at most whose scores are computed at once, all up to the position of the last of them

POSITIONS = 256  # of the cache that a thread widens at once

WIDENED = 2**17  # numbers of a matrix that a thread widens at once

_one_thread = threading.Lock()  # how many threads the BLAS has is said for the whole process


class _Matrix(NamedTuple):
    """A matrix of a layer in float32, and what belongs to its outputs."""

    wide: np.ndarray  # [inputs, outputs]
    scale: np.ndarray  # [outputs], or empty
    bias: np.ndarray  # [outputs]

    def times(self, x: np.ndarray) -> np.ndarray:
        """The outputs [B, outputs] of inputs [B, inputs]."""
        y: np.ndarray = x @ self.wide
        if len(self.scale):
            y *= self.scale
        y += self.bias
        return y


@dataclass
class _Piece:
    """Some consecutive tokens of a prompt on their way through the layers; T of them, C positions up to the last.

    Attributes:
        first: position of the first one.
        blocks: the tokens that a thread takes at once.
        residual: [T, H].
        rotary: [T, R, 2, rotary width].
        query: [T, heads, D].
        keys: [kv heads, D, C], of the layer; positions outside the window are not filled.
        values: [kv heads, C, D].
    """

    first: int
    blocks: list[slice]
    residual: np.ndarray
    rotary: np.ndarray
    query: np.ndarray
    keys: np.ndarray
    values: np.ndarray

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.first + len(self.residual)


class Prompts:
    """Runs prompts into the kernels' caches.

    Args:
        weights: the packed model.
        threads: how many compute.
        statistics: kind of `clada.methods.rules.neuron_sums` to collect, or None.
    """

    def __init__(self, weights: Weights, threads: int, statistics: str | None = None) -> None:
        self.weights, self.threads, self.kind = weights, threads, statistics
        self.w, self.c = weights.tensors, weights.constants
        self.boxed = box(self.w), box(self.c)
        by_input = self.c.layout == BY_INPUT
        self.by_input = {"qkv": by_input, "output": True, "gate": by_input, "up": by_input, "down": True}
        if not self.c.gated:
            del self.by_input["gate"]
        self.buffers: dict[str, np.ndarray] = {}
        if weights.precision.copied:
            self.buffers = {name: np.empty(self._shape(name), np.float32) for name in self.by_input}

    def _shape(self, name: str) -> tuple[int, int]:
        """Of a matrix as it is stored. Rows in blocks do not say how long they are, but all of them are of H."""
        rows = getattr(self.w, name)
        return rows.shape[1], self.w.final_norm.shape[1] if self.weights.precision.in_blocks else rows.shape[2]

    def run(self, tokens: Sequence[int], scratch: Scratch, b: int) -> np.ndarray | None:
        """Run a prompt.

        Args:
            tokens: at least one.
            scratch: whose cache has room for them.
            b: number of the sequence there.

        Returns:
            the statistics, float32 [L, N]; None where none are collected.
        """
        sums = np.zeros(self.weights.down_norm.shape)
        with _one_thread, threadpool_limits(1, "blas"), ThreadPoolExecutor(self.threads) as pool:

            def each(work: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
                """Do a stage's work, all of it before the next stage begins."""
                return list(pool.map(work, items))

            for begin in range(0, len(tokens), PIECE):
                piece = self._begin(np.asarray(tokens[begin : begin + PIECE]), begin)
                for layer in range(len(sums)):
                    self._layer(layer, piece, scratch, b, each, sums)
        return None if self.kind is None else statistics_of_sums(sums, len(tokens), self.kind, self.weights.down_norm)

    def _begin(self, tokens: np.ndarray, first: int) -> _Piece:
        c, n = self.c, len(tokens)
        blocks = self.threads * -(-n // (BLOCK * self.threads))  # as many for each thread, of the same size
        edges = np.linspace(0, n, min(blocks, n) + 1).astype(int).tolist()
        return _Piece(
            first,
            [slice(*edge) for edge in pairwise(edges)],
            self._embed(tokens, first),
            self.weights.rotary(np.arange(first, first + n)),
            np.empty((n, c.heads, c.head_dim), np.float32),
            np.empty((c.kv_heads, c.head_dim, first + n), np.float32),
            np.empty((c.kv_heads, first + n, c.head_dim), np.float32),
        )

    def _embed(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """What enters the first layer."""
        w = self.w
        x = _widened(w.embedding[tokens], w.before_layers.shape[1])
        if len(w.embedding_scale):
            x *= w.embedding_scale[tokens, None]
        x *= self.c.embedding_factor
        if len(w.before_layers):
            x = x @ _widened(w.before_layers, w.before_layers.shape[1]).T
        if len(w.positions):
            x += w.positions[first : first + len(tokens)]
        return x

    def _layer(
        self, layer: int, piece: _Piece, scratch: Scratch, b: int, each: Callable[..., list[Any]], sums: np.ndarray
    ) -> None:
        """A layer of all tokens, stage by stage."""
        c, cache = self.c, (scratch.keys[b, layer], scratch.values[b, layer])
        matrices = self._widen(layer, each)
        each(lambda block: self._make_heads(layer, matrices, piece, block, cache), piece.blocks)
        begin = max(0, piece.first + 1 - int(c.window[layer]))
        parts = [(head, i) for head in range(c.kv_heads) for i in range(begin, piece.end, POSITIONS)]
        each(lambda part: _read_part(piece, part[0], part[1], cache), parts)
        window = max(0, piece.end + 1 - int(c.window[layer]))  # without what the next token no longer sees
        scratch.value_sum[b, layer] = piece.values[:, window:].sum(1)
        if layer < len(sums) - 1 or self.kind is not None:  # nobody asks for what the last layer gives
            # The last block first: its tokens see the most positions.
            for part in each(lambda block: self._rest(layer, matrices, piece, block), reversed(piece.blocks)):
                sums[layer] += part

    def _widen(self, layer: int, each: Callable[..., list[Any]]) -> dict[str, _Matrix]:
        """The matrices of a layer in float32."""
        found, parts = {}, []
        for name, by_input in self.by_input.items():
            rows, scale, bias = (getattr(self.w, name + end)[layer] for end in ("", "_scale", "_bias"))
            wide = self.buffers.get(name, rows)
            if wide is not rows:
                some = max(1, WIDENED // wide.shape[1])
                parts += [(wide[i : i + some], rows, i, by_input) for i in range(0, len(rows), some)]
            found[name] = _Matrix(wide if by_input else wide.T, scale, bias)
        each(lambda part: widen_rows(*part), parts)
        return found

    def _norm(self, out: np.ndarray, x: np.ndarray, layer: int, place: int) -> np.ndarray:
        """`x` as it is, or its norm in `out` where the layer has one in this place."""
        if not self.c.has_norm[place]:
            return x
        normalise_rows(out, x, self.w.norms[layer, place], self.c.rms, self.c.eps)
        return out

    def _make_heads(self, layer: int, matrices: dict[str, _Matrix], piece: _Piece, block: slice, cache: Any) -> None:
        """Queries of some tokens, and their keys and values in the cache."""
        x = piece.residual[block]
        qkv = matrices["qkv"].times(self._norm(np.empty_like(x), x, layer, BEFORE_ATTENTION))
        at = piece.first + block.start
        make_heads(*self.boxed, layer, at, qkv, piece.rotary[block], piece.query[block], *cache)

    def _attend(self, layer: int, piece: _Piece, block: slice) -> np.ndarray:
        """What attention gives to some tokens, [B, heads * D]."""
        c = self.c
        attended = np.empty((block.stop - block.start, c.heads, c.head_dim), np.float32)
        for start in range(block.start, block.stop, ATTENDING):
            some = slice(start, min(start + ATTENDING, block.stop))
            self._attend_some(layer, piece, some, attended[some.start - block.start : some.stop - block.start])
        return attended.reshape(len(attended), -1)

    def _attend_some(self, layer: int, piece: _Piece, some: slice, attended: np.ndarray) -> None:
        """Write what attention gives to a few tokens into `attended` [B, heads, D]."""
        c, n = self.c, len(attended)
        group = c.heads // c.kv_heads
        at, end, window = piece.first + some.start, piece.first + some.stop, int(c.window[layer])
        begin = max(0, at + 1 - window)
        totals = np.empty(n * group, np.float32)
        for kv in range(c.kv_heads):
            heads = slice(kv * group, (kv + 1) * group)  # those that share keys and values
            scores = piece.query[some, heads].reshape(n * group, -1) @ piece.keys[kv, :, begin:end]
            weigh(scores, totals, at, group, begin, window, c.softcap)
            mixed = scores @ piece.values[kv, begin:end]
            mixed /= totals[:, None]
            attended[:, heads] = mixed.reshape(n, group, -1)

    def _rest(self, layer: int, matrices: dict[str, _Matrix], piece: _Piece, block: slice) -> Any:
        """A layer of some tokens from attention on; returns `neuron_sums` of them."""
        x = piece.residual[block]
        normed = np.empty_like(x)
        of_attention = matrices["output"].times(self._attend(layer, piece, block))
        if self.c.parallel:  # the MLP's input is what attention's was
            normed[:] = self._norm(normed, x, layer, BEFORE_MLP)
        self._add(x, of_attention, layer, AFTER_ATTENTION, ATTENTION_RESIDUAL)
        if not self.c.parallel:
            normed = self._norm(normed, x, layer, BEFORE_MLP)
        up = matrices["up"].times(normed)
        h = matrices["gate"].times(normed) if self.c.gated else up
        finish_neurons(h, up if self.c.gated else up[:0], self.c.activation)
        self._add(x, matrices["down"].times(h), layer, AFTER_MLP, MLP_RESIDUAL)
        return 0 if self.kind is None else neuron_sums(h, self.kind)

    def _add(self, x: np.ndarray, y: np.ndarray, layer: int, after: int, residual: int) -> None:
        """Add what a sublayer gives to the residual stream."""
        x += self._norm(y, y, layer, after)
        self._norm(x, x, layer, residual)


def _read_part(piece: _Piece, head: int, begin: int, cache: tuple[np.ndarray, np.ndarray]) -> None:
    """Keys and values of some positions of a head, as they are stored."""
    keys, values = cache
    end = min(begin + POSITIONS, piece.end)
    read_cache(piece.keys[head], piece.values[head], keys[head], values[head], begin, end)


def _widened(rows: np.ndarray, width: int) -> np.ndarray:
    wide = np.empty((len(rows), width), np.float32)
    widen_rows(wide, rows, 0, False)
    return wide
