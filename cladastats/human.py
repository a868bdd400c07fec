"""`cladastats human`: does effort predict reading times and brain responses beyond surprisal and entropy?

Nested models of a measure, each word a row, a random intercept per text (Gaussian, maximum likelihood):

    baseline   length, frequency and position of the word, length and frequency of the two words before, and what the
               measure needs (`cladastats.reading`)
    surprisal  + surprisal of the word and of the two before
    entropy    + entropy before the word and before the two before
    effort     + effort of the word: the confirmatory step
    spillover  + effort of the two words before: exploratory

Models are fitted on all texts but those of one fold and judged by the log density of the words of that fold, as
surprisal studies do (Goodkind and Bicknell 2018; Wilcox et al. 2023). The gain per word over the step before is
bootstrapped over texts, or over sentences where there are fewer than twenty texts, and tested by flipping its sign in
the same units. Sentences of one text share the fit that judges them, so that where they are the units (the tables say
so) intervals are rather too short than too long, and p-values too small. Everything is fixed by the module's constants,
seeds included.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m: the command line first, so that --help does not wait for the libraries
    from cladastats.cli import main as cli

    raise SystemExit(cli(["human", *sys.argv[1:]]))

import argparse
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from tabulate import tabulate
from tqdm import tqdm

from clada.errors import InputError, StudyError
from clada.jsonfile import check_checksum, read_json, with_checksum, write_json
from clada.models import model_revision
from cladastats.reading import LEAST_TEXTS, LEAST_WORDS, SOURCES, Corpus, Measure, open_corpus
from cladastats.study import is_current, read_table, write_table
from cladastats.words import PUNCTUATION, Text, effort_rule, measure_texts
from cladastats.words import SCHEMA as WORDS_SCHEMA

SCHEMA = "cladastats/human/1"
STEPS = ("surprisal", "entropy", "effort", "spillover")
PREDICTORS = {"surprisal": "surprisal_bits", "entropy": "entropy_bits", "effort": "effort"}
CONFIRMATORY = STEPS[:3]
FOLDS = 10
FEWEST_TEXTS = 20  # units of the bootstrap and of the permutation; below, sentences
RESAMPLES = 10_000
SHUFFLES = 199
SEED = 0
BINS = 10  # of surprisal, to compare words of equal surprisal

COLUMNS = (
    "corpus", "measure", "predictor", "words", "units", "units_are", "delta_ll", "ci_low", "ci_high", "p", "p_holm",
    "effect", "effect_low", "effect_high", "unit",
)  # fmt: skip


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        CladaError: a mistake of the user.
    """
    names = list(dict.fromkeys(args.corpus or SOURCES))
    corpora = [open_corpus(name, args.data) for name in names]  # all are checked before the first is computed
    out = Path(args.out) / Path(args.model).name
    for corpus in corpora:
        human(corpus, args.model, out)
    table = effect_table(out, names)
    print(show(table, args.format))
    if args.format == "text":
        print("\n" + "\n".join(verdicts(table)))


def human(corpus: Corpus, model: str, out: Path) -> dict[str, Any]:
    """Analyse a corpus on a model, or read what was found.

    Args:
        corpus: the corpus.
        model: a model's name, one with a plan.
        out: where words (`words-NAME.parquet`) and results (`NAME.json`) are kept, of this model.

    Returns:
        the content of `NAME.json`: `measures`, each with its `rows` (one per step), and what was asked beside.

    Raises:
        CladaError: the model cannot be opened or has no plan.
    """
    words = measured_words(corpus.texts, model, out / f"words-{corpus.name}.parquet")
    digest = hashlib.sha256(pd.util.hash_pandas_object(words, index=False).to_numpy().tobytes())
    digest.update(pd.util.hash_pandas_object(corpus.table, index=False).to_numpy().tobytes())
    digest.update(f"{SCHEMA} {STEPS} {FOLDS} {RESAMPLES} {SHUFFLES} {SEED} {BINS} {corpus.measures}".encode())
    path = out / f"{corpus.name}.json"
    if path.is_file():
        found = read_result(path)
        if found["inputs"] == digest.hexdigest():
            return found
    rows = prepared(corpus, words)
    measures = []
    fixed = corpus.source.measures[: corpus.source.confirmatory]
    for measure in tqdm(corpus.measures, desc=corpus.name, file=sys.stderr, leave=False):
        measures.append(
            {
                "measure": measure.column,
                "confirmatory": measure in fixed,
                "sign": measure.sign,
                **analyse(rows, measure),
            }
        )
    result = {
        "schema": SCHEMA,
        "corpus": corpus.name,
        "model": model,
        "revision": model_revision(model),
        "inputs": digest.hexdigest(),
        "texts": len(corpus.texts),
        "dropped": corpus.dropped,
        "dropped_because": corpus.source.dropped,
        "measures": measures,
    }
    result = with_checksum(result)
    write_json(path, result)
    return result


