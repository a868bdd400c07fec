"""One step over some positions of a sequence: the bits of one token after the other, whatever runs beside it."""

import numpy as np
import pytest
from test_kernels import PROMPTS, basis_for, drop_some, everything
from tiny_models import CONFIGS, tiny_model, tokens

from clada.cpu.decoder import Decoder
from clada.cpu.pack import pack
from clada.errors import InputError

FIELDS = ("logits", "log_total", "entropy", "best", "active")

TEXT = tokens(70, seed=3)  # longer than four of the sliding windows of 16
PROMPT = 20


def packed(family, dtype="float32", layout="matrix", **config):
    model = tiny_model(family, seed=3, **config)
    return pack(model, dtype, basis_for(model.get_output_embeddings().weight.shape[1]), layout=layout)


def without_masks(weights, batch):
    """Rows of `needed` neurons are gathered, all else as `drop_some` has it."""
    return drop_some(weights, batch)._replace(needed=np.zeros((0, *weights.down_norm.shape), np.uint8))


SELECTIONS = {"dense": everything, "some": drop_some, "unmasked": without_masks}


def one_by_one(weights, selection, prompt, following):
    """What every token gave by itself."""
    decoder = Decoder(weights, 2)
    state = decoder.prefill([prompt], len(following), everything(weights, 1))
    found = []
    for token in following:
        decoder.step(state, [token], selection)
        found.append({name: getattr(state.outcome, name)[0].copy() for name in FIELDS})
    return found


def check_same(outcome, column, expected):
    for name in FIELDS:
        assert np.array_equal(getattr(outcome, name)[column], expected[name]), name


@pytest.mark.parametrize("which", SELECTIONS)
@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((f, "float32") for f in CONFIGS), ("llama", "bfloat16"), ("llama", "int8"), ("llama", "int4"), ("opt", "int4")],
)
def test_bits_do_not_depend_on_how_many_positions_run_at_once(family, dtype, which):
    weights = packed(family, dtype)
    selection = SELECTIONS[which](weights, 1)
    alone = one_by_one(weights, selection, TEXT[:PROMPT], TEXT[PROMPT:])
    for count in (2, 3, 4, 5, 6, 7, 16):
        decoder, place = Decoder(weights, 2), PROMPT
        state = decoder.prefill([TEXT[:PROMPT]], len(TEXT), everything(weights, 1))
        while place + count <= len(TEXT):
            outcome = decoder.run(state, [TEXT[place : place + count]], selection)
            for column in range(count):
                check_same(outcome, column, alone[place - PROMPT + column])
            place += count
            check_same(state.outcome, 0, alone[place - PROMPT - 1])
        assert state.tokens == [TEXT[:place]]


def test_inputs_left_out_have_the_same_bits_too():
    weights = packed("llama", layout="input")
    selection = drop_some(weights, 1)
    alone = one_by_one(weights, selection, TEXT[:PROMPT], TEXT[PROMPT : PROMPT + 6])
    decoder = Decoder(weights, 2)
    state = decoder.prefill([TEXT[:PROMPT]], 6, everything(weights, 1))
    outcome = decoder.run(state, [TEXT[PROMPT : PROMPT + 6]], selection)
    for column in range(6):
        check_same(outcome, column, alone[column])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_sequences_run_as_many_tokens_as_each_is_given(family):
    """Some of one, one of another, each under a selection of its own; then each goes on from where it likes.

    Without masks: neurons that no sequence needs are left out before threads share the others.
    """
    weights = packed(family)
    selection = without_masks(weights, 3)
    pieces = [tokens(5, seed=6), tokens(1, seed=7), tokens(3, seed=8)]
    alone = []
    for b, (prompt, piece) in enumerate(zip(PROMPTS, pieces, strict=True)):
        own = selection._replace(
            **{
                name: getattr(selection, name)[b : b + 1]
                for name in (
                    "gate_threshold", "threshold", "output_threshold", "input_threshold", "attention_threshold",
                    "screen_threshold", "head_margin",
                )
            }
        )  # fmt: skip
        alone.append(one_by_one(weights, own, prompt, [*piece, 9]))
    decoder = Decoder(weights, 2)
    state = decoder.prefill(PROMPTS, 8, everything(weights, 3))
    outcome = decoder.run(state, pieces, selection)
    for column, expected in enumerate(e for of, piece in zip(alone, pieces, strict=True) for e in of[: len(piece)]):
        check_same(outcome, column, expected)
    for b, piece in enumerate(pieces):
        check_same(state.outcome, b, alone[b][len(piece) - 1])
    decoder.keep(state, [2, 1, 3])
    assert [state.tokens[b][len(PROMPTS[b]) :] for b in range(3)] == [pieces[0][:2], pieces[1], pieces[2]]
    for b, count in enumerate([2, 1, 3]):
        check_same(state.outcome, b, alone[b][count - 1])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kept", [1, 4])
def test_what_was_run_beyond_what_is_kept_leaves_nothing_behind(family, kept):
    """A draft that was refused: what follows is as if it had not been there, also the means of values."""
    weights = packed(family)
    selection = drop_some(weights, 1)
    following = TEXT[PROMPT : PROMPT + kept] + TEXT[40:50]
    alone = one_by_one(weights, selection, TEXT[:PROMPT], following)
    decoder = Decoder(weights, 2)
    state = decoder.prefill([TEXT[:PROMPT]], 30, everything(weights, 1))
    decoder.run(state, [TEXT[PROMPT : PROMPT + 9]], selection)
    decoder.keep(state, [7])
    decoder.keep(state, [kept])  # either way, as often as one likes
    check_same(state.outcome, 0, alone[kept - 1])
    for number, token in enumerate(following[kept:], kept):
        decoder.step(state, [token], selection)
        check_same(state.outcome, 0, alone[number])


def test_a_piece_needs_tokens_and_room():
    weights = packed("llama")
    decoder = Decoder(weights, 1)
    state = decoder.prefill([TEXT[:4]], 3, everything(weights, 1))
    with pytest.raises(InputError, match="without tokens"):
        decoder.run(state, [[]], everything(weights, 1))
    with pytest.raises(IndexError, match="no room for token 8"):
        decoder.run(state, [[1, 2, 3, 4]], everything(weights, 1))
