"""What starting costs: time to the first token in a fresh process, and resident memory, against transformers.

    python benchmarks/start.py                       # SmolLM2-135M, prompt of 512 tokens, every precision

Each measurement is a process of its own, with warm caches (files, compiled kernels); the first of each kind is dropped.
The process of transformers imports nothing of ours.
Memory is what resides after the last token: beyond what it was after imports (`resident_mb`), and beyond what it was
when the model was open too (`grown_mb`), whose weights are mapped from their file and not yet read then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from statistics import median

import clada

ROUNDS = 4
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


def main() -> None:
    """Print one JSON line per engine."""
    kinds = {f"clada {dtype}": COMMON + OURS % dtype + REPORT for dtype in ("float32", "bfloat16", "int8")}
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in clada.load_model("smollm2-135m"):
            part.save_pretrained(folder)
        kinds = {"transformers float32": COMMON + THEIRS % (folder, folder) + REPORT} | kinds
        for round_ in range(ROUNDS + 1):
            for kind, code in kinds.items():
                result = run(code)
                if round_:
                    found.setdefault(kind, []).append(result)
    base = median(r["first_token_s"] for r in found["transformers float32"])
    for kind, results in found.items():
        first = median(r["first_token_s"] for r in results)
        memory = {name: round(median(r[name] for r in results), 1) for name in ("resident_mb", "grown_mb")}
        print(json.dumps({"engine": kind, "first_token_s": round(first, 2), "ratio": round(first / base, 2), **memory}))


if __name__ == "__main__":
    main()
