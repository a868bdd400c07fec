"""Whether `speculative` writes the words of `dense`, and `dense` those of transformers: a line for each.

    python benchmarks/same_words.py --text jsonl:articles.jsonl:body --model smollm2-135m --dtype float32

Prompts of 64 tokens are continued greedily by up to 128. The dense method decodes them side by side, as it writes the
same text alone. In float32, transformers runs every text once: it would have written this text greedily if each of its
words is the likeliest after those before it. Results take the place of former ones in
`benchmarks/results/same-words.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from stored import put
from tqdm import tqdm

from clada import Engine, load_model
from clada.measure.texts import read_windows
from clada.models.open import model_revision

PROMPT, NEW, BATCH = 64, 128, 8


def dense_words(engine: Engine, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Token ids that follow each prompt."""
    words: list[list[int]] = [[] for _ in prompts]
    for first in tqdm(range(0, len(prompts), BATCH), "dense", unit="batch"):
        for index, step in engine.generate_batch(prompts[first : first + BATCH], NEW):
            words[first + index].append(step.token_id)
    return words


def likeliest(model: Any, prompt: list[int], words: list[int]) -> list[int]:
    """What transformers finds likeliest after a prompt, and after each of the words that follow it but the last."""
    ids = torch.tensor([[*prompt, *words[:-1]]])
    with torch.inference_mode():
        best: list[int] = model(ids, logits_to_keep=len(words)).logits[0].argmax(-1).tolist()
    return best


def main() -> None:
    """Decode, compare, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="prompts, as `clada bench` takes them")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=200)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    prompts, _ = read_windows(args.text, tokenizer, model_revision(args.model), PROMPT, args.prompts)
    words = dense_words(Engine(model, tokenizer, method="dense", dtype=args.dtype), prompts)
    speculative = Engine(model, tokenizer, method="speculative", dtype=args.dtype)
    drafted = [[step.token_id for step in speculative.generate(prompt, NEW)] for prompt in tqdm(prompts, "speculative")]
    found = {"speculative": drafted}
    if args.dtype == "float32":
        pairs = tqdm(list(zip(prompts, words, strict=True)), "transformers")
        found["transformers"] = [likeliest(model, prompt, some) for prompt, some in pairs]
    lines = []
    for other, texts in found.items():
        different = sum(a != b for a, b in zip(words, texts, strict=True))
        about = {"model": args.model, "dtype": args.dtype, "beside": other, "prompts": len(prompts)}
        lines.append(about | {"words": sum(map(len, words)), "different": different})
        print(json.dumps(lines[-1]))
    put("same-words.jsonl", lines, ("model", "dtype", "beside"))


if __name__ == "__main__":
    main()
