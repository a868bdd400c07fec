"""Open a language model by any kind of name: embedded, local folder, GGUF file or hub id.

GGUF files, the embedded models among them, are de-quantised once into a plain float32 folder in the cache; from then
on they load like any folder, in seconds.

What a name stands for is known without torch and transformers, which take seconds to import: functions that open
something import them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clada.errors import ModelError
from clada.models.assets import ASSETS, fetch
from clada.models.quiet import as_model_error, first_line, quiet_transformers
from clada.system.cache import file_sha256

if TYPE_CHECKING:
    import transformers

DTYPES = ("float32", "bfloat16")

OF_FILE = "file"  # the engine's precision that is a GGUF file's own

HUB_TIMEOUT_S = 4.0  # an unknown name is answered within seconds even where the network swallows packets

MODEL_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}  # config, tokenizer and weights


def check_device(device: str) -> None:
    """Refuse a device that models cannot be on here.

    Raises:
        ModelError: it is neither "cpu" nor "cuda", or torch has no CUDA device.
    """
    if device not in ("cpu", "cuda"):
        raise ModelError(f"unknown device {device!r}: choose cpu or cuda")
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ModelError("this machine has no CUDA device that torch can use: choose device cpu")


def gguf_file(name: str) -> Path:
    """The GGUF file that a model's name stands for.

    Raises:
        ModelError: it stands for none.
        AssetError: an embedded model cannot be fetched.
    """
    if name in ASSETS:
        return fetch(name)
    path = Path(name)
    if path.suffix != ".gguf" or not path.is_file():
        raise ModelError(
            f"dtype {OF_FILE} decodes the blocks of a GGUF file, and {name or 'this model'} is none; use another "
            "dtype, or a file that ends in .gguf"
        )
    return path


def load_model(
    name: str, dtype: str = "float32", device: str = "cpu", revision: str | None = None
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Open a model for inference, with its tokenizer.

    Args:
        name: an embedded name (a model in `clada.models.assets.ASSETS`), a folder with config.json, a GGUF file, or a
            hub id.
            An embedded name wins over a folder of the same name (write `./name` for the folder).
        dtype: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        revision: branch, tag or commit of a hub id, such as the checkpoint "step1000"; None: its main branch.

    Returns:
        (model in eval mode whose parameters need no gradient, tokenizer).

    Raises:
        ModelError: the name is unknown, or the model is damaged, quantised or of an architecture that cannot be read,
            or the revision is of what is no hub id.
        AssetError: an embedded model cannot be fetched.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    check_device(device)
    config = load_config(name, revision)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method", "unknown method")
        raise ModelError(f"{name} has quantised linear layers ({method}): use the unquantised model, or a GGUF file")
    model = _from_pretrained(AutoModelForCausalLM, name, revision, config=config, dtype=getattr(torch, dtype))
    model.name_or_path = name  # not the cache folder behind it: plans and coefficients are looked up by this name
    return model.to(device).requires_grad_(False), load_tokenizer(name, revision)


def load_tokenizer(name: str, revision: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights.

    Args:
        name: as for `load_model`.
        revision: as there.

    Returns:
        The tokenizer.

    Raises:
        ModelError: the name is unknown, or the tokenizer is missing or damaged.
        AssetError: an embedded model cannot be fetched.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, name, revision)


def load_config(name: str, revision: str | None = None) -> transformers.PreTrainedConfig:
    """The configuration of a model, without its weights.

    Args:
        name: as for `load_model`.
        revision: as there.

    Returns:
        The configuration.

    Raises:
        ModelError: the name is unknown, or the configuration is missing or damaged.
        AssetError: an embedded model cannot be fetched.
    """
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, name, revision)


def bos_tokens(tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts before a text: [BOS] or nothing; it is token 0 of every sequence."""
    first = tokenizer("a")["input_ids"][:1]  # none where the tokenizer knows no "a"
    return first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of a fast tokenizer's full definition: vocabulary, merges, normalisation, what it puts before a text.

    What `model_revision` says of an embedded model or a GGUF file does not tell how its tokenizer was converted.
    """
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def model_revision(name: str, revision: str | None = None) -> str:
    """What identifies the content behind a model name.

    Args:
        name: as for `load_model`.
        revision: as there.

    Returns:
        "sha256:..." of the GGUF file, or over a folder's config, tokenizer and weight files (names and contents); for a
        hub id the commit hash.

    Raises:
        ModelError: the name is unknown.
    """
    _check_revision(name, revision)
    if name in ASSETS:
        return f"sha256:{ASSETS[name].sha256}"
    path = Path(name)
    if path.is_file():
        return f"sha256:{file_sha256(path)}"
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.iterdir()):
            if file.suffix in MODEL_FILES and file.is_file():
                digest.update(f"{file.name} {file_sha256(file)}\n".encode())
        return f"sha256:{digest.hexdigest()}"
    import huggingface_hub

    # The hub's local cache has a folder named after the commit.
    kept = _in_hub_cache(name, revision)
    if kept is None:
        load_config(name, revision)  # fetches config.json
        kept = huggingface_hub.hf_hub_download(name, "config.json", revision=revision, local_files_only=True)
    return Path(kept).parent.name


def _in_hub_cache(name: str, revision: str | None) -> str | None:
    """The configuration of a hub id in the hub's local cache, or None."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return found if isinstance(found, str) else None


