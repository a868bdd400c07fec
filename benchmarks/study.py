"""The real studies: one list of them, made in its order, and what of them is kept in the repository.

    python benchmarks/study.py run --source jsonl:xsum.jsonl:document            # all of them: days; it can be resumed
    python benchmarks/study.py run news-512-smollm2-135m                         # one: hours
    cladastats human --data DIR --model MODEL                                    # reading times, a few minutes
    python benchmarks/study.py publish                                           # figures/studies, tables, RESULTS.md
    python benchmarks/study.py check news-512-smollm2-135m                       # one shard anew, minutes

`STUDIES` is the list. Studies of `news` need nothing but the repository. The others are of XSum documents, one JSON
object a line, which `--source` names; `study.json` has the SHA-256 of what was used. An interrupted `run` goes on with
the shard it was in. Every study computes with one thread, so that two can run side by side on two cores. `publish`
(`results_page.py`) keeps panels, fits, coefficients and figures, and no text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from results_page import KEPT, METRICS, is_finished, publish

from clada import load_model
from cladastats.activations.parts import Part, part_path, read_parts, shard_ids, shards_of, write_part
from cladastats.corpus import DEFAULTS, make_study
from cladastats.extract import extract
from cladastats.figures import case_figure
from cladastats.panel.case_study import case_study
from cladastats.placebo import earlier_token
from cladastats.results.fit import PAPER_METRICS
from cladastats.sequences.pairs import tokens_sha256
from cladastats.similarity import similarity
from cladastats.study import STUDIES as FOLDER
from cladastats.study import Study, write_study, write_table

SMOLLM2, GEMMA3 = MODELS = ("smollm2-135m", "gemma3-270m")
PAPER = (0.25, 0.375, 0.5)  # the paper's prefix shares
LONGER = (0.75, 0.9, 0.99)
PLACEBO_PAIRS = 32  # of each group, for placebo hybrids and for sequences that end one token earlier


@dataclass(frozen=True)
class RealStudy:
    """A row of the list.

    Attributes:
        name: Of its folder, below `studies` where it is made and below `figures/studies` where it is kept.
        model: As `clada.load_model` takes it.
        role: `pilot`: for the equivalence margin and the power of the others alone; `primary`: what the findings rest
            on; `long`: the pairs of another study with longer prefixes; `length`: longer texts; `contrast`: the
            paper's own form, windows of joined documents.
        source: Of the texts; None: XSum, which the command line names.
        windows: `document` or `stream`.
        length: Tokens before the target.
        pairs: In each group.
        ratios: Prefix shares.
        seed: Of the corpus.
        whole: Name of the folder that holds the sequences of every study with this `whole`. A and B are the same in
            all of them, so that they run once. Empty: the study is extracted by itself.
    """

    name: str
    model: str
    role: str
    source: str | None
    windows: str
    length: int
    pairs: int
    ratios: tuple[float, ...] = PAPER
    seed: int = 0
    whole: str = ""


def _news_512(model: str) -> tuple[RealStudy, RealStudy]:
    """The primary study of a model and its longer prefixes."""
    name = f"news-512-{model}"
    primary = RealStudy(name, model, "primary", "news", "document", 512, 300, whole=f"{name}-all")
    return primary, replace(primary, name=f"{name}-long", role="long", ratios=LONGER)


STUDIES = (
    *(RealStudy(f"pilot-{model}", model, "pilot", None, "document", 512, 50, seed=1) for model in MODELS),
    *_news_512(SMOLLM2),
    *_news_512(GEMMA3),
    RealStudy("news-1024-smollm2-135m", SMOLLM2, "length", "news", "document", 1024, 400),
    RealStudy("news-2048-smollm2-135m", SMOLLM2, "length", "news", "document", 2048, 39),  # all that fit
    *(RealStudy(f"stream-512-{model}", model, "contrast", None, "stream", 512, 100) for model in MODELS),
)
"""Every study, in the order in which they are made: a model's pilot comes before what its margin is used in."""

