"""What a study costs as it grows, and what sharing prefixes saves.

    python benchmarks/scale.py hooks     # our extraction beside plain hooks, sequence by sequence, interleaved; minutes
    python benchmarks/scale.py double    # twice the pairs, the layers, the length: time, disk, memory; minutes
    python benchmarks/scale.py paper     # similarity and regression at the paper's shape, under 4 GB? (20 GB of disk)

Results go to `benchmarks/results/scale-*.json`. `paper` writes generated activations (uniform random, half precision)
of 4,000 pairs, 32 layers and 11,008 neurons: what costs time and memory there does not depend on what the numbers are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from stored import RESULTS
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM

from clada import load_model
from clada.models.architectures import down_projections
from cladastats.activations.parts import Part, norms_path, part_path, shard_ids, shards_of, write_index, write_part
from cladastats.activations.work import PrefixSharingRunner, sequences_of
from cladastats.corpus import make_study
from cladastats.sequences.pairs import sequence_id, tokens_sha256
from cladastats.study import Study, write_study, write_table

MODEL = "smollm2-135m"
RATIOS = (0.25, 0.375, 0.5)


def save(name: str, value: Any) -> None:
    """Keep a result and show it."""
    (RESULTS / f"scale-{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(value, indent=1))


def make(folder: Path, pairs: int, length: int) -> Study:
    """A study of the embedded news, its corpus built."""
    asked = dict.fromkeys(("source", "model", "seed", "windows", "storage_dtype", "threads", "equivalence_margin"))
    return make_study(str(folder), asked | {"model": MODEL, "pairs": pairs, "length": length, "ratios": RATIOS})


# -- against plain hooks ------------------------------------------------------------------------------------------


def plain(model: Any, sequences: list[np.ndarray]) -> int:
    """Whole sequences one by one with a hook on every down-projection; how many tokens went through the model."""
    seen: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, inputs, i=i: seen.__setitem__(i, inputs[0][0, -1].clone()))
        for i, module in enumerate(down_projections(model))
    ]
    with torch.inference_mode():
        for ids in sequences:
            logits = model(torch.tensor(ids, dtype=torch.long)[None], use_cache=False, logits_to_keep=2).logits
            torch.log_softmax(logits[0, 0].double(), -1)
            torch.stack([seen[i] for i in range(len(handles))]).numpy()
    for handle in handles:
        handle.remove()
    return sum(map(len, sequences))


def hooks(pairs: int, length: int) -> None:
    """Pairs per hour and token forwards of both ways, in turns."""
    model, _ = load_model(MODEL)
    with tempfile.TemporaryDirectory() as place:
        study = make(Path(place) / "study", max(2, pairs), length)
        blocks = [block for shard in shards_of(study.corpus) for block in shard][:pairs]
    runner = PrefixSharingRunner(model)
    runner.measure(sequences_of(blocks)[0])  # warm: buffers, and what torch sets up at the first call
    rows = []
    for block, sequences in zip(blocks, sequences_of(blocks), strict=True):
        hybrids = block[block["role"] == "hybrid"]
        base = dict(zip(block["role"], block["token_ids"], strict=True))
        # The paper's 36,000 sequences: A, B and the hybrid of every ratio, each run whole.
        roles = [ids for hybrid in hybrids["token_ids"] for ids in (base["A"], base["B"], hybrid)]
        distinct = list(sequences.values())
        row = {}
        for name, run in (
            ("shared", lambda s=sequences: runner.measure(s)),
            ("roles", lambda r=roles: plain(model, r)),
            ("distinct", lambda d=distinct: plain(model, d)),
        ):
            before, begin = runner.token_forwards, time.perf_counter()
            count = run()
            row[f"{name}_seconds"] = time.perf_counter() - begin
            row[f"{name}_tokens"] = runner.token_forwards - before if name == "shared" else count
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    value = {"model": MODEL, "length": length, "ratios": RATIOS, "pairs": len(rows), "threads": torch.get_num_threads()}
    for name in ("roles", "distinct"):
        value[f"forwards_saved_over_{name}"] = float((table[f"{name}_tokens"] / table["shared_tokens"]).median())
        value[f"pairs_per_hour_over_{name}"] = float((table[f"{name}_seconds"] / table["shared_seconds"]).median())
    save("hooks", value | {"seconds_per_pair": float(table["shared_seconds"].median())})


# -- twice as much ------------------------------------------------------------------------------------------------


def measured(what: Callable[[], None]) -> tuple[float, float]:
    """Seconds of a call, and the peak of this process's memory in GB since it began (Linux)."""
    begin = time.perf_counter()
    what()
    seconds = time.perf_counter() - begin
    # Not resource.getrusage, whose peak outlives exec: it would be that of the process which started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return seconds, int(peak.split()[1]) * 1024 / 1e9


def stages(folder: str) -> None:
    """In a process of its own: extract, similarity, regress of a study; a line of JSON."""
    from cladastats.extract import extract
    from cladastats.regress import regress
    from cladastats.similarity import similarity

    study = Study(folder)
    value: dict[str, Any] = {}
    for name, what in (
        ("extract", lambda: extract(study)),
        ("similarity", lambda: similarity(study, "cka")),
        ("regress", lambda: regress(study, "cka")),
    ):
        value[f"{name}_seconds"], value[f"{name}_peak_gb"] = measured(what)
    files = (path for path in study.folder.rglob("*") if path.is_file())
    value["disk_mb"] = sum(path.stat().st_size for path in files) / 1e6
    print(json.dumps(value))


