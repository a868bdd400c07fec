"""Corpora: windows, pairs, hybrids, matched references and random sequences against slow recomputations."""

import dataclasses
import json
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from clada.errors import InputError, StudyError
from clada.models.open import bos_tokens
from clada.system.files import as_path
from cladastats.cli import main
from cladastats.corpus import DEFAULTS, make_study, repeat_study
from cladastats.sequences.pairs import (
    PairCorpus,
    build_corpus,
    check_ratios,
    document_pairs,
    pair_rows,
    prefix_length,
    tokens_sha256,
)
from cladastats.sequences.placebos import placebo_rows, placebo_sequences
from cladastats.sequences.sources import Documents, source_sha256
from cladastats.sequences.windows import FOLLOWING_TOKENS, Window, natural_windows, separator_token, usable_windows
from cladastats.study import Study, create_study

PAIRS, LENGTH, RATIOS, SEED = 4, 64, (0.25, 0.375, 0.5), 7


def documents(texts: list[str]) -> Documents:
    return Documents(texts, "0" * 64, {"library": "none"})


def build(texts: list[str], tokenizer: Any, **changed: Any) -> PairCorpus:
    """A corpus of joined documents, whose boundaries are harder to follow; test_pairing.py has those within them."""
    settings: dict[str, Any] = {"pairs": PAIRS, "length": LENGTH, "ratios": RATIOS, "seed": SEED, "windows": "stream"}
    return build_corpus(documents(texts), tokenizer, **settings | changed)


@pytest.fixture(scope="session")
def built(articles: list[str], tokenizer: Any) -> pd.DataFrame:
    return build(articles[:6], tokenizer).table.to_pandas()


# -- natural windows ----------------------------------------------------------------------------------------------


