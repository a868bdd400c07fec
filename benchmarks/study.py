"""The real study behind the notebooks: both hypotheses on two models, and what of it is kept in the repository.

    python benchmarks/study.py run smollm2-135m --source jsonl:xsum.jsonl:document     # hours; goes on where it was
    python benchmarks/study.py run gemma3-270m --source jsonl:xsum.jsonl:document
    cladastats human --data DIR --model MODEL                                          # reading times, a few minutes
    python benchmarks/study.py publish                                                 # figures/studies, RESULTS.md
    python benchmarks/study.py check smollm2-135m --source jsonl:xsum.jsonl:document   # one shard anew, minutes

`xsum.jsonl` holds XSum documents, one JSON object a line; `study.json` names the SHA-256 of what was used. `run` leaves
`studies/real-MODEL` (the paper's three prefix shares) and `studies/real-MODEL-long` (three longer ones, the same A and
B). Both are parts of `studies/real-MODEL-all`, whose extraction runs A and B once for all six shares. `publish` keeps
panels, fits, coefficients and figures, and no text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from stored import FIGURES
from tabulate import tabulate

from clada import load_model
from cladastats.activations.parts import Part, part_path, read_parts, shard_ids, shards_of, write_part
from cladastats.corpus import DEFAULTS, make_study
from cladastats.extract import extract
from cladastats.figures import (
    case_figure,
    coefficient_figure,
    gain_figure,
    gain_layers_figure,
    layer_figure,
    prefix_figure,
)
from cladastats.panel.case_study import case_study
from cladastats.panel.claims import claims
from cladastats.panel.overview import across_measures, responses_by_ratio
from cladastats.people.gains import STEPS
from cladastats.people.results import effect_table, read_results, show, verdicts
from cladastats.placebo import earlier_token
from cladastats.results.fit import RESPONSES
from cladastats.results.robustness import with_interval
from cladastats.sequences.pairs import tokens_sha256
from cladastats.similarity import similarity
from cladastats.study import Study, write_study, write_table

MODELS = {"smollm2-135m": 2048, "gemma3-270m": 512}
PAIRS = 100
# Of each group, for placebo hybrids and sequences that end one token earlier, which take an hour for 32 of 2,048.
FEWER = {"smollm2-135m": 16, "gemma3-270m": 32}
RATIOS = (0.25, 0.375, 0.5)
LONG = (0.75, 0.9, 0.99)
METRICS = (
    "cosine",
    "cosine_centred",
    "pearson",
    "jaccard",
    "cka_trimmed",
    "cka",
)  # the last is the one whose coefficients are kept
KEPT = FIGURES / "studies"


def folder(model: str, *, long: bool = False) -> Path:
    """Of a study that is run."""
    return Path("studies") / f"real-{model}{'-long' if long else ''}"


def open_study(place: Path, model: str, source: str, ratios: tuple[float, ...]) -> Study:
    """The study of a folder, its corpus built where it is not there."""
    asked = {**dict.fromkeys(DEFAULTS), "source": source, "model": model, "pairs": PAIRS}
    return make_study(str(place), asked | {"length": MODELS[model], "ratios": ratios, "seed": 0})


def take(study: Study, whole: Study) -> None:
    """Take a study's activations from those of one that holds all of its sequences."""
    shards = shards_of(study.corpus)
    if part_path(study, len(shards) - 1).is_file():
        return
    for number, ((part, _), blocks) in enumerate(zip(read_parts(whole), shards, strict=True)):
        ids = shard_ids(blocks)
        rows = [part.sequence_ids.index(name) for name in ids]
        own = Part(ids, {name: tensor[rows] for name, tensor in part.tensors.items()})
        write_part(part_path(study, number), own, study.config.identity())


def stage(*arguments: str) -> None:
    """Run a stage as a user would; a finished one ends at once."""
    print("cladastats", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "cladastats", *arguments], stdout=subprocess.DEVNULL, check=True)


