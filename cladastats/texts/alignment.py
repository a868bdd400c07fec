"""Which token belongs to which word, for every kind of tokenizer, and which tokens begin one.

- A token belongs to the word in which its first letter is; the white space before a word may be part of its token.
- Tokens of the context, and of white space that stands alone (a paragraph break), are read and belong to no word. A
  token of a single space does belong to the word after it: there the tokenizer could not put it into the word's token.
- A token may not reach over white space into another word. Where words are attached to each other it belongs to the
  word where it begins. A word that is left without a token has no surprisal of its own: the text is cut there, so that
  no token reaches over, and is refused if the tokenizer would put white space before the cut.
- What a writer typed is text: the name of a control token is spelled out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from clada.errors import InputError
from clada.models.quiet import as_model_error, quiet_transformers
from cladastats.sequences.windows import separator_token
from cladastats.texts.text import Text

BYTE_SPACES = ("Ġ", "Ċ", "ĉ", "č")  # how byte-level vocabularies write a space, line breaks and the tabulator

SPACES = ("▁", " ", "\n", "\t", "\r")  # how others do

MARKUP = re.compile(r"<[^<>\s]+>")  # added tokens that are no text though their vocabulary does not call them special

HIDDEN = "\ufdd0"  # no character, so no text has it

CONTEXT, NONE = -2, -1  # in place of a word's number

LONGEST_GROUP = 16  # tokens that together are the bytes of one character, or of a few


def start_token(tokenizer: Any) -> int:
    """The token that a text is read after, so that its first word is predicted too.

    What the tokenizer itself puts before a text; else the token that stands between documents; else the one that it
    calls the beginning of a sequence.

    Raises:
        InputError: it has none.
    """
    first = tokenizer("a")["input_ids"][:1]
    if first and first[0] in tokenizer.all_special_ids and first != tokenizer("a", add_special_tokens=False).input_ids:
        return int(first[0])
    try:
        return int(tokenizer.convert_tokens_to_ids(separator_token(tokenizer)))
    except InputError:
        if tokenizer.bos_token_id is not None:
            return int(tokenizer.bos_token_id)
        raise InputError("the tokenizer has no token that a text begins after; use another model") from None


def space_marks(tokenizer: Any) -> tuple[str, ...]:
    """How tokens of this tokenizer are written that begin with white space."""
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        by_bytes = "ByteLevel" in f"{backend.decoder} {backend.pre_tokenizer}"
    else:
        by_bytes = hasattr(tokenizer, "byte_encoder")
    return BYTE_SPACES if by_bytes else SPACES


def word_boundaries(tokenizer: Any) -> list[int]:
    """Tokens that begin with white space, or end the text, so that the word before them is over.

    Empty where no token carries white space: then nothing tells the chance that a word is over.
    """
    marks = space_marks(tokenizer)
    ids = {i for token, i in tokenizer.get_vocab().items() if token.startswith(marks)}
    if not ids:
        return []
    start = start_token(tokenizer)
    ends = {tokenizer.eos_token_id, None if start == tokenizer.bos_token_id else start}
    return sorted(ids | {i for i in ends if i is not None})


@dataclass(frozen=True)
class Aligned:
    """A text of W words as n tokens.

    Attributes:
        ids: what the model reads, without the start token.
        owner: [n] number of the word that each belongs to, negative for none.
        opens: [W] white space is before the word, and its first token carries it.
        closes: [W] white space, or the end of the text, is after the word, and its last token does not carry it.
    """

    ids: list[int]
    owner: np.ndarray
    opens: np.ndarray
    closes: np.ndarray


class Aligner:
    """Gives the words of texts their tokens.

    Args:
        tokenizer: of transformers, fast or in Python alone.

    Attributes:
        notes: what should be said once of the texts so far: what the tokenizer changed, did not know, or joined.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.notes = tokenizer, dict[str, str]()
        marks, vocabulary = space_marks(tokenizer), tokenizer.get_vocab()
        self._opening = {i for token, i in vocabulary.items() if token.startswith(marks)}
        self._closing = {i for token, i in vocabulary.items() if token.endswith(marks)}
        added = tokenizer.added_tokens_decoder.items()
        typed = {i for i, token in added if token.special or MARKUP.fullmatch(token.content)}
        self._control = typed | set(tokenizer.all_special_ids)
        self._spelling: tuple[Tokenizer, dict[int, int]] | None = None

    def align(self, text: Text) -> Aligned:
        """The tokens of a text, and the words that they belong to.

        Where a token is all that two attached words have, as it happens in Chinese and with punctuation apart, the text
        is cut between them, so that each has a token, and a surprisal, of its own; this is noted.

        Raises:
            InputError: what is said to be a word or a gap is none, or a word has no token of its own.
        """
        _check_words(text)
        characters, places, gaps = text.characters, _places(text), text.spacing
        cuts: list[int] = []
        while True:
            ids, spans = self._cut(text, characters, cuts)
            owner, joined = _owners(characters, places, gaps, spans)
            without = np.flatnonzero(np.bincount(owner[owner >= 0], minlength=len(gaps)) == 0)
            if not len(without):
                break
            cuts = sorted({*cuts, *self._cuts(text, places, without, cuts)})
        if cuts:
            self._note("cut", "attached words that shared their only token are read as tokens of their own")
        if joined is not None:
            self._note("joined", f"the token {joined!r} is of two words; it counts for the first of them")
        owned = np.flatnonzero(owner >= 0)
        first = owned[np.searchsorted(owner[owned], np.arange(len(gaps)))]
        last = owned[np.searchsorted(owner[owned], np.arange(len(gaps)), side="right") - 1]
        spaced = np.array([bool(gap) for gap in gaps])
        spaced[0] = bool(text.context)  # a text begins with a word
        after = np.append(np.array([bool(gap) for gap in gaps[1:]], bool), True)
        return Aligned(
            ids,
            owner,
            opens=spaced & np.array([ids[i] in self._opening for i in first], bool),
            closes=after & bool(self._opening) & np.array([ids[i] not in self._closing for i in last], bool),
        )

    def _cuts(self, text: Text, places: np.ndarray, without: np.ndarray, cuts: Sequence[int]) -> list[int]:
        """Where to cut a text so that words without a token get one: before and after each, where it is attached.

        Raises:
            InputError: a word cannot have one.
        """
        gaps, found = text.spacing, []
        for number in without.tolist():
            around = [number, number + 1] if number or text.context else [number + 1]
            around = [word for word in around if word < len(gaps) and gaps[word] == ""]
            at = [int(np.argmax(places == word)) for word in around]
            if set(at) <= set(cuts):
                word = text.words[number]
                raise InputError(
                    f"text {text.text_id}: the tokenizer gives no token for the word {word!r}; remove it from the "
                    "text, or join it to the one that it is attached to"
                )
            found += at
        return found

    def _cut(self, text: Text, characters: str, cuts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text cut into pieces, and the span of each.

        Raises:
            InputError: the tokenizer puts white space before a piece that has none.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for begin, end in pairwise([0, *cuts, len(characters)]):
            piece = characters[begin:end]
            found, where = self._fast(piece) if self.tokenizer.is_fast else self._slow(piece)
            if begin and found and found[0] in self._opening:
                raise InputError(
                    f"text {text.text_id}: two words share a token near {characters[begin - 1 : end][:12]!r}, and this "
                    "tokenizer cannot read them apart; join them"
                )
            ids += found
            spans += [(begin + first, begin + last) for first, last in where]
        return ids, spans

    def _note(self, kind: str, line: str) -> None:
        self.notes.setdefault(kind, line)

    def _said_of(self, characters: str, read: str, ids: Sequence[int]) -> None:
        """Note what a tokenizer did to a text before it cut it into tokens."""
        if "unknown" not in self.notes and self.tokenizer.unk_token_id in ids:
            self._note("unknown", "the tokenizer does not know some characters; their surprisal is its unknown token's")
        typed, got = characters.split(), read.split()
        if "changed" not in self.notes and "".join(typed) != "".join(got):
            before, after = next((a, b) for a, b in zip([*typed, ""], [*got, ""], strict=False) if a != b)
            self._note("changed", f"the tokenizer changes a text before the model reads it: {before!r} to {after!r}")

    # -- Fast tokenizers: by the places that they give --------------------------------------------------------------

    def _fast(self, characters: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(
            characters, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False,
            verbose=False,
        )  # fmt: skip
        ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if not self._control.isdisjoint(ids):
            if self._spelling is None:
                contents = {self.tokenizer.convert_ids_to_tokens(i) for i in self._control}
                self._spelling = _spelling_backend(self.tokenizer.backend_tokenizer, contents)
            backend, own = self._spelling
            spelled = backend.encode(characters, add_special_tokens=False)
            ids, spans = [own.get(i, i) for i in spelled.ids], spelled.offsets
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        read = characters if normalizer is None else normalizer.normalize_str(characters).replace("▁", " ")
        self._said_of(characters, read, ids)
        return ids, spans

    # -- Tokenizers in Python: by what their tokens are decoded to --------------------------------------------------

    def _slow(self, characters: str) -> tuple[list[int], list[tuple[int, int]]]:
        tokenizer = self.tokenizer
        with quiet_transformers(), as_model_error(f"{type(tokenizer).__name__} cannot read the text"):
            tokens = tokenizer.tokenize(characters, split_special_tokens=True)
            ids = tokenizer.convert_tokens_to_ids(tokens)
        if (self._control - {tokenizer.unk_token_id}) & set(ids):
            raise InputError("the text has the name of a control token, which this tokenizer reads as it; remove it")
        known = _Squeezed(characters)
        spans: list[tuple[int, int]] = []
        group: list[int] = []
        place, unknown = 0, False
        for i in ids:
            if i == tokenizer.unk_token_id and not group:
                # Of one unknown token after another, the later one is of the next word.
                place = known.word_end(place) if unknown else place
                spans.append(known.span(place, place + 1))  # its end is where the next token is found
                unknown = True
                continue
            group.append(i)
            decoded = tokenizer.decode(group, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if decoded and not decoded.strip():
                spans += [known.gap(place)] * len(group)
                group = []
                continue
            piece = _squeeze(decoded)
            at = known.find(piece, place, unknown) if piece else None  # nothing yet: the first bytes of a character
            if at is None:
                if len(group) == LONGEST_GROUP:
                    break
                continue
            spans += [known.span(at, at + len(piece))] * len(group)
            place, unknown, group = at + len(piece), False, []
        place = known.word_end(place) if unknown else place
        if group or place < len(known.letters):
            near = characters[known.origin[place] :][:20] if place < len(known.letters) else characters[-20:]
            raise InputError(
                f"the tokens of {type(tokenizer).__name__} cannot be found in the text at {near!r}; "
                "this tokenizer cannot measure words"
            )
        read = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self._said_of(characters, read if len(read.split()) == len(characters.split()) else characters, ids)
        return ids, spans


class _Squeezed:
    """A text without white space and without capitals, as which decoded tokens are looked for.

    Attributes:
        letters: NFKC and lower case, character by character.
        origin: of each letter, its place in the text.
    """

    def __init__(self, characters: str) -> None:
        pairs = [(letter, i) for i, c in enumerate(characters) for letter in _squeeze(c)]
        self.letters, self.origin = "".join(letter for letter, _ in pairs), [i for _, i in pairs]
        words = [len(_squeeze(word)) for word in characters.split()]
        self._ends = np.cumsum(words).tolist()

    def word_end(self, place: int) -> int:
        """Where the next word begins, as white space has it."""
        return int(self._ends[min(bisect(self._ends, place), len(self._ends) - 1)])

    def find(self, piece: str, place: int, skips: bool) -> int | None:
        """Where a piece is: here, or after unknown characters of the same word; None: nowhere."""
        if self.letters.startswith(piece, place):
            return place
        if not skips:
            return None
        end = self.word_end(place)
        at = self.letters.find(piece, place, end)
        return at if at >= 0 else end if self.letters.startswith(piece, end) else None

    def gap(self, place: int) -> tuple[int, int]:
        """Places in the text from behind the letter before up to a letter."""
        return (
            self.origin[place - 1] + 1 if place else 0,
            self.origin[place] if place < len(self.origin) else self.origin[-1] + 1,
        )

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Places in the text of letters, from the first up to behind the last."""
        if begin >= len(self.origin):
            return (self.origin[-1] + 1,) * 2 if self.origin else (0, 0)
        return self.origin[begin], self.origin[max(begin, end - 1)] + 1


def _squeeze(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _check_words(text: Text) -> None:
    """Refuse what is no word, no gap, or no text."""
    if not text.words:
        raise InputError(f"text {text.text_id} has no words; remove it")
    if len(text.spacing) != len(text.words):
        raise InputError(f"text {text.text_id} has {len(text.words)} words and {len(text.spacing)} gaps; give one each")
    for i, (word, gap) in enumerate(zip(text.words, text.spacing, strict=True), 1):
        if not word or word != word.strip():
            raise InputError(f"word {i} is {word!r}; a word has no white space around it, and is not empty")
        if gap.strip():
            raise InputError(f"before word {i} stands {gap!r}; there may be white space, or nothing")
    try:
        text.characters.encode()
    except UnicodeEncodeError:
        raise InputError(f"text {text.text_id} holds half a character (a lone surrogate); mend the text") from None


def _places(text: Text) -> np.ndarray:
    """Of each character of a text, the number of its word, `CONTEXT`, or `NONE` between words."""
    lengths = [len(text.context)]
    numbers = [CONTEXT]
    for i, (gap, word) in enumerate(zip(text.spacing, text.words, strict=True)):
        lengths += [len(gap), len(word)]
        numbers += [NONE, i]
    return np.repeat(np.array(numbers), lengths)


def _owners(
    characters: str, places: np.ndarray, gaps: Sequence[str], spans: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, str | None]:
    """The number of the word that each token belongs to, negative for none; and a token that is of two words.

    Args:
        characters: of the text.
        places: of each of them, the number of its word.
        gaps: what stands before each word.
        spans: where each token begins and ends.

    Raises:
        InputError: a token reaches over white space between two words.
    """
    owner, joined = np.full(len(spans), NONE), None
    following = np.minimum.accumulate(np.where(places >= 0, places, len(gaps))[::-1])[::-1]
    for i, (begin, end) in enumerate(spans):
        inside = characters[begin:end]
        if not inside.strip() and begin < end and places[begin] >= 0:  # between the words of a region
            owner[i] = places[begin]
            continue
        if not inside.strip():
            # The next word is the one at or after its end; the spans of some tokenizers leave the space out.
            word = int(following[begin]) if begin < len(characters) else len(gaps)
            if word < len(gaps) and gaps[word] == " " and CONTEXT not in places[begin:end]:
                owner[i] = word
            continue
        covered = places[begin:end][[not c.isspace() for c in inside]]
        if covered[0] != covered[-1]:
            if len(inside.split()) > 1:  # within a region it may
                raise InputError(f"the token {inside!r} reaches over two words; this tokenizer cannot measure words")
            joined = joined or inside
        owner[i] = covered[0]
    return owner, joined


def _spelling_backend(backend: Tokenizer, contents: set[str]) -> tuple[Tokenizer, dict[int, int]]:
    """A copy of a fast tokenizer that never gives certain tokens, and how ids of the copy have to be changed.

    To skip a control token when it is looked for is not enough: a vocabulary that names it can find it as a word
    (Unigram) or put it together (BPE), so there it gets a name that no text has.

    Args:
        backend: the tokenizer.
        contents: the tokens.
    """
    state = json.loads(backend.to_str())
    state["post_processor"] = state["truncation"] = state["padding"] = None
    for token in state["added_tokens"]:
        token["special"] = token["content"] in contents
    model = state["model"]

    def renamed(token: str) -> str:
        return HIDDEN + token if token in contents else token

    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed(token): i for token, i in vocabulary.items()}
    elif vocabulary is not None:
        model["vocab"] = [[renamed(token), score] for token, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed(model["unk_token"])
    if model.get("merges"):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in contents]
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    # Added tokens that lie beyond the vocabulary are numbered anew in a copy.
    kept = [token for token in state["added_tokens"] if token["content"] not in contents]
    numbers = {copy.token_to_id(token["content"]): token["id"] for token in kept}
    return copy, {new: old for new, old in numbers.items() if new is not None and new != old}
