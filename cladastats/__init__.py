"""cladastats: do MLP activations follow the prefix of a sequence, and does cognitive load disturb that?

Controlled corpora from real text, activations at the target token, similarity, and panel regressions, after Yang et
al. (arXiv 2502.19078, section 2). The names below are its public API; they are imported on first use, so
`import cladastats` takes milliseconds. At the top of the package stand the stages, each a command and a module, and
the study's folder, which knows no stage.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cladastats.people.mixed import mixed_model
    from cladastats.results.fit import Fit
    from cladastats.study import Study
    from cladastats.texts.table import word_table

__version__ = "0.2.0"
__all__ = ["Fit", "Study", "mixed_model", "word_table"]

_HOME = {
    "Fit": "cladastats.results.fit",
    "Study": "cladastats.study",
    "mixed_model": "cladastats.people.mixed",
    "word_table": "cladastats.texts.table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cladastats' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
