"""Speed and loss of methods on the same work, and the dense engines beside them.

Every method decodes the text's own tokens after the same prompts. Runs are interleaved (one of every method and peer,
then again), so that a machine that slows down does so for all; ratios are of medians.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clada.assembly import DENSE, Choice, Parts, assemble, choose, drafter_of, vocabulary_of, who_drafts
from clada.cpu.decoder import State
from clada.cpu.kernels.arguments import READ_MLP
from clada.cpu.kernels.bandwidth import read_all
from clada.cpu.kernels.team import Team
from clada.decoding import LoadRule, Record, given, most_likely_words, steps
from clada.measure.gguf_export import Kind, write_gguf
from clada.measure.loss import Loss, Scorer
from clada.measure.peers import LlamaCpp, Transformers, cached_gguf
from clada.methods.coefficients import Coefficients
from clada.methods.plan import Plan
from clada.methods.registry import method_of
from clada.models.description import Description
from clada.models.open import OF_FILE, gguf_file
from clada.speculation.checks import Speculation

# llama.cpp's type for a precision; at OF_FILE it reads the model's file itself.
MATCHING: dict[str, Kind] = {"float32": "F32", "bfloat16": "F16", "int8": "Q8_0", "int4": "Q4_0"}

INFORMATIVE: tuple[Kind, ...] = ("Q8_0", "Q4_1")  # what else the same machine can do

PEERS = ("transformers", "llama.cpp")

TURN = 16  # tokens that a method decodes before the next one does

BANDWIDTH_BYTES = 2**28  # far beyond any cache


@dataclass
class Entry:
    """A method in the comparison, and what was measured of it.

    Attributes:
        parts: the method, ready to decode.
        speculation: of a method that drafts.
        states: by group of windows, prompts run.
        prefills: seconds that each took.
        speeds: tokens/s of each repeat.
        bytes_read: in all steps, of attention weights, MLP, head and cache.
        steps: how many there were.
    """

    parts: Parts
    speculation: Speculation | None = None
    states: list[State] = field(default_factory=list)
    prefills: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    bytes_read: np.ndarray = field(default_factory=lambda: np.zeros(4))
    steps: int = 0

    @property
    def method(self) -> str:
        """Its name, of `clada.methods.registry.METHODS`."""
        return self.parts.choice.method

    def records(self, state: State, tokens: Sequence[Sequence[int]]) -> Iterator[Record]:
        """Decode the tokens from a state; a method that drafts, as many of its own most likely ones."""
        parts = self.parts
        if self.speculation is None:
            return steps(parts.decoder, parts.policy, state, given(tokens), len(tokens))
        rules: list[LoadRule] = [parts.policy.coefficients.loads]
        return self.speculation.steps(
            parts.decoder, parts.policy, state, most_likely_words, len(tokens), rules, lambda _sequence, _token: False
        )


def prepare(
    model: Any,
    methods: Sequence[str],
    plan: Plan | None,
    coefficients: Coefficients,
    args: argparse.Namespace,
    threads: int,
) -> list[Entry]:
    """The methods, ready to be measured; `args` names dtype, max_loss and keep."""
    vocabulary = vocabulary_of(model)
    choices = [choose(m, plan, coefficients, vocabulary, args.dtype, args.max_loss, args.keep) for m in methods]
    entries = [Entry(parts) for parts in assemble(model, choices, args.dtype, threads)]

    def assembled(choice: Choice, dtype: str) -> Parts:
        return assemble(model, [choice], dtype, threads)[0]

    for entry in entries:
        if method_of(entry.method).drafts:
            precisions = args.dtype, who_drafts(args.dtype)
            drafter = drafter_of(assembled, Description.of(model), *precisions, plan or args.plan, coefficients)
            entry.speculation = Speculation(drafter)
    return entries


def time_all(
    entries: Sequence[Entry],
    windows: Sequence[Sequence[int]],
    args: argparse.Namespace,
    model: Any,
    peers: Sequence[str],
    threads: int,
) -> tuple[list[dict[str, Any]], float]:
    """Time everybody in turn; speeds go into the entries.

    Returns:
        the peers' speeds; what memory gave, GB/s: the median of the rounds, as it changes while neighbours use it too.
    """
    prompt, new, batch = args.prompt_tokens, args.new_tokens, args.batch_size
    groups = [windows[i * batch : (i + 1) * batch] for i in range(args.repeats)]
    runs: list[Callable[[int], Any]] = []
    with ExitStack() as stack:
        others: list[tuple[dict[str, Any], list[float]]] = []
        for name, version, dtype, peer in _peers(model, peers, args.dtype, threads, prompt + new, stack):
            speeds: list[float] = []
            others.append(({"name": name, "version": version, "dtype": dtype}, speeds))
            runs.append(partial(_time_peer, peer, speeds, groups, prompt, new))
        for entry in entries:
            decoder, policy = entry.parts.decoder, entry.parts.policy
            decoder.prefill([windows[0][:2]], 1, policy.dense(1))  # compiles, or loads what is compiled
            for group in groups:
                begin = time.perf_counter()
                prompts = [w[:prompt] for w in group]
                entry.states.append(decoder.prefill(prompts, new, policy.dense(batch), policy.statistics))
                entry.prefills.append(time.perf_counter() - begin)
        bandwidths: list[float] = []
        runs += [partial(_time, entries, groups, prompt), lambda _: bandwidths.append(measure_bandwidth(threads))]
        for repeat in tqdm(range(args.repeats), unit="round", desc="speed", file=sys.stderr):
            for run in runs:
                run(repeat)
        for entry in entries:
            entry.states = []  # their caches
        rows = [{**row, "tokens_per_s": float(np.median(speeds)), "tokens_per_s_all": speeds} for row, speeds in others]
        return rows, float(np.median(bandwidths))


def _time_peer(
    peer: Any, speeds: list[float], groups: Sequence[Sequence[Sequence[int]]], prompt: int, new: int, repeat: int
) -> None:
    speeds.append(peer.decode_speed(list(groups[repeat][0][:prompt]), new))


def _time(entries: Sequence[Entry], groups: Sequence[Sequence[Sequence[int]]], prompt: int, repeat: int) -> None:
    """Decode a group of windows' own tokens with every method, some tokens each in turn, and note the speeds.

    In turn because what others do with the memory changes from one second to the next.
    """
    tokens = list(zip(*(window[prompt:] for window in groups[repeat]), strict=True))
    spent = np.zeros(len(entries))
    decoding = []
    for entry in entries:
        decoding.append(entry.records(entry.states[repeat], tokens))
    for turn in range(math.ceil(len(tokens) / TURN)):
        for k in range(len(entries)):
            i = (k + turn) % len(entries)  # nobody is always first
            spent[i] += _decode(entries[i], itertools.islice(decoding[i], TURN), repeat)
    for entry, seconds in zip(entries, spent, strict=True):
        entry.speeds.append(len(tokens) * len(groups[repeat]) / seconds)


def _decode(entry: Entry, records: Iterable[Record], repeat: int) -> float:
    """Seconds for some tokens, as generation decodes them."""
    state = entry.states[repeat]
    begin = time.perf_counter()
    for _ in records:
        entry.bytes_read += state.outcome.bytes_read
        entry.steps += 1
    return time.perf_counter() - begin


def _peers(
    model: Any, peers: Sequence[str], dtype: str, threads: int, context: int, stack: ExitStack
) -> list[tuple[str, str, str, Any]]:
    opened: list[tuple[str, str, str, Any]] = []
    if "transformers" in peers:
        peer = Transformers(model, threads)
        opened.append(("transformers", peer.version, "float32", peer))
    if "llama.cpp" in peers:
        files = [(OF_FILE, gguf_file(model.name_or_path))] if dtype == OF_FILE else []
        kinds: tuple[Kind, ...] = INFORMATIVE if dtype == OF_FILE else (MATCHING[dtype], *INFORMATIVE)
        for kind in dict.fromkeys(kinds):
            if model.name_or_path:
                path = cached_gguf(model, kind)
            else:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{kind}.gguf"
                write_gguf(model, path, kind)
            files.append((kind, path))
        for name, path in files:
            # Room for its own rounding of the context.
            llama = stack.enter_context(LlamaCpp(path, threads, context + 64))
            opened.append(("llama.cpp", llama.version, name, llama))
    return opened


def score(entries: Sequence[Entry], windows: Sequence[Sequence[int]], prompt: int) -> dict[str, tuple[Loss, Loss]]:
    """(loss, loss of dense) of every method but dense; those on the same weights are scored together."""
    losses: dict[str, tuple[Loss, Loss]] = {}
    for decoder in dict.fromkeys(entry.parts.decoder for entry in entries):
        on_it = [e.parts for e in entries if e.parts.decoder is decoder and method_of(e.method).needs_plan]
        for kind in dict.fromkeys(parts.policy.statistics for parts in on_it):
            some = [parts for parts in on_it if parts.policy.statistics == kind]
            with tqdm(desc="loss", unit="batch", file=sys.stderr) as progress:
                dense = DENSE.policy(decoder.weights)
                scorer = Scorer(decoder, windows, prompt, dense, kind, progress.update)
                reference, *of_methods = scorer.score_all([dense, *(parts.policy for parts in some)], dense)
            losses.update({p.choice.method: (loss, reference) for p, loss in zip(some, of_methods, strict=True)})
    return losses


def result_row(
    entry: Entry, dense: Entry, bandwidth: float, losses: dict[str, tuple[Loss, Loss]], batch: int
) -> dict[str, Any]:
    """A row of `clada bench --json`; `losses` by method, of it and of dense."""
    speed = float(np.median(entry.speeds))
    of_all = entry.bytes_read if entry.speculation is None else entry.speculation.bytes_read
    read = of_all / entry.steps
    row: dict[str, Any] = {
        "method": entry.method,
        "tokens_per_s": speed,
        "tokens_per_s_all": entry.speeds,
        "prefill_s": float(np.median(entry.prefills)),
        "ratio_to_dense": speed / float(np.median(dense.speeds)),
        "mlp_bytes_fraction": float(read[READ_MLP] / (dense.bytes_read[READ_MLP] / dense.steps)),
        "bytes_per_token": float(read.sum()) / batch,
        "bandwidth_fraction": float(read.sum()) / batch * speed / 1e9 / bandwidth,
    }
    if entry.speculation is not None:
        done = entry.speculation
        row |= {"checks": done.checks, "acceptance": done.acceptance, "tokens_per_check": done.tokens / done.checks}
    if entry is dense or entry.speculation is not None:  # by definition
        row |= {"ppl_rise": 0.0, "ppl_rise_ci": [0.0, 0.0], "kl_to_dense": 0.0, "sparsity": 0.0, "active_fraction": 1.0}
    elif entry.method in losses:
        loss, reference = losses[entry.method]
        rise, low, high = loss.rise(reference)
        row |= {
            "ppl_rise": rise,
            "ppl_rise_ci": [low, high],
            "kl_to_dense": 0.0 if loss.kl is None else float(loss.kl.mean()),
            "scored_tokens": loss.tokens,
            "sparsity": 1 - loss.active,
            "active_fraction": loss.active,
        }
    return row


def measure_bandwidth(threads: int) -> float:
    """What the machine can read from memory, GB/s: the best of some passes over an array that fits no cache."""
    team, values = Team(threads), np.ones(BANDWIDTH_BYTES // 4, np.float32)
    sums = np.zeros((threads, 16), np.float32)
    best = math.inf
    for _ in range(6):
        begin = time.perf_counter()
        team.run(read_all, values, sums)
        best = min(best, time.perf_counter() - begin)
    return values.nbytes / best / 1e9
