"""Prompts and known texts on the CPU: many tokens at once, in products of matrices.

The same layers as in `clada.cpu.kernels.step`, with sums in another order. Prompts leave nothing out. Texts may: what
the rules do not keep is set to zero, and saves no time. A matrix is made ready once for a thousand tokens. Threads
share the tokens by blocks; each of them calls numpy's BLAS, which for that long runs in one thread itself: what lies
between the products is shared too, then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from clada.cpu.prompts.matrices import Matrix, Room, Work, room_for
from clada.cpu.weights import Weights
from clada.methods.rules import (
    keeps_gated,
    keeps_input,
    keeps_neuron,
    keeps_value,
    mean_for_left_out,
    neuron_sums,
    statistics_of_sums,
)
from clada.methods.selection import ATTENTION_INPUT, BY_INPUT, MLP_INPUT, Selection

PIECE = 1024  # tokens for which a matrix is widened once

BLOCK = 256  # tokens at most that a thread takes at once; with fewer than some hundred, products are slower

ATTENDING = 64  # tokens at most whose scores are computed at once, all up to the position of the last of them

POSITIONS = 256  # of the cache that a thread widens at once


_one_thread = threading.Lock()  # how many threads the BLAS has is said for the whole process


class Text(NamedTuple):
    """Consecutive tokens of a sequence."""

    sequence: int  # its number in the cache
    first: int  # position of the first token; the cache has those before it
    tokens: Sequence[int]


class HiddenStates(NamedTuple):
    """What the layers made of some tokens, those of the first text first; n of them."""

    residual: np.ndarray  # float32 [n, H], after the last layer
    neurons: np.ndarray  # [n, L], that added to the output


@dataclass
class _Piece:
    """Some consecutive tokens of a sequence on their way through the layers; T of them, C positions up to the last.

    Attributes:
        sequence: its number in the cache.
        first: position of the first one.
        blocks: the tokens that a thread takes at once.
        residual: [T, H].
        rotary: [T, R, 2, rotary width].
        query: [T, heads, D].
        keys: [kv heads, D, C], of the layer; positions outside the window are not filled.
        values: [kv heads, C, D].
        sums: [L, N], of the whole text's neurons; see `clada.methods.rules.neuron_sums`.
        neurons: [T, L], that added to the output.
    """

    sequence: int
    first: int
    blocks: list[slice]
    residual: np.ndarray
    rotary: np.ndarray
    query: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    sums: np.ndarray
    neurons: np.ndarray

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.first + len(self.residual)


class Prompts:
    """Runs prompts and texts into the kernels' caches.

    Args:
        weights: the packed model.
        threads: how many compute.
        statistics: kind of `clada.methods.rules.neuron_sums` to collect of prompts, or None.
    """

    def __init__(self, weights: Weights, threads: int, statistics: str | None = None) -> None:
        self.weights, self.threads, self.kind = weights, threads, statistics
        self.w, self.c = weights.tensors, weights.constants
        self.boxed = box(self.w), box(self.c)
        by_input = self.c.layout == BY_INPUT
        by_input = self.c.layout == BY_INPUT
        names = {"qkv": by_input, "output": True, "gate": by_input, "up": by_input, "down": True}
        if not self.c.gated:
            del names["gate"]
        self.rooms = {name: self._room(name, by_input) for name, by_input in names.items()}

    def _room(self, name: str, by_input: bool) -> Room:
        """For a matrix. Rows in blocks do not say how long they are, but all of them are of H."""
        rows, precision = getattr(self.w, name), self.weights.precision
        count, width = rows.shape[1], self.w.final_norm.shape[1] if precision.in_blocks else rows.shape[2]
        inputs, outputs = (count, width) if by_input else (width, count)
        return room_for(precision, inputs, outputs, by_input)

    def run(self, prompts: Sequence[Text], scratch: Scratch) -> list[np.ndarray]:
        """Run prompts, each as if it were alone.

        Args:
            prompts: at least one token each, from position 0 on.
            scratch: whose cache has room for them.

        Returns:
            the statistics of each, float32 [L, N]; zero where none are collected.
        """
        sums = [np.zeros(self.weights.down_norm.shape) for _ in prompts]
        # Nobody asks for what the last layer gives, but for its statistics.
        self._through_layers(prompts, scratch, sums, None, self.threads, whole=self.kind is not None)
        if self.kind is None:
            return sums
        norms = self.weights.down_norm
        return [
            statistics_of_sums(some, len(prompt.tokens), self.kind, norms)
            for some, prompt in zip(sums, prompts, strict=True)
        ]

    def read(self, texts: Sequence[Text], scratch: Scratch, select: Selection | None) -> HiddenStates:
        """Run texts whose every token is known, each as if it were alone.

        Args:
            texts: at least one token each.
            scratch: whose cache has what comes before them, and room.
            select: what is left out; None for nothing.
        """
        sums = [np.empty((len(self.weights.down_norm), 0))] * len(texts)
        pieces = self._through_layers(texts, scratch, sums, select, 1, whole=True)
        return HiddenStates(
            *(np.concatenate([getattr(piece, name) for piece in pieces]) for name in HiddenStates._fields)
        )

    def _through_layers(
        self,
        texts: Sequence[Text],
        scratch: Scratch,
        sums: Sequence[np.ndarray],
        select: Selection | None,
        sharing: int,
        *,
        whole: bool,
    ) -> list[_Piece]:
        """Run texts, of which `sharing` threads share a piece; without `whole` the last layer ends with its cache."""
        done: list[_Piece] = []
        with _one_thread, threadpool_limits(1, "blas"), ThreadPoolExecutor(self.threads) as pool:

            def each(work: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
                """Do a stage's work, all of it before the next stage begins."""
                return list(pool.map(work, items))

            for group in _groups(texts):
                pieces = [
                    self._begin(texts[i]._replace(first=first, tokens=tokens), sharing, sums[i])
                    for i, first, tokens in group
                ]
                for layer in range(len(self.weights.down_norm)):
                    last = layer == len(self.weights.down_norm) - 1
                    self._layer(layer, pieces, scratch, each, select, whole=whole or not last)
                done += pieces
        return done

    def _begin(self, text: Text, sharing: int, sums: np.ndarray) -> _Piece:
        c, first, n = self.c, text.first, len(text.tokens)
        blocks = sharing * -(-n // (BLOCK * sharing))  # as many for each thread, of the same size
        edges = np.linspace(0, n, min(blocks, n) + 1).astype(int).tolist()
        return _Piece(
            text.sequence,
            first,
            [slice(*edge) for edge in pairwise(edges)],
            self._embed(np.asarray(text.tokens), first),
            self.weights.rotary(np.arange(first, first + n)),
            np.empty((n, c.heads, c.head_dim), np.float32),
            np.empty((c.kv_heads, c.head_dim, first + n), np.float32),
            np.empty((c.kv_heads, first + n, c.head_dim), np.float32),
            sums,
            np.empty((n, len(self.weights.down_norm)), np.int64),
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
        self,
        layer: int,
        pieces: list[_Piece],
        scratch: Scratch,
        each: Callable[..., list[Any]],
        select: Selection | None,
        *,
        whole: bool,
    ) -> None:
        """A layer of all tokens, stage by stage; without `whole` up to the cache."""
        c = self.c
        caches = {p.sequence: (scratch.keys[p.sequence, layer], scratch.values[p.sequence, layer]) for p in pieces}
        matrices = self._matrices(layer, each)
        # The last blocks first: their tokens see the most positions.
        blocks = [(piece, block) for piece in reversed(pieces) for block in reversed(piece.blocks)]
        each(lambda part: self._make_heads(layer, matrices, part[0], part[1], caches, select), blocks)
        parts = [
            (piece, head, i)
            for piece in pieces
            for head in range(c.kv_heads)
            for i in range(max(0, piece.first + 1 - int(c.window[layer])), piece.end, POSITIONS)
        ]
        each(lambda part: _read_part(part[0], part[1], part[2], caches), parts)
        for piece in pieces:
            window = max(0, piece.end + 1 - int(c.window[layer]))  # without what the next token no longer sees
            scratch.value_sum[piece.sequence, layer] = piece.values[:, window:].sum(1)
        if whole:
            sums = each(lambda part: self._rest(layer, matrices, part[0], part[1], select), blocks)
            for (piece, _), part in zip(blocks, sums, strict=True):
                piece.sums[layer] += part

    def _matrices(self, layer: int, each: Callable[..., list[Any]]) -> dict[str, Matrix]:
        """The matrices of a layer, made ready."""
        found: dict[str, Matrix] = {}
        work: Work = []
        for name, room in self.rooms.items():
            found[name], own = room.of(*(getattr(self.w, name + end)[layer] for end in ("", "_scale", "_bias")))
            work += own
        each(lambda part: part(), work)
        return found

    def _norm(self, out: np.ndarray, x: np.ndarray, layer: int, place: int) -> np.ndarray:
        """`x` as it is, or its norm in `out` where the layer has one in this place."""
        if not self.c.has_norm[place]:
            return x
        normalise_rows(out, x, self.w.norms[layer, place], self.c.rms, self.c.eps)
        return out

    def _make_heads(
        self,
        layer: int,
        matrices: dict[str, Matrix],
        piece: _Piece,
        block: slice,
        caches: dict[int, Any],
        select: Selection | None,
    ) -> None:
        """Queries of some tokens, and their keys and values in the cache."""
        x = piece.residual[block]
        normed = self._norm(np.empty_like(x), x, layer, BEFORE_ATTENTION)
        inputs = self._inputs(normed, layer, ATTENTION_INPUT, piece, select)
        qkv = matrices["qkv"].times(matrices["qkv"].prepared(inputs))
        at, cache = piece.first + block.start, caches[piece.sequence]
        make_heads(*self.boxed, layer, at, qkv, piece.rotary[block], piece.query[block], *cache)

    def _inputs(self, x: np.ndarray, layer: int, place: int, piece: _Piece, select: Selection | None) -> np.ndarray:
        """The inputs of a projection that the selection keeps, others zero."""
        if select is None or self.c.layout != BY_INPUT:
            return x
        kept = keeps_input(x, select.input_weight[layer, place], select.input_threshold[piece.sequence, layer, place])
        return np.where(kept, x, np.float32(0))

    def _attend(self, layer: int, piece: _Piece, block: slice, select: Selection | None) -> np.ndarray:
        """What attention gives to some tokens, [B, heads * D]."""
        c = self.c
        attended = np.empty((block.stop - block.start, c.heads, c.head_dim), np.float32)
        for start in range(block.start, block.stop, ATTENDING):
            some = slice(start, min(start + ATTENDING, block.stop))
            part = attended[some.start - block.start : some.stop - block.start]
            self._attend_some(layer, piece, some, part, select)
        attended = attended.reshape(len(attended), -1)
        if select is not None:
            weight, threshold = select.output_weight[layer], select.output_threshold[piece.sequence, layer]
            attended *= keeps_input(attended, weight, threshold)
        return attended

    def _attend_some(
        self, layer: int, piece: _Piece, some: slice, attended: np.ndarray, select: Selection | None
    ) -> None:
        """Write what attention gives to a few tokens into `attended` [B, heads, D]."""
        c, n = self.c, len(attended)
        group = c.heads // c.kv_heads
        at, end, window = piece.first + some.start, piece.first + some.stop, int(c.window[layer])
        begin = max(0, at + 1 - window)
        least, least_positions = 0.0, 0
        if select is not None and min(end, window) >= select.attention_from:
            least, least_positions = float(select.attention_threshold[piece.sequence]), select.attention_from
        totals = np.empty(n * group, np.float32)
        for kv in range(c.kv_heads):
            heads = slice(kv * group, (kv + 1) * group)  # those that share keys and values
            scores = piece.query[some, heads].reshape(n * group, -1) @ piece.keys[kv, :, begin:end]
            weigh(scores, totals, at, group, begin, window, c.softcap)
            values = piece.values[kv, begin:end]
            if least > 0:
                scores /= totals[:, None]
                mixed = _mix_some(scores.reshape(n, group, -1), values, at, begin, window, least, least_positions)
            else:
                mixed = scores @ values
                mixed /= totals[:, None]
            attended[:, heads] = mixed.reshape(n, group, -1)

    def _rest(
        self, layer: int, matrices: dict[str, Matrix], piece: _Piece, block: slice, select: Selection | None
    ) -> Any:
        """A layer of some tokens from attention on; returns `neuron_sums` of them."""
        x = piece.residual[block]
        normed = np.empty_like(x)
        output, down = matrices["output"], matrices["down"]
        of_attention = output.times(output.prepared(self._attend(layer, piece, block, select)))
        if self.c.parallel:  # the MLP's input is what attention's was
            normed[:] = self._norm(normed, x, layer, BEFORE_MLP)
        self._add(x, of_attention, layer, AFTER_ATTENTION, ATTENTION_RESIDUAL)
        if not self.c.parallel:
            normed = self._norm(normed, x, layer, BEFORE_MLP)
        inputs = matrices["up"].prepared(self._inputs(normed, layer, MLP_INPUT, piece, select))
        h = factor = matrices["up"].times(inputs)
        if self.c.gated:
            h = matrices["gate"].times(inputs)
        piece.neurons[block, layer] = self._finish(
            h, factor if self.c.gated else factor[:0], layer, piece.sequence, select
        )
        self._add(x, down.times(down.prepared(h)), layer, AFTER_MLP, MLP_RESIDUAL)
        return 0 if self.kind is None else neuron_sums(h, self.kind)

    def _finish(
        self, h: np.ndarray, factor: np.ndarray, layer: int, sequence: int, select: Selection | None
    ) -> np.ndarray | int:
        """Make activations of h [B, N], zero where the selection leaves them out; returns how many it does not."""
        if select is None:
            finish_neurons(h, factor, self.c.activation)
            return h.shape[1]
        kept: Any = np.True_
        by_neuron = self.c.layout != BY_INPUT  # else inputs are left out before, which no neuron is spared by
        if by_neuron and len(factor):
            finish_neurons(h, factor[:0], self.c.activation)
            kept = keeps_gated(h, select.gate_weight[layer], select.gate_threshold[sequence, layer])
            h *= factor
        else:
            finish_neurons(h, factor, self.c.activation)
        if by_neuron and len(select.needed):
            kept = kept & (select.needed[sequence, layer] > 0)
        kept = kept & keeps_neuron(h, select.weight[layer], select.threshold[sequence, layer])
        h *= kept
        return np.asarray(kept.sum(-1))

    def _add(self, x: np.ndarray, y: np.ndarray, layer: int, after: int, residual: int) -> None:
        """Add what a sublayer gives to the residual stream."""
        x += self._norm(y, y, layer, after)
        self._norm(x, x, layer, residual)


def _groups(texts: Sequence[Text]) -> Iterator[list[tuple[int, int, Sequence[int]]]]:
    """Pieces of texts that run together, at most `PIECE` tokens in all: number of the text, first position, tokens."""
    group: list[tuple[int, int, Sequence[int]]] = []
    room = PIECE
    for i, (_, first, tokens) in enumerate(texts):
        for begin in range(0, len(tokens), PIECE):
            piece = tokens[begin : begin + PIECE]
            if len(piece) > room:
                yield group
                group, room = [], PIECE
            group.append((i, first + begin, piece))
            room -= len(piece)
    if group:
        yield group


def _read_part(piece: _Piece, head: int, begin: int, caches: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Keys and values of some positions of a head, as they are stored."""
    keys, values = caches[piece.sequence]
    end = min(begin + POSITIONS, piece.end)
    read_cache(piece.keys[head], piece.values[head], keys[head], values[head], begin, end)


def _mix_some(
    weights: np.ndarray, values: np.ndarray, at: int, begin: int, window: int, least: float, least_positions: int
) -> np.ndarray:
    """Attention of consecutive tokens that leaves values out, [B, heads that share them, D].

    Args:
        weights: attention weights [B, heads, C], zero for positions that a token does not see.
        values: [C, D].
        at: position of the first token.
        begin: position of the first value.
        window: positions that a token sees.
        least: weight that keeps a value, as a share of the average.
        least_positions: where fewer are seen, all are kept.
    """
    end = np.arange(at, at + len(weights)) + 1
    seen = np.minimum(end, window)
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    mean = (sums[end - begin] - sums[end - seen - begin]) / seen[:, None].astype(np.float32)
    kept = keeps_value(weights, seen[:, None, None], least, least_positions)
    return np.asarray(mean_for_left_out(weights, kept, values, mean[:, None]))


def _widened(rows: np.ndarray, width: int) -> np.ndarray:
    wide = np.empty((len(rows), width), np.float32)
    widen_rows(wide, rows, 0, False)
    return wide