def _check_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of what has none."""
    if revision is not None and (name in ASSETS or Path(name).exists()):
        raise ModelError(f"{name} is no hub id, so it has no revision {revision!r}; leave the revision out")


def _from_pretrained(auto_class: Any, name: str, revision: str | None, **options: Any) -> Any:
    """`auto_class.from_pretrained` from the folder behind the name, or else from the hub's local cache, or the hub."""
    options["trust_remote_code"] = False
    _check_revision(name, revision)
    folder = _local_folder(name)
    if folder is not None:
        with quiet_transformers(), as_model_error(f"cannot open the model in {folder}"), _refused_code(name):
            return auto_class.from_pretrained(folder, local_files_only=True, **options)
    options["revision"] = revision or "main"
    called = name if revision is None else f"{name} at revision {revision}"
    with as_model_error(f"cannot open the hub model {called}"), _refused_code(name):
        with quiet_transformers(), contextlib.suppress(OSError):  # OSError: not in the hub's local cache
            return auto_class.from_pretrained(name, local_files_only=True, **options)
        _require_on_hub(name, revision)
        return auto_class.from_pretrained(name, **options)


@contextlib.contextmanager
def _refused_code(name: str) -> Iterator[None]:
    """Within the block, a model that asks for its own code to be run is refused by name."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelError(
            f"{name} brings Python code of its own (trust_remote_code), which is not run here; use a version of the "
            "model that transformers opens without it (on the hub its name often ends in -hf)"
        ) from None


def _local_folder(name: str) -> Path | None:
    """The transformers folder behind a name; None for what can only be a hub id."""
    from clada.models.gguf import convert_gguf, converted_folder

    if name in ASSETS:
        asset = ASSETS[name]
        if asset.kind != "model":
            raise ModelError(f"{name} is an embedded {asset.kind}, not a model: choose one of {_embedded_models()}")
        folder = converted_folder(asset.sha256)
        return folder if folder.is_dir() else convert_gguf(fetch(name), folder)
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name} is not a model: give a folder with config.json, or a file that ends in .gguf")
        folder = converted_folder(file_sha256(path))
        return folder if folder.is_dir() else convert_gguf(path, folder)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {name} has no config.json: give a folder that save_pretrained wrote")
        return path
    return None


def _require_on_hub(name: str, revision: str | None) -> None:
    """One quick question to the hub, before its client goes into time-outs and retries."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
    except RevisionNotFoundError:
        raise ModelError(f"the hub's model {name} has no revision {revision!r}; give one of its branches") from None
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the hub knows no such model"
    except Exception as error:  # the client lets any error of its transport through: refused, timed out, TLS, offline
        reason = f"the hub gives no answer ({first_line(error)})"
    else:
        return
    at = "" if revision is None else f" at revision {revision!r}"
    raise ModelError(
        f"unknown model {name!r}{at}: it is not embedded ({_embedded_models()}), no folder or GGUF file, "
        f"not in the local hub cache, and {reason}"
    )


def _embedded_models() -> str:
    return ", ".join(name for name, asset in ASSETS.items() if asset.kind == "model")
