"""Token ids to text as they come: what is given out, put together, is what the tokenizer makes of all of them."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any

CONTEXT = 8  # tokens kept before those that are read, where nothing says that a character begins

LONGEST = 64  # tokens without an end of a character, after which there is none to wait for

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that `tokenizer.decode` leaves out of texts without special tokens."""
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def special_named(tokenizer: Any, names: Container[str]) -> set[int]:
    """The tokens among `special_ids` whose own text is one of the names; none without a tokenizer."""
    added = {} if tokenizer is None else tokenizer.added_tokens_decoder
    return {i for i, token in added.items() if token.special and token.content in names}


def _same(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    if text.startswith(other):
        return len(other)
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))


class TextStream:
    """The text that tokens complete, in the context of those before (a word's leading space depends on it).

    The pieces put together are `tokenizer.decode` of all tokens without what it has in common with that of the prompt,
    special tokens left out. Only a window of the last tokens is decoded for each: the work is linear in their number.
    A character that lies in several tokens comes with the last of them; bytes that a tokenizer falls back to come
    together when their run ends, as they are text only if all of them together are UTF-8.

    Args:
        tokenizer: a fast tokenizer; None: there is no text.
        prompt_ids: what comes before.
        special: of `special_ids`.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int], special: Container[int]) -> None:
        self.tokenizer, self.special = tokenizer, special
        if tokenizer is None:
            return
        self.window = [i for i in prompt_ids if i not in self.special]
        self.given = self._decode()  # of the window's text
        self.boundary = len(self.window)  # tokens of the window up to which the text is whole

    def __call__(self, token: int, *, last: bool = False) -> str:
        """The text that a token completes; of the last one, what is left is given out as it is."""
        if self.tokenizer is None:
            return ""
        if token not in self.special:
            self.window.append(token)
        if not last and (token in self.special or self._in_bytes()):
            return ""
        text = self._decode()
        whole = text if last or not text.endswith("\N{REPLACEMENT CHARACTER}") else text[:-1]
        piece = whole[_same(whole, self.given) :]
        if len(whole) < len(self.given) and not piece:  # nothing new: what was given ends in half a character
            return ""
        self.given = whole
        if whole == text:
            self._move(self.boundary)
        elif len(self.window) > LONGEST:
            self._move(len(self.window) - CONTEXT)
        return piece

    def rest(self, *more: int) -> str:
        """What is not given out yet, as it would be if no more tokens, or only these, came."""
        if self.tokenizer is None:
            return ""
        text = str(self.tokenizer.decode([*self.window, *more], skip_special_tokens=True))
        return text[_same(text, self.given) :]

    def _move(self, begin: int) -> None:
        """Let the window begin later, if it has text that words after it are in the context of."""
        rest = self.window[begin:]
        text = self.tokenizer.decode(rest, skip_special_tokens=True)
        if text:
            self.window, self.given = rest, text
        self.boundary = len(self.window)

    def _decode(self) -> str:
        return str(self.tokenizer.decode(self.window, skip_special_tokens=True))

    def _in_bytes(self) -> bool:
        """Whether the last token is a byte that more bytes may follow."""
        name = self.tokenizer.convert_ids_to_tokens(self.window[-1])
        return isinstance(name, str) and BYTE_TOKEN.fullmatch(name) is not None


class StoppingStream:
    """The text that tokens complete, up to the first of some strings, which is not given out itself.

    Text that may be the beginning of such a string is held back until what follows decides. A string counts as soon as
    `tokenizer.decode` of the tokens so far has it, also within bytes that `TextStream` still waits with.

    Args:
        stream: of the sequence.
        strings: that end it.

    Attributes:
        ended: whether one of them has come.
    """

    def __init__(self, stream: TextStream, strings: Sequence[str]) -> None:
        self.stream, self.strings, self.ended = stream, strings, False
        self._held = ""

    def __call__(self, token: int, *, last: bool = False) -> str:
        """The text that a token completes or sets free; arguments are those of `TextStream`."""
        text = self._held + self.stream(token, last=last)
        if not self.strings:
            return text
        ahead = text + self.stream.rest()
        places = [place for string in self.strings if (place := ahead.find(string)) >= 0]
        if places:
            self.ended = True
            return ahead[: min(places)]
        begun = 0 if last else max(_begun(text, string) for string in self.strings)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _begun(text: str, string: str) -> int:
    """How many characters of a string the text ends with."""
    return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
