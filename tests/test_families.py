"""What is special of single families: fused weights, norms of the whole width, parallel residuals, partial rotary.

What all families share is tested where tests are parametrised by `tiny_models.CONFIGS`.
"""

import numpy as np
import pytest
import torch
from test_engine import PROMPT, transformers_greedy
from tiny_models import CONFIGS, GATED, tiny_model, tokens
from transformers import AutoConfig

import clada
from clada.cpu.pack import pack
from clada.engine import Engine
from clada.errors import ModelError
from clada.methods.coefficients import NONE
from clada.methods.observed import norms_of
from clada.methods.plan import Shares
from clada.methods.policy import make_policy
from clada.models.anatomy import Projection, anatomy
from clada.models.architectures import FAMILIES, check_length, decoder_layers, positions_of, rope_parameters
from clada.models.hooks import Hooks
from clada.reference.decoder import TorchDecoder

PROMPTS = [PROMPT, tokens(57, seed=11), tokens(23, seed=12)]  # all longer than the sliding window of 16

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 2.0],
}

VARIANTS = {
    "gpt_neox": {},
    "gpt_neox, one after the other": {"use_parallel_residual": False},
    "gpt_neox, every dimension rotated": {"rotary_pct": 1.0},
    "gpt_neox, without biases": {"attention_bias": False},
    "olmo2": {},
    "olmo2, as many heads of keys": {"num_key_value_heads": 4},
    "phi3": {},
    "phi3, without a window": {"sliding_window": None},
    "phi3, every dimension rotated": {"partial_rotary_factor": 1.0},
    "smollm3": {},
    "smollm3, every fourth layer": {"no_rope_layers": None, "num_hidden_layers": 5},
    "smollm3, without windows": {"use_sliding_window": False},
    "smollm3, tied": {"tie_word_embeddings": True},
}


def variant(name, seed=0):
    return tiny_model(name.split(",")[0], seed, **VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_ids_are_transformers(name):
    model = variant(name)
    model.generation_config.eos_token_id = None
    engine = Engine(model, None, plan="none", coefficients="none")
    for prompt in PROMPTS:
        expected = transformers_greedy(model, prompt, 40)
        assert [step.token_id for step in engine.generate(prompt, 40)] == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_plain_torch_agrees_on_the_packed_model(name):
    model = variant(name, seed=1)
    weights = pack(model, "float32")
    decoder = TorchDecoder(weights)
    dense = make_policy("dense", weights, None, Shares(), NONE).dense(1)
    state = decoder.prefill([PROMPT], 4, dense)
    ids = list(PROMPT)
    for _ in range(3):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0, -1]
        # A whole pass against cached steps: float32 sums in another order; logits are of order 10.
        torch.testing.assert_close(torch.from_numpy(state.outcome.logits[0]), expected, atol=1e-3, rtol=1e-4)
        ids.append(int(state.outcome.best[0]))
        decoder.step(state, ids[-1:], dense)


@pytest.mark.parametrize("name", VARIANTS)
def test_in_place_without_a_plan_is_dense(name):
    model = variant(name, seed=2)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        before = model(ids).logits
        with clada.sparse(model, "none", "none", prompt="sparse") as run:
            inside = model(ids).logits
    assert torch.equal(before, inside)
    assert run.active_fraction == 1
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("family", CONFIGS)
def test_projections_are_the_linear_maps_of_a_layer(family):
    """By what the modules compute: shares of a fused module's output are products with the separate matrices."""
    model = tiny_model(family, seed=3)
    layer = anatomy(model).layers[1]
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for part in (*layer.qkv, layer.output, layer.gate, layer.up):
        if part is None:
            continue
        product = torch.nn.functional.linear(x, part.matrix, part.bias)
        # The same float32 sums, of other blocks of rows.
        torch.testing.assert_close(part.of(part.module(x)), product, atol=1e-5, rtol=1e-5)
    assert sum(len(part.matrix) for part in layer.qkv) == (64 if FAMILIES[family].grouped else 96)
    assert (layer.gate is not None) == (family in GATED)


