"""Results of `clada bench` that are kept in `benchmarks/results`, so that an interrupted measurement goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent.parent / "figures"


def bench(name: str, text: str | None, options: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The result of that name, measured now with `clada bench OPTIONS` where it is not there.

    Args:
        name: of the file, without its ending.
        text: what to decode, as `clada bench` takes it; None: stop where something is missing.
        options: the command's others.
        folder: of the file.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        if text is None:
            raise SystemExit(f"no {path}; give --text to measure it")
        command = [sys.executable, "-m", "clada.bench", "--text", text, "--coefficients", "none", "--json"]
        done = subprocess.run([*command, *options.split()], stdout=subprocess.PIPE, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(done.stdout)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write_lines(name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Write a JSONL file of results."""
    (RESULTS / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def put(name: str, lines: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Add lines to a JSONL file of results, in the place of those that are the same in these keys."""
    path = RESULTS / name
    kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    write_lines(name, [*{tuple(line[key] for key in keys): line for line in [*kept, *lines]}.values()])


def save(figure: Any, name: str) -> None:
    """Write a figure as PNG and PDF."""
    figure.tight_layout()
    figure.savefig(FIGURES / f"{name}.png", dpi=200)
    figure.savefig(FIGURES / f"{name}.pdf", metadata={"CreationDate": None})  # the same results give the same bytes
