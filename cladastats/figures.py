"""Figures of a study: PNG to look at, PDF for a paper, readable in grey."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["figures", *sys.argv[1:]]))

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from clada.errors import StudyError
from clada.system.files import replacing
from cladastats.results.fit import LABELS
from cladastats.study import Study

if TYPE_CHECKING:
    from cladastats.panel.case_study import CaseStudy
    from cladastats.results.fit import Fit

RESPONSE_LABELS = {
    "shift_toward": "shift toward B",
    "shift_matched": "shift toward B*",
    "sim_hb": "similarity of A' and B",
    "sim_ha": "similarity of A' and A",
}

GROUP_LABELS = {"nls": "natural (NLS)", "rts": "random words (RTS)"}


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        StudyError: the study has no panel to draw.
    """
    study = Study(args.study)
    for path in draw(study):
        print(f"cladastats: {path}", file=sys.stderr)


def draw(study: Study) -> list[Path]:
    """Draw every pooled panel of a study against prefix length.

    Returns:
        the files written below `figures/`.

    Raises:
        StudyError: no panel is there.
    """
    if "placebos" in study.config.corpus:
        raise StudyError(
            f"{study.folder} holds hybrids of several kinds, which 'cladastats regress --robust' of its study shows"
        )
    names = [p.stem.removeprefix("panel-") for p in sorted(study.folder.glob("panel-*.parquet"))]
    metrics = [name for name in names if not name.startswith("layers-")]
    if not metrics:
        raise StudyError(f"{study.folder} has no panel to draw; run 'cladastats similarity --study {study.folder}'")
    written = []
    for metric in metrics:
        figure = prefix_figure(study.panel(metric), metric)
        for suffix in ("png", "pdf"):
            path = study.folder / "figures" / f"prefix-{metric}.{suffix}"
            with replacing(path) as temporary:
                # Without the date the same panel gives the same bytes.
                metadata = {"CreationDate": None} if suffix == "pdf" else None
                figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)
            written.append(path)
    return written


