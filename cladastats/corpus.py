"""`cladastats corpus`: natural and random sequences, their hybrids and matched references, as a study folder."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["corpus", *sys.argv[1:]]))

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clada.errors import InputError, StudyError
from clada.methods.coefficients import newest_studies
from clada.models.architectures import check_length, family_of
from clada.models.open import load_config, load_tokenizer, model_revision, tokenizer_sha256
from clada.system.files import as_path
from cladastats.results.fit import COLUMNS
from cladastats.sequences.pairs import PairCorpus, build_corpus, check_ratios
from cladastats.sequences.sources import load_documents, source_sha256
from cladastats.sequences.windows import separator_token
from cladastats.study import STUDIES, Study, StudyConfig, create_study, read_config, write_table

# What a study is when nothing else is asked for: as long and as many as `news` gives within documents.
DEFAULTS: dict[str, Any] = {
    "source": "news",
    "model": "smollm2-135m",
    "pairs": 100,
    "length": 512,
    "ratios": (0.25, 0.375, 0.5),
    "seed": 0,
    "windows": "document",
    "storage_dtype": "float32",
    "threads": None,
    "equivalence_margin": None,  # `default_margin`, which depends on the length
    "equivalence_margin_source": None,
}

PAPER: dict[str, Any] = {"pairs": 2000, "length": 2048, "windows": "stream"}
"""The shape of the paper's corpus, which `--paper` asks for (paper, section 2.1.1)."""

PILOT_MARGIN, PILOT_LENGTH = 0.0107, 512
MARGIN_SOURCE = (
    "half the slope of random words by cka in a pilot of smollm2-135m (50 pairs of XSum documents of length 512, "
    "figures/studies/pilot-smollm2-135m), in proportion to the length"
)


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    study = make_study(args.study, asked_settings(args))
    report = study.config.corpus
    if "made_of" in report:
        raise InputError(f"{study.folder} is made of another study's corpus; give that study's own folder")
    clusters = ""
    if study.config.windows == "document" and "natural_clusters" in report:  # not in studies of earlier versions
        clusters = f", natural ones in {report['natural_clusters']} clusters of documents"
    print(
        f"cladastats: {study.folder}: {study.config.pairs} pairs a group{clusters}; part-of-speech ratios "
        f"of random sequences within {report['pos_distance_max']:.4f} of those of {report['tagged_words']:,} tagged "
        f"words (mean {report['pos_distance_mean']:.4f}; whole words alone leave "
        f"{report['pos_distance_rounding_max']:.4f}), punctuation within {report['punctuation_difference_max']:.4f}",
        file=sys.stderr,
    )


