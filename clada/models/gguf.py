"""GGUF files as plain float32 folders of transformers, made once and kept in the cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from clada.errors import ModelError
from clada.models.gguf_statements import Statements, correct_tokenizer, corrected_config, read_statements, stop_ids
from clada.models.quiet import as_model_error, quiet_transformers
from clada.system.cache import cache_dir, locked_scratch

# Of what `convert_gguf` makes of a file: a folder of another version is not read. Counted up whenever the same file
# gives other weights, another tokenizer or another configuration.
CONVERSION = 2


def converted_folder(sha256: str) -> Path:
    """Where the transformers folder of a GGUF file with this checksum is kept."""
    return cache_dir() / "models" / f"{sha256}-v{CONVERSION}"


def convert_gguf(gguf: Path, folder: Path) -> Path:
    """De-quantise a GGUF file into a float32 folder of transformers, keyed by the file's checksum.

    Raises:
        ModelError: the file is damaged, or states what transformers' conversion ignores and this one does not know.
    """
    with quiet_transformers(), locked_scratch(folder) as scratch:
        if not folder.is_dir():  # another process may have finished it while this one waited for the lock
            print(f"converting {gguf.name} once for faster loading", file=sys.stderr)
            with as_model_error(f"cannot read the GGUF file {gguf}"):
                try:
                    model, tokenizer = _read_gguf(gguf.resolve())
                except ModelError as error:
                    raise ModelError(f"cannot read {gguf}: {error}; use another file or the model it is of") from None
            try:
                model.save_pretrained(scratch / "model")
            except SafetensorError as error:  # a full disk, which safetensors does not raise as OSError
                raise OSError(str(error)) from error
            tokenizer.save_pretrained(scratch / "model")
            (scratch / "model").rename(folder)
    return folder


def _read_gguf(gguf: Path) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    stated = read_statements(gguf)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    correct_tokenizer(stated, tokenizer)
    return read_weights(gguf, stated), tokenizer


def read_weights(gguf: Path, stated: Statements) -> transformers.PreTrainedModel:
    """The model of a GGUF file in float32, as the file states it.

    Raises:
        ModelError: a statement that is not understood, or weights that are missing.
    """
    options = {"gguf_file": gguf.name, "local_files_only": True}
    config = corrected_config(stated, AutoConfig.from_pretrained(gguf.parent, **options))
    quantised, report = AutoModelForCausalLM.from_pretrained(
        gguf.parent, config=config, dtype=torch.float32, output_loading_info=True, **options
    )
    if report["missing_keys"]:  # transformers would make them up
        raise ModelError(f"it has no weights for {', '.join(sorted(report['missing_keys'])[:3])}")
    # save_pretrained refuses what came from a quantised file: hand the weights to a model that did not.
    values: dict[str, Any] = quantised.config.to_dict()
    del values["quantization_config"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(config).from_dict(values))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.generation_config.eos_token_id = stop_ids(stated)
    return model
