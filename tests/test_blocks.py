"""Weights in blocks: GGUF's bytes as gguf's own library reads them, and the kernels on them against numpy."""

import gguf
import numpy as np
import pytest
import torch
from numba import njit

from clada.cpu.blocks.kinds import BY_NAME
from clada.cpu.blocks.matrix import coded, coded_of_gguf
from clada.cpu.kernels.rows import add_listed, add_rows, prepared, prepared_size, project, project_rows
from clada.cpu.precision import PRECISIONS
from clada.cpu.prompts import matrices
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
    factors = rng.standard_normal((7, 256)).astype(np.float32)
    for which in (np.array(chosen, np.int64) for chosen in [*LISTS, [*range(256)]]):
        together = np.ones((7, outputs), np.float32)
        sums_of_rows(together, rows.array, which, factors)
        for fewer in (2, 3, 5):
            own = np.ones((fewer, outputs), np.float32)
            sums_of_rows(own, rows.array, which, factors[:fewer])
            assert np.array_equal(own, together[:fewer])
        expected = 1 + factors[:, which].astype(np.float64) @ wide[which]
        size = 1 + np.abs(factors[:, which]) @ np.abs(wide[which])
        # Sums of up to 256 float32 of the codes, which are larger than the weights where a minimum takes some away.
        assert (np.abs(together - expected) <= 1e-5 * size + 1e-3).all()
        alone = np.zeros((7, 256), np.float32)
        alone[:, which] = factors[:, which]
        for b in range(7):
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


# -- tiles, which prompts are multiplied with --------------------------------------------------------------------------


def in_tiles(rows, scale, inputs, outputs, *, by_input, precision="file"):
    """A matrix as prompts have it, unpacked in several parts; its memory held something else before."""
    room = matrices.TileRoom(PRECISIONS[precision], inputs, outputs, by_input)
    for array in (room.codes, room.scales, room.minima):
        array.fill(77)
    tiles, work = room.of(rows, scale, np.arange(outputs, dtype=np.float32))
    for part in work:
        part()
    return tiles


def check_tiles(tiles, wide, x):
    """Products of inputs, none above 5, side by side and alone, are those with the weights [outputs, inputs]."""
    found = tiles.times(tiles.prepared(x))
    # Inputs are rounded to 16 bits of the largest of 32; biases are up to 100, float32 sums of them at 1e-5.
    error = np.abs(wide).sum(1) * 5 / 65534 + 1e-5 * (len(wide) + np.abs(wide) @ np.abs(x).max(0))
    assert np.abs(x).max() < 5
    assert (np.abs(found - (x.astype(np.float64) @ wide.T + np.arange(len(wide)))) <= error).all()
    for b, own in enumerate(x):
        assert np.array_equal(tiles.times(tiles.prepared(own[None]))[0], found[b])


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("outputs", [1, 72, 96])
@pytest.mark.parametrize("name", BY_NAME)
def test_products_with_tiles_are_those_with_the_weights(name, outputs, by_input, monkeypatch):
    monkeypatch.setattr(matrices, "WIDENED", 5000)
    rng = np.random.default_rng(outputs)
    inputs = 256 if BY_NAME[name].stepped else 96
    rows = rows_of(coded_of_gguf(random_blocks(name, outputs, inputs)[0], name), name, transposed=by_input)
    wide = rows.wide().numpy()
    tiles = in_tiles(rows.array, rows.scales, inputs, outputs, by_input=by_input)
    assert tiles.minima.size == (tiles.scales.size if BY_NAME[name].minimum else 0)
    check_tiles(tiles, wide.T if by_input else wide, rng.standard_normal((7, inputs)).astype(np.float32))


@pytest.mark.parametrize("name", ["Q4_1", "Q8_0"])
@pytest.mark.parametrize("inputs", [16, 100])
def test_tiles_of_inputs_that_fill_no_group(name, inputs):
    rng = np.random.default_rng(inputs)
    matrix = coded(rng.standard_normal((40, inputs)).astype(np.float32), name)
    x = rng.standard_normal((3, inputs)).astype(np.float32)
    for transposed in (False, True):
        rows = rows_of(matrix, name, transposed=transposed)
        wide = rows.wide().numpy()
        tiles = in_tiles(rows.array, rows.scales, inputs, 40, by_input=transposed)
        check_tiles(tiles, wide.T if transposed else wide, x)


def test_tiles_of_rows_of_several_kinds():
    """As queries, keys and values of a file may be: groups of 32 and of 16, with minima and without."""
    rng = np.random.default_rng(0)
    names = {"Q4_K": 40, "Q6_K": 30, "Q8_0": 10}
    parts = [coded_of_gguf(random_blocks(name, outputs, 512)[0], name) for name, outputs in names.items()]
    rows = BlockRows.empty([[*names.items()]], 512)[0]
    rows.put(parts)
    tiles = in_tiles(rows.array, rows.scales, 512, 80, by_input=False)
    check_tiles(tiles, rows.wide().numpy(), rng.standard_normal((5, 512)).astype(np.float32))


@pytest.mark.parametrize("by_input", [False, True])
def test_tiles_of_whole_numbers_with_a_scale_for_each_output(by_input):
    rng = np.random.default_rng(3)
    codes = rng.integers(-127, 128, (72, 100)).astype(np.int8)
    scale = rng.random(72).astype(np.float32) / 100
    rows = np.ascontiguousarray(codes.T) if by_input else codes
    tiles = in_tiles(rows, scale, 100, 72, by_input=by_input, precision="int8")
    check_tiles(tiles, codes * scale[:, None], rng.standard_normal((6, 100)).astype(np.float32))


def test_the_largest_sums_of_a_tile_are_whole():
    """Codes of eight bits and inputs of sixteen, all as large as they can be."""
    rows = np.array([[127] * 64, [-127] * 64], np.int8)
    tiles = in_tiles(rows, np.ones(2, np.float32), 64, 2, by_input=False, precision="int8")
    found = tiles.times(tiles.prepared(np.full((1, 64), 3, np.float32)))
    assert np.allclose(found, [[127 * 64 * 3, 1 - 127 * 64 * 3]], rtol=1e-6, atol=0)  # some float32 roundings


def test_inputs_of_tiles_that_are_not_numbers_stay_so():
    rows = rows_of(coded(np.ones((40, 64), np.float32), "Q4_1"), "Q4_1")
    tiles = in_tiles(rows.array, rows.scales, 64, 40, by_input=False)
    for value in (np.nan, np.inf):
        assert not np.isfinite(tiles.times(tiles.prepared(np.full((1, 64), value, np.float32)))).any()
