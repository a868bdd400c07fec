"""The kernels keep what the rules keep: the same inputs to both, and exact agreement of what is kept."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from test_engine import plan_of
from tiny_models import tiny_model, tokens

import clada
from clada.assembly import DENSE
from clada.cpu.decoder import Decoder
from clada.cpu.kernels.arguments import READ_HEAD, READ_MLP
from clada.cpu.kernels.attention import _choose
from clada.cpu.kernels.head import screen_head
from clada.cpu.kernels.mlp import _list_kept, _list_needed, _still_needed, mlp_by_input
from clada.cpu.kernels.rows import project_inputs
from clada.cpu.kernels.scalars import fast_exp
from clada.cpu.pack import pack
from clada.engine import Engine
from clada.methods import rules
from clada.methods.plan import Shares
from clada.methods.registry import EVALUATED, METHODS, Method
from clada.methods.screen import Basis, screen_words
from clada.methods.selection import MLP_INPUT
from clada.models.anatomy import ACTIVATIONS

NEURONS, SEQUENCES = 500, 3

F32 = np.float32


class Buffers(NamedTuple):
    """The part of `Scratch` that the tests of neurons use."""

    token: np.ndarray
    sequence: np.ndarray
    rows: np.ndarray
    near: np.ndarray
    h: np.ndarray
    alive: np.ndarray


class Needed(NamedTuple):
    """The part of `Selection` that says what prompts need."""

    needed: np.ndarray


def buffers(h):
    batch, neurons = h.shape
    return Buffers(
        np.zeros(batch, np.int64), np.arange(batch), np.zeros((1, neurons), np.int64), np.zeros((1, neurons), np.uint8),
        h, np.ones((batch, neurons), np.uint8),
    )  # fmt: skip


def activations(batch, seed=0):
    """Values of which every tenth is exactly at the threshold 0.5, where the weight is 1, and every eleventh zero."""
    rng = np.random.default_rng(seed)
    h, weight = rng.standard_normal((batch, NEURONS)).astype(F32), rng.uniform(0.5, 1.5, NEURONS).astype(F32)
    h[:, ::10], weight[::10] = -0.5, 1.0
    h[:, ::11] = 0.0
    return h, weight


def one_layer(layout="matrix", basis=None):
    """A packed model of one layer, one sequence's buffers, and what leaves nothing out."""
    weights = pack(tiny_model("llama", seed=3, num_hidden_layers=1), "float32", basis, layout=layout)
    scratch = Decoder(weights, 1)._scratch(1, 16)
    return weights, scratch, DENSE.policy(weights).dense(1)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_one_sequences_neurons_leave_by_the_magnitude_test(threshold):
    h, weight = activations(1)
    factor, rows = np.linspace(-2, 2, NEURONS, dtype=F32), np.arange(NEURONS)
    factor[::10] = -1  # -0.5 becomes 0.5, still at the threshold
    expected = np.flatnonzero(rules.keeps_neuron(h[0] * factor, weight, F32(threshold)))
    later = np.zeros((NEURONS, 16), F32)
    count = _list_kept(rows, NEURONS, h[0], factor, 0, weight, F32(threshold), later)
    assert rows[:count].tolist() == expected.tolist()
    assert count == NEURONS if threshold == 0 else 0 < count < NEURONS


@pytest.mark.parametrize("name", ["silu", "relu"])
def test_one_sequences_neurons_leave_by_the_gate_test(name):
    h, weight = activations(1)
    rows, later = np.arange(NEURONS), np.zeros((NEURONS, 16), F32)
    gate = h[0].copy()
    count = _list_kept(rows, NEURONS, gate, gate[:0], ACTIVATIONS[name], weight, F32(0.2), later)
    # The kernel leaves act(gate) where the gate was.
    torch.testing.assert_close(torch.from_numpy(gate), getattr(torch.nn.functional, name)(torch.from_numpy(h[0])))
    assert rows[:count].tolist() == np.flatnonzero(rules.keeps_gated(gate, weight, F32(0.2))).tolist()
    assert 0 < count < NEURONS


def test_several_sequences_neurons_leave_each_by_its_own_threshold():
    h, weight = activations(SEQUENCES)
    s, thresholds = buffers(h.copy()), np.array([0.0, 0.5, 1.0], F32)
    kept = rules.keeps_neuron(h, weight, thresholds[:, None])
    count = _still_needed(0, 0, NEURONS, weight, thresholds, s)
    assert np.array_equal(s.alive.astype(bool), kept)
    assert np.array_equal(s.h, np.where(kept, h, 0))
    assert s.rows[0, :count].tolist() == np.flatnonzero(kept.any(0)).tolist()


