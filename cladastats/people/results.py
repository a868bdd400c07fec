"""Results of `cladastats human`: files, the confirmatory table, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from clada.errors import StudyError
from clada.system.jsonfile import check_checksum, read_json
from cladastats.people.corpora import SOURCES
from cladastats.people.gains import STEPS
from cladastats.results.tables import html_table, latex_table, plain_table
from cladastats.results.verdicts import SIGNIFICANCE, verdict

HUMAN_SCHEMA = "cladastats/human/1"

CONFIRMATORY_STEPS = STEPS[:3]

EFFECT_COLUMNS = (
    "corpus", "measure", "predictor", "words", "units", "units_are", "delta_ll", "ci_low", "ci_high", "p", "p_holm",
    "effect", "effect_low", "effect_high", "unit",
)  # fmt: skip


def read_result(path: Path) -> dict[str, Any]:
    """The result of one corpus on one model, as `cladastats human` wrote it.

    Raises:
        StudyError: The file is missing or damaged.
    """
    result = read_json(path, HUMAN_SCHEMA, StudyError)
    try:
        check_checksum(result)
    except ValueError as problem:
        raise StudyError(f"{path} is damaged ({problem}); delete it and run 'cladastats human' again") from None
    return result


def read_results(folder: Path, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The results of one model, corpus by corpus.

    Args:
        folder: Of the model.
        names: Of the corpora; None: those that are there.

    Raises:
        StudyError: One is missing or damaged.
    """
    names = [name for name in SOURCES if (folder / f"{name}.json").is_file()] if names is None else names
    return [read_result(folder / f"{name}.json") for name in names]


def effect_table(folder: Path, names: Sequence[str] | None = None) -> pd.DataFrame:
    """The confirmatory table: corpora x measures x (surprisal, entropy, effort), columns `EFFECT_COLUMNS`.

    `p_holm` is corrected over the measures of all corpora in the table, for each predictor.
    """
    rows = [
        {"corpus": result["corpus"]}
        | {name: measure[name] for name in ("measure", "words", "unit", "units", "units_are")}
        | row
        for result in read_results(folder, names)
        for measure in result["measures"]
        if measure["confirmatory"]
        for row in measure["rows"]
        if row["predictor"] in CONFIRMATORY_STEPS
    ]
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("predictor")["p"].transform(lambda p: multipletests(p, method="holm")[1])
    return table[list(EFFECT_COLUMNS)]


def show(table: pd.DataFrame, fmt: str) -> str:
    """The confirmatory table as `text`, `markdown`, `latex`, `html`, `csv` or `json`."""
    if fmt == "json":
        return str(table.to_json(orient="records"))
    if fmt == "csv":
        return str(table.to_csv(index=False)).rstrip()
    cells = pd.DataFrame(
        {
            "corpus": row.corpus,
            "measure": row.measure,
            "predictor": row.predictor,
            "words": f"{row.words:,}",
            "tested over": f"{row.units} {row.units_are}",
            "gain, nats/1000 words": (
                f"{1000 * row.delta_ll:+.2f} [{1000 * row.ci_low:+.2f}, {1000 * row.ci_high:+.2f}]"
            ),
            "p (Holm)": f"{row.p_holm:.4f}",
            "effect per SD": f"{row.effect:+.3g} [{row.effect_low:+.3g}, {row.effect_high:+.3g}] {row.unit}",
        }
        for row in table.itertuples()
    )
    align, caption = ["left"] * cells.shape[1], ["Gains on texts that were held out"]
    if fmt == "latex":
        return latex_table(cells, caption, align, index=False)
    if fmt == "html":
        return html_table(cells, caption, "gains", index=False)
    return plain_table(cells, fmt, align, index=False)


_IN_WORDS = {"supported": "is supported", "contradicted": "is contradicted", "undecided": "is not supported"}


def verdicts(table: pd.DataFrame) -> list[str]:
    """What the confirmatory table says of effort, in sentences.

    Args:
        table: Of `effect_table`.
    """
    effort = table[table["predictor"] == "effort"]
    significant = effort[effort["p_holm"] < SIGNIFICANCE]
    names = ", ".join(
        f"{row.corpus} {row.measure} ({'more' if row.effect > 0 else 'less'} with more effort)"
        for row in significant.itertuples()
    )
    sentences = [
        f"Effort beyond surprisal and entropy: {len(significant)} of {len(effort)} measures are predicted better with "
        f"it (Holm-corrected p < 0.05): {names or 'none'}."
    ]
    for component, sign in (("N400_uV", -1), ("P600_uV", 1)):  # the deflections that effort would enlarge
        for row in effort[effort["measure"] == component].itertuples():
            sentences.append(
                f"A link of effort to the {component.removesuffix('_uV')} "
                f"{_IN_WORDS[verdict(sign, row.effect, row.p_holm)]}: gain {1000 * row.delta_ll:+.2f} "
                f"thousandths of a nat per word [{1000 * row.ci_low:+.2f}, {1000 * row.ci_high:+.2f}], "
                f"{row.effect:+.3f} microvolt per standard deviation [{row.effect_low:+.3f}, {row.effect_high:+.3f}]."
            )
    return sentences
