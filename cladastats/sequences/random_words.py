"""Random sequences with the part-of-speech ratios and the punctuation of a source (paper, section 2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
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
        following = np.array(ids[self.tokens : self.tokens + FOLLOWING_TOKENS], dtype=np.int32)
        ids = self.bos + ids[: self.tokens]
        distance = total_variation(count, ratio)
        return Window(np.array(ids, dtype=np.int32), [0], self.tokens - 1, distance, following)

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
