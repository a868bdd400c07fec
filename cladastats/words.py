"""`cladastats words`: what every word of a text costs a model, beside what is known of the word itself."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["words", *sys.argv[1:]]))

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from clada.errors import InputError
from clada.trace.page import Trace, check_page
from clada.trace.texts import Known, of_words
from cladastats.language import Language, language
from cladastats.texts.output import check_output, describe, write_figure, write_words
from cladastats.texts.stimuli import Stimuli, read_texts, table_texts
from cladastats.texts.table import Measured, Settings, measure_stimuli
from cladastats.texts.tablefile import as_numbers, is_numeric, read_table


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
    if args.html:
        check_page(Path(args.html))
    elif args.beside:
        raise InputError("--beside is of the page, which nothing writes; give a file for it with --html")
    beside = Trace(args.beside) if args.beside else None  # read here, as the table may be one that is written anew
    spoken = language(args.language)
    stimuli, readers = _stimuli(args, spoken)
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
    if args.html:
        page = _trace(stimuli, measured, readers, args.by)
        (page.beside(beside) if beside else page).save(Path(args.html))
        said += f"; shaded in {args.html}"
    print(f"cladastats: {said}", file=sys.stderr)


@dataclass(frozen=True)
class _Readers:
    """What people did at words.

    Attributes:
        values: `text_id`, `word_index`, and a column for each measure, its mean over readers; None without a corpus.
        units: of these measures, by column, and their labels.
        decimal: the sign of decimals of columns of the stimuli.
    """

    values: pd.DataFrame | None = None
    units: dict[str, Known] = field(default_factory=dict)
    decimal: str = "."


def _trace(stimuli: Stimuli, measured: Measured, readers: _Readers, by: Sequence[str]) -> Trace:
    """The page of the words: what was measured, numbers in columns of the stimuli, and measures of a corpus."""
    words, own = measured.words, [] if stimuli.frame is None else [str(name) for name in stimuli.frame.columns]
    ids = [text.text_id for text in stimuli.texts for _ in text.words]
    columns: dict[str, list[Any]] = {
        "text_id": ids,
        "word": [word for text in stimuli.texts for word in text.words],
    }
    for name in map(str, words.columns):
        # A measured column whose name the stimuli have too is called otherwise there; here it is the one of the two.
        target = name.removesuffix("_measured") if name.removesuffix("_measured") in own else name
        values = words[name]
        if name in own and is_numeric(values, readers.decimal):
            values = as_numbers(values, name, "", readers.decimal)
        if target not in ("text_id", "word", *by):
            columns[target] = values.tolist()
    if readers.values is not None:
        index = [number for text in stimuli.texts for number in range(1, len(text.words) + 1)]
        places = pd.MultiIndex.from_arrays([ids, index])
        found = readers.values.set_index(["text_id", "word_index"]).reindex(places)
        columns |= {name: found[name].tolist() for name in readers.units}
    long = measured.layers
    texts = of_words(
        columns,
        str(measured.facts["model"]),
        gaps=[gap for text in stimuli.texts for gap in text.spacing],
        before={text.text_id: text.context for text in stimuli.texts},
        long=None if long is None else {str(name): long[name].tolist() for name in long.columns},
        known=readers.units,
    )
    return Trace(*texts)


def _stimuli(args: argparse.Namespace, spoken: Language) -> tuple[Stimuli, _Readers]:
    """The texts that the options name, and what is known of their readers.

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
        corpus = open_corpus(args.text, args.data)
        units = {m.column: Known(m.label or m.column, m.unit) for m in corpus.measures}
        means = corpus.table.groupby(["text_id", "word_index"], as_index=False)[list(units)].mean()
        return Stimuli(corpus.texts, None, None, ()), _Readers(means, units)
    if args.text is not None:
        return read_texts(args.text, spoken, args.segment), _Readers()
    path = Path(args.table)
    table = read_table(path)
    stimuli = table_texts(
        table, path, spoken, word_column=args.word_column, by=args.by, context_column=args.context_column,
        segment=args.segment,
    )  # fmt: skip
    return stimuli, _Readers(decimal=table.decimal)