def slow_stream(texts: list[str], tokenizer: Any) -> list[tuple[int, int]]:
    """(token, its position in its document) of the joined documents; the separator ends its document."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    stream = []
    for text in texts:
        ids = [*tokenizer.encode(text, add_special_tokens=False), end]
        stream += list(zip(ids, range(len(ids)), strict=True))
    return stream


# The short length has documents that are shorter than a window, the odd one windows that begin anywhere.
@pytest.mark.parametrize("length", [7, 64, 333])
def test_stream_windows_are_the_joined_documents_cut(articles: list[str], tokenizer: Any, length: int) -> None:
    texts = ["Rain.", "It rained all day in the north.", *articles[:4], "Sun."]
    bos = [tokenizer.bos_token_id] if bos_tokens(tokenizer) else []
    stream = slow_stream(texts, tokenizer)
    size = length + 1 - len(bos)
    windows = natural_windows(texts, tokenizer, length, "stream")
    assert len(windows) == len(stream) // size
    for number, window in enumerate(windows):
        piece = stream[number * size : (number + 1) * size]
        assert window.token_ids.dtype == np.int32
        assert window.token_ids.tolist() == bos + [token for token, _ in piece]
        opening = [i + len(bos) for i, (_, position) in enumerate(piece) if position == 0 and i > 0]
        assert window.documents == [0, *opening]
        assert window.target_distance == piece[-1][1]


def test_document_windows_stay_within_one_document(articles: list[str], tokenizer: Any) -> None:
    texts = ["Too short for a window.", *articles[:4]]
    bos = bos_tokens(tokenizer)
    size = LENGTH + 1 - len(bos)
    windows = iter(natural_windows(texts, tokenizer, LENGTH, "document"))
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        for number in range(len(ids) // size):
            window = next(windows)
            assert window.token_ids.tolist() == bos + ids[number * size : (number + 1) * size]
            assert window.documents == [0]
            assert window.target_distance == (number + 1) * size - 1
    assert next(windows, None) is None


def test_bos_is_found_only_where_the_tokenizer_puts_it(plain_tokenizer: Any, bos_tokenizer: Any) -> None:
    assert bos_tokens(plain_tokenizer) == []  # it has a BOS token, but does not put it
    assert bos_tokens(bos_tokenizer) == [bos_tokenizer.bos_token_id]


def test_separator_is_the_end_of_text_not_the_end_of_a_chat_turn(plain_tokenizer: Any) -> None:
    assert plain_tokenizer.eos_token == "<|im_end|>"
    assert separator_token(plain_tokenizer) == "<|endoftext|>"


def test_separator_is_else_the_end_token() -> None:
    assert separator_token(SimpleNamespace(get_vocab=lambda: {"</s>": 2}, eos_token="</s>")) == "</s>"
    with pytest.raises(InputError, match="use --windows document"):
        separator_token(SimpleNamespace(get_vocab=lambda: {"a": 2}, eos_token=None))


# -- pairs, hybrids, matched references ---------------------------------------------------------------------------


def test_every_pair_has_its_sequences_once(built: pd.DataFrame) -> None:
    assert len(built) == 2 * PAIRS * (3 + len(RATIOS))
    for (_, _), rows in built.groupby(["group", "pair"]):
        assert rows["role"].tolist() == ["A", "B", "matched", *["hybrid"] * len(RATIOS)]
        assert rows["ratio"].dropna().tolist() == list(RATIOS)
        assert rows["prefix_len"].dropna().tolist() == [16, 24, 32]
    assert {"nls", "rts"} == set(built["group"])


def test_sequences_have_the_target_as_their_last_token_and_bos_as_their_first(
    built: pd.DataFrame, tokenizer: Any
) -> None:
    ids = np.stack(built["token_ids"])
    assert ids.shape[1] == LENGTH + 1
    bos = bos_tokens(tokenizer)
    assert (ids[:, : len(bos)] == bos).all()
    assert tokenizer.bos_token_id not in ids[:, len(bos) :]  # the second part of a hybrid brings none


def test_hybrids_and_matched_references_are_made_of_their_pair(built: pd.DataFrame) -> None:
    for (_, _), rows in built.groupby(["group", "pair"]):
        by_role = rows[rows["role"] != "hybrid"].set_index("role")["token_ids"]
        a, b = by_role["A"].tolist(), by_role["B"].tolist()
        assert by_role["matched"].tolist() == b[:LENGTH] + a[LENGTH:]
        for row in rows[rows["role"] == "hybrid"].itertuples():
            p = round(row.ratio * LENGTH)
            assert row.prefix_len == p
            assert row.token_ids.tolist() == b[:p] + a[p:]


def test_hybrids_know_where_documents_begin(built: pd.DataFrame) -> None:
    for (_, _), rows in built.groupby(["group", "pair"]):
        a, b, matched = (rows[rows["role"] == role].iloc[0] for role in ("A", "B", "matched"))
        assert matched["documents"].tolist() == [d for d in b["documents"] if d != LENGTH] + [LENGTH]
        assert matched["target_distance"] == 0
        for row in rows[rows["role"] == "hybrid"].itertuples():
            p = int(row.prefix_len)
            belongs = ["b" if i < p else "a" for i in range(LENGTH + 1)]
            parent = {"a": set(a["documents"]), "b": set(b["documents"])}
            starts = [i for i in range(LENGTH + 1) if i == p or i in parent[belongs[i]]]
            assert row.documents.tolist() == starts
            # The cut at p begins a document, so the target's begins within the hybrid.
            assert row.target_distance == LENGTH - starts[-1]


def test_a_document_that_begins_at_the_cut_or_the_target_is_counted_once() -> None:
    a = Window(np.arange(9, dtype=np.int32), [0, 4, 8], 0)
    b = Window(np.arange(9, dtype=np.int32) + 10, [0, 4, 6, 8], 0)
    *_, matched, early, late = pair_rows("nls", 0, a, b, (0.5, 0.75), 8)
    assert matched["documents"] == [0, 4, 6, 8]
    assert early["documents"] == [0, 4, 8]
    assert late["documents"] == [0, 4, 6, 8]
    assert [row["target_distance"] for row in (matched, early, late)] == [0, 0, 0]


@pytest.mark.parametrize("windows", ["stream", "document"])
def test_what_follows_a_target_is_kept_within_its_document(articles: list[str], tokenizer: Any, windows: str) -> None:
    texts = ["It rained all day in the north.", *articles[:3]]
    bos = len(bos_tokens(tokenizer))
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    cut = natural_windows(texts, tokenizer, 7, windows)
    for window in cut:
        position = window.target_distance  # in its document
        (document,) = (
            (
                ids
                for ids in encoded
                if ids[max(0, position - 6) : position + 1] == window.token_ids[bos:].tolist()[-min(7, position + 1) :]
            )
            if window.token_ids[-1] != tokenizer.convert_tokens_to_ids("<|endoftext|>")
            else ([],)
        )
        assert window.following.tolist() == document[position + 1 : position + 1 + FOLLOWING_TOKENS]
    assert any(len(window.following) < FOLLOWING_TOKENS for window in cut)


def test_rows_of_a_pair_know_what_follows_their_target() -> None:
    a, b = (
        Window(np.arange(k, k + 9, dtype=np.int32), [0], 8, following=np.array([k, k + 1], dtype=np.int32))
        for k in (100, 200)
    )
    rows = pair_rows("nls", 0, a, b, (0.25, 0.5), 8)
    assert [row["following"].tolist() for row in rows] == [[100, 101], [200, 201], *[[100, 101]] * 3]


def test_natural_sequences_are_windows_of_the_source_used_once(
    built: pd.DataFrame, articles: list[str], tokenizer: Any
) -> None:
    windows = [w.token_ids.tobytes() for w in natural_windows(articles[:6], tokenizer, LENGTH, "stream")]
    used = [ids.tobytes() for ids in built.query("group == 'nls' and role in ('A', 'B')")["token_ids"]]
    assert len(set(used)) == len(used) == 2 * PAIRS
    assert set(used) <= set(windows)
    assert used != windows[: len(used)]  # shuffled


def test_ids_name_the_content(built: pd.DataFrame, articles: list[str], tokenizer: Any) -> None:
    other = build(articles[:6], tokenizer, seed=SEED + 1, pairs=25).table.to_pandas()
    content_of: dict[str, bytes] = {}
    shared = set()
    for name, ids in pd.concat([built, other])[["sequence_id", "token_ids"]].itertuples(index=False):
        if name in content_of:
            shared.add(name)
        assert content_of.setdefault(name, ids.tobytes()) == ids.tobytes()
    assert len(content_of) == len(set(content_of.values()))
    assert shared  # both corpora hold some of the same windows, under other pairs


def test_seed_decides_the_corpus(articles: list[str], plain_tokenizer: Any) -> None:
    first, again, other = (build(articles[:3], plain_tokenizer, seed=seed) for seed in (1, 1, 2))
    tables = [made.table.to_pandas() for made in (first, again, other)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert first.sha256 == again.sha256 != other.sha256
    for group in ("nls", "rts"):
        ids = [table.loc[table["group"] == group, "sequence_id"].tolist() for table in tables]
        assert ids[0] != ids[2]
    assert tokens_sha256(tables[0]) == first.sha256


def test_hash_is_of_all_tokens_in_order() -> None:
    def of(*sequences: list[int]) -> str:
        return tokens_sha256(pd.DataFrame({"token_ids": [np.array(ids, dtype=np.int32) for ids in sequences]}))

    assert of([1, 2], [3, 4]) == of([1, 2], [3, 4])
    assert len({of([1, 2], [3, 4]), of([3, 4], [1, 2]), of([1, 2], [3, 5]), of([1, 2])}) == 4


def test_report_says_what_was_measured(articles: list[str], plain_tokenizer: Any) -> None:
    made = build(articles[:3], plain_tokenizer)
    distances = made.table.to_pandas().query("group == 'rts' and role in ('A', 'B')")["pos_distance"]
    assert made.report["encoding"] == {"library": "none"}
    assert made.report["natural_windows"] == len(natural_windows(articles[:3], plain_tokenizer, LENGTH, "stream"))
    assert made.report["tagger"].startswith("HanTa")
    assert made.report["pos_distance_max"] == distances.max()
    assert made.report["pos_distance_mean"] == pytest.approx(distances.mean(), rel=1e-12)  # order of summation


# -- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", ["stream", "document"])
def test_too_little_text_says_how_many_pairs_fit(articles: list[str], plain_tokenizer: Any, windows: str) -> None:
    with pytest.raises(InputError) as error:
        build(articles[:2], plain_tokenizer, pairs=10_000, windows=windows)
    message = str(error.value)
    where = "within documents, A and B of different ones, " if windows == "document" else ""
    found = re.fullmatch(
        rf"too little text: (\d+) pairs of 65 tokens {where}fit, 10,000 asked; use --pairs (\d+), .*", message
    )
    assert found is not None, message
    fit = int(found[1])
    assert found[2] == found[1]
    table = build(articles[:2], plain_tokenizer, pairs=fit, windows=windows).table.to_pandas()
    assert len(table) == 2 * fit * (3 + len(RATIOS))
    # All of the text is used, so a window taken twice would be seen.
    assert table.query("group == 'nls' and role in ('A', 'B')")["sequence_id"].nunique() == 2 * fit
    with pytest.raises(InputError, match="too little text"):
        build(articles[:2], plain_tokenizer, pairs=fit + 1, windows=windows)


def test_text_for_no_pair_at_all_suggests_no_number(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError) as error:
        build(["A short text."], plain_tokenizer)
    message = "too little text: 0 pairs of 65 tokens fit, 4 asked; use a shorter --length or more text"
    assert str(error.value) == message
    with pytest.raises(InputError, match="or join documents with --windows stream"):
        build(["A short text."], plain_tokenizer, windows="document")


def test_the_smallest_text_that_fits_gives_random_sequences_too(articles: list[str], plain_tokenizer: Any) -> None:
    ids = plain_tokenizer.encode(articles[0], add_special_tokens=False)[: 2 * (LENGTH + 1)]
    made = build([plain_tokenizer.decode(ids)], plain_tokenizer, pairs=1)
    assert set(made.table.to_pandas()["group"]) == {"nls", "rts"}


@pytest.mark.parametrize(
    ("ratios", "cause"),
    [
        ((), "no ratio given"),
        ((0.0,), "outside"),
        ((1.0,), "outside"),
        ((0.5, -0.25), "outside"),
        ((1.5,), "outside"),
        ((float("nan"),), "outside"),
        ((0.001,), "leaves no token"),
        ((0.999,), "leaves no token"),
        ((0.25, 0.5, 0.25), "same prefix"),
        ((0.25, 0.251), "same prefix"),
    ],
)
def test_ratios_that_give_no_hybrid_are_refused(
    articles: list[str], plain_tokenizer: Any, ratios: tuple[float, ...], cause: str
) -> None:
    with pytest.raises(InputError, match=cause) as error:
        build(articles[:2], plain_tokenizer, ratios=ratios)
    assert "\n" not in str(error.value)


def test_a_prefix_of_bos_alone_is_refused(articles: list[str], bos_tokenizer: Any, plain_tokenizer: Any) -> None:
    """BOS counts in the prefix, but A has it too: with nothing else the hybrid would be A."""
    settings = {"length": 8, "ratios": (0.125, 0.5), "pairs": 2}
    with pytest.raises(InputError) as error:
        build(articles[:2], bos_tokenizer, **settings)
    assert str(error.value) == (
        "ratio 0.125 of length 8 gives a prefix of the beginning-of-text token alone, which A has too; use a longer "
        "--length or a larger ratio"
    )
    longer = build(articles[:2], bos_tokenizer, **settings | {"ratios": (0.25, 0.5)}).table.to_pandas()
    assert longer["prefix_len"].dropna().unique().tolist() == [2, 4]  # BOS counts
    assert len(build(articles[:2], plain_tokenizer, **settings).table) == 2 * 2 * 5


@pytest.mark.parametrize(("shared", "name", "end"), [(slice(0, 4), "A", "first"), (slice(2, 9), "B", "last")])
def test_a_hybrid_that_is_one_of_its_pair_is_refused(shared: slice, name: str, end: str) -> None:
    ids = np.arange(9, dtype=np.int32)
    other = ids + 10
    other[shared] = ids[shared]
    with pytest.raises(InputError) as error:
        pair_rows("nls", 5, Window(ids, [0], 8), Window(other, [0], 8), (0.5,), 8)
    assert str(error.value) == (
        f"the hybrid of NLS pair 5 at ratio 0.5 is {name} itself, as A and B share their {end} tokens; use a longer "
        "--length, other ratios or another --seed"
    )


@pytest.mark.parametrize("bos", [0, 1])
def test_placebos_of_short_prefixes_are_no_hybrids(bos: int) -> None:
    """Of two tokens the shuffle is the other order; of one there is none, which the study's placebo refuses."""
    a, b, c = (np.arange(start, start + 9) for start in (100, 200, 300))
    a[:bos] = b[:bos] = c[:bos] = 1
    for seed in range(20):
        made = placebo_sequences(a, b, c, 2 + bos, bos, np.random.default_rng(seed))
        assert made["shuffled"].tolist() == [*a[:bos], b[bos + 1], b[bos], *a[bos + 2 :]]
    corpus = pd.DataFrame(
        [
            row
            for pair in (0, 1)
            for row in pair_rows(
                "nls", pair, Window(a + 1000 * pair, [0], 8), Window(b + 1000 * pair, [0], 8), ((1 + bos) / 8, 0.5), 8
            )
        ]
    )
    with pytest.raises(InputError, match=r"the placebo 'shuffled' of NLS pair 0 at ratio .* is A, B or the hybrid"):
        list(placebo_rows(corpus, 2, bos, 0))


