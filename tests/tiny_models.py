"""Tiny random models of every family, made in memory: no download, and no weight or bias left at its neutral value."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 311
SLIDING_WINDOW = 16  # shorter than every prompt and prefix in the tests

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "intermediate_size": 80, "num_key_value_heads": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED, "attention_bias": True, "mlp_bias": True},
    "mistral": {**_GROUPED, "sliding_window": SLIDING_WINDOW},
    "qwen2": {**_GROUPED},
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": SLIDING_WINDOW},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": SLIDING_WINDOW},
    "opt": {**_COMMON, "ffn_dim": 80, "word_embed_proj_dim": 32},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 80,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {**_COMMON, "intermediate_size": 80, "rotary_pct": 0.5},
    "olmo2": {**_GROUPED, "attention_bias": True},
    "phi3": {**_GROUPED, "sliding_window": SLIDING_WINDOW, "partial_rotary_factor": 0.5},
    "smollm3": {
        **_GROUPED,
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": SLIDING_WINDOW,
        "attention_bias": True,
        "mlp_bias": True,
    },
}
GATED = [name for name in CONFIGS if name not in ("opt", "gpt2", "gpt_neox")]


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of a family in eval mode, float32."""
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # transformers draws fresh weights from the global generator
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        # Fresh models have zero biases and unit norms; a mistake with either would not show.
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def tokens(n: int, seed: int = 0) -> list[int]:
    """Random token ids without the special ones."""
    return torch.randint(3, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
