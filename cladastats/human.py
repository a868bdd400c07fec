"""`cladastats human`: your own trials in a mixed model, and what predicts texts that a model was not fitted on."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["human", *sys.argv[1:]]))

import argparse
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from clada.errors import InputError
from clada.models.open import model_revision
from clada.system.jsonfile import json_line, with_checksum, write_json
from cladastats.language import language
from cladastats.people.corpora import ReadingCorpus, open_corpus
from cladastats.people.description import SOURCES
from cladastats.people.gains import BINS, FOLDS, RESAMPLES, SEED, SHUFFLES, STEPS, analyse, prepared
from cladastats.people.mixed import MixedFit, mixed_model
from cladastats.people.own import Asked, default_formula, model_frame, read_own
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
    if args.table is not None:
        own_trials(args)
        return
    if any((args.words, args.measure, args.subject, args.item, args.on, args.formula, args.range, args.no_shift_check)):
        raise InputError("--words, --measure and what goes with them are of a table of trials; name it with --table")
    if args.data is None:
        raise InputError("name the folder of the corpora with --data, or your own trials with --table")
    names = list(dict.fromkeys(args.corpus or SOURCES))
    # All are checked before the first is computed.
    corpora = [open_corpus(name, args.data, average=args.average) for name in names]
    called = [corpus.name for corpus in corpora]
    if len(set(called)) < len(called):
        raise InputError(f"two corpora are called {max(called, key=called.count)}; give each description its own name")
    out = Path(args.out) / Path(args.model).name
    for corpus in corpora:
        human(corpus, args.model, out)
    table = effect_table(out, called)
    print(show(table, args.format))
    if args.format == "text":
        print("\n" + "\n".join(verdicts(table)))


def human(corpus: ReadingCorpus, model: str, out: Path) -> dict[str, Any]:
    """Analyse a corpus on a model, or read what was found.

    Args:
        corpus: the corpus.
        model: a model's name; without a plan, words have no effort, and steps are surprisal and entropy alone.
        out: where words (`words-NAME.parquet`) and results (`NAME.json`) are kept, of this model.

    Returns:
        the content of `NAME.json`: `measures`, each with its `rows` (one per step), and what else is known of it.

    Raises:
        CladaError: the model cannot be opened.
    """
    words = measured_words(corpus.texts, model, out / f"words-{corpus.name}.parquet", corpus.source.language)
    about = {"model": model, "revision": model_revision(model)}
    return _kept(out / f"{corpus.name}.json", _digest(words, corpus), lambda: _gains(corpus, words) | about)


def _gains(corpus: ReadingCorpus, words: pd.DataFrame, *, refuse: bool = True) -> dict[str, Any]:
    """The held-out gains on every measure of a corpus; without `refuse`, why a measure has none is kept instead."""
    rows = prepared(corpus, words)
    measures, without = [], {}
    for measure in tqdm(corpus.measures, desc=corpus.name, file=sys.stderr, leave=False):
        facts = {"measure": measure.column, "confirmatory": measure.confirmatory, "sign": measure.sign}
        try:
            measures.append(facts | analyse(rows, measure))
        except InputError as problem:
            if refuse:
                raise
            without[measure.column] = str(problem)
    return {
        "no_gains": without,
        "corpus": corpus.name,
        "texts": len(corpus.texts),
        "dropped": corpus.dropped,
        "dropped_because": corpus.source.dropped,
        "measures": measures,
    }


def _digest(words: pd.DataFrame, corpus: ReadingCorpus, *more: object) -> str:
    """Of all that a result follows from."""
    digest = hashlib.sha256(pd.util.hash_pandas_object(words, index=False).to_numpy().tobytes())
    digest.update(pd.util.hash_pandas_object(corpus.table, index=False).to_numpy().tobytes())
    settings = f"{HUMAN_SCHEMA} {STEPS} {FOLDS} {RESAMPLES} {SHUFFLES} {SEED} {BINS} {corpus.measures} {more}"
    digest.update(settings.encode())
    return digest.hexdigest()


def _kept(path: Path, inputs: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in a file, made anew where its inputs changed."""
    if path.is_file():
        kept = read_result(path)
        if kept["inputs"] == inputs:
            return kept
    result = with_checksum({"schema": HUMAN_SCHEMA, "inputs": inputs} | make())
    write_json(path, result)
    return result