@pytest.mark.parametrize("batch", [1, SEQUENCES])
def test_neurons_that_prompts_need(batch):
    scores = np.random.default_rng(1).random((batch, 2, NEURONS))
    needed = rules.needed_by_prompt(scores, 0.3)
    assert (needed.sum(2) == 350).all()
    assert all(s[n == 1].min() > s[n == 0].max() for s, n in zip(scores[:, 1], needed[:, 1], strict=True))
    s = buffers(np.zeros((batch, NEURONS), F32))
    count = _list_needed(0, 1, 0, NEURONS, s, Needed(needed))
    assert s.rows[0, :count].tolist() == np.flatnonzero(needed[:, 1].any(0)).tolist()


def test_inputs_of_projections_leave():
    rng = np.random.default_rng(2)
    x, weight = activations(1)
    matrix, bias = rng.standard_normal((NEURONS, 32)).astype(F32), rng.standard_normal(32).astype(F32)
    out, which = np.zeros((1, 32), F32), np.zeros(NEURONS, np.int64)
    kept = rules.keeps_input(x[0], weight, F32(0.5))
    first, threshold = np.zeros(1, np.int64), np.array([0.5], F32)
    read = project_inputs(out, matrix, np.zeros(0, F32), bias, x, first, weight, threshold, which, 0, 32)
    assert which[: kept.sum()].tolist() == np.flatnonzero(kept).tolist()
    assert read == kept.sum() * 32 * 4
    # float32 sums of 500 terms in another order
    np.testing.assert_allclose(out[0], (x[0] * kept) @ matrix + bias, rtol=1e-4, atol=1e-4)


def test_neurons_of_weights_by_input_leave_by_the_magnitude_test():
    weights, s, select = one_layer("input")
    s.normed[0, 0] = np.random.default_rng(3).standard_normal(32)
    select = select._replace(
        input_threshold=np.full((1, 1, 2), 0.5, F32), threshold=np.full((1, 1), 0.3, F32)
    )  # fmt: skip
    mlp_by_input(0, 1, 0, weights.tensors, weights.constants, s, select)
    kept = rules.keeps_neuron(s.h[0], select.weight[0], select.threshold[0, 0])
    inputs = rules.keeps_input(s.normed[0, 0], select.input_weight[0, MLP_INPUT], F32(0.5))
    assert 0 < kept.sum() < kept.size
    assert 0 < inputs.sum() < inputs.size
    assert s.rows[0, : kept.sum()].tolist() == np.flatnonzero(kept).tolist()
    assert s.computed[0, 0].tolist() == [kept.sum()]
    assert s.reads[0, READ_MLP] == (2 * inputs.sum() * kept.size + kept.sum() * 32) * 4


class Attended(NamedTuple):
    """The part of `Scratch` that the test of values uses."""

    relative: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    peak: np.ndarray
    total: np.ndarray


def test_values_of_little_weight_leave_for_all_heads_that_share_them():
    heads, positions, threads, least = 4, 600, 2, 1.5
    scores = np.random.default_rng(4).standard_normal((heads, positions)).astype(F32) * 2
    weights = torch.from_numpy(scores).softmax(-1)
    kept = rules.keeps_value(weights, torch.tensor(positions), least, 0)[0]
    # Nothing lies within rounding of the border: the kernel divides where the rule multiplies.
    nearest = (weights.amax(0) * positions / least - 1).abs().min()
    assert nearest > 1e-4
    half = positions // threads
    s = Attended(
        np.zeros((threads, half), F32), np.zeros((threads, half), np.int64), np.zeros((threads, 1, heads, half), F32),
        np.zeros((threads, 1, heads), F32), np.zeros((threads, 1, heads), F32),
    )  # fmt: skip
    for t in range(threads):
        for head in range(heads):
            part = scores[head, t * half : (t + 1) * half]
            s.peak[t, 0, head] = part.max()
            s.scores[t, 0, head] = [fast_exp_of(x - part.max()) for x in part]
            s.total[t, 0, head] = s.scores[t, 0, head].sum()
    found = []
    for t in range(threads):
        count = _choose(t, threads, 0, 0, heads, 0, half, F32(least / positions), s)
        found += (s.rows[t, :count] + t * half).tolist()
    assert found == kept.nonzero().squeeze(1).tolist()
    assert 0 < len(found) < positions
    # A context of few positions keeps all.
    assert rules.keeps_value(weights, torch.tensor(positions), least, positions + 1).all()


def fast_exp_of(x):
    return fast_exp(F32(x))