def measured_words(texts: Sequence[Text], model: str, path: Path) -> pd.DataFrame:
    """The table of words of a corpus' texts, kept in a file."""
    thresholds, rule = effort_rule(model)
    facts = (WORDS_SCHEMA, model_revision(model), rule.rule(), thresholds.tolist())
    inputs = hashlib.sha256(repr((facts, [(t.text_id, t.words) for t in texts])).encode()).hexdigest()
    if is_current(path, inputs):
        with suppress(Exception):  # of a damaged file there are errors of any kind; it is made again
            return read_table(path)
    write_table(path, measure_texts(model, texts, thresholds, rule), inputs)
    return read_table(path)


# -- rows ---------------------------------------------------------------------------------------------------------

LAGGED = ("length", "frequency_zipf", *PREDICTORS.values())
CONTROLS = ("tokens", "hidden_norm", "punctuation", "sentence_final")


def prepared(corpus: Corpus, words: pd.DataFrame) -> pd.DataFrame:
    """One row per measured word: its predictors, those of the two words before (`_1`, `_2`), its class.

    Rows whose two words before are not in the text are left out.
    """
    words = words.copy()
    words["punctuation"] = [float(word != word.strip(PUNCTUATION)) for word in words["word"]]
    words["word_class"] = word_classes(words)
    by_text = words.groupby("text_id", sort=False)
    for name in LAGGED:
        for lag in (1, 2):
            words[f"{name}_{lag}"] = by_text[name].shift(lag)
    rows = corpus.table.drop(columns=["word"]).merge(words, on=["text_id", "word_index"], validate="one_to_one")
    rows["sentence_final"] = rows["sentence_final"].astype(float)
    return rows[rows["length_2"].notna()].reset_index(drop=True)


CLASSES = {"NN": "noun", "NP": "noun", "VV": "verb", "AJ": "adjective", "AV": "adverb", "CR": "number"}


def word_classes(words: pd.DataFrame) -> list[str]:
    """Noun, verb, adjective, adverb, number or function word, by HanTa's tags of each text."""
    from HanTa import HanoverTagger

    tagger = HanoverTagger.HanoverTagger("morphmodel_en.pgz")
    found: list[str] = []
    for _, text in words.groupby("text_id", sort=False):
        bare = [word.strip(PUNCTUATION) or word for word in text["word"]]
        found += [CLASSES.get(tag[:2], "function") for _, _, tag in tagger.tag_sent(bare, taglevel=1)]
    return found


def designs(measure: Measure) -> dict[str, list[str]]:
    """The columns of every nested model, each holding those of the one before."""
    lags = ("", "_1", "_2")
    columns = ["position", *measure.covariates, *(f"{name}{lag}" for name in LAGGED[:2] for lag in lags)]
    found = {"baseline": columns}
    for step in STEPS:
        if step == "effort":
            new = ["effort"]
        elif step == "spillover":
            new = ["effort_1", "effort_2"]
        else:
            new = [f"{PREDICTORS[step]}{lag}" for lag in lags]
        columns = [*columns, *new]
        found[step] = columns
    return found


