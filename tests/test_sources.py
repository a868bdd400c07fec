"""Sources of text: what is read, what is refused, what is repaired."""

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import ftfy
import huggingface_hub
import pandas as pd
import pytest

from clada.errors import InputError
from clada.models.assets import ASSETS
from cladastats.sequences.sources import Documents, load_documents


@pytest.fixture(scope="session")
def news() -> Documents:
    return load_documents("news")


def write_jsonl(path: Path, *records: object, newline: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(record) + newline for record in records).encode())
    return path


def refusal(source: str) -> str:
    """The message a source is refused with, which must fit on one line."""
    with pytest.raises(InputError) as error:
        load_documents(source)
    message = str(error.value)
    assert "\n" not in message
    return message


# -- the embedded corpus ------------------------------------------------------------------------------------------


def test_news_holds_the_articles_it_is_known_for(news: Documents) -> None:
    # The file is pinned: 3,824 articles, 36 of them without text; about two million words.
    assert len(news.texts) == news.encoding["documents"] == 3_788
    assert 1.8e6 < sum(len(text.split()) for text in news.texts) < 2.2e6
    assert news.sha256 == ASSETS["news"].sha256
    assert news.encoding["documents_repaired"] == 0  # one holds a decomposed accent, which is no mangled encoding


# -- jsonl --------------------------------------------------------------------------------------------------------


def test_jsonl_reads_the_field_text_by_default(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "one", "document": "1"}, {"text": "two", "document": "2"})
    documents = load_documents(f"jsonl:{path}")
    assert documents.texts == ["one", "two"]
    assert documents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jsonl_reads_a_named_field(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "one", "document": "1"})
    assert load_documents(f"jsonl:{path}:document").texts == ["1"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no colon in file names")
@pytest.mark.parametrize(("suffix", "expected"), [("", "one"), (":document", "1")])
def test_jsonl_path_may_hold_a_colon(tmp_path: Path, suffix: str, expected: str) -> None:
    path = write_jsonl(tmp_path / "2026:text.jsonl", {"text": "one", "document": "1"})
    assert load_documents(f"jsonl:{path}{suffix}").texts == [expected]


def test_jsonl_byte_order_mark_crlf_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n   \r\n{"text": "two"}\r\n')
    assert load_documents(f"jsonl:{path}").texts == ["one", "two"]


def test_jsonl_line_separators_inside_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    # JSON allows them unescaped; only str.splitlines would cut there.
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two"}\n', encoding="utf-8")
    assert len(load_documents(f"jsonl:{path}").texts) == 1


def test_jsonl_leaves_out_empty_texts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": "one"}, {"text": " \n\t"})
    assert load_documents(f"jsonl:{path}").texts == ["one"]


def test_jsonl_without_any_text_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": "  "})
    assert "holds no text" in refusal(f"jsonl:{path}")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    assert "holds no text" in refusal(f"jsonl:{path}")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b'{"text": "caf\xe9"}\n', "not UTF-8 (byte 13)"),
        (b'{"text": "one"}\n\nplain\n', "line 3: not JSON"),
        (b'{"text": "one"}\n{"text": "two"', "line 2: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (
            b'{"text": "one"}\n{"body": "two", "title": "t"}\n',
            "line 2: no text in field 'text' (there: 'body', 'title')",
        ),
        (b'{"text": null}\n', "line 1: no text in field 'text'"),
        (b'["text"]\n', "line 1: no text in field 'text' (there: no fields)"),
        (b'{"a\\nb": 1}\n', "line 1: no text in field 'text'"),
    ],
)
def test_jsonl_that_cannot_be_read_is_refused_with_the_place(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    message = refusal(f"jsonl:{path}")
    assert cause in message
    assert str(path) in message


def test_jsonl_without_the_named_field_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "one"})
    assert "no text in field 'document' (there: 'text')" in refusal(f"jsonl:{path}:document")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert f"cannot read {tmp_path / 'none.jsonl'}" in refusal(f"jsonl:{tmp_path / 'none.jsonl'}")


# -- folders of text ----------------------------------------------------------------------------------------------


def test_text_reads_every_file_below_the_folder_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "deep" / "er" / "c.txt").write_text("third", encoding="utf-8")
    (tmp_path / "other.md").write_text("not read", encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    assert load_documents(f"text:{tmp_path}").texts == ["first", "second", "third"]


def test_text_hash_changes_when_content_moves_between_files(tmp_path: Path) -> None:
    contents = [("line 1\nline 2\n", "line 3\n"), ("line 1\n", "line 2\nline 3\n")]
    hashes = set()
    for number, (a, b) in enumerate(contents):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.txt").write_text(a, encoding="utf-8")
        (folder / "b.txt").write_text(b, encoding="utf-8")
        hashes.add(load_documents(f"text:{folder}").sha256)
        (folder / "b.txt").rename(folder / "c.txt")
        hashes.add(load_documents(f"text:{folder}").sha256)
    assert len(hashes) == 4


def test_text_hash_tells_a_file_from_a_text_that_looks_like_it(tmp_path: Path) -> None:
    for folder, files in {"x": {"a.txt": "one", "b.txt": "two"}, "y": {"a.txt": "oneb.txttwo"}}.items():
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name).write_text(content, encoding="utf-8")
    assert load_documents(f"text:{tmp_path / 'x'}").sha256 != load_documents(f"text:{tmp_path / 'y'}").sha256


