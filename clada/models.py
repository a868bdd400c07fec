"""Open a language model by any kind of name: embedded, local folder, GGUF file or hub id.

GGUF files, the embedded models among them, are de-quantised once into a plain float32 folder in the cache; from then
on they load like any folder, in seconds.
"""

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from clada.assets import ASSETS, cache_dir, fetch, locked_scratch
from clada.errors import CladaError, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HUB_TIMEOUT_S = 4.0  # an unknown name is answered within seconds even where the network swallows packets
MODEL_FILES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}  # config, tokenizer and weights


def check_device(device: str) -> None:
    """Refuse a device that models cannot be on here.

    Raises:
        ModelError: it is neither "cpu" nor "cuda", or torch has no CUDA device.
    """
    if device not in ("cpu", "cuda"):
        raise ModelError(f"unknown device {device!r}: choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("this machine has no CUDA device that torch can use: choose device cpu")


def load_model(
    name: str, dtype: str = "float32", device: str = "cpu"
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Open a model for inference, with its tokenizer.

    Args:
        name: an embedded name (a model in `clada.assets.ASSETS`), a folder with config.json, a GGUF file, or a hub id.
            An embedded name wins over a folder of the same name (write `./name` for the folder).
        dtype: "float32" or "bfloat16".
        device: "cpu" or "cuda".

    Returns:
        (model in eval mode whose parameters need no gradient, tokenizer).

    Raises:
        ModelError: the name is unknown, or the model is damaged, quantised or of an architecture that cannot be read.
        AssetError: an embedded model cannot be fetched.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    check_device(device)
    config = load_config(name)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method", "unknown method")
        raise ModelError(f"{name} has quantised linear layers ({method}): use the unquantised model, or a GGUF file")
    model = _from_pretrained(AutoModelForCausalLM, name, config=config, dtype=DTYPES[dtype])
    model.name_or_path = name  # not the cache folder behind it: plans and coefficients are looked up by this name
    return model.to(device).requires_grad_(False), load_tokenizer(name)


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights.

    Args:
        name: as for `load_model`.

    Returns:
        The tokenizer.

    Raises:
        ModelError: the name is unknown, or the tokenizer is missing or damaged.
        AssetError: an embedded model cannot be fetched.
    """
    return _from_pretrained(AutoTokenizer, name)


def load_config(name: str) -> transformers.PreTrainedConfig:
    """The configuration of a model, without its weights.

    Args:
        name: as for `load_model`.

    Returns:
        The configuration.

    Raises:
        ModelError: the name is unknown, or the configuration is missing or damaged.
        AssetError: an embedded model cannot be fetched.
    """
    return _from_pretrained(AutoConfig, name)


def bos_tokens(tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts before a text: [BOS] or nothing; it is token 0 of every sequence."""
    ids = tokenizer("a")["input_ids"]
    return [ids[0]] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []


def model_revision(name: str) -> str:
    """What identifies the content behind a model name.

    Args:
        name: as for `load_model`.

    Returns:
        "sha256:..." of the GGUF file, or over a folder's config, tokenizer and weight files (names and contents); for a
        hub id the commit hash.

    Raises:
        ModelError: the name is unknown.
    """
    if name in ASSETS:
        return f"sha256:{ASSETS[name].sha256}"
    path = Path(name)
    if path.is_file():
        return f"sha256:{_sha256(path)}"
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.iterdir()):
            if file.suffix in MODEL_FILES and file.is_file():
                digest.update(f"{file.name} {_sha256(file)}\n".encode())
        return f"sha256:{digest.hexdigest()}"
    load_config(name)  # puts config.json into the hub's local cache, in a folder named after the commit
    return Path(huggingface_hub.hf_hub_download(name, "config.json", local_files_only=True)).parent.name


def _from_pretrained(auto_class: Any, name: str, **options: Any) -> Any:
    """`auto_class.from_pretrained` from the folder behind the name, or else from the hub's local cache, or the hub."""
    options["trust_remote_code"] = False
    folder = _local_folder(name)
    if folder is not None:
        with _quiet_transformers(), _as_model_error(f"cannot open the model in {folder}"):
            return auto_class.from_pretrained(folder, local_files_only=True, **options)
    with _as_model_error(f"cannot open the hub model {name}"):
        with _quiet_transformers(), contextlib.suppress(OSError):  # OSError: not in the hub's local cache
            return auto_class.from_pretrained(name, local_files_only=True, **options)
        _require_on_hub(name)
        return auto_class.from_pretrained(name, **options)


def _local_folder(name: str) -> Path | None:
    """The transformers folder behind a name; None for what can only be a hub id."""
    if name in ASSETS:
        asset = ASSETS[name]
        if asset.kind != "model":
            raise ModelError(f"{name} is an embedded {asset.kind}, not a model: choose one of {_embedded_models()}")
        folder = _converted_folder(asset.sha256)
        return folder if folder.is_dir() else _convert_gguf(fetch(name), folder)
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name} is not a model: give a folder with config.json, or a file that ends in .gguf")
        folder = _converted_folder(_sha256(path))
        return folder if folder.is_dir() else _convert_gguf(path, folder)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {name} has no config.json: give a folder that save_pretrained wrote")
        return path
    return None


def _converted_folder(sha256: str) -> Path:
    return cache_dir() / "models" / sha256


def _convert_gguf(gguf: Path, folder: Path) -> Path:
    """De-quantise a GGUF file into a float32 folder of transformers, keyed by the file's checksum."""
    with _quiet_transformers(), locked_scratch(folder) as scratch:
        if not folder.is_dir():  # another process may have finished it while this one waited for the lock
            print(f"converting {gguf.name} once for faster loading", file=sys.stderr)
            with _as_model_error(f"cannot read the GGUF file {gguf}"):
                model, tokenizer = _read_gguf(gguf.resolve())
            try:
                model.save_pretrained(scratch / "model")
            except SafetensorError as error:  # a full disk, which safetensors does not raise as OSError
                raise OSError(str(error)) from error
            tokenizer.save_pretrained(scratch / "model")
            (scratch / "model").rename(folder)
    return folder


def _read_gguf(gguf: Path) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    options = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    # save_pretrained refuses what came from a quantised file: hand the weights to a model that did not.
    config = quantised.config.to_dict()
    del config["quantization_config"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(quantised.config).from_dict(config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model, tokenizer


def _require_on_hub(name: str) -> None:
    """One quick question to the hub, before its client goes into time-outs and retries."""
    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the hub knows no such model"
    except Exception as error:  # the client lets any error of its transport through: refused, timed out, TLS, offline
        reason = f"the hub gives no answer ({_first_line(error)})"
    else:
        return
    raise ModelError(
        f"unknown model {name!r}: it is not embedded ({_embedded_models()}), no folder or GGUF file, "
        f"not in the local hub cache, and {reason}"
    )


def _embedded_models() -> str:
    return ", ".join(name for name, asset in ASSETS.items() if asset.kind == "model")


def _sha256(path: Path) -> str:
    """Checksum of a file, remembered by path, size and time of change: weights may be many gigabytes."""
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    note = cache_dir() / "checksums" / hashlib.sha256(identity.encode()).hexdigest()
    if not note.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with locked_scratch(note) as scratch:
            (scratch / "sha256").write_text(digest)
            (scratch / "sha256").replace(note)
    return note.read_text()


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the loading bars, log lines and warnings of transformers; the caller's settings return afterwards."""
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
def _as_model_error(what: str) -> Iterator[None]:
    try:
        yield
    except CladaError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the readers, with any type
        raise ModelError(f"{what} ({_first_line(error)}): is the file whole and of a supported kind?") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