_HALF = "half the slope of random words by cka in a pilot of 50 pairs of XSum documents (studies/pilot-{}, column 1)"
_OF_SMOLLM2, _OF_GEMMA3 = (0.0107, _HALF.format(SMOLLM2)), (0.0154, _HALF.format(GEMMA3))


def _scaled(length: int) -> tuple[float, str]:
    """The margin of SmolLM2's pilot, whose texts have 512 tokens, for texts of another length."""
    return round(_OF_SMOLLM2[0] * 512 / length, 5), f"{_OF_SMOLLM2[1]}, in proportion to the length"


MARGINS: dict[str, tuple[float, str]] = {
    "news-512-smollm2-135m": _OF_SMOLLM2,
    "news-512-smollm2-135m-long": _OF_SMOLLM2,
    "news-512-gemma3-270m": _OF_GEMMA3,
    "news-512-gemma3-270m-long": _OF_GEMMA3,
    "news-1024-smollm2-135m": _scaled(1024),
    "news-2048-smollm2-135m": _scaled(2048),
    "stream-512-smollm2-135m": _OF_SMOLLM2,
    "stream-512-gemma3-270m": _OF_GEMMA3,
}
"""EQUIVALENCE MARGINS, by study: response points per 1,000 tokens, and their source. They are fixed here, from the
pilot, before a study is made; without one the study is not made. Pilots keep the default of `cladastats corpus`."""


def open_study(row: RealStudy, source: str | None, folder: Path | None = None) -> Study:
    """The study of a row, its corpus built where it is not there.

    Args:
        row: Of the list.
        source: Of the command line.
        folder: Of the study; None: its own.

    Raises:
        StudyError: The folder holds a study with other settings, or the source has changed.
    """
    folder = folder or FOLDER / row.name
    source = row.source or source
    if source is None and not (folder / "study.json").is_file():
        raise SystemExit(f"{row.name} is of XSum documents; name them: --source jsonl:xsum.jsonl:document")
    settings = {name: getattr(row, name) for name in ("model", "windows", "length", "pairs", "ratios", "seed")}
    return make_study(str(folder), dict.fromkeys(DEFAULTS) | settings | margin(row) | {"source": source, "threads": 1})


def margin(row: RealStudy) -> dict[str, float | str]:
    """The settings of a study that say its equivalence margin; none where it is the default or need not be known."""
    if row.name not in MARGINS:
        return {}
    value, source = MARGINS[row.name]
    return {"equivalence_margin": value, "equivalence_margin_source": source}


def whole_of(row: RealStudy) -> RealStudy:
    """The row of the folder that holds a study's sequences beside those of others of the same pairs."""
    ratios = sorted({ratio for other in STUDIES if other.whole == row.whole for ratio in other.ratios})
    return replace(row, name=row.whole, ratios=tuple(ratios), whole="")


def shared(row: RealStudy) -> RealStudy | None:
    """The row of the folder from which a study takes its activations; None: it is extracted by itself.

    Also where the other studies of the same pairs are kept already, and their activations are not here: there is
    nothing left to share.
    """
    others = [other for other in STUDIES if other.whole == row.whole and other != row]
    kept = all((KEPT / other.name / "study.json").is_file() for other in others)
    return None if not row.whole or (kept and not (FOLDER / row.whole).exists()) else whole_of(row)


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


def refuse_without_margin(row: RealStudy) -> None:
    """A study is made after its model's pilot, with a margin from it.

    Raises:
        SystemExit: There is no finished pilot, or no margin.
    """
    pilot = next(other for other in STUDIES if other.role == "pilot" and other.model == row.model)
    if not any((place / pilot.name / "fits" / "cka.json").is_file() for place in (FOLDER, KEPT)):
        raise SystemExit(f"{row.name} needs the pilot first; run 'python benchmarks/study.py run {pilot.name}'")
    if row.name not in MARGINS:
        raise SystemExit(
            f"{row.name} has no equivalence margin; write it, from {pilot.name}, into MARGINS of {__file__}"
        )


