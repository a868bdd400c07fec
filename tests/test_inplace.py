"""A model made sparse in place makes the engine's choices, and is what it was afterwards."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engine import plan_of
from tiny_models import CONFIGS, GATED, tiny_model, tokens
from transformers import pipeline

import clada
from clada.cpu.decoder import Decoder
from clada.cpu.pack import pack
from clada.engine import Engine
from clada.errors import InputError, ModelError
from clada.methods.coefficients import NONE, Coefficients
from clada.methods.plan import Shares
from clada.methods.policy import basis_of, make_policy
from clada.models.open import load_model

PROMPT = tokens(30, seed=3)
RULE = Coefficients(-0.5, 0.3, tau_surprisal_bits=6.0, tau_entropy_bits=5.0)
SHARES = {
    "clada": Shares(neurons=0.1, gate=0.05, output=0.05, attention=0.7, prompt=0.2, screen=0.3, margin=4.0),
    "tt": Shares(neurons=0.1),
    "cats": Shares(gate=0.03),
    "griffin": Shares(prompt=0.4),
    "teal": Shares(neurons=0.3, output=0.3, inputs=0.3),
    "wina": Shares(neurons=0.1, output=0.05, inputs=0.05),
}


def generated(model, ids, n, **options):
    """Greedy ids [B, n] and the raw logits [n, B, V] they were chosen by."""
    out = model.generate(
        torch.tensor(ids), max_new_tokens=n, do_sample=False, output_logits=True, return_dict_in_generate=True,
        eos_token_id=None, pad_token_id=0, **options,
    )  # fmt: skip
    return out.sequences[:, -n:].tolist(), torch.stack(out.logits)


@pytest.fixture(autouse=True)
def short_contexts_count(monkeypatch):
    monkeypatch.setattr("clada.methods.policy.LEAST_POSITIONS", 8)  # so that values are left out in tests


@pytest.mark.parametrize("method", SHARES)
@pytest.mark.parametrize("family", CONFIGS)
def test_generate_in_place_is_the_engine(family, method):
    model = tiny_model(family, seed=2)
    model.generation_config.eos_token_id = None
    plan = plan_of(model, SHARES[method], methods=(method,))
    engine = Engine(model, None, method=method, plan=plan, coefficients=RULE)
    steps = list(engine.generate(PROMPT, 16))
    with clada.sparse(model, plan, RULE, method=method) as run:
        ids, _ = generated(model, [PROMPT], 16)
    assert ids[0] == [step.token_id for step in steps]
    # The engine runs the last token it yields, generate does not. A magnitude within rounding of its threshold may
    # fall on either side.
    neurons = sum(round(step.active_fraction * 240) for step in steps[:-1])
    assert run.tokens == 15
    assert abs(run.neurons - neurons) <= 2
    # CATS has nothing to test where there is no gate.
    assert run.active_fraction == 1 if (family not in GATED and method == "cats") else run.active_fraction < 0.99
    assert run.active_fraction > 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", SHARES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_another_device_makes_the_same_choices(family, method):
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_model(family, seed=2).to(device)
        plan = plan_of(model, SHARES[method], methods=(method,))
        ids = torch.tensor([PROMPT, tokens(30, seed=5)], device=device)
        with torch.no_grad(), clada.sparse(model, plan, RULE, method=method) as run:
            past = model(ids, use_cache=True).past_key_values
            rows = [model(ids[:, t : t + n], past_key_values=past).logits.cpu() for t, n in ((3, 1), (4, 1), (5, 6))]
        found.append((run.tokens, run.neurons, torch.cat(rows, 1)))
    (counted, neurons, logits), (others, own, rows) = found
    assert counted == others
    # A magnitude within rounding of its threshold may fall on either side.
    assert own == pytest.approx(neurons, rel=0.01)
    assert torch.quantile((rows - logits).abs(), 0.9) < 1e-4  # float32 sums in another order


def test_logits_in_place_are_the_engines_for_a_batch_of_unequal_prompts():
    model = tiny_model("gemma3_text", seed=4)
    shares = SHARES["clada"]
    plan = plan_of(model, shares)
    prompts = [PROMPT, tokens(11, seed=5), tokens(19, seed=6)]
    weights = pack(model, "float32", basis_of(plan, shares))
    policy = make_policy("clada", weights, plan, shares, RULE)
    decoder = Decoder(weights, 1)
    state = decoder.prefill(prompts, 12, policy.dense(3), "magnitude")
    needed = policy.needed(state.statistics)
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(p)) + p for p in prompts]
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with clada.sparse(model, plan, RULE):
        ids, logits = generated(model, padded, 10, attention_mask=mask)
    under_load = 0
    for at in range(10):
        outcome = state.outcome
        scale = np.abs(outcome.logits).max()
        # float32 sums in another order, padded and not
        assert np.abs(logits[at].numpy() - outcome.logits).max() <= 1e-4 * scale
        chosen = [row[at] for row in ids]
        surprisal = (outcome.log_total - outcome.logits[range(3), chosen]) / np.log(2)
        loads = [RULE.loads(s, h) for s, h in zip(surprisal, outcome.entropy / np.log(2), strict=True)]
        under_load += sum(map(any, loads))
        decoder.step(state, chosen, policy.selection(loads, needed))
    assert 0 < under_load < 30


@pytest.mark.parametrize("rule", [NONE, RULE], ids=["no load", "load"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
def test_a_whole_text_sparse_is_the_engine_token_by_token(family, rule):
    model = tiny_model(family, seed=7)
    shares = Shares(neurons=0.1, gate=0.05, output=0.05, screen=0.3, margin=4.0)
    plan = plan_of(model, shares)
    with clada.sparse(model, plan, rule, prompt="sparse") as run:
        whole = model(torch.tensor([PROMPT, PROMPT[::-1]])).logits[0]
        assert run.tokens == 60
        assert 0 < run.active_fraction < 1  # passes that only settle the loads do not count
        last = model(torch.tensor([PROMPT]), logits_to_keep=2).logits[0]
    torch.testing.assert_close(last, whole[-2:], rtol=1e-4, atol=1e-4)  # other shapes, other orders of float32 sums
    assert_decoded_alike(model, plan, shares, rule, [PROMPT[0]], whole[1:], dense_start=False)


@pytest.mark.parametrize("method", ["clada", "griffin"])
def test_several_tokens_after_a_prompt_are_sparse(method):
    model = tiny_model("mistral", seed=6)
    plan = plan_of(model, SHARES[method], methods=(method,))
    ids = torch.tensor([PROMPT])
    # Attention is whole where several tokens run at once.
    shares = replace(SHARES[method], attention=0.0)
    with clada.sparse(model, replace(plan, settings=plan_of(model, shares, methods=(method,)).settings), RULE,
                      method=method) as run:  # fmt: skip
        out = model(ids[:, :12], use_cache=True)
        following = model(ids[:, 12:], past_key_values=out.past_key_values, use_cache=True).logits[0]
    assert run.tokens == 18
    assert_decoded_alike(model, plan, shares, RULE, PROMPT[:12], following, method=method)


def test_one_prompt_is_gone_on_with_by_several():
    model = tiny_model("qwen2", seed=6)
    plan = plan_of(model, SHARES["griffin"], methods=("griffin",))
    endings = torch.tensor([tokens(5, seed=seed) for seed in range(3)])
    with clada.sparse(model, plan, "none", method="griffin") as run:
        out = model(torch.tensor([PROMPT]), use_cache=True)
        alone = [
            model(ending[None], past_key_values=copy.deepcopy(out.past_key_values)).logits[0] for ending in endings
        ]
        cache = copy.deepcopy(out.past_key_values)
        cache.batch_repeat_interleave(3)
        together = model(endings, past_key_values=cache).logits
        # Once the prompt has run dense, its neurons serve a text that is sparse from its first token on.
        run.prompt = "sparse"
        whole = model(torch.cat([torch.tensor([PROMPT]), endings[:1]], 1)).logits[0, -5:]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)  # float32 sums in another order
    assert not torch.allclose(whole, alone[0], rtol=1e-2, atol=1e-2)


def assert_decoded_alike(model, plan, shares, rule, prompt, logits, *, dense_start=True, method="clada"):
    """Logits [n, V] in place are those of the engine, which runs the rest of PROMPT token by token."""
    weights = pack(model, "float32", basis_of(plan, shares))
    policy = make_policy(method, weights, plan, shares, rule)
    decoder = Decoder(weights, 1)
    start = policy.dense(1) if dense_start else policy.selection([(False, False)])
    kind = {"griffin": "flocking"}.get(method, "magnitude") if shares.prompt else None
    state = decoder.prefill([prompt], 30, start, kind)
    needed = policy.needed(state.statistics)
    loaded = 0
    for token, found in zip(PROMPT[len(prompt) :], logits, strict=True):
        outcome = state.outcome
        surprisal = (outcome.log_total[0] - outcome.logits[0, token]) / np.log(2)
        loads = policy.coefficients.loads(float(surprisal), float(outcome.entropy[0] / np.log(2)))
        loaded += any(loads)
        decoder.step(state, [token], policy.selection([loads], needed))
        scale = np.abs(state.outcome.logits).max()
        assert np.abs(found.numpy() - state.outcome.logits[0]).max() <= 1e-4 * scale  # float32 sums in another order
    assert (loaded > 0) == (policy.coefficients.lambda_ != 0)


def snapshot(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return copy.deepcopy(model.state_dict()), hooks, model.config._attn_implementation, set(vars(model))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_bit_identical_after_exit(fails):
    model = tiny_model("mistral", seed=1)
    ids = torch.tensor([PROMPT])
    state, *before = snapshot(model)
    expected = model(ids).logits
    plan = plan_of(model, SHARES["clada"])
    try:
        with clada.sparse(model, plan, RULE):
            model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
            if fails:
                model(torch.tensor([[10**6]]))  # no such token
    except IndexError:
        assert fails
    after, *rest = snapshot(model)
    assert rest == before
    assert all(torch.equal(after[name], value) for name, value in state.items())
    assert torch.equal(model(ids).logits, expected)


def test_a_plan_that_leaves_nothing_out_changes_no_bit():
    model = tiny_model("llama", seed=5)
    expected, logits = generated(model, [PROMPT], 12)
    for options in ({"plan": "none"}, {"plan": plan_of(model), "method": "dense"}):
        with clada.sparse(model, coefficients="none", **options) as run:
            ids, inside = generated(model, [PROMPT], 12)
        assert ids == expected
        assert torch.equal(inside, logits)
        assert run.active_fraction == 1


def test_mistakes_are_refused_before_anything_is_hooked():
    model = tiny_model("llama")
    _, *before = snapshot(model)
    plan = plan_of(model, SHARES["griffin"], methods=("griffin",))
    other = plan_of(model, layers=4)
    for options, message in (
        ({"plan": plan, "prompt": "both"}, "prompt 'both' is neither of dense, sparse"),
        ({"plan": plan, "method": "none"}, "unknown method 'none'"),
        ({"plan": other}, "make one with 'clada calibrate'"),
        ({}, "this model has no name to look its plan up by"),
    ):
        with pytest.raises(InputError, match=message), clada.sparse(model, coefficients="none", **options):
            pass
    without_prompt = pytest.raises(InputError, match="griffin chooses neurons by a prompt that runs dense")
    with without_prompt, clada.sparse(model, plan, "none", method="griffin", prompt="sparse"):
        model(torch.tensor([PROMPT]))
    model.config.model_type = "mamba"
    with pytest.raises(ModelError, match="model family 'mamba' is not supported"), clada.sparse(model, plan):
        pass
    _, *after = snapshot(model)
    assert after == before


def test_a_pipeline_on_a_real_model_is_the_engine():
    model, tokenizer = load_model("smollm2-135m")
    prompt = "The minister told reporters on Monday that the new railway line"
    engine = Engine(model, tokenizer, coefficients="none")
    steps = list(engine.generate(prompt, 24))
    with clada.sparse(model, coefficients="none") as run:
        text = pipeline("text-generation", model=model, tokenizer=tokenizer)(
            prompt, max_new_tokens=24, do_sample=False, return_full_text=False
        )[0]["generated_text"]
    assert text == tokenizer.decode([step.token_id for step in steps])
    assert run.active_fraction == pytest.approx(np.mean([step.active_fraction for step in steps[:-1]]), abs=2e-3)
