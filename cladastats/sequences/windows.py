"""Windows of natural text: sequences cut from documents, and the token that joins documents (paper, section 2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clada.errors import InputError
from clada.models.open import bos_tokens

FOLLOWING_TOKENS = 24  # kept beyond a window: enough to complete the word that its target begins


@dataclass(frozen=True)
class Window:
    """One sequence of tokens, natural or random, before it has a role in a pair.

    Attributes:
        token_ids: int32 [length + 1].
        documents: positions at which a document (or the rest of one) begins; the first is 0.
        target_distance: tokens since the target's document began, which may be before the sequence.
        document: number in the source of the document that the target belongs to; None for random sequences.
        pos_distance: total-variation distance of its part-of-speech ratios from the source's; NaN for natural text.
        following: int32, what follows the target in its document, `FOLLOWING_TOKENS` at most; no part of the sequence,
            but the target's word may go on there. None: not known.
    """

    token_ids: np.ndarray
    documents: list[int]
    target_distance: int
    pos_distance: float = float("nan")
    following: np.ndarray | None = None
    document: int | None = None

    @property
    def separators(self) -> list[int]:
        """Positions of the separators between its documents: each stands right before a document's first token."""
        return [begin - 1 for begin in self.documents[1:]]


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


def usable_windows(candidates: list[Window], tokenizer: Any, windows: str) -> list[Window]:
    """The windows a pair can be made of: each text once, and no target that is the separator instead of a word.

    Args:
        candidates: windows in the order of the source.
        tokenizer: of the model.
        windows: `stream` or `document`, as they were cut.

    Returns:
        those that are kept, in their order; of equal ones the first.
    """
    separator = tokenizer.convert_tokens_to_ids(separator_token(tokenizer)) if windows == "stream" else None
    first_of_text = {window.token_ids.tobytes(): window for window in reversed(candidates)}
    return [w for w in candidates if first_of_text[w.token_ids.tobytes()] is w and w.token_ids[-1] != separator]


def natural_windows(texts: Sequence[str], tokenizer: Any, length: int, windows: str) -> list[Window]:
    """Consecutive, non-overlapping windows of natural text, in the order of the source.

    Args:
        texts: documents.
        tokenizer: of the model.
        length: tokens before the target.
        windows: `stream`: documents joined by the separator, then cut; `document`: each document cut by itself.

    Returns:
        windows of length + 1 tokens, BOS included where the tokenizer puts it; what is left over at the end is dropped.

    Raises:
        InputError: `stream`, and the tokenizer has no token to join documents with.
    """
    # verbose=False: documents longer than the model's context are meant to be cut here.
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    bos = bos_tokens(tokenizer)
    size = length + 1 - len(bos)
    if windows == "document":
        return [
            Window(
                np.array(bos + ids[i : i + size], dtype=np.int32),
                [0],
                i + size - 1,
                following=np.array(ids[i + size : i + size + FOLLOWING_TOKENS], dtype=np.int32),
                document=number,
            )
            for number, ids in enumerate(encoded)
            for i in range(0, len(ids) - size + 1, size)
        ]
    separator = tokenizer.convert_tokens_to_ids(separator_token(tokenizer))
    stream = np.concatenate([np.array([*ids, separator], dtype=np.int32) for ids in encoded])
    starts = np.cumsum([0, *[len(ids) + 1 for ids in encoded]])[:-1]
    separators = starts + [len(ids) for ids in encoded]  # place of each document's, after its last token
    cut = []
    for begin in range(0, len(stream) - size + 1, size):
        end = begin + size
        inside = starts[np.searchsorted(starts, begin, side="right") : np.searchsorted(starts, end)]
        document = int(np.searchsorted(starts, end - 1, side="right")) - 1
        ids = np.concatenate([np.array(bos, dtype=np.int32), stream[begin:end]])
        rest = stream[end : min(end + FOLLOWING_TOKENS, separators[np.searchsorted(separators, end - 1)])]
        documents = [0, *(inside - begin + len(bos)).tolist()]
        cut.append(Window(ids, documents, int(end - 1 - starts[document]), following=rest, document=document))
    return cut
