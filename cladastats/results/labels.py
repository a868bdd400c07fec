"""Names of measures and groups as readers see them; commands, files and columns keep the short ones."""

from __future__ import annotations

METRIC_LABELS = {
    "cka": "r², one-feature CKA",
    "cka_trimmed": "r², one-feature CKA, trimmed",
    "pearson": "Pearson's r",
    "cosine": "cosine",
    "cosine_centred": "cosine, centred",
    "jaccard": "Jaccard overlap",
    "cka_neurons": "CKA over all layers' neurons",
    "cka_debiased": "debiased CKA over layers",
    "cka_biased": "biased CKA over layers",
    "cka_population": "population CKA, debiased",
}
"""What each metric is. `cka`, the per-layer form with one column, is the squared correlation of two vectors: a reader
who knows CKA as a comparison of representations over many examples must not take it for that."""

GROUP_LABELS = {"nls": "natural text (NLS)", "rts": "random words (RTS)"}


def metric_label(name: str) -> str:
    """What a metric is, for a table's cell or a figure; its own name where none is known."""
    return METRIC_LABELS.get(name, name)


def metric_title(name: str) -> str:
    """What a metric is, with the name that commands and files have for it where that is another, for a caption."""
    label = metric_label(name)
    return label if label == name else f"{label} ({name})"
