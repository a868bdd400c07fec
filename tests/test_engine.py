"""Engine: everything kept equals transformers' own generate; thresholds equal a masked dense MLP."""

import gc
import itertools
import math
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import CONFIGS, tiny_model, tokens

from clada.engine import Engine
from clada.errors import InputError, ModelError
from clada.methods.coefficients import Coefficients
from clada.methods.plan import GRID, Plan, Setting, Shares
from clada.methods.policy import RollingLoad, make_policy, resolve_shares
from clada.methods.registry import METHODS, shares_of
from clada.models.open import load_model
from clada.sampling import Sampling
from clada.surprisal import surprisal_and_entropy_bits

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


def plan_of(model, shares=None, quantiles=None, coefficients=None, methods=("clada",), layers=3, neurons=80, width=32):
    """Tables whose quantile at share d is 10 d (without norms 1 d), so that shares name thresholds plainly."""
    rng = np.random.default_rng(0)
    line = np.tile((10 * GRID).astype(np.float32), (layers, 1))
    names = ("magnitude", "gate", "activation", "output", "attention_input", "mlp_input")
    tables = dict.fromkeys(names, line) | {f"{name}_plain": line / 10 for name in names}
    tables |= {
        "screen": line[:1],
        "gate_weight": rng.uniform(0.5, 1.5, (layers, neurons)).astype(np.float32),
        "prior": rng.uniform(0, 1, (layers, neurons)).astype(np.float32),
        "basis": np.linalg.qr(rng.standard_normal((width, width)))[0][:10].astype(np.float32),
        "center": np.zeros(width, np.float32),
    }
    rule = {**NO_RULE, **(coefficients or {})}
    settings = tuple(Setting(m, 0.02, shares or Shares(), {}, rule) for m in methods)
    return Plan("tiny", "", settings, quantiles or {}, tables)


@pytest.mark.parametrize("method", ["clada", "dense"])
@pytest.mark.parametrize("family", CONFIGS)
def test_everything_kept_is_transformers_generate(family, method):
    for seed in range(3):
        model = tiny_model(family, seed)
        expected = transformers_greedy(model, PROMPT, 48)
        engine = Engine(model, None, method=method, plan="none", coefficients="none")
        steps = list(engine.generate(PROMPT, 48))
        assert [step.token_id for step in steps] == expected
        assert all(step.active_fraction == 1 for step in steps)


