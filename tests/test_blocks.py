"""Weights in blocks: GGUF's bytes as gguf's own library reads them, and the kernels on them against numpy."""

import gguf
import numpy as np
import pytest
import torch
from numba import njit

from clada.cpu.blocks.kinds import BY_NAME
from clada.cpu.blocks.matrix import coded, coded_of_gguf
from clada.cpu.kernels.rows import add_listed, add_rows, prepared, prepared_size, project, project_rows
from clada.cpu.storage import BlockRows

OUTPUTS, INPUTS = 72, 768

# Where a block has float16 numbers, which random bytes would make NaN.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_blocks(name, outputs=OUTPUTS, inputs=INPUTS):
    """Bytes of a type, and what gguf's library makes of them."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(len(name))
    data = rng.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
    for at in HALVES.get(name, (0,)):
        halves = rng.normal(0, 0.1, (outputs, inputs // block, 1)).astype(np.float16)
        data[:, :, at : at + 2] = halves.view(np.uint8)
    data = data.reshape(outputs, -1)
    return data, gguf.quants.dequantize(data, kind)


def rows_of(matrix, name, *, transposed=False):
    rows = BlockRows.empty([[(name, len(matrix.codes))]] * 2, matrix.inputs, transposed=transposed)
    rows[1].put([matrix])  # behind another matrix
    return rows[1]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_files_blocks_are_its_weights_to_the_bit(name):
    data, expected = random_blocks(name)
    matrix = coded_of_gguf(data, name)
    along, across = rows_of(matrix, name), rows_of(matrix, name, transposed=True)
    assert np.array_equal(along.wide().numpy(), expected)
    assert np.array_equal(across.wide().numpy(), expected.T)
    assert np.array_equal(along.wide(torch.tensor([[5], [70]])).numpy(), expected[[5, 70]])
    assert np.array_equal(across.wide(slice(3, 500)).numpy(), expected.T[3:500])
    # At their own size, but for whole bytes of six bits in Q4_K and Q5_K, and fifth bits in whole vectors.
    assert along.memory.nbytes / 2 <= 1.04 * data.nbytes


@pytest.mark.parametrize("name", ["Q4_1", "Q8_0"])
@pytest.mark.parametrize("inputs", [16, 32, 100, 576])
def test_rounding_is_to_half_a_step(name, inputs):
    rng = np.random.default_rng(inputs)
    matrix = rng.standard_normal((40, inputs)).astype(np.float32)
    wide = rows_of(coded(matrix, name), name).wide().numpy()
    groups = np.pad(matrix, ((0, 0), (0, -inputs % 32))).reshape(40, -1, 32)
    step = np.abs(groups).max(2) / 127 if name == "Q8_0" else (groups.max(2) - groups.min(2)) / 15
    limit = np.repeat(step, 32, 1)[:, :inputs]
    # Scale and minimum are float16, of 11 bits: up to a half of 2^-10 of 15 steps and of the minimum more.
    largest = np.repeat(np.abs(groups).max(2), 32, 1)[:, :inputs]
    assert (np.abs(wide - matrix) <= 0.5 * limit + 2**-10 * (largest + 8 * limit)).all()
    assert np.array_equal(rows_of(coded(matrix, name), name, transposed=True).wide().numpy(), wide.T)


@njit
def some_products(out, rows, scales, x, room, which):
    project_rows(out, rows, scales, np.float32(0), prepared(x, room, rows), which)


@njit
def all_products(out, rows, scales, x, room, columns):
    project(out, rows, scales, np.float32(0), prepared(x, room, rows), columns, 0, rows.shape[0])


@njit
def sum_of_rows(out, rows, which, factors):
    add_rows(out, rows, 0, which, factors)


@njit
def sums_of_rows(out, rows, which, factors):
    add_listed(out, rows, which, factors)


LISTS = [[], [7], [3, 4, 5], [*range(40)], [*range(8, 13)], [0, 2, 3, 9, 11, 12, 30, 39], [*range(30, 36)]]


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("inputs", [16, 32, 100, 576])
def test_products_with_rows_are_those_with_the_weights(name, inputs):
    """Of several inputs the same bits as of each alone."""
    rng = np.random.default_rng(inputs)
    if name in ("Q4_1", "Q8_0"):
        matrix = coded(rng.standard_normal((40, inputs)).astype(np.float32), name)
    elif inputs % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]:
        inputs = 256
        matrix = coded_of_gguf(random_blocks(name, 40, inputs)[0], name)
    else:
        matrix = coded_of_gguf(random_blocks(name, 40, inputs)[0], name)
    rows = rows_of(matrix, name)
    wide = rows.wide().numpy()
    x = rng.standard_normal((5, inputs)).astype(np.float32)
    # Inputs are rounded to 16 bits of the largest of 32, at most 4 here.
    error = np.abs(wide).sum(1) * 4 / 65534 + 1e-5
    together = np.zeros((5, 40), np.float32)
    room = np.zeros((5, prepared_size(inputs)), np.int16)
    all_products(together, rows.array, rows.scales, x, room, np.arange(5))
    assert (np.abs(together - x @ wide.T) <= error).all()
    for which in (np.array(chosen, np.int64) for chosen in LISTS):
        for b in range(5):
            out = np.full(40, np.nan, np.float32)
            some_products(out, rows.array, rows.scales, x[b : b + 1], room[:1], which)
            assert np.array_equal(out[which], together[b, which])
            assert np.isnan(np.delete(out, which)).all()


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("outputs", [1, 15, 47, 64, 100, 576])
def test_rows_of_inputs_are_added_up(name, outputs):
    """Several sums at once have the same bits as each alone, and what has a factor of zero adds nothing."""
    data, _ = random_blocks(name, outputs, 256)
    rows = rows_of(coded_of_gguf(data, name), name, transposed=True)
    wide, rng = rows.wide().numpy(), np.random.default_rng(outputs)
    factors = rng.standard_normal((5, 256)).astype(np.float32)
    for which in (np.array(chosen, np.int64) for chosen in [*LISTS, [*range(256)]]):
        together = np.ones((5, outputs), np.float32)
        sums_of_rows(together, rows.array, which, factors)
        expected = 1 + factors[:, which].astype(np.float64) @ wide[which]
        size = 1 + np.abs(factors[:, which]) @ np.abs(wide[which])
        # Sums of up to 256 float32 of the codes, which are larger than the weights where a minimum takes some away.
        assert (np.abs(together - expected) <= 1e-5 * size + 1e-3).all()
        alone = np.zeros((5, 256), np.float32)
        alone[:, which] = factors[:, which]
        for b in range(5):
            single, with_zeros = np.ones(outputs, np.float32), np.ones(outputs, np.float32)
            sum_of_rows(single, rows.array, which, factors[b])
            sum_of_rows(with_zeros, rows.array, np.arange(256), alone[b])
            assert np.array_equal(single, together[b])
            assert np.array_equal(with_zeros, together[b])


def test_inputs_that_are_not_numbers_stay_so():
    matrix = coded(np.ones((40, 64), np.float32), "Q4_1")
    rows = rows_of(matrix, "Q4_1")
    for value in (np.nan, np.inf):
        out, x = np.zeros(40, np.float32), np.full((1, 64), value, np.float32)
        room = np.zeros((1, prepared_size(64)), np.int16)
        some_products(out, rows.array, rows.scales, x, room, np.arange(40))
        assert not np.isfinite(out).any()
