"""Random sequences with the part-of-speech ratios and the punctuation of a source (paper, section 2.1.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clada.errors import InputError
from clada.models.open import bos_tokens
from cladastats.language import language
from cladastats.sequences.windows import FOLLOWING_TOKENS, Window

# The tagger is the slow part, so random sequences draw from a sample of the source: as many words as they need, within
# these bounds. The lower one keeps the ratios of rare tags stable, the upper one ends the waiting.
TAGGED_WORDS = (50_000, 400_000)


@dataclass(frozen=True)
class TaggedWords:
    """Words of a source, each with the stratum it is drawn from: its part of speech, or the mark it is.

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

    Returns:
        the words of as many documents as were needed, in the order of the draw.
    """
    spoken = language()
    tags_of = spoken.tagger()
    enough = min(max(needed, TAGGED_WORDS[0]), TAGGED_WORDS[1])
    words: list[str] = []
    names: list[str] = []
    for i in rng.permutation(len(texts)):
        if len(words) >= enough:
            break
        document, end = texts[i], 0
        for sentence in spoken.sentences(document):
            tags = tags_of([token.value for token in sentence])
            for token, tag in zip(sentence, tags, strict=True):
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


@dataclass(frozen=True)
class Encoded:
    """Words of the pool as one text, in tokens.

    Attributes:
        words: int, indices into the pool.
        ids: token ids of the text.
        ends: end of each token in the text, characters.
        word_ends: int, end of each word in the text, characters.
    """

    words: np.ndarray
    ids: list[int]
    ends: list[int]
    word_ends: np.ndarray

    def until(self, tokens: int) -> np.ndarray:
        """The words that so many tokens reach into."""
        if tokens == 0:
            return self.words[:0]
        return self.words[: int(np.searchsorted(self.word_ends, self.ends[tokens - 1])) + 1]


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

    def __call__(
        self, rng: np.random.Generator, separators: Sequence[int] = (), separator: int | None = None
    ) -> Window:
        """Draw one sequence.

        Args:
            rng: of the draw.
            separators: positions that hold a separator of documents; a word ends before it, another begins after it.
            separator: its token; None where there are no positions.

        Raises:
            InputError: the pool has too few words.
        """
        places = [place - len(self.bos) for place in separators]
        bounds = np.array([-1, *places, self.tokens])
        sizes = np.diff(bounds) - 1
        whole = self._draw(int(sizes.sum()), rng)
        pieces = [whole] if len(sizes) == 1 else self._split(whole.words, sizes, rng)
        kept: list[int] = []
        ids: list[int] = []
        for piece, size in zip(pieces, sizes, strict=True):
            kept += piece.until(size).tolist()
            ids += [*piece.ids[:size], *([] if len(ids) + size == self.tokens or separator is None else [separator])]
        count = np.bincount(self.pool.stratum[kept], minlength=len(self.pool.strata))
        marks, ratio = self.pool.punctuation, self.pool.ratio
        self.rounding_max = max(self.rounding_max, total_variation(quotas(ratio, len(whole.words)), ratio))
        self.punctuation_max = max(
            self.punctuation_max, abs(float(count[marks].sum() / count.sum() - ratio[marks].sum()))
        )
        return Window(
            np.array(self.bos + ids, dtype=np.int32),
            [0, *(place + 1 for place in separators)],
            int(sizes[-1]) - 1,
            total_variation(count, ratio),
            np.array(piece.ids[size : size + FOLLOWING_TOKENS], dtype=np.int32),
        )

    def _draw(self, tokens: int, rng: np.random.Generator) -> Encoded:
        """Words of the source's ratios, in random order, that fill so many tokens."""
        shuffled = [rng.permutation(members) for members in self.members]
        key = rng.random(len(self.pool.text))  # a word's place in the random order
        n = round(tokens / self.size.mean())
        drawn = self._fit(self._choose(n, shuffled, key), tokens, rng)
        while len(drawn.ids) < tokens:  # a small pool may have no longer words left to swap in
            n += 1
            drawn = self._fit(self._choose(n, shuffled, key), tokens, rng)
        return drawn

    def _split(self, words: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> list[Encoded]:
        """The words dealt out, in their order, to pieces of so many tokens; a word or two are swapped or added."""
        pieces = []
        for size in sizes:
            n = int(np.searchsorted(np.cumsum(self.size[words]), size)) + 1 if size else 0
            piece = self._fit(words[:n], size, rng, used=words)
            while len(piece.ids) < size:
                n += 1
                if n > len(words):
                    words = np.append(words, rng.integers(len(self.pool.text)))
                piece = self._fit(words[:n], size, rng, used=words)
            words = words[n:]
            pieces.append(piece)
        return pieces

    def _choose(self, n: int, shuffled: list[np.ndarray], key: np.ndarray) -> np.ndarray:
        count = quotas(self.pool.ratio, n)
        if any(c > len(words) for words, c in zip(shuffled, count, strict=True)):
            raise InputError(
                f"too little text for random sequences of {self.tokens:,} tokens without repeating a word "
                f"(the source has {len(self.pool.text):,} words); use a shorter --length or more text"
            )
        chosen = np.concatenate([words[:c] for words, c in zip(shuffled, count, strict=True)])
        return chosen[np.argsort(key[chosen])]

    def _fit(self, chosen: np.ndarray, tokens: int, rng: np.random.Generator, used: Iterable[int] = ()) -> Encoded:
        """Swap words until they fill so many tokens, as nearly as can be; `used` ones are not swapped in.

        Several rounds, as a token may span a mark and its neighbour: lengths add up only nearly.
        """
        encoded = self._encode(chosen)
        for _ in range(20):
            if len(encoded.ids) == tokens:
                break
            chosen = self._swap(chosen, tokens - len(encoded.ids), rng, {*chosen.tolist(), *used})
            encoded = self._encode(chosen)
        return encoded

    def _swap(self, chosen: np.ndarray, missing: int, rng: np.random.Generator, used: set[int]) -> np.ndarray:
        """Swap words at random places for unused ones of their stratum that bring the length nearer."""
        chosen = chosen.copy()
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

    def _encode(self, chosen: np.ndarray) -> Encoded:
        texts = [self.pool.text[i] for i in chosen]
        encoded = self.tokenizer("".join(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        return Encoded(chosen, encoded["input_ids"], ends, np.cumsum([len(text) for text in texts]))
