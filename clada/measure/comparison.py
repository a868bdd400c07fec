"""Speed and loss of methods on the same work, and the dense engines beside them.

Every method decodes the text's own tokens after the same prompts. Runs are interleaved (one of every method and peer,
then again), so that a machine that slows down does so for all; ratios are of medians.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from tqdm import tqdm

from clada.cpu.decoder import Decoder, State
from clada.cpu.kernels.arguments import READ_MLP
from clada.cpu.kernels.scalars import FASTMATH
from clada.cpu.kernels.team import Team, begin_call, end_call
from clada.cpu.pack import pack
from clada.measure.gguf_export import Kind, write_gguf
from clada.measure.loss import Loss, Scorer
from clada.measure.peers import LlamaCpp, Transformers, cached_gguf
from clada.methods.coefficients import Coefficients
from clada.methods.plan import Plan, Shares
from clada.methods.policy import Policy, basis_of, make_policy, resolve_shares
from clada.methods.registry import layout_of

MATCHING: dict[str, Kind] = {"float32": "F32", "bfloat16": "F16", "int8": "Q8_0"}

INFORMATIVE: tuple[Kind, ...] = ("Q8_0", "Q4_1")  # what else the same machine can do

PEERS = ("transformers", "llama.cpp")

TURN = 16  # tokens that a method decodes before the next one does

BANDWIDTH_BYTES = 2**28  # far beyond any cache


@dataclass
class Contestant:
    """A method, ready to run.

    Attributes:
        method: of `clada.methods.registry.METHODS`.
        policy: what it computes.
        decoder: on weights laid out for it.
        states: by window, prompts run.
        prefills: seconds that each took.
        speeds: tokens/s of each repeat.
        bytes_read: in all steps, of attention weights, MLP, head and cache.
        steps: how many there were.
    """

    method: str
    policy: Policy
    decoder: Decoder
    states: list[State]
    prefills: list[float]
    speeds: list[float]
    bytes_read: np.ndarray
    steps: int = 0


def enter(
    model: Any,
    methods: Sequence[str],
    plan: Plan | None,
    coefficients: Coefficients,
    args: argparse.Namespace,
    threads: int,
) -> list[Contestant]:
    """The methods; `args` names dtype, max_loss and keep.

    All that read the same layout read the same weights, as where these lie in memory can make some per cent of speed.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    found = {m: resolve_shares(m, plan, vocabulary, args.dtype, args.max_loss, args.keep)[0] for m in methods}
    basis = next((basis for shares in found.values() if (basis := basis_of(plan, shares)) is not None), None)
    decoders: dict[str, Decoder] = {}
    contestants = []
    for method, shares in found.items():
        layout = layout_of(method)
        if layout not in decoders:
            decoders[layout] = Decoder(pack(model, args.dtype, basis, layout=layout), threads)
        policy = make_policy(method, decoders[layout].weights, plan, shares, coefficients)
        contestants.append(Contestant(method, policy, decoders[layout], [], [], [], np.zeros(4)))
    return contestants


