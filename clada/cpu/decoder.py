"""Decoding state and steps on the CPU's kernels."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from clada.cpu.kernels.arguments import Boxed, Scratch, Tensors, box
from clada.cpu.kernels.screen import SCREEN_TILE
from clada.cpu.kernels.step import decode_step
from clada.cpu.kernels.team import Team
from clada.cpu.kernels.vectors import LANES
from clada.cpu.pack import PackedModel
from clada.cpu.precision import Precision
from clada.cpu.weights import Weights
from clada.errors import InputError, ModelError
from clada.methods.observed import prompt_statistics
from clada.methods.selection import BY_MATRIX, Selection
from clada.system.machine import aligned, return_memory

# What a `Selection` has of every sequence.
PER_SEQUENCE = (
    "gate_threshold", "threshold", "output_threshold", "input_threshold", "attention_threshold", "screen_threshold",
    "head_margin",
)  # fmt: skip

PIECE = 1024  # tokens of a prompt that run at once: enough for the full speed of matrix products


@dataclass
class Outcome:
    """What a step gave for every sequence; arrays are overwritten by the next step.

    Attributes:
        logits: float32 [B, V], of the next token.
        log_total: [B], log of the sum of exp(logits).
        entropy: [B], of the next token in nats.
        best: [B], the most likely next token.
        active: [B], neurons that added to the output.
        bytes_read: of attention weights, MLP, output head and cache.
    """

    logits: np.ndarray
    log_total: np.ndarray
    entropy: np.ndarray
    best: np.ndarray
    active: np.ndarray
    bytes_read: np.ndarray

    def check(self) -> None:
        """Refuse numbers that are none, which a damaged weight or an overflow makes of all that follows.

        Raises:
            ModelError: the logits of a sequence are not finite.
        """
        if not (np.isfinite(self.log_total).all() and np.isfinite(self.entropy).all()):
            raise ModelError(
                "the model's logits are not finite numbers (NaN or infinite), so that nothing is known of its next "
                "token; load the model again, and in float32"
            )

    def load(self, row: int, token: int) -> tuple[float, float]:
        """Surprisal of a sequence's next token, and the entropy before it, both in bits."""
        surprisal = float(self.log_total[row] - self.logits[row, token]) / math.log(2)
        return max(0.0, surprisal), float(self.entropy[row]) / math.log(2)


@dataclass
class State:
    """Where decoding of a batch stands.

    Attributes:
        tokens: of every sequence, those that have been run.
        outcome: of the last step.
        statistics: [B, L, N], see `prompt_statistics`; None where nobody asked.
        memory: caches and buffers, the decoder's own.
    """

    tokens: list[list[int]]
    outcome: Outcome
    statistics: np.ndarray | None
    memory: Any


@dataclass(frozen=True)
class Bookmark:
    """A place that `Decoder.rewind` goes back to.

    Attributes:
        lengths: tokens of every sequence.
        outcome: a copy.
        value_sum: of the values in each layer's window.
    """

    lengths: list[int]
    outcome: Outcome
    value_sum: np.ndarray


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


def check_tokens(weights: Weights, tokens: Sequence[int]) -> None:
    """Refuse tokens without an embedding, in whose place memory beyond the table would be read.

    Raises:
        InputError: one of them has none.
    """
    if not tokens:
        raise InputError("a sequence without tokens has no next one; give at least one token")
    if min(tokens) < 0 or max(tokens) >= weights.embedding_rows:
        raise InputError(
            f"token ids from {min(tokens):,} to {max(tokens):,} are not all of the model's {weights.embedding_rows:,}; "
            "use the model's own tokenizer"
        )


def run_prompt(weights: PackedModel, ids: torch.Tensor, cache: DynamicCache) -> None:
    """Fill a cache with tokens [1, T], a piece after the other.

    At once, attention would need memory for T^2 positions, also in layers whose window lets a token see few of them.
    """
    for piece in ids.split(PIECE, dim=1):
        weights.stack(piece, past_key_values=cache, use_cache=True)


