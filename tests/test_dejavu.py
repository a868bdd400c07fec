"""DejaVu's predictors: right about ReLU, wrong about gates, and never in the fast engine."""

import functools

import numpy as np
import pytest
import torch
from test_engine import plan_of
from tiny_models import tiny_model, tokens

import clada
import clada.methods.dejavu as dejavu
from clada.engine import Engine
from clada.errors import InputError
from clada.measure import tables
from clada.measure.tables import tabulate
from clada.methods.coefficients import NONE
from clada.methods.dejavu import TABLES, train

WINDOWS = [tokens(40, seed=100 + i) for i in range(60)]


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(tables, "model_revision", lambda _name: "")
    monkeypatch.setattr(dejavu, "STEPS", 300)


@pytest.fixture(scope="module")
def trained():
    """A model with its plan and score, trained once; for tests that leave them as they are."""

    @functools.cache
    def of(family, rank=None):
        model = tiny_model(family, seed=2)
        return model, *train(model, tabulate(model, "tiny", WINDOWS[:8], {}), WINDOWS[8:], WINDOWS[:8], rank)

    return of


def test_predictors_are_right_about_relu_and_not_about_gates(trained):
    _, plan, relu = trained("opt", rank=32)
    _, _, gated = trained("llama", rank=32)
    assert plan.tables["predictor_in"].shape == (3, 33, 32)
    assert plan.tables["predictor_out"].shape == (3, 32, 80)
    # Half is what guessing finds. Whether ReLU is active is one product, which this rank holds whole, but for what
    # two thousand tokens of training leave open.
    assert relu > 0.85
    assert 0.55 < gated < relu - 0.05


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_neurons_of_the_highest_scores_are_computed_and_no_others(family, trained):
    model, plan, _ = trained(family)
    ids = torch.tensor([tokens(12, seed=7)])
    down = model.model.decoder.layers[1].fc2 if family == "opt" else model.model.layers[1].mlp.down_proj
    up = model.model.decoder.layers[1].fc1 if family == "opt" else model.model.layers[1].mlp.up_proj
    seen = {}
    with clada.sparse(model, plan, NONE, method="dejavu", keep=0.6, prompt="sparse") as run:
        handles = [
            up.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0].reshape(-1, 32).double())),
            down.register_forward_hook(lambda _m, args, _out: seen.update(h=args[0].reshape(-1, 80))),
        ]
        model(ids)
        for handle in handles:
            handle.remove()
    into, out = (torch.from_numpy(plan.tables[name][1]).double() for name in TABLES)
    scores = (seen["x"] @ into[:-1] + into[-1]) @ out
    # By hand, in float64; a score within rounding of the last one chosen may fall on either side.
    order = scores.argsort(1, descending=True)
    assert (seen["h"].gather(1, order[:, 49:]) == 0).all()
    assert run.neurons == 12 * 3 * 48
    alive = seen["h"].gather(1, order[:, :47]) != 0
    assert alive.all() if family == "llama" else alive.float().mean() > 0.5  # ReLU gives zeros of its own


def test_it_is_refused_where_it_cannot_run(trained):
    model, plan, _ = trained("llama")
    with pytest.raises(InputError, match="no kernels"):
        Engine(model, None, method="dejavu", plan=plan, keep=0.5, coefficients="none")
    untrained = plan_of(model)
    with (
        pytest.raises(InputError, match="no predictors"),
        clada.sparse(model, untrained, NONE, method="dejavu", keep=0.5),
    ):
        pass
    np.testing.assert_array_equal(train(model, plan, WINDOWS[8:], WINDOWS[:8])[0].tables[TABLES[0]],
                                  plan.tables[TABLES[0]])  # fmt: skip  # the same every time
