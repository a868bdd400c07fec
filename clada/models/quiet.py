"""Calls of transformers that say nothing while they work and one line when they fail."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from clada.errors import CladaError, ModelError


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the loading bars, log lines and warnings of transformers; the caller's settings return afterwards."""
    from transformers.utils import logging as transformers_logging  # what only asks for names does without

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Within the block any error becomes a `ModelError` that begins with `what`."""
    try:
        yield
    except CladaError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the readers, with any type
        raise ModelError(f"{what} ({first_line(error)}): is the file whole and of a supported kind?") from error


def first_line(error: Exception) -> str:
    """Of an error, or the name of its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