def test_prefixes_are_the_rounded_share_of_the_length() -> None:
    check_ratios(RATIOS, 2048)
    assert [prefix_length(ratio, 2048) for ratio in RATIOS] == [512, 768, 1024]
    assert prefix_length(0.3, 33) == 10


# -- the stage ----------------------------------------------------------------------------------------------------


def test_study_is_built_once_and_no_other_may_take_its_folder(tmp_path: Path, articles: list[str]) -> None:
    source = tmp_path / "articles.jsonl"
    source.write_text("".join(json.dumps({"document": text}) + "\n" for text in articles[:3]), encoding="utf-8")
    asked = dict.fromkeys(DEFAULTS) | {
        "source": f"jsonl:{source}:document",
        "pairs": 2,
        "length": LENGTH,
        "ratios": (0.25, 0.5),
    }
    folder = tmp_path / "study"
    study = make_study(str(folder), asked)
    assert len(study.corpus) == 2 * 2 * 5
    assert study.config.separator == ""  # within documents
    assert study.config.corpus_sha256 == tokens_sha256(study.corpus)
    source.unlink()  # a second build would now fail
    assert make_study(str(folder), dict.fromkeys(DEFAULTS)).config == study.config
    with pytest.raises(StudyError, match="is a study with pairs 2, not 3"):
        make_study(str(folder), asked | {"pairs": 3})