@dataclass
class _Memory:
    """Buffers of a `State`.

    Attributes:
        scratch: caches, and what the kernels read and write.
        rotary: float32 [n, kinds, 2, rotary width], cosines and sines of the positions from `rotary_begin` on.
        rotary_begin: a position.
        last_arguments: of the last step, with their boxes.
    """

    scratch: Scratch
    rotary: np.ndarray
    rotary_begin: int
    last_arguments: list[tuple[Any, Boxed]] = field(default_factory=list)

    def boxed(self, *arguments: Any) -> list[Boxed]:
        """The kernels' arguments, boxed; most are those of the step before, whose boxes serve again."""
        # The arguments are kept beside their boxes, so that no other object gets the id of one of them.
        last = {id(argument): boxed for argument, boxed in self.last_arguments}
        self.last_arguments = [(argument, last.get(id(argument)) or box(argument)) for argument in arguments]
        return [boxed for _, boxed in self.last_arguments]


class _Gathered(NamedTuple):
    """Of `Decoder`: neurons that some prompts need, their rows side by side; n of them in every layer."""

    made_for: Selection
    tensors: Tensors
    gate_weight: np.ndarray  # [L, n]
    weight: np.ndarray  # [L, n]
    needed: np.ndarray  # [B, L, n], or [0, L, n] if all of them are

    def serves(self, selection: Selection) -> bool:
        """Whether these are the selection's neurons: by identity, as arrays of selections never change."""
        names = ("needed", "gate_weight", "weight")
        return all(getattr(self.made_for, name) is getattr(selection, name) for name in names)