def in_own_process(*arguments: str) -> dict[str, Any]:
    """The JSON that a call of this file prints."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def double() -> None:
    """A small study, and one with twice the pairs, twice the length, twice the layers."""
    base = {"pairs": 8, "length": 512, "layers": 1}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, change in (
            ("base", {}),
            ("pairs", {"pairs": 16}),
            ("length", {"length": 1024}),
            ("layers", {"layers": 2}),
        ):
            size = base | change
            folder = Path(place) / name
            study = make(folder, size["pairs"], size["length"])
            if size["layers"] == 2:
                deep = Path(place) / "deep"
                deeper(deep)
                write_study(folder, replace(study.config, model=str(deep), revision=revision(deep)))
            rows.append({"twice": name, **in_own_process("stages", "--study", str(folder)), **size})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    save("double", rows)


def deeper(folder: Path) -> None:
    """The model with each of its layers twice, its weights real ones."""
    model, tokenizer = load_model(MODEL)
    config = AutoConfig.for_model(**{**model.config.to_dict(), "num_hidden_layers": 2 * model.config.num_hidden_layers})
    deep = AutoModelForCausalLM.from_config(config)
    weights = model.state_dict()
    deep.load_state_dict({name: weights[_halved(name)] for name in deep.state_dict()})
    deep.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _halved(name: str) -> str:
    parts = name.split(".")
    return ".".join([*parts[:2], str(int(parts[2]) // 2), *parts[3:]]) if name.startswith("model.layers.") else name


def revision(folder: Path) -> str:
    """Of a model's folder."""
    from clada.models.open import model_revision

    return model_revision(str(folder))


# -- the paper's shape --------------------------------------------------------------------------------------------


def paper(pairs: int, layers: int, neurons: int) -> None:
    """Generated parts of the paper's size, then similarity and regression in a process of their own."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        template = make(Path(place) / "template", 2, 64)
        rows = template.corpus
        many = []
        for pair in range(pairs):
            block = rows[rows["pair"] == 0].copy()
            block["pair"] = pair
            block["token_ids"] = [rng.permutation(ids) for ids in block["token_ids"]]
            block["sequence_id"] = [sequence_id(ids) for ids in block["token_ids"]]
            many.append(block)
        corpus = pd.concat(many, ignore_index=True)
        folder = Path(place) / "study"
        config = replace(template.config, pairs=pairs, storage_dtype="float16", corpus_sha256=tokens_sha256(corpus))
        write_table(folder / "corpus.parquet", corpus, config.corpus_sha256)
        write_study(folder, config)
        study = Study(folder)
        noise = rng.random((64, layers, neurons), dtype=np.float32).astype(np.float16)
        for number, blocks in enumerate(tqdm(shards_of(study.corpus), desc="parts", file=sys.stderr)):
            ids = shard_ids(blocks)
            part = Part(
                ids,
                {
                    "activations": noise[rng.integers(0, 64, len(ids))]
                    * rng.random((len(ids), 1, 1), dtype=np.float32).astype(np.float16),
                    **{
                        name: rng.random(len(ids)) * 10
                        for name in ("surprisal_bits", "entropy_bits", "previous_surprisal_bits")
                    },
                    "target_id": np.zeros(len(ids), np.int64),
                },
            )
            write_part(part_path(study, number), part, config.identity())
        norms_path(study).write_bytes(safetensors.numpy.save({"down_norms": np.ones((layers, neurons), np.float32)}))
        write_index(study)
        size = sum(path.stat().st_size for path in (folder / "activations").iterdir())
        value = {
            "pairs_a_group": pairs,
            "sequences": len(corpus),
            "layers": layers,
            "neurons": neurons,
            "gb": size / 1e9,
        }
        save("paper", value | in_own_process("analyse", "--study", str(folder)))


def analyse(folder: str) -> None:
    """In a process of its own: similarity and regression of a study that has its activations; a line of JSON."""
    from cladastats.regress import regress
    from cladastats.similarity import similarity

    study, value = Study(folder), {}
    for name, what in (
        ("cka", lambda: similarity(study, "cka")),
        ("cosine_centred", lambda: similarity(study, "cosine_centred")),
        ("regress", lambda: regress(study, "cka")),
    ):
        value[f"{name}_seconds"], value[f"{name}_peak_gb"] = measured(what)
        print(json.dumps(value), file=sys.stderr, flush=True)
    print(json.dumps(value))


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("hooks", "double", "paper", "stages", "analyse"))
    parser.add_argument("--study", help="of the last two, which the others call")
    parser.add_argument("--pairs", type=int, help="default: 4 of hooks, 2,000 of paper")
    parser.add_argument("--length", type=int, default=2048, help="of hooks")
    args = parser.parse_args()
    if args.what == "hooks":
        hooks(args.pairs or 4, args.length)
    elif args.what == "double":
        double()
    elif args.what == "paper":
        paper(args.pairs or 2000, 32, 11008)
    elif args.what == "stages":
        stages(args.study)
    else:
        analyse(args.study)


if __name__ == "__main__":
    main()
