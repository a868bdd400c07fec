import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import gguf
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from clada.errors import ModelError
from clada.models import open as models
from clada.models.assets import ASSETS, fetch
from clada.models.open import load_config, load_model, load_tokenizer, model_revision

SENTENCES = [
    "The ferry left at 7:45, as it had done every day since 1968.",
    "Zoë's naïve façade fooled no one: “déjà vu”, said Øystein.",
    "価格は１２３円です 🙂\n\n\tdef f(x): return x**2",
]


def save_tiny_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *"abcde"])}, "<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    return save_tiny_llama(tmp_path / "tiny")


def refusal(name, opener=load_model) -> str:
    """The message of the ModelError, which must be one line."""
    with pytest.raises(ModelError) as caught:
        opener(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The embedded default model


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def direct():
    """The same GGUF file as transformers itself opens it."""
    path = fetch("smollm2-135m")
    with warnings.catch_warnings(action="ignore"):
        return (
            AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32),
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
        )


def test_cached_copy_has_the_logits_of_the_gguf_file_bit_for_bit(smollm2, direct):
    ids = torch.tensor([smollm2[1](SENTENCES[0]).input_ids])
    with torch.no_grad():
        assert torch.equal(smollm2[0](ids).logits, direct[0](ids).logits)


def test_cached_tokenizer_agrees_with_the_gguf_file(smollm2, direct):
    chat = [{"role": "user", "content": "Grüße?"}]
    for sentence in SENTENCES:
        ids = smollm2[1](sentence).input_ids
        assert ids == direct[1](sentence).input_ids
        assert smollm2[1].decode(ids) == sentence
    templated = [
        t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (smollm2[1], direct[1])
    ]
    assert templated[0] == templated[1]
    assert templated[0].endswith("<|im_start|>user\nGrüße?<|im_end|>\n<|im_start|>assistant\n")


def test_special_tokens_of_the_default_model(smollm2):
    model, tokenizer = smollm2
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("one").input_ids == tokenizer("one", add_special_tokens=False).input_ids  # adds no BOS


def test_default_model_is_ready_for_inference(smollm2):
    model, _ = smollm2
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert getattr(model.config, "quantization_config", None) is None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_revision_of_an_embedded_model_is_its_checksum():
    assert model_revision("smollm2-135m") == f"sha256:{ASSETS['smollm2-135m'].sha256}"


# Folders


def test_a_folder_opens_with_the_weights_it_was_saved_with(tiny):
    model, tokenizer = load_model(str(tiny))
    saved = LlamaForCausalLM.from_pretrained(tiny)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    assert not model.training
    assert tokenizer("a e").input_ids == [3, 7]
    assert load_config(str(tiny)).num_hidden_layers == 2
    assert load_tokenizer(str(tiny)).eos_token_id == 2


def test_bfloat16_is_the_rounded_float32(tiny):
    float32, _ = load_model(str(tiny))
    bfloat16, _ = load_model(str(tiny), dtype="bfloat16")
    for a, b in zip(float32.parameters(), bfloat16.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b)


def test_unknown_dtype_and_device_are_refused(tiny, monkeypatch):
    with pytest.raises(ModelError, match="unknown dtype 'float8': choose one of float32, bfloat16"):
        load_model(str(tiny), dtype="float8")
    with pytest.raises(ModelError, match="unknown device 'tpu': choose cpu or cuda"):
        load_model(str(tiny), device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device"):
        load_model(str(tiny), device="cuda")


def test_revision_of_a_folder_follows_its_content_and_names(tiny):
    revision = model_revision(str(tiny))
    assert revision.startswith("sha256:")
    (tiny / "README.md").write_text("not part of the model")
    assert model_revision(str(tiny)) == revision
    settings = json.loads((tiny / "generation_config.json").read_text())
    (tiny / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 3}))
    changed = model_revision(str(tiny))
    (tiny / "generation_config.json").rename(tiny / "other.json")
    assert len({revision, changed, model_revision(str(tiny))}) == 3


def test_a_folder_without_config_is_refused(tmp_path):
    assert "has no config.json" in refusal(tmp_path)


def test_a_folder_without_tokenizer_is_refused(tiny):
    for file in tiny.glob("tokenizer*"):
        file.unlink()
    assert "cannot open the model" in refusal(tiny)


def test_truncated_safetensors_are_refused(tiny):
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is the file whole" in refusal(tiny)


def test_damaged_config_is_refused(tiny):
    (tiny / "config.json").write_text("{")
    assert "cannot open the model" in refusal(tiny)


def test_quantised_linear_layers_are_refused_by_name(tiny):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
    assert "quantised linear layers (awq)" in refusal(tiny)