def test_opt_350ms_shape_is_transformers_generate():
    model = tiny_model("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    steps = list(Engine(model, None, plan="none", coefficients="none").generate(PROMPT, 32))
    assert [step.token_id for step in steps] == transformers_greedy(model, PROMPT, 32)


def test_a_batch_gives_each_prompt_its_own_text():
    model = tiny_model("gemma3_text", seed=2)
    prompts = [PROMPT, tokens(7, seed=8), tokens(1, seed=9), tokens(25, seed=10)]
    expected = [transformers_greedy(model, prompt, 24) for prompt in prompts]
    model.generation_config.eos_token_id = expected[1][5]  # one sequence, at least, ends before the others
    engine = Engine(model, None, plan="none", coefficients="none")
    found = [[] for _ in prompts]
    for index, step in engine.generate_batch(prompts, 24):
        found[index].append(step.token_id)
    stop = expected[1][5]
    for ids, whole in zip(found, expected, strict=True):
        assert ids == (whole[: whole.index(stop) + 1] if stop in whole else whole)
    assert len(found[1]) <= 6


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


def test_thresholds_reduce_the_active_share_and_load_relaxes_them():
    model = tiny_model("mistral", seed=4)
    quantiles = {"0.7": {"surprisal_bits": -1.0, "entropy_bits": -1.0}}
    plan = plan_of(model, Shares(neurons=0.2), quantiles)
    shares = {}
    for name, coefficients in {
        "none": Coefficients(0.0, 0.0),
        "relaxing": Coefficients(-0.8, -0.12),  # the taus of -1 bit come from the plan: every token is under load
        "tightening": Coefficients(0.4, 0.0, tau_surprisal_bits=-1.0, tau_entropy_bits=-1.0),
        "never under load": Coefficients(-0.8, -0.12, tau_surprisal_bits=1e9, tau_entropy_bits=1e9),
    }.items():
        step = next(Engine(model, None, plan=plan, coefficients=coefficients).generate(PROMPT, 1))
        shares[name] = step.active_fraction
        assert step.load_surprisal == step.load_entropy == (name != "never under load")
    assert shares["tightening"] < shares["none"] < shares["relaxing"] < 1
    assert shares["never under load"] == shares["none"]


def test_plan_says_which_coefficients_its_loss_covers():
    model = tiny_model("llama")
    without = plan_of(model).settings[0]
    assert without.covers(Coefficients(-0.8, -0.12, 6.0, 3.0))
    assert not without.covers(Coefficients(0.0, 0.1, 6.0, 3.0))
    rule = {"lambda": -0.8, "tau_surprisal_bits": 5.0, "tau_entropy_bits": 4.0}
    relaxed = plan_of(model, coefficients=rule).settings[0]
    assert relaxed.covers(Coefficients(-0.8, 0.0, 5.0, 4.0))
    assert not relaxed.covers(Coefficients(-0.8, 0.0, 9.0, 4.0))  # fewer tokens would be under load
    assert not relaxed.covers(Coefficients(0.0, 0.0))
    with pytest.raises(InputError, match="say what high load is"):
        Engine(model, None, plan=plan_of(model), coefficients="paper")


def test_load_thresholds_can_be_quantiles_of_the_calibration_text():
    model = tiny_model("llama")
    quantiles = {str(q): {"surprisal_bits": 10 * q, "entropy_bits": 5 * q} for q in (0.2, 0.4, 0.6)}
    engine = Engine(
        model, None, plan=plan_of(model, quantiles=quantiles), coefficients=Coefficients(-0.5, -0.1, 9.0, 9.0),
        surprisal_quantile=0.5, entropy_quantile=0.2,
    )  # fmt: skip
    assert engine.policy.coefficients.tau_surprisal_bits == pytest.approx(5.0)
    assert engine.policy.coefficients.tau_entropy_bits == pytest.approx(1.0)
    with pytest.raises(InputError, match=r"quantile 0\.7 is outside those of the plan, 0\.2 to 0\.6"):
        Engine(model, None, plan=plan_of(model, quantiles=quantiles), coefficients="none", entropy_quantile=0.7)
    with pytest.raises(InputError, match="which method dense and plan none have not"):
        Engine(model, None, plan="none", coefficients="none", entropy_quantile=0.7)


def test_rolling_quantiles_judge_load_by_the_last_tokens():
    rule = RollingLoad(4, 0.5, 0.5)
    seen = [(1.0, 9.0), (2.0, 8.0), (3.0, 7.0), (4.0, 6.0)]
    assert [rule(*load) for load in seen] == [(False, False)] * 4  # nothing to compare with yet
    assert rule(2.6, 7.4) == (True, False)  # medians 2.5 and 7.5
    assert rule(2.7, 7.3) == (False, True)  # of the last four: 2.8 and 7.2
    model = tiny_model("llama", seed=1)
    model.generation_config.eos_token_id = None
    engine = Engine(
        model, None, plan=plan_of(model, Shares(neurons=0.2)), coefficients=Coefficients(-0.8, -0.1, 1, 1),
        update_window=5,
    )  # fmt: skip
    steps = list(engine.generate(PROMPT, 30, temperature=2.0, seed=1))
    assert not any(step.load_surprisal or step.load_entropy for step in steps[:5])
    assert 0 < sum(step.load_surprisal for step in steps[5:]) < 25
    assert engine.measured  # whatever counts as load, no threshold is above those measured


def test_rolling_quantiles_are_those_asked_for_one_by_one():
    rule = RollingLoad(5, 0.0, 1.0)
    for i in range(5):
        assert rule(1.0 + i, 1.0 + i) == (False, False)
    assert rule(1.5, 4.5) == (True, False)  # above the lowest, not above the highest
    model = tiny_model("llama", seed=1)
    model.generation_config.eos_token_id = None
    plan = plan_of(model, Shares(neurons=0.2), {str(q): {"surprisal_bits": q, "entropy_bits": q} for q in (0.1, 0.9)})
    loaded = {}
    for quantile in (0.1, 0.9):
        engine = Engine(
            model, None, plan=plan, coefficients=Coefficients(-0.8, -0.1, 1, 1), update_window=5,
            surprisal_quantile=quantile,
        )  # fmt: skip
        steps = list(engine.generate(PROMPT, 60, temperature=2.0, seed=1))
        loaded[quantile] = sum(step.load_surprisal for step in steps)
    assert loaded[0.1] > 2 * loaded[0.9]
    with pytest.raises(InputError, match="an update window of 0 tokens"):
        Engine(model, None, plan=plan, coefficients="none", update_window=0)


def test_a_plan_holds_under_a_rolling_window_where_no_threshold_rises():
    model = tiny_model("llama", seed=1)
    plan = plan_of(model)
    for rule, holds in (
        (Coefficients(0, 0), True),
        (Coefficients(-0.8, -0.1, 1, 1), True),
        (Coefficients(-0.8, 0.1, 1, 1), False),
    ):
        assert Engine(model, None, plan=plan, coefficients=rule, update_window=5).measured == holds
    own = plan_of(model, coefficients={"lambda": -0.8, "gamma": 0.1, "tau_surprisal_bits": 1, "tau_entropy_bits": 1})
    assert Engine(model, None, plan=own, coefficients=Coefficients(-0.8, 0.1, 1, 1)).measured
    assert not Engine(model, None, plan=own, coefficients=Coefficients(-0.8, 0.1, 1, 1), update_window=5).measured


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.needs_plan])
def test_every_method_leaves_out_more_when_asked_to(method):
    model = tiny_model("qwen2", seed=2)
    plan = plan_of(model, methods=METHODS)
    active = []
    for keep in (1.0, 0.9, 0.6):
        engine = Engine(model, None, method=method, plan=plan, coefficients="none", keep=keep)
        steps = list(engine.generate(PROMPT, 6))
        active.append(np.mean([step.active_fraction for step in steps]))
        assert not engine.measured
    assert active[0] == 1
    assert active[0] > active[1] > active[2] > 0
    if method == "griffin":  # keeps exactly what it is told to
        assert active[1:] == pytest.approx([0.9, 0.6], abs=1e-6)


