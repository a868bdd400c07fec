"""Hybrids that should not act as prefixes do, if it is the prefix that matters; and other studies made of a study.

For every ratio of the first pairs, beside the same A, B and B*:

    unrelated  the prefix of C, the B of another pair: does any other beginning do it?
    shuffled   the prefix of B, its tokens in random order: do its words do it without their order?
    middle     the tokens of B's prefix in the middle of A
    end        the tokens of B's prefix right before A's target: is it being first, or being near?

All are compared with B, as the hybrids of the study are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from clada.errors import InputError, StudyError
from clada.models.open import bos_tokens
from cladastats.sequences.pairs import CORPUS_SCHEMA, sequence_id, tokens_sha256
from cladastats.sequences.tokenizer import study_tokenizer
from cladastats.study import Study, create_study

PLACEBOS = {
    "unrelated": "prefix of an unrelated text",
    "shuffled": "prefix of B, shuffled",
    "middle": "B's tokens in the middle",
    "end": "B's tokens at the end",
}

PAIRS = 32


def make_placebo(study: Study, pairs: int | None = None) -> Study:
    """Open the placebo study of a study, or build its corpus.

    Args:
        study: the study.
        pairs: of each group, from the first on; None: those that are there, or 32.

    Raises:
        StudyError: the one that is there has another number of pairs, or belongs to another corpus; or the model's name
            opens another tokenizer than the study's.
        InputError: fewer than two pairs, or prefixes so short that a placebo is A, B or the hybrid itself.
    """

    def rows(n_pairs: int) -> Iterator[dict[str, Any]]:
        bos = len(bos_tokens(study_tokenizer(study.config)))
        return placebo_rows(study.corpus, n_pairs, bos, study.config.seed)

    return derived_study(study, "placebo", pairs, rows, {"placebos": list(PLACEBOS)}, study.config.length)


def derived_study(
    study: Study,
    name: str,
    pairs: int | None,
    rows: Callable[[int], Iterator[dict[str, Any]]],
    facts: dict[str, Any],
    length: int,
) -> Study:
    """Open a study made of another one's first pairs, or build its corpus.

    Args:
        study: the other one, in whose folder it is kept.
        name: of its folder.
        pairs: of each group, as in `make_placebo`.
        rows: of its corpus, for so many pairs.
        facts: what its study.json says of the corpus, beside what it was made of.
        length: tokens before its targets.

    Raises:
        StudyError, InputError: as in `make_placebo`.
    """
    folder, config = study.folder / name, study.config
    if not (folder / "study.json").is_file():
        n_pairs = min(pairs or PAIRS, config.pairs)
        if n_pairs < 2:
            raise InputError(
                f"{name} hybrids need 2 pairs at least, as their comparison is between pairs; use more pairs"
            )
        schema = CORPUS_SCHEMA.append(pa.field("placebo", pa.string())) if "placebos" in facts else CORPUS_SCHEMA
        made = list(rows(n_pairs))
        for row in made:
            if pd.isna(row.get("document")):  # random texts have none, which pandas read as NaN, and that is no number
                row["document"] = None
        table = pa.Table.from_pylist(made, schema=schema)
        corpus = {"made_of": config.corpus_sha256, **facts}
        derived = replace(config, pairs=n_pairs, length=length, corpus=corpus, corpus_sha256=tokens_sha256(table))
        create_study(folder, derived, table)
    existing = Study(folder)  # this one, or that of another process which was faster
    if existing.config.corpus.get("made_of") != config.corpus_sha256:
        raise StudyError(f"{folder} belongs to another corpus; delete it, and run the command again")
    if pairs is not None and min(pairs, config.pairs) != existing.config.pairs:
        raise StudyError(f"{folder} has {existing.config.pairs} pairs, not {pairs}; delete it to make another")
    return existing


def placebo_rows(corpus: pd.DataFrame, pairs: int, bos: int, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of a placebo study: A, B and B* as they are, and every placebo in the place of each hybrid.

    Args:
        corpus: of the study it is made of.
        pairs: of each group, from the first on.
        bos: how many tokens the tokenizer puts before every text.
        seed: of the study, for the shuffles.

    Raises:
        InputError: a placebo is A, B or the hybrid itself.
    """
    corpus = corpus[corpus["pair"] < pairs]
    for group, members in corpus.groupby("group", sort=True):
        texts = members[members["role"] == "B"].set_index("pair")["token_ids"]
        for pair, block in members.groupby("pair"):
            roles = block[block["role"] != "hybrid"]
            yield from roles.assign(placebo=None, ratio=None, prefix_len=None).to_dict("records")
            a = roles.set_index("role")["token_ids"]["A"]
            for hybrid in block[block["role"] == "hybrid"].itertuples():
                p = int(hybrid.prefix_len)
                rng = np.random.default_rng([seed, 3, group == "nls", pair, p])
                made = placebo_sequences(a, texts[pair], texts[(pair + 1) % pairs], p, bos, rng)
                for name, ids in made.items():
                    if any(np.array_equal(ids, other) for other in (a, texts[pair], hybrid.token_ids)):
                        raise InputError(
                            f"the placebo '{name}' of {group.upper()} pair {pair} at ratio {hybrid.ratio} is A, B or "
                            "the hybrid itself, so it compares nothing; make a study of a longer --length or other "
                            "ratios"
                        )
                    yield {
                        "sequence_id": sequence_id(ids),
                        "group": group,
                        "role": "hybrid",
                        "pair": pair,
                        "ratio": hybrid.ratio,
                        "prefix_len": p,
                        "token_ids": ids,
                        "documents": [0],
                        "target_distance": None,
                        "pos_distance": None,
                        "following": getattr(hybrid, "following", None),
                        "document": None,
                        "cluster": getattr(hybrid, "cluster", pair),
                        "placebo": name,
                    }


def placebo_sequences(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, p: int, bos: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The placebo hybrids of a pair at one prefix length.

    Args:
        a: token ids of A, [length + 1].
        b: of B.
        c: of an unrelated text.
        p: prefix length.
        bos: how many tokens the tokenizer puts before every text; they stay at the start.
        rng: of the shuffle.

    Returns:
        token ids [length + 1] under the names of `PLACEBOS`; all end in A's target.
    """
    length, prefix = len(a) - 1, b[bos:p]

    def moved_to(begin: int) -> np.ndarray:
        ids = a.copy()
        ids[begin : begin + len(prefix)] = prefix
        return ids

    shuffled = rng.permutation(prefix)
    while np.array_equal(shuffled, prefix) and len(np.unique(prefix)) > 1:  # a few tokens may come in order by chance
        shuffled = rng.permutation(prefix)
    return {
        "unrelated": np.concatenate([c[:p], a[p:]]),
        "shuffled": np.concatenate([a[:bos], shuffled, a[p:]]),
        "middle": moved_to(bos + (length - bos - len(prefix)) // 2),
        "end": moved_to(length - len(prefix)),
    }
