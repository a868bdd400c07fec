"""Engine: everything kept equals transformers' own generate; thresholds equal a masked dense MLP."""

import math

import pytest
import torch
from tiny_models import GATED, tiny_model, tokens

from clada import kernels
from clada.coefficients import Coefficients
from clada.engine import Engine, Sampling
from clada.errors import InputError, ModelError
from clada.families import gate_activation, gated_mlps
from clada.load import surprisal_and_entropy_bits
from clada.models import load_model
from clada.plan import Plan

PROMPT = tokens(40, seed=3)  # longer than the tiny models' sliding window of 16


NO_RULE = {"lambda": 0.0, "gamma": 0.0, "tau_surprisal_bits": None, "tau_entropy_bits": None, "tau_quantile": 0.7}


def transformers_greedy(model, prompt, n):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=n,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


def plan_of(model, gate, magnitude, **changes):
    layers = model.config.num_hidden_layers
    values = {"model": "tiny", "revision": "", "max_loss": 0.02, "loss": {}, "quantiles": {}, "coefficients": NO_RULE}
    return Plan(gate=(gate,) * layers, magnitude=(magnitude,) * layers, **{**values, **changes})


@pytest.mark.parametrize("method", ["clada", "dense"])
@pytest.mark.parametrize("family", GATED)
def test_everything_kept_is_transformers_generate(family, method):
    for seed in range(3):
        model = tiny_model(family, seed)
        expected = transformers_greedy(model, PROMPT, 48)
        engine = Engine(model, None, method=method, plan="none", coefficients="none")
        steps = list(engine.generate(PROMPT, 48))
        assert [step.token_id for step in steps] == expected
        assert all(step.active_fraction == 1 for step in steps)


def test_smollm2_is_transformers_generate_with_text():
    model, tokenizer = load_model("smollm2-135m")
    prompt = "The minister said on Monday that"
    ids = tokenizer(prompt)["input_ids"]
    expected = transformers_greedy(model, ids, 40)
    for method in ("clada", "dense"):
        steps = list(Engine(model, tokenizer, method=method, plan="none", coefficients="none").generate(prompt, 40))
        assert [step.token_id for step in steps] == expected
        assert prompt + "".join(step.token for step in steps) == tokenizer.decode(ids + expected)


def test_generation_stops_after_the_end_of_text():
    model = tiny_model("llama")
    free = transformers_greedy(model, PROMPT, 20)
    model.generation_config.eos_token_id = free[4]
    steps = list(Engine(model, None, plan="none", coefficients="none").generate(PROMPT, 20))
    assert [step.token_id for step in steps] == free[: free.index(free[4]) + 1]


def test_steps_carry_the_raw_surprisal_and_entropy():
    model = tiny_model("qwen2")
    steps = list(Engine(model, None, plan="none", coefficients="none").generate(PROMPT, 12, temperature=3.0, seed=5))
    ids = torch.tensor([PROMPT + [step.token_id for step in steps]])
    logits = model(ids).logits[0, len(PROMPT) - 1 : -1]
    surprisal, entropy = surprisal_and_entropy_bits(logits, ids[0, len(PROMPT) :])
    # Whole pass against cached steps: float32 sums in another order; logits are of order 10, bits of order 1 to 30.
    torch.testing.assert_close(torch.tensor([s.surprisal_bits for s in steps]), surprisal.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor([s.entropy_bits for s in steps]), entropy.float(), atol=1e-4, rtol=1e-4)