def test_griffin_keeps_the_neurons_its_formula_ranks_highest():
    model = tiny_model("llama", seed=3)
    engine = Engine(model, None, method="griffin", plan=plan_of(model, methods=["griffin"]), keep=0.25)
    state = engine.prefill([PROMPT])
    seen = []
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
        for layer in model.model.layers
    ]
    model(torch.tensor([PROMPT[:-1]]))
    for handle in handles:
        handle.remove()
    for z, needed in zip(seen, engine.policy.needed(state.statistics)[0], strict=True):
        scores = (z / z.norm(dim=1, keepdim=True)).norm(dim=0)
        assert set(np.flatnonzero(needed)) == set(scores.topk(20).indices.tolist())


@pytest.mark.parametrize("method", ["clada", "griffin"])
@pytest.mark.parametrize("family", CONFIGS)
def test_prompts_run_in_pieces(family, method, monkeypatch):
    """Of 7 tokens, with windows of 16 over a prompt of 40: the same state as in one pass."""
    model = tiny_model(family, seed=3)
    plan = plan_of(model, Shares(prompt=0.5), methods=[method])
    engine = Engine(model, None, method=method, plan=plan, coefficients="none")
    whole = engine.prefill([PROMPT])
    monkeypatch.setattr("clada.cpu.prompts.layers.PIECE", 7)
    pieces = engine.prefill([PROMPT])
    # float32 sums in another order
    assert np.abs(pieces.outcome.logits - whole.outcome.logits).max() < 1e-4
    assert pieces.statistics == pytest.approx(whole.statistics, rel=1e-4, abs=1e-6)


