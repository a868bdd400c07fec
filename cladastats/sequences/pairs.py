"""Controlled corpora: natural and random sequences, their hybrids, and matched references (paper, section 2.1.1).

A sequence has `length` + 1 tokens; the last is the target. Per group (NLS: natural text, RTS: random words with the
source's part-of-speech ratios) and pair there are

    A, B          two sequences
    hybrid A'(p)  B[:p] + A[p:], one per ratio; p = round(ratio * length)
    matched B*    B[:length] + A's target: A and B end in different words and the current word dominates a neuron's
                  activity; B* has A's word after B's whole context

A, B and B* do not depend on the ratio and are stored once; `sequence_id` is a hash of the tokens.

A natural sequence lies within one document: a separator between prefix and target is a rival explanation of any null
result, as a model is trained to forget what stands before it. A and B are of different documents, and pairs that share
a document bear the same number of a cluster, by which the regressions cluster their errors. Joined documents (the
paper's form, `windows` = `stream`) have separators inside; the random sequences of such a study have them at the same
places.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.cluster.hierarchy import DisjointSet

from clada.errors import InputError
from clada.models.open import bos_tokens
from cladastats.language import language
from cladastats.sequences.random_words import RandomSequences, tag_words
from cladastats.sequences.sources import Documents
from cladastats.sequences.windows import Window, natural_windows, separator_token, usable_windows

GROUPS = ("nls", "rts")

CORPUS_SCHEMA = pa.schema(
    [
        ("sequence_id", pa.string()),
        ("group", pa.string()),
        ("role", pa.string()),
        ("pair", pa.int32()),
        ("ratio", pa.float64()),
        ("prefix_len", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("documents", pa.list_(pa.int32())),
        ("target_distance", pa.int32()),
        ("pos_distance", pa.float64()),
        ("following", pa.list_(pa.int32())),
        ("document", pa.int32()),
        ("cluster", pa.int32()),
    ]
)


@dataclass(frozen=True)
class PairCorpus:
    """All sequences of a study.

    Attributes:
        table: columns of `CORPUS_SCHEMA`, a row a sequence.
        sha256: of all token ids, in order.
        report: what was measured while building: encoding repair, tagger, distances.
    """

    table: pa.Table
    sha256: str
    report: dict[str, Any]


def prefix_length(ratio: float, length: int) -> int:
    """Tokens of B at the start of a hybrid, BOS included: round(ratio * length)."""
    return round(ratio * length)


def check_ratios(ratios: Sequence[float], length: int, bos: int = 0) -> None:
    """Refuse ratios that give no hybrid.

    Args:
        ratios: prefix shares of the hybrids.
        length: tokens before the target, BOS included.
        bos: tokens that the tokenizer puts before every text: A and B share them, so alone they are no prefix.

    Raises:
        InputError: a ratio outside (0, 1), twice the same, or one whose prefix has no token of B or leaves none of A.
    """
    if not ratios:
        raise InputError("no ratio given; use for instance --ratios 0.25,0.375,0.5")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise InputError(f"ratio {ratio} is outside (0, 1); use for instance --ratios 0.25,0.375,0.5")
        if not 0 < prefix_length(ratio, length) < length:
            raise InputError(f"ratio {ratio} of length {length} leaves no token of A or of B; use a longer length")
        if prefix_length(ratio, length) <= bos:
            raise InputError(
                f"ratio {ratio} of length {length} gives a prefix of the beginning-of-text token alone, which A has "
                "too; use a longer --length or a larger ratio"
            )
    if len({prefix_length(ratio, length) for ratio in ratios}) < len(ratios):
        raise InputError(f"two of the ratios {', '.join(map(str, ratios))} give the same prefix; name each once")


def build_corpus(
    documents: Documents,
    tokenizer: Any,
    *,
    pairs: int,
    length: int,
    ratios: Sequence[float],
    seed: int,
    windows: str = "document",
) -> PairCorpus:
    """Build both groups of a study.

    Args:
        documents: the source.
        tokenizer: of the model, a fast one.
        pairs: pairs in each group.
        length: tokens before the target.
        ratios: prefix shares of the hybrids.
        seed: of every draw; the same seed gives the same corpus.
        windows: `document` stays within one document, `stream` cuts the joined documents.

    Returns:
        the corpus: for every group and pair, in order, A, B, B* and the hybrids in the order of the ratios.

    Raises:
        InputError: too little text (the message says how many pairs fit), or ratios that give no hybrid.
    """
    check_ratios(ratios, length, len(bos_tokens(tokenizer)))
    candidates = usable_windows(natural_windows(documents.texts, tokenizer, length, windows), tokenizer, windows)
    rng = np.random.default_rng([seed, 0])
    natural = list(stream_pairs(candidates, rng) if windows == "stream" else document_pairs(candidates, rng))
    if len(natural) < pairs:
        fit = len(natural)
        remedy = f"--pairs {fit}, a shorter --length or more text" if fit else "a shorter --length or more text"
        where = ""
        if windows == "document":
            where = "within documents, A and B of different ones, "
            remedy += ", or join documents with --windows stream"
        raise InputError(
            f"too little text: {fit:,} pairs of {length + 1:,} tokens {where}fit, {pairs:,} asked; use {remedy}"
        )
    natural = natural[:pairs]
    pool = tag_words(documents.texts, 2 * pairs * length, np.random.default_rng([seed, 1]))
    draw = RandomSequences(pool, tokenizer, length)
    separator = tokenizer.convert_tokens_to_ids(separator_token(tokenizer)) if windows == "stream" else None

    rows = []
    drawn = []
    for number, (a, b, _) in enumerate(natural):
        for i, like in enumerate((a, b), start=2 * number):
            drawn.append(draw(np.random.default_rng([seed, 2, i]), like.separators, separator))
    random: list[Paired] = [(drawn[2 * i], drawn[2 * i + 1], i) for i in range(pairs)]
    for group, paired in zip(GROUPS, (natural, random), strict=True):
        for pair, (a, b, cluster) in enumerate(paired):
            rows += [{**row, "cluster": cluster} for row in pair_rows(group, pair, a, b, ratios, length)]
    table = pa.Table.from_pylist(rows, schema=CORPUS_SCHEMA)
    report = {
        "encoding": documents.encoding,
        "natural_windows": len(candidates),
        "natural_clusters": len({cluster for *_, cluster in natural}),
        "tagger": language().tagger_name,
        "tagged_words": len(pool.text),
        "pos_strata": len(pool.strata),
        "pos_distance_mean": float(np.mean([s.pos_distance for s in drawn])),
        "pos_distance_max": float(np.max([s.pos_distance for s in drawn])),
        "pos_distance_rounding_max": draw.rounding_max,
        "punctuation_difference_max": draw.punctuation_max,
    }
    return PairCorpus(table, tokens_sha256(table), report)


Paired = tuple[Window, Window, int]
"""A, B and the number of the pair's cluster: pairs that share a document have the same."""


