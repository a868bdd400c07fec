"""What is known of a language by its code: how frequent a word is, its part of speech, where a sentence ends.

A language is a row of `LANGUAGES`; whatever reads words asks here and nowhere else. Libraries are imported where they
are used: each brings data of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from clada.errors import InputError

# What stands around a word and is no part of it.
PUNCTUATION = ".,;:!?\"'()[]{}“”‘’–—-…`*"


@dataclass(frozen=True)
class Language:
    """A language that studies can be of.

    Attributes:
        code: ISO 639-1, as wordfreq has it.
        tagger_model: file of HanTa's wheel.
        tagset: name of the tags that this model gives.
    """

    code: str
    tagger_model: str
    tagset: str

    def zipf_frequency(self, word: str) -> float:
        """Frequency of a word, log10 per billion words (wordfreq); 0 where it is unknown.

        Args:
            word: without punctuation around it; capitals make no difference.
        """
        from wordfreq import zipf_frequency

        return float(zipf_frequency(word.lower(), self.code))

    def tagger(self) -> Callable[[Sequence[str]], list[str]]:
        """A function from the words of a sentence to their part-of-speech tags (HanTa); loading it takes a second."""
        from HanTa import HanoverTagger

        tagger = HanoverTagger.HanoverTagger(self.tagger_model)

        def tags(words: Sequence[str]) -> list[str]:
            return [tag for _, _, tag in tagger.tag_sent(list(words), taglevel=1)]

        return tags

    @property
    def tagger_name(self) -> str:
        """Library, version and tags of the tagger, for reports."""
        return f"HanTa {version('HanTa')} ({self.tagset} tags)"

    def sentences(self, text: str) -> Iterator[list[Any]]:
        """The sentences of a text (syntok).

        Args:
            text: paragraphs are told apart by blank lines.

        Yields:
            the tokens of a sentence, each with `value` and with `offset`, its place in the text in characters.
        """
        from syntok import segmenter

        for paragraph in segmenter.analyze(text):
            for tokens in paragraph:
                # Bare line breaks come as empty tokens.
                if sentence := [token for token in tokens if token.value]:
                    yield sentence


LANGUAGES = {language.code: language for language in (Language("en", "morphmodel_en.pgz", "BNC"),)}


def language(code: str = "en") -> Language:
    """The language of a code.

    Raises:
        InputError: there is none of that code.
    """
    if code not in LANGUAGES:
        raise InputError(f"unknown language {code!r}; choose one of {', '.join(LANGUAGES)}")
    return LANGUAGES[code]
