"""Which windows make a pair: different documents, clusters of pairs that share one, and separators alike."""

import json
import re
from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clada.models.open import bos_tokens
from cladastats.cli import main
from cladastats.corpus import DEFAULTS, PAPER, asked_settings, default_margin
from cladastats.sequences.pairs import build_corpus, document_pairs, stream_pairs
from cladastats.sequences.random_words import RandomSequences, tag_words
from cladastats.sequences.sources import Documents
from cladastats.sequences.windows import Window
from cladastats.similarities.panels import row_facts
from cladastats.study import Study

LENGTH, RATIOS = 48, (0.25, 0.5)


def windows_of(counts: list[int]) -> list[Window]:
    """So many windows of each document; every window has tokens of its own."""
    documents = [document for document, count in enumerate(counts) for _ in range(count)]
    return [Window(np.full(9, i, dtype=np.int32), [0], 8, document=document) for i, document in enumerate(documents)]


def document_of(window: Window) -> int:
    assert window.document is not None
    return window.document


def components(pairs: list[tuple[int, int]]) -> list[set[int]]:
    """Documents that hang together through pairs, found by merging sets."""
    sets: list[set[int]] = []
    for pair in pairs:
        touching = [one for one in sets if one & set(pair)]
        sets = [one for one in sets if not one & set(pair)] + [set(pair).union(*touching)]
    return sets


@pytest.mark.parametrize("counts", [[1] * 7, [3, 3, 1, 1], [5, 1, 1, 1], [4, 2, 2, 1, 1, 1], [6, 4, 3], [2]])
def test_pairs_within_documents_are_of_two_documents_and_clusters_are_those_that_hang_together(
    counts: list[int],
) -> None:
    windows = windows_of(counts)
    pairs = list(document_pairs(windows, np.random.default_rng(0)))
    used = [id(window) for a, b, _ in pairs for window in (a, b)]
    assert len(used) == len(set(used))
    assert all(a.document != b.document for a, b, _ in pairs)
    # What is left over is of one document, which has nothing to be paired with.
    left = {window.document for window in windows if id(window) not in used}
    assert len(left) <= 1
    documents_of: dict[int, set[int]] = defaultdict(set)
    for a, b, cluster in pairs:
        documents_of[cluster] |= {document_of(a), document_of(b)}
    found = components([(document_of(a), document_of(b)) for a, b, _ in pairs])
    assert sorted(map(sorted, documents_of.values())) == sorted(map(sorted, found))


def test_clusters_are_as_many_as_can_be_before_a_document_is_used_twice() -> None:
    pairs = list(document_pairs(windows_of([3] * 10), np.random.default_rng(0)))
    assert len(pairs) == 15
    for turn in range(3):
        assert sorted(cluster for *_, cluster in pairs[5 * turn : 5 * turn + 5]) == sorted(
            {cluster for *_, cluster in pairs}
        )


def test_windows_of_joined_documents_are_a_cluster_each() -> None:
    pairs = list(stream_pairs(windows_of([1] * 7), np.random.default_rng(0)))
    assert [cluster for *_, cluster in pairs] == [0, 1, 2]


def corpus(articles: list[str], tokenizer: Any, windows: str) -> pd.DataFrame:
    documents = Documents(["Rain fell.", *articles[:8]], "0" * 64, {"library": "none"})
    options: dict[str, Any] = {"pairs": 12, "length": LENGTH, "ratios": RATIOS, "seed": 5, "windows": windows}
    return build_corpus(documents, tokenizer, **options).table.to_pandas()


@pytest.mark.parametrize("windows", ["document", "stream"])
def test_both_groups_have_separators_at_the_same_places(articles: list[str], tokenizer: Any, windows: str) -> None:
    table = corpus(articles, tokenizer, windows)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    # A BOS token may be the same token.
    places = [np.flatnonzero(ids[len(bos_tokens(tokenizer)) :] == end).tolist() for ids in table["token_ids"]]
    natural, random = (
        [place for place, group in zip(places, table["group"], strict=True) if group == name] for name in ("nls", "rts")
    )
    assert natural == random
    assert any(natural) == (windows == "stream")


