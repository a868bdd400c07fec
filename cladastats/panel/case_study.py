"""The paper's 13 sentences (Appendix B.3) and activation maps (B.2): numbers only; `cladastats.figures` draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from clada.models.architectures import down_projections
from clada.models.hooks import Hooks
from cladastats.activations.work import PrefixSharingRunner
from cladastats.results.labels import GROUP_LABELS, metric_label
from cladastats.sequences.pairs import prefix_length
from cladastats.sequences.sources import load_documents
from cladastats.sequences.windows import natural_windows
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

MAP_LENGTH = 512
"""Tokens of an article that stands for a study's texts. Many articles are longer."""

NEWS_READ = 100
"""Articles among which two of that length are found: the first 100 have many."""


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


def case_answer(found: Sequence[CaseStudy]) -> str:
    """Which of the paper's claims about the sentences hold, by each measure, as Markdown."""
    said = []
    for study in found:
        names = study.claims.loc[study.claims["verdict"] == "holds", "claim"]
        which = f" ({', '.join(names)})" if len(names) else ""
        said.append(f"By {metric_label(study.metric)}, {len(names)} of {len(study.claims)} claims hold{which}.")
    return " ".join(said)


def case_gaps(
    similarity: np.ndarray, samples: tuple[int, ...], near: tuple[int, ...], far: tuple[int, ...]
) -> np.ndarray:
    """Similarity to each near sample minus that to each far one, for every sample; samples count from 1."""
    return np.array(
        [similarity[s - 1, n - 1] - similarity[s - 1, f - 1] for s in samples for n in near for f in far if f != s]
    )


@dataclass(frozen=True)
class MappedPair:
    """The texts of activation maps.

    Attributes:
        tokens: ids under "A", "B" and "A'", all of the same length.
        prefix: tokens of B at the start of A'.
        source: what they are, in words.
    """

    tokens: dict[str, np.ndarray]
    prefix: int
    source: str


def mapped_pair(study: Study, tokenizer: Any, group: str = "nls", pair: int = 0) -> MappedPair:
    """A, B and the hybrid of the smallest ratio of a pair.

    Of a study that is kept without its texts, they are two articles of the embedded news, `MAP_LENGTH` tokens long at
    most.

    Args:
        study: its corpus may be gone.
        tokenizer: of its model.
        group: `nls` or `rts`.
        pair: which.
    """
    if (study.folder / "corpus.parquet").exists():
        corpus = study.corpus
        block = corpus[(corpus["group"] == group) & (corpus["pair"] == pair)]
        hybrid = block[block["role"] == "hybrid"].sort_values("ratio").iloc[0]
        tokens = {role: block.loc[block["role"] == role, "token_ids"].iloc[0] for role in ("A", "B")}
        tokens["A'"] = hybrid["token_ids"]
        return MappedPair(tokens, int(hybrid["prefix_len"]), f"pair {pair} of the study's {GROUP_LABELS[group]}")
    length = min(study.config.length, MAP_LENGTH)
    windows = natural_windows(load_documents("news").texts[:NEWS_READ], tokenizer, length, "document")
    first = {window.document: window.token_ids for window in reversed(windows)}
    a, b = list(first.values())[-2:]  # the first two documents, as the last window was taken first
    prefix = prefix_length(min(study.config.ratios), length)
    tokens = {"A": a, "B": b, "A'": np.concatenate([b[:prefix], a[prefix:]])}
    return MappedPair(tokens, prefix, "two articles of the embedded news, as the study is kept without its texts")


def activation_maps(model: Any, texts: MappedPair, layer: int) -> dict[str, np.ndarray]:
    """Activations of one layer at every token of A, B and the hybrid (Figs. 4 to 6).

    Args:
        model: a transformers model.
        texts: of its tokenizer.
        layer: counted from 0.

    Returns:
        [length + 1, neurons] under "A", "B" and "A'".
    """
    found: dict[str, np.ndarray] = {}
    seen: list[torch.Tensor] = []
    module = down_projections(model)[layer]
    with torch.inference_mode(), Hooks() as hooks:
        hooks.before(module, lambda _m, inputs: seen.append(inputs[0]))
        for name, ids in texts.tokens.items():
            seen.clear()
            model(torch.tensor(ids, dtype=torch.long)[None], use_cache=False, logits_to_keep=1)
            found[name] = seen[0].reshape(len(ids), -1).float().numpy()
    return found


def map_likeness(maps: Mapping[str, np.ndarray], prefix: int) -> dict[tuple[str, str], float]:
    """How alike neurons are active in two texts, after the exchanged beginning.

    Args:
        maps: Of `activation_maps`.
        prefix: Tokens of B at the start of A'.

    Returns:
        Correlation of the neurons' mean magnitudes in A and B, A' and A, A' and B, by these names.
    """
    means = {name: np.abs(values[prefix:]).mean(0) for name, values in maps.items()}
    pairs = (("A", "B"), ("A'", "A"), ("A'", "B"))
    return {(x, y): float(np.corrcoef(means[x], means[y])[0, 1]) for x, y in pairs}


def maps_answer(maps: Mapping[str, np.ndarray], prefix: int) -> str:
    """Which text the hybrid of a pair of maps is nearer to, as Markdown; the arguments are those of `map_likeness`."""
    like = map_likeness(maps, prefix)
    to_a, to_b = like["A'", "A"], like["A'", "B"]
    nearer = "A, whose words they are" if to_a >= to_b else "B, the text of the beginning"
    return (
        f"After the exchanged beginning, the neurons of A' are active more like those of {nearer}. The correlation is "
        f"{to_a:.3f} with A and {to_b:.3f} with B; between A and B, which share nothing, it is {like['A', 'B']:.3f}."
    )