def test_prompt_statistics_are_fused_with_the_prior():
    model = tiny_model("llama", seed=3)
    plan = plan_of(model, Shares(prompt=0.5))
    engine = Engine(model, None, plan=plan, coefficients="none")
    state = engine.prefill([PROMPT])
    needed = engine.policy.needed(state.statistics)
    scores = np.sqrt(state.statistics[0] * plan.tables["prior"])
    for row, kept in zip(scores, needed[0], strict=True):
        assert row[kept == 1].min() >= row[kept == 0].max()
        assert kept.sum() == 40
    assert all(step.active_fraction == 0.5 for step in engine.generate(PROMPT, 3))
    # A prompt of one token says nothing about neurons, as its last token is not part of what is collected.
    assert all(step.active_fraction == 1 for step in engine.generate(PROMPT[:1], 3))


def test_share_families_and_tables_name_thresholds():
    model = tiny_model("llama")
    plan = plan_of(model)
    assert plan.threshold("magnitude", 0.25).tolist() == [2.5] * 3
    assert plan.threshold("magnitude", 0.0).tolist() == [0.0] * 3
    engine = Engine(model, None, plan=plan, coefficients="none")
    policy = make_policy("clada", engine.weights, plan, shares_of("clada", 0.5, 311))
    assert policy.magnitude.tolist() == [5.0] * 3
    assert policy.gate.tolist() == [0.0] * 3  # leaves out little time at much loss
    gated = make_policy("clada", engine.weights, plan, Shares(neurons=0.5, gate=0.2))
    assert gated.gate == pytest.approx([2.0] * 3)
    assert policy.output == pytest.approx([2.5] * 3)
    selection = policy.selection([(False, False)])
    assert selection.head_margin[0] == pytest.approx(math.log(311) + math.log(25) - 1.25)
    # Magnitudes up to 10 d: those above the top-p threshold hold three quarters of their sum.
    top_p = make_policy("top-p", engine.weights, plan, Shares(neurons=0.25))
    assert top_p.magnitude == pytest.approx([5.0] * 3, rel=1e-3)  # a table in steps of 0.01
    at_equal_sparsity, setting = resolve_shares("tt", plan_of(model, Shares(neurons=0.4, margin=9.0)), 311, "float32")
    assert (at_equal_sparsity, setting) == (Shares(neurons=0.4), None)
    whole = plan_of(model, Shares(neurons=0.4, output=0.2, margin=9.0))
    ablation, _ = resolve_shares("clada-mlp", whole, 311, "float32")
    assert ablation == shares_of("clada-mlp", 0.4)
    # A share of the neurons, not of the magnitude they sum up to: half of them hold a quarter of it.
    half, _ = resolve_shares("top-p", plan, 311, "float32", keep=0.5)
    assert half.neurons == pytest.approx(0.25, rel=1e-3)
    equal, _ = resolve_shares("top-p", plan_of(model, Shares(neurons=0.5)), 311, "float32")
    assert equal == half
    with pytest.raises(
        InputError, match=r"add it with 'clada calibrate --model tiny --text FILE --methods clada,tt --max-loss 0.05'"
    ):
        plan.setting("tt", 0.05)
    with pytest.raises(InputError, match=r"only for losses of 0.02"):
        plan.setting("clada", 0.05)


def test_a_precision_has_settings_of_its_own():
    plan = plan_of(tiny_model("llama"), Shares(neurons=0.4))
    own = Setting("clada", 0.02, shares_of("clada", 0.2, 311), {}, NO_RULE, "int8")
    assert own.shares.margin == pytest.approx(math.log(311 * 25) - 0.5)
    plan = replace(plan, settings=(*plan.settings, own))
    assert plan.setting("clada", dtype="int8") is own
    assert plan.setting("clada", 0.02, "float32").shares == Shares(neurons=0.4)  # not measured: another one's
    assert resolve_shares("tt", plan, 311, "int8") == (Shares(neurons=0.4), None)  # never dense unsaid
    assert resolve_shares("clada-mlp", plan, 311, "int8") == (shares_of("clada-mlp", 0.4), None)
    assert resolve_shares("clada-no-load", plan, 311, "int8") == (own.shares, None)
    careful = replace(plan, settings=tuple(replace(s, max_loss=0.01) for s in plan.settings))
    for dtype in ("float32", "bfloat16", "int8"):  # 2 % is meant where none is named
        assert careful.setting("clada", 0.01, dtype).max_loss == 0.01
        with pytest.raises(
            InputError, match=r"only for losses of 0\.01; name one of them .* add it with .* --max-loss 0\.02"
        ):
            careful.setting("clada", dtype=dtype)
    engine = Engine(tiny_model("llama"), None, plan=plan, coefficients="none", dtype="int8")
    assert engine.setting is own
    selection = engine.policy.selection([(False, False)])
    assert not selection.gate_threshold.any()  # no gate test
    assert selection.threshold.all()
    assert 0 < next(engine.generate(PROMPT, 1)).active_fraction < 1


