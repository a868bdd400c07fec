"""`python benchmarks/study.py publish`: keep the results of finished studies, and write `figures/RESULTS.md`.

The page is written from the kept files alone, by rules: which study stands for a model, which verdict is told in which
words, which number stands where. The full tables are written by `results_tables.py` and `results_people.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from results_people import people_answer, write_people_tables
from results_tables import (
    SHOWN,
    TITLES,
    Kept,
    claims_command,
    estimate,
    markdown,
    mean_responses,
    on_models,
    percent,
    separator_share,
    shares_text,
    smallest_slopes,
    units,
    verdict_rule,
    write_tables,
)
from stored import FIGURES

from cladastats.figures import (
    coefficient_figure,
    gain_figure,
    gain_layers_figure,
    layer_figure,
    prefix_figure,
    save,
)
from cladastats.panel.claims import CLAIMED, claims
from cladastats.people.results import effect_table, read_results
from cladastats.results.fit import PAPER_METRICS
from cladastats.results.labels import metric_title
from cladastats.results.verdicts import SIGNIFICANCE
from cladastats.study import STUDIES as FOLDER
from cladastats.study import Study

if TYPE_CHECKING:
    from study import RealStudy

KEPT = FIGURES / "studies"
# The last is the one whose coefficients are kept.
METRICS = ("cosine", "cosine_centred", "pearson", "jaccard", "cka_trimmed", "cka")


def publish(rows: Sequence[RealStudy]) -> None:
    """Keep what says what was found, and write the page and the tables of all studies of the list that are kept."""
    for row in rows:
        if is_finished(row):
            copy_results(row)
    copy_people()
    kept = kept_studies(rows)
    for one in kept:
        if one.row.role not in ("pilot", "long"):  # longer prefixes are in the figure of the same pairs
            draw(one, kept)
    people = kept_models()
    if people:
        draw_people(people)
        write_people_tables(FIGURES / "tables", KEPT / "human", people)
    write_tables(FIGURES / "tables", kept, rows)
    (FIGURES / "RESULTS.md").write_text(page(rows, kept, people), encoding="utf-8")


def kept_studies(rows: Iterable[RealStudy]) -> list[Kept]:
    """The studies of a list that are in `figures/studies`."""
    return [Kept(row, Study(KEPT / row.name)) for row in rows if (KEPT / row.name / "study.json").is_file()]


def kept_models() -> dict[str, str]:
    """The models whose results of people are kept, with their names for readers."""
    return {name: title for name, title in TITLES.items() if any((KEPT / "human" / name).glob("*.json"))}


# -- What is kept ----------------------------------------------------------------------------------------------------


def is_finished(row: RealStudy) -> bool:
    """Whether a study was made here, with every table that is kept of it."""
    folder = FOLDER / row.name
    names = ["study.json", "coefficients.json", "fits/cka.json", "fits/cosine.json"]
    if row.role != "pilot":
        names += [f"fits/{metric}{response}.json" for metric in METRICS for response in ("", "-matched")]
    if row.role == "primary":
        names += ["earlier.csv", "case-cka.csv", "case-cosine.csv"]
    if not all((folder / name).is_file() for name in names):
        return False
    # A plain fit of every metric comes first, so that the file alone does not say that its checks were made.
    fits = {name for name in names if name.startswith("fits/")}
    return all(Study(folder).fit(*_metric_and_response(name)).robustness for name in fits)


def _metric_and_response(name: str) -> tuple[str, str]:
    metric, _, response = Path(name).stem.partition("-")
    return metric, response or "toward"


def copy_results(row: RealStudy) -> None:
    """Keep the results of a study that was made here, without texts and activations."""
    names = ["study.json", "coefficients.json", "controls.parquet", "earlier.csv", "case-*.csv", "fits/*.json"]
    names += [f"panel-{metric}.parquet" for metric in METRICS] + ["population-cka.parquet", "figures/*"]
    made, kept = FOLDER / row.name, KEPT / row.name
    shutil.rmtree(kept, ignore_errors=True)
    for path in [path for name in names for path in sorted(made.glob(name))]:
        (kept / path.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kept / path.relative_to(made))


def copy_people() -> None:
    """Keep what `cladastats human` found here."""
    for name in TITLES:
        made, kept = FOLDER / "human" / name, KEPT / "human" / name
        if any(made.glob("*.json")):
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            for path in made.glob("*.json"):
                shutil.copy(path, kept)


def draw(one: Kept, kept: Sequence[Kept]) -> None:
    """The figures that need more than one panel, or fits: all prefix shares, coefficients, layers."""
    folder, study = one.study.folder / "figures", one.study
    same_pairs = [other.study for other in (one, *longer(one, kept))]
    whole, trimmed = (_panels(same_pairs, metric) for metric in (SHOWN, "cka_trimmed"))
    save(prefix_figure(whole, SHOWN, trimmed if len(trimmed) else None), folder / "prefix-all")
    save(coefficient_figure({metric: study.fit(metric) for metric in PAPER_METRICS}), folder / "coefficients")
    save(layer_figure(study.fit(SHOWN)), folder / "layers")


def _panels(studies: Iterable[Study], metric: str) -> pd.DataFrame:
    """The panels of a metric under each other; nothing where earlier versions kept none."""
    there = [study.panel(metric) for study in studies if (study.folder / f"panel-{metric}.parquet").is_file()]
    return pd.concat(there) if there else pd.DataFrame()


def draw_people(models: Iterable[str]) -> None:
    """The figures of held-out gains."""
    human = KEPT / "human"
    save(gain_figure({name: effect_table(human / name) for name in models}), human / "gains")
    save(gain_layers_figure({name: read_results(human / name) for name in models}), human / "layers")


# -- Which study stands for a model ----------------------------------------------------------------------------------


def first(kept: Iterable[Kept], model: str, *roles: str) -> Kept | None:
    """The first kept study of a model with one of these roles, the roles in order."""
    of = [one for one in kept if one.row.model == model and one.row.role in roles]
    return min(of, key=lambda one: roles.index(one.row.role), default=None)


def longer(one: Kept, kept: Iterable[Kept]) -> list[Kept]:
    """The kept study of the same pairs with longer prefixes."""
    return [o for o in kept if o.row.role == "long" and o.row.whole == one.row.whole and one.row.whole]


# -- The page --------------------------------------------------------------------------------------------------------


def page(rows: Sequence[RealStudy], kept: Sequence[Kept], people: Mapping[str, str]) -> str:
    """The text of `figures/RESULTS.md`.

    Args:
        rows: The list of studies, for those that are not finished.
        kept: The finished ones.
        people: Models whose results of people are kept.
    """
    heads = {model: one for model in TITLES if (one := first(kept, model, "primary", "contrast")) is not None}
    judged = {one.row.name: claims(one.study) for one in kept if one.row.role != "pilot"}
    parts = [
        "# Results",
        "Do the neurons of a language model follow the beginning of a text ('flocking'), and do surprising words "
        "disturb that? We exchange the beginning of a text A for that of another text B and compare the activations at "
        "the last word. The response `toward` is 0 where this changes nothing, and 1 where they are those of B. "
        "`matched` is the same of B with A's last word in the place of its own. NLS is natural text, RTS random words. "
        "This page is written by `python benchmarks/study.py publish` from `figures/studies`.",
        *(_findings(rows, heads, kept, judged) if heads else ["No study of these models is finished."]),
        "## Reading times and brain responses",
        *(people_section(people) if people else ["No results are kept."]),
        "## The studies",
        *_studies(rows, kept),
        "## Full tables",
        "\n".join(_links(people)),
    ]
    return "\n\n".join(parts) + "\n"


def _findings(
    rows: Sequence[RealStudy], heads: Mapping[str, Kept], kept: Sequence[Kept], judged: Mapping[str, pd.DataFrame]
) -> list[str]:
    """What the studies say of the paper's two hypotheses."""
    return [
        "## The answer",
        *_caution(rows, heads, [o for one in heads.values() for o in (one, *longer(one, kept))], judged),
        *_answer(heads, kept, judged),
        "## The claims",
        *_claims(heads, judged),
        *_contrast(heads, kept, judged),
        "## How far the activations move",
        *_pictures(heads),
    ]


