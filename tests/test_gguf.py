"""What a GGUF file states is what the converted model computes, or it is refused by name."""

import importlib.util
import json
import random

import gguf
import pytest
import torch
from gguf_files import llama_cpp_ids, write_llama
from test_peers import GEMMA_3, LLAMA_3
from tiny_models import tiny_model, tokens
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from clada.engine import Engine
from clada.errors import ModelError
from clada.measure.gguf_export import write_gguf
from clada.models.assets import ASSETS, fetch
from clada.models.gguf import CONVERSION, converted_folder, read_weights
from clada.models.gguf_statements import llama3_rope, read_statements
from clada.models.open import load_model, load_tokenizer, model_revision

needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")

PIECES = [
    "\n", "\n\n", " ", "  ", "   ", "\t", "1", "23", "2018", "½", "٣", "Ⅷ", "a", "The", "naïve", "price", "$", "€",
    "'s", "'LL", "!", "...", "价格", "🙂", "_", "<", "\r\n", "-", "(", "x", "，", "don't", "\u00a0", "12345", "aB",
    "1,234.56",
]  # fmt: skip


def strings(n):
    drawn = random.Random(0)
    fixed = ["List:\n\n1. First", "In 2018", "x  1", "A\n\n½ cup", "  lead", "trail  "]
    return fixed + ["".join(drawn.choices(PIECES, k=drawn.randint(2, 14))) for _ in range(n)]


# Text


def test_the_embedded_model_splits_digits_as_its_file_says():
    tokenizer = load_tokenizer("smollm2-135m")
    assert tokenizer("List:\n\n1. First")["input_ids"] == [6106, 42, 1116, 33, 30, 3508]
    for text in strings(100):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@needs_llama_cpp
def test_the_embedded_models_ids_are_llama_cpps():
    tokenizer, texts = load_tokenizer("smollm2-135m"), strings(200)
    assert [tokenizer(text)["input_ids"] for text in texts] == llama_cpp_ids(fetch("smollm2-135m"), texts)


@needs_llama_cpp
@pytest.mark.parametrize("name", [None, "gpt-2", "llama-bpe", "qwen2"])
def test_ids_are_llama_cpps_for_every_kind_of_pre_tokenizer(name, tmp_path, monkeypatch):
    fields = gguf.GGUFReader(fetch("smollm2-135m")).fields
    vocabulary, merges, types = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "token_type")
    )
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    path = write_llama(
        tmp_path / "model.gguf",
        statements={} if name is None else {"tokenizer.ggml.pre": name},
        tokens=vocabulary,
        merges=merges,
        types=types,
    )
    texts = strings(100)
    tokenizer = load_tokenizer(str(path))
    assert [tokenizer(text)["input_ids"] for text in texts] == llama_cpp_ids(path, texts)


