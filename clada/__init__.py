"""clada: decode a causal language model faster by computing only what a token needs.

The engine of Yang et al., "Sparse Brains are Also Adaptive Brains: Cognitive-Load-Aware Dynamic Activation for LLMs"
(arXiv 2502.19078). The names below are its public API; they are imported on first use, so `import clada` takes
milliseconds. At the top of the package stand the commands and the main path, `engine.py`. It never imports
`cladastats`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clada.engine import Engine, Step
    from clada.errors import CladaError
    from clada.inplace import sparse
    from clada.methods.coefficients import Coefficients
    from clada.methods.plan import Plan
    from clada.models.open import load_model
    from clada.trace.page import Trace

__version__ = "0.2.0"
__all__ = ["CladaError", "Coefficients", "Engine", "Plan", "Step", "Trace", "load_model", "sparse"]

_HOME = {
    "CladaError": "clada.errors",
    "Coefficients": "clada.methods.coefficients",
    "Engine": "clada.engine",
    "Plan": "clada.methods.plan",
    "Step": "clada.engine",
    "Trace": "clada.trace.page",
    "load_model": "clada.models.open",
    "sparse": "clada.inplace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clada' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
