"""What a study answers, in sentences made of its numbers: what a notebook or a report opens with.

Every function returns Markdown. No sentence is fixed that a number could contradict: signs, sizes and verdicts are put
in, and which way they point is for them to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from clada.errors import StudyError
from clada.methods.coefficients import COEFFICIENTS_SCHEMA, read_coefficients
from clada.system.jsonfile import read_json
from cladastats.panel.claims import CLAIMED, checked_fit, claims
from cladastats.panel.overview import responses_by_ratio
from cladastats.panel.power import seen
from cladastats.results.fit import LOADS, PAPER_METRICS, Fit
from cladastats.results.labels import GROUP_LABELS, metric_label
from cladastats.results.tables import plain_table
from cladastats.results.verdicts import in_words
from cladastats.study import Study

EFFECT_OF = {"prefix_len": "the prefix", **LOADS}
"""What a regression's term is, in a sentence."""

MEASURE = PAPER_METRICS[0]
"""By which sizes are told. Verdicts are told by both of the paper's metrics."""


def with_longer(study: Study) -> list[Study]:
    """A study, and that of the same pairs with longer prefixes where it lies beside it (its folder ends in `-long`)."""
    longer = study.folder.with_name(f"{study.folder.name}-long")
    return [study, *([Study(longer)] if (longer / "study.json").is_file() else [])]


def about(study: Study) -> str:
    """Which study it is, what may stand between a prefix and the last word, and which parts it lacks."""
    config = study.config
    shares = _listed([f"{100 * ratio:.4g}" for ratio in config.ratios], "or")
    said = [
        f"**The study** is `{study.folder}`. The model is {config.model}, and the texts are {config.source}. There are "
        f"{config.pairs:,} pairs of natural texts (NLS) and {config.pairs:,} of random words (RTS), {config.length:,} "
        f"tokens long. The exchanged beginning is {shares} % of a text.",
        _between(study),
    ]
    if lacking := _lacking(study):
        said.append(
            f"This study has no {_listed(lacking, 'and no')}. What follows goes without, and a verdict that needs it "
            "is undecided."
        )
    return " ".join(said)


def _between(study: Study) -> str:
    """What stands between the prefix and the target, from the panel where it says so, else from the windows."""
    if study.config.windows == "document":
        return "Every natural text lies within one document."
    joined = (
        "Natural texts are cut from joined documents, so that another document may begin between the exchanged "
        "beginning and the last word; a model is trained to forget what stands before such a border."
    )
    panel = study.panel(MEASURE)
    if "separator_between" not in panel:
        return joined
    share = panel.loc[panel["group"] == "nls", "separator_between"].mean()
    return f"{joined} In this study one does in {share:.0%} of the natural rows."


def _lacking(study: Study) -> list[str]:
    """Parts that this version can make and the study does not have."""
    panel = study.panel(MEASURE)
    parts = {
        "panel of r² without the few neurons of massive activity": "panel-cka_trimmed.parquet",
        "Pearson's r": "panel-pearson.parquet",
        "population CKA": "population-cka.parquet",
    }
    lacking = [name for name, file in parts.items() if not (study.folder / file).exists()]
    if "target_distance" not in panel:
        lacking.append("record of what stands between the exchanged beginning and the last word")
    return lacking


def prefix_answer(studies: Sequence[Study]) -> str:
    """Do activations follow a prefix (hypothesis 2.1)? How far, the verdicts, and whether the study is large enough.

    Args:
        studies: The study, with robustness checks, and others of the same pairs with longer prefixes, if there are any.

    Raises:
        StudyError: A fit or its robustness checks are missing.
    """
    study = studies[0]
    verdicts = claims(study)
    cells = pd.DataFrame(row for one in studies for row in _how_far(one))
    return "\n\n".join(
        [
            "**How far do activations follow the beginning?** At 0 % it changes nothing at the last word. At 100 % the "
            f"hybrid acts like the other text. The measure is {metric_label(MEASURE)}.",
            _table(cells),
            "**Do they follow a longer beginning more?**",
            _verdicts(verdicts[verdicts["claim"].str.contains(r"follow a longer prefix|^Obs\. 2")]),
            _large_enough(checked_fit(study, MEASURE), ["prefix_len"]),
        ]
    )


def _how_far(study: Study) -> Iterator[dict[str, str]]:
    """The response to the longest prefix of each group, as text."""
    table = responses_by_ratio(study.panel(MEASURE))
    for group, label in GROUP_LABELS.items():
        rows = table[table["group"] == group]
        if len(rows):
            row = rows.loc[rows["ratio"].idxmax()]
            yield {
                "texts": label,
                "exchanged": f"{100 * row['ratio']:.4g} %",
                "mean": _percent(row["mean"]),
                "95 % interval": f"{_percent(row['ci_low'])} to {_percent(row['ci_high'])}",
                "median": _percent(row["median"]),
                "pairs": f"{row['pairs']:,}",
            }


