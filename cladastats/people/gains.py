"""Does effort predict reading times and brain responses beyond surprisal and entropy?

Nested models of a measure, each word a row, a random intercept per text (Gaussian, maximum likelihood):

    baseline   length, frequency and position of the word, length and frequency of the two words before, and what the
               measure needs (`cladastats.people.corpora`)
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

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from clada.errors import InputError
from cladastats.language import PUNCTUATION, language
from cladastats.people.corpora import LEAST_TEXTS, LEAST_WORDS, Measure, ReadingCorpus

STEPS = ("surprisal", "entropy", "effort", "spillover")

PREDICTORS = {"surprisal": "surprisal_bits", "entropy": "entropy_bits", "effort": "effort"}

FOLDS = 10

FEWEST_TEXTS = 20  # units of the bootstrap and of the permutation; below, sentences

RESAMPLES = 10_000

BATCH = 1000  # resamples in memory at once

SHUFFLES = 199

SEED = 0

BINS = 10  # of surprisal, to compare words of equal surprisal

LAGGED = ("length", "frequency_zipf", *PREDICTORS.values())

CONTROLS = ("tokens", "hidden_norm", "punctuation", "sentence_final")


def prepared(corpus: ReadingCorpus, words: pd.DataFrame) -> pd.DataFrame:
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
    """Noun, verb, adjective, adverb, number or function word, by the tags of each text."""
    tags_of = language().tagger()
    found: list[str] = []
    for _, text in words.groupby("text_id", sort=False):
        bare = [word.strip(PUNCTUATION) or word for word in text["word"]]
        found += [CLASSES.get(tag[:2], "function") for tag in tags_of(bare)]
    return found


def designs(measure: Measure) -> dict[str, list[str]]:
    """The columns of every nested model, each holding those of the one before."""
    lags = ("", "_1", "_2")
    columns = ["position", *measure.covariates, *(f"{name}{lag}" for name in LAGGED[:2] for lag in lags)]
    steps = {"baseline": columns}
    for step in STEPS:
        if step == "effort":
            new = ["effort"]
        elif step == "spillover":
            new = ["effort_1", "effort_2"]
        else:
            new = [f"{PREDICTORS[step]}{lag}" for lag in lags]
        columns = [*columns, *new]
        steps[step] = columns
    return steps


@dataclass(frozen=True)
class RandomInterceptFit:
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


def fit_random_intercept(
    y: np.ndarray, x: np.ndarray, groups: np.ndarray, ratio: float | None = None
) -> RandomInterceptFit:
    """RandomInterceptFit y = const + x beta + intercept of its group + error.

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
        best = optimize.minimize_scalar(lambda log_r: solve(math.exp(log_r))[0], bounds=(-12, 6), method="bounded")
        ratio = math.exp(best.x) if best.fun < solve(0.0)[0] else 0.0
    _, beta, part, variance = solve(ratio)
    return RandomInterceptFit(beta, part, variance, ratio * variance)


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
    density = np.empty(len(y))
    for fold, (test, train, varied) in enumerate(_splits(x, groups)):
        fit = fit_random_intercept(y[~test], x[~test][:, varied], train, None if ratios is None else ratios[fold])
        density[test] = fit.log_density(y[test], x[test][:, varied])
    return density


