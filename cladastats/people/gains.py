"""Does effort predict reading times and brain responses beyond surprisal and entropy?

Nested models of a measure, each word a row, or each word of each subject where trials are kept, with a random intercept
per text, and then one per subject (`cladastats.people.density`):

    baseline   position of the word, and what the measure needs (`cladastats.people.corpora`); length, frequency, number
               of tokens and norm of the hidden state, of the word and of the two before
    surprisal  + surprisal of the word and of the two before
    entropy    + entropy before the word and before the two before
    effort     + effort of the word and of the two before: the confirmatory step

Models are fitted on all texts but those of one fold and judged by the joint log density of each text of that fold, as
surprisal studies do with single words (Goodkind and Bicknell 2018; Wilcox et al. 2023). A gain is the difference of two
models' log densities of a text, divided by its rows: nats per word. Gains are bootstrapped over texts and tested by
flipping their signs; where there are fewer than twenty texts, over sentences, each given those before it in its text.
Sentences of one text share the fit that judges them; in simulations (`figures/GAINS_POWER.md`) no test errs more often
than it may, and the intervals are a little short.
Every model has its own variances, the most likely ones in the training data, so that no model is fitted with those of a
larger or smaller one. Everything is fixed by the constants here and in `evidence.py`, seeds included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from clada.errors import InputError
from cladastats.language import PUNCTUATION, TAGGERS, language
from cladastats.people.corpora import LEAST_TEXTS, LEAST_WORDS, Measure, ReadingCorpus
from cladastats.people.density import FOLDS as FOLDS  # with the constants below, what results depend on
from cladastats.people.density import Rows
from cladastats.people.evidence import RESAMPLES as RESAMPLES
from cladastats.people.evidence import SEED, effects, gain

STEPS = ("surprisal", "entropy", "effort")

PREDICTORS = {"surprisal": "surprisal_bits", "entropy": "entropy_bits", "effort": "effort"}

BASELINE = ("length", "frequency_zipf", "tokens", "hidden_norm")

WHERE_THERE = ("tokens", "hidden_norm")  # in the baseline where a model has them and words differ in them

LAGS = ("", "_1", "_2")

FEWEST_TEXTS = 20  # units of the bootstrap and of the permutation; below, sentences

SHUFFLES = 199

BINS = 10  # of surprisal, to compare words of equal surprisal

WORDS_OF_A_COEFFICIENT = 5  # at least; with fewer the largest model learns nothing that holds elsewhere

CONTROLS = ("punctuation", "sentence_final")


def prepared(corpus: ReadingCorpus, words: pd.DataFrame) -> pd.DataFrame:
    """One row per measured word, or trial: its predictors, those of the two words before (`_1`, `_2`), its class.

    Rows whose two words before are not in the text are left out.
    """
    words = words.copy()
    words["punctuation"] = [float(word != word.strip(PUNCTUATION)) for word in words["word"]]
    words["word_class"] = word_classes(words, corpus.source.language)
    by_text = words.groupby("text_id", sort=False)
    for name in (*BASELINE, *PREDICTORS.values()):
        for lag in (1, 2) if name in words else ():
            words[f"{name}_{lag}"] = by_text[name].shift(lag)
    rows = corpus.table.drop(columns=["word"]).merge(words, on=["text_id", "word_index"], validate="many_to_one")
    rows["sentence_final"] = rows["sentence_final"].astype(float)
    return rows[rows["length_2"].notna()].reset_index(drop=True)


def word_classes(words: pd.DataFrame, code: str = "en") -> list[str]:
    """Noun, verb, adjective, adverb, number or function word, by the tags of each text.

    Words of a language without a tagger are all of one class.
    """
    spoken = language(code)
    if code not in TAGGERS:
        return ["word"] * len(words)
    tags_of = spoken.tagger()
    found: list[str] = []
    for _, text in words.groupby("text_id", sort=False):
        bare = [word.strip(PUNCTUATION) or word for word in text["word"]]
        found += [spoken.word_class(tag) for tag in tags_of(bare)]
    return found


def designs(measure: Measure, words: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of every nested model that the words have, each holding those of the one before."""
    measured = words[words[measure.column].notna()]

    def there(column: str) -> bool:
        # Of a few common words each may be one token of a large vocabulary.
        return column in words and measured[column].nunique() > 1

    baseline = [f"{name}{lag}" for name in BASELINE for lag in LAGS if name not in WHERE_THERE or there(f"{name}{lag}")]
    columns = ["position", *measure.covariates, *baseline]
    steps = {"baseline": columns}
    for step in STEPS:
        name = PREDICTORS[step]
        if step == "effort" and (name not in words or words[name].isna().all()):
            continue
        columns = [*columns, *(f"{name}{lag}" for lag in LAGS)]
        steps[step] = columns
    return steps


