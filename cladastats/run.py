"""`cladastats run`: every stage on one study, finished ones skipped, ending with the table and what it means."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["run", *sys.argv[1:]]))

import argparse

from clada.errors import InputError
from clada.system.files import as_path
from cladastats.corpus import asked_settings, make_study, repeat_study
from cladastats.extract import extract
from cladastats.figures import draw
from cladastats.panel.columns import summary_sentences
from cladastats.panel.overview import beside
from cladastats.regress import regress, write_coefficients
from cladastats.results.fit import PAPER_METRICS
from cladastats.results.tables import plain_table
from cladastats.similarity import similarity
from cladastats.study import kept_where_possible

SHOWN = PAPER_METRICS[0]  # whose table ends the run, and whose coefficients the engine reads
# The trimmed form reads the parts once more, which is little beside their extraction.
COMPARED = (SHOWN, "cka_trimmed", *PAPER_METRICS[1:])


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    settings = asked_settings(args)
    if args.recorded is not None:
        if any(value is not None for value in settings.values()):
            raise InputError("--from takes everything from the file; leave the other settings out")
        study = repeat_study(as_path(args.recorded), args.study)
    else:
        study = make_study(args.study, settings)
    print(f"cladastats: {study!r}", file=sys.stderr)
    extract(study)
    for metric in COMPARED:
        similarity(study, metric)
    fits = {metric: regress(study, metric) for metric in COMPARED}
    fit = fits[SHOWN]
    with kept_where_possible("coefficients and figures"):
        write_coefficients(study, fit)
        draw(study)
    print(fit.table("text"))
    print("\nThe same by every measure, with 95 % intervals (prefix per 1,000 tokens, alone; loads beside it):\n")
    table = beside(list(fits.values()))
    print(plain_table(table, "text", ["left"] * len(table.columns), index=False))
    print()
    print("\n".join(summary_sentences(fit, vocab_size=study.config.vocab_size)))
