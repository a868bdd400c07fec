"""The paper's 13 sentences (Appendix B.3) and activation maps (B.2): numbers only; `cladastats.figures` draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from clada.models.architectures import down_projections
from clada.models.hooks import Hooks
from cladastats.activations.work import PrefixSharingRunner
from cladastats.similarities.metrics import METRICS
from cladastats.study import Study

# Yang et al., arXiv 2502.19078, Table 11: the stimuli of the case study, in its order.
SENTENCES = (
    "### Article: Almost one million people visited the city",
    "Article: Almost one million people visited the city",
    "Almost one million people visited the city",
    "### Article: Nearly one million people visited the city",
    "Nearly one million people visited the city",
    "### Article: Less than one million people visited the city",
    "Less than one million people visited the city",
    "### Article: Almost one million people visited the city",
    "### Article: Almost one million people visited the restaurant",
    "Almost one million people visited the restaurant",
    "Almost one million people visited the planet",
    "Almost one million tourists visited the restaurant",
    "Almost one million aliens visited the planet",
)

# Its five claims (B.3): each sample of the first group is more similar to those of the second than to those of the
# third. Sample 8 is sample 1 again, so that 1 is no competitor of 8 in (c), nor 11 and 12 of each other in (d).
CLAIMS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "a": ("4, 6 and 9 are nearer to 1 than to 2 and 3", (4, 6, 9), (1,), (2, 3)),
    "b": ("1, 6, 8 and 9 are nearer to 4 than to 5", (1, 6, 8, 9), (4,), (5,)),
    "c": ("9 is nearest to 4, 6 and 8", (9,), (4, 6, 8), (2, 3, 5, 7, 10, 11, 12, 13)),
    "d": ("11 and 12 are nearest to 9 and 10", (11, 12), (9, 10), (1, 2, 3, 4, 5, 6, 7, 8, 13)),
    "e": ("10, 11 and 12 are nearer to 13 than to any other", (10, 11, 12), (13,), tuple(range(1, 13))),
}


@dataclass(frozen=True)
class CaseStudy:
    """The 13 sentences on one model.

    Attributes:
        metric: name of the similarity.
        sentences: the 13, in order.
        similarity: [13, 13], mean over layers.
        layers: [layers, 13, 13].
        claims: a row per claim: `claim`, `text`, `comparisons`, `hold` (how many), `margin` (the smallest difference
            of similarity among them), `layers_hold` (share of layers in which all hold), `verdict`.
    """

    metric: str
    sentences: tuple[str, ...]
    similarity: np.ndarray
    layers: np.ndarray
    claims: pd.DataFrame


def case_study(model: Any, tokenizer: Any, metric: str = "cka") -> CaseStudy:
    """Compare the activations at the last token of the 13 sentences (Appendix B.3, Fig. 7).

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        metric: a per-layer metric that needs no other sequences: `cka` or `cosine`.
    """
    runner = PrefixSharingRunner(model)
    ids = {str(i): np.array(tokenizer(text)["input_ids"]) for i, text in enumerate(SENTENCES)}
    measured = runner.measure(ids)
    matrices = [measured[name].activations.astype(float) for name in ids]
    compare = METRICS[metric].compare
    layers = np.moveaxis(np.array([[compare(x, y) for y in matrices] for x in matrices]), -1, 0)
    pooled = layers.mean(0)
    rows = []
    for name, (text, samples, near, far) in CLAIMS.items():
        gaps = case_gaps(pooled, samples, near, far)
        by_layer = [bool((case_gaps(layer, samples, near, far) > 0).all()) for layer in layers]
        hold = int((gaps > 0).sum())
        rows.append(
            {
                "claim": name,
                "text": text,
                "comparisons": len(gaps),
                "hold": hold,
                "margin": float(gaps.min()),
                "layers_hold": float(np.mean(by_layer)),
                "verdict": "holds" if hold == len(gaps) else "does not hold",
            }
        )
    return CaseStudy(metric, SENTENCES, pooled, layers, pd.DataFrame(rows))


def case_gaps(
    similarity: np.ndarray, samples: tuple[int, ...], near: tuple[int, ...], far: tuple[int, ...]
) -> np.ndarray:
    """Similarity to each near sample minus that to each far one, for every sample; samples count from 1."""
    return np.array(
        [similarity[s - 1, n - 1] - similarity[s - 1, f - 1] for s in samples for n in near for f in far if f != s]
    )


def activation_maps(model: Any, study: Study, layer: int, group: str = "nls", pair: int = 0) -> dict[str, np.ndarray]:
    """Activations of one layer at every token of A, B and the hybrid of the smallest ratio (Figs. 4 to 6).

    Args:
        model: the study's model.
        study: a study with its corpus.
        layer: counted from 0.
        group: `nls` or `rts`.
        pair: which.

    Returns:
        [length + 1, neurons] under "A", "B" and "A'".
    """
    corpus = study.corpus
    block = corpus[(corpus["group"] == group) & (corpus["pair"] == pair)]
    hybrids = block[block["role"] == "hybrid"].sort_values("ratio")
    rows = {role: block.loc[block["role"] == role, "token_ids"].iloc[0] for role in ("A", "B")}
    rows["A'"] = hybrids["token_ids"].iloc[0]
    found: dict[str, np.ndarray] = {}
    seen: list[torch.Tensor] = []
    module = down_projections(model)[layer]
    with torch.inference_mode(), Hooks() as hooks:
        hooks.before(module, lambda _m, inputs: seen.append(inputs[0]))
        for name, ids in rows.items():
            seen.clear()
            model(torch.tensor(ids, dtype=torch.long)[None], use_cache=False, logits_to_keep=1)
            found[name] = seen[0].reshape(len(ids), -1).float().numpy()
    return found
