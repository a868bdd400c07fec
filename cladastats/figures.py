"""Figures of a study: PNG to look at, PDF for a paper, readable in grey."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["figures", *sys.argv[1:]]))

import argparse
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from clada.errors import StudyError
from clada.jsonfile import replacing
from cladastats.study import Study

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