def test_values_left_out_give_the_mean():
    rng = np.random.default_rng(5)
    weights, value = rng.dirichlet(np.ones(6), 2), rng.standard_normal((6, 3))
    kept = np.array([[True, False, True, False, False, True]])
    mean = value.mean(0, keepdims=True)
    expected = weights @ np.where(kept.T, value, mean)
    np.testing.assert_allclose(rules.mean_for_left_out(weights, kept, value, mean), expected, rtol=1e-12)
    torches = rules.mean_for_left_out(*map(torch.from_numpy, (weights, kept, value, mean)))
    np.testing.assert_allclose(torches.numpy(), expected, rtol=1e-12)


def test_words_that_the_screen_finds_improbable_leave():
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0][:9]
    basis = Basis(rows.contiguous().numpy(), torch.randn(32, generator=generator).numpy())
    weights, s, select = one_layer(basis=basis)
    select = select._replace(screen_threshold=np.full(1, 30, F32), head_margin=np.full(1, 4, F32))
    x = 3 * torch.randn(1, 32, generator=generator)
    screen = weights.screen.wide()
    estimate, near = screen_words(screen, x, torch.tensor([30.0]), torch.tensor([4.0]))
    floor = estimate.logsumexp(1) - 4
    assert (estimate - floor).abs().min() > 1e-3  # no word lies within rounding of the border
    terms = rules.keeps_term(x @ screen[2].t() + screen[3], screen[4], 30.0)
    assert terms[0, 0]
    assert 0 < terms.sum() < terms.numel()
    screen_head(0, 1, np.zeros((3, 8), np.int64), x.numpy(), weights.tensors, s, select)
    words = np.flatnonzero(near[0].numpy())
    assert 0 < len(words) < near.numel()
    assert s.rows[0, : len(words)].tolist() == words.tolist()
    # What was read says how many words and terms there were: the basis, codes of the terms kept, rows of the words.
    w = weights.tensors
    of_screen = w.screen_basis.nbytes + int(terms.sum()) * w.screen.shape[1]
    assert s.reads[0, READ_HEAD] == of_screen + len(words) * 32 * 4
    left_out = ~near[0].numpy()
    np.testing.assert_allclose(s.logits[0][left_out], estimate[0].numpy()[left_out], atol=1e-3)  # sums of 16 bits
    exact = (weights.model.get_output_embeddings()(x))[0].numpy()
    np.testing.assert_allclose(s.logits[0][words], exact[words], rtol=1e-4, atol=1e-4)  # float32 sums reordered


def test_rules_are_the_same_on_numpy_and_torch():
    x, weight = activations(SEQUENCES, seed=6)
    limit = np.array([[0.0], [0.5], [1.0]], F32)
    for rule in (rules.keeps_gated, rules.keeps_neuron, rules.keeps_input, rules.keeps_term):
        kept = rule(x.copy(), weight, limit)
        assert np.array_equal(rule(*map(torch.from_numpy, (x.copy(), weight, limit))).numpy(), kept)
        assert kept[0].all()
        assert 0 < kept[2].sum() < kept[1].sum() < NEURONS
    assert rules.keeps_term(np.zeros((1, 3)), np.ones(3), 1.0).tolist() == [[True, False, False]]
    assert rules.keeps_word(np.array([[1.0, -3.0, -2.0]]), np.array([1.0]), np.array([3.0])).tolist() == [
        [True, False, True]
    ]
    np.testing.assert_array_equal(rules.magnitude(np.array([-2.0, 3.0]), np.array([0.5, 2.0])), [1.0, 6.0])


def test_a_method_is_a_row(monkeypatch):
    """Nothing but its row says what it leaves out, in the kernels and in place."""
    row = Method("both tests of neurons", lambda dropped, _words, _alone: Shares(gate=dropped / 4, neurons=dropped))
    for table in (EVALUATED, METHODS):
        monkeypatch.setitem(table, "both", row)
    model = tiny_model("llama", seed=2)
    model.generation_config.eos_token_id = None
    prompt, plan = tokens(20, seed=3), plan_of(model)
    engine = Engine(model, None, method="both", plan=plan, coefficients="none", keep=0.9)
    assert engine.policy.gate == pytest.approx([0.25] * 3)  # a quarter of a tenth of a table up to 10
    assert engine.policy.magnitude == pytest.approx([1.0] * 3)
    steps = list(engine.generate(prompt, 12))
    with clada.sparse(model, plan, "none", method="both", keep=0.9) as run:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert ids[0, 20:].tolist() == [step.token_id for step in steps]
    # The engine runs the last token too; a magnitude within rounding of its threshold may fall on either side.
    assert abs(run.neurons - sum(round(step.active_fraction * 240) for step in steps[:-1])) <= 2
    assert 0.05 < run.active_fraction < 0.99
