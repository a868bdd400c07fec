"""Languages: what is known of each, what is refused by name, and words of scripts without white space."""

import builtins
import sys
from importlib.metadata import version

import pytest
import wordfreq

import cladastats.language as language_module
from clada.errors import InputError
from cladastats.language import NAMES, PUNCTUATION, TAGGERS, WORDLISTS, Language, language


def test_every_list_of_wordfreq_has_a_language():
    lists = set(wordfreq.available_languages())
    assert set(WORDLISTS.values()) == lists
    assert {code for code in lists if len(code) == 2} - set(NAMES) == {"sh"}  # Serbo-Croatian: no code any more
    assert set(WORDLISTS) <= set(NAMES)
    assert len(NAMES) == 183
    assert all(len(code) == 2 and name[0].isupper() for code, name in NAMES.items())


@pytest.mark.parametrize(
    ("code", "word", "list_code"),
    [("de", "Straße", "de"), ("nl", "huis", "nl"), ("no", "hus", "nb"), ("sr", "кућа", "sh"), ("tl", "bahay", "fil"),
     ("zh", "喜歡", "zh"), ("ja", "図書館", "ja"), ("ko", "학교에서", "ko"), ("ar", "كتاب", "ar"),
     ("tr", "IŞIK", "tr")],
)  # fmt: skip
def test_frequencies_are_those_of_the_languages_own_list(code, word, list_code):
    found = language(code).zipf_frequency(word)
    assert found == wordfreq.zipf_frequency(word, list_code) > 3
    assert found != wordfreq.zipf_frequency(word, "en")


def test_capitals_and_the_form_of_an_apostrophe_make_no_difference():
    assert language("tr").zipf_frequency("IŞIK") == language("tr").zipf_frequency("ışık")  # no dot, in Turkish
    assert language("fr").zipf_frequency("l’homme") == language("fr").zipf_frequency("l'homme") > 5
    assert language().zipf_frequency("The") == wordfreq.zipf_frequency("the", "en")


def test_a_region_is_rarer_than_its_rarest_word():
    one = [10 ** language().zipf_frequency(word) for word in ("the", "old", "man")]
    # wordfreq rounds to a hundredth.
    assert 10 ** language().zipf_frequency("the old man") == pytest.approx(1 / sum(1 / f for f in one), rel=0.03)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("German", "unknown language 'German'; the code of German is 'de'"),
        ("DE", "unknown language 'DE'; the code of German is 'de'"),
        ("pt-BR", "unknown language 'pt-BR'; the code of Portuguese is 'pt'"),
        ("zh_Hant", "unknown language 'zh_Hant'; the code of Chinese is 'zh'"),
    ],
)
def test_a_language_called_otherwise_is_answered_with_its_code(given, message):
    with pytest.raises(InputError) as refused:
        language(given)
    assert str(refused.value) == message


@pytest.mark.parametrize("given", ["xx", "deu", "klingon", "", "none"])
def test_unknown_languages_are_never_english(given):
    with pytest.raises(InputError, match=f"unknown language '{given}'; give a code of ISO 639-1 like 'de'"):
        language(given)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (lambda: language("et").zipf_frequency("maja"), "no word frequencies for Estonian; there are some for ar, bg,"),
        (lambda: language("fi").tagger(),
         "no part-of-speech tagger for Finnish; there is one for English, German, Dutch"),
        (lambda: language("fi").word_class("N"), "no part-of-speech tagger for Finnish"),
        (lambda: language("zh").tagger_name, "no part-of-speech tagger for Chinese"),
        (lambda: list(language("fr").sentences("Oui.")),
         "no sentence splitter for French; there is one for English, German, Spanish"),
        (lambda: language("th").segment("ก"), "no segmentation into words for Thai; give --table with a row per word"),
        (lambda: language("ko").segment("가"),
         "no segmentation into words for Korean; its words have white space between them"),
    ],
)  # fmt: skip
def test_what_a_language_lacks_is_refused_by_its_name(needs, message):
    with pytest.raises(InputError) as refused:
        needs()
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("code", "sentence", "classes"),
    [
        ("en", "The old man quickly saw three red houses", "function adjective noun adverb verb number adjective noun"),
        ("de", "Der alte Mann sah gestern drei rote Häuser in Berlin",
         "function adjective noun verb adverb number adjective noun function noun"),
        ("nl", "De oude man zag gisteren drie rode huizen in Amsterdam",
         "function adjective noun verb adverb number adjective noun function noun"),
    ],
)  # fmt: skip
def test_taggers_tell_the_classes_of_words(code, sentence, classes):
    spoken = language(code)
    assert [spoken.word_class(tag) for tag in spoken.tagger()(sentence.split())] == classes.split()
    assert spoken.tagger_name == f"HanTa {version('HanTa')} ({TAGGERS[code][1]} tags)"