def test_the_parts_of_a_neox_layer_are_queries_keys_and_values():
    model = tiny_model("gpt_neox")
    attention, width = decoder_layers(model)[0].attention, 8  # of a head
    fused = attention.query_key_value.weight
    for which, part in enumerate(anatomy(model).layers[0].qkv):
        rows = [fused[(3 * head + which) * width :][:width] for head in range(4)]
        assert torch.equal(part.matrix, torch.cat(rows))


def test_a_share_of_a_fused_output_can_be_replaced():
    outputs = torch.arange(24.0).view(2, 12)
    part = Projection(None, part=1, parts=3, groups=2)
    assert part.of(outputs)[0].tolist() == [2, 3, 8, 9]
    changed = part.put(outputs, torch.zeros(2, 4))
    assert changed[0].tolist() == [0, 1, 0, 0, 4, 5, 6, 7, 0, 0, 10, 11]
    assert outputs[0, 2] == 2


def test_norms_of_fused_weights_are_those_of_the_columns():
    model = tiny_model("phi3")
    found = norms_of(anatomy(model))
    layer = decoder_layers(model)[2]
    for place, weight in enumerate((layer.self_attn.qkv_proj.weight, layer.mlp.gate_up_proj.weight)):
        torch.testing.assert_close(torch.from_numpy(found.input_norm[2, place]), weight.norm(dim=0))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "phi3",
            {"rope_parameters": LONG, "original_max_position_embeddings": 128},
            "rotary embeddings of type longrope are not supported",
        ),
        ("gpt_neox", {"hidden_act": "gelu_fast"}, "activation 'gelu_fast' is not supported"),
        (
            "olmo2",
            {"sliding_window": 16},
            "OLMo 2 with a sliding_window, which transformers' attention ignores and its",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "Gemma 2 with use_bidirectional_attention"),
    ],
)
def test_variants_that_the_engine_does_not_compute_are_refused(family, changes, message):
    model = tiny_model(family, **changes)
    for run in (lambda: Engine(model, None, plan="none"), lambda: clada.sparse(model, "none").__enter__()):
        with pytest.raises(ModelError, match=message) as refusal:
            run()
        assert "\n" not in str(refusal.value)


def test_hooks_undo_everything_where_something_fails():
    model = tiny_model("phi3")
    layer = anatomy(model).layers[0]
    ids, before = torch.tensor([PROMPT]), model.config._attn_implementation
    expected = model(ids).logits
    module = layer.down.module
    module.forward = forward = module.forward  # as accelerate leaves one

    def fail():
        with Hooks() as hooks:
            hooks.change(model.config, "_attn_implementation", "eager")
            hooks.replace(module, lambda h: torch.zeros(*h.shape[:-1], 32))
            hooks.replace(layer.output.module, lambda h: torch.zeros(*h.shape[:-1], 32))
            hooks.after(layer.up, lambda _m, _args, output: 2 * output)
            hooks.before(layer.gate, lambda _m, args: (args[0] + 1,))
            assert not torch.equal(model(ids).logits, expected)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert model.config._attn_implementation == before
    assert module.__dict__["forward"] is forward
    assert "forward" not in layer.output.module.__dict__
    assert torch.equal(model(ids).logits, expected)


def test_a_hook_after_gate_or_up_sees_its_share_of_a_fused_module():
    model = tiny_model("phi3")
    layer, mlp = anatomy(model).layers[0], decoder_layers(model)[0].mlp
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
    seen = {}
    with Hooks() as hooks:
        hooks.after(layer.gate, lambda _m, _args, output: seen.update(gate=output.clone()))
        hooks.after(layer.up, lambda _m, _args, output: seen.update(up=output.clone()) or output * 0)
        assert torch.equal(mlp(x), torch.zeros(2, 32))
    assert torch.equal(seen["gate"], gate)
    assert torch.equal(seen["up"], up)


