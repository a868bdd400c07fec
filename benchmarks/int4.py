"""Dense decoding in `int4` beside llama.cpp's files of four bits; then `figures/SPEED.md` anew.

    python benchmarks/int4.py

SmolLM2-135M, and random weights of TinyLlama 1.1B's shape. llama.cpp reads Q4_0, whose rows it packs anew for the
processor, and Q4_K_M, whose tensors have the types that its own quantiser gives them. No package that pip installs
quantises to blocks of 256, so those hold random codes: what decoding takes does not depend on them. Each file decodes
in turn with ours, at as many threads as there are cores. Results go to `benchmarks/results/int4.jsonl`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import gguf
import numpy as np
from fixed_share import smollm2, tinyllama
from speed_page import publish
from stored import write_lines
from tqdm import tqdm

from clada.assembly import DENSE, Parts, assemble
from clada.decoding import most_likely_words, steps
from clada.measure import gguf_export
from clada.measure.peers import LlamaCpp
from clada.system.machine import available_cores, set_threads

PROMPT, NEW, ROUNDS = 128, 32, 8

TYPES = gguf.GGMLQuantizationType
LARGE = 256  # weights of a block that has steps
WITHOUT_LARGE = {TYPES.Q4_K: TYPES.Q5_0, TYPES.Q6_K: TYPES.Q8_0}  # what llama.cpp takes where a row has no such blocks


def of_medium(name: str, values: np.ndarray, config: Any) -> gguf.GGMLQuantizationType:
    """The type of a tensor in a Q4_K_M file: the rules of llama.cpp's quantiser (`src/llama-quant.cpp`)."""
    if values.ndim == 1:
        return TYPES.F32
    layers = config.num_hidden_layers
    finer = name == ("token_embd.weight" if config.tie_word_embeddings else "output.weight")
    if ".attn_v." in name or ".ffn_down." in name:  # half of the layers: the first and last eighth, a third of the rest
        layer, eighth = int(name.split(".")[1]), layers // 8
        finer = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    stored_as = TYPES.Q6_K if finer else TYPES.Q4_K
    return stored_as if values.shape[-1] % LARGE == 0 else WITHOUT_LARGE[stored_as]


def quantised(
    values: np.ndarray, stored_as: gguf.GGMLQuantizationType, *, known: Any = gguf.quants.quantize
) -> np.ndarray:
    """Blocks of a tensor; random ones of the types that are not `known`."""
    if stored_as not in WITHOUT_LARGE:
        return np.asarray(known(values, stored_as))
    weights, size = gguf.GGML_QUANT_SIZES[stored_as]
    blocks = np.random.default_rng(0).integers(0, 256, (values.size // weights, size), np.uint8)
    step = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
    if stored_as == TYPES.Q4_K:  # steps of scales and of minima come first
        blocks[:, :2] = blocks[:, 2:4] = step
    else:
        blocks[:, -2:] = step
    return blocks.reshape(*values.shape[:-1], -1)


def write_medium(model: Any, path: Path) -> None:
    """A Q4_K_M file of a model's shape."""
    with (
        mock.patch.object(gguf_export, "_stored_as", lambda name, values, _kind: of_medium(name, values, model.config)),
        mock.patch.object(gguf_export.gguf.quants, "quantize", quantised),
    ):
        gguf_export.write_gguf(model, path, "Q4_0")


def decode_speed(parts: Parts, prompt: list[int]) -> float:
    """Tokens per second after a prompt."""
    state = parts.decoder.prefill([prompt], NEW, parts.policy.dense(1))
    begin = time.perf_counter()
    for _ in steps(parts.decoder, parts.policy, state, most_likely_words, NEW):
        pass
    return NEW / (time.perf_counter() - begin)


def measure(name: str, model: Any, threads: int) -> list[dict[str, Any]]:
    """A line for each of llama.cpp's files: medians of the speeds, and of the ratios of the same rounds."""
    (parts,) = assemble(model, [DENSE], "int4", threads)
    prompt = np.random.default_rng(0).integers(3, 1000, PROMPT).tolist()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.gguf" for kind in ("Q4_0", "Q4_K_M")}
        gguf_export.write_gguf(model, paths["Q4_0"], "Q4_0")
        write_medium(model, paths["Q4_K_M"])
        del model
        for kind, path in paths.items():
            with LlamaCpp(path, threads, PROMPT + NEW + 64) as llama:
                rounds = [
                    (decode_speed(parts, prompt), llama.decode_speed(prompt, NEW))
                    for _ in tqdm(range(ROUNDS + 1), f"{name}, {kind}")
                ][1:]
            ours, theirs = (median(some) for some in zip(*rounds, strict=True))
            over = [a / b for a, b in rounds]
            about = {"model": name, "file": kind, "file_mb": path.stat().st_size / 1e6, "threads": threads}
            lines.append(
                {**about, "clada": ours, "llama.cpp": theirs, "over": median(over), "low": min(over), "high": max(over)}
            )
    return lines


def main() -> None:
    """Measure, write the page."""
    threads = available_cores()
    set_threads(threads)
    lines = [
        line
        for name, make in (("smollm2-135m", smollm2), ("tinyllama-1.1b shape", tinyllama))
        for line in measure(name, make(), threads)
    ]
    write_lines("int4.jsonl", lines)
    publish()


if __name__ == "__main__":
    main()
