"""`cladastats regress`: the six panel regressions of a study, and the coefficients that the engine reads."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["regress", *sys.argv[1:]]))

import argparse
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clada.errors import InputError, StudyError
from clada.methods.coefficients import COEFFICIENTS_SCHEMA
from clada.system.jsonfile import write_json
from cladastats.panel.columns import fit_columns
from cladastats.results.fit import PAPER_METRICS, Fit, undefined_to_none
from cladastats.results.labels import metric_title
from cladastats.results.robustness import render_robustness
from cladastats.similarities.metrics import POPULATION, metric_name
from cladastats.study import Study, kept_where_possible

TAU_QUANTILE = 0.7
"""Corpus quantile above which a token counts as under load (the paper's)."""


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: A mistake of the user.
    """
    study = Study(args.study)
    metric = metric_name(args.metric, args.estimator)
    if args.claims:
        if metric != PAPER_METRICS[0] or args.response != "toward" or args.controls:
            raise InputError(
                f"--claims judges both of the paper's metrics, {' and '.join(PAPER_METRICS)}, by the response toward; "
                "leave --metric, --estimator, --response and --controls out"
            )
        print(show_claims(study, args.format, again=args.robust))
        return
    if metric == POPULATION:
        raise InputError(
            "population CKA compares sets of pairs, so there is no panel to regress; use another estimator"
        )
    if args.controls:
        if args.robust:
            raise InputError("--robust has controls of its own; leave --controls out")
        # The files of a study are the six columns as named; a fit with controls is shown and leaves them alone.
        panel = study.panel(metric)
        if not set(args.controls) <= set(panel.columns):
            from cladastats.controls import controls  # it imports torch, which a plain fit does not need

            panel = panel.merge(controls(study), on=["group", "pair", "ratio"])
        print(fit_columns(panel, metric, args.response, args.controls).table(args.format))
        return
    fit = fit_study(study, metric, args.response, robust=args.robust)
    coefficients = None
    with kept_where_possible("the fit and its coefficients"):
        write_json(study.fit_path(metric, fit.response), fit.to_dict())
        with kept_where_possible("coefficients.json"):
            coefficients = write_coefficients(study, fit)
    print(fit.table(args.format))
    if args.robust and args.format != "json":  # which holds it
        print("\n" + render_robustness(fit, args.format))
    if coefficients is not None:
        print(
            f"cladastats: {coefficients} now holds lambda and gamma of metric {metric_title(metric)}, response "
            f"{fit.response}",
            file=sys.stderr,
        )


def show_claims(study: Study, fmt: str, *, again: bool = False) -> str:
    """The verdicts on the paper's claims, in one of `FORMATS`; what they rest on is made where it is not there.

    Args:
        study: A study with activations, or with the fits of both of the paper's metrics and their robustness checks.
        fmt: The format.
        again: Make the fits and their checks again, also where they are there.

    Raises:
        CladaError: What is needed is not there, and cannot be made.
    """
    from cladastats.panel.claims import claims
    from cladastats.results.verdicts import render_verdicts

    for metric in PAPER_METRICS:
        there = study.fit_path(metric, "toward").exists() and study.fit(metric).robustness
        if again or not there:
            from cladastats.similarity import similarity  # it imports torch

            similarity(study, metric)
            regress(study, metric, robust=True)
    table = claims(study)
    return render_verdicts(table, fmt, table.attrs["notes"])


def regress(study: Study, metric: str, response: str = "toward", *, robust: bool = False) -> Fit:
    """Fit the six columns of a study's panel and write `fits/<metric>[-<response>].json`.

    Where the study cannot be written to, one line on stderr says so.

    Args:
        study: A study with that panel.
        metric: Name of the panel.
        response: One of `RESPONSES`.
        robust: With the checks of `cladastats.panel.robustness`.

    Returns:
        The fit.

    Raises:
        StudyError: The panel is not there.
        NotIdentifiedError: A regressor does not vary within pairs.
        InputError: Too few pairs.
    """
    fit = fit_study(study, metric, response, robust=robust)
    path = study.fit_path(metric, response)
    with kept_where_possible(path.name):
        write_json(path, fit.to_dict())
    return fit


def fit_study(study: Study, metric: str, response: str = "toward", *, robust: bool = False) -> Fit:
    """Fit the six columns of a study's panel; nothing is written.

    Answers of `cladastats.panel.robustness` that the study has of the same fit belong to it.

    Args:
        study: A study with that panel.
        metric: Name of the panel.
        response: One of `RESPONSES`.
        robust: With the checks of `cladastats.panel.robustness`, after the stages whose tables they need.

    Returns:
        The fit.

    Raises:
        StudyError: The panel is not there.
        NotIdentifiedError: A regressor does not vary within pairs.
        InputError: Too few pairs.
    """
    fit = fit_columns(study.panel(metric), metric, response)
    path = study.fit_path(metric, response)
    if robust:
        fit = replace(fit, robustness=_robustness(study, fit))
    elif path.exists():
        with suppress(StudyError):  # an altered one, or an earlier version's, is fitted again
            before = study.fit(metric, response)
            if before.to_dict()["columns"] == fit.to_dict()["columns"]:  # there NaN equals NaN
                fit = replace(fit, robustness=before.robustness)
    return fit


def _robustness(study: Study, fit: Fit) -> dict[str, Any]:
    """The checks of `cladastats.panel.robustness`, after the stages whose tables they need."""
    from cladastats.controls import controls  # these import torch, which a plain fit does not need
    from cladastats.panel.robustness import robustness
    from cladastats.sequences.placebos import make_placebo
    from cladastats.similarity import similarity

    trimmed = placebo = None
    if fit.metric == "cka":
        similarity(study, "cka", "trimmed")
        trimmed = study.panel("cka_trimmed")
    if (study.folder / "placebo" / "study.json").is_file():
        hybrids = make_placebo(study)
        similarity(hybrids, fit.metric)
        placebo = hybrids.panel(fit.metric)
    return robustness(study, fit, controls(study), trimmed, placebo)


def write_coefficients(study: Study, fit: Fit) -> Path:
    """Write what the engine reads from a fit, with the load thresholds of the study's natural sequences.

    Args:
        study: The study the fit is of.
        fit: A fit with column 6.

    Returns:
        The file, `coefficients.json`.

    Raises:
        InputError: The fit has no column 6.
    """
    config = study.config
    natural = study.corpus.query("group == 'nls' and role in ('A', 'B')")
    load = study.index.merge(natural[["sequence_id"]], on="sequence_id")
    content = coefficients_from_fit(
        fit,
        tau_surprisal_bits=float(load["surprisal_bits"].quantile(TAU_QUANTILE)),
        tau_entropy_bits=float(load["entropy_bits"].quantile(TAU_QUANTILE)),
        tau_quantile=TAU_QUANTILE,
        vocab_size=config.vocab_size,
        model=config.model,
        study={
            "folder": study.folder.name,
            "identity": config.identity(),
            "revision": config.revision,
            "source": config.source,
            "pairs": config.pairs,
            "length": config.length,
            "ratios": list(config.ratios),
            "seed": config.seed,
            "natural_targets": len(load),
        },
    )
    path = study.folder / "coefficients.json"
    write_json(path, content)
    return path


def coefficients_from_fit(
    fit: Fit,
    *,
    tau_surprisal_bits: float,
    tau_entropy_bits: float,
    tau_quantile: float,
    vocab_size: int,
    model: str,
    study: dict[str, Any],
) -> dict[str, Any]:
    """The content of `coefficients.json`: what the engine reads from a fit.

    Args:
        fit: A fit with column 6 (NLS, all regressors).
        tau_surprisal_bits: Surprisal above which a token counts as loaded, bits.
        tau_entropy_bits: Entropy above which a token counts as loaded, bits.
        tau_quantile: The corpus quantile both thresholds are.
        vocab_size: Number of tokens the model chooses from.
        model: Name the model was opened by.
        study: Where the fit comes from.

    Returns:
        `lambda` is the coefficient of surprisal_norm and `gamma` that of entropy_norm; `se`, `ci` and `p` have the
        same two keys.

    Raises:
        InputError: The fit has no column 6.

    Source: Yang et al., arXiv 2502.19078, Eq. 11.
    """
    column = fit.column(6)

    def by_symbol(values: dict[str, Any]) -> dict[str, Any]:
        return {"lambda": values["surprisal_norm"], "gamma": values["entropy_norm"]}

    content = {
        "schema": COEFFICIENTS_SCHEMA,
        **by_symbol(column.coef),
        "se": by_symbol(column.se),
        "ci": by_symbol(column.ci),
        "p": by_symbol(column.p),
        "metric": fit.metric,
        "response": fit.response,
        "group": column.group,
        "column": column.column,
        "tau_surprisal_bits": tau_surprisal_bits,
        "tau_entropy_bits": tau_entropy_bits,
        "tau_quantile": tau_quantile,
        "vocab_size": vocab_size,
        "model": model,
        "study": study,
    }
    return undefined_to_none(content)