def analyse(rows: pd.DataFrame, measure: Measure) -> dict[str, Any]:
    """The gains of every step on one measure, and what could explain that of effort away.

    Args:
        rows: Of `prepared`; with the column `subject`, trials.
        measure: The dependent variable.

    Returns:
        `rows`: a dictionary per step with what `evidence.gain` and `evidence.effects` find, `sd` of the predictor and
        `cost`, the nats that learning its coefficients loses; `effort`: with controls, at matched surprisal, placebo,
        other forms, collinearity; `layers`: the gain of each layer's effort in the place of all. Without effort, these
        are None and empty. `words`, `items`, `subjects`, `units`, `units_are`, `sd` (of the measure), `reliability`,
        `r2`.

    Raises:
        InputError: Too few words or texts, a column that does not vary, or one that others hold already.
    """
    sample = Sample.of(rows, measure)
    columns = sample.places(list(sample.steps.values())[-1])
    fit = sample.rows.fit(columns)
    fitted = sample.rows.values[:, [0, *(column + 1 for column in columns)]] @ fit.beta
    trials = sample.rows.subjects is not None
    return {
        "unit": measure.unit,
        "words": len(sample.words),
        "items": int(sample.rows.items.max() + 1),
        "subjects": sample.rows.counts.shape[1],
        "units": len(sample.rows.sizes),
        "units_are": "sentences" if sample.few_texts else "texts",
        "sd": sample.rows.scale,
        "reliability": None if trials else reliability(sample.words, measure),
        "rows": [gain_of_step(sample, step) for step in STEPS if step in sample.steps],
        "r2": float(np.corrcoef(fitted, sample.rows.values[:, -1])[0, 1] ** 2),
        "effort": _about_effort(sample) if "effort" in sample.steps else None,
        "layers": _layers(sample) if "effort" in sample.steps else [],
    }


