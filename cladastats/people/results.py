"""Results of `cladastats human`: files, the confirmatory table, and what it says in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import StudyError
from clada.system.jsonfile import check_checksum, read_json
from cladastats.people.description import FAMILY as MEASURES
from cladastats.people.description import SOURCES
from cladastats.people.evidence import detectable, holm, pooled
from cladastats.people.gains import STEPS
from cladastats.results.tables import html_table, latex_table, plain_table
from cladastats.results.verdicts import SIGNIFICANCE, verdict

HUMAN_SCHEMA = "cladastats/human/2"

FAMILY = Counter(name for name, _ in MEASURES)
"""Confirmatory measures of the six corpora, fixed before any result was seen. Holm corrects over all twelve, however
many are in a table. A table of the user's own is corrected over the measures that its analysis was asked for."""

EFFECT_COLUMNS = (
    "corpus", "measure", "predictor", "words", "units", "units_are", "delta_ll", "ci_low", "ci_high", "se", "p",
    "p_holm", "family", "gain_sde", "gain_bound", "effect", "effect_low", "effect_high", "effect_se", "effect_sde",
    "effect_bound", "total", "total_low", "total_high", "total_se", "total_bound", "unit", "measure_sd", "sign",
)  # fmt: skip


def read_result(path: Path) -> dict[str, Any]:
    """The result of one corpus on one model, as `cladastats human` wrote it.

    Raises:
        StudyError: The file is missing, damaged, or of an earlier version.
    """
    try:
        result = read_json(path, HUMAN_SCHEMA, StudyError)
    except StudyError as problem:
        if "cladastats/human/" in str(problem).split(" not ")[0]:
            raise StudyError(
                f"{path} was computed by an earlier version, with other models; delete it and run 'cladastats human' "
                "again"
            ) from None
        raise
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
    """The confirmatory table: surprisal of every measure first, as the positive control; columns `EFFECT_COLUMNS`.

    `p_holm` is corrected for each predictor over the whole family, whichever corpora are in the table: what was not
    computed counts as p = 1. `gain_sde` and `effect_sde` are the smallest that the data show with a power of 80 % at
    the level of Holm's first step (`cladastats.people.evidence.detectable`). `gain_bound`, `effect_bound` and
    `total_bound` say what is excluded at 5 %.
    """
    rows = []
    for result in read_results(folder, names):
        confirmatory = [measure for measure in result["measures"] if measure["confirmatory"]]
        for measure in confirmatory:
            facts = {name: measure[name] for name in ("measure", "sign", "words", "unit", "units", "units_are")}
            facts |= {"corpus": result["corpus"], "measure_sd": measure["sd"]}
            rows += [facts | row for row in measure["rows"]]
    table = pd.DataFrame(rows)
    fixed = table["corpus"].isin(FAMILY)
    own = len(table.loc[~fixed, ["corpus", "measure"]].drop_duplicates())
    table["family"] = np.where(fixed, sum(FAMILY.values()), own)
    table["p_holm"] = np.nan
    for (_, family), group in table.groupby(["predictor", "family"]):
        table.loc[group.index, "p_holm"] = holm(group["p"].tolist(), int(str(family)))
    smallest = [detectable(row.effect_se, row.design, row.words, row.family, row.cost) for row in table.itertuples()]
    table["effect_sde"], table["gain_sde"] = zip(*smallest, strict=True)
    order = table["predictor"].map(STEPS.index)
    table = table.loc[order.sort_values(kind="stable").index].reset_index(drop=True)
    return table[list(EFFECT_COLUMNS)]


def pooled_table(table: pd.DataFrame) -> pd.DataFrame:
    """Random-effects estimates over corpora: a row for each predictor and quantity.

    The measures of a corpus are of the same words and readers, so that one of each corpus counts, the first. `gain` is
    of all corpora, in nats per word. `effect` (of the word itself) and `total` (with lags) are of reading times alone,
    in standard deviations of the measure per one of the predictor: the sign of a brain response means another thing.

    Args:
        table: Of `effect_table`.

    Returns:
        predictor, quantity, and what `cladastats.people.evidence.pooled` finds; nothing where there is one corpus.
    """
    found = []
    for predictor, rows in table.groupby("predictor", sort=False):
        rows = rows.drop_duplicates("corpus")
        times = rows[rows["unit"] == "ms"]
        for quantity, used, values, errors in (
            ("gain", rows, rows["delta_ll"], rows["se"]),
            ("effect", times, times["effect"] / times["measure_sd"], times["effect_se"] / times["measure_sd"]),
            ("total", times, times["total"] / times["measure_sd"], times["total_se"] / times["measure_sd"]),
        ):
            if len(used) > 1:
                row = {"predictor": predictor, "quantity": quantity}
                found.append(row | pooled(values.tolist(), errors.tolist()))
    return pd.DataFrame(found)


