"""The full tables of the real studies: `figures/tables/*.md` to read, and CSV of the same numbers beside them.

Each function makes one page of one question, for every study that is kept. A table names the file that it comes from
and the command that makes it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from tabulate import tabulate

from cladastats.panel.claims import claims
from cladastats.panel.overview import responses_by_ratio
from cladastats.panel.power import plan
from cladastats.results.fit import CONFIRMATORY, LABELS, LOADS, PAPER_METRICS, RESPONSES
from cladastats.results.labels import metric_label, metric_title
from cladastats.results.robustness import with_interval
from cladastats.results.verdicts import VERDICTS
from cladastats.study import Study

if TYPE_CHECKING:
    from study import RealStudy

WIDEST = 120  # characters of a row: more are no longer one line on a screen
SHOWN = "cka"  # the metric of the responses and the checks
FAMILY = len(CONFIRMATORY) * len(PAPER_METRICS)  # of the tests that Holm's method corrects together
TITLES = {"smollm2-135m": "SmolLM2-135M", "gemma3-270m": "Gemma 3 270M"}
"""Models in the order of columns, by the name that opens them."""


@dataclass(frozen=True)
class Kept:
    """A finished study, and its row of the list."""

    row: RealStudy
    study: Study

    @property
    def path(self) -> str:
        """Of its folder, from the repository's root."""
        return f"figures/studies/{self.row.name}"

    @property
    def title(self) -> str:
        """What it is, for a heading."""
        return f"{self.row.name} ({self.row.role})"


def markdown(table: pd.DataFrame, name: str) -> str:
    """A table whose rows fit a screen.

    Args:
        table: Numbers are shown with three digits, what is missing as nothing.
        name: Of the table, for the message.

    Raises:
        ValueError: A row is too wide.
    """
    cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    text = tabulate(cells, list(table.columns), tablefmt="github", disable_numparse=True)
    if max(map(len, text.splitlines())) > WIDEST:
        raise ValueError(f"the table {name} is wider than {WIDEST} characters:\n{text}")
    return text


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or math.isnan(value) else f"{value:.3g}"


def on_models(said: Mapping[str, str]) -> str:
    """What is said of each model; once where it is the same, and that nothing is known where a study is missing."""
    words = {title: said.get(model, "not yet known") for model, title in TITLES.items()}
    if len(set(words.values())) == 1:
        return f"{next(iter(words.values()))} on both models"
    return " and ".join(f"{word} on {title}" for title, word in words.items())


def claims_command(kept: Kept) -> str:
    """What computes the claims of a study again."""
    return f"`cladastats regress --study {kept.path} --claims`"


def mean_responses(kept: Iterable[Kept], metric: str = SHOWN) -> pd.DataFrame:
    """Mean and median of every response at every prefix share.

    Returns:
        A row per study, response, group and ratio, with the columns of
        `cladastats.panel.overview.responses_by_ratio`.
    """
    found = [
        responses_by_ratio(one.study.panel(metric), RESPONSES[response]).assign(study=one.row.name, response=response)
        for one in kept
        for response in ("toward", "matched", "away")
    ]
    table = pd.concat(found) if found else pd.DataFrame(columns=["study", "response", "group", "ratio", "mean"])
    return table[["study", "response", *table.columns.drop(["study", "response"])]]