def load_answer(study: Study) -> str:
    """Does load disturb that (hypothesis 2.2)? The verdicts, what they can rest on, whether the study is large enough.

    Args:
        study: With robustness checks of the paper's metrics.

    Raises:
        StudyError: A fit or its robustness checks are missing.
    """
    fit = checked_fit(study, MEASURE)
    verdicts = claims(study)
    return "\n\n".join(
        [
            "**Does load disturb flocking?**",
            _verdicts(verdicts[verdicts["claim"].str.contains("2.2")]),
            "**How much does load vary within a pair?** Only this share of its variance can show what load does. The "
            "rest is between pairs, which differ in everything.",
            _table(pd.DataFrame(_shares_within(fit))),
            _large_enough(fit, list(LOADS)),
        ]
    )


def _shares_within(fit: Fit) -> Iterator[dict[str, str]]:
    """How much of each load's variance lies within pairs, as text."""
    for column in sorted(fit.columns, key=lambda column: -column.column):
        if column.column in (5, 6):
            shares = {load: f"{column.within[term]['share_within']:.2%}" for term, load in LOADS.items()}
            yield {"texts": GROUP_LABELS[column.group], **shares}


def _verdicts(verdicts: pd.DataFrame) -> str:
    """A point of a list per verdict: what it means, and the claims and measures that it was reached for."""
    return "\n".join(f"- {sentence}" for sentence in in_words(verdicts))


def _large_enough(fit: Fit, terms: Sequence[str]) -> str:
    """Whether the study would find the paper's effects, of those claims that claim one."""
    table = seen(fit)
    table = table[[row.term in terms and CLAIMED[row.column, row.term][1] != 0 for row in table.itertuples()]]
    said = []
    for found, words in ((True, "large enough"), (False, "too small")):
        names = [f"{EFFECT_OF[row.term]} in {row.texts}" for row in table.itertuples() if row.large_enough == found]
        said += [f"{words} for {_listed(names, 'and')}"] if names else []
    return (
        "**Is the study large enough?** That is, would it find an effect of the paper's size in four of five cases? "
        "The paper's t values say what size that is, as a partial correlation. By it, the study is "
        f"{', and '.join(said)}."
    )


def coefficients_answer(study: Study) -> str:
    """What the engine would do with the study's coefficients, and whether the study decides that.

    Args:
        study: With `coefficients.json`, and with robustness checks of the paper's metrics.

    Raises:
        StudyError: One of them is missing.
        InputError: The coefficients cannot be used.
    """
    path = study.folder / "coefficients.json"
    if not path.exists():
        raise StudyError(f"{study.folder} has no coefficients.json; run 'cladastats regress --study {study.folder}'")
    rule, file = read_coefficients(path), read_json(path, COEFFICIENTS_SCHEMA, StudyError)
    said = [
        f"The coefficients are those of natural text by {metric_label(file['metric'])}, response {file['response']}."
    ]
    for symbol, load, bits, factor in (
        ("lambda", "surprisal", rule.tau_surprisal_bits, rule.factor(True, False)),
        ("gamma", "entropy", rule.tau_entropy_bits, rule.factor(False, True)),
    ):
        low, high = file["ci"][symbol]
        effect = "as many neurons as without a rule" if factor == 1 else f"{'more' if factor < 1 else 'fewer'} neurons"
        decided = (
            "includes zero, so that the study does not decide the direction" if low <= 0 <= high else "excludes zero"
        )
        border = "" if bits is None else f" (above {bits:.1f} bits)"
        said.append(
            f"**High {load}**{border} multiplies the thresholds by {factor:.4g}, so that the engine computes {effect}. "
            f"The 95 % interval of {symbol}, {low:.3g} to {high:.3g}, {decided}."
        )
    verdicts = claims(study)
    own = verdicts[verdicts["claim"].str.contains("2.2, NLS") & (verdicts["metric"] == file["metric"])]
    return "\n\n".join([*said, *(["**Is that an effect of load?**", _verdicts(own)] if len(own) else [])])


def _table(cells: pd.DataFrame) -> str:
    align = ["left", *["right"] * (len(cells.columns) - 1)]
    return plain_table(cells, "markdown", align, index=False)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _listed(parts: Sequence[str], last: str) -> str:
    """Parts as an enumeration: "a, b and c"."""
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
