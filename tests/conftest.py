"""Tests never touch the model hub: what they need comes from the embedded assets or is made in memory."""

import os
import shutil
import sys
from pathlib import Path

import pytest

# Before anything imports transformers or huggingface_hub, which read it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is loaded: its threads sleep until there is work. By default they spin, and where other processes want
# the cores too, tests of small models take many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def _wild_bootstrap_compiled_once():
    """wildboottest compiles its inner loop at every call, half a second each; here the same code is compiled once."""
    from unittest.mock import patch

    import numba
    import wildboottest.wildboottest as library

    compiled = {}

    def njit(**options):
        return lambda loop: compiled.setdefault(loop.__code__, numba.njit(**options)(loop))

    with patch.object(library, "njit", njit):
        yield


@pytest.fixture(autouse=True)
def _torch_threads():
    """Commands set torch's threads for their process; the next test has those that it would have had alone."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_study(tmp_path_factory):
    """A real study, small: SmolLM2 on the news, 6 pairs a group at length 64, run through the command. Not to be
    changed."""
    from cladastats.cli import main
    from cladastats.study import Study

    folder = tmp_path_factory.mktemp("small") / "study"
    assert main(["run", "--study", str(folder), "--pairs", "6", "--length", "64", "--seed", "3"]) == 0
    return Study(folder)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory):
    """The same study of a tiny random model, for tests that extract again: that takes no time. Not to be changed."""
    from tiny_models import tiny_model

    from clada.models.open import load_tokenizer
    from cladastats.cli import main
    from cladastats.study import Study

    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama", vocab_size=49152).save_pretrained(folder / "model")
    load_tokenizer("smollm2-135m").save_pretrained(folder / "model")
    arguments = ["--model", str(folder / "model"), "--pairs", "6", "--length", "64", "--seed", "3"]
    assert main(["run", "--study", str(folder / "study"), *arguments]) == 0
    return Study(folder / "study")


@pytest.fixture
def small_copy(small_study, tmp_path):
    """A study with panels of cosine, cka and its trimmed form, of its own."""
    from cladastats.study import Study

    folder = tmp_path / "copy"
    kept = shutil.ignore_patterns(
        "panel-jaccard*", "panel-*cka_[!t]*", "panel-*centred*", "panel-*pearson*", "population*"
    )
    shutil.copytree(small_study.folder, folder, ignore=kept)
    return Study(folder)


@pytest.fixture
def tiny_copy(tiny_study, tmp_path):
    """The tiny model's study, of its own."""
    from cladastats.study import Study

    return Study(shutil.copytree(tiny_study.folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def articles():
    """The first sixty articles of the embedded news."""
    import zipfile

    import pandas as pd

    from clada.models.assets import fetch

    with zipfile.ZipFile(fetch("news")) as archive, archive.open("NewsArticles.csv") as handle:
        return pd.read_csv(handle, usecols=["text"], nrows=60)["text"].dropna().tolist()


@pytest.fixture(scope="session")
def plain_tokenizer():
    from clada.models.open import load_tokenizer

    return load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def bos_tokenizer():
    """The same tokenizer, made to put a BOS token before every text as LLaMA's and Gemma's do."""
    from tokenizers.processors import TemplateProcessing

    from clada.models.open import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


@pytest.fixture(scope="session", params=["plain", "bos"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")