def show(table: pd.DataFrame, fmt: str) -> str:
    """The confirmatory table as `text`, `markdown`, `csv`, `json`, `latex` or `html`.

    What is read by people comes as two tables, gains and effects, and the pooled estimates where there are any.
    """
    if fmt == "json":
        return str(table.to_json(orient="records"))
    if fmt == "csv":
        return str(table.to_csv(index=False)).rstrip()
    parts = [(_gain_cells(table), _gain_caption(table)), (_effect_cells(table), EFFECT_CAPTION)]
    over = pooled_table(table)
    if len(over):
        parts.append((_pooled_cells(over), POOLED_CAPTION))
    return "\n\n".join(_written(cells, caption, fmt, f"human-{part}") for part, (cells, caption) in enumerate(parts))


def _written(cells: pd.DataFrame, caption: Sequence[str], fmt: str, name: str) -> str:
    align = ["left"] * cells.shape[1]
    if fmt == "latex":
        return latex_table(cells, caption, align, index=False)
    if fmt == "html":
        return html_table(cells, caption, name, index=False)
    return " ".join(f"{line}." for line in caption) + "\n\n" + plain_table(cells, fmt, align, index=False)


def _gain_caption(table: pd.DataFrame) -> list[str]:
    sizes = " or ".join(str(size) for size in sorted(set(table["family"]), reverse=True))
    return [
        "Gains of a predictor with its two lags over the step before, in nats per 1,000 words, with 95 % intervals "
        "(bootstrap over the units)",
        "p is of a sign-flip test over the units, corrected by Holm for each predictor in a family of "
        f"{sizes} measures",
        "'detectable': the smallest gain shown with a power of 80 %",
        "'excluded': gains of the right coefficients above it are excluded at 5 %",
    ]


EFFECT_CAPTION = [
    "Effects for one standard deviation of the predictor, in the unit of the measure, with 95 % intervals (bootstrap "
    "over the units)",
    "'with lags' is the sum over the word and the two words before",
    "'detectable': the smallest effect of the word itself that the test of its gain shows with a power of 80 %",
    "'excluded': larger effects of either sign are excluded at 5 % (two one-sided tests)",
]

POOLED_CAPTION = [
    "Random-effects estimates over corpora, one measure of each (Paule and Mandel; Hartung and Knapp), with 95 % "
    "intervals",
    "Gains are in nats per 1,000 words, effects of reading times in standard deviations of the measure",
    "A gain near zero is also known more precisely than a large one, which pulls the pooled gain to zero",
    "'excluded': larger values of either sign are excluded at 5 %",
]


def _gain_cells(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "corpus": row.corpus,
            "measure": row.measure,
            "predictor": row.predictor,
            "words": f"{row.words:,}",
            "units": f"{row.units} {row.units_are}",
            "gain": thousandths(row.delta_ll, row.ci_low, row.ci_high),
            "p (Holm)": f"{row.p_holm:.4f}",
            "detectable": f"{1000 * row.gain_sde:.1f}",
            "excluded": f"{1000 * row.gain_bound:.1f}",
        }
        for row in table.itertuples()
    )


def _effect_cells(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "corpus": row.corpus,
            "measure": row.measure,
            "predictor": row.predictor,
            "effect": interval(row.effect, row.effect_low, row.effect_high, row.unit),
            "detectable": f"{row.effect_sde:.3g}",
            "excluded": f"{row.effect_bound:.3g}",
            "with lags": interval(row.total, row.total_low, row.total_high, row.unit),
            "excluded ": f"{row.total_bound:.3g}",
        }
        for row in table.itertuples()
    )


def _pooled_cells(over: pd.DataFrame) -> pd.DataFrame:
    cells = []
    for row in over.itertuples():
        scale = 1000 if row.quantity == "gain" else 1
        shown = (thousandths if row.quantity == "gain" else interval)(row.estimate, row.low, row.high)
        cells.append(
            {
                "predictor": row.predictor,
                "quantity": QUANTITIES[str(row.quantity)],
                "corpora": str(row.studies),
                "estimate": shown,
                "between corpora (SD)": f"{scale * row.tau:.3g}",
                "excluded": f"{scale * row.bound:.3g}",
            }
        )
    return pd.DataFrame(cells)