@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_a_source_that_changed_is_noticed(tmp_path: Path, articles: list[str], kind: str) -> None:
    files = tmp_path / "source"
    files.mkdir()

    def write(texts: list[str]) -> None:
        if kind == "jsonl":
            (files / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        for number, text in enumerate(texts if kind == "text" else []):
            (files / f"{number}.txt").write_text(text, "utf-8")

    write(articles[:3])
    source = f"jsonl:{files / 'a.jsonl'}" if kind == "jsonl" else f"text:{files}"
    options = dict.fromkeys(DEFAULTS) | {"source": source, "pairs": 2, "length": LENGTH, "ratios": (0.25, 0.5)}
    study = make_study(str(tmp_path / "study"), options)
    assert source_sha256(source) == study.config.source_sha256
    assert make_study(str(study.folder), options).config == study.config
    write(articles[1:4])
    with pytest.raises(StudyError) as error:
        make_study(str(study.folder), options)
    assert str(error.value) == (
        f"{source} has changed since {study.folder} was built of it (sha256 {source_sha256(source)[:20]}, not "
        f"{study.config.source_sha256[:20]}); give another folder with --study, or put the former source back"
    )
    assert main(["corpus", "--study", str(study.folder), "--source", source]) == 2
    assert main(["run", "--study", str(study.folder), "--source", source]) == 2
    assert make_study(str(study.folder), dict.fromkeys(DEFAULTS)).config == study.config  # the study as it was
    shutil.rmtree(files)
    assert source_sha256(source) is None
    assert make_study(str(study.folder), options).config == study.config  # it has all it needs


def test_of_two_corpora_built_in_one_folder_at_once_one_is_refused(
    tmp_path: Path, articles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find no study, both build, and then both want to write: the barrier lets them go on together."""
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in articles[:3]), encoding="utf-8")
    folder = str(tmp_path / "study")
    both_built = threading.Barrier(2, timeout=600)  # ends a test that hangs

    def slow_build(*args: Any, **options: Any) -> PairCorpus:
        corpus = build_corpus(*args, **options)
        both_built.wait()
        return corpus

    monkeypatch.setattr("cladastats.corpus.build_corpus", slow_build)
    results: dict[int, Any] = {}

    def make(seed: int) -> None:
        options = dict.fromkeys(DEFAULTS) | {"source": f"jsonl:{source}", "pairs": 2, "length": LENGTH, "seed": seed}
        try:
            results[seed] = make_study(folder, options)
        except StudyError as refusal:
            results[seed] = refusal

    threads = [threading.Thread(target=make, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = (seed for seed, result in results.items() if not isinstance(result, StudyError))
    other = 3 - made
    assert str(results[other]) == f"{folder} is a study with seed {made}, not {other}; give another folder with --study"
    there = Study(folder)
    assert there.config.seed == made
    assert tokens_sha256(there.corpus) == there.config.corpus_sha256
    assert not (tmp_path / "study" / ".lock").exists()


def test_a_study_that_is_there_by_now_is_not_replaced(small_study: Study, tmp_path: Path) -> None:
    """As at a URL, where there is no lock: what counts is the `study.json` that is there when it is written."""
    config, table = small_study.config, pa.Table.from_pandas(small_study.corpus.drop(columns="documents"))
    for folder in (tmp_path / "study", as_path("memory://corpus-of-two/study")):
        assert create_study(folder, config, table)
        before = (folder / "corpus.parquet").read_bytes()
        assert not create_study(folder, dataclasses.replace(config, seed=99), table.slice(1))
        assert (folder / "corpus.parquet").read_bytes() == before
        assert Study(folder).config == config


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pairs": 1}, "regressions need 2 pairs in each group at least; use --pairs 2 or more"),
        (
            {"ratios": (0.5,)},
            "regressions compare the ratios of a pair, and need 2 at least; use for instance --ratios 0.25,0.5",
        ),
        ({"ratios": ()}, "no ratio given; use for instance --ratios 0.25,0.375,0.5"),
    ],
)
def test_a_study_that_cannot_be_fitted_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_study: Study, changed: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("cladastats.corpus.load_documents", lambda _source: pytest.fail("the work began"))
    options = dict.fromkeys(DEFAULTS) | {"length": LENGTH} | changed
    with pytest.raises(InputError) as error:
        make_study(str(tmp_path / "study"), options)
    assert str(error.value) == said
    assert not (tmp_path / "study").exists()
    recorded = tmp_path / "study.json"
    recorded.write_text(json.dumps(json.loads((small_study.folder / "study.json").read_text()) | changed))
    with pytest.raises(InputError) as error:
        repeat_study(recorded, str(tmp_path / "study"))
    assert str(error.value) == said


def test_a_study_too_small_for_every_regressor_is_built_and_said_so(
    tmp_path: Path, articles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pairs at two ratios: 4 rows, 2 pair effects and 3 regressors."""
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in articles[:3]), encoding="utf-8")
    options = dict.fromkeys(DEFAULTS) | {"source": f"jsonl:{source}", "length": LENGTH, "ratios": (0.25, 0.5)}
    said = "cladastats: 2 pairs at 2 ratios are too few for the regressions with 3 regressors"
    assert len(make_study(str(tmp_path / "small"), options | {"pairs": 2}).corpus) == 2 * 2 * 5
    assert said in capsys.readouterr().err
    make_study(str(tmp_path / "larger"), options | {"pairs": 4})  # 8 rows, 4 pair effects
    assert "too few" not in capsys.readouterr().err