def run(model: str, source: str) -> None:
    """Everything about one model."""
    independent = next(name for name in MODELS if name != model)
    whole = open_study(Path("studies") / f"real-{model}-all", model, source, RATIOS + LONG)
    stage("extract", "--study", str(whole.folder))
    for long, ratios in ((True, LONG), (False, RATIOS)):
        study = str(folder(model, long=long))
        take(open_study(Path(study), model, source, ratios), whole)
        stage("run", "--study", study)
        if not long:
            stage("controls", "--study", study, "--independent", independent)
            stage("placebo", "--study", study, "--pairs", str(FEWER[model]))
        for metric in METRICS:
            stage("similarity", "--study", study, "--metric", metric)
            for response in ("toward", "matched"):
                stage("regress", "--study", study, "--metric", metric, "--response", response, "--robust")
        stage("regress", "--study", study, "--metric", "cka")
    study = Study(folder(model))
    earlier_token(study, pairs=FEWER[model]).to_csv(study.folder / "earlier.csv", index=False)
    torch.set_num_threads(study.config.threads)
    opened = load_model(model)
    for metric in ("cka", "cosine"):
        case_study(*opened, metric).claims.to_csv(study.folder / f"case-{metric}.csv", index=False)
    case_figure(case_study(*opened)).savefig(study.folder / "figures" / "case.png", dpi=200)


def publish() -> None:
    """Keep what says what was found, and write the page of everything that is kept."""
    sections = []
    for model in MODELS:
        if (folder(model) / "earlier.csv").is_file():
            copy_results(model)
        elif not (KEPT / folder(model).name / "earlier.csv").is_file():
            print(f"no finished study of {model}; 'study.py run {model}' makes it", file=sys.stderr)
            continue
        study, extended = Study(KEPT / folder(model).name), Study(KEPT / folder(model, long=True).name)
        both = pd.concat([study.panel("cka"), extended.panel("cka")])
        figures = {
            "prefix-all": prefix_figure(both, "cka"),
            "coefficients": coefficient_figure({metric: study.fit(metric) for metric in ("cka", "cosine")}),
            "layers": layer_figure(study.fit("cka")),
        }
        for name, figure in figures.items():
            keep(figure, study.folder / "figures" / name)
        sections.append(section(study, extended))
    sections += human_section()
    head = (
        "# Results\n\nWritten by `python benchmarks/study.py publish` from the files below `figures/studies`; the "
        "commands that made those are at the top of that script. Prefix effects are response points per 1,000 tokens "
        "(response `toward`: 0 the prefix changes nothing, 1 the hybrid acts like the text of its prefix).\n"
    )
    (FIGURES / "RESULTS.md").write_text("\n".join([head, *sections]), encoding="utf-8")


def copy_results(model: str) -> None:
    """Keep the results of a model's studies that were run here, without texts and activations."""
    names = ["study.json", "coefficients.json", "controls.parquet", "earlier.csv", "case-*.csv", "fits/*.json"]
    names += [f"panel-{metric}.parquet" for metric in METRICS] + ["figures/*"]
    for long in (False, True):
        made, kept = folder(model, long=long), KEPT / folder(model, long=long).name
        shutil.rmtree(kept, ignore_errors=True)
        for path in [path for name in names for path in sorted(made.glob(name))]:
            (kept / path.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept / path.relative_to(made))


def keep(figure: Any, path: Path) -> None:
    """Write a figure as PNG and PDF; without the date the same results give the same bytes."""
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def human_section() -> list[str]:
    """Keep what `cladastats human` found on these models, and its part of the page."""
    made = {name: Path("studies") / "human" / name for name in MODELS}
    made = {name: place for name, place in made.items() if any(place.glob("*.json"))}
    kept = KEPT / "human"
    for name, place in made.items():
        shutil.rmtree(kept / name, ignore_errors=True)
        (kept / name).mkdir(parents=True)
        for path in place.glob("*.json"):
            shutil.copy(path, kept / name)
    models = {name: kept / name for name in MODELS if (kept / name).is_dir()}
    if not models:
        return []
    tables = {name: effect_table(place) for name, place in models.items()}
    results = {name: read_results(place) for name, place in models.items()}
    for figure, name in ((gain_figure(tables), "gains"), (gain_layers_figure(results), "layers")):
        keep(figure, kept / name)
    parts = [
        "## Effort against reading times and brain responses",
        "What a predictor with its two lags adds to the joint log density of held-out texts over the step before: "
        "surprisal over the baseline (length, frequency, number of tokens, norm of the hidden state, position), "
        "entropy over surprisal, effort over both. Texts are resampled, or sentences where there are fewer than "
        "twenty texts; [GAINS_POWER.md](GAINS_POWER.md) shows the size and the power of these tests. "
        "`corpora/human.md` explains the measures.",
        "![Gains](studies/human/gains.png)",
    ]
    for name, table in tables.items():
        parts += [f"{name} (`studies/human/{name}/*.json`):", show(table, "markdown"), "\n".join(verdicts(table))]
        parts += [explained(results[name]), changed(name, results[name], kept / "earlier.csv")]
    return ["\n\n".join([*parts, "![Layers](studies/human/layers.png)"]) + "\n"]