def test_code_that_comes_with_a_model_never_runs(tiny):
    (tiny / "evil.py").write_text(f"open({str(tiny / 'ran')!r}, 'w')\nclass Config: pass\n")
    own_code = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Config"}}
    (tiny / "config.json").write_text(json.dumps(own_code))
    assert f"{tiny} brings Python code of its own (trust_remote_code), which is not run here" in refusal(tiny)
    assert not (tiny / "ran").exists()


def test_transformers_settings_survive(tiny):
    transformers_logging.set_verbosity_info()
    try:
        load_model(str(tiny))
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()


def test_loading_prints_nothing(tiny, capfd):
    load_model(str(tiny))
    assert capfd.readouterr() == ("", "")


# GGUF files


@pytest.fixture
def tiny_gguf(tiny, tmp_path):
    """A LLaMA of the same shape with all-new float32 weights, written by the gguf library."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "c", "d", "ab"])
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {
        "token_embd": (8, 16),
        "output_norm": (16,),
        "blk.0.attn_norm": (16,),
        "blk.0.ffn_norm": (16,),
        **{f"blk.0.attn_{part}": (16, 16) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (32, 16),
        "blk.0.ffn_up": (32, 16),
        "blk.0.ffn_down": (16, 32),
    }
    torch.manual_seed(1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_converted_once(tiny_gguf, capfd):
    first, tokenizer = load_model(str(tiny_gguf))
    assert "converting tiny.gguf" in capfd.readouterr().err
    second, _ = load_model(str(tiny_gguf))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert tokenizer("abba").input_ids == [7, 4, 3]
    assert model_revision(str(tiny_gguf)).startswith("sha256:")


def test_a_replaced_gguf_file_is_noticed(tiny_gguf):
    before, _ = load_model(str(tiny_gguf))
    revision = model_revision(str(tiny_gguf))
    content = bytearray(tiny_gguf.read_bytes())
    content[-1] ^= 0x80  # the sign of the last weight
    tiny_gguf.write_bytes(content)
    os.utime(tiny_gguf, ns=(0, 0))  # a clock too coarse to tell two writes apart must not decide this test
    after, _ = load_model(str(tiny_gguf))
    assert model_revision(str(tiny_gguf)) != revision
    assert not all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_truncated_gguf_file_is_refused_and_not_cached(tiny_gguf, tmp_path):
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:-64])
    assert "cannot read the GGUF file" in refusal(tiny_gguf)
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"] == []


def test_a_gguf_file_of_an_unreadable_architecture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CLADA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "architecture clip" in refusal(path)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a model" in refusal(tmp_path / "notes.txt")


# Names


def test_a_corpus_is_not_a_model():
    assert "news is an embedded corpus" in refusal("news")


@pytest.fixture
def hub(monkeypatch):
    """A hub that knows no model."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # conftest sets it for all other tests
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["nobody/nothing", "./no/such/folder", "no-such-file.gguf"])
def test_a_name_the_hub_does_not_know(hub, name):
    message = refusal(name)
    assert message.startswith(f"unknown model '{name}': it is not embedded (smollm2-135m, gemma3-270m)")
    assert "the hub knows no such model" in message


def test_a_hub_that_refuses_or_never_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(models, "HUB_TIMEOUT_S", 0.2)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the hub gives no answer (" in refusal("nobody/nothing")
    assert "the hub gives no answer (" in refusal("nobody/nothing")  # the socket is closed now


def test_a_hub_model_opens_offline_from_the_local_hub_cache(tmp_path):
    commit, checkpoint = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
    repository = tmp_path / "hub" / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, place in (("main", commit), ("step1000", checkpoint)):
        save_tiny_llama(repository / "snapshots" / place)
        (repository / "refs" / name).write_text(place)
    weights = repository / "snapshots" / checkpoint / "model.safetensors"
    save_file({name: 2 * values for name, values in load_file(weights).items()}, weights, {"format": "pt"})
    script = (
        "from clada.models.open import load_model, model_revision\n"
        "model, tokenizer = load_model('somebody/tiny')\n"
        "early, _ = load_model('somebody/tiny', revision='step1000')\n"
        "print(model_revision('somebody/tiny'), tokenizer('a e').input_ids)\n"
        "print(model_revision('somebody/tiny', 'step1000'), (early.lm_head.weight - 2 * model.lm_head.weight).any())\n"
    )
    # A process of its own, because the hub's client reads these variables when it is imported.
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True)
    assert finished.stdout == f"{commit} [3, 7]\n{checkpoint} tensor(False)\n", finished.stderr