# -- the model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A linear model with a random intercept per group, by maximum likelihood.

    Attributes:
        beta: [k + 1], the constant first.
        part: [n, k + 1], the design as it was solved.
        residual: variance within groups.
        between: variance of the intercepts.
    """

    beta: np.ndarray
    part: np.ndarray
    residual: float
    between: float

    @property
    def covariance(self) -> np.ndarray:
        """Of beta, [k + 1, k + 1]."""
        return np.asarray(self.residual * np.linalg.inv(self.part.T @ self.part))

    def log_density(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Log density (nats) of each word of groups that the fit has not seen, [n]."""
        spread = math.sqrt(self.residual + self.between)
        return np.asarray(stats.norm.logpdf(y, self.beta[0] + x @ self.beta[1:], spread))


def fit_random_intercept(y: np.ndarray, x: np.ndarray, groups: np.ndarray, ratio: float | None = None) -> Fit:
    """Fit y = const + x beta + intercept of its group + error.

    Given the ratio of the two variances, generalised least squares is least squares on values from which a share of
    their group's mean is taken; what is searched is that ratio alone.

    Args:
        y: [n].
        x: [n, k], of full rank with a constant.
        groups: [n], numbers from 0 on.
        ratio: variance between over variance within groups; None: the most likely one.
    """
    design = np.column_stack([np.ones(len(y)), x])
    sizes = np.bincount(groups).astype(float)
    both = np.column_stack([design, y])
    means = np.stack([np.bincount(groups, column, len(sizes)) for column in both.T], 1) / np.maximum(sizes, 1)[:, None]

    def solve(r: float) -> tuple[float, np.ndarray, np.ndarray, float]:
        taken = (1 - 1 / np.sqrt(1 + r * sizes))[groups, None] * means[groups]
        part = both - taken
        beta, *_ = np.linalg.lstsq(part[:, :-1], part[:, -1], rcond=None)
        variance = float(((part[:, -1] - part[:, :-1] @ beta) ** 2).mean())
        return len(y) * math.log(variance) + float(np.log1p(r * sizes).sum()), beta, part[:, :-1], variance

    if ratio is None:
        found = optimize.minimize_scalar(lambda log_r: solve(math.exp(log_r))[0], bounds=(-12, 6), method="bounded")
        ratio = math.exp(found.x) if found.fun < solve(0.0)[0] else 0.0
    _, beta, part, variance = solve(ratio)
    return Fit(beta, part, variance, ratio * variance)


def folds_of(groups: np.ndarray) -> np.ndarray:
    """The fold of every row: whole groups, at most `FOLDS` folds of about the same size."""
    sizes = np.bincount(groups)
    filled = np.zeros(min(FOLDS, len(sizes)))
    place = np.zeros(len(sizes), int)
    for group in np.argsort(-sizes, kind="stable"):
        place[group] = int(filled.argmin())
        filled[place[group]] += sizes[group]
    return place[groups]


def held_out(y: np.ndarray, x: np.ndarray, groups: np.ndarray, ratios: Sequence[float] | None = None) -> np.ndarray:
    """Log density of every row under the fit of all folds but its own, [n].

    Args:
        y: [n].
        x: [n, k].
        groups: [n], numbers from 0 on.
        ratios: of variances in each fold; None: the most likely ones.
    """
    found = np.empty(len(y))
    for fold, (test, train, varied) in enumerate(_splits(x, groups)):
        fit = fit_random_intercept(y[~test], x[~test][:, varied], train, None if ratios is None else ratios[fold])
        found[test] = fit.log_density(y[test], x[test][:, varied])
    return found