def coefficient_figure(fits: Mapping[str, Fit]) -> Figure:
    """Coefficients with 95 % intervals, in within-pair standard deviations, so that terms and metrics share an axis.

    Args:
        fits: by name; columns 1 and 2 give the prefix's total effect, 5 and 6 the loads'.
    """
    # The prefix's total effect is that of columns 1 and 2, the loads' that of the full columns.
    shown = [[(term, first), (term, first + 1)] for term, first in zip(LABELS, (1, 5, 5), strict=True)]
    figure = Figure(figsize=(3.5, 0.9 + 0.35 * 2 * len(fits) * 1.5), layout="constrained")
    axis = figure.subplots()
    labels, place = [], 0.0
    for terms in shown:
        for name, fit in fits.items():
            columns = {column.column: column for column in fit.columns}
            for term, number in terms:
                if number not in columns:
                    continue
                column = columns[number]
                scale = column.standardised[term] / column.coef[term] if column.coef[term] else 0.0
                low, high = (bound * scale for bound in column.ci[term])
                value = column.standardised[term]
                natural = column.group == "nls"
                axis.errorbar(
                    value, place, xerr=[[value - low], [high - value]], fmt="o" if natural else "s",
                    color="black" if natural else "0.55", markersize=3.5, linewidth=1, capsize=2,
                )  # fmt: skip
                labels.append((place, f"{LABELS[term].split(' (')[0]}, {column.group.upper()}, {name}"))
                place -= 1
        place -= 0.6
    axis.axvline(0, color="0.7", linewidth=0.8)
    axis.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=7)
    axis.set_xlabel("effect (within-pair standard deviations)", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    sns.despine(ax=axis)
    return figure


def layer_figure(fit: Fit) -> Figure:
    """The prefix's and the loads' coefficients by layer with 95 % intervals; filled where they survive correction.

    Args:
        fit: with robustness checks.

    Raises:
        StudyError: it has none.
    """
    records = pd.DataFrame(fit.robustness.get("layers", []))
    if records.empty:
        raise StudyError(
            f"the fit of {fit.metric} has no layers; run 'cladastats regress --metric {fit.metric} --robust'"
        )
    figure = Figure(figsize=(7.0, 2.4), layout="constrained")
    for axis, term in zip(figure.subplots(1, 3), LABELS, strict=True):
        for group, shade, marker in (("nls", "black", "o"), ("rts", "0.55", "s")):
            rows = records[(records["term"] == term) & (records["group"] == group)]
            if rows.empty:
                continue
            low, high = np.array(rows["ci"].tolist()).T
            errors = [rows["coef"] - low, high - rows["coef"]]
            axis.errorbar(rows["layer"], rows["coef"], errors, fmt="-", color=shade, linewidth=0.7)
            clear = rows["p_bh"] < 0.05
            for part, fill in ((rows[clear], shade), (rows[~clear], "white")):
                axis.plot(part["layer"], part["coef"], marker, color=shade, markerfacecolor=fill, markersize=3.5)
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set_title(LABELS[term], fontsize=8)
        axis.set_xlabel("layer", fontsize=8)
        axis.tick_params(labelsize=7)
        sns.despine(ax=axis)
    return figure


def case_figure(study: CaseStudy) -> Figure:
    """Similarity of the 13 sentences' activations, mean over layers (the paper's Fig. 7).

    Args:
        study: of `cladastats.panel.case_study.case_study`.
    """
    figure = Figure(figsize=(3.5, 3.1), layout="constrained")
    axis = figure.subplots()
    labels = range(1, len(study.similarity) + 1)
    sns.heatmap(
        study.similarity, cmap="Greys", vmin=0, vmax=1, xticklabels=labels, yticklabels=labels, square=True,
        annot=True, fmt=".2f", annot_kws={"fontsize": 4}, cbar_kws={"shrink": 0.8}, ax=axis,
    )  # fmt: skip
    axis.tick_params(labelsize=7)
    axis.set(xlabel="sample", ylabel="sample")
    return figure


def activation_figure(maps: Mapping[str, np.ndarray], prefix: int) -> Figure:
    """Activations of one layer at every token (the paper's Figs. 4 to 6): log magnitude, neurons across, tokens down.

    Args:
        maps: [tokens, neurons] by name, of `cladastats.panel.case_study.activation_maps`.
        prefix: tokens of B at the start of A'; a line marks their end.
    """
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    axes = figure.subplots(1, len(maps), sharey=True)
    size = {name: np.log10(np.abs(values) + 1e-3) for name, values in maps.items()}
    low, high = np.quantile(np.stack(list(size.values())), [0.02, 0.998])
    for axis, (name, values) in zip(axes, size.items(), strict=True):
        image = axis.imshow(
            values, aspect="auto", cmap="Greys", vmin=low, vmax=high, interpolation="antialiased", rasterized=True
        )
        if name == "A'":
            axis.axhline(prefix - 0.5, color="black", linestyle="--", linewidth=0.8)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("neuron", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("token", fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("log10 |activation|", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def gain_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each predictor adds to the prediction of reading times and brain responses, with 95 % intervals.

    Args:
        tables: of `cladastats.people.results.effect_table`, by model.
    """
    first = next(iter(tables.values()))
    measures = list(dict.fromkeys(zip(first["corpus"], first["measure"], strict=True)))
    figure = Figure(figsize=(7.0, 0.8 + 0.27 * len(measures)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    looks = (("black", "o"), ("0.55", "s"), ("0.3", "^"), ("0.7", "D"))
    for axis, predictor in zip(axes, ("surprisal", "entropy", "effort"), strict=True):
        for number, (model, table) in enumerate(tables.items()):
            rows = table[table["predictor"] == predictor].set_index(["corpus", "measure"]).reindex(measures)
            place = -np.arange(len(measures)) - 0.28 * (number - (len(tables) - 1) / 2)
            value, low, high = (1000 * rows[name].to_numpy(float) for name in ("delta_ll", "ci_low", "ci_high"))
            shade, marker = looks[number % len(looks)]
            clear = rows["p_holm"].to_numpy(float) < 0.05
            axis.errorbar(value, place, xerr=[value - low, high - value], fmt="none", color=shade, linewidth=0.8)
            axis.scatter(value, place, 12, np.where(clear, shade, "white"), marker, edgecolors=shade, label=model)
        axis.axvline(0, color="0.7", linewidth=0.8)
        axis.set_title(predictor, fontsize=8)
        axis.set_xlabel("gain (nats per 1,000 words)", fontsize=8)
        axis.set_yticks(-np.arange(len(measures)), [f"{corpus} {measure}" for corpus, measure in measures], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        sns.despine(ax=axis)
    axes[0].legend(frameon=False, fontsize=6, loc="lower right")
    return figure


def gain_layers_figure(results: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """What the effort of each layer alone adds, a line per model, a panel per confirmatory measure.

    Args:
        results: of `cladastats.people.results.read_results`, by model.
    """
    first = next(iter(results.values()))
    measures = [(r["corpus"], m["measure"]) for r in first for m in r["measures"] if m["confirmatory"]]
    rows = -(-len(measures) // 4)
    figure = Figure(figsize=(7.0, 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat[len(measures) :]:
        axis.set_visible(False)
    for axis, (corpus, measure) in zip(axes.flat, measures, strict=False):
        for number, (model, corpora) in enumerate(results.items()):
            layers = next(
                m["layers"] for r in corpora if r["corpus"] == corpus for m in r["measures"] if m["measure"] == measure
            )
            if not layers:  # words without effort
                continue
            depth = np.arange(len(layers)) / max(1, len(layers) - 1)
            value, low, high = (
                1000 * np.array([layer[name] for layer in layers]) for name in ("delta_ll", "ci_low", "ci_high")
            )
            shade = ("black", "0.55", "0.3", "0.7")[number % 4]
            axis.plot(depth, value, ("-", "--", ":", "-.")[number % 4], color=shade, linewidth=1, label=model)
            axis.fill_between(depth, low, high, color=shade, alpha=0.15, linewidth=0)
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.set_title(f"{corpus} {measure}", fontsize=6)
        axis.tick_params(labelsize=6)
        sns.despine(ax=axis)
    axes.flat[0].legend(frameon=False, fontsize=5)
    figure.supxlabel("depth (first to last layer)", fontsize=8)
    figure.supylabel("gain (nats per 1,000 words)", fontsize=8)
    return figure


def prefix_figure(panel: pd.DataFrame, metric: str) -> Figure:
    """Responses and similarities against prefix length, means with 95 % bootstrap intervals over pairs, per group.

    Args:
        panel: a pooled panel.
        metric: its name, for the axis.
    """
    figure = Figure(figsize=(7.0, 4.8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    with sns.plotting_context("paper"), sns.axes_style("ticks"):
        shown = panel.assign(group=panel["group"].map(GROUP_LABELS))
        for axis, (column, label) in zip(axes.flat, RESPONSE_LABELS.items(), strict=True):
            sns.pointplot(
                shown,
                x="prefix_len",
                y=column,
                hue="group",
                hue_order=list(GROUP_LABELS.values()),
                palette=["black", "0.55"],
                markers=["o", "s"],
                linestyles=["-", "--"],
                native_scale=True,
                dodge=0.15,  # side by side, so that one group's interval does not hide the other's
                errorbar=("ci", 95),
                err_kws={"linewidth": 1},
                linewidth=1.2,
                seed=0,
                ax=axis,
                legend=axis is axes.flat[0],
            )
            axis.set(
                xlabel="prefix of B (tokens)", ylabel=f"{label} ({metric})", xticks=sorted(panel["prefix_len"].unique())
            )
            sns.despine(ax=axis)
        axes.flat[0].legend(title=None, frameon=False)
    return figure