def test_text_hash_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same", encoding="utf-8")
    assert load_documents(f"text:{tmp_path / 'x'}").sha256 == load_documents(f"text:{tmp_path / 'y'}").sha256


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are Unicode there")
def test_text_file_name_need_not_be_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("one", encoding="utf-8")
    assert load_documents(f"text:{tmp_path}").texts == ["one"]


def test_text_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "has no *.txt file" in refusal(f"text:{tmp_path}")
    assert "is not a folder" in refusal(f"text:{tmp_path / 'none'}")
    (tmp_path / "a.txt").write_bytes(b"good so far \xff")
    message = refusal(f"text:{tmp_path}")
    assert "not UTF-8 (byte 12)" in message
    assert "a.txt" in message


@pytest.mark.parametrize("source", ["", "wiki", "News", "news:x", "jsonl", "jsonl:", "text:", "csv:a.csv"])
def test_unknown_source_is_refused_with_the_known_ones(source: str) -> None:
    message = refusal(source)
    assert f"unknown source '{source}'" in message
    assert "news, xsum, jsonl:PATH[:field] or text:DIR" in message


# -- encoding -----------------------------------------------------------------------------------------------------


def test_mangled_encoding_is_repaired_and_recorded(tmp_path: Path) -> None:
    mangled = "It cost £5, the café’s owner said".encode().decode("windows-1252")
    assert "Â£" in mangled
    path = write_jsonl(tmp_path / "a.jsonl", {"text": mangled}, {"text": "It cost £5"}, {"text": "plain"})
    documents = load_documents(f"jsonl:{path}")
    assert documents.texts == ["It cost £5, the café’s owner said", "It cost £5", "plain"]
    assert documents.encoding == {"library": f"ftfy {ftfy.__version__}", "documents": 3, "documents_repaired": 1}


def test_curly_quotes_and_full_width_characters_are_kept(tmp_path: Path) -> None:
    text = "“It’s ＡＢＣ！” ‘日本’"
    path = write_jsonl(tmp_path / "a.jsonl", {"text": text})
    documents = load_documents(f"jsonl:{path}")
    assert documents.texts == [text]
    assert documents.encoding["documents_repaired"] == 0


# Ligatures, HTML, decomposed accents (NFD), a control character, other line breaks, a byte-order mark within the text.
@pytest.mark.parametrize(
    "text",
    ["eﬃcient ﬁre", "AT&amp;T &lt;b&gt;", "cafe\u0301", "a\x0cb\x1b[1mc", "one\r\ntwo\u2028three", "a\ufeffb", "½ ² ﷺ"],
)
def test_only_the_encoding_of_a_source_is_mended(tmp_path: Path, text: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": text}, {"text": f"{text}\nIt cost Â£5"})
    documents = load_documents(f"jsonl:{path}")
    assert documents.texts == [text, f"{text}\nIt cost £5"]
    assert documents.encoding["documents_repaired"] == 1


def test_lone_surrogates_become_text_that_can_be_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "half \\ud83d a pair"}\n', encoding="utf-8")
    documents = load_documents(f"jsonl:{path}")
    assert documents.texts == ["half \ufffd a pair"]


# -- xsum ---------------------------------------------------------------------------------------------------------


class OfflineError(Exception):
    """Stands for the transport errors of the hub's client, which are not all OSError."""


@pytest.mark.parametrize("error", [OSError("no route"), OfflineError("name not known\nsecond line")])
def test_xsum_without_network_is_refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    message = refusal("xsum")
    assert "cannot be fetched from the hub" in message
    assert "use 'news'" in message


def test_xsum_is_the_train_split_of_the_parquet_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        "default/train/0001.parquet": ["third"],
        "default/train/0000.parquet": ["first", "", "second"],
        "default/test/0000.parquet": ["held out"],
    }
    for name, texts in splits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"document": texts, "summary": "s", "id": "0"}).to_parquet(tmp_path / name)
    asked = set()

    def dataset_info(self: object, repository: str, *, revision: str, timeout: float) -> SimpleNamespace:
        asked.add((repository, revision))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in [*splits, "README.md"]])

    def hf_hub_download(repository: str, filename: str, *, repo_type: str, revision: str) -> str:
        assert repo_type == "dataset"
        asked.add((repository, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    documents = load_documents("xsum")
    assert documents.texts == ["first", "second", "third"]
    content = b"".join((tmp_path / f"default/train/000{i}.parquet").read_bytes() for i in (0, 1))
    assert documents.sha256 == hashlib.sha256(content).hexdigest()
    assert asked == {("EdinburghNLP/xsum", "refs/convert/parquet")}
