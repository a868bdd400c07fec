"""Peers: llama.cpp computes from the files written here what transformers computes, and both time only decoding."""

import importlib.util
import multiprocessing
import sys
from pathlib import Path

import gguf
import pytest
import torch
from tiny_models import VOCABULARY, tiny_model, tokens

from clada.errors import InputError, ModelError
from clada.measure.gguf_export import write_gguf
from clada.measure.peers import LlamaCpp, Transformers, cached_gguf
from clada.models.open import load_model

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs pip install 'clada[bench]'"
)

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA_3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 2.0},
}
VARIANTS = {
    "llama": ("llama", {}),
    "llama, rotary of LLaMA 3": ("llama", {"rope_parameters": LLAMA_3}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": (
        "gemma3_text",
        {"query_pre_attn_scalar": 8, "num_hidden_layers": 7, "rope_parameters": GEMMA_3},  # the 6th is full attention
    ),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"hidden_act": "gelu_new"}),
    "gpt_neox, one after the other": ("gpt_neox", {"hidden_act": "gelu_new", "use_parallel_residual": False}),
    "olmo2": ("olmo2", {"attention_bias": False}),
    "phi3": ("phi3", {"sliding_window": None}),
    "smollm3": (  # the 4th has no rotary embedding
        "smollm3",
        {
            "num_hidden_layers": 5,
            "no_rope_layers": None,
            "use_sliding_window": False,
            "attention_bias": False,
            "mlp_bias": False,
        },
    ),
}


def variant(name):
    family, changes = VARIANTS[name]
    return tiny_model(family, **changes)


def greedy(peer, prompt, n, candidates):
    """Tokens that llama.cpp chooses, and for each step the log-probabilities of the best candidates by token."""
    content = peer._complete(prompt, n, logprobs=candidates)["choices"][0]["logprobs"]["content"]
    chosen = [step["id"] for step in content]
    log_p = [{best["id"]: best["logprob"] for best in step["top_logprobs"]} for step in content]
    return chosen, log_p


