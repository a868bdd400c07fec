"""Figures of a study: PNG to look at, PDF for a paper; for a journal's page or column, and for grey print."""

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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from scipy import stats

from clada.errors import InputError, StudyError
from clada.system.files import replacing
from cladastats.panel.overview import responses_by_ratio
from cladastats.people.description import described
from cladastats.results.labels import GROUP_LABELS, metric_label
from cladastats.results.plots import GROUP_LOOKS, LOOKS, PAGE, SMALL, Look, explain, finish, in_style, key, magnified
from cladastats.results.verdicts import SIGNIFICANCE
from cladastats.study import Study

if TYPE_CHECKING:
    from cladastats.panel.case_study import CaseStudy
    from cladastats.results.fit import Fit

SHIFTS = {"shift_toward": ("toward B", "B"), "shift_matched": ("toward B*", "B*")}
"""Responses that are 0 where the prefix changes nothing: panel column, title, and the text that A' acts like at 1."""

RESPONSE_WORDS = {
    "toward": "the shift toward B",
    "matched": "the shift toward B* (B with A's last word)",
    "away": "the distance from A",
    "raw": "the similarity to B",
}
"""What a fit explains."""

SIMILARITIES = {"sim_ha": "A' and A", "sim_hb": "A' and B"}
"""Panel column of each similarity that is drawn, and of which texts it is."""

WHAT_IS_WHAT = "A': text A with the beginning of text B.   B*: text B with the last word of A."

LOWEST = -0.5
"""Where population CKA is cut: below 0 it says that texts are unrelated, however far."""

TERM_TITLES = {
    "prefix_len": "longer beginning from B",
    "surprisal_norm": "surprisal of the last word",
    "entropy_norm": "entropy before the last word",
}
"""What the coefficients of a fit are of."""

LAYER_NOTE = (
    "Change for 1,000 tokens more from B, or for surprisal or entropy higher by log2 of the vocabulary.\n"
    "Bars: 95 % intervals.   Filled: different from 0 at 5 % after correction over the layers"
)

