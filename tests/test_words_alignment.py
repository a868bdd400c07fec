"""Which token belongs to which word, with every kind of tokenizer; and control tokens that somebody typed."""

import functools
import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerFast
from word_models import TEXT, bpe, fast, plain, random_model, saved

from clada.errors import InputError
from clada.models.open import load_tokenizer
from cladastats.texts.alignment import Aligner, start_token, word_boundaries
from cladastats.texts.meter import Meter, measure_texts
from cladastats.texts.text import Text

CONTROL = ("<|endoftext|>", "<bos>", "<s>", "</s>", "<start_of_turn>", "<|im_start|>", "[CLS]")


@functools.cache
def opened(name):
    """The tokenizer of an embedded model; Gemma's takes seconds to open."""
    return load_tokenizer(name)


def pieces(tokenizer, text):
    """The tokens of each word, as the vocabulary writes them, and the aligner."""
    aligner = Aligner(tokenizer)
    found = aligner.align(text)
    tokens = np.array(tokenizer.convert_ids_to_tokens(found.ids), object)
    return [tokens[found.owner == i].tolist() for i in range(len(text.words))], found, aligner


# -- Tokenizers -----------------------------------------------------------------------------------------------------


def sentencepiece_bpe():
    """As LLaMA's: spaces are ▁, unknown characters bytes, and merges by which <s> could be put together."""
    letters = sorted(set("▁" + TEXT.replace(" ", "").replace("\n", "") + "".join(CONTROL)))
    extra = ["<s", "<s>", "▁<", "▁t", "he", "▁the", "<0x0A>", *(f"<0x{i:02X}>" for i in range(0xC0, 0xFF))]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(["<unk>", *letters, *extra]))}
    merges = [("<", "s"), ("<s", ">"), ("▁", "<"), ("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast(tokenizer, bos_token="<s>", unk_token="<unk>")


def unigram():
    """As XGLM's: NFKC, and control tokens are words of the vocabulary, with the best score of all."""
    vocabulary = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁the", -4.0), ("fi", -4.0)]
    vocabulary += [(c, -6.0) for c in sorted(set(TEXT.replace(" ", "").replace("\n", "") + "".join(CONTROL)))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece():
    """As BERT's: small letters, no white space in tokens, [CLS] before a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        [TEXT + " [ ]"], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def trimmed():
    """As RoBERTa's: the places that it gives leave out the space that a token carries."""
    tokenizer = bpe()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return fast(tokenizer)


def slow(folder):
    """In Python alone: byte pairs of words, their continuation marked by @@."""
    words = sorted(set(TEXT.replace("\n", " ").split()))
    letters = sorted(set("".join(words)))
    tokens = ["<unk>", "<end>", *(f"{c}@@" for c in letters), *letters, "t@@", "th@@", "the", "d"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), eos_token="<end>")


# -- Words and their tokens -----------------------------------------------------------------------------------------


def test_the_space_before_a_word_is_its_own_and_a_paragraph_break_nobodys():
    text = Text("a", ("the", "report", ".", "The", "report"), ("", " ", "", "\n\n", "  "), context="on the table ")
    words, found, _ = pieces(fast(bpe()), text)
    assert ["".join(word) for word in words] == ["Ġthe", "Ġreport", ".", "The", "Ġreport"]
    assert "".join(fast(bpe()).convert_ids_to_tokens(found.ids)) == "onĠtheĠtableĠtheĠreport.ĊĊTheĠĠreport"
    assert found.owner[0] < 0
    # The context's space is in the token of "the". Neither "." nor "The" has one that would have to be corrected.
    assert found.opens.tolist() == [True, True, False, False, True]
    assert found.closes.tolist() == [True, False, True, True, True]


def test_a_space_that_its_word_cannot_take_in_belongs_to_it():
    """Digits are cut one by one, so the space before them stands alone."""
    tokenizer = opened("smollm2-135m")
    words, found, _ = pieces(tokenizer, Text("a", ("In", "2018", "too"), None))
    assert words == [["In"], ["Ġ", "2", "0", "1", "8"], ["Ġtoo"]]
    assert found.opens.tolist() == [False, True, True]


@pytest.mark.parametrize("make", [bpe, sentencepiece_bpe, unigram, wordpiece, trimmed])
def test_every_word_gets_its_letters(make):
    made = make()
    tokenizer = fast(made) if isinstance(made, Tokenizer) else made
    text = Text("a", tuple(TEXT.split()))
    words, found, _ = pieces(tokenizer, text)
    for word, tokens in zip(text.words, words, strict=True):
        letters = "".join(tokens).replace("Ġ", "").replace("▁", "").replace("##", "")
        assert letters == (word.lower() if make is wordpiece else word)
    carries = make is not wordpiece
    assert found.opens.tolist() == [False] + [carries] * (len(text.words) - 1)
    assert found.closes.tolist() == [carries] * len(text.words)
    assert bool(word_boundaries(tokenizer)) == carries


def test_letters_of_other_alphabets_are_no_spaces():
    """Ġ is how byte-level tokenizers write a space, and a letter of Maltese for all others."""
    tokenizer = sentencepiece_bpe()
    tokenizer.add_tokens(["Ġgħan", "ĉevalo"])
    assert not {len(tokenizer) - 1, len(tokenizer) - 2} & set(word_boundaries(tokenizer))


def test_words_of_chinese_are_attached_and_their_characters_made_of_bytes():
    words, found, _ = pieces(fast(bpe()), Text("a", ("日", "本語", "🙂x"), ("", "", "")))
    assert [len(word) for word in words] == [3, 6, 5]
    assert not found.opens.any()
    assert found.closes.tolist() == [False, False, True]  # the end of the text


def test_tokens_of_two_attached_words(capsys):
    """It counts for the word where it begins, which is said."""
    tokenizer = fast(bpe())
    tokenizer.add_tokens(["port."])
    words, _, aligner = pieces(tokenizer, Text("a", ("report", ".x"), ("", "")))
    assert words[0][-1] == "port."
    assert words[1] == ["x"]
    assert aligner.notes["joined"] == "the token 'port.' is of two words; it counts for the first of them"
    meter = Meter(random_model("gpt2", vocab_size=len(tokenizer)), tokenizer)
    for _ in range(2):
        meter.measure([Text("a", ("report", ".x"), ("", ""))])
    assert capsys.readouterr().err.count("is of two words") == 1


@pytest.mark.parametrize("context", ["", "re"])
def test_attached_words_that_share_their_only_token_are_cut(context):
    tokenizer = fast(bpe())
    tokenizer.add_tokens(["port.", "..."])
    before = (context,) if context else ()
    read = ("port", ".", ".", ".", " ok")
    text = Text("t", ("port", ".", ".", ".", "ok"), ("", "", "", "", " "), context)
    words, found, aligner = pieces(tokenizer, text)
    assert words[1:4] == [["."], ["."], ["."]]
    assert aligner.notes == {"cut": "attached words that shared their only token are read as tokens of their own"}
    # Each piece has the tokens that it has by itself.
    expected = [i for part in (*before, *read) for i in tokenizer(part, add_special_tokens=False).input_ids]
    assert found.ids == expected
    assert found.opens.tolist() == [False] * 4 + [True]


def test_attached_words_that_a_tokenizer_would_part_by_a_space():
    """A tokenizer that begins every piece with a space cannot read the second of two attached words by itself."""
    tokenizer = sentencepiece_bpe()
    tokenizer.add_tokens(["ab"])
    with pytest.raises(InputError, match=r"text t: two words share a token near 'ab', and this tokenizer .* join them"):
        Aligner(tokenizer).align(Text("t", ("a", "b"), ("", "")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text("a", ("a", " b")), "word 2 is ' b'"),
        (Text("a", ("",)), "word 1 is ''"),
        (Text("a", ()), "text a has no words"),
        (Text("a", ("a", "b"), ("", "-")), "before word 2 stands '-'"),
        (Text("a", ("a", "b"), ("",)), "2 words and 1 gaps"),
        (Text("a", ("\ud800",)), "half a character"),
    ],
)
def test_what_is_no_word(text, message):
    with pytest.raises(InputError, match=message):
        Aligner(fast(bpe())).align(text)


def test_tokens_that_reach_over_a_space_are_refused():
    tokenizer = fast(bpe())
    tokenizer.add_tokens(["of the"])
    with pytest.raises(InputError, match="the token 'of the' reaches over two words; this tokenizer cannot"):
        Aligner(tokenizer).align(Text("a", ("floor", "of", "the", "library")))


# -- What a writer typed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [bpe, sentencepiece_bpe, unigram, wordpiece, trimmed, "smollm2-135m", "gemma3-270m"])
def test_control_tokens_that_somebody_typed_are_spelled_out(make):
    made = opened(make) if isinstance(make, str) else make()
    tokenizer = fast(made) if isinstance(made, Tokenizer) else made
    aligner = Aligner(tokenizer)
    for typed in CONTROL:
        for text in (Text("a", ("the", typed, "the")), Text("b", (typed,)), Text("c", ("the", typed), ("", ""))):
            found = aligner.align(text)
            assert not set(found.ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
            assert (found.owner == text.words.index(typed)).sum() > 1
            if tokenizer.unk_token_id not in found.ids:
                assert tokenizer.decode(found.ids).lower().replace(" ", "") == "".join(text.words).lower()
    plain_ids = tokenizer("the library", add_special_tokens=False).input_ids
    assert aligner.align(Text("a", ("the", "library"))).ids == plain_ids


def test_added_tokens_that_are_no_control_tokens():
    """A word that was added, and runs of spaces, are words; a marker is not, whatever its vocabulary calls it."""
    tokenizer = fast(bpe())
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("flurb"), AddedToken("   ")])
    words, found, _ = pieces(tokenizer, Text("a", ("flurb", "<think>", "flurb", "x"), ("", " ", " ", "   ")))
    assert words[0] == words[2][-1:] == ["flurb"]
    assert "".join(words[1]) == "Ġ<think>"
    assert len(words[1]) > 3
    assert tokenizer.convert_tokens_to_ids(["flurb", "   "]) == [found.ids[0], found.ids[-2]]


