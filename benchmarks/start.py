"""What starting costs: time to the first token in a fresh process, and resident memory, against transformers.

    python benchmarks/start.py                       # SmolLM2-135M, every precision; then figures/SPEED.md anew

Each measurement is a process of its own, with warm caches (files, compiled kernels); the first of each kind is dropped.
A prompt has 512 tokens. The process of transformers imports nothing of ours.
Memory is what resides after the last token: beyond what it was after imports (`resident_mb`), and beyond what it was
when the model was open too (`grown_mb`), whose weights are mapped from their file and not yet read then.

Of the command `clada generate --prompt hi --max-new-tokens 1` the whole process is timed. Its first use is timed once,
with a cache that has the model alone: kernels are compiled, and weights packed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from speed_page import publish
from stored import write_lines

import clada
from clada.system.cache import cache_dir

ROUNDS = 4
DTYPES = ("float32", "bfloat16", "int8")
COMMON = """
import json, os, sys, time
begin = time.perf_counter()
def resident():
    with open('/proc/self/statm') as f: return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6
import torch
ids = [(7 * i) % 40_000 + 100 for i in range(512)]
"""
OURS = """
import clada
import clada.engine
imported = resident()
model, tokenizer = clada.load_model('smollm2-135m')
loaded = resident()
engine = clada.Engine(model, tokenizer, method='dense', dtype=%r)
del model
steps = engine.generate(ids, 16)
first = next(steps); first_s = time.perf_counter() - begin
list(steps)
"""
THEIRS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
imported = resident()
model = AutoModelForCausalLM.from_pretrained(%r, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(%r)
loaded = resident()
with torch.inference_mode():
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, 512, dtype=torch.long), max_new_tokens=1)
first_s = time.perf_counter() - begin
"""
REPORT = """
import gc; gc.collect()
print(json.dumps({'first_token_s': first_s, 'resident_mb': resident() - imported, 'grown_mb': resident() - loaded}))
"""


def run(code: str) -> dict[str, float]:
    """Run one process and return what it reports."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def command(dtype: str, cache: Path) -> dict[str, float]:
    """Run the command with a cache folder and return how long it took."""
    words = ["generate", "--prompt", "hi", "--max-new-tokens", "1", "--coefficients", "none", "--dtype", dtype]
    begin = time.perf_counter()
    environment = {**os.environ, "CLADA_CACHE": str(cache)}
    subprocess.run([sys.executable, "-m", "clada", *words], capture_output=True, check=True, env=environment)
    return {"first_token_s": time.perf_counter() - begin}


def first_use(dtype: str) -> dict[str, float]:
    """The same with a cache that has the model alone."""
    with tempfile.TemporaryDirectory() as folder:
        for kept in ("assets", "models"):
            (Path(folder) / kept).symlink_to(cache_dir() / kept)
        return command(dtype, Path(folder))


def main() -> None:
    """Measure, write the page."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in clada.load_model("smollm2-135m"):
            part.save_pretrained(folder)
        kinds = {"transformers float32": lambda: run(COMMON + THEIRS % (folder, folder) + REPORT)}
        kinds |= {f"clada {dtype}": lambda dtype=dtype: run(COMMON + OURS % dtype + REPORT) for dtype in DTYPES}
        kinds |= {f"clada generate {dtype}": lambda dtype=dtype: command(dtype, cache_dir()) for dtype in DTYPES}
        for round_ in range(ROUNDS + 1):
            for kind, measure in kinds.items():
                result = measure()
                if round_:
                    found.setdefault(kind, []).append(result)
    found |= {f"clada generate {dtype}, first use": [first_use(dtype)] for dtype in DTYPES}
    base = median(r["first_token_s"] for r in found["transformers float32"])
    lines = []
    for kind, results in found.items():
        first = median(r["first_token_s"] for r in results)
        names = [name for name in ("resident_mb", "grown_mb") if name in results[0]]
        memory = {name: round(median(r[name] for r in results), 1) for name in names}
        lines.append({"engine": kind, "first_token_s": round(first, 2), "ratio": round(first / base, 2), **memory})
    write_lines("start.jsonl", lines)
    publish()


if __name__ == "__main__":
    main()