def _splits(x: np.ndarray, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each fold: the rows held out, the groups of the others, and the columns that differ among these."""
    folds = folds_of(groups)
    for fold in range(folds.max() + 1):
        test = folds == fold
        yield test, np.unique(groups[~test], return_inverse=True)[1], np.ptp(x[~test], axis=0) > 0


def analyse(rows: pd.DataFrame, measure: Measure) -> dict[str, Any]:
    """The gains of every step on one measure, and what could explain that of effort away.

    Args:
        rows: Of `prepared`.
        measure: The dependent variable.

    Returns:
        `rows`: a dictionary per step with delta_ll (nats per word), ci_low, ci_high, p, effect per standard deviation
        with its interval; `effort`: with controls, at matched surprisal, placebo, other forms, collinearity;
        `layers`: delta_ll of each layer's effort in the place of all; `reliability`, `r2`.

    Raises:
        InputError: Too few words or texts, or a column that does not vary.
    """
    sample = Sample.of(rows, measure)
    steps = sample.steps
    fit = fit_random_intercept(sample.y, standardised(sample.words, steps["effort"]), sample.items)
    fitted = fit.beta[0] + standardised(sample.words, steps["effort"]) @ fit.beta[1:]
    return {
        "unit": measure.unit,
        "words": len(sample.words),
        "items": int(sample.items.max() + 1),
        "units": int(sample.units.max() + 1),
        "units_are": "sentences" if sample.few_texts else "texts",
        "reliability": reliability(sample.words, measure),
        "rows": _steps(sample),
        "r2": float(np.corrcoef(fitted, sample.y)[0, 1] ** 2),
        "effort": _about_effort(sample),
        "layers": _layers(sample),
    }


@dataclass(frozen=True)
class Sample:
    """The words that one measure is analysed on.

    Attributes:
        words: A row per word that has the measure and every predictor.
        steps: The columns of every nested model, of `designs`.
        y: [n], the measure.
        items: [n], numbers of the texts, from 0 on: random intercepts and folds are of these.
        units: [n], numbers of what is resampled: texts, or sentences where there are few texts.
        few_texts: Whether `units` are sentences.
    """

    words: pd.DataFrame
    steps: dict[str, list[str]]
    y: np.ndarray
    items: np.ndarray
    units: np.ndarray
    few_texts: bool

    @classmethod
    def of(cls, rows: pd.DataFrame, measure: Measure) -> Sample:
        """The complete rows of a measure.

        Raises:
            InputError: Too few words or texts, or a column that does not vary.
        """
        steps = designs(measure)
        words = rows[rows[[measure.column, *steps["spillover"]]].notna().all(axis=1)].reset_index(drop=True)
        if len(words) < LEAST_WORDS or words["item"].nunique() < LEAST_TEXTS:
            raise InputError(
                f"{measure.column} has {len(words)} words with two words before them, in {words['item'].nunique()} "
                f"texts; {LEAST_WORDS} words and {LEAST_TEXTS} texts are needed"
            )
        constant = [name for name in (measure.column, *steps["spillover"]) if words[name].nunique() < 2]
        if constant:
            raise InputError(
                f"{measure.column} cannot be explained by what is the same for every word: {', '.join(constant)}; mend "
                "the corpus' table, or give the model a plan that leaves neurons out (effort)"
            )
        items = np.unique(words["item"], return_inverse=True)[1]
        few = bool(items.max() + 1 < FEWEST_TEXTS)
        units = np.unique(words["block"], return_inverse=True)[1] if few else items
        return cls(words, steps, words[measure.column].to_numpy(float), items, units, few)

    def held_out(self, columns: Sequence[str], words: pd.DataFrame | None = None) -> np.ndarray:
        """Log density of every word under fits of these columns that have not seen its text, [n].

        Args:
            columns: Of the words.
            words: The words with further columns; None: as they are.
        """
        return held_out(self.y, standardised(self.words if words is None else words, columns), self.items)


def _steps(sample: Sample) -> list[dict[str, Any]]:
    """The gain of every step over the one before, and the coefficient of what it adds for the word itself."""
    before, rows = sample.held_out(sample.steps["baseline"]), []
    for step in STEPS:
        after = sample.held_out(sample.steps[step])
        row = {"predictor": step, **gain(after - before, sample.units)}
        if step in PREDICTORS:
            row |= effect(sample.y, sample.words, sample.steps[step], PREDICTORS[step], sample.items)
        rows.append(row)
        before = after
    return rows


def _layers(sample: Sample) -> list[dict[str, float]]:
    """The gain of each layer's effort alone over surprisal and entropy."""
    known = sample.steps["entropy"]
    base = sample.held_out(known)
    return [
        gain(sample.held_out([*known, name]) - base, sample.units) | {"layer": layer}
        for layer, name in sorted(layer_columns(sample.words).items())
    ]


def layer_columns(words: pd.DataFrame) -> dict[int, str]:
    """The columns with the effort of single layers, by layer.

    They are numbered with two digits and more, `effort_00` to `effort_100`; one digit is a word before, `effort_1`.
    """
    matches = (re.fullmatch(r"effort_(\d{2,})", str(name)) for name in words)
    return {int(match[1]): match[0] for match in matches if match}


def _about_effort(sample: Sample) -> dict[str, Any]:
    """What could explain effort away, and what its other forms give."""
    words, steps = sample.words, sample.steps
    known = steps["entropy"]

    def added(columns: list[str], new: str, frame: pd.DataFrame = words) -> dict[str, float]:
        return gain(sample.held_out([*columns, new], frame) - sample.held_out(columns, frame), sample.units)

    classes = pd.get_dummies(words["word_class"], prefix="class", dtype=float).iloc[:, 1:]
    bins = pd.qcut(words["surprisal_bits"], BINS, labels=False, duplicates="drop")
    bins = pd.get_dummies(bins, prefix="bin", dtype=float).iloc[:, 1:]
    wide = pd.concat([words.assign(log_magnitude=np.log(words["magnitude"])), classes, bins], axis=1)
    varied = [name for name in (*CONTROLS, *classes) if wide[name].nunique() > 1]
    x = standardised(words, steps["effort"])
    others = np.column_stack([np.ones(len(x)), x[:, :-1]])
    unexplained = x[:, -1] - others @ np.linalg.lstsq(others, x[:, -1], rcond=None)[0]
    return {
        "with_controls": added([*known, *varied], "effort", wide),
        "controls": varied,
        "matched_surprisal": added([*known, *bins], "effort", wide),
        "magnitude": added(known, "log_magnitude", wide),
        "with_load_rule": added(steps["effort"], "effort_load"),
        "placebo": placebo(words, sample.y, sample.items, steps),
        "correlation_surprisal": float(words["effort"].corr(words["surprisal_bits"])),
        "correlation_entropy": float(words["effort"].corr(words["entropy_bits"])),
        "vif": float((x[:, -1] ** 2).sum() / (unexplained**2).sum()),
        "mean": float(words["effort"].mean()),
        "sd": float(words["effort"].std()),
    }


def standardised(frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns in standard deviations around their mean, [n, k]."""
    values = frame[list(columns)].to_numpy(float)
    spread = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(spread > 0, spread, 1.0))


def gain(differences: np.ndarray, units: np.ndarray) -> dict[str, float]:
    """Mean gain per word with its bootstrap interval over units, and the p-value of a sign-flip test for a gain.

    Args:
        differences: [n], of log densities, nats.
        units: [n], numbers from 0 on: what is resampled, and flipped, as a whole.

    Returns:
        delta_ll, ci_low, ci_high (nats per word; 95 % percentile interval) and p (one-sided).
    """
    sums, sizes = np.bincount(units, differences), np.bincount(units).astype(float)
    rng = np.random.default_rng(SEED)
    interval = stats.bootstrap(
        (sums, sizes), lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=RESAMPLES, batch=BATCH, rng=rng,
    ).confidence_interval  # fmt: skip
    flipped = stats.permutation_test(
        (sums,), lambda sums, axis: sums.sum(axis), permutation_type="samples", vectorized=True,
        alternative="greater", n_resamples=RESAMPLES, batch=BATCH, rng=rng,
    )  # fmt: skip
    return {
        "delta_ll": float(differences.mean()),
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "p": float(flipped.pvalue),
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
