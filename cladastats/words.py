"""`cladastats words`: what every word of a text costs a model, beside what is known of the word itself."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["words", *sys.argv[1:]]))

import argparse
from pathlib import Path

from clada.errors import InputError
from cladastats.language import Language, language
from cladastats.texts.output import check_output, describe, write_figure, write_words
from cladastats.texts.stimuli import Stimuli, read_texts, table_texts
from cladastats.texts.table import Settings, measure_stimuli
from cladastats.texts.tablefile import read_table


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    out = Path(args.out)
    # A sheet of Excel has too few rows for every layer of a long text.
    suffix = ".csv" if out.suffix == ".xlsx" else out.suffix
    layers = out.with_name(f"{out.stem}-layers{suffix}") if args.layers else None
    check_output(out)  # said before anything is read
    spoken = language(args.language)
    stimuli = _stimuli(args, spoken)
    source = None if args.data is not None else Path(args.table or args.text)
    words = sum(len(text.words) for text in stimuli.texts)
    for target in filter(None, (out, layers)):
        check_output(target, [source] if source else [], words)
    settings = Settings(
        args.model, args.revision, args.device, args.window, args.layers, not args.no_effort, args.calibrate,
        args.plan, args.max_loss, args.keep, args.coefficients,
    )  # fmt: skip
    measured = measure_stimuli(stimuli, spoken, settings)
    write_words(out, measured.words, describe(measured.words, measured.facts, source))
    said = f"{words:,} words of {len(stimuli.texts):,} texts in {out}"
    if layers is not None and measured.layers is not None and measured.map is not None:
        write_words(layers, measured.layers, describe(measured.layers, measured.facts, source))
        write_figure(layers, measured.map)
        said += f"; every layer in {layers}; the first text drawn in {layers.with_suffix('.pdf')}"
    print(f"cladastats: {said}", file=sys.stderr)


def _stimuli(args: argparse.Namespace, spoken: Language) -> Stimuli:
    """The texts that the options name.

    Raises:
        InputError: options that do not go together, or what is wrong with the files.
    """
    if (args.text is None) == (args.table is None):
        raise InputError("give running text with --text, or a table of stimuli with --table")
    if args.table is None:
        for name in ("word_column", "by", "context_column"):
            if getattr(args, name):
                raise InputError(f"--{name.replace('_', '-')} is of a table; give it with --table")
    if args.data is not None:
        from cladastats.people.corpora import open_corpus

        if args.text is None:
            raise InputError("--data is of the corpora; name one with --text")
        return Stimuli(open_corpus(args.text, args.data).texts, None, None, ())
    if args.text is not None:
        return read_texts(args.text, spoken, args.segment)
    path = Path(args.table)
    return table_texts(
        read_table(path), path, spoken, word_column=args.word_column, by=args.by, context_column=args.context_column,
        segment=args.segment,
    )  # fmt: skip
