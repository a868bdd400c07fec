"""Prompts and texts: many tokens at once in products of a BLAS, against steps and transformers' modules."""

import itertools

import numpy as np
import pytest
import threadpoolctl
from test_kernels import PROMPTS, TOLERANCE, continuous, drop_some, everything
from test_positions import packed
from tiny_models import CONFIGS, tokens

from clada.cpu import decoder
from clada.cpu.decoder import Decoder
from clada.cpu.prompts import layers, matrices
from clada.errors import InputError
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


# Precision, layout, and whether codes are multiplied as whole numbers, which the processor decides elsewhere.
FORMS = [
    *itertools.product(["float32", "bfloat16", "int8"], ["matrix", "input"], [False]),
    ("int8", "matrix", True),
    ("int8", "input", True),
    ("int4", "matrix", False),
    ("int4", "matrix", True),
]


@pytest.mark.parametrize(("dtype", "layout", "whole_numbers"), FORMS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_prompt_leaves_what_steps_of_the_kernels_leave(family, dtype, layout, whole_numbers, monkeypatch):
    monkeypatch.setattr(matrices, "IN_ONE_INSTRUCTION", whole_numbers)
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
    for name, size in (("PIECE", 37), ("BLOCK", 5), ("ATTENDING", 2), ("POSITIONS", 10)):
        monkeypatch.setattr(layers, name, size)
    monkeypatch.setattr(matrices, "WIDENED", 100)
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
    monkeypatch.setattr(layers, "BLOCK", 5)
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
    begin = layers.Prompts._begin
    monkeypatch.setattr(layers.Prompts, "_begin", lambda *given: (during.append(threads()), begin(*given))[1])
    prefilled(weights, monkeypatch)
    assert during
    assert all(set(each) <= {1} for each in during)
    assert threads() == before


# -- texts, whose every token is known ---------------------------------------------------------------------------------

PIECES = [tokens(14, seed=6), tokens(5, seed=7), tokens(9, seed=8)]


def read_at_once(weights, selection, pieces=PIECES):
    """Logits after every token and neurons of every layer, by sequence; and where the state stands then."""
    decoder = Decoder(weights, 2)
    state = decoder.prefill(PROMPTS, 20, everything(weights, 3))
    hidden = decoder.read(state, pieces, selection)
    which = np.repeat(np.arange(3), [len(piece) for piece in pieces])
    rest = everything(weights, 3) if selection is None else selection
    logits = np.concatenate([outcome.logits.copy() for outcome in decoder.output_head(hidden.residual, which, rest)])
    return [(logits[which == b], hidden.neurons[which == b]) for b in range(3)], state


def read_by_steps(weights, selection):
    """The same token by token, every sequence by itself."""
    decoder, found, states = Decoder(weights, 2), [], []
    for b, piece in enumerate(PIECES):
        # Arrays of thresholds have a row a sequence; what belongs to neurons and inputs is the same for all.
        names = [n for n in selection._fields if n.endswith(("threshold", "margin")) or n == "needed"]
        own = selection._replace(**{name: getattr(selection, name)[b : b + 1] for name in names})
        state = decoder.prefill([PROMPTS[b]], 20, everything(weights, 1))
        logits, neurons = [], []
        for token in piece:
            decoder.step(state, [token], own)
            logits.append(state.outcome.logits[0].copy())
            neurons.append(state.outcome.neurons[0].copy())
        found.append((np.array(logits), np.array(neurons)))
        states.append(state)
    return found, states


# One value that rounds across its threshold changes logits by the size of a threshold, as in test_kernels.
SELECTIONS = {"everything": (everything, 1e-5, 0), "continuous": (continuous, 1e-5, 0), "some": (drop_some, 5e-2, 1)}


@pytest.mark.parametrize("which", SELECTIONS)
@pytest.mark.parametrize("layout", ["matrix", "input"])
@pytest.mark.parametrize("family", CONFIGS)
def test_texts_read_at_once_leave_out_what_steps_leave_out(family, layout, which, monkeypatch):
    """Small pieces, blocks and parts, so that every edge between them is there."""
    for name, size in (("PIECE", 12), ("BLOCK", 5), ("ATTENDING", 2), ("POSITIONS", 10)):
        monkeypatch.setattr(layers, name, size)
    selection_of, tolerance, flips = SELECTIONS[which]
    weights = packed(family, layout=layout)
    selection = selection_of(weights, 3)
    expected, alone = read_by_steps(weights, selection)
    found, state = read_at_once(weights, selection)
    for b, ((logits, neurons), (of_steps, counted)) in enumerate(zip(found, expected, strict=True)):
        assert np.abs(logits - of_steps).max() <= tolerance * np.abs(of_steps).max()
        assert np.abs(neurons - counted).max() <= flips
        assert state.tokens[b] == [*PROMPTS[b], *PIECES[b]]
        sums = alone[b].memory.scratch.value_sum[0]
        assert np.abs(state.memory.scratch.value_sum[b] - sums).max() <= 10 * tolerance * np.abs(sums).max()


@pytest.mark.parametrize("selection_of", [everything, continuous])
@pytest.mark.parametrize(
    ("dtype", "whole_numbers"), [("bfloat16", False), *itertools.product(["int8", "int4"], [False, True])]
)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_texts_read_at_once_are_those_of_steps_at_every_precision(
    family, dtype, whole_numbers, selection_of, monkeypatch
):
    monkeypatch.setattr(matrices, "IN_ONE_INSTRUCTION", whole_numbers)
    weights = packed(family, dtype)
    selection = selection_of(weights, 3)
    for (logits, neurons), (of_steps, counted) in zip(
        read_at_once(weights, selection)[0], read_by_steps(weights, selection)[0], strict=True
    ):
        assert np.abs(logits - of_steps).max() <= TOLERANCE[dtype] * np.abs(of_steps).max()
        assert np.array_equal(neurons, counted)


def test_a_selection_of_nothing_and_none_are_the_same_and_leave_layers_whole():
    weights = packed("llama")
    dense = everything(weights, 3)
    for (logits, neurons), (again, counted) in zip(
        read_at_once(weights, None)[0], read_at_once(weights, dense)[0], strict=True
    ):
        assert np.array_equal(logits, again)
        assert (neurons == counted).all()
        assert (neurons == weights.down_norm.shape[1]).all()
    assert not dense.leaves_out_in_layers(10**6)
    # Of the head, and of values where more positions are seen than there are.
    assert not dense._replace(head_margin=np.ones(3, np.float32)).leaves_out_in_layers(10**6)
    some_values = dense._replace(attention_threshold=np.ones(3, np.float32), attention_from=100)
    assert [some_values.leaves_out_in_layers(n) for n in (99, 100)] == [False, True]
    for name in ("gate_threshold", "threshold", "output_threshold", "input_threshold"):
        assert dense._replace(**{name: getattr(dense, name) + 1}).leaves_out_in_layers(1)
    assert drop_some(weights, 3)._replace(threshold=dense.threshold).leaves_out_in_layers(1)


def test_a_text_is_read_as_if_it_were_alone():
    weights = packed("gemma3_text", "bfloat16")
    together, _ = read_at_once(weights, drop_some(weights, 3))
    others, _ = read_at_once(weights, drop_some(weights, 3), [PIECES[0], PIECES[2], PIECES[1]])
    assert all(np.array_equal(a, b) for a, b in zip(together[0], others[0], strict=True))


def test_texts_without_room_or_with_unknown_tokens_are_refused():
    weights = packed("llama")
    dense, decoder = everything(weights, 3), Decoder(weights, 2)
    state = decoder.prefill(PROMPTS, 5, dense)
    with pytest.raises(IndexError, match="ask prefill for more"):
        decoder.read(state, PIECES, dense)
    with pytest.raises(InputError, match="are not all of the model's"):
        decoder.read(state, [[1], [10**6], [2]], dense)
    with pytest.raises(InputError, match="without tokens"):
        decoder.read(state, [[1], [], [2]], dense)
    assert state.tokens == PROMPTS
