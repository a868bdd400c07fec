"""Controls: the word of a target and its frequency."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wordfreq import zipf_frequency

from clada.errors import StudyError
from cladastats.controls import controls, target_word
from cladastats.corpus import DEFAULTS, make_study
from cladastats.language import PUNCTUATION
from cladastats.sequences.windows import FOLLOWING_TOKENS
from cladastats.study import Study, write_table


def test_the_word_of_a_target_is_the_texts_whole_word(articles: list[str], tokenizer: Any) -> None:
    """At every token: pieces that begin a word, go on with it or end it, marks, characters of several tokens."""
    text = (
        'The extraordinarily unbelievable skyscraper, didn\'t he say? "Größe" – naïve 日本語 «déjà-vu» 🙂 end. '
        + articles[0]
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(encoded["input_ids"][:400])
    pieces = 0
    for place, (begin, end) in enumerate(encoded["offset_mapping"][:400]):
        following = np.array(encoded["input_ids"][place + 1 : place + 1 + FOLLOWING_TOKENS], dtype=int)
        word, target = target_word(tokenizer, ids[: place + 1], following, 0)
        letters = [i for i in range(begin, end) if text[i].isalnum()]
        if "\ufffd" in target:  # a part of a character: the word, or nothing where another part is the letter
            continue
        assert target.strip() == text[begin:end].strip()  # some tokenizers leave a space before out of offsets
        if not letters:
            assert word is None
            continue
        (whole,) = (match for match in re.finditer(r"\S+", text) if match.start() <= letters[0] < match.end())
        assert word == whole[0].strip(PUNCTUATION)
        pieces += end < whole.end() and text[end].isalnum()
    assert pieces > 10  # targets whose word goes on after them


def test_a_word_does_not_reach_back_into_another_document(plain_tokenizer: Any) -> None:
    ids = np.array(plain_tokenizer.encode("sun<|endoftext|>flower"))
    nothing = np.array([], dtype=int)
    begins = ids.tolist().index(plain_tokenizer.convert_tokens_to_ids("<|endoftext|>")) + 1
    assert target_word(plain_tokenizer, ids, nothing, begins)[0] == "flower"
    cut = np.array(plain_tokenizer.encode("wonder") + plain_tokenizer.encode("land"))  # a hybrid cut within a word
    assert target_word(plain_tokenizer, cut, nothing, len(cut) - 1)[0] == "land"


def test_frequency_is_of_the_targets_word_and_missing_where_there_is_none(
    small_study: Study, plain_tokenizer: Any, tmp_path: Path
) -> None:
    shutil.copytree(small_study.folder, tmp_path / "study")
    study = Study(tmp_path / "study")
    corpus = study.corpus
    hybrid = corpus.index[corpus["role"] == "hybrid"]
    following_of = corpus["following"].tolist()
    endings = {" un": "believable", " the": " end", ",": " and", " zzqx": "vbk rain"}  # the target, and what follows
    for row, (target, rest) in zip(hybrid, endings.items(), strict=False):
        last, following = (plain_tokenizer.encode(text) for text in (target, rest))
        ids = corpus.at[row, "token_ids"].copy()
        ids[-1] = last[-1]
        ids[-1 - len(last) : -1] = [plain_tokenizer.encode(" ")[0], *last[:-1]]
        corpus.at[row, "token_ids"] = ids
        following_of[corpus.index.get_loc(row)] = np.array(following, dtype=np.int32)
    corpus["following"] = following_of  # as `at` takes an array of one number for the number
    write_table(study.folder / "corpus.parquet", corpus)
    found = controls(study)["frequency_zipf"][:4].tolist()
    expected = [zipf_frequency("unbelievable", "en"), zipf_frequency("the", "en")]
    assert found[:2] == expected
    assert np.isnan(found[2:]).all()  # a mark; a word that nobody knows


def test_controls_of_a_corpus_without_what_follows_are_refused(small_study: Study, tmp_path: Path) -> None:
    shutil.copytree(small_study.folder, tmp_path / "study")
    study = Study(tmp_path / "study")
    write_table(study.folder / "corpus.parquet", study.corpus.drop(columns="following"))
    with pytest.raises(StudyError, match=r"without the tokens that complete the targets' words; delete .* and run"):
        controls(study)
    (study.folder / "corpus.parquet").unlink()  # the remedy
    make_study(str(study.folder), dict.fromkeys(DEFAULTS))
    assert controls(study)["frequency_zipf"].notna().any()
