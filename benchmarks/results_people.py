"""Reading times and brain responses in the results: a page of full tables for each model, and what the main page says.

Everything comes from `figures/studies/human/MODEL/*.json`, which `cladastats human` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from results_tables import markdown, on_models, stacked, write_csv, write_page

from cladastats.people.gains import STEPS
from cladastats.people.results import (
    EFFECT_CAPTION,
    POOLED_CAPTION,
    QUANTITIES,
    effect_table,
    interval,
    pooled_table,
    read_results,
    thousandths,
    verdicts,
)
from cladastats.results.verdicts import SIGNIFICANCE

LEADS = {
    "surprisal": "Surprisal over the baseline (length, frequency, number of tokens, norm of hidden state, position)",
    "entropy": "Entropy over surprisal",
    "effort": "Effort over surprisal and entropy",
}


def write_people_tables(folder: Path, human: Path, models: Mapping[str, str]) -> None:
    """Write a page for each model, and CSV of all.

    Args:
        folder: `figures/tables`.
        human: `figures/studies/human`.
        models: Names for readers, by the models' own.
    """
    whole, over, changes = {}, {}, {}
    for model, title in models.items():
        table, results = effect_table(human / model), read_results(human / model)
        whole[model], over[model] = table, pooled_table(table)
        changed = changes[model] = changes_of(model, results, human / "earlier.csv")
        write_page(folder / f"human-{model}.md", _page(model, title, table, results, changed))
    tables = {"human": whole, "human-pooled": over, "human-changed": changes}
    write_csv(folder, {name: stacked(found, "model") for name, found in tables.items()})


def _page(
    model: str, title: str, table: pd.DataFrame, results: list[dict[str, Any]], changed: pd.DataFrame
) -> list[str]:
    """The paragraphs of one model's page."""
    parts = [
        f"# Effort against reading times and brain responses: {title}",
        f"From `figures/studies/human/{model}/*.json`; `cladastats human` with `--model {model}` recomputes those from "
        "the corpora. CSV: [gains and effects](human.csv), [pooled](human-pooled.csv), [changes](human-changed.csv). "
        "A gain is what a predictor with its two lags adds to the joint log density of held-out texts over the step "
        "before, in nats per 1,000 words. Texts are resampled, or sentences where there are fewer than twenty texts. "
        "[GAINS_POWER.md](../GAINS_POWER.md) shows size and power of these tests.",
        "## The measures",
        "Each row is a measure of a corpus. `units` are what is resampled, `sd` is the measure's standard deviation.",
        markdown(_measures(table), "measures of people"),
        "## Gains",
        "Each row is a measure. Intervals are 95 %, by bootstrap over the units. p is of a sign-flip test over the "
        f"units, corrected by Holm for each predictor in a family of {table['family'].max()} measures. `detectable` is "
        "the smallest gain shown with a power of 80 %; gains of the right coefficients above `excluded` are excluded "
        "at 5 %.",
    ]
    for shown, kind in ((_gains, "gains"), (_effects, "effects"), (_totals, "effects with lags")):
        if kind == "effects":
            parts += ["## Effects", " ".join(f"{line}." for line in EFFECT_CAPTION)]
        for predictor, rows in table.groupby("predictor", sort=False):
            parts += [f"{LEADS[str(predictor)]}, {kind}:", markdown(shown(rows), f"{kind} of {predictor}")]
    parts += [
        "## Over all corpora",
        " ".join(f"{line}." for line in POOLED_CAPTION),
        markdown(_pooled(pooled_table(table)), "pooled"),
        "## In words",
        *_list(verdicts(table)),
        "## What could explain effort's gains",
        f"Those with p < {SIGNIFICANCE:g} before correction:",
        *_list(explained(results) or ["There are none."]),
        *(_changed_section(changed) if len(changed) else []),
        "![Gains](../studies/human/gains.png)",
        "![Layers](../studies/human/layers.png)",
    ]
    return parts