def test_what_the_tokenizer_changes_is_said_once(capsys):
    for make, words, said in (
        (wordpiece, ("The", "meeting"), "changes a text before the model reads it: 'The' to 'the'"),
        (unigram, ("the", "ﬁne"), "'ﬁne' to 'fine'"),
        (sentencepiece_bpe, ("the", "report"), None),
        (unigram, ("the", "Ω"), "does not know some characters"),
    ):
        _, _, aligner = pieces(make(), Text("a", words))
        lines = list(aligner.notes.values())
        assert (lines == []) if said is None else (len(lines) == 1 and said in lines[0])


# -- Tokenizers in Python alone ---------------------------------------------------------------------------------------


def test_words_of_a_tokenizer_in_python_alone(tmp_path):
    """Opened from its folder and measured: what its tokens cost, summed by the words that were cut one by one."""
    tokenizer = slow(tmp_path)
    size = len(tokenizer)
    folder = saved(tmp_path / "model", "gpt2", tokenizer, vocab_size=size, bos_token_id=1, eos_token_id=1)
    assert not AutoTokenizer.from_pretrained(folder).is_fast
    text = Text("a", tuple(TEXT.split()[:12]))
    table = measure_texts(folder, [text])
    ids = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word)) for word in text.words]
    read = [i for word in ids for i in word]
    before, _ = plain(random_model("gpt2", vocab_size=size, bos_token_id=1, eos_token_id=1), 1, read, 64)
    surprisal = -before[np.arange(len(read)), read]
    expected = np.add.reduceat(surprisal, np.cumsum([0, *map(len, ids[:-1])]))
    np.testing.assert_allclose(table["surprisal_tokens_bits"], expected, atol=1e-4)
    np.testing.assert_array_equal(table["surprisal_bits"], table["surprisal_tokens_bits"])  # no token carries a space
    assert table.attrs["words"]["correction"] == "none"


