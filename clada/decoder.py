"""Decoding state and steps: `Decoder` on the CPU's kernels, `TorchDecoder` elsewhere and as their reference."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.activations import ACT2FN
from transformers.masking_utils import eager_mask

from clada.families import replaced_forwards
from clada.kernels import (
    ATTENTION_INPUT,
    BY_INPUT,
    BY_MATRIX,
    CODE_OF_ZERO,
    LANES,
    LARGEST_SUM,
    MLP_INPUT,
    SCREEN_TILE,
    Held,
    Scratch,
    Selection,
    Tensors,
    decode_step,
    hold,
)
from clada.threads import return_memory
from clada.weights import Weights, aligned

PIECE = 1024  # tokens of a prompt that run at once: enough for the full speed of matrix products


class Team:
    """Threads that run one function side by side.

    They are Python's own: a pool of numba's beside torch's would have both spin on the same cores between regions.
    These sleep while there is nothing to do for longer than between two tokens.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # Arrivals at barriers, barriers passed and calls begun, each on a cache line of its own.
        self._sync = np.zeros((3, 8), np.int64)
        self._calls: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(threads - 1)]
        for t, calls in enumerate(self._calls, 1):
            threading.Thread(target=_work, args=(t, threads, self._sync, calls), daemon=True).start()
        weakref.finalize(self, _dismiss, self._calls)

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Call function(t, threads, sync, *args) in every thread.

        It must begin with `clada.kernels.begin_call` and end with `end_call`, or with what the first thread alone does.
        """
        number = int(self._sync[2, 0])
        try:
            self._run(number, function, args)
        except (KeyboardInterrupt, SystemExit):
            # Others may wait for a thread that was interrupted before it began: take part first.
            if self._sync[2, 0] == number:
                self._run(number, function, args)
            raise

    def _run(self, number: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        for calls in self._calls:
            calls.put((number, function, args))
        function(0, self.threads, self._sync, *args)


def _work(t: int, threads: int, sync: np.ndarray, calls: SimpleQueue[Any]) -> None:
    last = -1
    while (call := calls.get()) is not None:
        number, function, args = call
        if number != last:  # the same again after an interruption
            function(t, threads, sync, *args)
        last = number
        del call, function, args  # or the last step's arrays live until the next one


def _dismiss(calls: Sequence[SimpleQueue[Any]]) -> None:
    for queue in calls:
        queue.put(None)


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
        value_sum: of the values that each layer's window holds.
    """

    lengths: list[int]
    outcome: Outcome
    value_sum: np.ndarray


class RoundedCache(DynamicCache):
    """Keys and values as they are kept beside weights of bfloat16 and int8."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Round to bfloat16, then go on as usual."""
        return super().update(key_states.bfloat16().float(), value_states.bfloat16().float(), *args, **kwargs)


def new_cache(weights: Weights) -> DynamicCache:
    """An empty cache for a packed model."""
    kind = DynamicCache if weights.dtype == "float32" else RoundedCache
    return kind(config=weights.model.config)


def run_prompt(weights: Weights, ids: torch.Tensor, cache: DynamicCache) -> None:
    """Fill a cache with tokens [1, T], a piece after the other.

    At once, attention would need memory for T^2 positions, also in layers whose window lets a token see few of them.
    """
    for piece in ids.split(PIECE, dim=1):
        weights.stack(piece, past_key_values=cache, use_cache=True)


def neuron_statistics(z: torch.Tensor, kind: str, down_norm: np.ndarray) -> np.ndarray:
    """What a layer's neurons did over some tokens; see `prompt_statistics`.

    Args:
        z: activations [T, N], T at least 1.
        kind: `flocking` or `magnitude`.
        down_norm: [N].

    Returns:
        float32 [N].
    """
    if kind == "flocking":
        z = z / z.norm(dim=-1, keepdim=True).clamp_min(1e-20)
        return np.asarray(z.norm(dim=0).cpu().numpy())
    return np.asarray(z.square().mean(0).sqrt().cpu().numpy() * down_norm)