class Decoder:
    """Runs a packed model on the CPU: prompts dense, then tokens as a `Selection` says.

    Args:
        weights: the packed model.
        threads: how many run side by side.
    """

    def __init__(self, weights: Weights, threads: int) -> None:
        self.weights = weights
        self.team = Team(threads)
        # The team, its barriers, the hooks of a prefill and the gathered rows are one for all states.
        self.lock = threading.RLock()
        self._gathered: _Gathered | None = None

    @torch.inference_mode()
    def prefill(
        self, prompts: Sequence[Sequence[int]], room: int, dense: Selection, statistics: str | None = None
    ) -> State:
        """Run prompts, one after the other, and their last tokens together through the kernels.

        Args:
            prompts: token ids, at least one each.
            room: for so many more tokens each.
            dense: a selection that leaves nothing out.
            statistics: kind of `prompt_statistics` to collect.
        """
        for prompt in prompts:
            check_tokens(self.weights, prompt)
        longest, begin = max(map(len, prompts)) + room, min(map(len, prompts)) - 1
        memory = _Memory(self._scratch(len(prompts), longest), self.weights.rotary(torch.arange(begin, longest)), begin)
        of_prompts = []
        if not isinstance(self.weights, PackedModel):  # no modules of transformers on the same memory
            return self._token_by_token(prompts, memory, dense)
        for b, prompt in enumerate(prompts):
            with self.lock, prompt_statistics(self.weights.down, self.weights.down_norm, statistics) as of_prompt:
                if len(prompt) > 1:
                    cache = new_cache(self.weights)
                    run_prompt(self.weights, torch.tensor([prompt[:-1]]), cache)
                    self._copy_cache(cache, memory.scratch, b, len(prompt) - 1)
                    del cache
            of_prompts.append(of_prompt)
        return_memory()
        stacked = None if statistics is None else np.stack([array for array in of_prompts if array is not None])
        state = State([list(prompt[:-1]) for prompt in prompts], _outcome(memory.scratch), stacked, memory)
        self.step(state, [prompt[-1] for prompt in prompts], dense)
        return state

    def _token_by_token(self, prompts: Sequence[Sequence[int]], memory: _Memory, dense: Selection) -> State:
        """Run prompts through the kernels; of several, the shorter ones' beginnings run alone."""
        memory.rotary = np.concatenate([self.weights.rotary(np.arange(memory.rotary_begin)), memory.rotary])
        memory.rotary_begin = 0
        longest = memory.scratch.values.shape[3]
        for b, prompt in enumerate(prompts):
            own = _Memory(self._scratch(1, longest), memory.rotary, 0)
            state = State([[]], _outcome(own.scratch), None, own)
            one = dense._replace(**{name: array[:1] for name, array in dense._asdict().items() if name in PER_SEQUENCE})
            for token in prompt[:-1]:
                self.step(state, [token], one)
            for name in ("keys", "values", "value_sum"):
                getattr(memory.scratch, name)[b] = getattr(own.scratch, name)[0]
        state = State([list(prompt[:-1]) for prompt in prompts], _outcome(memory.scratch), None, memory)
        self.step(state, [prompt[-1] for prompt in prompts], dense)
        return state

    def step(self, state: State, tokens: Sequence[int], selection: Selection) -> None:
        """Run one token of every sequence; `state` moves along.

        Args:
            state: from `prefill`, with room left.
            tokens: one per sequence.
            selection: which rows they need; its arrays must not change afterwards. Rows of `needed` neurons are copied,
                as much memory again as they have, and kept until other ones are asked for.
        """
        check_tokens(self.weights, tokens)
        memory, scratch = state.memory, state.memory.scratch
        for b, (sequence, token) in enumerate(zip(state.tokens, tokens, strict=True)):
            if len(sequence) >= memory.rotary_begin + len(memory.rotary):
                raise IndexError(f"no room for token {len(sequence) + 1}; ask prefill for more")
            scratch.token[b], scratch.position[b] = token, len(sequence)
            scratch.rotary[b] = memory.rotary[len(sequence) - memory.rotary_begin]
            sequence.append(token)
        tensors = self.weights.tensors
        with self.lock:
            if len(selection.needed) and self.weights.constants.layout == BY_MATRIX:
                tensors, selection = self._gather(selection)
            self.team.run(decode_step, *memory.boxed(tensors, self.weights.constants, scratch, selection))

    def _gather(self, selection: Selection) -> tuple[Tensors, Selection]:
        """Weights of the neurons that the sequences need, and what to select among them.

        What is fixed for many tokens is copied once: rows with gaps are read slower than as many without (the log in
        benchmarks/selection-log.md has the times).
        """
        last = self._gathered
        if last is None or not last.serves(selection):
            self._gathered = None  # or both were in memory at once
            self._gathered = last = _gathered(self.weights, selection)
        chosen = selection._replace(gate_weight=last.gate_weight, weight=last.weight, needed=last.needed)
        return last.tensors, chosen

    def bookmark(self, state: State) -> Bookmark:
        """Where a state stands, to come back to."""
        scratch, o = state.memory.scratch, state.outcome
        outcome = Outcome(*(array.copy() for array in vars(o).values()))
        return Bookmark([len(tokens) for tokens in state.tokens], outcome, scratch.value_sum.copy())

    def rewind(self, state: State, mark: Bookmark) -> None:
        """Go back to a bookmark of the same state.

        Keys and values of later tokens stay where they are and are overwritten; the sums of values are not.
        """
        state.tokens = [tokens[:n] for tokens, n in zip(state.tokens, mark.lengths, strict=True)]
        state.memory.scratch.value_sum[:] = mark.value_sum
        for name, array in vars(mark.outcome).items():
            getattr(state.outcome, name)[:] = array

    def select(self, state: State, sequences: Sequence[int]) -> None:
        """Go on with some of the sequences only."""
        scratch = state.memory.scratch
        fewer = self._scratch(len(sequences), scratch.values.shape[3])
        fewer.keys[:] = scratch.keys[sequences]
        fewer.values[:] = scratch.values[sequences]
        fewer.value_sum[:] = scratch.value_sum[sequences]
        for name in ("logits", "log_total", "entropy", "best", "active"):
            getattr(fewer, name)[:] = getattr(scratch, name)[sequences]
        state.memory = _Memory(fewer, state.memory.rotary, state.memory.rotary_begin)
        state.tokens = [state.tokens[b] for b in sequences]
        if state.statistics is not None:
            state.statistics = state.statistics[sequences]
        state.outcome = _outcome(fewer)

    def _copy_cache(self, cache: DynamicCache, scratch: Scratch, b: int, n: int) -> None:
        """Copy keys and values of n positions; sliding windows keep only their last ones."""
        blocks, precision = -(-n // LANES), self.weights.precision.unscaled
        for layer, cached in enumerate(cache.layers):
            keys, values = cached.keys[0], cached.values[0]
            positions = slice(n - keys.shape[1], n)
            scratch.values[b, layer, :, positions] = precision.array(values.to(precision.storage))
            # Without the position that the next token's window no longer reaches.
            in_window = values[:, max(0, values.shape[1] + 1 - int(self.weights.constants.window[layer])) :]
            scratch.value_sum[b, layer] = precision.rounded(in_window).sum(1).numpy()
            padded = keys.new_zeros(keys.shape[0], blocks * LANES, keys.shape[2])
            padded[:, positions] = keys
            blocked = padded.unflatten(1, (blocks, LANES)).transpose(2, 3).flatten(2)
            scratch.keys[b, layer, :, :blocks] = precision.array(blocked.to(precision.storage))

    def _scratch(self, batch: int, positions: int) -> Scratch:
        w, c, threads = self.weights.tensors, self.weights.constants, self.team.threads
        layers, width, hidden = w.output.shape
        neurons, vocabulary = w.down.shape[1], w.head.shape[0]
        blocks = -(-positions // LANES)
        positions, share = blocks * LANES, (blocks // threads + 1) * LANES  # of a thread
        cached = self.weights.precision.unscaled.dtype

        def f(*shape: int) -> np.ndarray:
            array = aligned(shape, np.dtype(np.float32))
            array[:] = 0
            return array

        rotary = self.weights.rotary(torch.zeros(1, dtype=torch.int64))
        return Scratch(
            token=np.zeros(batch, np.int64),
            position=np.zeros(batch, np.int64),
            rotary=f(batch, *rotary.shape[1:]),
            keys=aligned((batch, layers, c.kv_heads, blocks, c.head_dim * LANES), cached),
            values=aligned((batch, layers, c.kv_heads, positions, c.head_dim), cached),
            residual=f(threads, batch, hidden),
            normed=f(threads, batch, hidden),
            qkv=f(batch, width + 2 * c.kv_heads * c.head_dim),
            query=f(threads, c.heads, c.head_dim),
            value_sum=f(batch, layers, c.kv_heads, c.head_dim),
            value_mean=f(batch, c.kv_heads, c.head_dim),
            scores=f(threads, batch, c.heads, share),
            relative=f(threads, share),
            peak=f(threads, batch, c.heads),
            total=f(threads, batch, c.heads),
            kept=f(threads, batch, c.heads),
            mixed=f(threads, batch, c.heads, c.head_dim),
            after_attention=f(threads, batch, hidden),
            after_mlp=f(threads, batch, hidden),
            h=f(batch, neurons),
            up=f(batch, neurons),
            alive=np.zeros((batch, neurons), np.uint8),
            rows=np.zeros((threads, max(neurons, width, hidden, share, vocabulary // threads + 64)), np.int64),
            sequences=np.zeros((threads, batch), np.int64),
            near=aligned((threads, max(neurons, 64)), np.dtype(np.uint8)),
            means=f(threads, batch),
            floors=f(threads, batch),
            narrow=f(batch, w.head.shape[1]),
            screened=f(batch, len(w.screen)),
            terms=f(threads, len(w.screen)),
            steps=np.zeros((threads, len(w.screen) + 7), np.int16),
            estimates=np.zeros((threads, SCREEN_TILE), np.int16),
            load=f(threads, batch, 3),
            peaks=np.zeros((threads, batch), np.int64),
            computed=np.zeros((threads, batch), np.int64),
            reads=np.zeros((threads, 4), np.int64),
            logits=f(batch, vocabulary),
            log_total=f(batch),
            entropy=f(batch),
            best=np.zeros(batch, np.int64),
            active=np.zeros(batch, np.int64),
            bytes_read=np.zeros(4, np.int64),
        )


def _gathered(weights: Weights, selection: Selection) -> _Gathered:
    """Copy the rows of the neurons that any sequence needs."""
    w, any_needed = weights.tensors, selection.needed.any(0)
    # Those first, in their order; layers that need fewer than others have some besides that no sequence needs.
    order = np.argsort(~any_needed, axis=1, kind="stable")[:, : any_needed.sum(1).max()]
    if order.shape == any_needed.shape:
        return _Gathered(selection, w, selection.gate_weight, selection.weight, selection.needed)

    def taken(array: np.ndarray) -> np.ndarray:
        if array.shape[1] == 0:  # scales that there are none of
            return array
        rows = aligned((*order.shape, *array.shape[2:]), array.dtype)
        for row, layer, which in zip(rows, array, order, strict=True):
            np.take(layer, which, axis=0, out=row)
        return rows

    up = {name: taken(getattr(w, name)) for name in ("up", "up_scale", "up_bias")}
    gate = {name.replace("up", "gate"): rows for name, rows in up.items()}
    if weights.constants.gated:
        gate = {name: taken(getattr(w, name)) for name in gate}
    needed = np.take_along_axis(selection.needed, np.broadcast_to(order, (len(selection.needed), *order.shape)), 2)
    return _Gathered(
        selection,
        w._replace(**up, **gate, down=taken(w.down)),
        taken(selection.gate_weight),
        taken(selection.weight),
        needed[:0] if needed.all() else needed,
    )


def _outcome(s: Scratch) -> Outcome:
    """The arrays that a step writes its results to."""
    return Outcome(s.logits, s.log_total, s.entropy, s.best, s.active, s.bytes_read)