@dataclass(frozen=True)
class Sample:
    """The words, or trials, that one measure is analysed on.

    Attributes:
        words: A row each that has the measure and every predictor, with the columns of every other model.
        steps: The columns of every nested model, of `designs`.
        names: The columns of `rows`, in order.
        rows: The same as numbers: columns in standard deviations.
        few_texts: Whether the units are sentences.
        known: Densities that were computed, by columns.
    """

    words: pd.DataFrame
    steps: dict[str, list[str]]
    names: list[str]
    rows: Rows
    few_texts: bool
    known: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pd.DataFrame, measure: Measure) -> Sample:
        """The complete rows of a measure.

        Raises:
            InputError: Too few words or texts, a column that does not vary, or one that others hold already.
        """
        steps = designs(measure, rows)
        largest = list(steps.values())[-1]
        words = rows[rows[[measure.column, *largest]].notna().all(axis=1)].reset_index(drop=True)
        least = max(LEAST_WORDS, WORDS_OF_A_COEFFICIENT * (len(largest) + 1))
        if len(words) < least or words["item"].nunique() < LEAST_TEXTS:
            raise InputError(
                f"{measure.column} has {len(words)} words with two words before them and every predictor, in "
                f"{words['item'].nunique()} texts; {least} words and {LEAST_TEXTS} texts are needed"
            )
        constant = [name for name in (measure.column, *largest) if words[name].nunique() < 2]
        if constant:
            raise InputError(
                f"{measure.column} cannot be explained by what is the same for every word: {', '.join(constant)}; mend "
                "the corpus' table, or give the model a plan that leaves neurons out (effort)"
            )
        words = _with_other_forms(words, "effort" in steps)
        others = [*_controls(words), *_of_prefix(words, "bin_"), "log_magnitude", "effort_load"]
        others += layer_columns(words).values()
        names = [*largest, *(name for name in others if name in words and words[name].notna().all())]
        items = np.unique(words["item"], return_inverse=True)[1]
        units, few = items, bool(items.max() + 1 < FEWEST_TEXTS and "block" in words)
        if few:
            blocks = np.unique(words["block"], return_inverse=True)[1]
            units = np.unique(items * (blocks.max() + 1) + blocks, return_inverse=True)[1]
        subjects = None
        if "subject" in words and words["subject"].nunique() > 1:
            subjects = np.unique(words["subject"].astype(str), return_inverse=True)[1]
        y = words[measure.column].to_numpy(float)
        sample = cls(words, steps, names, Rows(y, standardised(words, names), items, units, subjects), few)
        sample._refuse_twins(measure)
        return sample

    def _refuse_twins(self, measure: Measure) -> None:
        """Refuse columns that are combinations of others, with which no coefficient has a meaning."""
        largest = list(self.steps.values())[-1]
        moments = self.rows.whole.of([*range(len(largest) + 1), len(self.names) + 1])
        kept = moments.independent()
        twins = [name for place, name in enumerate(largest, 1) if place not in kept]
        twins = [name for name in twins if re.sub(r"_[12]$", "", name) not in WHERE_THERE]
        used = moments.of(kept).inner
        left = used[-1, -1] - used[-1, :-1] @ np.linalg.solve(used[:-1, :-1], used[:-1, -1])
        if left < 1e-9 * len(self.words):  # the measure is in standard deviations
            twins.append(measure.column)
        if twins:
            raise InputError(
                f"{measure.column} cannot be explained: {', '.join(twins)} holds only what other columns of the model "
                f"hold ({', '.join(largest)}); mend the table, or leave one of them out"
            )

    def places(self, names: Sequence[str]) -> list[int]:
        """Where columns are in `rows`."""
        return [self.names.index(name) for name in names]

    def density(self, names: Sequence[str]) -> np.ndarray:
        """Log density of every unit under fits of these columns that have not seen its text, [U]."""
        key = tuple(names)
        if key not in self.known:
            self.known[key] = self.rows.density(self.places(names))
        return self.known[key]

    def added(self, base: Sequence[str], new: Sequence[str]) -> dict[str, float] | None:
        """The gain of new columns over a base; None where the words lack them."""
        if not new or not set(new) <= set(self.names):
            return None
        return gain(self.density([*base, *new]) - self.density(base), self.rows.sizes)


def _with_other_forms(words: pd.DataFrame, effort: bool) -> pd.DataFrame:
    """The words with what else effort is held against: word classes, tenths of surprisal, the log of magnitude."""
    if not effort:
        return words
    classes = pd.get_dummies(words["word_class"], prefix="class", dtype=float).iloc[:, 1:]
    bins = pd.qcut(words["surprisal_bits"], BINS, labels=False, duplicates="drop")
    bins = pd.get_dummies(bins, prefix="bin", dtype=float).iloc[:, 1:]
    forms = [words, classes, bins]
    if "magnitude" in words:
        forms.append(np.log(words["magnitude"]).rename("log_magnitude").to_frame())
    return pd.concat(forms, axis=1)


def _of_prefix(words: pd.DataFrame, prefix: str) -> list[str]:
    return [name for name in words if str(name).startswith(prefix)]


def _controls(words: pd.DataFrame) -> list[str]:
    """Columns beside the baseline that differ between words."""
    return [name for name in (*CONTROLS, *_of_prefix(words, "class_")) if name in words and words[name].nunique() > 1]


def gain_of_step(sample: Sample, step: str) -> dict[str, Any]:
    """The gain of a step over the one before, and the coefficients of what it adds."""
    order = list(sample.steps)
    base, columns = sample.steps[order[order.index(step) - 1]], sample.steps[step]
    new = columns[len(base) :]
    folds = int(sample.rows.folds.max()) + 1
    spreads = [float(sample.words[name].std(ddof=0)) for name in new]
    return {
        "predictor": step,
        **gain(sample.density(columns) - sample.density(base), sample.rows.sizes),
        **effects(sample.rows, sample.places(columns), sample.places(new), spreads),
        "sd": spreads[0],
        "cost": len(new) / 2 * folds / (folds - 1),
    }


