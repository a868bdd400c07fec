"""Windows of tokens from the texts a user names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clada.errors import InputError
from clada.models.open import bos_tokens, tokenizer_sha256
from clada.system.files import read_text
from clada.system.jsonfile import split_field, text_records


def read_windows(name: str, tokenizer: Any, revision: str, length: int, needed: int) -> tuple[list[list[int]], str]:
    """The first windows of a text.

    Args:
        name: a UTF-8 text file, `jsonl:FILE:FIELD`, or the folder of a study of the same model, whose natural
            sequences are taken.
        tokenizer: of the model.
        revision: of the model.
        length: of a window in tokens, with BOS where the tokenizer puts one.
        needed: how many windows.

    Returns:
        (windows of token ids; SHA-256 of the tokens).

    Raises:
        InputError: no such file, not UTF-8, a study of another model, or too little text.
    """
    bos = bos_tokens(tokenizer)
    windows: list[list[int]] = []
    try:
        for ids in _tokens(name, tokenizer, revision, len(bos), length):
            windows += cut(ids, bos, length)
            if len(windows) >= needed:
                break
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(
            f"cannot read text from {name} ({reason}); give a UTF-8 file, jsonl:FILE:FIELD or a study folder"
        ) from None
    if len(windows) < needed:
        raise InputError(
            f"too little text: {name} gives {len(windows)} windows of {length} tokens, {needed} needed; give more "
            f"text, or a study of at least {-(-needed // 2)} pairs at length {length}"
        )
    windows = windows[:needed]
    return windows, hashlib.sha256(np.array(windows, dtype="<i4").tobytes()).hexdigest()


def cut(ids: list[int], bos: list[int], length: int) -> list[list[int]]:
    """Token ids in windows of a length, each after the BOS tokens, which count in it; what is left over is dropped."""
    size = length - len(bos)
    return [bos + ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]


def _tokens(name: str, tokenizer: Any, revision: str, bos: int, length: int) -> Iterator[list[int]]:
    """Token ids without BOS, text by text; short texts of a JSONL file are joined, so that windows fill."""
    path = Path(name)
    if path.is_dir():
        study = json.loads((path / "study.json").read_bytes())
        if study["revision"] != revision or study["tokenizer_sha256"] != tokenizer_sha256(tokenizer):
            raise InputError(
                f"{name} is a study of another model or tokenizer, whose tokens mean something else; make one of this"
            )
        for row in pq.read_table(path / "corpus.parquet", columns=["group", "role", "token_ids"]).to_pylist():
            if row["group"] == "nls" and row["role"] in ("A", "B"):
                yield row["token_ids"][bos:]
        return
    if name.startswith("jsonl:"):
        file, field = split_field(name.removeprefix("jsonl:"))
        records = text_records(read_text(file), file, field, "name one with jsonl:FILE:FIELD")
        texts = [record[field] for _, record in records]
        # Tokens of some texts together: a tokenizer takes seconds for millions of characters, and few may be needed.
        ids: list[int] = []
        for i in range(0, len(texts), 50):
            ids += tokenizer("\n\n".join(texts[i : i + 50]), add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= length - bos:
                yield ids
                ids = []
        return
    text = StringIO(read_text(path), newline=None).read()  # a line ends as on Unix, wherever the file was written
    yield tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