def race(
    contestants: Sequence[Contestant],
    windows: Sequence[Sequence[int]],
    args: argparse.Namespace,
    model: Any,
    peers: Sequence[str],
    threads: int,
) -> tuple[list[dict[str, Any]], float]:
    """Time everybody in turn; speeds go into the contestants.

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
        for c in contestants:
            c.decoder.prefill([windows[0][:2]], 1, c.policy.dense(1))  # compiles, or loads what is compiled
            for group in groups:
                begin = time.perf_counter()
                prompts = [w[:prompt] for w in group]
                c.states.append(c.decoder.prefill(prompts, new, c.policy.dense(batch), c.policy.statistics))
                c.prefills.append(time.perf_counter() - begin)
        bandwidths: list[float] = []
        runs += [partial(_time, contestants, groups, prompt), lambda _: bandwidths.append(measure_bandwidth(threads))]
        for repeat in tqdm(range(args.repeats), unit="round", desc="race", file=sys.stderr):
            for run in runs:
                run(repeat)
        for c in contestants:
            c.states = []  # their caches
        rows = [{**row, "tokens_per_s": float(np.median(speeds)), "tokens_per_s_all": speeds} for row, speeds in others]
        return rows, float(np.median(bandwidths))


def _time_peer(
    peer: Any, speeds: list[float], groups: Sequence[Sequence[Sequence[int]]], prompt: int, new: int, repeat: int
) -> None:
    speeds.append(peer.decode_speed(list(groups[repeat][0][:prompt]), new))


def _time(
    contestants: Sequence[Contestant], groups: Sequence[Sequence[Sequence[int]]], prompt: int, repeat: int
) -> None:
    """Decode a group of windows' own tokens with every method, some tokens each in turn, and note the speeds.

    In turn because what others do with the memory changes from one second to the next.
    """
    steps = list(zip(*(window[prompt:] for window in groups[repeat]), strict=True))
    spent = np.zeros(len(contestants))
    # Once for a prompt, as generation does: rows of neurons that stay the same are copied when they change.
    needed = [c.policy.needed(c.states[repeat].statistics) for c in contestants]
    for turn, begin in enumerate(range(0, len(steps), TURN)):
        for k in range(len(contestants)):
            i = (k + turn) % len(contestants)  # nobody is always first
            spent[i] += _decode(contestants[i], steps[begin : begin + TURN], repeat, needed[i])
    for c, seconds in zip(contestants, spent, strict=True):
        c.speeds.append(len(steps) * len(groups[repeat]) / seconds)


def _decode(c: Contestant, steps: Sequence[Sequence[int]], repeat: int, needed: np.ndarray | None) -> float:
    """Seconds for some tokens, as generation would decode them."""
    state, rule = c.states[repeat], c.policy.coefficients.loads
    begin = time.perf_counter()
    for tokens in steps:
        loads = [rule(*state.outcome.load(row, token)) for row, token in enumerate(tokens)]
        c.decoder.step(state, tokens, c.policy.selection(loads, needed))
        c.bytes_read += state.outcome.bytes_read
    c.steps += len(steps)
    return time.perf_counter() - begin


def _peers(
    model: Any, peers: Sequence[str], dtype: str, threads: int, context: int, stack: ExitStack
) -> list[tuple[str, str, str, Any]]:
    found: list[tuple[str, str, str, Any]] = []
    if "transformers" in peers:
        peer = Transformers(model, threads)
        found.append(("transformers", peer.version, "float32", peer))
    if "llama.cpp" in peers:
        for kind in dict.fromkeys((MATCHING[dtype], *INFORMATIVE)):
            if model.name_or_path:
                path = cached_gguf(model, kind)
            else:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / f"{kind}.gguf"
                write_gguf(model, path, kind)
            # Room for its own rounding of the context.
            llama = stack.enter_context(LlamaCpp(path, threads, context + 64))
            found.append(("llama.cpp", llama.version, kind, llama))
    return found


def score(
    contestants: Sequence[Contestant], windows: Sequence[Sequence[int]], prompt: int
) -> dict[str, tuple[Loss, Loss]]:
    """(loss, loss of dense) of every method but dense; those on the same weights are scored together."""
    found: dict[str, tuple[Loss, Loss]] = {}
    for decoder in dict.fromkeys(c.decoder for c in contestants):
        own = [c for c in contestants if c.decoder is decoder and c.method != "dense"]
        for kind in dict.fromkeys(c.policy.statistics for c in own):
            some = [c for c in own if c.policy.statistics == kind]
            with tqdm(desc="loss", unit="batch", file=sys.stderr) as progress:
                dense = make_policy("dense", decoder.weights, None, Shares())
                scorer = Scorer(decoder, windows, prompt, dense, kind, progress.update)
                reference, *losses = scorer.score_all([dense, *(c.policy for c in some)], dense)
            found.update({c.method: (loss, reference) for c, loss in zip(some, losses, strict=True)})
    return found


def result_row(
    c: Contestant, dense: Contestant, bandwidth: float, losses: dict[str, tuple[Loss, Loss]], batch: int
) -> dict[str, Any]:
    """A row of `clada bench --json`; `losses` by method, of it and of dense."""
    speed, read = float(np.median(c.speeds)), c.bytes_read / c.steps
    row: dict[str, Any] = {
        "method": c.method,
        "tokens_per_s": speed,
        "tokens_per_s_all": c.speeds,
        "prefill_s": float(np.median(c.prefills)),
        "ratio_to_dense": speed / float(np.median(dense.speeds)),
        "mlp_bytes_fraction": float(read[READ_MLP] / (dense.bytes_read[READ_MLP] / dense.steps)),
        "bytes_per_token": float(read.sum()) / batch,
        "bandwidth_fraction": float(read.sum()) / batch * speed / 1e9 / bandwidth,
    }
    if c is dense:  # by definition
        row |= {"ppl_rise": 0.0, "ppl_rise_ci": [0.0, 0.0], "kl_to_dense": 0.0, "sparsity": 0.0, "active_fraction": 1.0}
    elif c.method in losses:
        loss, reference = losses[c.method]
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
        team.run(_read_all, values, sums)
        best = min(best, time.perf_counter() - begin)
    return values.nbytes / best / 1e9


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def _read_all(t, threads, sync, values, sums):  # type: ignore[no-untyped-def]
    begin_call(t, sync)
    part = values[len(values) * t // threads : len(values) * (t + 1) // threads]
    s = np.float32(0)
    for i in range(part.shape[0]):
        s += part[i]
    sums[t, 0] = s
    end_call(t, threads, sync)
