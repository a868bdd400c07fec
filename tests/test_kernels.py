"""The kernels against plain torch: every family, precision and selection, token by token."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import gguf
import numpy as np
import pytest
import torch
from numba import njit
from tiny_models import CONFIGS, tiny_model, tokens

from clada.cpu.decoder import Decoder
from clada.cpu.kernels.arguments import READ_CACHE
from clada.cpu.kernels.head import SCREEN_TILE
from clada.cpu.kernels.rows import add_rows, project_rows
from clada.cpu.kernels.team import Team
from clada.cpu.kernels.vectors import LANES, highest
from clada.cpu.pack import pack
from clada.cpu.precision import PRECISIONS
from clada.cpu.storage import Rows
from clada.errors import ModelError
from clada.measure.gguf_export import write_gguf
from clada.methods.plan import Shares
from clada.methods.policy import make_policy
from clada.methods.screen import Basis, Screen
from clada.models.gguf_blocks import StoredMatrices
from clada.models.open import gguf_file, load_model
from clada.reference.decoder import TorchDecoder

PROMPTS = [tokens(40, seed=3), tokens(23, seed=4), tokens(31, seed=5)]  # longer than the sliding window of 16

# float32: sums in another order, over a few hundred terms in each of a few layers. Others: keys and values are rounded
# to 8 bits of mantissa, and a float32 difference of 1e-7 can turn one over, 4e-3 of that value.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 2e-2, "int4": 2e-2}

OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}


def basis_for(width, terms=9):
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(width, width, generator=generator))[0][:terms]
    return Basis(rows.contiguous().numpy(), torch.randn(width, generator=generator).numpy())


def drop_some(weights, batch, seed=0):
    """A selection that leaves out a good part of everything, differently for each sequence."""
    rng = np.random.default_rng(seed)
    dense = make_policy("dense", weights, None, Shares()).dense(batch)
    layers, neurons = weights.down_norm.shape
    spread = rng.uniform(0.5, 1.5, (batch, 1)).astype(np.float32)
    gated = weights.gate[0] is not None
    return dense._replace(
        gate_weight=weights.down_norm,
        gate_threshold=np.repeat(0.2 * spread if gated else 0 * spread, layers, 1),
        threshold=np.repeat(1.0 * spread, layers, 1),
        output_threshold=np.repeat(0.5 * spread, layers, 1),
        input_threshold=np.repeat(np.repeat(0.3 * spread, layers, 1)[:, :, None], 2, 2),
        needed=(rng.random((batch, layers, neurons)) < 0.9).astype(np.uint8),
        attention_threshold=0.6 * spread[:, 0],
        attention_from=0,
        screen_threshold=np.full(batch, 30, np.float32),
        head_margin=np.full(batch, 4, np.float32),
    )


def compare(weights, selection_of, tolerance, threads=2, prompts=PROMPTS):
    """Kernels and torch on the same tokens; returns the share of active neurons."""
    batch = len(prompts)
    kernels, reference = Decoder(weights, threads), TorchDecoder(weights)
    dense = make_policy("dense", weights, None, Shares()).dense(batch)
    ours, theirs = kernels.prefill(prompts, 12, dense), reference.prefill(prompts, 12, dense)
    active = 0
    for step in range(12):
        a, b = ours.outcome, theirs.outcome
        scale = np.abs(b.logits).max()
        assert np.abs(a.logits - b.logits).max() <= tolerance * scale
        assert np.abs(a.log_total - b.log_total).max() <= tolerance * scale
        assert np.abs(a.entropy - b.entropy).max() <= 10 * tolerance * scale
        assert (a.logits[np.arange(batch), a.best] == a.logits.max(1)).all()
        following = [int(t) for t in b.best]
        kernels.step(ours, following, selection_of(weights, batch))
        reference.step(theirs, following, selection_of(weights, batch))
        # A magnitude within rounding of its threshold may fall on either side; every precision has such cases.
        assert ours.outcome.neurons.shape == theirs.outcome.neurons.shape == (batch, len(weights.down_norm))
        assert np.abs(ours.outcome.neurons - theirs.outcome.neurons).sum(1).max() <= (1 if tolerance < 1e-3 else 8)
        active += ours.outcome.active.sum()
        assert step or len(ours.tokens[0]) == len(prompts[0]) + 1
    return active / (12 * batch * weights.down_norm.size)


def everything(weights, batch):
    return make_policy("dense", weights, None, Shares()).dense(batch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("family", CONFIGS)
def test_dense_steps_equal_torch_at_every_precision(family, dtype):
    assert compare(pack(tiny_model(family, seed=1), dtype), everything, TOLERANCE[dtype]) == 1


def test_opt_350m_has_its_norms_after_and_projections_around():
    weights = pack(tiny_model("opt", seed=2, **OPT_350M), "float32")
    assert compare(weights, everything, TOLERANCE["float32"]) == 1


def continuous(weights, batch):
    """Thresholds that drop much and where no value is near: neurons are masked, not tested."""
    return drop_some(weights, batch)._replace(
        gate_threshold=np.zeros((batch, len(weights.down)), np.float32),
        threshold=np.zeros((batch, len(weights.down)), np.float32),
        output_threshold=np.zeros((batch, len(weights.down)), np.float32),
        input_threshold=np.zeros((batch, len(weights.down), 2), np.float32),
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_selections_equal_torch(family):
    """Both tests, the prompt's neurons, output projection and screened head, different for each sequence."""
    model = tiny_model(family, seed=3)
    width = model.get_output_embeddings().weight.shape[1]
    weights = pack(model, "float32", basis_for(width))
    # One value that rounds across its threshold changes logits by the size of a threshold: a few per cent.
    assert 0.1 < compare(weights, drop_some, 5e-2) < 0.9
    assert 0.8 < compare(weights, continuous, TOLERANCE["float32"]) < 0.95
    # A single sequence takes a way of its own through the MLP.
    assert 0.1 < compare(weights, drop_some, 5e-2, prompts=PROMPTS[:1]) < 0.9
    assert 0.8 < compare(weights, continuous, TOLERANCE["float32"], prompts=PROMPTS[:1]) < 0.95


