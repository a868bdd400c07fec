"""Where corpus text comes from: `news` (embedded), `xsum` (hub), `jsonl:PATH[:field]`, `text:DIR`.

What each named source is, its licence and checksum stand in `corpora/`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from clada.errors import InputError
from clada.models.assets import fetch
from clada.system.encoding import repair_encoding
from clada.system.files import decode_text, read_bytes, read_text
from clada.system.jsonfile import split_field, text_records

REMEDY = "name one with jsonl:PATH:field"

XSUM_REPOSITORY = "EdinburghNLP/xsum"


@dataclass(frozen=True)
class Documents:
    """The texts of a source, encoding repaired, in the source's order.

    Attributes:
        texts: one string per document; empty ones are left out.
        sha256: of the source's bytes as they were found.
        encoding: what the repair did: library, version, number of documents changed.
    """

    texts: list[str]
    sha256: str
    encoding: dict[str, Any]


def load_documents(source: str) -> Documents:
    """Read a source.

    Args:
        source: `news`, `xsum`, `jsonl:PATH[:field]` (default field `text`) or `text:DIR` (every `*.txt` below it).

    Raises:
        InputError: unknown source, no such file, not UTF-8, not JSON lines, no such field, no text in it.
        AssetError: the embedded corpus cannot be fetched.
    """
    kind, _, rest = source.partition(":")
    if source == "news":
        raw, sha256 = _read_news()
    elif source == "xsum":
        raw, sha256 = _read_xsum()
    elif kind == "jsonl" and rest:
        raw, sha256 = _read_jsonl(rest)
    elif kind == "text" and rest:
        raw, sha256 = _read_text_folder(Path(rest))
    else:
        raise InputError(f"unknown source '{source}'; use news, xsum, jsonl:PATH[:field] or text:DIR")
    repaired = list(map(repair_encoding, raw))
    encoding = {
        "library": f"ftfy {version('ftfy')}",
        "documents": len(raw),
        "documents_repaired": sum(a != b for a, b in zip(raw, repaired, strict=True)),
    }
    texts = [text for text in repaired if text.strip()]
    if not texts:
        raise InputError(f"source '{source}' holds no text; give one with documents in it")
    return Documents(texts, sha256, encoding)


def source_sha256(source: str) -> str | None:
    """Hash of the files that a source names, as they are now; what `Documents.sha256` is of them.

    Args:
        source: as for `load_documents`.

    Returns:
        the hash; None where the source names no files of the user's (`news` is pinned, `xsum` is the hub's), or they
        are gone or cannot be read.
    """
    kind, _, rest = source.partition(":")
    try:
        if kind == "jsonl":
            path, _ = _jsonl_path(rest)
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if kind == "text":
            return _folder_sha256(Path(rest), {path: path.read_bytes() for path in _text_files(Path(rest))})
    except (OSError, InputError):
        return None
    return None


def _read_news() -> tuple[list[str], str]:
    content = fetch("news").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open("NewsArticles.csv") as handle:
        articles = pd.read_csv(handle, usecols=["text"])
    return articles["text"].dropna().tolist(), hashlib.sha256(content).hexdigest()


def _read_xsum() -> tuple[list[str], str]:
    from huggingface_hub import HfApi, hf_hub_download

    from clada.models.open import HUB_TIMEOUT_S

    # The hub converts every public data set to parquet on this branch; it needs no loading script.
    branch = "refs/convert/parquet"
    try:
        dataset = HfApi().dataset_info(XSUM_REPOSITORY, revision=branch, timeout=HUB_TIMEOUT_S)
        names = [file.rfilename for file in dataset.siblings or []]
        files = sorted(name for name in names if "/train/" in name and name.endswith(".parquet"))
        paths = [Path(hf_hub_download(XSUM_REPOSITORY, n, repo_type="dataset", revision=branch)) for n in files]
    except Exception as problem:  # the client lets any error of its transport through
        raise InputError(
            f"source 'xsum' cannot be fetched from the hub ({type(problem).__name__}); "
            "use 'news', or a copy of it with jsonl:PATH:document"
        ) from None
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    texts = pd.concat([pd.read_parquet(path, columns=["document"]) for path in paths])["document"]
    return texts.tolist(), digest.hexdigest()


def _jsonl_path(rest: str) -> tuple[Path, str]:
    """File and field of `PATH[:field]`; a path may hold a colon itself: what exists as a file is a path."""
    name, field = split_field(rest)
    return Path(name), field


def _read_jsonl(rest: str) -> tuple[list[str], str]:
    path, field = _jsonl_path(rest)
    content = read_bytes(path)
    records = text_records(decode_text(content, path), path, field, REMEDY)
    return [record[field] for _, record in records], hashlib.sha256(content).hexdigest()


def read_records(path: Path, field: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each with a text in one of its fields.

    Raises:
        InputError: the file cannot be read, or a line is not such an object; with the line.
    """
    return [record for _, record in text_records(read_text(path), path, field, REMEDY)]


def _text_files(folder: Path) -> list[Path]:
    """Every text file below a folder, in order.

    Raises:
        InputError: there is no such folder, or no such file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; text:DIR reads every *.txt below DIR")
    paths = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not paths:
        raise InputError(f"{folder} has no *.txt file; text:DIR reads every one below DIR")
    return paths


def _folder_sha256(folder: Path, contents: dict[Path, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in contents.items():
        # Names and lengths too, so that moving a line from one file to the next changes the hash.
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _read_text_folder(folder: Path) -> tuple[list[str], str]:
    contents = {path: read_bytes(path) for path in _text_files(folder)}
    return [decode_text(content, path) for path, content in contents.items()], _folder_sha256(folder, contents)
