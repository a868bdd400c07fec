"""Which token belongs to which word, and which tokens begin one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from clada.errors import InputError
from clada.models.open import bos_tokens
from cladastats.sequences.windows import separator_token

SPACES = ("Ġ", "▁", "Ċ", "ĉ", " ", "\n", "\t", "\r")  # first characters of tokens that begin a word


def word_boundaries(tokenizer: Any) -> list[int]:
    """Tokens that begin a word, or end the text, so that the word before them is over."""
    ids = {i for token, i in tokenizer.get_vocab().items() if token.startswith(SPACES)}
    ends = {tokenizer.eos_token_id} - {None}
    if not bos_tokens(tokenizer):
        ends.add(end_of_text(tokenizer))
    return sorted(ids | ends)


def end_of_text(tokenizer: Any) -> int:
    """The token that stands between documents, where the tokenizer begins no text with one of its own.

    Raises:
        InputError: it has none.
    """
    try:
        return int(tokenizer.convert_tokens_to_ids(separator_token(tokenizer)))
    except InputError:
        raise InputError("the tokenizer has no token that a text begins after; use another model") from None


def tokens_of(words: Sequence[str], tokenizer: Any) -> tuple[list[int], np.ndarray]:
    """Token ids of words joined by single spaces, without what the tokenizer puts around a text.

    Returns:
        ids, and the number of the word that each belongs to.

    Raises:
        InputError: a word is empty or has white space in it, or a token reaches over two words.
    """
    for i, word in enumerate(words, 1):
        if not word or len(word.split()) != 1 or word != word.strip():
            raise InputError(f"word {i} is {word!r}; a word is what white space separates, and not empty")
    text = " ".join(words)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    owner = []
    for begin, end in encoded["offset_mapping"]:
        # The space before a word may be part of its token, and is no word's: a token belongs to its first letter.
        begin += len(text[begin:end]) - len(text[begin:end].lstrip()) if text[begin:end].strip() else end - begin
        owner.append(int(np.searchsorted(starts, min(begin, len(text) - 1), side="right")) - 1)
        if text[begin:end].strip() and " " in text[begin:end].strip():
            raise InputError(
                f"the token {text[begin:end]!r} reaches over two words; this tokenizer cannot measure words"
            )
    if np.bincount(owner, minlength=len(words)).min() == 0:
        missing = words[int(np.bincount(owner, minlength=len(words)).argmin())]
        raise InputError(f"the tokenizer gives no token for the word {missing!r}; remove it from the text")
    return list(encoded["input_ids"]), np.array(owner)