def test_a_conversion_of_another_version_is_not_taken(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    path = write_llama(tmp_path / "model.gguf")
    folder = converted_folder(model_revision(str(path)).removeprefix("sha256:"))
    assert folder.name.endswith(f"-v{CONVERSION}")
    before = folder.with_name(folder.name.removesuffix(f"-v{CONVERSION}"))
    before.mkdir(parents=True)  # what version 1 was called; reading it would fail
    load_model(str(path))
    assert "converting model.gguf" in capfd.readouterr().err
    assert folder.is_dir()


def test_the_revision_is_the_files_whatever_the_conversion():
    assert model_revision("smollm2-135m") == f"sha256:{ASSETS['smollm2-135m'].sha256}"


# Ends


@pytest.mark.parametrize(
    ("statements", "ends"),
    [
        ({}, 2),
        ({"tokenizer.ggml.eot_token_id": 8}, [2, 8]),
        ({"tokenizer.ggml.eot_token_id": 2}, 2),
        ({"tokenizer.ggml.eot_token_id": 8, "tokenizer.ggml.eom_token_id": 7}, [2, 8, 7]),
    ],
)
def test_ends_of_a_turn_and_of_a_message_stop_too(statements, ends, tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    model, tokenizer = load_model(str(write_llama(tmp_path / "model.gguf", statements=statements)))
    assert model.generation_config.eos_token_id == ends
    assert tokenizer.eos_token_id == 2
    engine = Engine(model, None, plan="none", coefficients="none")
    assert engine._stop_ids() == ({ends} if isinstance(ends, int) else set(ends))


# Rotary embeddings


def factors_of(parameters, dim):
    """What llama.cpp's converter writes: unscaled frequencies over scaled ones."""
    config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, rope_parameters=parameters)
    unscaled = parameters["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return unscaled / LlamaRotaryEmbedding(config).inv_freq


def test_frequencies_that_the_file_gives_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    plain, _ = load_model(str(write_llama(tmp_path / "plain.gguf")))
    model, _ = load_model(str(write_llama(tmp_path / "scaled.gguf", rope_factors=factors_of(LLAMA_3, 16))))
    assert {name: model.config.rope_parameters[name] for name in LLAMA_3} == LLAMA_3
    ids = torch.tensor([[3, 4, 5, 6, 7, 3, 5] * 8])
    expected = plain.config.to_dict() | {"rope_parameters": LLAMA_3}
    reference = type(plain)(LlamaConfig(**expected)).eval()
    reference.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
        assert (model(ids).logits - plain(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("dim", [64, 128])
def test_the_scaling_of_llama_3s_own_models_is_found(factor, dim):
    parameters = {**LLAMA_3, "rope_theta": 500000.0, "factor": factor, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2)
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    assert llama3_rope(factors_of(parameters, dim).numpy(), plain, config) == parameters


def test_other_frequencies_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    path = write_llama(tmp_path / "model.gguf", rope_factors=torch.tensor([1.0, 3.0, 2.0, 5.0, 1.0, 1.0, 2.0, 9.0]))
    with pytest.raises(ModelError, match=r"rope_freqs\.weight is not LLaMA 3's scaling"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": False, "mlp_bias": False}),
        ("llama", {"attention_bias": False, "mlp_bias": False, "rope_parameters": LLAMA_3}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
        ("qwen3", {}),
        ("gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
        ("gemma3_text", {"query_pre_attn_scalar": 8, "num_hidden_layers": 7, "rope_parameters": GEMMA_3}),
        ("gpt2", {}),
        ("phi3", {"partial_rotary_factor": 1.0, "sliding_window": None}),
    ],
)
def test_a_written_file_is_read_as_the_model_it_was(family, changes, tmp_path):
    """The writer is held to llama.cpp by tests/test_peers.py."""
    model = tiny_model(family, **changes)
    path = tmp_path / "model.gguf"
    write_gguf(model, path, "F32")
    read_weights(path, read_statements(path)).save_pretrained(tmp_path / "read")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "read")
    ids = torch.tensor([tokens(40)])
    with torch.no_grad():
        # Gemma's norms lose a bit when 1 is added to their weights and subtracted again.
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


# What is not understood


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ({"tokenizer.ggml.pre": "brand-new"}, "its pre-tokenizer tokenizer.ggml.pre = 'brand-new' is not known"),
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type = 'longrope' is not understood"),
        ({"llama.expert_count": 4}, "llama.expert_count = 4 is not understood"),
        ({"llama.residual_scale": 0.2}, "llama.residual_scale = .* is not understood"),
        ({"llama.attention.sliding_window": 16}, "llama.attention.sliding_window = 16 is not understood"),
        ({"llama.attn_logit_softcapping": 30.0}, "llama.attn_logit_softcapping = 30.0 is not computed for LLaMA"),
        ({"llama.attention.key_length": 8}, "cannot read the GGUF file"),
        ({"tokenizer.ggml.normalizer.lowercase": True}, "tokenizer.ggml.normalizer.lowercase = True"),
        ({"split.count": 2}, "one of 2 parts"),
    ],
)
def test_statements_that_are_not_understood_are_refused_by_name(statements, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    path = write_llama(tmp_path / "model.gguf", statements=statements)
    with pytest.raises(ModelError, match=message) as refusal:
        load_model(str(path))
    assert "\n" not in str(refusal.value)


def test_statements_that_say_what_holds_anyway_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    statements = {
        "llama.expert_count": 0,
        "llama.attention.causal": True,
        "llama.rope.dimension_count": 16,
        "llama.rope.scaling.type": "none",
        "llama.attention.key_length": 16,
        "general.quantized_by": "somebody",
    }
    model, _ = load_model(str(write_llama(tmp_path / "model.gguf", statements=statements)))
    plain, _ = load_model(str(write_llama(tmp_path / "plain.gguf")))
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_bos_comes_first_where_the_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    for stated, ids in ((True, [1, 5, 3]), (False, [5, 3])):
        statements = {"tokenizer.ggml.add_bos_token": stated, "tokenizer.ggml.pre": "gpt-2"}
        path = write_llama(tmp_path / f"{stated}.gguf", statements=statements)
        assert load_tokenizer(str(path))("ca")["input_ids"] == ids
        settings = json.loads((converted_folder(model_revision(str(path))[7:]) / "tokenizer.json").read_text())
        assert settings["model"]["type"] == "BPE"