def stream_pairs(windows: Sequence[Window], rng: np.random.Generator) -> Iterator[Paired]:
    """Windows of joined documents, paired at random; a cluster of its own each.

    Neighbours in the stream share the document that the cut goes through, so that all of them hang together: there are
    no clusters of documents to be told apart.
    """
    order = rng.permutation(len(windows))
    for cluster, place in enumerate(range(0, len(order) - 1, 2)):
        a, b = (windows[i] for i in order[place : place + 2])
        yield a, b, cluster


def document_pairs(windows: Sequence[Window], rng: np.random.Generator) -> Iterator[Paired]:
    """Windows within documents, paired so that A and B are of different documents and clusters are many and small.

    Two documents of about the same length are paired, and give a pair for each of their windows. One pair of every two
    documents comes before the second of any. What is left over where one has more windows comes last, paired with what
    other documents have left; there clusters grow together.

    Args:
        windows: each with its `document`.
        rng: of the draw.

    Yields:
        A, B and the number of their cluster.
    """
    of_document: dict[int | None, list[Window]] = defaultdict(list)
    for i in rng.permutation(len(windows)):
        of_document[windows[i].document].append(windows[i])
    documents = sorted(of_document, key=lambda document: -len(of_document[document]))  # stable: equal ones stay drawn
    couples = [
        (x, y, list(zip(of_document[x], of_document[y], strict=False))) for x, y in list(pairwise(documents))[::2]
    ]
    left = {document: of_document[document] for document in documents}
    for x, y, made in couples:
        left[x], left[y] = of_document[x][len(made) :], of_document[y][len(made) :]
    extra = list(_pair_rest(left))
    shared: Any = DisjointSet(documents)  # scipy has no types for it
    for x, y in [*((x, y) for x, y, _ in couples), *((a.document, b.document) for a, b in extra)]:
        shared.merge(x, y)
    number = {document: i for i, document in enumerate(dict.fromkeys(shared[document] for document in documents))}
    order = rng.permutation(len(couples))
    for turn in range(max((len(made) for *_, made in couples), default=0)):
        for i in order:
            x, _, made = couples[i]
            if turn < len(made):
                yield *made[turn], number[shared[x]]
    for a, b in extra:
        yield a, b, number[shared[a.document]]