def run(row: RealStudy, source: str | None) -> None:
    """Make or resume a study, with every table that is kept of it."""
    whole_row, whole = shared(row), None
    if whole_row is not None:  # needs no margin, so that it can be extracted beside the pilot
        whole = open_study(whole_row, source)
        stage("extract", "--study", str(whole.folder))
    if row.role != "pilot":
        refuse_without_margin(row)
    study = open_study(row, source)
    folder = str(study.folder)
    if whole is not None:
        take(study, whole)
    stage("run", "--study", folder)
    if row.role == "primary":
        stage("controls", "--study", folder, "--independent", next(name for name in MODELS if name != row.model))
        stage("placebo", "--study", folder, "--pairs", str(PLACEBO_PAIRS))
        stage("similarity", "--study", folder, "--estimator", "population")
        stage("figures", "--study", folder)
    pilot = row.role == "pilot"
    for metric in PAPER_METRICS if pilot else METRICS:
        stage("similarity", "--study", folder, "--metric", metric)
        for response in ("toward",) if pilot else ("toward", "matched"):
            stage("regress", "--study", folder, "--metric", metric, "--response", response, "--robust")
    stage("regress", "--study", folder, "--metric", "cka")  # whose coefficients are kept
    if row.role == "primary":
        _about_the_model(study)


def _about_the_model(study: Study) -> None:
    """What a model's primary study has beside the tables of every study: one token earlier, and the 13 sentences."""
    earlier_token(study, pairs=PLACEBO_PAIRS).to_csv(study.folder / "earlier.csv", index=False)
    torch.set_num_threads(study.config.threads)
    opened = load_model(study.config.model)
    for metric in PAPER_METRICS:
        case_study(*opened, metric).claims.to_csv(study.folder / f"case-{metric}.csv", index=False)
    case_figure(case_study(*opened)).savefig(study.folder / "figures" / "case.png", dpi=200)


def check(row: RealStudy, source: str | None) -> None:
    """Run the first shard of the kept study again and compare its panel rows: to 1e-4."""
    kept = Study(KEPT / row.name)
    with tempfile.TemporaryDirectory() as place:
        study = open_study(row, source, Path(place) / "study")
        if study.config.corpus_sha256 != kept.config.corpus_sha256:
            raise SystemExit(
                f"{study.config.source} gives another corpus than the kept study's: its documents are not the same"
            )
        part = pd.concat(shards_of(study.corpus)[0])
        worst = compare(study, part, kept)
    pairs = part.groupby(["group", "pair"]).ngroups
    print(json.dumps({"study": row.name, "pairs": pairs, "largest_difference": worst}))
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
    for metric in PAPER_METRICS:
        similarity(shard, metric)
        own = shard.panel(metric)
        both = own.merge(kept.panel(metric), on=["group", "pair", "ratio"])
        for name in ("sim_ab", "sim_hb", "sim_ha", "sim_hb_matched", "shift_toward", "surprisal_norm", "entropy_norm"):
            new, old = both[f"{name}_x"].to_numpy(), both[f"{name}_y"].to_numpy()
            if len(both) < len(own) or (np.isnan(new) != np.isnan(old)).any():
                return float("inf")
            worst = max(worst, *np.abs(new - old)[~np.isnan(new)].tolist())
    return worst


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "publish", "check"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of studies: {', '.join(s.name for s in STUDIES)}")
    parser.add_argument("--source", help="of XSum documents, as `cladastats corpus` takes it")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in {row.name for row in STUDIES}]
    if unknown:
        parser.error(f"no study is named {', '.join(unknown)}; there are {', '.join(row.name for row in STUDIES)}")
    rows = [row for row in STUDIES if row.name in args.names or not args.names]
    if args.what == "publish":
        publish(STUDIES)
    elif args.what == "run":
        for row in rows:
            if not is_finished(row):
                run(row, args.source)
    elif not args.names:
        parser.error("check needs the name of a study")
    else:
        for row in rows:
            check(row, args.source)


if __name__ == "__main__":
    main()
