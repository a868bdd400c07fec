"""Figures of the engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from clada.errors import InputError
from clada.methods.coefficients import Coefficients
from clada.system.files import replacing


def check_format(path: Path) -> None:
    """Refuse a figure's name before the work that it shows.

    Raises:
        InputError: no format that matplotlib writes.
    """
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise InputError(f"cannot draw {path.name}: '{path.suffix}' is no format of figures; use {', '.join(known)}")


def load_figure(results: list[dict[str, Any]], coefficients: Coefficients) -> Figure:
    """Surprisal and entropy of generated tokens with their load thresholds, one column per prompt.

    Args:
        results: of `clada.generate.generate`; the first four are drawn.
        coefficients: with the thresholds; those that are None are left out.
    """
    shown = results[:4]
    figure = Figure(figsize=(1.5 + 4.5 * len(shown), 4.5))
    axes = figure.subplots(2, len(shown), sharex="col", sharey="row", squeeze=False)
    rows = (
        ("surprisal_bits", "surprisal (bits)", coefficients.tau_surprisal_bits, "load_surprisal"),
        ("entropy_bits", "entropy (bits)", coefficients.tau_entropy_bits, "load_entropy"),
    )
    for column, result in enumerate(shown):
        for row, (name, label, limit, flag) in enumerate(rows):
            axis, steps = axes[row, column], result["steps"]
            values = [step[name] for step in steps]
            axis.plot(values, color="0.4", linewidth=0.8)
            under = [i for i, step in enumerate(steps) if step[flag]]
            axis.plot(under, [values[i] for i in under], "k.", markersize=4, label="under load")
            if limit is not None and math.isfinite(limit):
                axis.axhline(limit, color="k", linestyle="--", linewidth=0.8, label="threshold")
            if column == 0:
                axis.set_ylabel(label)
        axes[1, column].set_xlabel("generated token")
        if len(shown) > 1:
            axes[0, column].set_title(f"prompt {column}", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", fontsize=8, ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    return figure


def plot_load(results: list[dict[str, Any]], coefficients: Coefficients, path: Path) -> None:
    """Write `load_figure` to a file.

    Args:
        results: of `clada.generate.generate`.
        coefficients: with the thresholds.
        path: the file, of any format matplotlib writes.
    """
    with replacing(path) as temporary:
        load_figure(results, coefficients).savefig(temporary, format=path.suffix[1:] or "png")


def plot_pareto(result: dict[str, Any], path: Path) -> None:
    """Draw speed against loss: a point per method, dense engines as lines.

    Args:
        result: of `clada bench`, with losses.
        path: the file, of any format matplotlib writes.
    """
    figure, axis = plt.subplots(figsize=(5.5, 4))
    for row in result["rows"]:
        if "ppl_rise" not in row:
            continue
        rise = 100 * row["ppl_rise"]
        low, high = (abs(100 * limit - rise) for limit in row["ppl_rise_ci"])
        axis.errorbar(rise, row["tokens_per_s"], xerr=[[low], [high]], fmt="ko", markersize=4, capsize=2, linewidth=0.8)
        axis.annotate(row["method"], (rise, row["tokens_per_s"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    for peer in result["peers"]:
        axis.axhline(peer["tokens_per_s"], color="0.6", linestyle="--", linewidth=0.8)
        axis.annotate(
            f"{peer['name']} {peer['dtype']}", (1, peer["tokens_per_s"]), xycoords=("axes fraction", "data"),
            xytext=(-4, 2), textcoords="offset points", ha="right", fontsize=7, color="0.4",
        )  # fmt: skip
    axis.set_xlabel("rise of perplexity over dense (%)")
    axis.set_ylabel("tokens/s")
    axis.set_title(f"{result['model']}, {result['dtype']}", fontsize=9)
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png")
    plt.close(figure)