def test_each_state_of_load_has_its_own_selection_however_often_asked_for():
    model = tiny_model("llama")
    engine = Engine(model, None, plan=plan_of(model, Shares(neurons=0.5)), coefficients="none")
    rule = Coefficients(-0.25, -0.5, tau_surprisal_bits=4.0, tau_entropy_bits=3.0)
    policy = make_policy("clada", engine.weights, engine.plan, Shares(neurons=0.5, margin=9.0), rule)
    states = [(False, False), (True, False), (False, True), (True, True)]
    for _ in range(2):  # the second time from what is kept
        for loads in itertools.product(states, repeat=3):  # more than are kept at once
            selection = policy.selection(loads)
            factors = np.array([rule.factor(*load) for load in loads], np.float32)
            assert np.array_equal(selection.threshold, factors[:, None] * policy.magnitude)
            assert np.array_equal(selection.head_margin, np.float32(9) / factors)
    needed = np.zeros((1, *policy.weight.shape), np.uint8)
    assert policy.selection([(True, True)], needed).needed is needed
    assert not policy.selection([(True, True)]).needed.size


def test_caches_are_freed_with_their_state():
    engine = Engine(tiny_model("llama"), None, plan="none")
    state = engine.prefill([PROMPT], 2)
    list(engine.decode(state, 2))
    keys = weakref.ref(state.memory.scratch.keys)
    del state
    for _ in range(600):  # the other threads let go of the last step when they fall asleep, on a loaded machine later
        gc.collect()
        if keys() is None:
            break
        time.sleep(0.1)
    assert keys() is None


def test_plans_survive_being_saved_and_say_when_they_are_not_whole(tmp_path):
    plan = plan_of(tiny_model("llama"), Shares(neurons=0.3, margin=7.0))
    path = tmp_path / "plan.json"
    plan.save(path)
    again = Plan.load(path)
    assert again.settings == plan.settings
    assert all(np.array_equal(again.tables[name], table) for name, table in plan.tables.items())
    tables = path.with_suffix(".safetensors")
    content = tables.read_bytes()
    tables.write_bytes(content[:-1] + b"?")
    with pytest.raises(InputError, match="does not belong to"):
        Plan.load(path)
    tables.unlink()
    with pytest.raises(InputError, match=r"needs plan\.safetensors beside it"):
        Plan.load(path)


def test_model_is_left_as_it_was():
    model = tiny_model("llama")
    before = model(torch.tensor([PROMPT])).logits
    decoding = Engine(model, None, plan=plan_of(model, Shares(neurons=1.0)), coefficients="none").generate(PROMPT, 8)
    assert next(decoding).active_fraction < 0.2
    # Between steps too, not only after the last one.
    assert torch.equal(model(torch.tensor([PROMPT])).logits, before)
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear


