"""A text as the words that are measured in it, and what stands between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A text as its words.

    The model reads `characters`; only the words are measured.

    Attributes:
        text_id: its name.
        words: in their order; none is empty.
        gaps: what stands before each word: white space, or nothing where a word is attached to the one before, as
            punctuation and the words of Chinese are; None: a space before every word but the first.
        context: what the model reads before, as it stands there, white space at its end included.
    """

    text_id: str
    words: tuple[str, ...]
    gaps: tuple[str, ...] | None = None
    context: str = ""

    @property
    def spacing(self) -> tuple[str, ...]:
        """What stands before each word, one string a word."""
        if self.gaps is not None:
            return self.gaps
        return tuple(" " if i else "" for i in range(len(self.words)))

    @property
    def characters(self) -> str:
        """What the model reads."""
        return self.context + "".join(gap + word for gap, word in zip(self.spacing, self.words, strict=True))
