"""Decoding state and steps on the CPU's kernels."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from clada.cpu.kernels.arguments import Boxed, Scratch, Tensors, box
from clada.cpu.kernels.head import SCREEN_TILE
from clada.cpu.kernels.rows import prepared_size
from clada.cpu.kernels.step import decode_step
from clada.cpu.kernels.team import Team
from clada.cpu.kernels.vectors import LANES
from clada.cpu.prompts.layers import HiddenStates, Prompts, Text
from clada.cpu.weights import Weights
from clada.errors import InputError, ModelError
from clada.methods.selection import BY_MATRIX, Selection
from clada.system.machine import aligned, return_memory

COLUMNS = 48  # tokens at most of a prompt that runs in one step; more take less time in products of matrices

HEAD_COLUMNS = 16  # that the output head computes at once: more keep the processor no busier


@dataclass
class Outcome:
    """What a step gave for every sequence; arrays are overwritten by the next step.

    Attributes:
        logits: float32 [B, V], of the next token.
        log_total: [B], log of the sum of exp(logits).
        entropy: [B], of the next token in nats.
        best: [B], the most likely next token.
        neurons: [B, L], of every layer, that added to the output.
        bytes_read: of attention weights, MLP, output head and cache.
    """

    logits: np.ndarray
    log_total: np.ndarray
    entropy: np.ndarray
    best: np.ndarray
    neurons: np.ndarray
    bytes_read: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """[B], neurons of all layers that added to the output."""
        return self.neurons.sum(-1)

    def rows(self, which: Sequence[int] | np.ndarray) -> Outcome:
        """The outcome of some of the sequences; of a single one it shares the memory."""
        some: Any = slice(which[0], which[0] + 1) if len(which) == 1 else list(which)
        logits, log_total, entropy, best, neurons = (
            array[some] for array in (self.logits, self.log_total, self.entropy, self.best, self.neurons)
        )
        return Outcome(logits, log_total, entropy, best, neurons, self.bytes_read)

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


@dataclass
class _Memory:
    """Buffers of a `State`.

    Attributes:
        scratch: caches, and what the kernels read and write for one position of every sequence.
        rotary: float32 [n, kinds, 2, rotary width], cosines and sines of the positions.
        outcome: what `scratch` has of the last step.
        wider: by how many there are, the same caches with what the kernels read and write for more columns.
        followers: by their decoder, the states that `Decoder.follow` made.
        followed: of a follower, how many tokens of every sequence its caches have.
        last_run: of the last step, the caches with what it read and wrote.
        last_arguments: of the last step, with their boxes.
    """

    scratch: Scratch
    rotary: np.ndarray
    outcome: Outcome
    wider: dict[int, Scratch] = field(default_factory=dict)
    followers: dict[Any, State] = field(default_factory=dict)
    followed: list[int] = field(default_factory=list)
    last_run: Scratch | None = None
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


class _Caches(NamedTuple):
    """Keys and values of some sequences, as in `Scratch`."""

    keys: np.ndarray
    values: np.ndarray
    value_sum: np.ndarray


class _Threads:
    """A team, and the lock of whoever uses it; one for all decoders of as many threads.

    While one team works, the threads of another would look for their next call on the same cores.
    """

    _living: ClassVar[weakref.WeakValueDictionary[int, _Threads]] = weakref.WeakValueDictionary()
    _making = threading.Lock()

    def __init__(self, threads: int) -> None:
        self.team, self.lock = Team(threads), threading.RLock()

    @classmethod
    def of(cls, threads: int) -> _Threads:
        """Those that other decoders use, or new ones."""
        with cls._making:
            found = cls._living.get(threads) or cls(threads)
            cls._living[threads] = found
            return found


class Decoder:
    """Runs a packed model on the CPU: prompts dense, then tokens as a `Selection` says.

    Args:
        weights: the packed model.
        threads: how many run side by side.
    """

    def __init__(self, weights: Weights, threads: int) -> None:
        self.weights = weights
        self._threads = _Threads.of(threads)
        # The team, its barriers, the hooks of a prefill and the gathered rows are one for all states.
        self.team, self.lock = self._threads.team, self._threads.lock
        self._gathered: _Gathered | None = None

    def prefill(
        self, prompts: Sequence[Sequence[int]], room: int, dense: Selection, statistics: str | None = None
    ) -> State:
        """Run prompts, one after the other, and their last tokens together.

        Args:
            prompts: token ids, at least one each.
            room: for so many more tokens each.
            dense: a selection that leaves nothing out.
            statistics: kind of `clada.methods.rules.statistics_of_sums` to collect, over all tokens but the last.
        """
        for prompt in prompts:
            check_tokens(self.weights, prompt)
        longest = max(map(len, prompts)) + room
        scratch = self._scratch(len(prompts), longest)
        memory = _Memory(scratch, self.weights.rotary(np.arange(longest)), _outcome(scratch))
        state = State([[] for _ in prompts], memory.outcome, None, memory)
        with self.lock:
            state.statistics = self._run_prompts(state, prompts, dense, statistics)
        return_memory()
        self.step(state, [prompt[-1] for prompt in prompts], dense)
        return state

    def _run_prompts(
        self, state: State, prompts: Sequence[Sequence[int]], dense: Selection, statistics: str | None
    ) -> np.ndarray | None:
        """Run prompts but their last tokens; statistics [B, L, N], or None."""
        texts = [Text(b, 0, prompt[:-1]) for b, prompt in enumerate(prompts) if len(prompt) > 1]
        long = [text for text in texts if len(text.tokens) > COLUMNS or statistics is not None]
        values = np.zeros((len(prompts), *self.weights.down_norm.shape), np.float32)
        if long:
            found = Prompts(self.weights, self.team.threads, statistics).run(long, state.memory.scratch)
            for text, of_text in zip(long, found, strict=True):
                state.tokens[text.sequence] = list(text.tokens)
                values[text.sequence] = of_text
        for b, _, tokens in texts:
            if not state.tokens[b]:
                pieces = [tokens if other == b else [] for other in range(len(prompts))]
                self._run(state, pieces, dense, self._wider(state, len(tokens)), asked=len(tokens))
        state.memory.wider.clear()
        return None if statistics is None else values

    def step(self, state: State, tokens: Sequence[int], selection: Selection) -> None:
        """Run one token of every sequence; `state` moves along.

        Args:
            state: from `prefill`, with room left.
            tokens: one per sequence.
            selection: which rows they need; its arrays must not change afterwards. Rows of `needed` neurons are copied,
                as much memory again as they have, and kept until other ones are asked for.
        """
        check_tokens(self.weights, tokens)
        self._run(state, [[token] for token in tokens], selection, state.memory.scratch)
        state.outcome = state.memory.outcome

    def run(self, state: State, pieces: Sequence[Sequence[int]], selection: Selection) -> Outcome:
        """Run some consecutive tokens of every sequence in one step, which reads each weight once.

        What each token gets has the same bits as in steps of one token.

        Args:
            state: from `prefill`, with room left; it moves along.
            pieces: tokens of every sequence, at least one each. Some 16 in all keep the processor as busy as it can be.
            selection: as in `step`.

        Returns:
            what the step gave for every token, those of the first sequence first; overwritten by the next step of as
            many tokens.
        """
        for piece in pieces:
            check_tokens(self.weights, piece)
        scratch = self._wider(state, sum(map(len, pieces)))
        self._run(state, pieces, selection, scratch)
        outcome = _outcome(scratch)
        state.outcome = outcome.rows(np.cumsum([len(piece) for piece in pieces]) - 1)
        return outcome

    def read(self, state: State, pieces: Sequence[Sequence[int]], selection: Selection | None) -> HiddenStates:
        """Run many tokens of every sequence through the layers, in products of matrices as prompts.

        Rules are those of a step, sums are in another order. Logits of what comes out gives `output_head`.

        Args:
            state: from `prefill`, with room left; it moves along, but its outcome stays as it was.
            pieces: tokens of every sequence, at least one each.
            selection: as in `step`; what it leaves out saves no time here. None: nothing is left out.

        Returns:
            of all tokens, those of the first sequence first.

        Raises:
            InputError: a piece without tokens, or a token without an embedding.
            IndexError: there is no room.
        """
        texts = []
        for b, (tokens, piece) in enumerate(zip(state.tokens, pieces, strict=True)):
            check_tokens(self.weights, piece)
            if len(tokens) + len(piece) > len(state.memory.rotary):
                raise IndexError(f"no room for {len(piece)} tokens after {len(tokens)}; ask prefill for more")
            texts.append(Text(b, len(tokens), piece))
        with self.lock:
            hidden = Prompts(self.weights, self.team.threads).read(texts, state.memory.scratch, selection)
        for tokens, piece in zip(state.tokens, pieces, strict=True):
            tokens.extend(piece)
        return hidden

    def output_head(self, residual: np.ndarray, sequences: np.ndarray, selection: Selection) -> Iterator[Outcome]:
        """Logits of the next token and what follows from them, of hidden states.

        Args:
            residual: float32 [n, H], of `read`.
            sequences: [n], of which sequence of the selection each row is, in any order.
            selection: what is left out of the output head.

        Yields:
            of `HEAD_COLUMNS` rows, or what is left of them, in their order; overwritten by the next ones.
        """
        tensors, batch = self.weights.tensors, len(selection.head_margin)
        arguments = box(tensors), box(self.weights.constants), box(selection)
        scratches = {}
        for begin in range(0, len(residual), HEAD_COLUMNS):
            rows = residual[begin : begin + HEAD_COLUMNS]
            if len(rows) not in scratches:
                scratch = self._buffers(len(rows), self._caches(batch, 1))
                scratch.layers_done[0] = len(tensors.output)
                scratches[len(rows)] = scratch, box(scratch)
            scratch, boxed = scratches[len(rows)]
            scratch.residual[:] = rows
            scratch.sequence[:] = sequences[begin : begin + HEAD_COLUMNS]
            with self.lock:
                self.team.run(decode_step, arguments[0], arguments[1], boxed, arguments[2])
            yield _outcome(scratch)

    def keep(self, state: State, counts: Sequence[int]) -> None:
        """Stand within the last `run`: of the tokens that it ran, every sequence has the first so many, and no others.

        Args:
            state: which `run` has moved, and nothing else since.
            counts: one per sequence, at least 1.
        """
        scratch = state.memory.last_run
        which = []
        for sequence, count in enumerate(counts):
            columns = np.flatnonzero(scratch.sequence == sequence)[:count]
            state.tokens[sequence][scratch.position[columns[0]] :] = scratch.token[columns].tolist()
            which.append(columns[-1])
            scratch.value_sum[sequence] = scratch.value_sums[which[-1]]
        state.outcome = _outcome(scratch).rows(np.array(which))

    def follow(self, leader: State) -> State:
        """A state of this decoder that stands where the state of another one does, for steps of its own from there.

        Args:
            leader: of a decoder of the same model at another precision. Keys and values of its tokens serve here too.
                Where both are stored alike they are the same memory, and what is run here is overwritten when the
                leader goes on.

        Returns:
            a state, the same one for a leader, without an outcome before it was moved.
        """
        memory, led = leader.memory, leader.memory.scratch
        if self not in memory.followers:
            dtype = self.weights.precision.unscaled.dtype
            shared = led.values.dtype == dtype
            keys, values = (array if shared else aligned(array.shape, dtype) for array in (led.keys, led.values))
            scratch = self._buffers(len(led.token), _Caches(keys, values, led.value_sum.copy()))
            own = _Memory(scratch, memory.rotary, _outcome(scratch), followed=[0] * len(led.token))
            memory.followers[self] = State([[] for _ in leader.tokens], own.outcome, None, own)
        follower = memory.followers[self]
        scratch = follower.memory.scratch
        if scratch.values is not led.values:
            for b, (tokens, known) in enumerate(zip(leader.tokens, follower.memory.followed, strict=True)):
                self._copy_positions(led, scratch, b, known, len(tokens))
        follower.memory.followed = [len(tokens) for tokens in leader.tokens]
        scratch.value_sum[:] = led.value_sum
        follower.tokens = [list(tokens) for tokens in leader.tokens]
        return follower

    def _copy_positions(self, source: Scratch, target: Scratch, b: int, begin: int, end: int) -> None:
        """Copy keys and values of a sequence's positions, rounded to what `target` stores."""
        blocks = slice(begin // LANES, -(-end // LANES))
        for name, places in (("values", slice(begin, end)), ("keys", blocks)):
            numbers = getattr(source, name)[b, :, :, places]
            getattr(target, name)[b, :, :, places] = self.weights.precision.unscaled.stored(numbers)

    def _run(
        self, state: State, pieces: Sequence[Sequence[int]], selection: Selection, scratch: Scratch, asked: int = 0
    ) -> None:
        """Run tokens as columns of `scratch`, with logits from column `asked` on."""
        memory, b = state.memory, 0
        for sequence, (tokens, piece) in enumerate(zip(state.tokens, pieces, strict=True)):
            if len(tokens) + len(piece) > len(memory.rotary):
                raise IndexError(f"no room for token {len(tokens) + len(piece)}; ask prefill for more")
            for token in piece:
                scratch.token[b], scratch.sequence[b], scratch.position[b] = token, sequence, len(tokens)
                scratch.rotary[b] = memory.rotary[len(tokens)]
                tokens.append(token)
                b += 1
        scratch.asked_from[0] = asked
        memory.last_run = scratch
        tensors = self.weights.tensors
        with self.lock:
            gathers = self.weights.constants.layout == BY_MATRIX and not self.weights.precision.in_blocks
            if len(selection.needed) and gathers:
                tensors, selection = self._gather(selection)
            self.team.run(decode_step, *memory.boxed(tensors, self.weights.constants, scratch, selection))

    def _wider(self, state: State, columns: int) -> Scratch:
        """The state's caches with buffers for so many columns."""
        memory = state.memory
        if columns == len(memory.scratch.token):
            return memory.scratch
        if columns not in memory.wider:
            memory.wider[columns] = self._buffers(columns, memory.scratch)
        return memory.wider[columns]

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
        state.memory.followers.clear()  # they have keys and values of tokens that are gone
        state.outcome = state.memory.outcome
        for name, array in vars(mark.outcome).items():
            getattr(state.outcome, name)[:] = array

    def select(self, state: State, sequences: Sequence[int]) -> None:
        """Go on with some of the sequences only."""
        scratch = state.memory.scratch
        fewer = self._scratch(len(sequences), scratch.values.shape[3])
        fewer.keys[:] = scratch.keys[sequences]
        fewer.values[:] = scratch.values[sequences]
        fewer.value_sum[:] = scratch.value_sum[sequences]
        memory = _Memory(fewer, state.memory.rotary, _outcome(fewer))
        for name in ("logits", "log_total", "entropy", "best", "neurons"):
            getattr(memory.outcome, name)[:] = getattr(state.outcome, name)[sequences]
        state.memory, state.outcome = memory, memory.outcome
        state.tokens = [state.tokens[b] for b in sequences]
        if state.statistics is not None:
            state.statistics = state.statistics[sequences]

    def _scratch(self, batch: int, positions: int) -> Scratch:
        """Caches for so many sequences of so many positions, and buffers for one column of each."""
        return self._buffers(batch, self._caches(batch, positions))

    def _caches(self, batch: int, positions: int) -> _Caches:
        c, layers = self.weights.constants, len(self.weights.tensors.output)
        blocks, cached = -(-positions // LANES), self.weights.precision.unscaled.dtype
        return _Caches(
            aligned((batch, layers, c.kv_heads, blocks, c.head_dim * LANES), cached),
            aligned((batch, layers, c.kv_heads, blocks * LANES, c.head_dim), cached),
            _zeros(batch, layers, c.kv_heads, c.head_dim),
        )

    def _buffers(self, batch: int, caches: _Caches | Scratch) -> Scratch:
        """Caches with buffers for so many columns."""
        w, c, threads = self.weights.tensors, self.weights.constants, self.team.threads
        layers, width = w.output.shape[:2]
        neurons, hidden, vocabulary = w.down.shape[1], w.final_norm.shape[1], w.head.shape[0]
        share = (caches.keys.shape[3] // threads + 1) * LANES  # positions of a thread
        f, rotary = _zeros, self.weights.rotary(np.zeros(1))
        return Scratch(
            token=np.zeros(batch, np.int64),
            sequence=np.arange(batch),
            position=np.zeros(batch, np.int64),
            columns=np.arange(batch),
            asked_from=np.zeros(1, np.int64),
            layers_done=np.zeros(1, np.int64),
            rotary=f(batch, *rotary.shape[1:]),
            keys=caches.keys,
            values=caches.values,
            value_sum=caches.value_sum,
            residual=f(threads, batch, hidden),
            normed=f(threads, batch, hidden),
            rounded=np.zeros((threads, batch, prepared_size(hidden)), np.int16),
            rounded_narrow=np.zeros((threads, batch, prepared_size(w.before_layers.shape[1])), np.int16),
            qkv=f(batch, width + 2 * c.kv_heads * c.head_dim),
            query=f(threads, c.heads, c.head_dim),
            attended=f(batch, width),
            value_sums=f(batch, layers, c.kv_heads, c.head_dim),
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
            some_columns=np.zeros((threads, batch), np.int64),
            near=aligned((threads, max(neurons, width, 64)), np.dtype(np.uint8)),
            means=f(threads, batch),
            floors=f(threads, batch),
            narrow=f(batch, w.before_layers.shape[1]),
            screened=f(batch, len(w.screen)),
            terms=f(threads, len(w.screen)),
            steps=np.zeros((threads, len(w.screen) + 7), np.int16),
            estimates=np.zeros((threads, SCREEN_TILE), np.int16),
            load=f(threads, batch, 3),
            peaks=np.zeros((threads, batch), np.int64),
            computed=np.zeros((threads, batch, layers), np.int64),
            reads=np.zeros((threads, 4), np.int64),
            logits=aligned((batch, vocabulary), np.dtype(np.float32)),  # pages that nothing writes take no memory
            log_total=f(batch),
            entropy=f(batch),
            best=np.zeros(batch, np.int64),
            neurons=np.zeros((batch, layers), np.int64),
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


def _zeros(*shape: int) -> np.ndarray:
    array = aligned(shape, np.dtype(np.float32))
    array[:] = 0
    return array


def _outcome(s: Scratch) -> Outcome:
    """The arrays that a step writes its results to."""
    return Outcome(s.logits, s.log_total, s.entropy, s.best, s.neurons, s.bytes_read)