def _splits(x: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each fold: the rows held out, the groups of the others, and the columns that differ among these."""
    folds = folds_of(groups)
    for fold in range(folds.max() + 1):
        test = folds == fold
        yield test, np.unique(groups[~test], return_inverse=True)[1], np.ptp(x[~test], axis=0) > 0


# -- the questions ------------------------------------------------------------------------------------------------


def analyse(rows: pd.DataFrame, measure: Measure) -> dict[str, Any]:
    """Everything that is asked of one measure.

    Args:
        rows: of `prepared`.
        measure: the dependent variable.

    Returns:
        `rows`: a dictionary per step with delta_ll (nats per word), ci_low, ci_high, p, effect per standard deviation
        with its interval; `effort`: with controls, at matched surprisal, placebo, other forms, collinearity;
        `layers`: delta_ll of each layer's own effort in the place of all; `reliability`, `r2`.

    Raises:
        InputError: too few words or texts, or a column that does not vary.
    """
    steps = designs(measure)
    used = rows[rows[[measure.column, *steps["spillover"]]].notna().all(axis=1)].reset_index(drop=True)
    if len(used) < LEAST_WORDS or used["item"].nunique() < LEAST_TEXTS:
        raise InputError(
            f"{measure.column} has {len(used)} words with two words before them, in {used['item'].nunique()} texts; "
            f"{LEAST_WORDS} words and {LEAST_TEXTS} texts are needed"
        )
    constant = [name for name in (measure.column, *steps["spillover"]) if used[name].nunique() < 2]
    if constant:
        raise InputError(
            f"{measure.column} cannot be explained by what is the same for every word: {', '.join(constant)}; mend the "
            "corpus' table, or give the model a plan that leaves neurons out (effort)"
        )
    y = used[measure.column].to_numpy(float)
    items = np.unique(used["item"], return_inverse=True)[1]
    few = items.max() + 1 < FEWEST_TEXTS
    units = np.unique(used["block"], return_inverse=True)[1] if few else items

    def density(columns: Sequence[str], frame: pd.DataFrame = used) -> np.ndarray:
        return held_out(y, standardised(frame, columns), items)

    found: dict[str, Any] = {
        "unit": measure.unit,
        "words": len(used),
        "items": int(items.max() + 1),
        "units": int(units.max() + 1),
        "units_are": "sentences" if few else "texts",
        "reliability": reliability(used, measure),
    }
    before, table = density(steps["baseline"]), []
    for step in STEPS:
        after = density(steps[step])
        row = {"predictor": step, **gain(after - before, units)}
        if step in PREDICTORS:
            row |= effect(y, used, steps[step], PREDICTORS[step], items)
        table.append(row)
        before = after
    found["rows"] = table
    fit = fit_random_intercept(y, standardised(used, steps["effort"]), items)
    fitted = fit.beta[0] + standardised(used, steps["effort"]) @ fit.beta[1:]
    found["r2"] = float(np.corrcoef(fitted, y)[0, 1] ** 2)
    found["effort"] = _about_effort(used, y, items, units, steps)
    base = density(steps["entropy"])
    layers = sorted(name for name in used if name.startswith("effort_") and len(name) == len("effort_00"))
    found["layers"] = [
        gain(density([*steps["entropy"], layer]) - base, units) | {"layer": i} for i, layer in enumerate(layers)
    ]
    return found


def _about_effort(
    used: pd.DataFrame, y: np.ndarray, items: np.ndarray, units: np.ndarray, steps: dict[str, list[str]]
) -> dict[str, Any]:
    """What could explain effort away, and what its other forms give."""
    known = steps["entropy"]

    def added(columns: list[str], new: str, frame: pd.DataFrame = used) -> dict[str, float]:
        with_it = held_out(y, standardised(frame, [*columns, new]), items)
        return gain(with_it - held_out(y, standardised(frame, columns), items), units)

    classes = pd.get_dummies(used["word_class"], prefix="class", dtype=float).iloc[:, 1:]
    bins = pd.qcut(used["surprisal_bits"], BINS, labels=False, duplicates="drop")
    bins = pd.get_dummies(bins, prefix="bin", dtype=float).iloc[:, 1:]
    wide = pd.concat([used.assign(log_magnitude=np.log(used["magnitude"])), classes, bins], axis=1)
    varied = [name for name in (*CONTROLS, *classes) if wide[name].nunique() > 1]
    x = standardised(used, steps["effort"])
    others = np.column_stack([np.ones(len(x)), x[:, :-1]])
    unexplained = x[:, -1] - others @ np.linalg.lstsq(others, x[:, -1], rcond=None)[0]
    return {
        "with_controls": added([*known, *varied], "effort", wide),
        "controls": varied,
        "matched_surprisal": added([*known, *bins], "effort", wide),
        "magnitude": added(known, "log_magnitude", wide),
        "with_load_rule": added(steps["effort"], "effort_load"),
        "placebo": placebo(used, y, items, steps),
        "correlation_surprisal": float(used["effort"].corr(used["surprisal_bits"])),
        "correlation_entropy": float(used["effort"].corr(used["entropy_bits"])),
        "vif": float((x[:, -1] ** 2).sum() / (unexplained**2).sum()),
        "mean": float(used["effort"].mean()),
        "sd": float(used["effort"].std()),
    }


def standardised(frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns in standard deviations around their mean, [n, k]."""
    values = frame[list(columns)].to_numpy(float)
    spread = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(spread > 0, spread, 1.0))


