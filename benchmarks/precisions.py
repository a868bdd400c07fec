"""What a precision costs: the dense model's loss and size at each, against float32 of the same weights.

    python benchmarks/precisions.py --text jsonl:articles.jsonl:body        # both embedded models, all precisions
    python benchmarks/precisions.py --text articles.txt --models smollm2-135m --dtypes int4,file

A line of `benchmarks/results/precisions.jsonl` is a model at a precision. Prompts of 256 tokens run in transformers'
modules on the packed weights, the next 64 tokens are scored in the kernels.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
from stored import RESULTS

import clada
from clada.cpu.decoder import Decoder
from clada.cpu.pack import pack
from clada.cpu.precision import PRECISIONS
from clada.measure.loss import Loss, Scorer
from clada.measure.texts import read_windows
from clada.methods.plan import Shares
from clada.methods.policy import make_policy
from clada.models.open import gguf_file, model_revision
from clada.system.machine import available_cores, set_threads

PROMPT, NEW = 256, 64

FIELDS = ("embedding", "qkv", "output", "gate", "up", "down", "head")


def size(weights: Any) -> int:
    """Bytes of the matrices; a tied head and a gate that is none count once."""
    places = {}
    for name in FIELDS:
        array = weights.memory.get(name, getattr(weights.tensors, name))
        places[array.ctypes.data] = array.nbytes
        scale = getattr(weights.tensors, f"{name}_scale")
        places[scale.ctypes.data, "scale"] = scale.nbytes
    return sum(places.values())


def dense_loss(weights: Any, windows: list[list[int]], threads: int) -> Loss:
    """The loss of windows with nothing left out."""
    dense = make_policy("dense", weights, None, Shares())
    return Scorer(Decoder(weights, threads), windows, PROMPT, dense).score(dense)


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--models", default="smollm2-135m,gemma3-270m")
    parser.add_argument("--dtypes", default=",".join(name for name in PRECISIONS if name != "float32"))
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=available_cores())
    args = parser.parse_args()
    set_threads(args.threads)
    for name in args.models.split(","):
        (model, tokenizer), revision = clada.load_model(name), model_revision(name)
        windows, text_sha256 = read_windows(args.text, tokenizer, revision, PROMPT + NEW, args.windows)
        reference = dense_loss(pack(model, "float32"), windows, args.threads)
        for dtype in args.dtypes.split(","):
            weights = pack(model, dtype)
            loss = dense_loss(weights, windows, args.threads)
            rise, low, high = loss.rise(reference)
            row = {
                "model": name,
                "dtype": dtype,
                "text_sha256": text_sha256,
                "scored_tokens": loss.tokens,
                "ppl_float32": math.exp(float(np.mean(reference.nll))),
                "ppl": math.exp(float(np.mean(loss.nll))),
                "ppl_rise": rise,
                "ppl_rise_ci": [low, high],
                "matrix_bytes": size(weights),
                "file_bytes": gguf_file(name).stat().st_size,
            }
            with (RESULTS / "precisions.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