def _pair_rest(left: dict[int | None, list[Window]]) -> Iterator[tuple[Window, Window]]:
    """Pair windows of different documents, always of the two that have most left, until one document has all."""
    left = {document: list(windows) for document, windows in left.items()}
    while len(most := sorted((d for d in left if left[d]), key=lambda d: -len(left[d]))[:2]) == 2:
        x, y = most
        yield left[x].pop(), left[y].pop()


def tokens_sha256(table: pa.Table | pd.DataFrame) -> str:
    """SHA-256 over the token ids of all rows, in order: what a corpus is, whatever file it came in."""
    digest = hashlib.sha256()
    column = table["token_ids"]
    for ids in column.to_pylist() if isinstance(table, pa.Table) else column:
        digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def sequence_id(token_ids: np.ndarray) -> str:
    """Name of a sequence: a hash of its tokens, so that equal ones are stored once.

    Args:
        token_ids: int [length + 1].
    """
    return hashlib.sha256(token_ids.astype("<i4").tobytes()).hexdigest()[:20]


def pair_rows(
    group: str, pair: int, a: Window, b: Window, ratios: Sequence[float], length: int
) -> list[dict[str, Any]]:
    """The rows of one pair: A, B, the matched reference B*, and one hybrid per ratio.

    Args:
        group: of `GROUPS`.
        pair: number of the pair in its group, from 0 on.
        a: the window whose target all but B end in.
        b: the window that gives the prefixes.
        ratios: prefix shares of the hybrids.
        length: tokens before the target.

    Returns:
        values of the columns of `CORPUS_SCHEMA`.

    Raises:
        InputError: a hybrid is A or B itself, as they begin or end with the same tokens.
    """
    rows = [_row(group, "A", pair, a), _row(group, "B", pair, b)]
    ids = np.append(b.token_ids[:length], a.token_ids[length]).astype(np.int32)
    # The target of B* opens nothing of B: only its own token is of another document.
    starts = [*[d for d in b.documents if d < length], length]
    matched = Window(ids, starts, 0, following=a.following, document=a.document)
    rows.append(_row(group, "matched", pair, matched))
    for ratio in ratios:
        p = prefix_length(ratio, length)
        ids = np.concatenate([b.token_ids[:p], a.token_ids[p:]])
        for name, whole in (("A", a), ("B", b)):
            if np.array_equal(ids, whole.token_ids):
                shared = "first" if name == "A" else "last"
                raise InputError(
                    f"the hybrid of {group.upper()} pair {pair} at ratio {ratio} is {name} itself, as A and B share "
                    f"their {shared} tokens; use a longer --length, other ratios or another --seed"
                )
        starts = [*[d for d in b.documents if d < p], p, *[d for d in a.documents if d > p]]
        distance = min(a.target_distance, length - p)
        hybrid = Window(ids, starts, distance, following=a.following, document=a.document)
        rows.append(_row(group, "hybrid", pair, hybrid, ratio, p))
    return rows


def _row(
    group: str, role: str, pair: int, s: Window, ratio: float | None = None, prefix: int | None = None
) -> dict[str, Any]:
    return {
        "sequence_id": sequence_id(s.token_ids),
        "group": group,
        "role": role,
        "pair": pair,
        "ratio": ratio,
        "prefix_len": prefix,
        "token_ids": s.token_ids,
        "documents": s.documents,
        "target_distance": s.target_distance,
        "pos_distance": s.pos_distance,
        "following": s.following,
        "document": s.document,
    }