def gain(differences: np.ndarray, units: np.ndarray) -> dict[str, float]:
    """Mean gain per word with its bootstrap interval over units, and the p-value of a sign-flip test for a gain.

    Args:
        differences: [n], of log densities.
        units: [n], numbers from 0 on.
    """
    sums, sizes = np.bincount(units, differences), np.bincount(units)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    signs = rng.choice((-1.0, 1.0), (RESAMPLES, len(sums)))
    beyond = int((signs @ sums >= sums.sum()).sum())
    return {
        "delta_ll": float(differences.mean()),
        "ci_low": float(low),
        "ci_high": float(high),
        "p": (1 + beyond) / (1 + RESAMPLES),
    }


def effect(y: np.ndarray, used: pd.DataFrame, columns: Sequence[str], name: str, items: np.ndarray) -> dict[str, float]:
    """Coefficient of a predictor of the word itself, per standard deviation, with its 95 % interval."""
    fit = fit_random_intercept(y, standardised(used, columns), items)
    place = 1 + list(columns).index(name)
    error = math.sqrt(fit.covariance[place, place]) * stats.norm.ppf(0.975)
    value = float(fit.beta[place])
    return {"effect": value, "effect_low": value - error, "effect_high": value + error, "sd": float(used[name].std())}


def placebo(used: pd.DataFrame, y: np.ndarray, items: np.ndarray, steps: dict[str, list[str]]) -> dict[str, float]:
    """Effort exchanged among words of the same class: what gain comes without the right words?

    The ratios of variances stay those of the fits with the real effort.
    """
    x = standardised(used, steps["effort"])
    fits = [fit_random_intercept(y[~test], x[~test][:, varied], train) for test, train, varied in _splits(x, items)]
    ratios = [fit.between / fit.residual for fit in fits]
    base = held_out(y, x[:, :-1], items, ratios).mean()
    real = held_out(y, x, items, ratios).mean() - base
    rng = np.random.default_rng(SEED)
    members = [np.flatnonzero(used["word_class"] == name) for name in sorted(set(used["word_class"]))]
    gains = []
    for _ in range(SHUFFLES):
        shuffled = x.copy()
        for rows in members:
            shuffled[rows, -1] = x[rng.permutation(rows), -1]
        gains.append(held_out(y, shuffled, items, ratios).mean() - base)
    beyond = int((np.array(gains) >= real).sum())
    return {"delta_ll": float(np.mean(gains)), "highest": float(np.max(gains)), "p": (1 + beyond) / (1 + SHUFFLES)}