def explained(results: list[dict[str, Any]]) -> str:
    """What is left of each gain of effort that stands by itself (p < 0.05 before correction)."""
    lines = []
    for result in results:
        for measure in result["measures"]:
            row, effort = measure["rows"][STEPS.index("effort")], measure["effort"]
            if measure["confirmatory"] and row["p"] < 0.05:
                left, placebo = effort["with_controls"], effort["placebo"]
                lines.append(
                    f"- {result['corpus']} {measure['measure']}: {1000 * row['delta_ll']:+.1f} nats per 1,000 words, "
                    f"{1000 * left['delta_ll']:+.1f} (p {left['p']:.3f}) with word class, punctuation and end of "
                    f"sentence in the model, {1000 * effort['matched_surprisal']['delta_ll']:+.1f} at matched "
                    f"surprisal, placebo p {placebo['p']:.3f}."
                )
    return "\n".join(
        ["What could explain effort's gains (p < 0.05 uncorrected):", "", *(lines or ["- there are none"])]
    )


def changed(model: str, results: list[dict[str, Any]], earlier: Path) -> str:
    """Effort's gains beside those of the earlier analysis, and why they differ."""
    known = pd.read_csv(earlier)
    known = known[known["model"] == model].set_index(["corpus", "measure", "step"])
    lines = []
    for result in results:
        for measure in result["measures"]:
            key = (result["corpus"], measure["measure"])
            if not measure["confirmatory"] or (*key, "effort") not in known.index:
                continue
            row, effort = measure["rows"][STEPS.index("effort")], measure["effort"]
            then = [known.loc[(*key, step)] for step in ("effort", "spillover")]
            lines.append(
                {
                    "measure": " ".join(key),
                    "earlier: word": told(then[0]),
                    "earlier: lags": told(then[1]),
                    "now: word": told(effort["without_lags"]),
                    "now: lags": told(effort["lags"]),
                    "now: both": told(row),
                    "both, earlier baseline": told(effort["smaller_baseline"]),
                }
            )
    if not lines:
        return ""
    return "\n\n".join(
        [
            "What changed from the earlier table (`studies/human/earlier.csv`), gains of effort in nats per 1,000 "
            "words with uncorrected p:",
            tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True),
            "The earlier confirmatory step held the effort of the word alone. Effort of the two words before was "
            "called exploratory and stood outside the family, although on SmolLM2 it gained most: +12.5 nats per "
            "1,000 words of self-paced reading and +4.2 of A-Maze, both with p 0.002 after Holm's correction. It "
            "belongs to the step, as the lags of surprisal and entropy belong to theirs, and is in it now. The "
            "baseline now has the number of tokens and the norm of the hidden state with their lags, which the "
            "earlier one had among the controls alone; the last column shows the step over the earlier baseline. "
            "The density of a held-out text is now the joint one of all its words; it was a product of the words' "
            "own, which leaves out that a text's words share its intercept. Holm's correction is over the twelve "
            "measures whichever are computed.",
        ]
    )


def told(found: Any) -> str:
    """A gain with its p-value."""
    return f"{1000 * found['delta_ll']:+.1f} (p {found['p']:.3f})"


