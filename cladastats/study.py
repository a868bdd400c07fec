"""The study folder: what every stage reads and writes (one folder, one corpus, one model).

study.json              what the study is: model, source, seed, lengths, versions
corpus.parquet          the sequences
activations/            neuron activations at the target token, with index.parquet
panel-<metric>.parquet  similarities and responses, a row per group, pair and ratio
fits/<metric>.json      the regressions
coefficients.json       what the engine reads
figures/                what was drawn
"""

from __future__ import annotations

import errno
import hashlib
import html
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from clada.errors import InputError, StudyError
from clada.methods.coefficients import newest_studies
from clada.system.files import as_path, is_local, local_copy, replacing
from clada.system.jsonfile import read_json, write_json

if TYPE_CHECKING:
    from cladastats.results.fit import Fit

STUDY_SCHEMA = "cladastats/study/1"

STUDIES = Path("studies")

RECORDED_PACKAGES = (
    "clada",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "pandas",
    "linearmodels",
    "ftfy",
    "HanTa",
    "syntok",
)


@dataclass(frozen=True)
class StudyConfig:
    """What a study is, fixed when it is made. What its activations depend on is its `identity`.

    Attributes:
        model: the name given to `clada.load_model`.
        revision: content of the model, as `clada.models.open.model_revision` says it.
        dtype: of the forward passes.
        storage_dtype: of the activations on disk.
        threads: of torch during extraction; with it and `batch` fixed, results are bit-identical.
        batch: sequences in one forward pass.
        tokenizer_sha256: of the tokenizer's full definition.
        vocab_size: of the model; log2 of it scales surprisal and entropy to the `_norm` columns.
        source: corpus source as the user named it.
        source_sha256: of the source's bytes.
        seed: of every draw in the corpus.
        pairs: pairs in each group.
        length: tokens before the target; a sequence has length + 1.
        ratios: prefix shares.
        windows: `document` (each sequence within one document) or `stream` (cut from the joined documents).
        separator: the token that joins documents; empty within documents.
        equivalence_margin: difference of the prefix coefficients of NLS and RTS (response points per 1,000 tokens)
            that counts as none; fixed here, before anything is measured.
        corpus: what building the corpus reported (encoding repair, tagger, distances).
        corpus_sha256: of all token ids, in order.
        equivalence_margin_source: where the margin is from; empty in studies that do not say.
        versions: of the packages that computed it.
    """

    model: str
    revision: str
    dtype: str
    storage_dtype: str
    threads: int
    batch: int
    tokenizer_sha256: str
    vocab_size: int
    source: str
    source_sha256: str
    seed: int
    pairs: int
    length: int
    ratios: tuple[float, ...]
    windows: str
    separator: str
    equivalence_margin: float
    corpus: dict[str, Any]
    corpus_sha256: str
    equivalence_margin_source: str = ""
    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in RECORDED_PACKAGES})

    def identity(self) -> str:
        """A short hash of what activations depend on; every part carries it, so a foreign one is noticed."""
        depends = (self.revision, self.dtype, self.storage_dtype, self.threads, self.batch, self.corpus_sha256)
        return hashlib.sha256(repr(depends).encode()).hexdigest()[:16]


class Study:
    """A study folder, opened for reading.

    Args:
        folder: the study's folder, or an fsspec URL of it; None opens the newest one below `studies/`.

    Raises:
        StudyError: there is no such study, or its `study.json` is damaged.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = study_folder(folder)
        self.config = read_config(self.folder / "study.json")

    @property
    def corpus(self) -> pd.DataFrame:
        """The sequences: one row each, columns as in docs/files.md."""
        return self.table("corpus.parquet", "corpus")

    @property
    def index(self) -> pd.DataFrame:
        """Where each sequence's activations are, with surprisal and entropy of its target in bits."""
        return self.table("activations/index.parquet", "extract")

    def panel(self, metric: str = "cka") -> pd.DataFrame:
        """Similarities and responses, one row per group, pair and ratio.

        Args:
            metric: `cka`, `cosine`, `cosine_centred`, `jaccard`, ...; `layers-<metric>` for one row per layer too.
        """
        return self.table(f"panel-{metric}.parquet", f"similarity --metric {metric.removeprefix('layers-')}")

    def fit(self, metric: str = "cka", response: str = "toward") -> Fit:
        """The six regressions of a metric and response; shows itself as a table in JupyterLab."""
        from cladastats.results.fit import FIT_SCHEMA, Fit

        path = self.fit_path(metric, response)
        if not path.exists():
            raise StudyError(
                f"{self.folder} has no {path.relative_to(self.folder)}; run 'cladastats regress --study {self.folder} "
                f"--metric {metric} --response {response}'"
            )
        value = read_json(path, FIT_SCHEMA, StudyError)
        try:
            return Fit.from_dict(value)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise StudyError(
                f"{path} is damaged ({problem}); delete it and run 'cladastats regress --study {self.folder} --metric "
                f"{metric} --response {response}'"
            ) from None

    def fit_path(self, metric: str, response: str) -> Path:
        """Where a fit is kept."""
        return self.folder / "fits" / (f"{metric}.json" if response == "toward" else f"{metric}-{response}.json")

    def table(self, name: str, stage: str) -> pd.DataFrame:
        """A table of the study by file name; `stage` is the command that makes it."""
        path = self.folder / name
        if not path.exists():
            raise StudyError(f"{self.folder} has no {name}; run 'cladastats {stage} --study {self.folder}'")
        try:
            return read_table(path)
        except Exception as problem:  # of a damaged file pyarrow and pandas raise errors of any kind
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise StudyError(
                f"{path} cannot be read ({reason}); delete it and run 'cladastats {stage} --study {self.folder}'"
            ) from None

    def __repr__(self) -> str:
        c = self.config
        return (
            f"Study({str(self.folder)!r}: {c.model}, {c.source}, {c.pairs} pairs, length {c.length}, ratios {c.ratios})"
        )

    def _repr_html_(self) -> str:
        shown = {key: value for key, value in asdict(self.config).items() if key not in ("versions", "corpus")}
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in shown.items())
        return f"<table><caption>{html.escape(str(self.folder))}</caption>{rows}</table>"