def _list(sentences: Sequence[str]) -> list[str]:
    """Sentences as one list; some are items of one already."""
    return ["\n".join(f"- {sentence.removeprefix('- ')}" for sentence in sentences)]


def _rows(cells: Callable[[Any], dict[str, Any]]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A table whose rows begin with the measure."""

    def table(rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"measure": f"{row.corpus} {row.measure}"} | cells(row) for row in rows.itertuples())

    return table


_gains = _rows(
    lambda row: {
        "gain": thousandths(row.delta_ll, row.ci_low, row.ci_high),
        "p (Holm)": f"{row.p_holm:.4f}",
        "detectable": f"{1000 * row.gain_sde:.1f}",
        "excluded": f"{1000 * row.gain_bound:.1f}",
    }
)

_effects = _rows(
    lambda row: {
        "effect of the word itself": interval(row.effect, row.effect_low, row.effect_high, row.unit),
        "detectable": row.effect_sde,
        "excluded": row.effect_bound,
    }
)

_totals = _rows(
    lambda row: {
        "effect with lags": interval(row.total, row.total_low, row.total_high, row.unit),
        "excluded": row.total_bound,
    }
)


def _measures(table: pd.DataFrame) -> pd.DataFrame:
    rows = _rows(
        lambda row: {
            "words": f"{row.words:,}",
            "units": f"{row.units} {row.units_are}",
            "sd": f"{row.measure_sd:.3g} {row.unit}",
        }
    )
    return rows(table.drop_duplicates(["corpus", "measure"]))


def _pooled(over: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in over.itertuples():
        gain = row.quantity == "gain"
        rows.append(
            {
                "predictor": row.predictor,
                "quantity": QUANTITIES[str(row.quantity)],
                "corpora": str(row.studies),
                "estimate": (thousandths if gain else interval)(row.estimate, row.low, row.high),
                "SD between": (1000 if gain else 1) * row.tau,
                "excluded": (1000 if gain else 1) * row.bound,
            }
        )
    return pd.DataFrame(rows)


def explained(results: Sequence[dict[str, Any]]) -> list[str]:
    """What is left of each gain of effort that stands by itself (before correction), a sentence each."""
    lines = []
    for result in results:
        for measure in result["measures"]:
            row, effort = measure["rows"][STEPS.index("effort")], measure["effort"]
            if measure["confirmatory"] and row["p"] < SIGNIFICANCE:
                left, placebo = effort["with_controls"], effort["placebo"]
                lines.append(
                    f"{result['corpus']} {measure['measure']}: {1000 * row['delta_ll']:+.1f} nats per 1,000 words, "
                    f"{1000 * left['delta_ll']:+.1f} (p {left['p']:.3f}) with word class, punctuation and end of "
                    f"sentence in the model, {1000 * effort['matched_surprisal']['delta_ll']:+.1f} at matched "
                    f"surprisal, placebo p {placebo['p']:.3f}."
                )
    return lines


def changes_of(model: str, results: Sequence[dict[str, Any]], earlier: Path) -> pd.DataFrame:
    """Effort's gains beside those of the earlier analysis.

    Returns:
        A row per measure that both have; `then` and `now` of the word alone, of its lags, and of both, in nats per
        word, with uncorrected p (and of the earlier analysis Holm's).
    """
    known = pd.read_csv(earlier)
    known = known[known["model"] == model].set_index(["corpus", "measure", "step"])
    rows = []
    for result in results:
        for measure in result["measures"]:
            key = (result["corpus"], measure["measure"])
            if not measure["confirmatory"] or (*key, "effort") not in known.index:
                continue
            row, effort = measure["rows"][STEPS.index("effort")], measure["effort"]
            gains = {
                "then_word": known.loc[(*key, "effort")],
                "then_lags": known.loc[(*key, "spillover")],
                "now_word": effort["without_lags"],
                "now_lags": effort["lags"],
                "now_both": row,
                "earlier_baseline": effort["smaller_baseline"],
            }
            found = {"corpus": key[0], "measure": key[1]}
            for name, gain in gains.items():
                found |= {name: gain["delta_ll"], f"{name}_p": gain["p"]}
            rows.append(found | {"then_lags_p_holm": gains["then_lags"]["p_holm"]})
    return pd.DataFrame(rows)


def _changed_section(changed: pd.DataFrame) -> list[str]:
    """Why effort's gains are not those of the earlier analysis."""

    def told(row: Any, name: str) -> str:
        return f"{1000 * row[name]:+.1f} (p {row[f'{name}_p']:.3f})"

    def shown(heads: Mapping[str, str]) -> str:
        rows = (
            {"measure": f"{row['corpus']} {row['measure']}"} | {head: told(row, name) for name, head in heads.items()}
            for _, row in changed.iterrows()
        )
        return markdown(pd.DataFrame(rows), "changes")

    left_out = [
        f"{1000 * row.then_lags:+.1f} of {row.corpus} {row.measure} (p {row.then_lags_p_holm:.3f} by Holm's correction)"
        for row in changed.itertuples()
        if row.then_lags_p_holm < SIGNIFICANCE
    ]
    outside = f" On this model it held gains of {' and '.join(left_out)}." if left_out else ""
    return [
        "## What changed from the earlier table",
        "Each row is a measure; gains of effort in nats per 1,000 words with uncorrected p. The earlier analysis "
        "(`figures/studies/human/earlier.csv`) had the effort of the word alone, and of its lags:",
        shown({"then_word": "then: word", "then_lags": "then: lags"}),
        "That of today, the last column over the baseline of then:",
        shown(
            {
                "now_word": "now: word",
                "now_lags": "now: lags",
                "now_both": "now: both",
                "earlier_baseline": "both, then's baseline",
            }
        ),
        "The earlier confirmatory step held the effort of the word alone. Effort of the two words before was called "
        f"exploratory and stood outside the family.{outside} It belongs to the step, as the lags of surprisal and "
        "entropy belong to theirs, and is in it now. The baseline now has the number of tokens and the norm of the "
        "hidden state with their lags, which the earlier one had among the controls alone. The density of a held-out "
        "text is now the joint one of all its words; it was a product of the words' own, which leaves out that a "
        "text's words share its intercept. Holm's correction is over the twelve measures whichever are computed.",
    ]


def people_answer(human: Path, models: Mapping[str, str]) -> list[str]:
    """What is found of people, in three sentences: the positive control, effort, effort over all corpora.

    Args:
        human: `figures/studies/human`.
        models: Names for readers, by the models' own.
    """
    surprisal, signs, effort, pooled, beside = {}, {}, {}, {}, {}
    for model in models:
        table = effect_table(human / model)
        better = table[table["p_holm"] < SIGNIFICANCE].groupby("predictor").size()
        of = table[table["predictor"] == "surprisal"]
        known = of[of["sign"] != 0]
        surprisal[model] = f"{better.get('surprisal', 0)} of {len(of)} measures"
        effort[model] = f"{better.get('effort', 0)} of {len(of)} measures"
        signs[model] = f"{(known['sign'] * known['effect'] > 0).sum()} of {len(known)}"
        over = pooled_table(table).set_index(["predictor", "quantity"])
        pooled[model] = interval(*over.loc[("effort", "effect"), ["estimate", "low", "high"]])
        beside[model] = f"{over.loc[('surprisal', 'effect'), 'estimate']:+.2g}"
    return [
        f"**Surprisal**, the positive control, predicts unseen texts better in {on_models(surprisal)} "
        f"(p < {SIGNIFICANCE:g} after Holm's correction), and its effect has the known sign in {on_models(signs)}.",
        "**Effort** (the share of neurons that a word needs) predicts them better than surprisal and entropy alone in "
        f"{on_models(effort)}.",
        "**Over all corpora**, a reading time grows with one standard deviation of effort by this many of its own, "
        f"with 95 % intervals: {on_models(pooled)}; with surprisal by {on_models(beside)}.",
    ]