def test_selections_of_many_sequences_equal_torch():
    """Words that four and more of them need are multiplied with four at a time."""
    weights = pack(tiny_model("llama", seed=3), "float32", basis_for(32))
    prompts = [prompt[i:] for i in (0, 3) for prompt in PROMPTS]
    assert 0.1 < compare(weights, drop_some, 5e-2, prompts=prompts) < 0.9
    assert 0.8 < compare(weights, continuous, TOLERANCE["float32"], prompts=prompts) < 0.95


def test_a_screen_is_its_definition_in_four_bits():
    generator = torch.Generator().manual_seed(0)
    head, basis = torch.randn(1000, 32, generator=generator), basis_for(32)
    codes, scale, directions, offset, weight, mean = Screen.of(head, basis).wide()
    rows = codes * scale[:, None]
    center, own = torch.from_numpy(basis.center), torch.from_numpy(basis.rows)
    terms = torch.cat([center[None], own]) @ (head - head.mean(0)).t()
    rms = terms.square().mean(1, keepdim=True).sqrt()
    step = 3.5 / 7 * rms
    # Half a step to the nearest code, bfloat16 of the basis, and what is cut off beyond three and a half.
    assert ((rows - terms.clamp(-3.5 * rms, 3.5 * rms)).abs() <= 0.5 * step + 0.01 * rms).all()
    torch.testing.assert_close(weight, terms.norm(dim=1), rtol=4e-3, atol=0)  # 8 bits of mantissa
    x = torch.randn(5, 32, generator=generator)
    z = (x - center) @ own.t()
    torch.testing.assert_close((x @ directions.t() + offset)[:, 1:], z, rtol=0, atol=0.05)  # the same, of sums of 32
    assert (x @ directions.t() + offset)[:, 0].equal(torch.ones(5))
    torch.testing.assert_close(mean, head.mean(0))