def read_config(path: Path) -> StudyConfig:
    """Read a `study.json`.

    Raises:
        StudyError: it is not there, or not one.
    """
    value = read_json(path, STUDY_SCHEMA, StudyError)
    value.pop("schema")
    try:
        if unknown := value.keys() - {field.name for field in fields(StudyConfig)}:
            raise msgspec.ValidationError(f"unknown {', '.join(sorted(unknown))}")
        return msgspec.convert(value, StudyConfig)
    except msgspec.ValidationError as problem:
        raise StudyError(f"{path} is damaged ({problem}); build the study again elsewhere") from None


def study_folder(folder: str | Path | None) -> Path:
    """The folder a user means: the one given, else the newest study below `studies/`.

    Raises:
        StudyError: there is none.
    """
    if folder is not None:
        path = as_path(folder)
        if not (path / "study.json").is_file():
            raise StudyError(
                f"{path} is not a study (no study.json); make one with 'cladastats corpus --study {path} ...'"
            )
        return path
    newest = newest_studies(STUDIES)
    if not newest:
        raise StudyError(f"no study below {STUDIES}/; make one with 'cladastats run' or name one with --study")
    return newest[0]


def write_study(folder: Path, config: StudyConfig) -> None:
    """Write `study.json`, the last file of the corpus stage: with it the study exists."""
    write_json(folder / "study.json", {"schema": STUDY_SCHEMA, **asdict(config)})


def create_study(folder: Path, config: StudyConfig, corpus: pa.Table) -> bool:
    """Write the corpus and the `study.json` of a new study, unless there is a study in the folder by now.

    Another process may have built one there meanwhile. In a folder a lock lets one of them write. A URL has no locks:
    there the one that comes later finds the other's `study.json` once it is uploaded, and of two that upload at the
    same time the one whose file was replaced finds that afterwards.

    Returns:
        whether the study in the folder is this one.
    """
    lock = folder / ".lock"
    if is_local(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock) if is_local(folder) else nullcontext():
        there = (folder / "study.json").is_file()
        if not there:
            write_table(folder / "corpus.parquet", corpus, config.corpus_sha256)
            write_study(folder, config)
    if is_local(folder):
        with suppress(OSError):  # whoever waits for it finds the study; Windows keeps the file for them
            lock.unlink()
        return not there
    return not there and read_config(folder / "study.json") == config


def write_table(path: Path, table: pd.DataFrame | pa.Table, inputs: str = "") -> None:
    """Write a parquet file atomically, with a digest of what it was computed from in its metadata.

    Args:
        path: the file.
        table: its rows.
        inputs: digest of the inputs, compared by `is_current`.
    """
    arrow = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"inputs": inputs.encode()})
    with replacing(path) as temporary:
        pq.write_table(arrow, temporary, write_page_checksum=True)


@contextmanager
def kept_where_possible(what: str) -> Iterator[None]:
    """Write, within the block, results that are shown anyway; where that cannot be, one line on stderr says so.

    A study may be read-only (another user's, a published one), or kept without the texts that a result needs.

    Args:
        what: Is written, for the message.
    """
    try:
        yield
    except (InputError, StudyError) as problem:
        reason = str(problem)
    except OSError as problem:
        if problem.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        reason = f"{problem.filename}: {problem.strerror}"
    else:
        return
    print(f"cladastats: {what} not kept: {' '.join(reason.split())}", file=sys.stderr)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet file; its pages' checksums are compared, and text must be UTF-8.

    Raises:
        Exception: of any kind, from pyarrow or pandas: it is not there, or damaged.
    """
    with local_copy(path) as file:
        table = pq.read_table(file, page_checksum_verification=True)
    table.validate(full=True)
    return table.to_pandas()


def is_current(path: Path, inputs: str) -> bool:
    """Whether a table written by `write_table` is there, readable and made from these inputs."""
    if not path.exists():
        return False
    try:
        with local_copy(path) as file:
            metadata = pq.read_schema(file).metadata or {}
    except Exception:  # as in `Study.table`
        return False
    return bool(metadata.get(b"inputs", b"") == inputs.encode())