def _caution(
    rows: Iterable[RealStudy],
    heads: Mapping[str, Kept],
    told: Iterable[Kept],
    judged: Mapping[str, pd.DataFrame],
) -> Iterator[str]:
    """What must be known before the answer: primary studies that are not finished, checks that files lack."""
    missing = [row.name for row in rows if row.role == "primary" and not _is_head(row, heads)]
    if missing:
        yield (
            f"**The primary studies are not finished** ({', '.join(missing)}). In their place stands the paper's own "
            "form: windows of joined documents, in which another document often begins between prefix and target. A "
            "model is trained to forget what stands before such a border, so that a null result says little."
        )
    lacking = [one.row.name for one in told if judged[one.row.name]["agreeing"].str.contains("not there").any()]
    if lacking:
        yield (
            f"**Verdicts are undecided where a fit is missing** that must agree with a test before it counts: "
            f"{', '.join(lacking)} were made by an earlier version, which did not make all of those fits."
        )


def _is_head(row: RealStudy, heads: Mapping[str, Kept]) -> bool:
    return row.model in heads and heads[row.model].row.name == row.name


def _answer(heads: Mapping[str, Kept], kept: Sequence[Kept], judged: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Three sentences, by rule: how far, whether longer prefixes are followed more, whether load disturbs it."""
    means = mean_responses(kept).query("group == 'nls'").set_index(["response", "study", "ratio"])["mean"]
    further = {model: other for model, one in heads.items() for other in longer(one, kept)}

    def moved(studies: Mapping[str, Kept], response: str) -> str:
        longest = {model: (response, one.row.name, max(one.row.ratios)) for model, one in studies.items()}
        return on_models({model: percent(means[place]) for model, place in longest.items()})

    def judged_as(studies: Mapping[str, Kept], column: int, term: str) -> str:
        return on_models({model: _verdict(judged[one.row.name], column, term) for model, one in studies.items()})

    yield "\n".join(
        [
            f"1. **How far.** With {longest_share(heads)} of a natural text exchanged, the activations at its last "
            f"word go this share of the way to the other text's: {moved(heads, 'toward')}; with "
            f"{longest_share(further)}: {moved(further, 'toward')}. Of the way to the other text's with the same last "
            f"word: {moved(heads, 'matched')}; with {longest_share(further)}: {moved(further, 'matched')}.",
            "2. **Prefix.** That natural text follows a longer prefix is "
            f"{judged_as(heads, 2, 'prefix_len')} for the paper's prefixes, and for longer ones "
            f"{judged_as(further, 2, 'prefix_len')}.",
            "3. **Load.** That surprisal disturbs this in natural text is "
            f"{judged_as(heads, 6, 'surprisal_norm')}; that entropy does is {judged_as(heads, 6, 'entropy_norm')}.",
        ]
    )


def longest_share(studies: Mapping[str, Kept]) -> str:
    """The share of the text that the longest prefixes of some studies take."""
    return " or ".join(sorted({f"{100 * max(one.row.ratios):g} %" for one in studies.values()})) or "longer prefixes"


def _verdict(judged: pd.DataFrame, column: int, term: str, metric: str = SHOWN) -> str:
    """The verdict on a coefficient's claim."""
    of = judged[(judged["claim"] == CLAIMED[column, term][0]) & (judged["metric"] == metric)]
    return str(of["verdict"].iloc[0]) if len(of) else "not judged"


def _claims(heads: Mapping[str, Kept], judged: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """The one table of claims, by the first metric; where the other metric's verdicts differ is said below it."""
    rows, differ = [], []
    of = {model: judged[one.row.name] for model, one in heads.items()}
    order = list(dict.fromkeys(claim for table in of.values() for claim in table["claim"]))
    for claim in order:
        for model, table in of.items():
            found = table[table["claim"] == claim]
            for row in found[found["metric"] == SHOWN].itertuples():
                value = estimate(row.estimate, row.ci_low, row.ci_high)
                title = TITLES[model]
                rows.append({"claim": claim, "model": title, "estimate": value, "verdict": row.verdict})
                for other in found[found["metric"] != SHOWN].itertuples():
                    if other.verdict != row.verdict:
                        differ.append(f"{claim} on {title}: {other.verdict}")
    files = "; ".join(f"`{one.path}/fits/{SHOWN}.json`" for one in heads.values())
    commands = "; ".join(claims_command(one) for one in heads.values())
    yield (
        "Each row is a claim of the paper's section 2 on one model, of the response `toward` by "
        f"{metric_title(SHOWN)}. {units()} From {files}; recomputed by {commands}. "
        "[What each verdict rests on](tables/claims.md)."
    )
    yield markdown(pd.DataFrame(rows), "claims")
    yield verdict_rule()
    by = metric_title(next(metric for metric in PAPER_METRICS if metric != SHOWN))
    yield f"By {by} the verdicts are the same." if not differ else f"Other verdicts by {by}: {'; '.join(differ)}."
    slopes = on_models({m: f"{smallest_slopes(one.study).get('nls', float('nan')):.2g}" for m, one in heads.items()})
    yield (
        f"What could have been seen: a test at {100 * SIGNIFICANCE:g} % finds a slope of natural text of {slopes} in "
        "four of five such studies ([designs](tables/designs.md))."
    )


def _contrast(heads: Mapping[str, Kept], kept: Sequence[Kept], judged: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Verdicts of the stream form, where the primary studies stand above."""
    contrasts = {
        model: one
        for model in TITLES
        if model in heads and heads[model].row.role == "primary" and (one := first(kept, model, "contrast")) is not None
    }
    if not contrasts:
        return
    rows: dict[str, dict[str, str]] = {}
    for model, one in contrasts.items():
        table = judged[one.row.name]
        for row in table[table["metric"] == SHOWN].itertuples():
            line = rows.setdefault(str(row.claim), {"claim": str(row.claim)})
            is_size = row.verdict == "estimate"
            line[TITLES[model]] = estimate(row.estimate, row.ci_low, row.ci_high) if is_size else str(row.verdict)
    where = ", ".join(f"`{one.path}` ({separator_share(one.study)})" for one in contrasts.values())
    yield (
        f"The verdicts in the paper's own form, windows of joined documents, by {metric_title(SHOWN)}. Their texts are "
        "of another source and fewer, so that a difference need not be one of windows. In parentheses is the share of "
        f"natural rows in which another document begins between prefix and target: {where}."
    )
    yield markdown(pd.DataFrame(rows.values()).fillna("not judged"), "contrast")


def _pictures(heads: Mapping[str, Kept]) -> Iterator[str]:
    """The figure of every model's responses."""
    for model, one in heads.items():
        yield f"![Responses against the prefix's length](studies/{one.row.name}/figures/prefix-all.png)"
        yield (
            f"*{TITLES[model]}, `{one.row.name}`: the responses to B and to B\\*, which ends in A's word, and "
            "similarities. Means with 95 % intervals, and medians. The upper row is the scale of the question, from no "
            "change to the activations of the other text. The rows below are magnified.*"
        )


def people_section(models: Mapping[str, str]) -> list[str]:
    """What was found of people, in three sentences and a figure."""
    pages = " and ".join(f"[{title}](tables/human-{model}.md)" for model, title in models.items())
    return [
        "\n".join(f"{number}. {said}" for number, said in enumerate(people_answer(KEPT / "human", models), 1)),
        f"All measures, effects, and what the data could have shown: {pages}. "
        "[GAINS_POWER.md](GAINS_POWER.md) has the size and the power of the tests.",
        "![Gains of surprisal, entropy and effort](studies/human/gains.png)",
        "*What each predictor with its two lags adds to the log density of held-out texts, with 95 % intervals; filled "
        "where p < 0.05 after Holm's correction. From `figures/studies/human`.*",
    ]


def _studies(rows: Sequence[RealStudy], kept: Sequence[Kept]) -> Iterator[str]:
    """Every study of the list, those that are not finished too."""
    there = {one.row.name: one for one in kept}
    table = pd.DataFrame(
        {
            "study": row.name,
            "role": row.role,
            "windows": row.windows,
            "length": str(row.length),
            "pairs": str(row.pairs),
            "shares": shares_text(row.ratios),
            "separator": separator_share(there[row.name].study) if row.name in there else "",
            "state": "finished" if row.name in there else "not finished",
        }
        for row in rows
    )
    yield (
        "Each row is a study: what texts of a group are compared, and in how many pairs. `separator` is the share of "
        "natural rows in which another document begins between prefix and target."
    )
    yield markdown(table, "studies")


def _links(people: Mapping[str, str]) -> Iterator[str]:
    """A line for each page of full tables."""
    yield "- [Every claim by every metric](tables/claims.md)"
    yield "- [Mean responses by the prefix's share](tables/responses.md)"
    yield "- [The same regressions of every measure and response](tables/measures.md), with coefficients and layers"
    yield "- [Placebo hybrids, one token earlier, the 13 sentences](tables/checks.md)"
    yield "- [Texts, pairs, equivalence margins, smallest slopes that could be seen](tables/designs.md)"
    yield from (f"- [People, {title}](tables/human-{model}.md)" for model, title in people.items())
