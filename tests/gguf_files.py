"""Small GGUF files for tests, and llama.cpp's own tokens of a text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import torch

_TOKENIZE = """
import json, os, sys, urllib.request
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.n_gpu_layers, params.verbosity = 32, 1, False, 0, 1
params.fit_params = False
server = xllamacpp.Server(params)
found = []
for text in json.loads(sys.stdin.read()):
    body = json.dumps({"content": text, "add_special": True}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    found.append(json.load(urllib.request.urlopen(request))["tokens"])
print("ids", json.dumps(found), flush=True)
os._exit(0)  # closing a server hangs now and then
"""


def llama_cpp_ids(path: Path, texts: list[str]) -> list[list[int]]:
    """Token ids of texts as llama.cpp reads a file's vocabulary, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _TOKENIZE, str(path)], input=json.dumps(texts), capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ids ")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("ids "))


WORDS = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "ab", "<turn>"]


def write_llama(
    path: Path,
    *,
    statements: dict[str, Any] | None = None,
    tokens: list[str] | None = None,
    merges: list[str] | None = None,
    types: list[int] | None = None,
    rope_factors: torch.Tensor | None = None,
) -> Path:
    """A tiny LLaMA with random float32 weights and a byte-level vocabulary.

    Args:
        path: file to write.
        statements: more metadata by name.
        tokens: the vocabulary; None for `WORDS`.
        merges: of byte pairs.
        types: of the tokens.
        rope_factors: `rope_freqs.weight`.
    """
    tokens = WORDS if tokens is None else tokens
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(types or [3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"] if merges is None else merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in (statements or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](name, value)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        **{f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    generator = torch.Generator().manual_seed(1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=generator).numpy())
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
