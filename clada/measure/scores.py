"""Scores of methods on tasks, kept item by item, and compared with dense on the same items."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clada.errors import InputError
from clada.system.jsonfile import read_json, write_json

EVALUATION_SCHEMA = "clada/evaluation/2"  # another number where the same documents would be scored otherwise

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
        identity: what the scores depend on; a file of anything else is begun anew.
        documents: of the task.
        limit: how many of them count, at random; None for all.
        seed: which ones.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], documents: list[dict[str, Any]], limit: int | None, seed: int
    ) -> None:
        self.path, self.identity, self.documents, self.seed = path, identity, documents, seed
        # At random, as files keep an order in which like items come together; a smaller limit's are among a larger's.
        order = list(range(len(documents)))
        random.Random(seed).shuffle(order)
        self.sample = order[:limit]
        self.items: dict[int, dict[str, float]] = {}
        self.tokens, self.computed = 0, 0.0
        # What was cut off or altered is scored again.
        with contextlib.suppress(InputError, KeyError, AttributeError, TypeError, ValueError, OverflowError):
            if path.is_file():
                self._read(read_json(path, EVALUATION_SCHEMA))

    def _read(self, stored: dict[str, Any]) -> None:
        """Take over what a file holds, all of it or nothing."""
        if any(stored.get(key) != value for key, value in self.identity.items()):
            return
        items = {
            int(index): {metric: float(score) for metric, score in item.items()}
            for index, item in stored["items"].items()
        }
        if len({frozenset(item) for item in items.values()}) > 1:
            return
        tokens, computed = int(stored["sparse_tokens"]), float(stored["computed_tokens"])
        float(tokens)  # as large as a number of JSON may be
        self.items, self.tokens, self.computed = items, tokens, computed

    @property
    def missing(self) -> list[int]:
        """Indices of the documents that count and have no score yet, in the order they are drawn in."""
        return [index for index in self.sample if index not in self.items]

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
        write_json(self.path, {**self.identity, **sums, "items": kept})

    def result(self) -> dict[str, Any]:
        """What `compare` takes; the active share is that of all documents scored so far."""
        indices = sorted(self.sample)
        names = self.items[indices[0]]
        return {
            **self.identity,
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
        of_method = [result for result in results if result["method"] == method]
        compared = [_compare_task(result, dense[result["task"]]) for result in of_method]
        rows += [row for task in compared for row in task.rows]
        if len(of_method) > 1:
            rows.append(_mean_row(of_method, compared))
    return rows


class _Compared(NamedTuple):
    """A method on a task: its rows and, of the first metric, scores and draws."""

    rows: list[dict[str, Any]]
    scores: tuple[float, float, float]  # the method's, dense's, by chance
    draws: np.ndarray  # [DRAWS], differences to dense


def _compare_task(result: dict[str, Any], dense: dict[str, Any]) -> _Compared:
    """A method on a task, against dense on the same items."""
    task = result["task"]
    # Of its own for every task, the same for every method: the mean's draws are independent over tasks.
    rng = np.random.default_rng([result["seed"], int(digest_of(task)[:8], 16)])
    compared = []
    for metric, values in result["items"].items():
        scores, reference = np.array(values), np.array(dense["items"][metric])
        sampled = rng.integers(0, len(scores), (DRAWS, len(scores)))
        draws = (scores - reference)[sampled].mean(1)
        value, dense_value, chance = float(scores.mean()), float(reference.mean()), CHANCE.get(task, 0.0)
        row = {
            "method": result["method"],
            "task": task,
            "metric": metric,
            "value": value,
            "stderr": float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None,
            "n": len(scores),
            **_difference(value - dense_value, draws),
            "kept_above_chance": _kept(value, dense_value, chance),
            "active_fraction": result["active_fraction"],
            "seed": result["seed"],
        }
        compared.append(_Compared([row], (value, dense_value, chance), draws))
    return compared[0]._replace(rows=[row for metric in compared for row in metric.rows])


def _mean_row(results: list[dict[str, Any]], compared: list[_Compared]) -> dict[str, Any]:
    """The mean over a method's tasks."""
    value, dense_value, _ = (float(v) for v in np.mean([task.scores for task in compared], 0))
    above_chance = [task.scores for task in compared if task.scores[1] > task.scores[2]]
    return {
        "method": results[0]["method"],
        "task": "mean",
        "metric": "first of each task",
        "value": value,
        "stderr": None,
        "n": sum(len(result["indices"]) for result in results),
        **_difference(value - dense_value, np.mean([task.draws for task in compared], 0)),
        "kept_above_chance": _kept(*np.mean(above_chance, 0)) if above_chance else None,
        "active_fraction": float(np.mean([result["active_fraction"] for result in results])),
        "seed": results[0]["seed"],
    }


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
    table = pd.DataFrame(cells, columns=list(HEADERS[: len(cells[0])]))
    if fmt == "csv":
        return table.to_csv(index=False)
    style = {"markdown": "github", "latex": "latex_booktabs"}[fmt]
    return str(table.to_markdown(index=False, tablefmt=style, disable_numparse=True))