def test_the_engine_keeps_no_hold_on_the_model():
    model = tiny_model("llama")
    weight = weakref.ref(model.model.layers[0].mlp.down_proj.weight)
    engine = Engine(model, None, plan="none", coefficients="none", dtype="bfloat16")
    del model
    gc.collect()
    assert weight() is None
    assert len(list(engine.generate(PROMPT, 3))) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_another_device_makes_the_same_choices(family, dtype):
    plan = plan_of(tiny_model(family), Shares(neurons=0.4, output=0.2))
    for method in ("clada", "griffin", "teal"):
        engines = [
            Engine(tiny_model(family).to(device), None, method=method, plan=plan, coefficients="none", dtype=dtype,
                   keep=0.6)
            for device in ("cpu", "cuda")
        ]  # fmt: skip
        expected, found = ([step.active_fraction for step in engine.generate(PROMPT, 6)] for engine in engines)
        assert found == pytest.approx(expected, abs=0.02)  # a magnitude at its threshold may turn over


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_lower_precision_stays_near(dtype):
    model, tokenizer = load_model("smollm2-135m")
    ids = tokenizer("The minister said on Monday that the government would")["input_ids"]
    engine = Engine(model, tokenizer, method="dense", dtype=dtype)
    logits = torch.from_numpy(engine.prefill([ids]).outcome.logits[0].copy())
    exact = model(torch.tensor([ids])).logits[0, -1]
    divergence = torch.nn.functional.kl_div(logits.log_softmax(0), exact.softmax(0), reduction="sum")
    # 8 bits: relative steps of 0.4 to 0.8 %, averaged over hundreds of terms
    assert float(divergence) < 0.02


def test_what_the_engine_cannot_read_is_refused():
    model = tiny_model("llama")
    with pytest.raises(InputError, match="unknown dtype 'float16'; use float32, bfloat16, int8"):
        Engine(model, None, plan="none", coefficients="none", dtype="float16")
    with pytest.raises(ModelError, match=r"float32, not in torch\.bfloat16"):
        Engine(tiny_model("llama").bfloat16(), None, plan="none", coefficients="none")
    with pytest.raises(InputError, match="unknown method 'fast'"):
        Engine(model, None, plan="none", coefficients="none", method="fast")
    with pytest.raises(InputError, match="no name to look its plan up by"):
        Engine(model, None, coefficients="none")
    with pytest.raises(InputError, match="has 3 layers"):
        Engine(model, None, plan=plan_of(model, layers=4), coefficients="none")
    with pytest.raises(InputError, match=r"keep 0 is outside \(0, 1\]"):
        Engine(model, None, plan=plan_of(model), coefficients="none", keep=0)
    with pytest.raises(InputError, match="leave --plan none out"):
        Engine(model, None, plan="none", coefficients="none", keep=0.5)
    silly = tiny_model("llama")
    silly.config.hidden_act = "mish"
    with pytest.raises(ModelError, match="activation 'mish'"):
        Engine(silly, None, plan="none", coefficients="none")
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    scaled = tiny_model("llama", rope_parameters=dynamic)
    with pytest.raises(ModelError, match="rotary embeddings of type dynamic"):
        Engine(scaled, None, plan="none", coefficients="none")
    wrapped = tiny_model("llama")
    wrapped.model.layers[1].mlp.up_proj = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(ModelError, match=r"Bilinear, whose weights.*load it unquantised"):
        Engine(wrapped, None, plan="none", coefficients="none")

    class Linear(torch.nn.Linear):
        """As PEFT's LoRA layers, of the same name, which add to what their weight gives."""

    adapted = tiny_model("llama")
    adapted.model.layers[1].mlp.up_proj = Linear(32, 80)
    with pytest.raises(ModelError, match="with adapters merged into it"):
        Engine(adapted, None, plan="none", coefficients="none")


def test_bad_prompts_are_refused():
    engine = Engine(tiny_model("llama"), None, plan="none", coefficients="none")
    for prompt, message in (
        ([], "has no tokens"),
        ("", "is empty"),
        ("  \n", "is blank"),
        ("text", "tokenizer"),
        ([311], "outside the vocabulary"),
        ("caf\udce9", "half a character"),
    ):
        with pytest.raises(InputError, match=message):
            list(engine.generate(prompt, 4))
    with pytest.raises(ModelError, match="256 positions; shorten the prompt"):
        list(engine.generate(PROMPT, 217))
    with pytest.raises(InputError, match="there are no prompts"):
        list(engine.generate_batch([]))
    assert next(engine.generate(PROMPT, 216)).active_fraction == 1
    for options in (
        {"temperature": -1},
        {"temperature": 1e-38},
        {"temperature": math.nan},
        {"top_p": 0},
        {"top_k": -1},
    ):
        with pytest.raises(InputError, match="sampling needs"):
            Sampling(**options)
    with pytest.raises(InputError, match="seed -1 is outside"):
        list(engine.generate(PROMPT, 4, temperature=1, seed=-1))