def largest_difference(model, prompt, chosen, log_p):
    """Between llama.cpp's and transformers' log-probabilities, and how far its choices are from transformers' best."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
    expected = logits.double().log_softmax(-1)
    difference = max(abs(expected[i, token] - p) for i, step in enumerate(log_p) for token, p in step.items())
    regular = [token for token in range(model.config.vocab_size) if token != model.config.eos_token_id]
    regret = (expected[:, regular].max(-1).values - expected[range(len(chosen)), chosen]).max()
    return float(difference), float(regret)


@needs_llama_cpp
@pytest.mark.parametrize("name", VARIANTS)
def test_llama_cpp_computes_what_transformers_computes(name, tmp_path):
    model = variant(name)
    write_gguf(model, tmp_path / "model.gguf", "F32")
    # llama.cpp looks GELU up in a table of float16 values.
    tolerance = 1e-4 if name.startswith(("llama", "mistral", "qwen", "olmo2", "phi3", "smollm3")) else 0.02
    # Its float16 in the cache and in flash attention would hide small mistakes.
    with LlamaCpp(tmp_path / "model.gguf", threads=2, context=64, exact=True) as peer:
        for seed in range(2):
            prompt = tokens(40, seed)  # longer than the sliding window
            chosen, log_p = greedy(peer, prompt, 8, VOCABULARY)
            assert len(chosen) == 8
            assert all(len(step) == VOCABULARY for step in log_p)
            assert largest_difference(model, prompt, chosen, log_p) == pytest.approx((0, 0), abs=tolerance)


@needs_llama_cpp
@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.05), ("Q8_0", 1.0)])
def test_llama_cpp_continues_as_transformers_does(kind, tolerance, tmp_path):
    """With its default cache and attention, whose float16 is worth about 0.01 here."""
    model, tokenizer = load_model("smollm2-135m")
    path = tmp_path / "model.gguf"
    write_gguf(model, path, kind)
    try:
        with LlamaCpp(path, threads=2, context=96) as peer:
            for text in (
                "The city council voted on Tuesday to",
                "def fibonacci(n):\n    ",
                "The discovery of penicillin changed medicine because",
            ):
                prompt = tokenizer(text)["input_ids"]
                chosen, log_p = greedy(peer, prompt, 64, 1)
                assert largest_difference(model, prompt, chosen, log_p) == pytest.approx((0, 0), abs=tolerance)
    finally:
        path.unlink()  # pytest would keep the half gigabyte


@pytest.mark.parametrize(
    ("kind", "embeddings", "largest_error"),
    [
        ("F32", "F32", 0),
        ("F16", "F16", 2**-11),
        ("BF16", "BF16", 2**-8),
        ("Q8_0", "Q8_0", 0.01),
        ("Q4_0", "Q8_0", 0.12),
        ("Q4_1", "Q8_0", 0.1),
    ],
)
@needs_llama_cpp
def test_kinds(kind, embeddings, largest_error, tmp_path):
    """Norms and biases stay float32, rows that blocks do not divide are F16, and llama.cpp runs them all."""
    model = variant("llama")
    path = tmp_path / "model.gguf"
    write_gguf(model, path, kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    types = {name: tensor.tensor_type.name for name, tensor in stored.items()}
    assert types["blk.0.ffn_up.weight"] == kind
    assert types["token_embd.weight"] == types["output.weight"] == embeddings
    assert types["blk.0.ffn_down.weight"] == (kind if kind in ("F32", "F16", "BF16") else "F16")  # rows of 80
    assert {types[f"blk.2.{name}"] for name in ("attn_norm.weight", "attn_q.bias", "ffn_down.bias")} == {"F32"}
    up = model.model.layers[0].mlp.up_proj.weight
    read = torch.tensor(gguf.quants.dequantize(stored["blk.0.ffn_up.weight"].data, gguf.GGMLQuantizationType[kind]))
    assert (read - up).norm() <= largest_error * up.norm()
    with LlamaCpp(path, threads=1, context=32) as peer:
        assert peer.decode_speed(tokens(8), 4) > 0


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("opt", {}, "OPT cannot be written .* use one of LLaMA 2/3, SmolLM2, Mistral"),
        ("llama", {"hidden_act": "relu"}, "activation = 'relu'"),
        ("qwen2", {"rope_parameters": LLAMA_3}, "rope_type = 'llama3'"),
        ("gemma2", {}, "scores of attention scaled by = {0.0625}"),
        ("gemma2", {"query_pre_attn_scalar": 8, "final_logit_softcapping": None}, "softcapping by final_logit"),
        ("gemma3_text", {"query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 3}, "layer_types = "),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt_neox", {}, "GPT-NeoX, Pythia with activation = 'gelu'"),
        ("smollm3", {"use_sliding_window": False}, r"layers of no_rope_layers = \[2\]"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scores of attention scaled by"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(family, changes, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        write_gguf(tiny_model(family, **changes), tmp_path / "model.gguf", "F32")
    assert list(tmp_path.iterdir()) == []


@needs_llama_cpp
def test_a_full_context_is_an_error_and_not_a_shorter_measurement(tmp_path, capfd):
    path = tmp_path / "model.gguf"
    write_gguf(variant("llama"), path, "F32")
    with LlamaCpp(path, threads=1, context=256) as peer:
        assert peer.decode_speed(tokens(200), 56) > 0
        with pytest.raises(ModelError, match="ask for fewer"):
            peer.decode_speed(tokens(200), 57)
        with pytest.raises(ModelError, match="shorten it"):
            peer.decode_speed(tokens(300), 4)
    assert capfd.readouterr().out == ""


@needs_llama_cpp
def test_mistral_ends_at_its_window(tmp_path):
    """Beyond it llama.cpp would attend to more than transformers does."""
    path = tmp_path / "model.gguf"
    write_gguf(tiny_model("mistral"), path, "F32")
    with LlamaCpp(path, threads=1, context=64) as peer:
        assert peer.decode_speed(tokens(8), 4) > 0
        with pytest.raises(ModelError, match="shorten it"):
            peer.decode_speed(tokens(20), 4)


@needs_llama_cpp
def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ModelError, match="cannot load"):
        LlamaCpp(tmp_path / "model.gguf", threads=1, context=64)


def test_without_xllamacpp_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(InputError, match=r"install it with pip install 'clada\[bench\]'"):
        LlamaCpp(Path("model.gguf"), threads=1, context=64)


@needs_llama_cpp
def test_closing_ends_the_process(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(variant("llama"), path, "F32")
    with LlamaCpp(path, threads=2, context=64) as peer:
        peer.decode_speed(tokens(8), 4)
        (process,) = multiprocessing.active_children()
    assert not process.is_alive()
    assert multiprocessing.active_children() == []


@needs_llama_cpp
def test_a_process_that_ends_is_an_error(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(variant("llama"), path, "F32")
    with LlamaCpp(path, threads=1, context=64) as peer:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        with pytest.raises(ModelError, match="process ended"):
            peer.decode_speed(tokens(8), 4)


def test_transformers_runs_so_many_passes_past_any_end_of_text():
    model = variant("llama")
    model.generation_config.eos_token_id = list(range(VOCABULARY))
    model.generation_config.repetition_penalty = 1.3
    lengths = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    threads = torch.get_num_threads()
    assert Transformers(model, threads=1).decode_speed(tokens(10), 6) > 0
    handle.remove()
    assert lengths == [10, 1, 1, 1, 1, 1]
    assert torch.get_num_threads() == threads
    assert model.generation_config.repetition_penalty == 1.3


@pytest.mark.parametrize("peer", [Transformers, pytest.param(LlamaCpp, marks=needs_llama_cpp)])
def test_one_token_is_no_decoding(peer, tmp_path):
    model = variant("llama")
    write_gguf(model, tmp_path / "model.gguf", "F32")
    opened = peer(model, 1) if peer is Transformers else peer(tmp_path / "model.gguf", 1, 64)  # ends with the tests
    with pytest.raises(InputError, match="ask for 2 or more"):
        opened.decode_speed(tokens(10), 1)


@needs_llama_cpp
def test_a_prompt_runs_whole_each_time_it_is_timed(tmp_path):
    write_gguf(variant("llama"), tmp_path / "model.gguf", "F32")
    with LlamaCpp(tmp_path / "model.gguf", 1, 64) as opened:
        asked = []
        complete = opened._complete
        opened._complete = lambda *args, **options: asked.append(complete(*args, **options)) or asked[-1]
        assert min(opened.prompt_speed(tokens(20)) for _ in range(2)) > 0
    assert [answer["timings"]["prompt_n"] for answer in asked] == [20, 20]


def test_transformers_is_timed_in_float32_only():
    with pytest.raises(ModelError, match="float32"):
        Transformers(variant("llama").bfloat16(), threads=1)


def test_files_are_cached_by_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    model = variant("llama")
    with pytest.raises(ModelError, match="without a name"):
        cached_gguf(model, "F16")
    model.save_pretrained(tmp_path / "model")
    model.name_or_path = str(tmp_path / "model")
    first = cached_gguf(model, "F16")
    content = first.read_bytes()
    monkeypatch.setattr("clada.measure.gguf_export.write_gguf", None)
    assert cached_gguf(model, "F16") == first
    assert first.read_bytes() == content
    monkeypatch.undo()
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    others = {cached_gguf(model, "Q8_0"), cached_gguf(model.bfloat16(), "F16")}
    assert len(others | {first}) == 3
