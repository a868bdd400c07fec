"""Prompts: many tokens at once in products of a BLAS, against steps of the kernels and transformers' modules."""

import itertools

import numpy as np
import pytest
import threadpoolctl
from test_kernels import everything
from test_positions import packed
from tiny_models import CONFIGS, tokens

from clada.cpu import decoder, prompt
from clada.cpu.decoder import Decoder
from clada.reference.decoder import TorchDecoder

TEXT = tokens(90, seed=3)  # longer than five of the sliding windows of 16


def cache_of(state, precision):
    """Keys, values and their sums in float32; keys by position as values are."""
    scratch, n = state.memory.scratch, len(state.tokens[0])
    keys, values = (
        array if precision == "float32" else (array.astype(np.uint32) << 16).view(np.float32)
        for array in (scratch.keys[0], scratch.values[0])
    )
    layers, heads, blocks, size = keys.shape
    width = values.shape[-1]
    keys = keys.reshape(layers, heads, blocks, width, size // width).swapaxes(3, 4).reshape(values.shape)
    return {"keys": keys[:, :, :n], "values": values[:, :, :n], "value_sum": scratch.value_sum[0]}


def close(found, expected, dtype):
    # float32: sums in another order. Rounded: a number on the edge goes to its neighbour, 4e-3 of it, in some layers.
    tolerance = 2e-5 if dtype == "float32" else 2e-2
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def prefilled(weights, monkeypatch, text=TEXT, *, in_steps=False, threads=2, statistics=None):
    """A prompt in steps of the kernels, whatever its length, or in products."""
    monkeypatch.setattr(decoder, "COLUMNS", len(text) if in_steps else 0)
    return Decoder(weights, threads).prefill([text], 1, everything(weights, 1), statistics)


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [*itertools.product(["float32", "bfloat16", "int8"], ["matrix", "input"]), ("int4", "matrix")],
)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_prompt_leaves_what_steps_of_the_kernels_leave(family, dtype, layout, monkeypatch):
    weights = packed(family, dtype, layout)
    ours, theirs = prefilled(weights, monkeypatch), prefilled(weights, monkeypatch, in_steps=True)
    close(ours.outcome.logits, theirs.outcome.logits, dtype)
    expected = cache_of(theirs, dtype)
    for name, found in cache_of(ours, dtype).items():
        close(found, expected[name], dtype)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_prompt_in_pieces_and_blocks_is_the_same(family, monkeypatch):
    """Pieces of 37 tokens, blocks of 5, attention of 2, parts of the cache of 10 positions, with windows of 16."""
    weights = packed(family)
    whole = prefilled(weights, monkeypatch)
    for name, size in (("PIECE", 37), ("BLOCK", 5), ("ATTENDING", 2), ("POSITIONS", 10), ("WIDENED", 100)):
        monkeypatch.setattr(prompt, name, size)
    pieces = prefilled(weights, monkeypatch, threads=3)
    close(pieces.outcome.logits, whole.outcome.logits, "float32")
    expected = cache_of(whole, "float32")
    for name, found in cache_of(pieces, "float32").items():
        close(found, expected[name], "float32")


@pytest.mark.parametrize("kind", ["flocking", "magnitude"])
@pytest.mark.parametrize("family", CONFIGS)
def test_statistics_are_those_of_transformers_modules(family, kind, monkeypatch):
    weights = packed(family)
    ours = prefilled(weights, monkeypatch, statistics=kind)
    theirs = TorchDecoder(weights).prefill([TEXT], 1, everything(weights, 1), kind)
    assert ours.statistics.shape == theirs.statistics.shape
    for found, expected in zip(ours.statistics, theirs.statistics, strict=True):
        close(found, expected, "float32")
    close(ours.outcome.logits, theirs.outcome.logits, "float32")


def test_bits_are_the_same_at_every_run(monkeypatch):
    """Whichever thread takes which block."""
    weights = packed("llama", "bfloat16")
    monkeypatch.setattr(prompt, "BLOCK", 5)
    first, again = (prefilled(weights, monkeypatch, statistics="magnitude") for _ in range(2))
    assert np.array_equal(first.outcome.logits, again.outcome.logits)
    assert np.array_equal(first.statistics, again.statistics)


def test_short_and_long_prompts_side_by_side(monkeypatch):
    """Some run in one step, some in products; a prompt of one token has nothing to run before it."""
    weights = packed("gemma3_text")
    prompts = [TEXT[:1], TEXT, TEXT[3:12]]
    monkeypatch.setattr(decoder, "COLUMNS", 20)
    together = Decoder(weights, 2).prefill(prompts, 1, everything(weights, 3))
    for row, text in enumerate(prompts):
        alone = prefilled(weights, monkeypatch, text, in_steps=True)
        close(together.outcome.logits[row], alone.outcome.logits[0], "float32")
    assert together.tokens == prompts


def test_the_blas_has_its_threads_again_afterwards(monkeypatch):
    def threads():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

    before = threads()
    weights = packed("llama")
    during = []
    begin = prompt.Prompts._begin
    monkeypatch.setattr(prompt.Prompts, "_begin", lambda *given: (during.append(threads()), begin(*given))[1])
    prefilled(weights, monkeypatch)
    assert during
    assert all(set(each) <= {1} for each in during)
    assert threads() == before
