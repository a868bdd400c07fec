"""The matrices of a GGUF file as it stores them, in blocks, for the parameters of the model that was made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from clada.errors import ModelError
from clada.models.architectures import family_of, head_dim_of
from clada.models.open import gguf_file


@dataclass(frozen=True)
class Stored:
    """A matrix in a file.

    Attributes:
        name: of the tensor.
        kind: GGUF's name of its type.
        data: uint8 [outputs, bytes of a row], mapped from the file.
        order: int64 [outputs], the row of the file that each row of the model is.
    """

    name: str
    kind: str
    data: np.ndarray
    order: np.ndarray


class StoredMatrices:
    """The matrices of the GGUF file that a model was opened from.

    Args:
        model: a transformers model as `clada.load_model` opens it.

    Raises:
        ModelError: it is not from a GGUF file, or llama.cpp does not know its family.
    """

    def __init__(self, model: Any) -> None:
        self.path = gguf_file(model.name_or_path)
        self._config = model.config
        self._family = family_of(model.config)
        if self._family.llama_cpp is None:
            raise ModelError(f"{self.path.name} cannot be read in blocks: llama.cpp computes no {self._family.label}")
        self._names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
        arch = gguf.MODEL_ARCH[self._family.llama_cpp.arch]
        self._name_map = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(self.path).tensors}

    def of(self, parameter: Any) -> Stored:
        """Where the file has a parameter.

        Raises:
            ModelError: it has not.
        """
        name = self._names[id(parameter)]
        there = self._name_map.get_name(name, try_suffixes=(".weight", ".bias"))
        if there == "output.weight" and there not in self._tensors:
            there = "token_embd.weight"  # tied
        if there is None or there not in self._tensors:
            raise ModelError(f"{self.path.name} has no tensor of the weights {name}; use another dtype")
        tensor = self._tensors[there]
        outputs = int(tensor.shape[1])
        data = np.asarray(tensor.data).view(np.uint8).reshape(outputs, -1)
        return Stored(there, tensor.tensor_type.name, data, self._order(name, np.arange(outputs)))

    def _order(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of the file in the model's order, which llama.cpp has in another one for some projections."""
        family, config = self._family, self._config
        assert family.llama_cpp is not None
        if family.qkv_by_head and f".{family.qkv[0]}." in name:
            return rows.reshape(3, config.num_attention_heads, -1).swapaxes(0, 1).reshape(-1)
        if family.llama_cpp.neighbours and (".q_proj." in name or ".k_proj." in name):
            return rows.reshape(-1, head_dim_of(config) // 2, 2).swapaxes(1, 2).reshape(-1)
        return rows
