"""What a word costs layer by layer, by the logit lens: what the model would predict if it ended after a layer.

A layer's hidden state goes through the final norm and the output head (nostalgebraist 2020, "interpreting GPT: the
logit lens"), a cap or scale of the logits included. Layer 0 is the embeddings, layer l what the l-th layer gives; the
values of the last layer are the model's own.

Columns of the table, a row per word and layer: `text_id`, `word_index`, `word`, `layer`; `surprisal_bits` (corrected
as in the table of words), `entropy_bits`, `hidden_norm` (of the layer's output, before the norm) and, where the table
of words has it, `effort` of the layer's neurons, which for layer 0 is missing, as there are none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clada.errors import InputError
from cladastats.texts.meter import Meter, Words, word_rows
from cladastats.texts.text import Text

MOST_WORDS = 40  # of a figure, so that they can be read


def layer_tables(meter: Meter, texts: Sequence[Text]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of words and the long table, of an open model.

    Args:
        meter: has the model.
        texts: the texts.

    Returns:
        the table of words (`cladastats.texts.meter`), and that of this module.

    Raises:
        ModelError: the model's final norm cannot be found.
    """
    aligned, read = meter.read(texts, lens=True)
    words = Words(aligned)
    tables = []
    for layer in range(len(read[0].surprisal)):
        rows = word_rows(texts).assign(layer=layer)
        rows["surprisal_bits"] = words.corrected([t.surprisal[layer] for t in read], read, layer)
        rows["entropy_bits"] = words.first([t.entropy[layer] for t in read])
        rows["hidden_norm"] = words.mean([t.hidden_norm[layer] for t in read if t.hidden_norm is not None])
        if read[0].effort is not None:
            efforts = [t.effort[layer - 1] for t in read if t.effort is not None]
            rows["effort"] = words.mean(efforts) if layer else np.nan
        tables.append(rows)
    number = len(words.tokens)
    order = np.arange(number * len(tables)).reshape(len(tables), number).T.ravel()  # of a word, its layers
    long = pd.concat(tables, ignore_index=True).iloc[order].reset_index(drop=True)
    return meter.table(texts, aligned, read), long


def layer_figure(long: pd.DataFrame, column: str = "surprisal_bits") -> Figure:
    """A map of one text, its words across and the layers upwards, readable in grey and in a column of a journal.

    Args:
        long: of `layer_tables`, rows of one text, at most 40 words.
        column: what the map shows.

    Raises:
        InputError: several texts or too many words, or no such column.
    """
    labels = {
        "surprisal_bits": "surprisal (bits)",
        "entropy_bits": "entropy (bits)",
        "hidden_norm": "norm of the hidden state",
        "effort": "effort (share of neurons)",
    }
    if column not in labels or column not in long:
        raise InputError(f"there is no {column!r} to draw; choose one of {', '.join(c for c in labels if c in long)}")
    if long["text_id"].nunique() != 1:
        raise InputError(f"a map is of one text, not of {long['text_id'].nunique()}; choose its rows")
    shown = long.dropna(subset=[column])
    map_ = shown.pivot(index="layer", columns="word_index", values=column).sort_index().sort_index(axis=1)
    words = shown.drop_duplicates("word_index").sort_values("word_index")["word"].tolist()
    if len(words) > MOST_WORDS:
        raise InputError(f"{len(words)} words are too many for one map; choose rows of at most {MOST_WORDS}")
    layers = map_.index.to_numpy()
    # 3.5 inches are a journal's column; a longer text takes the page.
    figure = Figure(figsize=(3.5 if len(words) <= 16 else 7.0, 2.9), layout="constrained")
    axis = figure.subplots()
    # The embeddings predict so badly that by their values nothing else could be told apart.
    highest = np.nanquantile(map_.to_numpy(), 0.95)
    image = axis.imshow(
        map_.to_numpy(), aspect="auto", cmap="Greys", origin="lower", interpolation="nearest", vmax=highest,
        extent=(-0.5, len(words) - 0.5, layers[0] - 0.5, layers[-1] + 0.5),
    )  # fmt: skip
    axis.set_xticks(range(len(words)), words, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(layers[:: max(1, -(-len(layers) // 8))])
    axis.tick_params(labelsize=7, length=2)
    axis.set_ylabel("layer (0: embeddings)" if layers[0] == 0 else "layer", fontsize=8)
    bar = figure.colorbar(
        image, ax=axis, shrink=0.9, extend="max" if np.nanmax(map_.to_numpy()) > highest else "neither"
    )
    bar.set_label(labels[column], fontsize=8)
    bar.ax.tick_params(labelsize=7, length=2)
    return figure