def test_margin_of_equivalence_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="equivalence margin"):
        make_study(str(tmp_path / "study"), dict.fromkeys(DEFAULTS) | {"equivalence_margin": 0.0})
    assert not (tmp_path / "study").exists()


def test_repeated_texts_and_separator_targets_make_no_pair(tokenizer: Any, articles: list[str]) -> None:
    texts = [*articles[:4], *articles[:4]]
    built = build_corpus(
        Documents(texts, "", {}), tokenizer, pairs=4, length=LENGTH, ratios=(0.5,), seed=SEED, windows="document"
    )
    rows = built.table.to_pandas().query("group == 'nls' and role in ('A', 'B')")
    assert rows["sequence_id"].is_unique
    once = natural_windows(articles[:4], tokenizer, LENGTH, "document")
    pairs = len(list(document_pairs(once, np.random.default_rng([SEED, 0]))))
    assert pairs == len(once) // 2 - 1  # of these four documents, one has two windows left over
    with pytest.raises(InputError, match=f"too little text: {pairs} pairs of"):
        build_corpus(
            Documents(texts, "", {}),
            tokenizer,
            pairs=len(once),
            length=LENGTH,
            ratios=(0.5,),
            seed=SEED,
            windows="document",
        )
    separator = tokenizer.convert_tokens_to_ids(separator_token(tokenizer))
    size = LENGTH + 1 - len(bos_tokens(tokenizer))
    ids = tokenizer(articles[0], add_special_tokens=False)["input_ids"][: size - 1]
    ends_so = tokenizer.decode(ids)
    (window, *_) = natural_windows([ends_so, *articles[:2]], tokenizer, LENGTH, "stream")
    assert window.token_ids[-1] == separator
    kept = usable_windows([window], tokenizer, "stream")
    assert kept == []