def effects(kept: Iterable[Kept]) -> pd.DataFrame:
    """The prefix and load effects of every fit of some studies.

    Returns:
        A row per study, response, metric, group, term and form: `line` is the regression with a line in the prefix
        (columns 1 and 2 for the prefix, 5 and 6 for the loads), `equal ratio` has an effect of every ratio in its
        place. `estimate` with its 95 % interval, not corrected.
    """
    rows = []
    for one in kept:
        for path in sorted((one.study.folder / "fits").glob("*.json"), key=lambda p: ("-" in p.stem, p.stem)):
            metric, _, response = path.stem.partition("-")
            fit = one.study.fit(metric, response or "toward")
            columns = {column.column: column for column in fit.columns}
            of = {"study": one.row.name, "response": fit.response, "metric": metric}
            for term, numbers in (("prefix_len", (2, 1)), *((load, (6, 5)) for load in LOADS)):
                for column in [columns[number] for number in numbers if number in columns]:
                    found = [("line", column.coef[term], column.ci[term])]
                    same = fit.robustness.get("ratio_effects", {}).get(column.group)
                    if same and term in same:
                        found.append(("equal ratio", same[term]["coef"], same[term]["ci"]))
                    for form, value, (low, high) in found:
                        this = {"group": column.group, "term": term, "form": form, "estimate": value}
                        rows.append(of | this | {"ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)


# -- Pages -----------------------------------------------------------------------------------------------------------


def write_tables(folder: Path, kept: Sequence[Kept], rows: Sequence[RealStudy]) -> None:
    """Write every page of the studies, and its CSV files.

    Args:
        folder: `figures/tables`.
        kept: The finished studies, in the order of the list.
        rows: The list, for what a pilot says of studies that are not finished.
    """
    measured = [one for one in kept if one.row.role != "pilot"]  # a pilot is for margin and power, and judges nothing
    for name, (text, tables) in {
        "claims": claims_page(measured),
        "responses": responses_page(measured),
        "measures": measures_page(measured),
        "checks": checks_page(measured),
        "designs": designs_page(kept, rows),
    }.items():
        write_page(folder / f"{name}.md", text)
        write_csv(folder, tables)


def write_page(path: Path, parts: Iterable[str]) -> None:
    """Write paragraphs, an empty line between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def stacked(tables: Mapping[str, pd.DataFrame], name: str = "study") -> pd.DataFrame:
    """Tables of one kind under each other, with a first column that says what each is of."""
    return pd.concat(tables, names=[name]).reset_index(name).reset_index(drop=True)


def write_csv(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables by name, six digits of each number."""
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")


Page = tuple[list[str], dict[str, pd.DataFrame]]
"""Paragraphs of a page, and the tables of its CSV files by name."""


def claims_page(kept: Sequence[Kept]) -> Page:
    """Every claim by every metric, with its verdict and what that rests on."""
    parts = [
        "# The claims, study by study",
        "Each row is a claim of the paper's section 2, judged by one regression or test of the response `toward`: 0 "
        f"the prefix changes nothing, 1 the hybrid acts like the text of its prefix. {units()} "
        "NLS is natural text, RTS random words. [claims.csv](claims.csv) has all of this with every column.",
        f"{verdict_rule()} The list below each table says what each row's verdict rests on, and where its numbers are.",
    ]
    tables = {}
    for one in kept:
        found = tables[one.row.name] = claims(one.study)
        parts += [f"## {one.title}", f"Recomputed by {claims_command(one)}."]
        for metric, rows in found.groupby("metric", sort=False):
            shown = pd.DataFrame(
                {
                    "": str(number),
                    "claim": row.claim,
                    "estimate": estimate(row.estimate, row.ci_low, row.ci_high),
                    "p": p_text(row.p),
                    "verdict": row.verdict,
                }
                for number, row in enumerate(rows.itertuples(), 1)
            )
            parts += [f"By {metric_title(str(metric))}:", markdown(shown, f"claims of {one.title}")]
            parts.append("\n".join(f"{i}. {_evidence(one, row)}" for i, row in enumerate(rows.itertuples(), 1)))
        # A note's command names the folder as it was opened here, by its whole path.
        opened, shown_as = str(one.study.folder), f"figures/studies/{one.row.name}"
        notes = [note.replace(opened, shown_as) for note in found.attrs["notes"]]
        parts.append("\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes))
    return parts, {"claims": stacked(tables)} if tables else {}


def units() -> str:
    """What a claim's estimate is in."""
    return (
        "Effects of the prefix are points of the response per 1,000 tokens, those of load points per log2 of the "
        "vocabulary. 'Every longer prefix' has the mean response to the longest less that to the shortest. Intervals "
        "are 95 %, not corrected. 2.1, 2.2 and Obs. 2 are places in the paper."
    )


def verdict_rule() -> str:
    """What each verdict means, and where the rule is."""
    meanings = "; ".join(f"*{name}*: {meaning}" for name, meaning in VERDICTS.items())
    return f"Verdicts ({meanings}) follow the rule in `cladastats/results/verdicts.py`."


def _evidence(one: Kept, row: Any) -> str:
    """What a verdict rests on, and where its numbers are."""
    said = [f"{row.why[0].upper()}{row.why[1:]}", f"test: {row.test}"]
    if row.agreeing:
        said.append(f"must agree: {row.agreeing}")
    if not pd.isna(row.smallest_margin):
        said.append(f"smallest margin that passes: {_cell(row.smallest_margin)}")
    return f"{'; '.join(said)} (`{one.path}/{row.file}`, {row.where})."


def percent(share: float) -> str:
    """A share as per cent, with two digits."""
    return f"{100 * share:.2g} %"


def shares_text(ratios: Sequence[float]) -> str:
    """From the shortest to the longest prefix."""
    return f"{100 * min(ratios):g} to {100 * max(ratios):g} %"


def estimate(value: float, low: float, high: float) -> str:
    """An estimate, with its interval where it has one."""
    return _cell(value) if low is None or math.isnan(low) else with_interval(value, (low, high))


def p_text(p: float) -> str:
    """A p-value with two digits; small ones as what they are below."""
    return "" if p is None or math.isnan(p) else f"{p:.2g}" if p >= 1e-4 else "<0.0001"


def responses_page(kept: Sequence[Kept]) -> Page:
    """Mean responses against the prefix's share."""
    parts = [
        "# How far the activations move, by the prefix's share",
        f"Each row is a group and a share of the text that is exchanged, by {metric_title(SHOWN)}. Responses are 0 "
        "where the prefix changes nothing. `toward` is 1 where the hybrid acts like the text of its prefix (B), "
        "`matched` where it acts like that text with the hybrid's own last word (B*); `away` is what is lost of "
        "the likeness to A. Means have 95 % intervals. Medians stand beside them, because a few pairs have very large "
        "responses; `beyond 1` is the share of pairs whose response is outside -1 to 1. "
        "[responses.csv](responses.csv) has the same numbers; `python benchmarks/study.py publish` recomputes both.",
    ]
    table = mean_responses(kept)
    for one in kept:
        of = table[table["study"] == one.row.name]
        parts += [f"## {one.title}", f"From `{one.path}/panel-{SHOWN}.parquet`."]
        for response, rows in of.groupby("response", sort=False):
            shown = pd.DataFrame(
                {
                    "group": row.group.upper(),
                    "share": f"{100 * row.ratio:g} %",
                    "pairs": str(row.pairs),
                    "mean": with_interval(row.mean, (row.ci_low, row.ci_high)),
                    "median": row.median,
                    "beyond 1": f"{100 * row.beyond:.3g} %",
                }
                for row in rows.itertuples()
            )
            parts += [f"`{response}`:", markdown(shown, f"responses of {one.title}")]
        parts += pictures(one, "prefix-all")
    return parts, {"responses": table}


def pictures(one: Kept, *names: str) -> Iterator[str]:
    """Those figures of a study that are there."""
    for name in names:
        if (one.study.folder / "figures" / f"{name}.png").is_file():
            yield f"![{name}](../studies/{one.row.name}/figures/{name}.png)"


def measures_page(kept: Sequence[Kept]) -> Page:
    """The same regressions of every metric and response."""
    parts = [
        "# Does the choice of the measure decide?",
        "Each row is a response and a metric; every cell is an estimate with its 95 % interval, not corrected. "
        "`toward` compares with B, `matched` with B*, which ends in A's word. The prefix is that of columns 1 and 2, "
        "in response points per 1,000 tokens. Loads are those of columns 5 and 6, as shares of log2 of the vocabulary "
        "(entropy is at most 1); `at equal ratio` puts an effect of every ratio in the place of the line. "
        "[measures.csv](measures.csv) has the same numbers.",
    ]
    table = effects(kept)
    for one in kept:
        rows = table[table["study"] == one.row.name]
        parts += [
            f"## {one.title}",
            f"From `{one.path}/fits/*.json`; `cladastats regress --study {one.path}`, with `--metric` and "
            "`--response`, fits one of them again.",
        ]
        for term in ("prefix_len", *LOADS):
            of = rows[rows["term"] == term]
            cells = of.assign(cell=[with_interval(r.estimate, (r.ci_low, r.ci_high)) for r in of.itertuples()])
            if term == "prefix_len":
                across, index = "group", ["response", "metric"]
            else:
                across, index = "form", ["response", "metric", "group"]
            shown = cells.assign(metric=cells["metric"].map(metric_label)).pivot_table(
                index=index, columns=across, values="cell", aggfunc="first", sort=False
            )
            shown = shown.rename(columns={"nls": "NLS", "rts": "RTS", "equal ratio": "at equal ratio"}).reset_index()
            if "group" in shown:
                shown["group"] = shown["group"].str.upper()
            parts += [f"{LABELS[term]}:", markdown(shown, f"measures of {one.title}")]
        parts += pictures(one, "coefficients", "layers")
    return parts, {"measures": table}


def checks_page(kept: Sequence[Kept]) -> Page:
    """Placebo hybrids, one token earlier, and the paper's 13 sentences."""
    parts = [
        "# Is it the prefix, and is it this token?",
        f"All by {metric_title(SHOWN)}, response `toward`. Slopes are response points per 1,000 tokens of prefix with "
        "95 % intervals. Placebo hybrids are compared with genuine ones of the same pairs: a prefix of another text, "
        "B's prefix with its words shuffled, and B's words in the middle or at the end. CSV: [placebo](placebo.csv), "
        "[one token earlier](earlier.csv), [the 13 sentences](case.csv).",
    ]
    tables: dict[str, dict[str, pd.DataFrame]] = {"placebo": {}, "earlier": {}, "case": {}}
    for one in kept:
        placebo = one.study.fit(SHOWN).robustness.get("placebo")
        if not placebo:
            continue
        parts += [f"## {one.title}", f"Placebo hybrids (`{one.path}/fits/{SHOWN}.json`; `cladastats placebo`):"]
        shown = tables["placebo"][one.row.name] = _placebo(placebo)
        cells = {name: [estimate(*values) for values in zip(*of, strict=True)] for name, of in _triples(shown)}
        cells = {"group": shown["group"], "hybrid": shown["hybrid"], **cells, "pairs": shown["pairs"]}
        parts.append(markdown(pd.DataFrame(cells), f"placebos of {one.title}"))
        for name, what in (
            ("earlier", "One token earlier (the paper's B.1; prefix alone)"),
            (f"case-{SHOWN}", "The 13 sentences (the paper's B.3)"),
        ):
            table = pd.read_csv(one.study.folder / f"{name}.csv")
            tables[name.partition("-")[0]][one.row.name] = table
            table = table.drop(columns="margin", errors="ignore")
            parts += [
                f"{what}, from `{one.path}/{name}.csv`; `python benchmarks/study.py run` makes it again:",
                markdown(table, f"{name} of {one.title}"),
            ]
    return parts, {name: stacked(found) for name, found in tables.items() if found}


def _placebo(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Slope and mean response of genuine and placebo hybrids of the same pairs."""
    return pd.DataFrame(
        {
            "group": group.upper(), "hybrid": kind, "slope": of["coef"], "slope_low": of["ci"][0],
            "slope_high": of["ci"][1], "mean": of["mean"], "mean_low": of["mean_ci"][0], "mean_high": of["mean_ci"][1],
            "pairs": of["n_pairs"],
        }
        for group, kinds in found.items()
        for kind, of in kinds.items()
    )  # fmt: skip


def _triples(table: pd.DataFrame) -> Iterator[tuple[str, list[pd.Series]]]:
    for name in ("slope", "mean"):
        yield name, [table[name], table[f"{name}_low"], table[f"{name}_high"]]


def designs_page(kept: Sequence[Kept], listed: Sequence[RealStudy]) -> Page:
    """What each study is, and what it could have seen."""
    parts = [
        "# What the studies are, and what they could see",
        "The first table has the texts of each study. `separator` is the share of its natural rows in which another "
        "document begins between prefix and target. The second has the smallest slope of the prefix, in response "
        "points per 1,000 tokens, that a test at 5 % finds in four of five "
        f"such studies ({metric_title(SHOWN)}, columns 1 and 2, not corrected), and the equivalence margin, which "
        "`study.json` holds since before the study was made. A study of n times the pairs sees a slope smaller by the "
        "square root of n. [designs.csv](designs.csv) has both; `python benchmarks/study.py publish` recomputes them "
        "from `study.json`, the panels and the fits of each study.",
    ]
    rows = [_design(one) for one in kept]
    table = pd.DataFrame(rows)
    for names in (
        ["study", "model", "windows", "length", "pairs", "ratios", "separator"],
        ["study", "smallest_slope_nls", "smallest_slope_rts", "margin"],
    ):
        shown = table[names].rename(columns=lambda name: name.replace("_", " "))
        parts.append(markdown(shown, "designs"))
    parts += ["Sources of texts and of margins:"]
    parts.append("\n".join(f"- {row['study']}: `{row['source']}`. Margin: {row['margin_source']}." for row in rows))
    powers = {one.row.name: _power(one, listed) for one in kept if one.row.role == "pilot"}
    if powers:
        parts += [
            "## What the pilots say that the studies see",
            "Each row is a test and a number of pairs. `smallest effect` is found in four of five such studies by a "
            "test at 5 %, in the coefficient's unit, and `as r` is the same as a partial correlation within pairs. "
            "The paper's effects are known as r, from its t values. `pairs needed` see that r, in parentheses at the "
            "strictest level of Holm's correction. Nothing of a pilot counts but its errors and variances. "
            "[power.csv](power.csv) has the same numbers.",
        ]
    for name, power in powers.items():
        shown = pd.DataFrame(
            {
                "test": f"{row.group.upper()}, {LABELS[str(row.term)]}",
                "pairs": str(row.pairs),
                "smallest effect": row.smallest_effect,
                "as r": row.smallest_r,
                "paper's r": row.paper_r,
                "seen": "yes" if row.sees_r else "no",
                "pairs needed": f"{row.pairs_for_r:,.0f} ({row.pairs_for_r_corrected:,.0f})",
            }
            for row in power.itertuples()
        )
        parts += [f"{name} (`figures/studies/{name}/fits/{SHOWN}.json`):", markdown(shown, f"power of {name}")]
    return parts, {"designs": table} | ({"power": stacked(powers)} if powers else {})


def _power(pilot: Kept, listed: Sequence[RealStudy]) -> pd.DataFrame:
    """What the pairs of the pilot and of its model's other studies of that length and form see."""
    alike = ("model", "length", "windows")
    same = [row for row in listed if all(getattr(row, name) == getattr(pilot.row, name) for name in alike)]
    return plan(pilot.study.fit(SHOWN), sorted({row.pairs for row in same}), FAMILY)


def _design(one: Kept) -> dict[str, Any]:
    config, smallest = one.study.config, smallest_slopes(one.study)
    return {
        "study": one.row.name,
        "role": one.row.role,
        "model": config.model,
        "windows": config.windows,
        "length": str(config.length),
        "pairs": str(config.pairs),
        "ratios": ", ".join(f"{ratio:g}" for ratio in config.ratios),
        "separator": separator_share(one.study),
        "smallest_slope_nls": smallest.get("nls"),
        "smallest_slope_rts": smallest.get("rts"),
        "margin": config.equivalence_margin,
        "margin_source": getattr(config, "equivalence_margin_source", "") or "not recorded",
        "source": config.source,
        "source_sha256": config.source_sha256,
    }


def smallest_slopes(study: Study) -> dict[str, float]:
    """The smallest slope of the prefix that a test at 5 % finds in four of five such studies, by group."""
    power = study.fit(SHOWN).robustness["power"]
    return {row["group"]: row["smallest_effect"] for row in power if row["column"] in (1, 2)}


def separator_share(study: Study) -> str:
    """In how many natural rows a document begins between prefix and target."""
    panel = study.panel(SHOWN)
    return f"{100 * panel.loc[panel['group'] == 'nls', 'separator_between'].mean():.3g} %"
