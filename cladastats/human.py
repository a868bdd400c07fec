"""`cladastats human`: does effort predict reading times and brain responses beyond surprisal and entropy?"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["human", *sys.argv[1:]]))

import argparse
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from clada.models.open import model_revision
from clada.system.jsonfile import with_checksum, write_json
from cladastats.people.corpora import SOURCES, ReadingCorpus, open_corpus
from cladastats.people.gains import BINS, FOLDS, RESAMPLES, SEED, SHUFFLES, STEPS, analyse, prepared
from cladastats.people.results import HUMAN_SCHEMA, effect_table, read_result, show, verdicts
from cladastats.study import is_current, read_table, write_table
from cladastats.texts.effort import effort_rule
from cladastats.texts.meter import WORDS_SCHEMA, measure_texts
from cladastats.texts.text import Text


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    names = list(dict.fromkeys(args.corpus or SOURCES))
    corpora = [open_corpus(name, args.data) for name in names]  # all are checked before the first is computed
    out = Path(args.out) / Path(args.model).name
    for corpus in corpora:
        human(corpus, args.model, out)
    table = effect_table(out, names)
    print(show(table, args.format))
    if args.format == "text":
        print("\n" + "\n".join(verdicts(table)))


def human(corpus: ReadingCorpus, model: str, out: Path) -> dict[str, Any]:
    """Analyse a corpus on a model, or read what was found.

    Args:
        corpus: the corpus.
        model: a model's name, one with a plan.
        out: where words (`words-NAME.parquet`) and results (`NAME.json`) are kept, of this model.

    Returns:
        the content of `NAME.json`: `measures`, each with its `rows` (one per step), and what else is known of it.

    Raises:
        CladaError: the model cannot be opened or has no plan.
    """
    words = measured_words(corpus.texts, model, out / f"words-{corpus.name}.parquet")
    digest = hashlib.sha256(pd.util.hash_pandas_object(words, index=False).to_numpy().tobytes())
    digest.update(pd.util.hash_pandas_object(corpus.table, index=False).to_numpy().tobytes())
    digest.update(f"{HUMAN_SCHEMA} {STEPS} {FOLDS} {RESAMPLES} {SHUFFLES} {SEED} {BINS} {corpus.measures}".encode())
    path = out / f"{corpus.name}.json"
    if path.is_file():
        kept = read_result(path)
        if kept["inputs"] == digest.hexdigest():
            return kept
    rows = prepared(corpus, words)
    measures = []
    fixed = corpus.source.measures[: corpus.source.confirmatory]
    for measure in tqdm(corpus.measures, desc=corpus.name, file=sys.stderr, leave=False):
        measures.append(
            {
                "measure": measure.column,
                "confirmatory": measure in fixed,
                "sign": measure.sign,
                **analyse(rows, measure),
            }
        )
    result = {
        "schema": HUMAN_SCHEMA,
        "corpus": corpus.name,
        "model": model,
        "revision": model_revision(model),
        "inputs": digest.hexdigest(),
        "texts": len(corpus.texts),
        "dropped": corpus.dropped,
        "dropped_because": corpus.source.dropped,
        "measures": measures,
    }
    result = with_checksum(result)
    write_json(path, result)
    return result


def measured_words(texts: Sequence[Text], model: str, path: Path) -> pd.DataFrame:
    """The table of words of a corpus' texts, kept in a file."""
    effort = effort_rule(model)
    by = None if effort is None else (effort.rule.rule(), effort.thresholds.tolist())
    facts = (WORDS_SCHEMA, model_revision(model), by)
    inputs = hashlib.sha256(repr((facts, [(t.text_id, t.words) for t in texts])).encode()).hexdigest()
    if is_current(path, inputs):
        with suppress(Exception):  # of a damaged file there are errors of any kind; it is made again
            return read_table(path)
    write_table(path, measure_texts(model, texts, effort=effort), inputs)
    return read_table(path)
