"""`cladastats controls`: what else could explain the response, per hybrid, in `controls.parquet`.

frequency_zipf: of the word that the target belongs to, log10 per billion words (wordfreq). Where the target is the
    beginning of a word, the word is completed from the tokens that follow in its text (`following` of the corpus).
    Missing (NaN) where there is none: the target holds no letter or digit, or the word is not in wordfreq's list.
target_length: characters of the target token.
previous_surprisal_norm: of the token before the target, by log2 of the vocabulary.
independent_surprisal_bits: of the same text's target for another model, which shares no activation with the one
    studied; with `--independent M`.

What is fitted with a control leaves the rows out that miss it, and says how many.

The first two are the same at every ratio of a pair, so pair effects absorb them: they can only moderate the prefix, or
explain differences between pairs.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["controls", *sys.argv[1:]]))

import argparse
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from clada.errors import InputError, StudyError
from clada.models.architectures import check_length
from clada.models.open import bos_tokens, load_model, model_revision
from clada.system.machine import torch_threads
from cladastats.activations.work import RECENT, PrefixSharingRunner
from cladastats.language import PUNCTUATION, language
from cladastats.panel.robustness import INDEPENDENT
from cladastats.sequences.tokenizer import study_tokenizer
from cladastats.sequences.windows import separator_token
from cladastats.study import Study, is_current, write_table

FILE = "controls.parquet"

CONTENT = 2  # another number where the columns mean something else: tables that are kept are then made again

LAST_TOKENS = 24  # enough to hold what is before the target of its word


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    controls(Study(args.study), args.independent)


def controls(study: Study, independent: str | None = None) -> pd.DataFrame:
    """The controls of a study, computed and kept where they are not there.

    Args:
        study: a study with activations.
        independent: a model to take surprisal from too.

    Returns:
        one row per hybrid: group, pair, ratio and the columns above.

    Raises:
        InputError: the independent model is the study's own.
        StudyError: nothing was extracted yet, or by a version that kept less, or the tokenizer is another one now.
    """
    config = study.config
    path = study.folder / FILE
    if independent is None and path.is_file():
        kept = study.table(FILE, "controls")
        kept_revision = kept["independent_revision"].iloc[0] if "independent_revision" in kept else None
        if is_current(path, _digest(study, kept_revision)):
            return kept
    revision = None if independent is None else model_revision(independent)
    if revision == config.revision:
        raise InputError(f"{independent} is the study's own model; an independent one is another")
    digest = _digest(study, revision)
    if is_current(path, digest):
        return study.table(FILE, "controls")
    corpus = study.corpus
    hybrids = corpus[corpus["role"] == "hybrid"]
    tokenizer = study_tokenizer(config)
    index = study.index.set_index("sequence_id")
    if "previous_surprisal_bits" not in index:
        raise StudyError(
            f"{study.folder} was extracted by an earlier version, without the surprisal of the token before; "
            f"delete {study.folder / 'activations'} and run 'cladastats extract --study {study.folder}'"
        )
    if "following" not in hybrids:
        raise StudyError(
            f"{study.folder} was built by an earlier version, without the tokens that complete the targets' words; "
            f"delete {study.folder / 'corpus.parquet'} and run 'cladastats corpus --study {study.folder}', which "
            "builds the same sequences"
        )
    previous = index["previous_surprisal_bits"]
    table = hybrids[["group", "pair", "ratio"]].reset_index(drop=True)
    words = [target_word(tokenizer, row.token_ids, row.following, row.documents[-1]) for row in hybrids.itertuples()]
    table["frequency_zipf"] = [_frequency(word) for word, _ in words]
    table["target_length"] = [float(len(target.strip())) for _, target in words]
    table["previous_surprisal_norm"] = previous.loc[hybrids["sequence_id"]].to_numpy() / np.log2(config.vocab_size)
    if independent is not None:
        table[INDEPENDENT] = independent_surprisal(study, hybrids, tokenizer, independent)
        missing = int(table[INDEPENDENT].isna().sum())
        if missing:
            print(f"cladastats: {missing} of {len(table)} targets have no surprisal by {independent}", file=sys.stderr)
    table["independent_model"], table["independent_revision"] = independent, revision
    write_table(path, table, digest)
    return table


def _digest(study: Study, revision: str | None) -> str:
    return hashlib.sha256(f"{CONTENT} {study.config.identity()} {revision}".encode()).hexdigest()


def target_word(tokenizer: Any, ids: np.ndarray, following: np.ndarray, document: int) -> tuple[str | None, str]:
    """The word that the target belongs to, without punctuation around it, and the target's own text.

    Args:
        tokenizer: of the study's model.
        ids: token ids; the last is the target.
        following: token ids that follow in the target's text.
        document: where the target's document, or the part of it that is in the sequence, begins; the word cannot.

    Returns:
        the word, None where the target holds no letter or digit; the target.
    """

    def text(some: Sequence[int]) -> str:
        return str(tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    context = ids[max(document, len(ids) - LAST_TOKENS) :].tolist()
    whole = text([*context, *following.tolist()])
    # A token may end within a character, which alone is shown as another one.
    begin = _shared_beginning(whole, text(context[:-1]))
    end = _shared_beginning(whole, text(context))
    letters = [place for place in range(begin, end) if whole[place].isalnum()]
    if not letters:
        return None, text(context[-1:])
    before, after = whole[: letters[0]], whole[letters[0] :]
    word = (before.split()[-1] if before and not before[-1].isspace() else "") + after.split()[0]
    return word.strip(PUNCTUATION), text(context[-1:])


def _frequency(word: str | None) -> float:
    return (language().zipf_frequency(word) if word else 0.0) or math.nan


def independent_surprisal(study: Study, hybrids: pd.DataFrame, tokenizer: Any, name: str) -> np.ndarray:
    """Surprisal in bits of each hybrid's target for another model, which reads the same text in tokens of its own.

    A token of that model that holds the target's last character counts whole, also where it begins before the target.

    Args:
        study: the study.
        hybrids: rows of its corpus.
        tokenizer: of the study's model.
        name: the other model.

    Returns:
        [rows]; NaN where the target has more tokens there than are kept, or no text.

    Raises:
        ModelError: the model cannot be opened, or a text has more tokens there than it has positions.
    """
    with torch_threads(study.config.threads):
        model, other = load_model(name)
        runner = PrefixSharingRunner(model)
        bos = bos_tokens(other)
        # Documents are joined by a token here; there it is that model's own.
        joint, other_joint = separator_token(tokenizer), separator_token(other)
        bits_of: dict[str, float] = {}
        for _, block in tqdm(hybrids.groupby(["group", "pair"], sort=False), desc=name, unit="pair", file=sys.stderr):
            sequences, sizes = {}, {}
            for row in block.itertuples():
                whole, context = (
                    _text(tokenizer, ids).replace(joint, other_joint) for ids in (row.token_ids, row.token_ids[:-1])
                )
                encoded = other(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                inside = [end > len(context) for _, end in encoded["offset_mapping"]]
                sequences[row.sequence_id] = np.array([*bos, *encoded["input_ids"]])
                check_length(model.config, len(sequences[row.sequence_id]), f"use another model than {name}")
                sizes[row.sequence_id] = sum(inside) if whole.startswith(context) else 0
            measured = runner.measure(sequences)
            for sequence, size in sizes.items():
                bits = measured[sequence].recent_bits
                bits_of[sequence] = float(bits[-size:].sum()) if 0 < size <= min(RECENT, len(bits)) else np.nan
    return np.array([bits_of[sequence] for sequence in hybrids["sequence_id"]])


def _text(tokenizer: Any, ids: np.ndarray) -> str:
    kept = ids[len(bos_tokens(tokenizer)) :]
    return str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))


def _shared_beginning(a: str, b: str) -> int:
    """How many characters both begin with."""
    differ = (i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(differ, min(len(a), len(b)))
