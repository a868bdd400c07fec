"""Extraction killed at random moments, again and again: is anything lost, or there twice?

    python benchmarks/kills.py                 # 50 kills, a quarter of an hour

A small study is extracted once, undisturbed. Then the same is extracted by processes that are killed (SIGKILL, with all
their workers) after a random time, in turn by themselves, on two local workers, and as one of two pieces, until 50 were
killed; every finished part must stay, bit for bit. When nothing is missing before that, the parts are deleted and it
begins anew. A line per kill goes to `benchmarks/results/kills.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from stored import write_lines

WAYS = ([], ["--cluster", "local:2"], ["--shard", "1/2"], ["--shard", "2/2"])
SECONDS = (1.0, 25.0)  # from before the libraries are loaded until after the last part of most runs


def command(*arguments: str) -> list[str]:
    """A stage, as a user would run it."""
    return [sys.executable, "-m", "cladastats", *arguments]


def parts(study: Path) -> dict[str, bytes]:
    """What is there, by name: finished parts, and nothing that looks like one."""
    return {path.name: path.read_bytes() for path in (study / "activations").glob("part-*")}


def killed(study: Path, options: list[str], seconds: float) -> bool:
    """Run an extraction and kill it and its children after some time; whether it was still running."""
    running = subprocess.Popen(
        command("extract", "--study", str(study), *options), stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return True
    return False


def main() -> None:
    """Kill, compare, and at the end finish and compare all that a study gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, lines = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as place:
        whole, study = Path(place) / "whole", Path(place) / "study"
        corpus = command("corpus", "--study", str(whole), "--pairs", "24", "--length", "256", "--seed", "1")
        subprocess.run([*corpus, "--threads", "1"], check=True)
        shutil.copytree(whole, study)
        subprocess.run(command("extract", "--study", str(whole)), check=True)
        expected, before = parts(whole), {}
        while sum(line["killed"] for line in lines) < args.kills:
            options, seconds = WAYS[len(lines) % len(WAYS)], rng.uniform(*SECONDS)
            line: dict[str, Any] = {"options": options, "seconds": round(seconds, 2)}
            line["killed"] = killed(study, options, seconds)
            found = parts(study)
            assert found.keys() >= before.keys(), "a finished part is gone"
            assert all(expected[name] == content for name, content in found.items()), "a part has other bits"
            line |= {"parts_before": len(before), "parts": len(found), "of": len(expected)}
            lines.append(line)
            print(json.dumps(line), flush=True)
            before = found
            if len(found) == len(expected):
                shutil.rmtree(study / "activations")
                before = {}
        subprocess.run(command("extract", "--study", str(study)), check=True)
        subprocess.run(command("merge", "--study", str(study), "--verify"), check=True)
        assert parts(study) == expected
        index = [(folder / "activations" / "index.parquet").read_bytes() for folder in (whole, study)]
        assert index[0] == index[1]
    write_lines("kills.jsonl", lines)
    print(f"{args.kills} kills: nothing lost, nothing twice, the same bits")


if __name__ == "__main__":
    main()
