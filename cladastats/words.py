"""`cladastats words`: what every word of a text costs a model, beside what is known of the word itself."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["words", *sys.argv[1:]]))

import argparse
from pathlib import Path

import pandas as pd

from clada.errors import InputError
from clada.system.files import read_text, replacing
from cladastats.sequences.sources import read_records
from cladastats.texts.meter import word_table
from cladastats.texts.text import Text


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    if Path(args.out).is_dir():  # said before anything is measured
        raise InputError(f"{args.out} is a folder; name a file with --out")
    if args.data is not None:
        from cladastats.people.corpora import open_corpus

        texts = open_corpus(args.text, args.data).texts
    else:
        texts = read_texts(args.text)
    table = word_table(
        args.model,
        texts,
        plan=args.plan,
        max_loss=args.max_loss,
        keep=args.keep,
        coefficients=args.coefficients,
        window=args.window,
    )
    write_words(Path(args.out), table)
    print(f"cladastats: {len(table):,} words of {len(texts)} texts in {args.out}", file=sys.stderr)


def read_texts(name: str) -> list[Text]:
    """The texts of a file: `.jsonl` with `text` and, if there is one, `text_id` in every line; else plain text.

    Raises:
        InputError: it cannot be read, or holds no words.
    """
    path = Path(name)
    if path.suffix != ".jsonl":
        texts = [Text(path.stem, tuple(read_text(path).split()))]
    else:
        rows = read_records(path, "text")
        texts = [Text(str(row.get("text_id", i)), tuple(row["text"].split())) for i, row in enumerate(rows, 1)]
    texts = [text for text in texts if text.words]
    try:
        " ".join(word for text in texts for word in text.words).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} holds half a character (a lone surrogate); mend the text") from None
    if not texts:
        raise InputError(f"{path} has no words; give another file")
    return texts


def write_words(path: Path, table: pd.DataFrame) -> None:
    """Write a table of words, as its name says: `.parquet`, `.tsv`, else comma-separated.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False, sep="\t" if path.suffix == ".tsv" else ",")