@pytest.mark.parametrize("words", [17_001, 331])
def test_screened_words_equal_torch_beyond_a_tile_and_in_a_part_of_a_block(words):
    assert SCREEN_TILE < 17_001 // 2
    weights = pack(tiny_model("llama", seed=3, vocab_size=words), "float32", basis_for(32))

    def wide(w, batch):
        return continuous(w, batch)._replace(needed=everything(w, batch).needed)

    for prompts in (PROMPTS, PROMPTS[:1]):
        for threads in (1, 2, 3):
            assert compare(weights, wide, TOLERANCE["float32"], threads, prompts=prompts) == 1


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
@pytest.mark.parametrize("family", CONFIGS)
def test_values_of_small_attention_weights_are_their_mean_as_in_torch(family, prompts):
    weights = pack(tiny_model(family, seed=4), "float32")

    def attending(thresholds, least=0):
        return lambda w, batch: everything(w, batch)._replace(
            attention_threshold=np.array(thresholds[:batch], np.float32), attention_from=least
        )

    # Differently for each sequence; the shorter ones come to what they must see on the way. A weight that rounds
    # across its threshold moves about a fortieth of the attention's mass between two values.
    assert compare(weights, attending([0.5, 0.9, 0.7], 34), 2e-2, prompts=prompts) == 1
    # Every value read, and none: nothing is near a threshold.
    assert compare(weights, attending([1e-9] * 3), TOLERANCE["float32"], prompts=prompts) == 1
    assert compare(weights, attending([1e3] * 3), TOLERANCE["float32"], prompts=prompts) == 1


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (8, 1), (8, 2)])
def test_heads_that_share_values_keep_what_any_needs(heads, kv_heads):
    """Also those whose sums are not made together: three at a time, two, one."""
    weights = pack(
        tiny_model("llama", seed=4, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8), "float32"
    )

    def attending(threshold):
        return lambda w, batch: everything(w, batch)._replace(
            attention_threshold=np.full(batch, threshold, np.float32), attention_from=0
        )

    for threshold in (0.5, 0.9):
        # A weight that rounds across its threshold moves about a fortieth of the attention's mass.
        assert compare(weights, attending(threshold), 2e-2) == 1
    # What the heads of a group share counts once.
    decoder = Decoder(weights, 2)
    state = decoder.prefill([PROMPTS[0]], 1, everything(weights, 1))
    decoder.step(state, [7], everything(weights, 1))
    assert state.outcome.bytes_read[READ_CACHE] == 3 * (len(PROMPTS[0]) + 1) * kv_heads * 2 * 8 * 4