GAIN_NOTE = "Bars: 95 % intervals.   Filled: different from 0 at 5 % after correction over the measures"


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        StudyError: the study has no panel to draw.
    """
    study = Study(args.study)
    for path in draw(study):
        print(f"cladastats: {path}", file=sys.stderr)


def draw(study: Study) -> list[Path]:
    """Draw every pooled panel of a study against prefix length, and population CKA by layer where it was computed.

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
    panels = {name: study.panel(name) for name in names if not name.startswith("layers-")}
    if not panels:
        raise StudyError(f"{study.folder} has no panel to draw; run 'cladastats similarity --study {study.folder}'")
    written = []
    for metric, panel in panels.items():
        trimmed = panels.get("cka_trimmed") if metric == "cka" else None
        written += save(prefix_figure(panel, metric, trimmed), study.folder / "figures" / f"prefix-{metric}")
    if (study.folder / "population-cka.parquet").exists():
        population = study.table("population-cka.parquet", "similarity --estimator population")
        written += save(population_figure(population), study.folder / "figures" / "population-cka")
    return written


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and PDF; the same figure gives the same bytes.

    Args:
        figure: any.
        path: without a suffix.

    Returns:
        the two files.
    """
    files = []
    for suffix in ("png", "pdf"):
        file = path.with_name(f"{path.name}.{suffix}")
        with replacing(file) as temporary:
            metadata = {"CreationDate": None} if suffix == "pdf" else None
            figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)
        files.append(file)
    return files


@in_style
def prefix_figure(panel: pd.DataFrame, metric: str, trimmed: pd.DataFrame | None = None) -> Figure:
    """Responses and similarities against prefix length, for each group.

    Means, their 95 % intervals and medians are those of `cladastats.panel.overview.responses_by_ratio`. Responses are
    drawn on an axis that reaches 1 and once more magnified, there with their medians, which single
    huge responses do not move.

    Args:
        panel: a pooled panel.
        metric: its name, for the title.
        trimmed: of the metric `cka`, the panel without the neurons of massive activity, for a further row.
    """
    forms = [panel, panel] if trimmed is None else [panel, panel, trimmed]
    figure = Figure(figsize=(PAGE, 1.1 + 1.5 * len(forms)), layout="constrained")
    axes = figure.subplots(len(forms), 3, sharex=True)
    for row, form in enumerate(forms):
        for axis, (column, (title, end)) in zip(axes[row], SHIFTS.items(), strict=False):
            drawn = _means(axis, form, column, medians=row > 0)
            if row == 0:
                axis.set_title(f"shift {title}")
                axis.set_ylim(min([-0.08, *drawn]), max([1.08, *drawn]))
                axis.set_yticks([0, 0.5, 1], ["0: no change", "0.5", f"1: acts like {end}"])
                axis.axhline(1, color="0.75", linewidth=0.6, zorder=0)
            else:
                magnified(axis, drawn, 1.16)
    for axis, (column, texts), form in zip(axes[:, 2], SIMILARITIES.items(), forms, strict=False):
        _means(axis, form, column)
        axis.set_title(f"similarity of {texts}", fontsize=SMALL)
        axis.set(ylim=(min(-0.05, form[column].min()), 1.05), yticks=[0, 0.5, 1])
    if trimmed is not None:
        _means(axes[2, 2], trimmed, "sim_hb")
        axes[2, 2].set_title("similarity of A' and B", fontsize=SMALL)
        axes[2, 2].set(ylim=(min(-0.05, trimmed["sim_hb"].min()), 1.05), yticks=[0, 0.5, 1])
        axes[2, 0].set_ylabel("without neurons of\nmassive activity")
    axes[0, 0].set_ylabel("whole scale")
    axes[1, 0].set_ylabel("the same values")
    length = int(panel["token_len"].iloc[0])
    axes[0, 0].set(xlim=(0, 1.03 * length), xticks=np.linspace(0, length, 5).round())
    axes[-1, 1].set_xlabel("tokens at the beginning of A' that come from B")
    figure.suptitle(f"Do activations at the last word follow the beginning?  Measure: {metric_label(metric)}")
    means = [key(look, f"{GROUP_LABELS[group]}: mean, 95 % interval") for group, look in GROUP_LOOKS.items()]
    medians = [
        key(look, "median", linestyle=":", markerfacecolor="white", linewidth=0.7) for look in GROUP_LOOKS.values()
    ]
    explain(figure, [*means, *medians], WHAT_IS_WHAT, 2)
    return figure


def _means(axis: Axes, panel: pd.DataFrame, column: str, *, medians: bool = False) -> list[float]:
    """Draw a column's means with intervals, and its medians; returns what is drawn, ends of intervals included."""
    table = responses_by_ratio(panel, column)
    shown = ["mean", "ci_low", "ci_high", *(["median"] if medians else [])]
    for group, look in GROUP_LOOKS.items():
        rows = table[table["group"] == group]
        # Side by side, so that one group's interval does not hide the other's.
        place = rows["prefix_len"] + panel["token_len"].iloc[0] / (150 if group == "rts" else -150)
        errors = [rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]]
        axis.errorbar(place, rows["mean"], errors, color=look.color, marker=look.marker, linestyle=look.line)
        if medians:
            axis.plot(
                place, rows["median"], ":", color=look.color, marker=look.marker, markerfacecolor="white", linewidth=0.7
            )  # fmt: skip
    finish(axis)
    drawn = table[shown].to_numpy(dtype=float).ravel()
    return drawn[np.isfinite(drawn)].tolist()  # one pair has no interval


