"""Tiny random models of many architectures in folders, with tokenizers made here: what `words` opens without a hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 400

TEXT = """The committee that the mayor had chosen met on the third floor of the old library. Nobody expected the meeting
to last, but the members, who had read the report twice, argued about every line of it until the lights went out. Then
the caretaker came up the stairs with a torch, and asked them politely, although he was tired, whether they knew what
the time was. They did not know. One after another they put on their coats and went home through the rain, and the
report lay on the table, open at the page on which it says that the library will be closed."""

_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {**_SIZE, "intermediate_size": 80, "num_key_value_heads": 2, "max_position_embeddings": 64}
_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_neox": {**_SIZE, "intermediate_size": 80, "max_position_embeddings": 64},
    "gpt_neo": {
        **_SIZE, "num_layers": 3, "num_heads": 4, "intermediate_size": 80, "max_position_embeddings": 64,
        "attention_types": [[["global", "local", "global"], 1]], "window_size": 16,
    },
    "gptj": {**_GPT, "rotary_dim": 4},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4, **_ENDS},
    "xglm": {
        "vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 80, "num_layers": 3, "attention_heads": 4,
        "max_position_embeddings": 64, **_ENDS,
    },
    "opt": {**_SIZE, "ffn_dim": 80, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "olmo2": _GROUPED,
    "phi3": _GROUPED,
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, **_ENDS},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "rescale_every": 2, **_ENDS},
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "qwen3_moe": {
        **_GROUPED, "moe_intermediate_size": 40, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
    },
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 3.0},
    "openai-gpt": _GPT,  # its base model takes no use_cache, and it has no norm before the head
}  # fmt: skip


def bpe(vocabulary: int = VOCABULARY, special: Sequence[str] = ("<|endoftext|>",)) -> Tokenizer:
    """A byte-level tokenizer as GPT-2's, trained on the text above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers opens it."""
    special = special or {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_model(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """A model with weights large enough that its predictions differ from word to word."""
    config = AutoConfig.for_model(architecture, **{**ARCHITECTURES[architecture], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter += 0.15 * torch.randn(parameter.shape)
    return model


def saved(folder: Path, architecture: str, tokenizer: Any = None, **changes: Any) -> str:
    """The name of a folder with a model and a tokenizer."""
    random_model(architecture, **changes).save_pretrained(folder)
    (tokenizer or fast(bpe())).save_pretrained(folder)
    return str(folder)


def plain(model: Any, start: int, ids: Sequence[int], window: int) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the probabilities of all tokens before each of the ids and after it, [n, V] each, from the window that
    the id is measured in: by transformers alone, a window after the other."""
    room, windows = window - 1, [0]
    while windows[-1] + room < len(ids):
        windows.append(min(windows[-1] + room - room // 2, len(ids) - room))
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for begin in windows:
        with torch.no_grad():
            logits = model(torch.tensor([[start, *ids[begin : begin + room]]])).logits[0].double()
        rows = (torch.log_softmax(logits, -1) / np.log(2)).numpy()
        done = len(before) - begin
        before += list(rows[done:-1])
        after += list(rows[done + 1 :])
    return np.stack(before), np.stack(after)
