"""The tokenizer of a study, which must be the one its corpus was made with."""

from __future__ import annotations

from typing import Any

from clada.errors import StudyError
from clada.models.open import load_tokenizer, tokenizer_sha256
from cladastats.study import StudyConfig


def check_tokenizer(tokenizer: Any, sha256: str, model: str) -> None:
    """Refuse another tokenizer than the one a study was made with.

    A model's name may open another one later: its files were changed, or another version of a package converts them.

    Args:
        tokenizer: what the model's name opens here.
        sha256: of the tokenizer of the study.
        model: name of the model.

    Raises:
        StudyError: they differ.
    """
    here = tokenizer_sha256(tokenizer) if tokenizer.is_fast else "none, it is not a fast one"
    if here != sha256:
        raise StudyError(
            f"the tokenizer of {model} is not the one the study was made with (sha256 {here[:20]}, not {sha256[:20]}): "
            "its tokens mean something else; use the versions of packages that study.json names, or make a new study "
            "with another --study"
        )


def study_tokenizer(config: StudyConfig) -> Any:
    """Open the tokenizer of a study.

    Raises:
        StudyError: it is not the one the study was made with.
        ModelError: it cannot be opened.
    """
    tokenizer = load_tokenizer(config.model)
    check_tokenizer(tokenizer, config.tokenizer_sha256, config.model)
    return tokenizer