def section(study: Study, extended: Study) -> str:
    """One model's part of the page; every table names its file."""
    config, name = study.config, study.folder.name
    verdicts = claims(study)

    def markdown(table: pd.DataFrame) -> str:
        cells = table.astype(object).where(table.notna(), None)
        return tabulate(cells.values.tolist(), list(cells.columns), tablefmt="github", floatfmt=".3g", missingval="")

    both = pd.concat([study.panel("cka"), extended.panel("cka")])
    responses = {name: RESPONSES[name] for name in ("toward", "matched", "away")}
    shares = pd.concat(
        [responses_by_ratio(both, column).assign(response=name) for name, column in responses.items()]
    ).drop(columns="prefix_len")
    earlier = pd.read_csv(study.folder / "earlier.csv")
    case = pd.read_csv(study.folder / "case-cka.csv").drop(columns="margin")
    return (
        "\n\n".join(
            [
                f"## {config.model}, {config.pairs} pairs a group, length {config.length:,}",
                f"Claims of the paper's section 2 (`studies/{name}/fits/cka.json`, `fits/cosine.json`):",
                markdown(verdicts),
                f"Mean and median responses by prefix share (`studies/{name}/panel-cka.parquet` and "
                f"`{extended.folder.name}`):",
                markdown(shares),
                "The same regressions of every measure. `toward` compares with B, `matched` with B*, which ends in A's "
                "word; loads are those of columns 5 and 6, as shares of log2 of the vocabulary (entropy is at most 1); "
                f"`at equal ratio` puts an effect of every ratio in the place of the line "
                f"(`studies/{name}/fits/*.json` and `{extended.folder.name}`); 95 % intervals, not corrected:",
                markdown(across_measures([study, extended])),
                f"Claims on the longer prefixes alone, an extension that the paper does not have "
                f"(`studies/{extended.folder.name}/fits/cka.json`, `fits/cosine.json`):",
                markdown(claims(extended)),
                f"Placebo hybrids, response `toward` by cka (`studies/{name}/fits/cka.json`): slope per 1,000 tokens "
                "of prefix, and mean response:",
                markdown(placebo_table(study)),
                f"![Responses against prefix length](studies/{name}/figures/prefix-all.png)",
                f"![Coefficients](studies/{name}/figures/coefficients.png)",
                f"![Layers](studies/{name}/figures/layers.png)",
                f"One token earlier (B.1; `studies/{name}/earlier.csv`, prefix alone):",
                markdown(earlier),
                f"The 13 sentences (B.3; `studies/{name}/case-cka.csv`):",
                markdown(case),
            ]
        )
        + "\n"
    )


def placebo_table(study: Study) -> pd.DataFrame:
    """Slope and mean response of genuine and placebo hybrids of the same pairs."""
    return pd.DataFrame(
        {
            "group": group.upper(),
            "hybrid": kind,
            "slope": with_interval(found["coef"], found["ci"]),
            "mean": with_interval(found["mean"], found["mean_ci"]),
            "pairs": found["n_pairs"],
        }
        for group, kinds in study.fit("cka").robustness["placebo"].items()
        for kind, found in kinds.items()
    )


def check(model: str, source: str) -> None:
    """Run the first shard of the kept study again and compare its panel rows: to 1e-4."""
    kept = Study(KEPT / folder(model).name)
    with tempfile.TemporaryDirectory() as place:
        study = open_study(Path(place) / "study", model, source, RATIOS)
        if study.config.corpus_sha256 != kept.config.corpus_sha256:
            raise SystemExit(f"{source} gives another corpus than the kept study's: its documents are not the same")
        part = pd.concat(shards_of(study.corpus)[0])
        worst = compare(study, part, kept)
    print(json.dumps({"model": model, "pairs": part.groupby(["group", "pair"]).ngroups, "largest_difference": worst}))
    if worst > 1e-4:
        raise SystemExit(1)


def compare(study: Study, rows: pd.DataFrame, kept: Study) -> float:
    """The largest difference of the panel rows that these sequences give from those kept."""
    small = study.folder.parent / "shard"
    small.mkdir()
    config = replace(study.config, corpus_sha256=tokens_sha256(rows))
    write_table(small / "corpus.parquet", rows, config.corpus_sha256)
    write_study(small, config)
    shard = Study(small)
    extract(shard)
    worst = 0.0
    for metric in ("cka", "cosine"):
        similarity(shard, metric)
        own = shard.panel(metric)
        both = own.merge(kept.panel(metric), on=["group", "pair", "ratio"])
        for name in ("sim_ab", "sim_hb", "sim_ha", "sim_hb_matched", "shift_toward", "surprisal_norm", "entropy_norm"):
            new, old = both[f"{name}_x"].to_numpy(), both[f"{name}_y"].to_numpy()
            if len(both) < len(own) or (np.isnan(new) != np.isnan(old)).any():
                return float("inf")
            worst = max(worst, *np.abs(new - old)[~np.isnan(new)].tolist())
    return worst


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "publish", "check"))
    parser.add_argument("model", nargs="?", choices=tuple(MODELS))
    parser.add_argument("--source", help="as `cladastats run` takes it")
    args = parser.parse_args()
    if args.what == "publish":
        publish()
        return
    if args.model is None or args.source is None:
        parser.error(f"{args.what} needs a model and --source")
    (run if args.what == "run" else check)(args.model, args.source)


if __name__ == "__main__":
    main()
