"""The tokenizer without transformers: the same ids, texts and chats as transformers gives."""

import itertools

import jinja2
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece

from clada.models.open import load_tokenizer
from clada.models.tokenizer import Tokenizer

SCRIPTS = (
    "The minister said on Monday that the talks would go on.",
    "Größe, naïveté, Æther, İstanbul, Łódź — „Anführung“ …",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί.",
    "Съешь же ещё этих мягких французских булок.",
    "نص عربي مع تشكيل: كَتَبَ الوَلَدُ الدَّرْسَ",
    "שלום עולם, מה נשמע?",
    "हिन्दी में एक वाक्य; और संख्या १२३।",
    "ภาษาไทยไม่มีช่องว่าง",
    "日本語の文章です。漢字、ひらがな、カタカナ。",
    "中文句子,没有空格。",
    "한국어 문장입니다 — 띄어쓰기가 있다.",
    "👩‍🔬🏳️‍🌈 e\u0301 \u200b\ufeff ﬁ ½ ①",
    "def f(x):\n\treturn {'a': x ** 2}  # 3.14e-10\r\n",
    "   many    spaces   ",
    "<|im_start|>user\n<|endoftext|> <bos><start_of_turn> </s> <unk>",
    "1234567890 12,345.67 0x1F 2024-05-12",
    "\x00\x07\x1b",
)


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def pair(request):
    """A tokenizer of transformers, and the same without."""
    tokenizer = load_tokenizer(request.param)
    return tokenizer, Tokenizer.of(tokenizer)


@pytest.fixture(scope="module")
def plain(plain_tokenizer):
    return plain_tokenizer, Tokenizer.of(plain_tokenizer)


def test_ids_and_texts_are_transformers(pair, articles):
    theirs, own = pair
    pairs = [f"{a} {b}" for a, b in itertools.permutations(SCRIPTS, 2)]
    sentences = [*SCRIPTS, *pairs, *(sentence for text in articles[:10] for sentence in text.split(". "))]
    assert len(sentences) > 300
    for text in sentences:
        ids = theirs(text, verbose=False)["input_ids"]
        assert own(text, verbose=False)["input_ids"] == ids
        for skip in (True, False):
            assert own.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert [own.convert_ids_to_tokens(i) for i in ids] == theirs.convert_ids_to_tokens(ids)


def test_special_tokens_are_transformers(pair):
    theirs, own = pair
    assert {i: (t.content, t.special) for i, t in own.added_tokens_decoder.items()} == {
        i: (t.content, t.special) for i, t in theirs.added_tokens_decoder.items()
    }
    assert own.convert_ids_to_tokens(10**7) is None


# Templates of what models' templates use: roles, names of special tokens, loops that end early, JSON, the date.
TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if loop.index > 1 %}{% break %}"
    "{% endif %}{{ ns.n }}{{ m | tojson }}{{ m | tojson(indent=1) }}{% endfor %}",
    "{% for m in messages %}\n    {% generation %}{{ m.content }}{% endgeneration %}\n  {% endfor %}\n{{ dict(a=1) }}"
    "{{ tools is none }}{{ documents is none }}{{ strftime_now('%Y') }}{{ undefined_name }}|",
)


def assert_same_chats(theirs, own):
    for text in SCRIPTS:
        for generation in (True, False):
            turns = [{"role": "user", "content": text}]
            options = {"add_generation_prompt": generation, "return_dict": True}
            expected = theirs.apply_chat_template(turns, **options)["input_ids"]
            assert own.apply_chat_template(turns, **options)["input_ids"] == expected


def test_chats_are_transformers(pair):
    theirs, own = pair
    assert own.chat_template == theirs.chat_template
    if own.chat_template is not None:
        assert_same_chats(theirs, own)


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_of_other_templates_are_transformers(plain, template, monkeypatch):
    theirs, own = plain
    monkeypatch.setattr(theirs, "chat_template", template)
    assert_same_chats(theirs, Tokenizer(own.backend, template, own.special))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no user may speak first') }}",
        "{% if %}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.__base__.__subclasses__() }}",
    ],
)
def test_a_template_can_refuse_but_not_reach_out(plain, template, monkeypatch):
    theirs, own = plain
    monkeypatch.setattr(theirs, "chat_template", template)
    own = Tokenizer(own.backend, template, own.special)
    turns = [{"role": "user", "content": "a"}]
    for tokenizer in (theirs, own):
        with pytest.raises(jinja2.TemplateError):
            tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    assert Tokenizer.of(theirs) is None


def test_texts_are_neither_cut_nor_filled_up(plain_tokenizer):
    backend = Backend.from_str(plain_tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    own = Tokenizer.read(backend.to_str(), None, {})
    assert own("One two three four")["input_ids"] == plain_tokenizer("One two three four")["input_ids"]
    assert len(own("One")["input_ids"]) == 1


def test_what_the_library_alone_does_not_do_has_no_such_tokenizer(plain_tokenizer, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    words = Backend(WordPiece({"[UNK]": 0, "a": 1, ".": 2}, unk_token="[UNK]"))
    cleaning = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True, unk_token="[UNK]")
    assert cleaning.decode([1, 2]) == "a."
    assert words.decode([1, 2]) == "a ."
    # Of the texts that are tried, this vocabulary has no full stop; its cleaning shows in none of them.
    assert cleaning.clean_up_tokenization_spaces
    assert Tokenizer.of(cleaning) is None
    monkeypatch.setattr(plain_tokenizer, "chat_template", {"one": "a", "other": "b"})
    assert Tokenizer.of(plain_tokenizer) is None
