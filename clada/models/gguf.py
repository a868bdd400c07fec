"""GGUF files as plain float32 folders of transformers, made once and kept in the cache."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from clada.models.quiet import as_model_error, quiet_transformers
from clada.system.cache import cache_dir, locked_scratch


def converted_folder(sha256: str) -> Path:
    """Where the transformers folder of a GGUF file with this checksum is kept."""
    return cache_dir() / "models" / sha256


def convert_gguf(gguf: Path, folder: Path) -> Path:
    """De-quantise a GGUF file into a float32 folder of transformers, keyed by the file's checksum."""
    with quiet_transformers(), locked_scratch(folder) as scratch:
        if not folder.is_dir():  # another process may have finished it while this one waited for the lock
            print(f"converting {gguf.name} once for faster loading", file=sys.stderr)
            with as_model_error(f"cannot read the GGUF file {gguf}"):
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