@in_style
def population_figure(population: pd.DataFrame) -> Figure:
    """CKA over pairs by layer: of A' and A, and of A' and B beside that of A and B, a line for each prefix share.

    Intervals of 95 % are from the jackknife over pairs and Student's t.

    Args:
        population: `population-cka.parquet`, of `cladastats similarity --estimator population`.
    """
    groups = [group for group in GROUP_LABELS if (population["group"] == group).any()]
    figure = Figure(figsize=(PAGE, 5.0), layout="constrained")
    axes = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False)
    ratios = sorted(population["ratio"].unique())
    for axis, group in zip(axes.T, groups, strict=True):
        rows = population[population["group"] == group]
        reference = rows[(rows["comparison"] == "ab") & (rows["ratio"] == ratios[0])]  # the same at every ratio
        for part, comparison in zip(axis, ("ha", "hb"), strict=True):
            if comparison == "hb":
                value, half = _jackknife(reference)
                part.fill_between(reference["layer"], value - half, value + half, color="0.88", linewidth=0)
                part.plot(reference["layer"], value, color="0.65", linewidth=2.5)
            for number, ratio in enumerate(ratios):
                line = rows[(rows["comparison"] == comparison) & (rows["ratio"] == ratio)]
                value, half = _jackknife(line)
                look = LOOKS[number % len(LOOKS)]
                part.errorbar(
                    line["layer"] + 0.15 * (number - (len(ratios) - 1) / 2), value, half, color=look.color,
                    linestyle=look.line, marker=look.marker, markersize=2.5, elinewidth=0.5,
                )  # fmt: skip
            finish(part)
            part.axhline(1, color="0.75", linewidth=0.6, zorder=0)
        axis[0].set_title(f"{GROUP_LABELS[group]}, {rows['n_pairs'].iloc[0]} pairs")
        axis[1].set_xlabel("layer")
        axis[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for part, texts in zip(axes[:, 0], ("A' and A", "A' and B"), strict=True):
        low, _ = part.get_ylim()
        part.set_ylim(min(-0.1, max(low, LOWEST)), 1.1)
        part.set_ylabel(f"similarity of {texts}")
        part.set_yticks([0, 0.5, 1], ["0: unrelated", "0.5", "1: the same"])
    figure.suptitle(f"Which text do the activations of all pairs resemble?  Measure: {metric_label('cka_population')}")
    shares = [key(LOOKS[n % len(LOOKS)], f"beginning of B: {ratio:.4g} of the text") for n, ratio in enumerate(ratios)]
    alike = key(LOOKS[0], "A and B, as they are", color="0.65", marker="", linestyle="-", linewidth=2.5)
    title = "A': text A with the beginning of text B.   Bars and band: 95 % intervals (cut at the frame)"
    explain(figure, [*shares, alike], title, 2)
    return figure


def _jackknife(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Estimates, and half of their 95 % intervals."""
    return rows["cka"].to_numpy(), (rows["se"] * stats.t.ppf(0.975, rows["n_pairs"] - 1)).to_numpy()


@in_style
def coefficient_figure(fits: Mapping[str, Fit]) -> Figure:
    """Coefficients with 95 % intervals, in within-pair standard deviations, so that terms and metrics share an axis.

    Args:
        fits: by name; columns 1 and 2 give the prefix's total effect, 5 and 6 the loads'.
    """
    # Room between panels, for the labels at the ends of their axes.
    figure = Figure(figsize=(PAGE, 1.7 + 0.4 * len(fits)), layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(1, 3, sharey=True, sharex=True)
    # The prefix's total effect is that of columns 1 and 2, the loads' that of the full columns.
    for axis, (term, title), first in zip(axes, TERM_TITLES.items(), (1, 5, 5), strict=True):
        for place, fit in enumerate(fits.values()):
            for column in fit.columns:
                if column.column not in (first, first + 1):
                    continue
                scale = column.standardised[term] / column.coef[term] if column.coef[term] else 0.0
                value, (low, high) = column.standardised[term], (bound * scale for bound in column.ci[term])
                look = GROUP_LOOKS[column.group]
                axis.errorbar(
                    value, place + (0.15 if column.group == "rts" else -0.15), xerr=[[value - low], [high - value]],
                    fmt=look.marker, color=look.color, capsize=2,
                )  # fmt: skip
        finish(axis, zero=False)
        axis.axvline(0, color="0.75", linewidth=0.6, zorder=0)
        axis.set_title(title)
    axes[0].set_yticks(range(len(fits)), [metric_label(name) for name in fits])
    axes[0].set_ylim(len(fits) - 0.5, -0.5)
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(min(-1.0, low), max(1.0, high))
    responses = " or ".join(dict.fromkeys(RESPONSE_WORDS[fit.response] for fit in fits.values()))
    axes[1].set_xlabel(f"standard deviations of {responses} per standard deviation, within pairs")
    named = [key(look, GROUP_LABELS[group], linestyle="-") for group, look in GROUP_LOOKS.items()]
    figure.suptitle(f"What goes with {responses}?")
    explain(figure, named, "Bars: 95 % intervals", 2)
    return figure


@in_style
def layer_figure(fit: Fit) -> Figure:
    """The prefix's and the loads' coefficients by layer with 95 % intervals; filled where they survive correction.

    The upper axes reach from -1 to 1, the lower ones magnify them.

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
    figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    for (upper, lower), (term, title) in zip(axes.T, TERM_TITLES.items(), strict=True):
        rows = records[records["term"] == term]
        ends = np.array(rows["ci"].tolist()).ravel()
        for axis in (upper, lower):
            for group, look in GROUP_LOOKS.items():
                _layer_line(axis, rows[rows["group"] == group], look)
            finish(axis)
        low, high = min(-1.08, *ends), max(1.08, *ends)
        upper.set(ylim=(low, high), title=title)
        for bound in (-1, 1):
            upper.axhline(bound, color="0.75", linewidth=0.6, zorder=0)
        lower.set_xlabel("layer")
        if not magnified(lower, ends, high - low):
            lower.set_visible(False)
            upper.tick_params(labelbottom=True)
            upper.set_xlabel("layer")
    end = {"toward": "1: all the way to B", "matched": "1: all the way to B*"}.get(fit.response, "1")
    for upper in axes[0]:
        upper.set_yticks([-1, 0, 1], ["\N{MINUS SIGN}1", "0: no change", end] if upper is axes[0, 0] else None)
    axes[0, 0].set_ylabel("whole scale")
    axes[1, 0].set_ylabel("the same values")
    figure.suptitle(f"By how much does {RESPONSE_WORDS[fit.response]} change?  Measure: {metric_label(fit.metric)}")
    named = [key(look, GROUP_LABELS[group]) for group, look in GROUP_LOOKS.items()]
    explain(figure, named, LAYER_NOTE, 2)
    return figure


def _layer_line(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    """One group's coefficients of one term by layer."""
    if rows.empty:
        return
    low, high = np.array(rows["ci"].tolist()).T
    errors = [rows["coef"] - low, high - rows["coef"]]
    axis.errorbar(rows["layer"], rows["coef"], errors, fmt=look.line, color=look.color, linewidth=0.7)
    clear = rows["p_bh"] < SIGNIFICANCE
    for part, fill in ((rows[clear], look.color), (rows[~clear], "white")):
        axis.plot(part["layer"], part["coef"], look.marker, color=look.color, markerfacecolor=fill, markersize=3)


@in_style
def case_figure(study: CaseStudy) -> Figure:
    """Similarity of the 13 sentences' activations at their last word, mean over layers (the paper's Fig. 7).

    Args:
        study: of `cladastats.panel.case_study.case_study`.
    """
    figure = Figure(figsize=(PAGE, 3.9), layout="constrained")
    axis = figure.subplots()
    numbers = range(1, len(study.similarity) + 1)
    sentences = [f"{sentence}  {number}" for number, sentence in zip(numbers, study.sentences, strict=True)]
    cells = np.vectorize(lambda value: f"{value:.2f}".replace("0.", ".", 1).replace("1.00", "1"))(study.similarity)
    sns.heatmap(
        study.similarity, cmap="Greys", vmin=0, vmax=1, xticklabels=list(numbers), yticklabels=sentences,
        annot=cells, fmt="", annot_kws={"fontsize": SMALL}, linewidths=0.3, linecolor="white",
        cbar_kws={"label": f"similarity: {metric_label(study.metric)}"}, ax=axis,
    )  # fmt: skip
    for drawn in figure.axes:  # the colour bar's too
        drawn.tick_params(labelsize=SMALL, length=0)
    axis.set_xlabel("sentence")
    figure.suptitle("How similar are the activations at the last words of two sentences?")
    return figure


@in_style
def activation_figure(maps: Mapping[str, np.ndarray], prefix: int) -> Figure:
    """Activations of one layer at every token (the paper's Figs. 4 to 6): log magnitude, neurons across, tokens down.

    Args:
        maps: [tokens, neurons] by name, of `cladastats.panel.case_study.activation_maps`.
        prefix: tokens of B at the start of A'; a line marks their end.
    """
    figure = Figure(figsize=(PAGE, 3.4), layout="constrained")
    axes = figure.subplots(1, len(maps), sharey=True)
    size = {name: np.log10(np.abs(values) + 1e-3) for name, values in maps.items()}
    low, high = np.quantile(np.stack(list(size.values())), [0.02, 0.998])
    for axis, (name, values) in zip(axes, size.items(), strict=True):
        image = axis.imshow(
            values, aspect="auto", cmap="Greys", vmin=low, vmax=high, interpolation="antialiased", rasterized=True
        )
        if name == "A'":
            axis.axhline(prefix - 0.5, color="black", linestyle="--")
            for side, text in ((-1, "from B"), (1, "from A")):
                axis.annotate(
                    text, (1, prefix - 0.5), (-3, -4 * side), ("axes fraction", "data"), "offset points", ha="right",
                    va="top" if side > 0 else "bottom", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )  # fmt: skip
        axis.set_title(name)
        axis.set_xlabel("neuron")
        finish(axis, zero=False)
    axes[0].set_ylabel("token, from the first (top) to the last word")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("size of the activation (log10)")
    bar.ax.tick_params(labelsize=SMALL)
    return figure


@in_style
def gain_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each predictor adds to the prediction of reading times and brain responses, with 95 % intervals.

    Args:
        tables: of `cladastats.people.results.effect_table`, by model.
    """
    first = next(iter(tables.values()))
    measures = list(dict.fromkeys(zip(first["corpus"], first["measure"], strict=True)))
    figure = Figure(figsize=(PAGE, 1.3 + 0.3 * len(measures)), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, predictor in zip(axes, ("surprisal", "entropy", "effort"), strict=True):
        for number, table in enumerate(tables.values()):
            rows = table[table["predictor"] == predictor].set_index(["corpus", "measure"]).reindex(measures)
            place = -np.arange(len(measures)) - 0.28 * (number - (len(tables) - 1) / 2)
            value, low, high = (1000 * rows[name].to_numpy(float) for name in ("delta_ll", "ci_low", "ci_high"))
            look = LOOKS[number % len(LOOKS)]
            clear = rows["p_holm"].to_numpy(float) < SIGNIFICANCE
            axis.errorbar(value, place, xerr=[value - low, high - value], fmt="none", color=look.color, linewidth=0.8)
            filled = np.where(clear, look.color, "white")
            axis.scatter(value, place, 12, filled, marker=look.marker, edgecolors=look.color, zorder=3)
        finish(axis, zero=False)
        axis.axvline(0, color="0.75", linewidth=0.6, zorder=0)
        axis.set_title(predictor)
        axis.set_yticks(-np.arange(len(measures)), [_measure_label(*measure) for measure in measures])
    axes[1].set_xlabel("gain in predicting held-out texts (nats per 1,000 words; right of 0: predicted better)")
    named = [key(LOOKS[n % len(LOOKS)], model, linestyle="-") for n, model in enumerate(tables)]
    explain(figure, named, GAIN_NOTE, len(named))
    return figure


@in_style
def gain_layers_figure(results: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """What the effort of each layer alone adds, a line per model, a panel per confirmatory measure.

    Args:
        results: of `cladastats.people.results.read_results`, by model.
    """
    first = next(iter(results.values()))
    measures = [(r["corpus"], m["measure"]) for r in first for m in r["measures"] if m["confirmatory"]]
    rows = -(-len(measures) // 4)
    figure = Figure(figsize=(PAGE, 0.8 + 1.5 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, sharex=True)
    for axis in axes.flat[len(measures) :]:
        axis.set_visible(False)
    for axis, (corpus, measure) in zip(axes.flat, measures, strict=False):
        for number, corpora in enumerate(results.values()):
            layers = next(
                m["layers"] for r in corpora if r["corpus"] == corpus for m in r["measures"] if m["measure"] == measure
            )
            if not layers:  # words without effort
                continue
            depth = np.arange(len(layers)) / max(1, len(layers) - 1)
            value, low, high = (
                1000 * np.array([layer[name] for layer in layers]) for name in ("delta_ll", "ci_low", "ci_high")
            )
            look = LOOKS[number % len(LOOKS)]
            axis.plot(depth, value, look.line, color=look.color)
            axis.fill_between(depth, low, high, color=look.color, alpha=0.15, linewidth=0)
        finish(axis)
        axis.set_title(_measure_label(corpus, measure).replace(", ", "\n", 1), fontsize=SMALL)
        axis.set_xticks([0, 1], ["first", "last"])
    figure.supylabel("gain (nats per 1,000 words)")
    named = [key(LOOKS[n % len(LOOKS)], model, marker="") for n, model in enumerate(results)]
    title = "What the effort of one layer, from the first to the last, adds to the prediction.   Bands: 95 % intervals"
    explain(figure, named, title, len(named))
    return figure


def _measure_label(corpus: str, measure: str) -> str:
    """A measure of human data in words, where the corpus' description has them."""
    try:
        source = described(corpus)
    except InputError:  # a table of the user's own
        return f"{corpus}, {measure}"
    labels = {one.column: one.label for one in source.measures}
    return f"{source.title or source.name}, {labels.get(measure) or measure}"