def test_a_word_ends_before_a_separator_and_another_begins_after_it(articles: list[str], plain_tokenizer: Any) -> None:
    pool = tag_words(articles[:8], 4000, np.random.default_rng(0))
    draw = RandomSequences(pool, plain_tokenizer, 200)
    end = plain_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    known = {part for text in pool.text for part in re.findall(r"\w+", text)}
    last = first = 0
    for seed in range(20):
        window = draw(np.random.default_rng(seed), [0, 60, 61, 150], end)
        assert window.token_ids.shape == (201,)
        assert np.flatnonzero(window.token_ids == end).tolist() == [0, 60, 61, 150]
        assert window.documents == [0, 1, 61, 62, 151]
        assert window.target_distance == 200 - 151
        last += re.findall(r"\w+", plain_tokenizer.decode(window.token_ids[62:150]))[-1] in known
        first += re.findall(r"\w+", plain_tokenizer.decode(window.token_ids[151:]))[0] in known
    assert first == 20
    # A stratum may have no word of the length that is missing: then the last one is cut. 18 of 20 allows that.
    assert last >= 18


def test_natural_sequences_of_a_pair_are_of_the_documents_that_the_corpus_names(
    articles: list[str], plain_tokenizer: Any
) -> None:
    table = corpus(articles, plain_tokenizer, "document")
    texts = ["Rain fell.", *articles[:8]]
    for row in table[(table["group"] == "nls") & table["role"].isin(["A", "B"])].itertuples():
        assert plain_tokenizer.decode(row.token_ids) in texts[int(row.document)]
    assert table.loc[table["group"] == "rts", "document"].isna().all()
    a_and_b = table[table["role"].isin(["A", "B"]) & (table["group"] == "nls")]
    assert (a_and_b.groupby("pair")["document"].nunique() == 2).all()
    assert table.groupby(["group", "pair"])["cluster"].nunique().eq(1).all()


@pytest.mark.parametrize("windows", ["document", "stream"])
def test_panels_say_where_the_target_s_document_begins(
    tiny_study: Study, articles: list[str], plain_tokenizer: Any, windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = corpus(articles, plain_tokenizer, windows)
    monkeypatch.setattr(Study, "corpus", table)
    index = table[["sequence_id"]].drop_duplicates().assign(surprisal_bits=1.0, entropy_bits=1.0)
    facts = row_facts(tiny_study, index).set_index(["group", "pair", "ratio"])
    end = plain_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for row in table[table["role"] == "hybrid"].itertuples():
        found = facts.loc[(row.group, row.pair, row.ratio)]
        behind = row.token_ids[int(row.prefix_len) : LENGTH]
        assert found["separator_between"] == (end in behind)
        whole = table[(table["group"] == row.group) & (table["pair"] == row.pair) & (table["role"] == "A")].iloc[0]
        begins = whole["documents"][-1]
        if begins > 0 or row.group == "rts":
            assert found["target_distance"] == LENGTH - begins
        else:  # it may have begun before the sequence
            assert found["target_distance"] >= LENGTH
        assert found["cluster"] == row.cluster
    assert facts["separator_between"].any() == (windows == "stream")


def asked(**given: Any) -> Any:
    from argparse import Namespace

    return Namespace(**{**dict.fromkeys(DEFAULTS), "paper": False, **given})


def test_the_paper_s_shape_is_asked_for_and_may_be_changed() -> None:
    assert asked_settings(asked()) == dict.fromkeys(DEFAULTS)
    assert asked_settings(asked(paper=True)) == dict.fromkeys(DEFAULTS) | PAPER
    assert asked_settings(asked(paper=True, pairs=7))["pairs"] == 7


def test_a_margin_has_a_source(small_study: Study, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert small_study.config.equivalence_margin == default_margin(64)
    assert small_study.config.equivalence_margin_source
    assert main(["corpus", "--study", str(tmp_path / "study"), "--margin-source", "a pilot"]) == 2
    assert "give the margin too" in capsys.readouterr().err


def test_a_study_of_an_earlier_version_is_opened(tiny_copy: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Its report has no clusters, its study.json no source of the margin, its corpus no documents."""
    path = tiny_copy.folder / "study.json"
    content = json.loads(path.read_text("utf-8"))
    del content["corpus"]["natural_clusters"], content["equivalence_margin_source"]
    path.write_text(json.dumps(content), "utf-8")
    table = tiny_copy.corpus.drop(columns=["document", "cluster"])
    table.to_parquet(tiny_copy.folder / "corpus.parquet")
    assert main(["corpus", "--study", str(tiny_copy.folder)]) == 0
    assert "6 pairs a group; part-of-speech ratios" in capsys.readouterr().err
    earlier = Study(tiny_copy.folder)
    facts = row_facts(earlier, earlier.index)
    assert facts["cluster"].tolist() == facts["pair"].tolist()
