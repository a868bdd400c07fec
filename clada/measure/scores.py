"""Scores of methods on tasks, kept item by item, and compared with dense on the same items."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from clada.errors import InputError
from clada.system.jsonfile import read_json, write_json

SCHEMA = "clada/evaluation/2"  # another number where the same documents would be scored otherwise

# What blind guessing gets: accuracy above it is what a method can lose.
CHANCE = {"hellaswag": 0.25, "piqa": 0.5, "copa": 0.5, "arc_challenge": 0.25, "boolq": 0.5}

DRAWS = 10_000

HEADERS = (
    "method", "task", "metric", "value", "stderr", "n", "to dense", "95 %", "kept above chance", "neurons", "speed"
)  # fmt: skip


def digest_of(value: Any) -> str:
    """SHA-256 of a value, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Scores:
    """Scores of one method on one task, in a file that grows.

    Args:
        path: the file.
        wanted: what the scores depend on; a file of anything else is begun anew.
        documents: of the task.
        limit: how many of them count, at random; None for all.
        seed: which ones.
    """

    def __init__(
        self, path: Path, wanted: dict[str, Any], documents: list[dict[str, Any]], limit: int | None, seed: int
    ) -> None:
        self.path, self.wanted, self.documents, self.seed = path, wanted, documents, seed
        # At random, as files keep an order in which like items come together; a smaller limit's are among a larger's.
        order = list(range(len(documents)))
        random.Random(seed).shuffle(order)
        self.chosen = order[:limit]
        self.items: dict[int, dict[str, float]] = {}
        self.tokens, self.computed = 0, 0.0
        try:
            found = read_json(path, SCHEMA) if path.is_file() else {}
            if all(found.get(key) == value for key, value in wanted.items()):
                items = {
                    int(index): {metric: float(score) for metric, score in item.items()}
                    for index, item in found["items"].items()
                }
                if len({frozenset(item) for item in items.values()}) > 1:
                    raise ValueError
                tokens, computed = int(found["sparse_tokens"]), float(found["computed_tokens"])
                float(tokens)
                self.tokens, self.computed = tokens, computed
                self.items = items
        except (InputError, KeyError, AttributeError, TypeError, ValueError, OverflowError):
            pass  # cut off or altered: done again

    @property
    def missing(self) -> list[int]:
        """Indices of the documents that count and have no score yet, in the order they are drawn in."""
        return [index for index in self.chosen if index not in self.items]

    def add(self, items: dict[int, dict[str, float]], tokens: int, computed: float) -> None:
        """Add scores, and write the file.

        Args:
            items: by index of the document, its score in every metric.
            tokens: that ran sparse for them.
            computed: neurons that these computed, in tokens' worth of all.
        """
        self.items |= items
        self.tokens, self.computed = self.tokens + tokens, self.computed + computed
        kept = {str(index): self.items[index] for index in sorted(self.items)}
        sums = {"sparse_tokens": self.tokens, "computed_tokens": self.computed}
        write_json(self.path, {**self.wanted, **sums, "items": kept})

    def result(self) -> dict[str, Any]:
        """What `compare` takes; the active share is that of all documents scored so far."""
        indices = sorted(self.chosen)
        names = self.items[indices[0]]
        return {
            **self.wanted,
            "seed": self.seed,
            "indices": indices,
            "items": {name: [self.items[index][name] for index in indices] for name in names},
            "active_fraction": self.computed / self.tokens if self.tokens else 1.0,
        }


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per method, task and metric, with the difference to dense on the same items, and the mean over tasks.

    Args:
        results: of each method and task: `items`, a list of scores by metric, and `indices`.

    Returns:
        records: method, task, metric, value, stderr, n, diff_to_dense, diff_ci (95 %, paired bootstrap),
        kept_above_chance (share of dense's value above blind guessing), active_fraction, seed. Task `mean` is of the
        first metric of every task, its interval from resampling the items of each; above chance only of tasks where
        dense is.
    """
    dense = {result["task"]: result for result in results if result["method"] == "dense"}
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        draws, references = [], []
        for result in own:
            task = result["task"]
            # Of its own for every task, the same for every method: the mean's draws are independent over tasks.
            rng = np.random.default_rng([result["seed"], int(digest_of(task)[:8], 16)])
            for place, (metric, values) in enumerate(result["items"].items()):
                scores, reference = np.array(values), np.array(dense[task]["items"][metric])
                sampled = rng.integers(0, len(scores), (DRAWS, len(scores)))
                difference = (scores - reference)[sampled].mean(1)
                value, wanted, chance = float(scores.mean()), float(reference.mean()), CHANCE.get(task, 0.0)
                row: dict[str, Any] = {
                    "method": method,
                    "task": task,
                    "metric": metric,
                    "value": value,
                    "stderr": float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None,
                    "n": len(scores),
                    **_difference(value - wanted, difference),
                    "kept_above_chance": _kept(value, wanted, chance),
                    "active_fraction": result["active_fraction"],
                    "seed": result["seed"],
                }
                rows.append(row)
                if place == 0:
                    draws.append(difference)
                    references.append((value, wanted, chance))
        if len(own) > 1:
            value, wanted, _ = (float(v) for v in np.mean(references, 0))
            able = [reference for reference in references if reference[1] > reference[2]]
            rows.append(
                {
                    "method": method,
                    "task": "mean",
                    "metric": "first of each task",
                    "value": value,
                    "stderr": None,
                    "n": sum(len(result["indices"]) for result in own),
                    **_difference(value - wanted, np.mean(draws, 0)),
                    "kept_above_chance": _kept(*np.mean(able, 0)) if able else None,
                    "active_fraction": float(np.mean([result["active_fraction"] for result in own])),
                    "seed": own[0]["seed"],
                }
            )
    return rows


def _difference(value: float, draws: np.ndarray) -> dict[str, Any]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"diff_to_dense": float(value), "diff_ci": [float(low), float(high)]}


def _kept(value: float, reference: float, chance: float) -> float | None:
    """Share of the reference's score above chance; None where the reference has none."""
    return float((value - chance) / (reference - chance)) if reference > chance else None


def format_speed(ratio: float | None) -> str:
    """Of a method over dense; empty where it has none."""
    return "" if ratio is None else f"{ratio:.2f}"


def as_table(rows: list[dict[str, Any]], fmt: str) -> str:
    """The rows as `markdown`, `latex` or `csv`."""
    cells = [
        [
            row["method"],
            row["task"],
            row["metric"],
            f"{row['value']:.4f}",
            "" if row["stderr"] is None else f"{row['stderr']:.4f}",
            row["n"],
            f"{row['diff_to_dense']:+.4f}",
            f"{row['diff_ci'][0]:+.4f} to {row['diff_ci'][1]:+.4f}",
            "" if row["kept_above_chance"] is None else f"{row['kept_above_chance']:.1%}",
            f"{row['active_fraction']:.0%}",
            *([] if "speed_to_dense" not in row else [format_speed(row["speed_to_dense"])]),
        ]
        for row in rows
    ]
    headers = list(HEADERS[: len(cells[0])])
    if fmt == "csv":
        return pd.DataFrame(cells, columns=headers).to_csv(index=False)
    style = {"markdown": "github", "latex": "latex_booktabs"}[fmt]
    return tabulate(cells, headers, tablefmt=style, disable_numparse=True)