def _layers(sample: Sample) -> list[dict[str, float]]:
    """The gain of each layer's effort alone, without lags, over surprisal and entropy."""
    found = []
    for layer, name in sorted(layer_columns(sample.words).items()):
        gained = sample.added(sample.steps["entropy"], [name])
        if gained is not None:
            found.append(gained | {"layer": layer})
    return found


def layer_columns(words: pd.DataFrame) -> dict[int, str]:
    """The columns with the effort of single layers, by layer.

    They are numbered with two digits and more, `effort_00` to `effort_100`; one digit is a word before, `effort_1`.
    """
    matches = (re.fullmatch(r"effort_(\d{2,})", str(name)) for name in words)
    return {int(match[1]): match[0] for match in matches if match}


def _about_effort(sample: Sample) -> dict[str, Any]:
    """What could explain effort away, and what its other forms give; in the smaller baseline are no tokens and norm."""
    words, base, columns = sample.words, sample.steps["entropy"], sample.steps["effort"]
    effort = columns[len(base) :]
    controls, bins = _controls(words), _of_prefix(words, "bin_")
    smaller = [name for name in base if re.sub(r"_[12]$", "", name) not in WHERE_THERE]
    places = [place + 1 for place in sample.places(columns)]
    correlations = sample.rows.whole.inner[np.ix_(places, places)] / len(words)
    return {
        "without_lags": sample.added(base, effort[:1]),
        "lags": sample.added([*base, effort[0]], effort[1:]),
        "smaller_baseline": sample.added(smaller, effort),
        "with_controls": sample.added([*base, *controls], effort),
        "controls": controls,
        "matched_surprisal": sample.added([*base, *bins], effort),
        "magnitude": sample.added(base, ["log_magnitude"]),
        "with_load_rule": sample.added(columns, ["effort_load"]),
        "placebo": placebo(sample),
        "correlation_surprisal": float(words["effort"].corr(words["surprisal_bits"])),
        "correlation_entropy": float(words["effort"].corr(words["entropy_bits"])),
        "vif": float(np.linalg.pinv(correlations, hermitian=True)[len(base), len(base)]),
        "mean": float(words["effort"].mean()),
        "sd": float(words["effort"].std()),
    }


def standardised(frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns in standard deviations around their mean, [n, k]."""
    values = frame[list(columns)].to_numpy(float)
    spread = values.std(0)
    return np.asarray((values - values.mean(0)) / np.where(spread > 0, spread, 1.0))


def placebo(sample: Sample) -> dict[str, float]:
    """Effort, with its lags, exchanged among words of the same class: what gain comes without the right words?

    The ratios of variances stay those of the fits with the real effort.
    """
    rows, words = sample.rows, sample.words
    base, columns = sample.steps["entropy"], sample.steps["effort"]
    y = rows.center + rows.scale * rows.values[:, -1]
    x = rows.values[:, [place + 1 for place in sample.places(columns)]]
    ratios = rows.ratios(sample.places(columns))
    known = rows.density(sample.places(base), ratios).sum()
    real = rows.density(sample.places(columns), ratios).sum() - known
    rng = np.random.default_rng(SEED)
    word = np.arange(len(words))
    if rows.subjects is not None:  # all trials of a word get the effort of the same other word
        word = words.groupby(["text_id", "word_index"], sort=False).ngroup().to_numpy()
    first = np.unique(word, return_index=True)[1]
    classes = words["word_class"].to_numpy()[first]
    members = [np.flatnonzero(classes == name) for name in sorted(set(classes))]
    gains = []
    for _ in range(SHUFFLES):
        source = np.arange(len(first))
        for chosen in members:
            source[chosen] = rng.permutation(chosen)
        shuffled = x.copy()
        shuffled[:, len(base) :] = x[first[source[word]], len(base) :]
        exchanged = Rows(y, shuffled, rows.items, rows.units, rows.subjects)
        gains.append(exchanged.density(range(len(columns)), ratios).sum() - known)
    found = np.array(gains)
    return {
        "delta_ll": float(found.mean() / len(words)),
        "highest": float(found.max() / len(words)),
        "p": (1 + int((found >= real).sum())) / (1 + SHUFFLES),
    }


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
