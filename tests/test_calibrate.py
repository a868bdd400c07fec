"""Calibration: what it scores is what the engine computes, and the budget is kept."""

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, tiny_model, tokens
from tqdm import tqdm
from transformers import DynamicCache

from clada import calibrate as module
from clada.calibrate import calibrate
from clada.coefficients import NONE, Coefficients
from clada.engine import DecodeState, Engine
from clada.families import gate_activation, gated_mlps
from clada.kernels import GatedMLP

RULE = Coefficients(-0.6, 0.3, tau_surprisal_bits=9.0, tau_entropy_bits=3.0)


def windows_of(n, length=40):
    return [tokens(length + 1, seed=100 + i) for i in range(n)]


def pieces(model):
    mlps = gated_mlps(model)
    return mlps, [GatedMLP.from_module(mlp, gate_activation(model.config)) for mlp in mlps]


@pytest.fixture
def small_search(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 40)
    monkeypatch.setattr(module, "SAMPLED_TOKENS", 160)
    monkeypatch.setattr(module, "model_revision", lambda _name: "sha256:tiny")


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_scored_loss_is_the_engines_token_by_token(family, small_search):
    """One masked pass over a window equals the engine skipping neurons token by token under the same loads."""
    model = tiny_model(family, seed=5)
    found = calibrate(model, "tiny", windows_of(8), 0.3, RULE, {})
    # Thresholds that drop much, so that a wrong mask, factor or token offset shows.
    plan = type(found)(**{**vars(found), "gate": tuple(3 * t for t in found.gate), "magnitude": (0.7,) * 3})
    window = windows_of(1)[0]
    with tqdm(disable=True) as progress:
        loads = module._loads(model, [window], progress)
        loss = module._sparse_loss(model, *pieces(model), plan, RULE, [window], loads, progress)

    engine = Engine(model, None, plan=plan, coefficients=RULE)
    state = DecodeState([], DynamicCache(config=model.config), torch.zeros(VOCABULARY))
    nll, active, states = [], [], set()
    for position, token in enumerate(window[:-1]):
        flags = (False, False)
        if position:
            flags = RULE.loads(loads[0][0][position - 1], loads[0][1][position - 1])
        states.add(flags)
        active.append(engine._decode_one(state, token, engine.policy.thresholds(*flags)) / (3 * 80))
        nll.append(-float(torch.log_softmax(state.logits, -1)[window[position + 1]]))
    assert len(states) > 1  # loads differ between tokens
    assert 0 < np.mean(active) < 0.9
    # A neuron whose magnitude rounds across its threshold may differ: one of 3 * 80 * 40 at most, here none was seen.
    assert loss.active == pytest.approx(np.mean(active), abs=1.5 / (3 * 80 * 40))
    assert loss.nll[0] == pytest.approx(np.mean(nll), rel=1e-4)  # float32, other orders of summation


def test_a_looser_budget_never_keeps_more_and_the_bound_is_within_it(small_search):
    model = tiny_model("llama", seed=3)
    plans = [calibrate(model, "tiny", windows_of(12), budget, NONE, {}) for budget in (0.001, 0.05, 0.5)]
    shares = [plan.loss["dropped_share"] for plan in plans]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    for plan, budget in zip(plans, (0.001, 0.05, 0.5), strict=True):
        assert plan.loss["ppl_rise"] <= plan.loss["ppl_rise_upper"] <= budget
        assert plan.max_loss == budget
        if plan.loss["dropped_share"] > 0:
            # The magnitude test alone leaves this share active; the gate test drops a few of the same neurons more.
            assert plan.loss["active_fraction"] == pytest.approx(1 - plan.loss["dropped_share"], abs=0.1)


def test_nothing_dropped_is_the_dense_loss(small_search):
    model = tiny_model("qwen2", seed=1)
    mlps, weights = pieces(model)
    # A budget that nothing meets: on random weights dropping neurons may well lower the loss.
    plan = calibrate(model, "tiny", windows_of(8), -0.99, NONE, {})
    assert plan.loss["dropped_share"] == 0
    zero = type(plan)(**{**vars(plan), "gate": (0.0,) * 3, "magnitude": (0.0,) * 3})
    window = windows_of(1)[0]
    with tqdm(disable=True) as progress:
        loads = module._loads(model, [window], progress)
        loss = module._sparse_loss(model, mlps, weights, zero, NONE, [window], loads, progress)
    dense = model(torch.tensor([window[:-1]]), labels=None).logits[0]
    expected = float(torch.nn.functional.cross_entropy(dense, torch.tensor(window[1:])))
    assert loss.nll[0] == pytest.approx(expected, rel=1e-6)  # the same float32 operations
    assert loss.nll[0] == pytest.approx(loads[0][0].mean() * np.log(2), rel=1e-5)  # float32 against float64 softmax
    assert loss.active == 1