def test_unknown_words_of_a_tokenizer_in_python_alone(tmp_path):
    tokenizer = slow(tmp_path)
    text = Text("a", ("the", "Ω", "Ψ", "report", "Ψ"))
    words, _, aligner = pieces(tokenizer, text)
    assert words[0] == ["the"]
    assert words[1] == words[2] == words[4] == ["<unk>"]
    assert "".join(words[3]).replace("@@", "") == "report"
    assert "unknown" in aligner.notes


def test_bytes_in_python_alone():
    tokenizer = ByT5Tokenizer(extra_ids=0)
    words, _, _ = pieces(tokenizer, Text("a", ("né", "日本", "x")))
    assert [len(word) for word in words] == [3, 7, 2]


def test_a_tokenizer_whose_tokens_are_not_found_is_refused_by_name(tmp_path, monkeypatch):
    tokenizer = slow(tmp_path)
    monkeypatch.setattr(tokenizer, "decode", lambda *_args, **_options: "elsewhere")
    with pytest.raises(InputError, match="the tokens of CTRLTokenizer cannot be found in the text at 'the report'"):
        Aligner(tokenizer).align(Text("a", ("the", "report")))


# -- Where a text begins ----------------------------------------------------------------------------------------------


def test_the_token_that_a_text_begins_after():
    """What the tokenizer puts there; else what stands between documents; else what it calls a beginning."""
    assert start_token(wordpiece()) == 1  # [CLS]
    assert start_token(opened("gemma3-270m")) == 2  # <bos>
    smollm2 = opened("smollm2-135m")  # its <|im_end|> ends a turn
    assert smollm2.convert_ids_to_tokens(start_token(smollm2)) == "<|endoftext|>"
    both = unigram()
    assert both.convert_ids_to_tokens(start_token(both)) == "</s>"
    assert start_token(fast(bpe(special=["<a>"]), bos_token="<a>")) == 0
    with pytest.raises(InputError, match="no token that a text begins after; use another model"):
        start_token(PreTrainedTokenizerFast(tokenizer_object=bpe(special=())))