def test_rope_parameters_are_by_layer_type_where_there_are_several():
    assert list(rope_parameters(tiny_model("smollm3").config)) == [""]
    assert set(rope_parameters(tiny_model("gemma3_text").config)) == {"full_attention", "sliding_attention"}
    assert rope_parameters(tiny_model("opt").config) == {}


# Values of a configuration that transformers does not use


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("gemma3_text", {"attn_logit_softcapping": 2.0}),
        ("llama", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0, "use_bidirectional_attention": True}),
        ("gemma", {"hidden_activation": "relu", "final_logit_softcapping": 1.0}),
        ("qwen3", {"hidden_activation": "gelu", "layer_norm_epsilon": 1.0}),
        ("gpt2", {"head_dim": 4, "num_key_value_heads": 2, "rms_norm_eps": 1.0, "hidden_act": "relu"}),
        ("opt", {"layer_norm_epsilon": 1.0, "hidden_act": "silu", "head_dim": 4}),
        ("olmo2", {"query_pre_attn_scalar": 3, "hidden_activation": "relu"}),
    ],
)
def test_values_that_transformers_ignores_are_not_used(family, extra):
    model, plain = tiny_model(family, seed=5), tiny_model(family, seed=5)
    for name, value in extra.items():
        setattr(model.config, name, value)
    again = type(model)(model.config).eval()  # as transformers makes it from this configuration
    again.load_state_dict(model.state_dict())
    again.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, plain(ids).logits)
    steps = list(Engine(again, None, plan="none", coefficients="none").generate(PROMPT, 32))
    assert [step.token_id for step in steps] == transformers_greedy(again, PROMPT, 32)
    with torch.no_grad():
        logits = again(torch.tensor([PROMPT + [step.token_id for step in steps]])).logits[0, len(PROMPT) - 1 : -1]
    surprisal = -logits.double().log_softmax(-1).gather(1, torch.tensor([[s.token_id] for s in steps]))[:, 0]
    # A whole pass against cached steps: float32 sums in another order, in bits of order 1.
    expected = (surprisal / np.log(2)).tolist()
    assert [step.surprisal_bits for step in steps] == pytest.approx(expected, abs=1e-3)


# How many positions there are


def test_yarn_runs_to_its_factor_times_the_original_length():
    """Qwen's recipe: `max_position_embeddings` stays at the original length."""
    model = tiny_model("qwen2", max_position_embeddings=64, rope_parameters=YARN)
    model.generation_config.eos_token_id = None
    prompt = tokens(100, seed=6)
    engine = Engine(model, None, plan="none", coefficients="none")
    assert [step.token_id for step in engine.generate(prompt, 40)] == transformers_greedy(model, prompt, 40)
    assert len(list(engine.generate(tokens(250), 6))) == 6
    with pytest.raises(ModelError, match="257 tokens do not fit qwen2: it was trained for 256 positions; shorten"):
        next(engine.generate(tokens(251), 6))


@pytest.mark.parametrize(
    ("family", "changes", "positions"),
    [
        ("llama", {"max_position_embeddings": 256}, 256),
        ("qwen3", {"max_position_embeddings": 64, "rope_parameters": YARN}, 256),
        ("qwen3", {"max_position_embeddings": 512, "rope_parameters": YARN}, 512),
        ("gemma3_text", {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}}, 256),
        ("opt", {}, 256),
        ("phi3", {"max_position_embeddings": 512, "rope_parameters": LONG}, 128),
    ],
)
def test_positions_are_those_that_the_frequencies_are_made_for(family, changes, positions):
    changes = {"original_max_position_embeddings": 128, **changes} if family == "phi3" else changes
    config = AutoConfig.for_model(family, **{**CONFIGS[family], **changes})
    assert positions_of(config) == positions
    check_length(config, positions, "no remedy")
    with pytest.raises(ModelError, match=f"{positions:,} positions; no remedy"):
        check_length(config, positions + 1, "no remedy")


def test_positions_of_families_that_are_not_supported_are_as_they_say():
    assert positions_of(AutoConfig.for_model("bloom")) is None
    assert positions_of(AutoConfig.for_model("falcon", max_position_embeddings=77)) == 77