def reliability(used: pd.DataFrame, measure: Measure) -> float | None:
    """Share of a measure's variance over words that is not noise of its mean over participants; None: not known."""
    if measure.spread is None:
        return measure.reliability
    deviation, number = (used[name].to_numpy(float) for name in measure.spread)
    known = np.isfinite(deviation) & (number > 0)
    if not known.any():
        return measure.reliability
    noise = float((deviation[known] ** 2 / number[known]).mean())
    return 1 - noise / float(used[measure.column].var())


# -- results ------------------------------------------------------------------------------------------------------


def read_result(path: Path) -> dict[str, Any]:
    """What was found on a corpus.

    Raises:
        StudyError: the file is missing or damaged.
    """
    found = read_json(path, SCHEMA, StudyError)
    try:
        check_checksum(found)
    except ValueError as problem:
        raise StudyError(f"{path} is damaged ({problem}); delete it and run 'cladastats human' again") from None
    return found


def read_results(folder: Path, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What was found on a model, corpus by corpus.

    Args:
        folder: of the model.
        names: of the corpora; None: those that are there.

    Raises:
        StudyError: one is missing or damaged.
    """
    names = [name for name in SOURCES if (folder / f"{name}.json").is_file()] if names is None else names
    return [read_result(folder / f"{name}.json") for name in names]


def effect_table(folder: Path, names: Sequence[str] | None = None) -> pd.DataFrame:
    """The confirmatory table: corpora x measures x (surprisal, entropy, effort), columns `COLUMNS`.

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
        if row["predictor"] in CONFIRMATORY
    ]
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("predictor")["p"].transform(lambda p: multipletests(p, method="holm")[1])
    return table[list(COLUMNS)]


def show(table: pd.DataFrame, fmt: str) -> str:
    """The confirmatory table as `text`, `markdown`, `csv` or `json`."""
    if fmt == "json":
        return str(table.to_json(orient="records"))
    if fmt == "csv":
        return str(table.to_csv(index=False)).rstrip()
    rows = [
        (
            row.corpus,
            row.measure,
            row.predictor,
            f"{row.words:,}",
            f"{row.units} {row.units_are}",
            f"{1000 * row.delta_ll:+.2f} [{1000 * row.ci_low:+.2f}, {1000 * row.ci_high:+.2f}]",
            f"{row.p_holm:.4f}",
            f"{row.effect:+.3g} [{row.effect_low:+.3g}, {row.effect_high:+.3g}] {row.unit}",
        )
        for row in table.itertuples()
    ]
    heads = (
        "corpus",
        "measure",
        "predictor",
        "words",
        "tested over",
        "gain, nats/1000 words",
        "p (Holm)",
        "effect per SD",
    )
    return tabulate(rows, heads, tablefmt="github" if fmt == "markdown" else "simple", disable_numparse=True)


def verdicts(table: pd.DataFrame) -> list[str]:
    """What the confirmatory table says of effort, in sentences."""
    effort = table[table["predictor"] == "effort"]
    found = effort[effort["p_holm"] < 0.05]
    names = ", ".join(
        f"{row.corpus} {row.measure} ({'more' if row.effect > 0 else 'less'} with more effort)"
        for row in found.itertuples()
    )
    sentences = [
        f"Effort beyond surprisal and entropy: {len(found)} of {len(effort)} measures are predicted better with it "
        f"(Holm-corrected p < 0.05): {names or 'none'}."
    ]
    for component, sign in (("N400_uV", -1), ("P600_uV", 1)):  # the deflections that effort would enlarge
        for row in effort[effort["measure"] == component].itertuples():
            clear = row.p_holm < 0.05
            verdict = (
                "is not supported" if not clear else "is supported" if sign * row.effect > 0 else "is contradicted"
            )
            sentences.append(
                f"A link of effort to the {component.removesuffix('_uV')} {verdict}: gain {1000 * row.delta_ll:+.2f} "
                f"thousandths of a nat per word [{1000 * row.ci_low:+.2f}, {1000 * row.ci_high:+.2f}], "
                f"{row.effect:+.3f} microvolt per standard deviation [{row.effect_low:+.3f}, {row.effect_high:+.3f}]."
            )
    return sentences