def test_a_team_that_was_interrupted_before_it_began_goes_on():
    """Otherwise the others wait for ever, or are a call behind from then on."""
    team, interrupted, seen, ready = Team(2), [], SimpleQueue(), threading.Event()

    def part(t, threads, sync, number):
        if t == 0 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        seen.put((t, number))
        if t == 0:
            sync[2, 0] += 1
            ready.set()
        assert ready.wait(10)

    with pytest.raises(KeyboardInterrupt):
        team.run(part, 1)
    team.run(part, 2)
    assert sorted(seen.get(timeout=10) for _ in range(4)) == [(0, 1), (0, 2), (1, 1), (1, 2)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("family", CONFIGS)
def test_whole_neurons_left_out_equal_torch(family, dtype):
    weights = pack(tiny_model(family, seed=8), dtype)
    assert compare(weights, everything, TOLERANCE[dtype]) == 1
    masked = lambda w, batch: everything(w, batch)._replace(needed=drop_some(w, batch).needed)  # noqa: E731
    assert 0.8 < compare(weights, masked, TOLERANCE[dtype]) < 0.95
    assert 0.8 < compare(weights, masked, TOLERANCE[dtype], prompts=PROMPTS[:1]) < 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_layouts_hold_the_same_weights(dtype):
    model = tiny_model("llama", seed=9)
    weights, other = pack(model, dtype), pack(model, dtype, layout="input")
    for ours, theirs in zip((weights.gate, weights.up, weights.down), (other.gate, other.up, other.down), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            wide = b.rows.wide() if a.transposed == b.transposed else b.rows.wide().t()
            assert torch.equal(a.rows.wide(), wide)


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_weights_share_nothing_with_the_model(family):
    """One norm that is shared would keep the model's whole file in memory."""
    model = tiny_model(family)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    shell = pack(model, "bfloat16").model
    assert theirs.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in shell.parameters())


@pytest.mark.parametrize("family", CONFIGS)
def test_inputs_left_out_equal_torch(family):
    weights = pack(tiny_model(family, seed=4), "float32", layout="input")
    assert compare(weights, everything, TOLERANCE["float32"]) == 1
    without_mask = lambda w, batch: drop_some(w, batch)._replace(  # noqa: E731
        needed=everything(w, batch).needed, gate_threshold=everything(w, batch).gate_threshold
    )
    assert 0.1 < compare(weights, without_mask, 5e-2) < 1


def test_threads_and_batch_do_not_change_what_a_sequence_gets():
    weights = pack(tiny_model("gemma3_text", seed=5), "float32")
    alone = []
    for threads in (1, 2, 3):
        decoder = Decoder(weights, threads)
        for prompt in PROMPTS:
            state = decoder.prefill([prompt], 1, everything(weights, 1))
            alone.append(state.outcome.logits[0].copy())
        together = decoder.prefill(PROMPTS, 1, everything(weights, len(PROMPTS))).outcome.logits
        for own, row in zip(alone[-len(PROMPTS) :], together, strict=True):
            np.testing.assert_allclose(own, row, atol=1e-5 * np.abs(row).max())  # sums in another order
    for own, other in zip(alone, alone[len(PROMPTS) :], strict=False):
        np.testing.assert_allclose(own, other, atol=1e-5 * np.abs(own).max())


def test_rows_that_are_not_needed_are_not_read():
    """Poison what the tests leave out: nothing changes."""
    model = tiny_model("llama", seed=6)
    weights = pack(model, "float32", basis_for(32))
    selection = everything(weights, 1)
    needed = np.zeros((1, *weights.down_norm.shape), np.uint8)
    needed[:, :, ::3] = 1
    selection = selection._replace(needed=needed)
    decoder = Decoder(weights, 2)

    def logits():
        state = decoder.prefill([PROMPTS[0]], 1, everything(weights, 1))
        decoder.step(state, [7], selection)
        return state.outcome.logits.copy(), state.outcome.bytes_read.copy()

    before, read = logits()
    state = decoder.prefill([PROMPTS[0]], 1, everything(weights, 1))
    dropped = needed[0, 0] == 0
    for tensor in (weights.tensors.gate, weights.tensors.up, weights.tensors.down):
        tensor[:, dropped] = np.nan
    decoder.step(state, [7], selection._replace(needed=needed.copy()))  # what was gathered before is not used again
    assert np.array_equal(state.outcome.logits, before)
    row = 32 * 4
    assert read[1] == 3 * 3 * 27 * row  # layers, matrices, neurons needed
    assert np.isnan(weights.tensors.down).any()


def test_neurons_needed_for_many_tokens_are_gathered_once():
    weights = pack(tiny_model("llama", seed=6), "float32")
    decoder, rng = Decoder(weights, 2), np.random.default_rng(0)
    state = decoder.prefill([PROMPTS[0]], 4, everything(weights, 1))
    first, second = (
        everything(weights, 1)._replace(needed=(rng.random((1, *weights.down_norm.shape)) < 0.5).astype(np.uint8))
        for _ in range(2)
    )
    seen = []
    for selection in (first, first, second, first):
        decoder.step(state, [7], selection)
        assert state.outcome.active == selection.needed.sum()
        seen.append(decoder._gathered)
    assert seen[0] is seen[1]
    widest = [selection.needed[0].sum(1).max() for selection in (first, second)]
    assert [g.tensors.up.shape[1] for g in seen[1:]] == [widest[0], widest[1], widest[0]]


def test_more_room_is_asked_for_not_overrun():
    decoder = Decoder(pack(tiny_model("llama"), "float32"), 1)
    weights = decoder.weights
    state = decoder.prefill([PROMPTS[0]], 1, everything(weights, 1))
    decoder.step(state, [5], everything(weights, 1))
    with pytest.raises(IndexError, match="no room for token 42"):
        decoder.step(state, [5], everything(weights, 1))


def test_int8_rows_round_to_half_a_step():
    model = tiny_model("llama", seed=7)
    weights = pack(model, "int8")
    exact = model.model.layers[1].mlp.gate_proj.weight
    packed = weights.gate[1].rows
    assert packed.values.dtype == torch.int8
    assert (packed.wide() - exact).abs().amax(1).le(packed.scale * 0.5001).all()
    # Transposed rows have a scale per output too: one large output must not round the others away.
    exact = model.model.layers[1].mlp.down_proj.weight
    packed = weights.down[1].rows
    assert (packed.wide().t() - exact).abs().amax(1).le(packed.scale * 0.5001).all()
    assert len(packed.scale) == len(exact)


def test_the_highest_number_is_found_wherever_it_is():
    @njit
    def found(values):
        return highest(values)

    assert found(np.empty(0, np.float32)) == -np.inf
    for n in (1, LANES - 1, LANES, 5 * LANES + 3):
        values = -np.arange(1, n + 1, dtype=np.float32)
        for place in range(n):
            assert found(np.roll(values, place)) == -1
    values[0] = np.nan
    assert found(values) == -2  # as of Python's max(highest so far, nan): whoever adds it up notices


@njit
def project(out, rows, scales, bias, x, which):
    project_rows(out, rows, scales, bias, x, which)


@njit
def add(out, rows, begin, which, factors):
    add_rows(out, rows, begin, which, factors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("width", [1, 15, 16, 47, 64, 100, 576])
def test_rows_listed_are_multiplied_and_added_wherever_they_lie(dtype, width):
    rng = np.random.default_rng(width)
    rows = Rows.empty(PRECISIONS[dtype], 40, width)
    rows.put(torch.from_numpy(rng.standard_normal((40, width)).astype(np.float32)))
    columns = Rows(rows.values, None if rows.scale is None else torch.ones(width), transposed=True)
    wide, narrow = rows.wide().numpy(), columns.wide().numpy()
    x, bias, factors = (rng.standard_normal(n).astype(np.float32) for n in (width, 40, 40))
    lists = [[], [7], [3, 4, 5], list(range(40)), list(range(8, 13)), [0, 2, 3, 9, 11, 12, 13, 30, 39]]
    for which in (np.array(chosen, np.int64) for chosen in lists):
        out = np.full(40, np.nan, np.float32)
        project(out, rows.array, rows.scales, bias, x[None], which)
        # float32: sums of up to 576 terms in another order.
        np.testing.assert_allclose(out[which], wide[which] @ x + bias[which], rtol=1e-4, atol=1e-4)
        assert np.isnan(np.delete(out, which)).all()
        for begin in (0, width // 3):
            total = np.ones(width - begin, np.float32)
            add(total, rows.array, begin, which, factors)
            expected = 1 + factors[which] @ narrow[which, begin:]
            # The same, of up to 40 terms as large as 127 in int8.
            np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-2 if dtype == "int8" else 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "gpt2"])
def test_weights_that_are_not_finite_are_refused_by_name(family, value):
    """Every tensor of a model, whatever it is: projections, biases, norms, embeddings, positions, head."""
    changes = {**OPT_350M, "tie_word_embeddings": False} if family == "opt" else {"tie_word_embeddings": False}
    model = tiny_model(family, **changes)
    pack(model, "int8")
    names = dict(model.named_parameters())
    assert {name.split(".")[-1] for name in names} == ({"weight"} if family == "gemma3_text" else {"weight", "bias"})
    for name, parameter in names.items():
        flat = parameter.view(-1)
        before = flat[-1].item()
        flat[-1] = value
        with pytest.raises(ModelError) as refused:
            pack(model, "bfloat16")
        assert str(refused.value) == (
            f"1 of the {len(flat):,} numbers in {name} are NaN or infinite, so the model computes nothing; "
            "download or convert it again"
        )
        flat[-1] = before


def test_large_weights_are_not_taken_for_infinite_ones():
    """Their squares and sums overflow, they do not."""
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight[:2, 0] = 3e38
    model.model.embed_tokens.weight[:2, 0] = 3e38
    assert pack(model, "float32").tensors.up[0, 0, 0] == np.float32(3e38)


FORK = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tiny_models import tiny_model, tokens
from clada import Engine
engine = Engine(tiny_model("llama", hidden_size=256), None, plan="none", coefficients="none", threads=2)
def generate():
    # Long enough that torch, too, runs the prompt in several threads.
    return [(step.token_id, step.surprisal_bits) for step in engine.generate(tokens(200), 5)]
expected = generate()
for _ in range(2):
    child = os.fork()
    if not child:
        signal.alarm(100)  # ends a child that waits for ever
        right = generate() == expected
        grandchild = os.fork()
        if not grandchild:
            os._exit(0 if generate() == expected else 1)
        os._exit(0 if right and os.waitpid(grandchild, 0)[1] == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
assert generate() == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork on Windows")
def test_a_forked_child_generates_as_its_parent_does():
    """Neither the kernels' threads nor torch's exist in it."""
    code = FORK.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_gguf_file_is_decoded_in_its_own_blocks():
    """The embedded Gemma has four types of blocks, of which a layer's queries and values may have two."""
    model = load_model("gemma3-270m")[0]
    weights = pack(model, "file")
    for module, packed in zip((layer.mlp.down_proj for layer in model.model.layers), weights.down, strict=True):
        assert torch.equal(packed.rows.wide().t(), module.weight)
    ends = (model.model.layers[0].self_attn, model.model.layers[-1].self_attn)
    for attention, packed in zip(ends, (weights.qkv[0], weights.qkv[-1]), strict=True):
        for module, part in zip((attention.q_proj, attention.k_proj, attention.v_proj), packed, strict=True):
            assert torch.equal(part.rows.wide(), module.weight)
    places = {memory.ctypes.data: memory.nbytes for memory in weights.memory.values()}
    of_file = sum(t.n_bytes for t in gguf.GGUFReader(gguf_file("gemma3-270m")).tensors if len(t.shape) == 2)
    assert of_file <= sum(places.values()) <= 1.01 * of_file
    dense, prompt = everything(weights, 1), [[2, 669, 5279, 1149]]
    ours, theirs = (d.prefill(prompt, 1, dense).outcome.logits for d in (Decoder(weights, 2), TorchDecoder(weights)))
    assert np.abs(ours - theirs).max() <= TOLERANCE["int4"] * np.abs(theirs).max()


def test_rows_of_queries_are_where_the_model_has_them(tmp_path):
    """llama.cpp has them in another order for LLaMA."""
    model = tiny_model("llama", seed=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96)
    write_gguf(model, tmp_path / "model.gguf", "Q8_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    changed = {}
    for name, module in (("attn_q", "q_proj"), ("attn_v", "v_proj")):
        stored = gguf.quants.dequantize(tensors[f"blk.0.{name}.weight"].data, gguf.GGMLQuantizationType.Q8_0)
        changed[module] = torch.from_numpy(stored)
    model.name_or_path = str(tmp_path / "model.gguf")
    matrices = StoredMatrices(model)
    for name, stored in changed.items():
        own = getattr(model.model.layers[0].self_attn, name).weight
        order = matrices.of(own).order
        # Within a step of 127 of the largest of 32.
        assert (stored[order] - own).abs().max() <= own.abs().max() / 127
        assert (order == np.arange(len(own))).all() == (name == "v_proj")
    with pytest.raises(ModelError, match=r"the model's weights are not those of blk\.0\.attn_q\.weight in model\.gguf"):
        pack(model, "file")


def test_a_model_of_no_file_has_no_blocks_of_its_own():
    message = "dtype file decodes the blocks of a GGUF file, and this model is none; use another dtype, or a file that "
    with pytest.raises(ModelError, match=message + r"ends in \.gguf"):
        pack(tiny_model("llama"), "file")