QUANTITIES = {"gain": "gain", "effect": "effect of the word itself", "total": "effect with lags"}


def thousandths(value: Any, low: Any, high: Any) -> str:
    """A gain in nats per 1,000 words with its interval."""
    return f"{1000 * value:+.2f} [{1000 * low:+.2f}, {1000 * high:+.2f}]"


def interval(value: Any, low: Any, high: Any, unit: Any = "") -> str:
    """An effect with its interval."""
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}] {unit}".rstrip()


_IN_WORDS = {"supported": "is supported", "contradicted": "is contradicted", "undecided": "is not supported"}


def verdicts(table: pd.DataFrame) -> list[str]:
    """What the confirmatory table says, in sentences: the positive control first, then effort.

    Args:
        table: Of `effect_table`.
    """
    sentences = [_positive_control(table[table["predictor"] == "surprisal"])]
    effort = table[table["predictor"] == "effort"]
    if effort.empty:
        return [*sentences, "Nothing is said of effort: these words have none."]
    significant = effort[effort["p_holm"] < SIGNIFICANCE]
    names = ", ".join(
        f"{row.corpus} {row.measure} ({'more' if row.total > 0 else 'less'} with more effort)"
        for row in significant.itertuples()
    )
    sentences.append(
        f"Effort beyond surprisal and entropy: {len(significant)} of {len(effort)} measures are predicted better with "
        f"it and its two lags ({_corrected(effort)}): {names or 'none'}."
    )
    sentences += [_effort_sentence(row) for row in effort.itertuples()]
    for component, sign in (("N400_uV", -1), ("P600_uV", 1)):  # the deflections that effort would enlarge
        for row in effort[effort["measure"] == component].itertuples():
            sentences.append(
                f"A link of effort to the {component.removesuffix('_uV')} "
                f"{_IN_WORDS[verdict(sign, row.effect, row.p_holm)]}: "
                f"{interval(row.effect, row.effect_low, row.effect_high)} microvolt per standard deviation, gain "
                f"{thousandths(row.delta_ll, row.ci_low, row.ci_high)} nats per 1,000 words; an effect of "
                f"{row.effect_sde:.3g} microvolt would have been shown, one of more than {row.effect_bound:.3g} is "
                "excluded."
            )
    return sentences + [_pooled_sentence(row) for row in pooled_table(table).itertuples() if row.predictor != "entropy"]


def _corrected(table: pd.DataFrame) -> str:
    sizes = " or ".join(str(size) for size in sorted(set(table["family"]), reverse=True))
    return f"p < {SIGNIFICANCE} after Holm's correction in a family of {sizes}"


def _positive_control(surprisal: pd.DataFrame) -> str:
    better = surprisal[surprisal["p_holm"] < SIGNIFICANCE]
    known = surprisal[surprisal["sign"] != 0]
    right = known[known["sign"] * known["effect"] > 0]
    clear = right[right["effect_low"] * right["effect_high"] > 0]
    return (
        f"Positive control: surprisal beyond the baseline predicts {len(better)} of {len(surprisal)} measures better "
        f"({_corrected(surprisal)}); its effect has the known sign in {len(right)} of {len(known)} measures, with a "
        f"95 % interval without zero in {len(clear)}."
    )


def _effort_sentence(row: Any) -> str:
    shown = "shown" if row.p_holm < SIGNIFICANCE else "not shown"
    return (
        f"- {row.corpus} {row.measure}: {shown}, p {row.p_holm:.3f}, gain "
        f"{thousandths(row.delta_ll, row.ci_low, row.ci_high)} nats per 1,000 words. A gain of "
        f"{1000 * row.gain_sde:.1f} or an effect of {row.effect_sde:.3g} {row.unit} per standard deviation would have "
        f"been shown in four of five samples. Excluded are gains over {1000 * row.gain_bound:.1f}, effects over "
        f"{row.effect_bound:.3g} {row.unit} of the word itself, and {row.total_bound:.3g} {row.unit} with its lags."
    )


def _pooled_sentence(row: Any) -> str:
    if row.quantity == "gain":
        value = f"{thousandths(row.estimate, row.low, row.high)} nats per 1,000 words"
        bound = f"{1000 * row.bound:.1f}"
    else:
        value = f"{interval(row.estimate, row.low, row.high)} standard deviations of reading times"
        bound = f"{row.bound:.3g}"
    return (
        f"Pooled over {row.studies} corpora, one measure of each: {row.predictor}, {QUANTITIES[row.quantity]} {value}; "
        f"more than {bound} is excluded."
    )
