"""Running a prompt: ours, torch's and llama.cpp's, in turn; then `figures/SPEED.md` anew.

    python benchmarks/prompts.py --text jsonl:articles.jsonl:body

Tokens per second of prompts of 512 and 2,048 tokens on SmolLM2-135M, medians of interleaved rounds, at two threads or
as many as there are. torch runs transformers' modules in float32. llama.cpp runs a file of the same precision: F32,
F16, Q4_0. Results go to `benchmarks/results/prompts.jsonl`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from speed_page import publish
from stored import write_lines
from tqdm import tqdm

from clada import load_model
from clada.assembly import DENSE, assemble
from clada.measure.comparison import MATCHING
from clada.measure.peers import LlamaCpp, cached_gguf
from clada.measure.texts import read_windows
from clada.models.open import model_revision
from clada.system.machine import available_cores, set_threads

MODEL = "smollm2-135m"
LENGTHS = (512, 2048)
DTYPES = ("float32", "bfloat16", "int4")


def speed(run: Callable[[], Any], tokens: int) -> float:
    """Tokens per second of something that runs so many."""
    begin = time.perf_counter()
    run()
    return tokens / (time.perf_counter() - begin)


def measure(model: Any, dtype: str, prompts: list[list[int]]) -> dict[str, Any]:
    """A line of the results: medians of the speeds and of their ratios; all prompts have the same length."""
    threads, length = available_cores(), len(prompts[0])
    (parts,) = assemble(model, [DENSE], dtype, threads)
    rounds = []
    with LlamaCpp(cached_gguf(model, MATCHING[dtype]), threads, length + 64) as llama, torch.inference_mode():
        for ids in tqdm(prompts, f"{dtype}, {length} tokens"):
            batch = torch.tensor([ids])
            clada = speed(lambda ids=ids: parts.decoder.prefill([ids], 1, parts.policy.dense(1)), length)
            modules = speed(lambda batch=batch: model(batch, use_cache=True, logits_to_keep=1), length)
            rounds.append((clada, modules, llama.prompt_speed(ids)))
    names = ("clada", "torch", "llama.cpp")
    speeds = {name: median(some) for name, some in zip(names, zip(*rounds[1:], strict=True), strict=True)}
    ratios = {f"over_{name}": median(row[0] / row[i] for row in rounds[1:]) for i, name in enumerate(names) if i}
    about = {"model": MODEL, "dtype": dtype, "prompt_tokens": length, "threads": threads, "rounds": len(rounds) - 1}
    return {**about, **speeds, **ratios}


def main() -> None:
    """Measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="prompts, as `clada bench` takes them")
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    args = parser.parse_args()
    set_threads(available_cores())
    model, tokenizer = load_model(MODEL)
    lines = []
    for length in LENGTHS:
        prompts, _ = read_windows(args.text, tokenizer, model_revision(MODEL), length, args.rounds + 1)
        lines += [measure(model, dtype, prompts) for dtype in DTYPES]
    write_lines("prompts.jsonl", lines)
    publish()


if __name__ == "__main__":
    main()