def test_sampling_repeats_with_a_seed_and_respects_top_k():
    engine = Engine(tiny_model("llama"), None, plan="none", coefficients="none")
    draws = [[s.token_id for s in engine.generate(PROMPT, 16, temperature=2.0, seed=seed)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    greedy = [s.token_id for s in engine.generate(PROMPT, 16)]
    assert [s.token_id for s in engine.generate(PROMPT, 16, temperature=2.0, top_k=1, seed=9)] == greedy
    assert [s.token_id for s in engine.generate(PROMPT, 16, temperature=2.0, top_p=1e-6, seed=9)] == greedy


def layer_inputs(model):
    """The MLP inputs of every layer at the last token of the prompt."""
    seen = []
    handles = [mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, -1])) for mlp in gated_mlps(model)]
    model(torch.tensor([PROMPT]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", GATED)
def test_fused_loop_and_reference_equal_a_masked_dense_mlp(family):
    model = tiny_model(family, seed=1)
    for mlp, x in zip(gated_mlps(model), layer_inputs(model), strict=True):
        w = kernels.GatedMLP.from_module(mlp, gate_activation(model.config))
        gate = mlp.act_fn(mlp.gate_proj(x))
        h = gate * mlp.up_proj(x)
        gate_size, magnitude = gate.abs() * w.norm, h.abs() * w.norm
        for gate_quantile, quantile in ((0, 0), (0.2, 0.5), (0.5, 0.9)):
            # Thresholds between two neighbours, so that rounding cannot move a neuron across.
            g_t, t = (between(v, q) for v, q in ((gate_size, gate_quantile), (magnitude, quantile)))
            mask = (gate_size >= g_t) & (magnitude >= t)
            expected = mlp.down_proj(h * mask)
            for sparse in (kernels.sparse_mlp, kernels.sparse_mlp_reference):
                y, active = sparse(w, x, g_t, t)
                assert active == int(mask.sum())
                # float32 sums of 80 products in another order: 80 * 6e-8 of the largest output.
                torch.testing.assert_close(y, expected, atol=5e-6 * float(expected.abs().max()), rtol=1e-5)
            assert bool((kernels.neuron_mask(w, gate[None], h[None], *torch.tensor([[g_t], [t]])) == mask).all())


def between(values, quantile):
    ordered = values.sort().values
    i = int(quantile * len(ordered))
    return 0.0 if i == 0 else float((ordered[i - 1] + ordered[i]) / 2)


def test_work_of_dropped_neurons_is_skipped():
    """Rows the tests say are not needed are never read: poison them and nothing changes."""
    model = tiny_model("llama", seed=2)
    mlp, x = gated_mlps(model)[0], layer_inputs(model)[0]
    w = kernels.GatedMLP.from_module(mlp, gate_activation(model.config))
    gate = mlp.act_fn(mlp.gate_proj(x))
    h = gate * mlp.up_proj(x)
    g_t, t = between(gate.abs() * w.norm, 0.3), between(h.abs() * w.norm, 0.6)
    passed = gate.abs() * w.norm >= g_t
    active = passed & (h.abs() * w.norm >= t)
    for sparse in (kernels.sparse_mlp, kernels.sparse_mlp_reference):
        expected, n = sparse(w, x, g_t, t)
        up, down = w.up.clone(), w.down.clone()
        up[~passed] = torch.nan
        down[~active] = torch.nan
        poisoned = kernels.GatedMLP(w.gate, up, down, w.gate_bias, w.up_bias, w.down_bias, w.norm, w.activation, w.act)
        y, n_poisoned = sparse(poisoned, x, g_t, t)
        assert n == n_poisoned == int(active.sum()) < len(active)
        assert torch.equal(y, expected)


def test_thresholds_reduce_the_active_share_and_load_relaxes_them():
    model = tiny_model("mistral", seed=4)
    plan = plan_of(model, gate=0.0, magnitude=2.0, quantiles={"0.7": {"surprisal_bits": -1.0, "entropy_bits": -1.0}})
    shares = {}
    for name, coefficients in {
        "none": Coefficients(0.0, 0.0),
        "relaxing": Coefficients(-0.8, -0.12),  # the taus of -1 bit come from the plan: every token is under load
        "tightening": Coefficients(0.4, 0.0, tau_surprisal_bits=-1.0, tau_entropy_bits=-1.0),
        "never under load": Coefficients(-0.8, -0.12, tau_surprisal_bits=1e9, tau_entropy_bits=1e9),
    }.items():
        engine = Engine(model, None, plan=plan, coefficients=coefficients)
        state = engine.prefill(PROMPT)
        step = next(engine.decode(state, 1))
        shares[name] = step.active_fraction
        assert step.load_surprisal == step.load_entropy == (name != "never under load")
    assert shares["tightening"] < shares["none"] < shares["relaxing"] < 1
    assert shares["never under load"] == shares["none"]


def test_plan_says_which_coefficients_its_loss_covers():
    model = tiny_model("llama")
    quantiles = {"0.7": {"surprisal_bits": 5.0, "entropy_bits": 4.0}}
    without = plan_of(model, 0, 1, quantiles=quantiles)
    assert without.covers(Coefficients(-0.8, -0.12, 6.0, 3.0))
    assert not without.covers(Coefficients(0.0, 0.1, 6.0, 3.0))
    rule = {"lambda": -0.8, "gamma": 0.0, "tau_surprisal_bits": None, "tau_entropy_bits": None, "tau_quantile": 0.7}
    relaxed = plan_of(model, 0, 1, quantiles=quantiles, coefficients=rule)
    assert relaxed.covers(Coefficients(-0.8, 0.0, 5.0, 4.0))
    assert not relaxed.covers(Coefficients(-0.8, 0.0, 9.0, 4.0))  # fewer tokens would be under load
    assert not relaxed.covers(Coefficients(0.0, 0.0))
    with pytest.raises(InputError, match="say what high load is"):
        Engine(model, None, plan=plan_of(model, 0, 1), coefficients="paper")


def test_a_forward_of_the_modules_own_survives():
    model = tiny_model("llama")
    mlps = gated_mlps(model)
    own = mlps[0].forward
    mlps[0].forward = own
    list(Engine(model, None, plan="none", coefficients="none").generate(PROMPT, 2))
    assert mlps[0].__dict__["forward"] is own


def test_model_is_left_as_it_was():
    model = tiny_model("llama")
    before = model(torch.tensor([PROMPT])).logits
    decoding = Engine(model, None, plan=plan_of(model, 1e9, 1e9), coefficients="none").generate(PROMPT, 8)
    assert next(decoding).active_fraction == 0
    # Between steps too, not only after the last one.
    assert torch.equal(model(torch.tensor([PROMPT])).logits, before)
    assert not any("forward" in mlp.__dict__ for mlp in gated_mlps(model))


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_families_without_a_gate_are_refused_by_name(family):
    name = {"opt": "OPT", "gpt2": "GPT-2"}[family]
    with pytest.raises(ModelError, match=f"cannot decode {name} yet"):
        Engine(tiny_model(family), None, plan="none", coefficients="none")


def test_what_the_engine_cannot_read_is_refused():
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="float32"):
        Engine(model, None, plan="none", coefficients="none", dtype="int8")
    with pytest.raises(ModelError, match=r"float32, not in torch\.bfloat16"):
        Engine(tiny_model("llama").bfloat16(), None, plan="none", coefficients="none")
    with pytest.raises(InputError, match="unknown method 'fast'"):
        Engine(model, None, plan="none", coefficients="none", method="fast")
    with pytest.raises(InputError, match="no name to look its plan up by"):
        Engine(model, None, coefficients="none")
    with pytest.raises(InputError, match="has 3 layers"):
        Engine(model, None, plan=plan_of(tiny_model("llama", num_hidden_layers=4), 0, 0), coefficients="none")
    silly = tiny_model("llama")
    silly.config.hidden_act = "relu"
    with pytest.raises(ModelError, match="activation 'relu'"):
        Engine(silly, None, plan="none", coefficients="none")


def test_bad_prompts_are_refused():
    engine = Engine(tiny_model("llama"), None, plan="none", coefficients="none")
    for prompt, message in (([], "empty"), ("  \n", "empty"), ("text", "tokenizer"), ([311], "outside the vocabulary")):
        with pytest.raises(InputError, match=message):
            list(engine.generate(prompt, 4))
    with pytest.raises(ModelError, match="256 positions; shorten the prompt"):
        list(engine.generate(PROMPT, 217))
    assert next(engine.generate(PROMPT, 216)).active_fraction == 1
    for options in ({"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_k": -1}):
        with pytest.raises(InputError, match="sampling needs"):
            Sampling(**options)
    with pytest.raises(InputError, match="seed -1 is outside"):
        list(engine.generate(PROMPT, 4, temperature=1, seed=-1))