@contextmanager
def prompt_statistics(weights: Weights, kind: str | None) -> Iterator[np.ndarray | None]:
    """Within the block, what the neurons did over the tokens that run: float32 [L, N].

    Args:
        weights: of the model that runs.
        kind: `flocking` is GRIFFIN's || z_j / ||z_t||_2 ||_2 over tokens t (Dong et al. 2024); `magnitude` the root
            mean square of c_i = |h_i| ||w_down_i|| (Eq. 9); None: nothing is collected.
    """
    if kind is None:
        yield None
        return
    found = np.zeros(weights.down_norm.shape, np.float32)
    seen = [0] * len(found)  # tokens, of each layer

    def hook_of(layer: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            z = inputs[0].reshape(-1, inputs[0].shape[-1])
            part = neuron_statistics(z, kind, weights.down_norm[layer])
            if seen[layer]:  # both kinds are roots of sums or means of squares
                before, now = (1, 1) if kind == "flocking" else np.array([seen[layer], len(z)]) / (seen[layer] + len(z))
                part = np.sqrt(before * found[layer] ** 2 + now * part**2)
            found[layer] = part
            seen[layer] += len(z)

        return hook

    handles = [module.register_forward_pre_hook(hook_of(i)) for i, module in enumerate(weights.down)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Memory:
    """Of `Decoder`: buffers, cosines and sines from position `rotary_begin` on, and the last step's arguments."""

    scratch: Scratch
    rotary: np.ndarray
    rotary_begin: int
    held: list[tuple[Any, Held]] = field(default_factory=list)

    def hold(self, *values: Any) -> list[Held]:
        """The kernels' arguments; most are those of the step before."""
        last = {id(value): held for value, held in self.held}  # the values are kept, so that ids stay theirs
        self.held = [(value, last.get(id(value)) or hold(value)) for value in values]
        return [held for _, held in self.held]


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
        longest, begin = max(map(len, prompts)) + room, min(map(len, prompts)) - 1
        memory = _Memory(self._scratch(len(prompts), longest), self.weights.rotary(torch.arange(begin, longest)), begin)
        collected = []
        for b, prompt in enumerate(prompts):
            with prompt_statistics(self.weights, statistics) as found:
                if len(prompt) > 1:
                    cache = new_cache(self.weights)
                    run_prompt(self.weights, torch.tensor([prompt[:-1]]), cache)
                    self._take(cache, memory.scratch, b, len(prompt) - 1)
                    del cache
            collected.append(found)
        return_memory()
        kept = None if statistics is None else np.stack([found for found in collected if found is not None])
        state = State([list(prompt[:-1]) for prompt in prompts], _outcome(memory.scratch), kept, memory)
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
        memory, scratch = state.memory, state.memory.scratch
        for b, (sequence, token) in enumerate(zip(state.tokens, tokens, strict=True)):
            if len(sequence) >= memory.rotary_begin + len(memory.rotary):
                raise IndexError(f"no room for token {len(sequence) + 1}; ask prefill for more")
            scratch.token[b], scratch.position[b] = token, len(sequence)
            scratch.rotary[b] = memory.rotary[len(sequence) - memory.rotary_begin]
            sequence.append(token)
        tensors = self.weights.tensors
        if len(selection.needed) and self.weights.constants.layout == BY_MATRIX:
            tensors, selection = self._gather(selection)
        self.team.run(decode_step, *memory.hold(tensors, self.weights.constants, scratch, selection))

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
        """Go back to a bookmark of the same state; its outcome lies in the bookmark until the next step.

        Keys and values of later tokens stay where they are and are overwritten; the sums of values are not.
        """
        state.tokens = [tokens[:n] for tokens, n in zip(state.tokens, mark.lengths, strict=True)]
        state.memory.scratch.value_sum[:] = mark.value_sum

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

    def _take(self, cache: DynamicCache, scratch: Scratch, b: int, n: int) -> None:
        """Copy keys and values of n positions; sliding windows keep only their last ones."""
        blocks = -(-n // LANES)
        for layer, kept in enumerate(cache.layers):
            keys, values = kept.keys[0], kept.values[0]
            held = slice(n - keys.shape[1], n)
            scratch.values[b, layer, :, held] = self._stored(values)
            # Without the position that the next token's window no longer reaches.
            in_window = values[:, max(0, values.shape[1] + 1 - int(self.weights.constants.window[layer])) :]
            scratch.value_sum[b, layer] = self._rounded(in_window).sum(1).numpy()
            padded = keys.new_zeros(keys.shape[0], blocks * LANES, keys.shape[2])
            padded[:, held] = keys
            blocked = padded.unflatten(1, (blocks, LANES)).transpose(2, 3).flatten(2)
            scratch.keys[b, layer, :, :blocks] = self._stored(blocked)

    def _stored(self, x: torch.Tensor) -> np.ndarray:
        if self.weights.dtype == "float32":
            return x.numpy()
        return x.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.weights.dtype == "float32" else x.bfloat16().float()

    def _scratch(self, batch: int, positions: int) -> Scratch:
        w, c, threads = self.weights.tensors, self.weights.constants, self.team.threads
        layers, width, hidden = w.output.shape
        neurons, vocabulary = w.down.shape[1], w.head.shape[0]
        blocks = -(-positions // LANES)
        positions, share = blocks * LANES, (blocks // threads + 1) * LANES  # of a thread
        kept = np.dtype(np.float32 if self.weights.dtype == "float32" else np.uint16)

        def f(*shape: int) -> np.ndarray:
            array = aligned(shape, np.dtype(np.float32))
            array[:] = 0
            return array

        rotary = self.weights.rotary(torch.zeros(1, dtype=torch.int64))
        return Scratch(
            token=np.zeros(batch, np.int64),
            position=np.zeros(batch, np.int64),
            rotary=f(batch, *rotary.shape[1:]),
            keys=aligned((batch, layers, c.kv_heads, blocks, c.head_dim * LANES), kept),
            values=aligned((batch, layers, c.kv_heads, positions, c.head_dim), kept),
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


def selective_attention(
    module: torch.nn.Module,  # noqa: ARG001  # transformers gives it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    least_weight: float,
    least_positions: int,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one token that gives the mean of all values to positions whose weights are small.

    An attention function for transformers; the mean in the place of what is left out is SparQ's (Ribar et al. 2024).

    Args:
        module: the attention layer.
        query: [B, heads, 1, D].
        key: [B, kv heads, C, D].
        value: the same shape.
        attention_mask: added to the scores, or None.
        scaling: of scores.
        softcap: of scores.
        least_weight: as a share of the average weight; a position's value counts for all heads that share it if one
            of them gives it as much.
        least_positions: to be seen, else all values count.

    Returns:
        [B, 1, heads, D], None.
    """
    batch, heads, _, width = query.shape
    shared = query.reshape(batch, key.shape[1], -1, width)  # heads that share keys side by side
    scores = shared @ key.transpose(2, 3) * (width**-0.5 if scaling is None else scaling)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., -key.shape[2] :]
    visible = scores[:, :1, :1] > torch.finfo(scores.dtype).min / 2
    weights, seen = scores.softmax(-1), visible.sum(-1, keepdim=True)
    kept = (weights >= least_weight / seen).any(2, keepdim=True) | (seen < least_positions)
    mean = (value * visible.transpose(2, 3)).sum(2, keepdim=True) / seen
    mixed = (weights * kept) @ value + (weights * ~kept).sum(-1, keepdim=True) * mean
    return mixed.reshape(batch, 1, heads, width), None


AttentionInterface.register("clada", selective_attention)
AttentionMaskInterface.register("clada", eager_mask)


@contextmanager
def attention_of(weights: Weights, least_weight: float, least_positions: int) -> Iterator[dict[str, float]]:
    """Within the block the model attends selectively, given these arguments; dense where the least weight is 0."""
    if least_weight == 0:
        yield {}
        return
    config = weights.model.config
    before = config._attn_implementation
    config._attn_implementation = "clada"
    try:
        yield {"least_weight": least_weight, "least_positions": least_positions}
    finally:
        config._attn_implementation = before


class TorchDecoder:
    """The same in plain torch, for other devices and as the reference the kernels are tested against.

    Makes the same choices, by the formulas as they are written, and gathers only the rows that are needed.

    Args:
        weights: the packed model, on any device.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.activation = ACT2FN[weights.activation]

    @torch.inference_mode()
    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,  # noqa: ARG002  # caches grow by themselves
        dense: Selection,
        statistics: str | None = None,
    ) -> State:
        """As `Decoder.prefill`."""
        caches, collected = [], []
        for prompt in prompts:
            caches.append(new_cache(self.weights))
            with prompt_statistics(self.weights, statistics) as found:
                if len(prompt) > 1:
                    run_prompt(self.weights, torch.tensor([prompt[:-1]], device=self._device), caches[-1])
            collected.append(found)
        kept = None if statistics is None else np.stack([found for found in collected if found is not None])
        nothing = np.zeros(len(prompts))
        empty = Outcome(nothing, nothing, nothing, nothing, nothing, nothing)
        state = State([list(prompt[:-1]) for prompt in prompts], empty, kept, caches)
        self.step(state, [prompt[-1] for prompt in prompts], dense)
        return state

    @property
    def _device(self) -> torch.device:
        return self.weights.model.get_input_embeddings().weight.device

    @cached_property
    def _screen(self) -> list[torch.Tensor]:
        return [tensor.to(self._device) for tensor in self.weights.screen.wide()]

    @torch.inference_mode()
    def step(self, state: State, tokens: Sequence[int], selection: Selection) -> None:
        """As `Decoder.step`, one sequence after the other."""
        logits, active = [], []
        for b, token in enumerate(tokens):
            counts: list[int] = []
            modules, forwards = self._forwards(b, selection, counts)
            ids = torch.tensor([[token]], device=self._device)
            attention = attention_of(self.weights, float(selection.attention_threshold[b]), selection.attention_from)
            with replaced_forwards(modules, forwards), attention as more:
                out = self.weights.model(ids, past_key_values=state.memory[b], use_cache=True, **more)
                logits.append(out.logits[0, -1])
            active.append(sum(counts))
            state.tokens[b].append(token)
        stacked = torch.stack(logits).float()
        log_total = stacked.double().logsumexp(-1)
        p = (stacked.double() - log_total[:, None]).exp()
        state.outcome = Outcome(
            logits=stacked.cpu().numpy(),
            log_total=log_total.cpu().numpy(),
            entropy=(log_total - (p * stacked).sum(-1)).cpu().numpy(),
            best=stacked.argmax(-1).cpu().numpy(),
            active=np.array(active),
            bytes_read=np.zeros(4, np.int64),  # the device's caches decide that
        )

    def select(self, state: State, sequences: Sequence[int]) -> None:
        """Go on with some of the sequences only."""
        state.memory = [state.memory[b] for b in sequences]
        state.tokens = [state.tokens[b] for b in sequences]
        o, rows = state.outcome, list(sequences)
        state.outcome = Outcome(
            o.logits[rows], o.log_total[rows], o.entropy[rows], o.best[rows], o.active[rows], o.bytes_read
        )
        if state.statistics is not None:
            state.statistics = state.statistics[list(sequences)]

    def _forwards(self, b: int, select: Selection, counts: list[int]) -> tuple[list[Any], list[Any]]:
        """Modules and what they compute instead, for one token of sequence b."""
        w = self.weights
        device = self._device

        def at(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, device=device)

        def gathered(module: Any, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            """X [1, 1, inputs] through a transposed matrix, reading only the rows of inputs that are kept."""
            kept = keep.nonzero().squeeze(1)
            y = x.reshape(-1)[kept] @ module.rows.wide(kept)
            return (y if module.bias is None else y + module.bias).view(1, 1, -1)

        def by_input(module: Any, weight: np.ndarray, limit: float) -> Any:
            return lambda x: gathered(module, x, x.reshape(-1).abs() * at(weight) >= limit)

        modules: list[Any] = []
        forwards: list[Any] = []
        for layer in range(len(w.down)):
            gate, up, down, output = w.gate[layer], w.up[layer], w.down[layer], w.outputs[layer]
            needed = at(select.needed[b, layer]).bool() if len(select.needed) else None
            kept: dict[str, torch.Tensor] = {}

            def run_gate(x, gate=gate, layer=layer, kept=kept, needed=needed):  # type: ignore[no-untyped-def]
                y = type(gate).forward(gate, x)
                passed = self.activation(y.reshape(-1)).abs() * at(select.gate_weight[layer])
                kept["up"] = passed >= float(select.gate_threshold[b, layer])
                if needed is not None:
                    kept["up"] &= needed
                return y

            def run_up(x, up=up, kept=kept, needed=needed):  # type: ignore[no-untyped-def]
                keep = kept.get("up", needed)
                if keep is None:
                    return type(up).forward(up, x)
                rows = keep.nonzero().squeeze(1)
                y = torch.zeros(len(up.bias), device=x.device)
                y[rows] = up.rows.wide(rows) @ x.reshape(-1) + up.bias[rows]
                return y.view(1, 1, -1)

            def run_down(h, down=down, layer=layer, kept=kept, needed=needed):  # type: ignore[no-untyped-def]
                keep = h.reshape(-1).abs() * at(select.weight[layer]) >= float(select.threshold[b, layer])
                keep &= kept.get("up", needed if needed is not None else torch.ones_like(keep))
                counts.append(int(keep.sum()))
                return gathered(down, h, keep)

            modules += [down, output]
            limit = float(select.output_threshold[b, layer])
            forwards += [run_down, by_input(output, select.output_weight[layer], limit)]
            if w.constants.layout == BY_INPUT:
                for place, parts in ((ATTENTION_INPUT, w.qkv[layer]), (MLP_INPUT, [gate, up])):
                    for module in parts:
                        if module is not None:
                            modules.append(module)
                            limit = float(select.input_threshold[b, layer, place])
                            forwards.append(by_input(module, select.input_weight[layer, place], limit))
            else:
                modules.append(up)
                forwards.append(run_up)
                if gate is not None:
                    modules.append(gate)
                    forwards.append(run_gate)
        if len(w.tensors.screen) and np.isfinite(select.head_margin[b]):
            head = w.model.get_output_embeddings()
            modules.append(head)
            forwards.append(lambda x: self._screened(head, x.reshape(-1), b, select).view(1, 1, -1))
        return modules, forwards

    def _screened(self, head: Any, x: torch.Tensor, b: int, select: Selection) -> torch.Tensor:
        """Logits as the kernels screen them."""
        limits = (
            torch.as_tensor(limit[b : b + 1], device=x.device)
            for limit in (select.screen_threshold, select.head_margin)
        )
        (logits,), (near,) = screen_words(self._screen, x[None], *limits)
        found = near.nonzero().squeeze(1)
        logits[found] = head.rows.wide(found) @ x
        return logits


def screen_words(
    screen: Sequence[torch.Tensor], x: torch.Tensor, threshold: torch.Tensor, margin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cheap estimate of the logits of all words, for T tokens, and which words it finds near enough to compute.

    Args:
        screen: of `clada.weights.Screen.wide`.
        x: float32 [T, E], the head's inputs.
        threshold: [T]; terms of the estimate below it are left out.
        margin: [T]; words are near whose estimate is at most so far below that of all words together.

    Returns:
        ([T, V], bool [T, V]).
    """
    codes, scale, basis, offset, weight, mean = screen
    z = x @ basis.t() + offset
    keep = z.abs() * weight >= threshold[:, None]
    keep[:, 0] = True
    factors = z * scale * keep
    most = CODE_OF_ZERO - 1  # as in the kernels, whose sums are of 16 bits
    unit = (
        most
        * factors.abs().sum(1, keepdim=True).clamp_min(1e-30)
        / (LARGEST_SUM - most / 2 * keep.sum(1, keepdim=True))
    )
    estimate = (x @ mean)[:, None] + (factors / unit).round() * unit @ codes
    return estimate, estimate >= (estimate.logsumexp(1) - margin)[:, None]