def test_auxiliaries_are_function_words_where_tags_tell_them_apart():
    assert [language("de").word_class(tag) for tag in ("VA(FIN)", "VM(INF)", "VV(PP)")] == ["function"] * 2 + ["verb"]
    assert [language().word_class(tag) for tag in ("VBZ", "VM0", "VVZ")] == ["function"] * 2 + ["verb"]


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        ("zh", "我喜欢猫，你呢？", "我 喜欢 猫 ， 你 呢 ？"),
        ("zh", "他住在Straße的U.S大楼，don't问3.5号", "他 住 在 Straße 的 U.S 大楼 ， don't 问 3.5 号"),
        ("ja", "猫は図書館でＮＨＫを見た。", "猫 は 図書館 で ＮＨＫ を 見 た 。"),
        ("ja", "人々のｶﾞﾗｽ", "人々 の ｶﾞﾗｽ"),
    ],
)
def test_segmented_words_are_the_text_again(code, text, words):
    found = language(code).segment(text)
    assert found == words.split()
    assert "".join(found) == text


@pytest.mark.parametrize(
    ("code", "text", "script"),
    [("en", "Привет мир, hello", "Cyrillic"), ("en", "我喜欢猫", "Chinese"), ("de", "γεια σου", "Greek"),
     ("ru", "Hello there", "Latin"), ("zh", "สวัสดี", "Thai"), ("en", "مرحبا", "Arabic"), ("ja", "안녕", "Hangul")],
)  # fmt: skip
def test_text_of_another_script_is_refused(code, text, script):
    with pytest.raises(InputError) as refused:
        language(code).check_script(text)
    message = f"the text is written in {script} letters, which is not {NAMES[code]}; give its code with --language"
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("code", "text"),
    [("en", "The Greek letter γ, 42 – and 我"), ("en", "... 1999"), ("sr", "kuća кућа"), ("ko", "學校 학교에서"),
     ("ja", "猫がコーヒーをＮＨＫ"), ("ka", "გამარჯობა"), ("et", "Tere õhtust"), ("zh", "我用iPhone")],
)  # fmt: skip
def test_text_of_the_languages_scripts_is_taken(code, text):
    language(code).check_script(text)


@pytest.mark.parametrize(
    ("word", "bare"),
    [
        ("¿Cómo?", "Cómo"),
        ("«mot»,", "mot"),
        ("„Haus“.", "Haus"),
        ("「猫」。", "猫"),
        ("كتاب،", "كتاب"),
        ("don't!", "don't"),
    ],
)
def test_punctuation_of_other_scripts_is_no_part_of_a_word(word, bare):
    assert word.strip(PUNCTUATION) == bare


@pytest.mark.parametrize(("code", "library"), [("zh", "jieba"), ("ja", "MeCab"), ("ko", "MeCab")])
def test_a_missing_extra_is_named(code, library, monkeypatch):
    whole = builtins.__import__

    def without(name, *rest, **named):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
        return whole(name, *rest, **named)

    for name in [
        name for name in sys.modules if name.startswith(("jieba", "MeCab", "wordfreq.chinese", "wordfreq.mecab"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    language_module._frequencies.cache_clear()
    language_module._segmenter.cache_clear()
    monkeypatch.setattr(wordfreq, "_wf_cache", {})
    with pytest.raises(InputError) as refused:
        Language(code).zipf_frequency("a")
    message = f"no word frequencies for {NAMES[code]} without {library}; bring it with pip install 'clada[cjk]'"
    assert str(refused.value) == message
    if code != "ko":
        with pytest.raises(InputError, match=f"no segmentation of {NAMES[code]} without {library}; bring it with pip"):
            Language(code).segment("a")