def measured_words(texts: Sequence[Text], model: str, path: Path, code: str = "en") -> pd.DataFrame:
    """The table of words of a corpus' texts, kept in a file."""
    language(code)  # one that nothing is known of is refused by name before anything is measured
    effort = effort_rule(model)
    by = None if effort is None else (effort.rule.rule(), effort.thresholds.tolist())
    facts = (WORDS_SCHEMA, model_revision(model), code, by)
    inputs = hashlib.sha256(repr((facts, [(t.text_id, t.words) for t in texts])).encode()).hexdigest()
    if is_current(path, inputs):
        with suppress(Exception):  # of a damaged file there are errors of any kind; it is made again
            return read_table(path)
    write_table(path, measure_texts(model, texts, effort=effort, language=code), inputs)
    return read_table(path)


def own_trials(args: argparse.Namespace) -> None:
    """Fit mixed models to a user's own trials, and find the gains on texts that were held out.

    Raises:
        CladaError: a mistake of the user.
    """
    asked = _asked(args)
    own = read_own(asked)
    notes = list(own.notes)
    fits: dict[str, tuple[MixedFit, dict[str, Any]]] = {}
    for measure in asked.measures:
        formula, said = (args.formula, []) if args.formula is not None else default_formula(own, measure)
        frame, scales, lost = model_frame(own, formula, asked.table, scaled=args.formula is None)
        fits[measure] = mixed_model(frame, formula), scales
        notes += [f"{measure}: {note}" for note in (*said, *lost)]
    _say(notes)
    _say([f"confirmatory family: {len(asked.measures)} measures ({', '.join(asked.measures)}), those of --measure"])
    mixed = [{"measure": name, "scaled": scales, **fit.to_dict()} for name, (fit, scales) in fits.items()]
    out = Path(args.out) / asked.table.stem
    about = {
        "table": asked.table.name,
        "words_file": None if asked.words is None else asked.words.name,
        "no_shift_check": asked.no_shift_check,
        "notes": notes,
        "mixed": mixed,
    }
    path = out / f"{own.corpus.name}.json"
    inputs = _digest(own.words, own.corpus, list(own.frame.columns), about)
    # A design with one measured word in each text has no two words before it, and so no gains; its model stands.
    result = _kept(path, inputs, lambda: _gains(own.corpus, own.words, refuse=False) | about)
    _print_own(args.format, fits, result, out, own.corpus.name)


def _asked(args: argparse.Namespace) -> Asked:
    """What was asked for, or a refusal of what does not go together."""
    if args.data is not None or args.corpus is not None or args.average:
        raise InputError("--table is a table of your own; leave out --data, --corpus and --average")
    if not args.measure:
        raise InputError("name the column of the dependent variable with --measure")
    if args.formula is not None and len(args.measure) > 1:
        raise InputError("a --formula has one dependent variable; give one --measure with it")
    if args.formula is not None and args.formula.partition("~")[0].strip() != args.measure[0]:
        raise InputError(
            f"the formula '{args.formula}' is not of {args.measure[0]}; begin it with '{args.measure[0]} ~'"
        )
    if args.range is not None and (len(args.range) != 2 or args.range[0] >= args.range[1]):
        raise InputError("--range takes two numbers, the lower one first, as in 100,3000")
    pairs = []
    for name in args.on or ():
        mine, _, theirs = name.partition("=")
        pairs.append((mine, theirs or mine))
    return Asked(
        Path(args.table),
        None if args.words is None else Path(args.words),
        tuple(dict.fromkeys(args.measure)),
        args.subject,
        args.item,
        tuple(pairs),
        args.unit,
        None if args.range is None else (args.range[0], args.range[1]),
        args.no_shift_check,
    )


def _print_own(
    fmt: str, fits: dict[str, tuple[MixedFit, dict[str, Any]]], result: dict[str, Any], out: Path, name: str
) -> None:
    """Print mixed models, then gains; as CSV the models alone, as JSON all that is kept."""
    if fmt == "json":
        print(json_line(result))
        return
    if fmt == "csv":
        tables = [fit.table.reset_index().assign(measure=measure) for measure, (fit, _) in fits.items()]
        print(pd.concat(tables, ignore_index=True).to_csv(index=False).rstrip())
        return
    for fit, _ in fits.values():
        print(fit.show(fmt) + "\n")
    _say([f"no gains on texts that were held out: {reason}" for reason in result["no_gains"].values()])
    if result["measures"]:
        table = effect_table(out, [name])
        print(show(table, fmt))
        if fmt == "text":
            print("\n" + "\n".join(verdicts(table)))


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"cladastats: {note}", file=sys.stderr)
