"""What a skipped byte saves: a fixed share of the MLP's neurons left out, against the time that its bytes allow.

    python benchmarks/fixed_share.py            # SmolLM2-135M, TinyLlama's and OPT-350M's shape, bfloat16

The two shapes have random weights: speed does not depend on them. Runs are interleaved. "Allowed" is dense time times
the share of bytes that are still read. Rows are `gathered` where the neurons stay the same for many tokens, as with
`--method griffin`, and `scattered`, read from where they lie, where they differ from token to token.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

import clada
from clada.cpu.decoder import Decoder
from clada.cpu.kernels.arguments import Tensors
from clada.cpu.pack import pack
from clada.methods.plan import Shares
from clada.methods.policy import make_policy
from clada.methods.selection import Selection
from clada.system.machine import available_cores, set_threads

SHARES = (0.25, 0.5)
PROMPT, NEW, ROUNDS = 128, 24, 7


def smollm2() -> Any:
    """The embedded model."""
    return clada.load_model("smollm2-135m")[0]


def tinyllama() -> Any:
    """The shape of TinyLlama 1.1B."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2_048, intermediate_size=5_632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2_048, tie_word_embeddings=False,
    )  # fmt: skip
    return random_model(LlamaForCausalLM, config)


def opt_350m() -> Any:
    """The shape of OPT-350M."""
    config = OPTConfig(
        vocab_size=50_272, hidden_size=1_024, ffn_dim=4_096, num_hidden_layers=24, num_attention_heads=16,
        word_embed_proj_dim=512, do_layer_norm_before=False,
    )  # fmt: skip
    return random_model(OPTForCausalLM, config)


def random_model(kind: Any, config: Any) -> Any:
    """A model with fresh weights from a fixed seed."""
    torch.manual_seed(0)
    return kind(config).eval().requires_grad_(False)


class Scattered(Decoder):
    """Reads neurons that stay the same as if they did not."""

    def _gather(self, selection: Selection) -> tuple[Tensors, Selection]:
        return self.weights.tensors, selection


def measure(name: str, model: Any, dtype: str, threads: int) -> list[dict[str, Any]]:
    """Median milliseconds per token and bytes read at every share."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 1000, PROMPT).tolist()
    weights = pack(model, dtype)
    del model
    decoders = {"gathered": Decoder(weights, threads), "scattered": Scattered(weights, threads)}
    decoder, dense = decoders["gathered"], make_policy("dense", weights, None, Shares()).dense(1)
    state = decoder.prefill([prompt], NEW, dense)
    mark = decoder.bookmark(state)
    layers, neurons = weights.down_norm.shape
    cases = [("all", 0.0), *((kind, share) for share in SHARES for kind in decoders)]
    times: dict[tuple[str, float], list[float]] = {case: [] for case in cases}
    read: dict[tuple[str, float], float] = {}
    for _ in range(ROUNDS):
        for kind, share in cases:
            # Neurons drawn at random: rows that are left out are scattered, as those of a real selection are.
            needed = np.ones((1, layers, neurons), np.uint8)
            for layer in range(layers):
                needed[0, layer, rng.choice(neurons, round(share * neurons), replace=False)] = 0
            decoder.rewind(state, mark)
            selection = dense._replace(needed=needed) if share else dense
            for _ in range(NEW):
                begin = time.perf_counter()
                decoders.get(kind, decoder).step(state, [5], selection)
                times[kind, share].append(time.perf_counter() - begin)
                read[kind, share] = float(state.outcome.bytes_read.sum())
    whole, all_bytes = float(np.median(times["all", 0.0])), read["all", 0.0]
    rows = []
    for kind, share in cases:
        seconds = float(np.median(times[kind, share]))
        allowed = whole * read[kind, share] / all_bytes
        rows.append(
            {
                "model": name,
                "dtype": dtype,
                "skipped_mlp": share,
                "rows": kind,
                "ms_per_token": 1e3 * seconds,
                "mb_per_token": read[kind, share] / 1e6,
                "speedup": whole / seconds,
                "speedup_allowed": whole / allowed,
                "share_of_allowed": allowed / seconds,
            }
        )
    return rows


def main() -> None:
    """Print one JSON line per model and share."""
    threads = available_cores()
    set_threads(threads)
    for name, make in (("smollm2-135m", smollm2), ("tinyllama-1.1b shape", tinyllama), ("opt-350m shape", opt_350m)):
        for row in measure(name, make(), "bfloat16", threads):
            print(json.dumps(row))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
