"""Controlled corpora: natural and random sequences, their hybrids, and matched references (section 2.1.1).

A sequence has `length` + 1 tokens; the last is the target. Per group (NLS: natural text, RTS: random words with the
source's part-of-speech ratios) and pair there are

    A, B          two sequences
    hybrid A'(p)  B[:p] + A[p:], one per ratio; p = round(ratio * length)
    matched B*    B[:length] + A's target: A and B end in different words and the current word dominates a neuron's
                  activity; B* has A's word after B's whole context

A, B and B* do not depend on the ratio and are stored once; `sequence_id` is a hash of the tokens.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["corpus", *sys.argv[1:]]))

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from clada.coefficients import newest_studies
from clada.errors import InputError, StudyError
from clada.families import check_length, family_of
from clada.models import bos_tokens, load_config, load_tokenizer, model_revision
from clada.paths import as_path
from cladastats.sources import Documents, load_documents
from cladastats.study import STUDIES, Study, StudyConfig, read_config, write_study, write_table

GROUPS = ("nls", "rts")
SCHEMA = pa.schema(
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
    ]
)

# The tagger is the slow part (~10,000 words/s), so random sequences draw from a sample of the source: as many words as
# they need, within these bounds. The lower one keeps the ratios of rare tags stable, the upper one ends the waiting.
TAGGED_WORDS = (50_000, 400_000)


@dataclass(frozen=True)
class Window:
    """One sequence before it has a role.

    Attributes:
        token_ids: int32 [length + 1].
        documents: positions at which a document (or the rest of one) begins; the first is 0.
        target_distance: tokens since the target's document began, which may be before the sequence.
        pos_distance: total-variation distance of its part-of-speech ratios from the source's; NaN for natural text.
    """

    token_ids: np.ndarray
    documents: list[int]
    target_distance: int
    pos_distance: float = float("nan")


@dataclass(frozen=True)
class Corpus:
    """All sequences of a study.

    Attributes:
        table: columns of `SCHEMA`, a row a sequence.
        sha256: of all token ids, in order.
        report: what was measured while building: encoding repair, tagger, distances.
    """

    table: pa.Table
    sha256: str
    report: dict[str, Any]


def prefix_length(ratio: float, length: int) -> int:
    """Tokens of B at the start of a hybrid: round(ratio * length)."""
    return round(ratio * length)


def check_ratios(ratios: Sequence[float], length: int) -> None:
    """Refuse ratios that give no hybrid.

    Raises:
        InputError: a ratio outside (0, 1), twice the same, or one whose prefix has no token or leaves none of A.
    """
    if not ratios:
        raise InputError("no ratio given; use for instance --ratios 0.25,0.375,0.5")
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise InputError(f"ratio {ratio} is outside (0, 1); use for instance --ratios 0.25,0.375,0.5")
        if not 0 < prefix_length(ratio, length) < length:
            raise InputError(f"ratio {ratio} of length {length} leaves no token of A or of B; use a longer length")
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
    windows: str = "stream",
) -> Corpus:
    """Build both groups of a study.

    Args:
        documents: the source.
        tokenizer: of the model, a fast one.
        pairs: pairs in each group.
        length: tokens before the target.
        ratios: prefix shares of the hybrids.
        seed: of every draw; the same seed gives the same corpus.
        windows: `stream` cuts the joined documents, `document` stays within one document.

    Raises:
        InputError: too little text (the message says how many pairs fit), or ratios that give no hybrid.
    """
    check_ratios(ratios, length)
    natural = _usable(natural_windows(documents.texts, tokenizer, length, windows), tokenizer, windows)
    if len(natural) < 2 * pairs:
        fit = len(natural) // 2
        raise InputError(
            f"too little text: {fit:,} pairs of {length + 1:,} tokens fit, {pairs:,} asked; use "
            + (f"--pairs {fit}, a shorter --length or more text" if fit else "a shorter --length or more text")
        )
    order = np.random.default_rng([seed, 0]).permutation(len(natural))[: 2 * pairs]
    nls = [natural[i] for i in order]
    pool = tag_words(documents.texts, 2 * pairs * length, np.random.default_rng([seed, 1]))
    draw = RandomSequences(pool, tokenizer, length)
    rts = [draw(np.random.default_rng([seed, 2, i])) for i in range(2 * pairs)]

    rows = []
    for group, sequences in zip(GROUPS, (nls, rts), strict=True):
        for pair in range(pairs):
            a, b = sequences[2 * pair : 2 * pair + 2]
            rows += pair_rows(group, pair, a, b, ratios, length)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    report = {
        "encoding": documents.encoding,
        "natural_windows": len(natural),
        "tagger": f"HanTa {version('HanTa')} (BNC tags)",
        "tagged_words": len(pool.text),
        "pos_strata": len(pool.strata),
        "pos_distance_mean": float(np.mean([s.pos_distance for s in rts])),
        "pos_distance_max": float(np.max([s.pos_distance for s in rts])),
        "pos_distance_rounding_max": draw.rounding_max,
        "punctuation_difference_max": draw.punctuation_max,
    }
    return Corpus(table, tokens_sha256(table), report)


def tokens_sha256(table: pa.Table | pd.DataFrame) -> str:
    """SHA-256 over the token ids of all rows, in order: what a corpus is, whatever file it came in."""
    digest = hashlib.sha256()
    column = table["token_ids"]
    for ids in column.to_pylist() if isinstance(table, pa.Table) else column:
        digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def sequence_id(token_ids: np.ndarray) -> str:
    """What a sequence is called: a hash of its tokens, so that equal ones are stored once."""
    return hashlib.sha256(token_ids.astype("<i4").tobytes()).hexdigest()[:20]


def pair_rows(
    group: str, pair: int, a: Window, b: Window, ratios: Sequence[float], length: int
) -> list[dict[str, Any]]:
    """The rows of one pair: A, B, the matched reference B*, and one hybrid per ratio."""
    rows = [_row(group, "A", pair, a), _row(group, "B", pair, b)]
    ids = np.append(b.token_ids[:length], a.token_ids[length]).astype(np.int32)
    # The target of B* opens nothing of B: only its own token is of another document.
    matched = Window(ids, [*[d for d in b.documents if d < length], length], 0)
    rows.append(_row(group, "matched", pair, matched))
    for ratio in ratios:
        p = prefix_length(ratio, length)
        ids = np.concatenate([b.token_ids[:p], a.token_ids[p:]])
        starts = [*[d for d in b.documents if d < p], p, *[d for d in a.documents if d > p]]
        hybrid = Window(ids, starts, min(a.target_distance, length - p))
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
    }


# -- natural language sequences -----------------------------------------------------------------------------------


def separator_token(tokenizer: Any) -> str:
    """The token that joins documents: the one of pretraining where the vocabulary names it, else end of text.

    Chat models end a turn with a token of its own (`<|im_end|>`), which between plain documents would be out of place.

    Raises:
        InputError: the tokenizer has neither.
    """
    vocabulary = tokenizer.get_vocab()
    for token in ("<|endoftext|>", "<|end_of_text|>", tokenizer.eos_token):
        if token in vocabulary:
            return str(token)
    raise InputError("the tokenizer has no end-of-text token to join documents with; use --windows document")


def _usable(found: list[Window], tokenizer: Any, windows: str) -> list[Window]:
    """Windows a pair can be made of: each text once, and no target that is the separator instead of a word."""
    separator = tokenizer.convert_tokens_to_ids(separator_token(tokenizer)) if windows == "stream" else None
    once = {window.token_ids.tobytes(): window for window in reversed(found)}
    return [w for w in found if once[w.token_ids.tobytes()] is w and w.token_ids[-1] != separator]


def natural_windows(texts: Sequence[str], tokenizer: Any, length: int, windows: str) -> list[Window]:
    """Consecutive, non-overlapping windows of natural text, in the order of the source.

    Args:
        texts: documents.
        tokenizer: of the model.
        length: tokens before the target.
        windows: `stream`: documents joined by the separator, then cut; `document`: each document cut by itself.
    """
    # verbose=False: documents longer than the model's context are meant to be cut here.
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    bos = bos_tokens(tokenizer)
    size = length + 1 - len(bos)
    if windows == "document":
        return [
            Window(np.array(bos + ids[i : i + size], dtype=np.int32), [0], i + size - 1)
            for ids in encoded
            for i in range(0, len(ids) - size + 1, size)
        ]
    separator = tokenizer.convert_tokens_to_ids(separator_token(tokenizer))
    stream = np.concatenate([np.array([*ids, separator], dtype=np.int32) for ids in encoded])
    starts = np.cumsum([0, *[len(ids) + 1 for ids in encoded]])[:-1]
    cut = []
    for begin in range(0, len(stream) - size + 1, size):
        end = begin + size
        inside = starts[np.searchsorted(starts, begin, side="right") : np.searchsorted(starts, end)]
        own = starts[np.searchsorted(starts, end - 1, side="right") - 1]
        ids = np.concatenate([np.array(bos, dtype=np.int32), stream[begin:end]])
        cut.append(Window(ids, [0, *(inside - begin + len(bos)).tolist()], int(end - 1 - own)))
    return cut


# -- random sequences ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaggedWords:
    """Words of the source with what they are drawn by.

    Attributes:
        text: each word with the white space that stood before it; never none before a letter or digit.
        stratum: int [words], index into `strata`.
        strata: names: the tag of a word, the mark itself for punctuation.
        ratio: float [strata], share of each in the source.
        punctuation: bool [strata].
    """

    text: list[str]
    stratum: np.ndarray
    strata: list[str]
    ratio: np.ndarray
    punctuation: np.ndarray


def tag_words(texts: Sequence[str], needed: int, rng: np.random.Generator) -> TaggedWords:
    """Tag a random sample of documents.

    Args:
        texts: documents.
        needed: words the random sequences need together, about; more are drawn again, never within a sequence.
        rng: draws the documents.
    """
    from HanTa import HanoverTagger
    from syntok import segmenter

    tagger = HanoverTagger.HanoverTagger("morphmodel_en.pgz")
    enough = min(max(needed, TAGGED_WORDS[0]), TAGGED_WORDS[1])
    words: list[str] = []
    names: list[str] = []
    for i in rng.permutation(len(texts)):
        if len(words) >= enough:
            break
        document, end = texts[i], 0
        for paragraph in segmenter.analyze(document):
            for tokens in paragraph:
                sentence = [token for token in tokens if token.value]  # bare line breaks come as empty tokens
                tags = tagger.tag_sent([token.value for token in sentence], taglevel=1)
                for token, (_, _, tag) in zip(sentence, tags, strict=True):
                    # A drawn word has other neighbours: the document's first stands after a space as any other does,
                    # and one that stood right after a quote or a hyphen must not grow onto the word before it.
                    space = document[end : token.offset] if end else " "
                    if not space and token.value[0].isalnum():
                        space = " "
                    words.append(space + token.value)
                    end = token.offset + len(token.value)
                    is_mark = not any(c.isalnum() for c in token.value)
                    names.append(f"mark {token.value}" if is_mark else tag)
    strata, stratum = np.unique(names, return_inverse=True)
    return TaggedWords(
        words,
        stratum,
        strata.tolist(),
        np.bincount(stratum) / len(words),
        np.array([name.startswith("mark ") for name in strata]),
    )


def quotas(ratio: np.ndarray, n: int) -> np.ndarray:
    """Whole numbers nearest to n * ratio that add up to n (largest remainder: no others have a smaller distance)."""
    exact = ratio * n
    count = np.floor(exact).astype(int)
    count[np.argsort(count - exact, kind="stable")[: n - count.sum()]] += 1
    return count


def total_variation(count: np.ndarray, ratio: np.ndarray) -> float:
    """Total-variation distance of counts from ratios, 0 (same) to 1 (disjoint)."""
    return float(np.abs(count / count.sum() - ratio).sum() / 2)


class RandomSequences:
    """Draws random sequences that keep the part-of-speech ratios and the punctuation of the source.

    A stratified draw: each stratum (tag, or mark) gives its share of words, in random order. Words are then swapped for
    others of their stratum until the tokens fill the sequence exactly, so that the cut leaves no word out and the
    ratios are those of the draw.

    Attributes:
        rounding_max: the largest distance so far that whole numbers of words alone make unavoidable.
        punctuation_max: the largest difference so far in the share of punctuation.
    """

    def __init__(self, pool: TaggedWords, tokenizer: Any, length: int) -> None:
        self.pool = pool
        self.tokenizer = tokenizer
        self.bos = bos_tokens(tokenizer)
        self.tokens = length + 1 - len(self.bos)
        self.members = [np.flatnonzero(pool.stratum == s) for s in range(len(pool.strata))]
        alone = tokenizer(pool.text, add_special_tokens=False, verbose=False)["input_ids"]
        self.size = np.array([len(ids) for ids in alone])
        self.rounding_max = 0.0
        self.punctuation_max = 0.0

    def __call__(self, rng: np.random.Generator) -> Window:
        """Draw one sequence.

        Raises:
            InputError: the pool has too few words.
        """
        shuffled = [rng.permutation(members) for members in self.members]
        key = rng.random(len(self.pool.text))  # a word's place in the random order
        n = round(self.tokens / self.size.mean())
        chosen, ids, ends = self._fit(self._choose(n, shuffled, key), rng)
        while len(ids) < self.tokens:  # a small pool may have no longer words left to swap in
            n += 1
            chosen, ids, ends = self._fit(self._choose(n, shuffled, key), rng)
        characters = np.cumsum([len(self.pool.text[i]) for i in chosen])
        kept = chosen[: int(np.searchsorted(characters, ends[self.tokens - 1])) + 1]
        count = np.bincount(self.pool.stratum[kept], minlength=len(self.pool.strata))
        marks, ratio = self.pool.punctuation, self.pool.ratio
        self.rounding_max = max(self.rounding_max, total_variation(quotas(ratio, n), ratio))
        self.punctuation_max = max(
            self.punctuation_max, abs(float(count[marks].sum() / count.sum() - ratio[marks].sum()))
        )
        ids = self.bos + ids[: self.tokens]
        return Window(np.array(ids, dtype=np.int32), [0], self.tokens - 1, total_variation(count, ratio))

    def _choose(self, n: int, shuffled: list[np.ndarray], key: np.ndarray) -> np.ndarray:
        count = quotas(self.pool.ratio, n)
        if any(c > len(words) for words, c in zip(shuffled, count, strict=True)):
            raise InputError(
                f"too little text for random sequences of {self.tokens:,} tokens without repeating a word "
                f"(the source has {len(self.pool.text):,} words); use a shorter --length or more text"
            )
        chosen = np.concatenate([words[:c] for words, c in zip(shuffled, count, strict=True)])
        return chosen[np.argsort(key[chosen])]

    def _fit(self, chosen: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[int], list[int]]:
        """Swap words until the tokens fill the sequence; (words, token ids, end of each token in the text).

        Several rounds, as a token may span a mark and its neighbour: lengths add up only nearly.
        """
        ids, ends = self._encode(chosen)
        for _ in range(20):
            if len(ids) == self.tokens:
                break
            chosen = self._swap(chosen, self.tokens - len(ids), rng)
            ids, ends = self._encode(chosen)
        return chosen, ids, ends

    def _swap(self, chosen: np.ndarray, missing: int, rng: np.random.Generator) -> np.ndarray:
        """Swap words at random places for unused ones of their stratum that bring the length nearer."""
        chosen, used = chosen.copy(), set(chosen.tolist())
        for place in rng.permutation(len(chosen)):
            if missing == 0:
                break
            word = chosen[place]
            # A hundred at random: enough to find one a token longer or shorter where the stratum has any.
            others = rng.choice(self.members[self.pool.stratum[word]], 100)
            gain = self.size[others] - self.size[word]
            nearer = [w for w, g in zip(others, gain, strict=True) if 0 < g * np.sign(missing) <= abs(missing)]
            fresh = next((w for w in nearer if w not in used), None)
            if fresh is not None:
                chosen[place] = fresh
                used.add(int(fresh))
                missing -= int(self.size[fresh] - self.size[word])
        return chosen

    def _encode(self, chosen: np.ndarray) -> tuple[list[int], list[int]]:
        text = "".join(self.pool.text[i] for i in chosen)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]


# -- the stage ----------------------------------------------------------------------------------------------------

# What a study is when nothing else is asked for; the lengths, ratios and pairs are the paper's.
DEFAULTS: dict[str, Any] = {
    "source": "news",
    "model": "smollm2-135m",
    "pairs": 2000,
    "length": 2048,
    "ratios": (0.25, 0.375, 0.5),
    "seed": 0,
    "windows": "stream",
    "storage_dtype": "float32",
    "threads": None,
    "equivalence_margin": 0.05,
}


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    study = make_study(args.study, {name: getattr(args, name) for name in DEFAULTS})
    report = study.config.corpus
    if "made_of" in report:
        raise InputError(f"{study.folder} is made of another study's corpus; give that study's own folder")
    print(
        f"cladastats: {study.folder}: {study.config.pairs} pairs a group; part-of-speech ratios of random sequences "
        f"within {report['pos_distance_max']:.4f} of those of {report['tagged_words']:,} tagged words "
        f"(mean {report['pos_distance_mean']:.4f}; whole words alone leave {report['pos_distance_rounding_max']:.4f}), "
        f"punctuation within {report['punctuation_difference_max']:.4f}",
        file=sys.stderr,
    )


def make_study(folder: str | None, asked: dict[str, Any]) -> Study:
    """Open the study a user means, or build its corpus.

    Args:
        folder: the study's folder; None: the newest below `studies/`, or a new one named after its content.
        asked: the keys of `DEFAULTS`; None where the user said nothing.

    Raises:
        StudyError: the folder holds a study of something else.
        InputError, ModelError, AssetError: what was asked for cannot be built.
    """
    newest = newest_studies(STUDIES)
    path = as_path(folder) if folder is not None else newest[0] if newest else None
    if path is not None and (path / "study.json").is_file():
        study = Study(path)
        for name, value in asked.items():
            there = getattr(study.config, name)
            if value is not None and value != there:
                raise StudyError(
                    f"{path} is a study with {name} {there}, not {value}; give another folder with --study"
                )
        if not (path / "corpus.parquet").is_file():
            _rebuild_corpus(study)
        return study
    settings = {name: DEFAULTS[name] if value is None else value for name, value in asked.items()}
    if path is None:
        model, source = Path(settings["model"]).name, settings["source"].partition(":")[0]
        path = STUDIES / f"{model}-{source}-{settings['pairs']}x{settings['length']}-seed{settings['seed']}"
    return _build_study(path, settings)


def repeat_study(recorded: Path, folder: str | None) -> Study:
    """Build a study as the `study.json` of another one records it, or open the one that was.

    Args:
        recorded: that file.
        folder: of the new study.

    Raises:
        StudyError: no folder or one of another study, a file of derived sequences, or the model, the tokenizer, the
            source or what is built of them is not what it was.
    """
    wanted = read_config(recorded)
    if folder is None:
        raise StudyError("--from needs --study, the folder of the new study")
    if "made_of" in wanted.corpus:
        raise StudyError(f"{recorded} is of sequences made from another study; repeat that one, then make them again")
    path = as_path(folder)
    if (path / "study.json").is_file():
        study = Study(path)
        same = study.config.equivalence_margin == wanted.equivalence_margin
        if study.config.identity() != wanted.identity() or not same:
            raise StudyError(f"{path} is another study than that of {recorded}; give another folder with --study")
        return study
    config, corpus = _prepare({name: getattr(wanted, name) for name in DEFAULTS})
    for name, what in (
        ("revision", f"the model {wanted.model}"),
        ("tokenizer_sha256", f"the tokenizer of {wanted.model}"),
        ("source_sha256", f"the source {wanted.source}"),
        ("corpus_sha256", "the corpus built from the same source (by other versions of packages)"),
    ):
        if getattr(config, name) != getattr(wanted, name):
            raise StudyError(
                f"{what} is not what it was for {recorded} ({name} {getattr(config, name)[:20]}, not "
                f"{getattr(wanted, name)[:20]}); without it the study cannot be repeated"
            )
    return _write_study(path, config, corpus)


def _rebuild_corpus(study: Study) -> None:
    """Write the corpus of a study again, from its own settings."""
    if "made_of" in study.config.corpus:
        raise StudyError(
            f"{study.folder} has lost its corpus.parquet, which was made of another study's; delete the folder, and "
            "run the command that made it on that study again"
        )
    config, corpus = _prepare({name: getattr(study.config, name) for name in DEFAULTS})
    if (config.corpus_sha256, config.revision) != (study.config.corpus_sha256, study.config.revision):
        raise StudyError(
            f"{study.folder} has lost its corpus.parquet, and {study.config.source} or {study.config.model} now gives "
            "another; make a new study with another --study"
        )
    write_table(study.folder / "corpus.parquet", corpus.table, corpus.sha256)


def _build_study(folder: Path, settings: dict[str, Any]) -> Study:
    return _write_study(folder, *_prepare(settings))


def _write_study(folder: Path, config: StudyConfig, corpus: Corpus) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "corpus.parquet", corpus.table, corpus.sha256)
    write_study(folder, config)
    return Study(folder)


def _prepare(settings: dict[str, Any]) -> tuple[StudyConfig, Corpus]:
    import torch

    check_ratios(settings["ratios"], settings["length"])
    if not (math.isfinite(settings["equivalence_margin"]) and settings["equivalence_margin"] > 0):
        raise InputError("the equivalence margin must be a positive number of response points per 1,000 tokens")
    model_config = load_config(settings["model"])
    family_of(model_config)
    check_length(model_config, settings["length"] + 1, "use a shorter --length")
    tokenizer = load_tokenizer(settings["model"])
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {settings['model']} has no fast version, which corpora need; use another model"
        )
    documents = load_documents(settings["source"])
    corpus = build_corpus(
        documents, tokenizer, **{k: settings[k] for k in ("pairs", "length", "ratios", "seed", "windows")}
    )
    config = StudyConfig(
        **{name: settings[name] for name in DEFAULTS if name not in ("threads", "ratios")},
        ratios=tuple(settings["ratios"]),
        threads=settings["threads"] or torch.get_num_threads(),
        batch=1,
        dtype="float32",
        revision=model_revision(settings["model"]),
        tokenizer_sha256=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        vocab_size=model_config.vocab_size,
        source_sha256=documents.sha256,
        separator=separator_token(tokenizer) if settings["windows"] == "stream" else "",
        corpus=corpus.report,
        corpus_sha256=corpus.sha256,
    )
    return config, corpus