def asked_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What a user asked of a study, by the keys of `DEFAULTS`; None where nothing was said.

    Args:
        args: with an attribute for every key, and `paper`.

    Raises:
        InputError: the source of a margin that is not given.
    """
    asked = {name: getattr(args, name) for name in DEFAULTS}
    if asked["equivalence_margin"] is None and asked["equivalence_margin_source"] is not None:
        raise InputError("--margin-source says where a margin is from; give the margin too, with --equivalence-margin")
    return {**asked, **{name: value for name, value in PAPER.items() if args.paper and asked[name] is None}}


def default_margin(length: int) -> float:
    """The equivalence margin of a study that names none: `MARGIN_SOURCE`.

    A response that follows a share of the text does so over fewer tokens in a shorter text: its slope per 1,000 tokens
    goes with 1 / length.

    Args:
        length: tokens before the target.

    Returns:
        response points per 1,000 tokens.
    """
    return PILOT_MARGIN * PILOT_LENGTH / length


def make_study(folder: str | None, options: dict[str, Any]) -> Study:
    """Open the study a user means, or build its corpus.

    Args:
        folder: the study's folder; None: the newest below `studies/`, or a new one named after its content.
        options: the keys of `DEFAULTS`; None where the user said nothing.

    Raises:
        StudyError: the folder holds a study of something else, or of the source as it was before it changed.
        InputError, ModelError, AssetError: what was asked for cannot be built.
    """
    newest = newest_studies(STUDIES)
    path = as_path(folder) if folder is not None else newest[0] if newest else None
    if path is not None and (path / "study.json").is_file():
        return _open_study(path, options)
    settings = {name: DEFAULTS[name] if value is None else value for name, value in options.items()}
    if path is None:
        model, source = Path(settings["model"]).name, settings["source"].partition(":")[0]
        path = STUDIES / f"{model}-{source}-{settings['pairs']}x{settings['length']}-seed{settings['seed']}"
    _check_design(settings["pairs"], settings["ratios"], settings["length"])
    config, corpus = _prepare(settings)
    # Where another process has built a study there meanwhile, that one is compared as any other.
    return Study(path) if _create_study(path, config, corpus) else _open_study(path, options)


def _create_study(path: Path, config: StudyConfig, corpus: PairCorpus) -> bool:
    """Write a new study unless there is one by now, and say where it is too small for some of the regressions."""
    _, regressors = COLUMNS[6]
    if config.pairs * len(config.ratios) <= config.pairs + len(regressors):
        print(
            f"cladastats: {config.pairs} pairs at {len(config.ratios)} ratios are too few for the regressions with "
            f"{len(regressors)} regressors; what needs none of them works",
            file=sys.stderr,
        )
    return create_study(path, config, corpus.table)


def _check_design(pairs: int, ratios: Sequence[float], length: int) -> None:
    """Refuse, before the work, a study that no regression can be fitted to.

    Regressions compare the ratios of a pair, and their errors are clustered by pair.

    Raises:
        InputError: one pair, one ratio, or ratios that give no hybrid.
    """
    check_ratios(ratios, length)
    if pairs < 2:
        raise InputError("regressions need 2 pairs in each group at least; use --pairs 2 or more")
    if len(ratios) == 1:
        raise InputError(
            "regressions compare the ratios of a pair, and need 2 at least; use for instance --ratios 0.25,0.5"
        )


def _open_study(path: Path, options: dict[str, Any]) -> Study:
    """Open a study, if it is what the user said; its corpus is built again where it was lost."""
    study = Study(path)
    for name, value in options.items():
        there = getattr(study.config, name)
        if value is not None and value != there:
            raise StudyError(f"{path} is a study with {name} {there}, not {value}; give another folder with --study")
    if options["source"] is not None:
        _refuse_changed_source(study)
    if not (path / "corpus.parquet").is_file():
        _rebuild_corpus(study)
    return study


def repeat_study(recorded: Path, folder: str | None) -> Study:
    """Build a study as the `study.json` of another one records it, or open the one that was.

    Args:
        recorded: that file.
        folder: of the new study.

    Raises:
        StudyError: no folder or one of another study, a file of derived sequences, or the model, the tokenizer, the
            source or what is built of them is not what it was.
    """
    recorded_config = read_config(recorded)
    if folder is None:
        raise StudyError("--from needs --study, the folder of the new study")
    if "made_of" in recorded_config.corpus:
        raise StudyError(f"{recorded} is of sequences made from another study; repeat that one, then make them again")
    path = as_path(folder)
    if (path / "study.json").is_file():
        return _open_repeated(path, recorded, recorded_config)
    _check_design(recorded_config.pairs, recorded_config.ratios, recorded_config.length)
    config, corpus = _prepare({name: getattr(recorded_config, name) for name in DEFAULTS})
    for name, what in (
        ("revision", f"the model {recorded_config.model}"),
        ("tokenizer_sha256", f"the tokenizer of {recorded_config.model}"),
        ("source_sha256", f"the source {recorded_config.source}"),
        ("corpus_sha256", "the corpus built from the same source (by other versions of packages)"),
    ):
        if getattr(config, name) != getattr(recorded_config, name):
            raise StudyError(
                f"{what} is not what it was for {recorded} ({name} {getattr(config, name)[:20]}, not "
                f"{getattr(recorded_config, name)[:20]}); without it the study cannot be repeated"
            )
    if _create_study(path, config, corpus):
        return Study(path)
    return _open_repeated(path, recorded, recorded_config)


def _open_repeated(path: Path, recorded: Path, recorded_config: StudyConfig) -> Study:
    """Open a study, if it is the one that a `study.json` records."""
    study = Study(path)
    same = study.config.equivalence_margin == recorded_config.equivalence_margin
    if study.config.identity() != recorded_config.identity() or not same:
        raise StudyError(f"{path} is another study than that of {recorded}; give another folder with --study")
    return study


def _refuse_changed_source(study: Study) -> None:
    """Refuse a study whose source is named again, and is not what it was when the study was built.

    A source that is gone is no reason to refuse: a study holds all it needs of it. Nor is one that changed where the
    user names the study alone, or repeats one from its description: what is asked for then is the study as it was.

    Raises:
        StudyError: the source changed.
    """
    config = study.config
    sha256 = source_sha256(config.source)
    if sha256 is not None and sha256 != config.source_sha256:
        raise StudyError(
            f"{config.source} has changed since {study.folder} was built of it (sha256 {sha256[:20]}, not "
            f"{config.source_sha256[:20]}); give another folder with --study, or put the former source back"
        )


def _rebuild_corpus(study: Study) -> None:
    """Write the corpus of a study again, from its own settings."""
    if "made_of" in study.config.corpus:
        raise StudyError(
            f"{study.folder} has lost its corpus.parquet, which was made of another study's; delete the folder, and "
            "run the command that made it on that study again"
        )
    config, corpus = _prepare({name: getattr(study.config, name) for name in DEFAULTS})
    if (config.corpus_sha256, config.revision) != (study.config.corpus_sha256, study.config.revision):
        raise StudyError(
            f"{study.folder} has lost its corpus.parquet, and {study.config.source} or {study.config.model} now gives "
            "another; make a new study with another --study"
        )
    write_table(study.folder / "corpus.parquet", corpus.table, corpus.sha256)


def _prepare(settings: dict[str, Any]) -> tuple[StudyConfig, PairCorpus]:
    import torch

    check_ratios(settings["ratios"], settings["length"])
    margin, margin_source = settings["equivalence_margin"], settings["equivalence_margin_source"]
    if margin is None:
        margin, margin_source = default_margin(settings["length"]), MARGIN_SOURCE
    if not (math.isfinite(margin) and margin > 0):
        raise InputError("the equivalence margin must be a positive number of response points per 1,000 tokens")
    model_config = load_config(settings["model"])
    family_of(model_config)
    check_length(model_config, settings["length"] + 1, "use a shorter --length")
    tokenizer = load_tokenizer(settings["model"])
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {settings['model']} has no fast version, which corpora need; use another model"
        )
    documents = load_documents(settings["source"])
    corpus = build_corpus(
        documents, tokenizer, **{k: settings[k] for k in ("pairs", "length", "ratios", "seed", "windows")}
    )
    config = StudyConfig(
        **{k: settings[k] for k in ("source", "model", "pairs", "length", "seed", "windows", "storage_dtype")},
        ratios=tuple(settings["ratios"]),
        threads=settings["threads"] or torch.get_num_threads(),
        batch=1,
        dtype="float32",
        revision=model_revision(settings["model"]),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        vocab_size=model_config.vocab_size,
        source_sha256=documents.sha256,
        separator=separator_token(tokenizer) if settings["windows"] == "stream" else "",
        corpus=corpus.report,
        corpus_sha256=corpus.sha256,
        equivalence_margin=margin,
        equivalence_margin_source=margin_source or "given without a source",
    )
    return config, corpus
