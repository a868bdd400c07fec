"""Do the tests of held-out gains keep their size, and what do they show? Words with known effects of effort.

    python benchmarks/simulate_gains.py            # half an hour on one core; goes on where it was interrupted

Words have length, frequency, number of tokens, norm of the hidden state, surprisal, entropy and effort, correlated as
in English text, effort with surprisal at 0.6, and each with the word before at 0.3. Times follow length and frequency
of the word and the one before, surprisal of the word and the one before, and effort of the word as much as is asked.
Beside the random intercepts of the models they have what the models do not know: sentences that are slower than others,
errors that go along with those of the word before, and in trials words that are slower for everybody.

Effects are none, the one that should be shown in four of five samples by one test, and the one that should be by the
first step of Holm's correction among twelve (`cladastats.people.evidence.detectable`, of the samples without effects).
Everything is what `cladastats human` does with a measure. `benchmarks/results/simulation-gains.jsonl` has a line for
each 50 samples; the page is `figures/GAINS_POWER.md`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from stored import FIGURES, RESULTS
from tabulate import tabulate
from tqdm import tqdm

from cladastats.people.corpora import Measure
from cladastats.people.evidence import detectable
from cladastats.people.gains import Sample, gain_of_step

# texts, words of a text, subjects (0: averages over many), words of a sentence
DESIGNS = {
    "95 texts of 8 words": (95, 8, 0, 8),
    "24 texts of 45 words": (24, 45, 0, 15),
    "10 texts of 150 words": (10, 150, 0, 15),
    "4 texts of 500 words": (4, 500, 0, 20),
    "24 texts of 30 words, 16 subjects": (24, 30, 16, 15),
    "6 texts of 100 words, 12 subjects": (6, 100, 12, 12),
}
SAMPLES = {"none": 400, "one test": 200, "of twelve": 200}
PILOT = 200  # samples without an effect that say which effects are detectable
FAMILIES = {"one test": 1, "of twelve": 12}
BATCH = 50
COLUMNS = ("length", "frequency_zipf", "tokens", "hidden_norm", "surprisal_bits", "entropy_bits", "effort")
CORRELATIONS = np.array(
    [
        [1.0, -0.7, 0.4, 0.0, 0.5, 0.3, 0.3],
        [-0.7, 1.0, -0.5, 0.0, -0.6, -0.4, -0.45],
        [0.4, -0.5, 1.0, -0.1, 0.35, 0.1, 0.1],
        [0.0, 0.0, -0.1, 1.0, -0.2, 0.0, 0.1],
        [0.5, -0.6, 0.35, -0.2, 1.0, 0.45, 0.6],
        [0.3, -0.4, 0.1, 0.0, 0.45, 1.0, 0.3],
        [0.3, -0.45, 0.1, 0.1, 0.6, 0.3, 1.0],
    ]
)
BEFORE = 0.3  # correlation of a word's predictors with those of the word before
KNOWN = {
    "length": 8.0,
    "frequency_zipf": -6.0,
    "frequency_zipf_1": -3.0,
    "surprisal_bits": 6.0,
    "surprisal_bits_1": 4.0,
}
KEPT = ("p", "delta_ll", "ci_high", "effect", "effect_low", "effect_high", "effect_se", "effect_bound", "total_low",
        "total_high", "design", "gain_bound", "cost")  # fmt: skip


def autocorrelated(rng: np.random.Generator, texts: int, words: int, columns: int, share: float) -> np.ndarray:
    """Normal numbers of variance 1, [texts, words, columns], each correlated with the one before in its text."""
    values = rng.normal(size=(texts, words, columns))
    for place in range(1, words):
        values[:, place] = share * values[:, place - 1] + np.sqrt(1 - share**2) * values[:, place]
    return values


def sample_of(rng: np.random.Generator, name: str, effect: float) -> Sample:
    """A sample of a design in which effort has an effect, in ms per standard deviation."""
    texts, words, subjects, sentence = DESIGNS[name]
    values = autocorrelated(rng, texts, words, len(COLUMNS), BEFORE) @ np.linalg.cholesky(CORRELATIONS).T
    frame = pd.DataFrame(values.reshape(-1, len(COLUMNS)), columns=list(COLUMNS))
    frame["tokens"] = np.digitize(frame["tokens"], [1.0, 2.0]) + 1.0
    place = np.arange(texts * words)
    frame["text_id"] = frame["item"] = place // words
    frame["word_index"] = frame["position"] = place % words + 1.0
    frame["block"] = frame["item"] * words + (place % words) // sentence
    frame["word_class"] = "noun"
    for lag in (1, 2):
        before = np.full((texts, words, len(COLUMNS)), np.nan)
        before[:, lag:] = frame[list(COLUMNS)].to_numpy().reshape(before.shape)[:, :-lag]
        frame[[f"{column}_{lag}" for column in COLUMNS]] = before.reshape(-1, len(COLUMNS))
    time = 300 + frame[list(KNOWN)].fillna(0).to_numpy() @ np.array(list(KNOWN.values())) + effect * frame["effort"]
    time += rng.normal(0, 10, texts)[frame["item"]] + rng.normal(0, 5, place[-1] + 1)[frame["block"]]
    error = autocorrelated(rng, texts, words, 1, 0.15).ravel()
    if not subjects:
        return Sample.of(frame.assign(time=time + 30 * error)[frame["length_2"].notna()], Measure("time"))
    frame = frame.assign(time=time + 12 * error)
    trials = frame.loc[frame.index.repeat(subjects)].reset_index(drop=True)
    trials["subject"] = np.tile(np.arange(subjects), len(frame))
    trials = trials[rng.random(len(trials)) < 0.9]  # a tenth is lost, as outliers are
    trials["time"] += rng.normal(0, 40, subjects)[trials["subject"]] + rng.normal(0, 80, len(trials))
    return Sample.of(trials[trials["length_2"].notna()], Measure("time"))


def right_gain(sample: Sample, effect: float) -> float:
    """Nats per word that effort's right coefficients gain over a model that has the other predictors'."""
    rows, columns = sample.rows, sample.places(sample.steps["effort"])
    fit = rows.fit(columns)
    products = rows.values[:, [0, *(column + 1 for column in columns)]].T @ rows.weighted(fit, columns)[:, :-1]
    new = len(products) - 3
    left = products[new:, new:] - products[new:, :new] @ np.linalg.solve(products[:new, :new], products[:new, new:])
    return float(left[0, 0] * (effect * sample.words["effort"].std(ddof=0) / rows.scale) ** 2 / 2 / len(sample.words))


def batch(name: str, kind: str, effect: float, first: int) -> dict[str, Any]:
    """What is found in 50 samples."""
    found: dict[str, Any] = defaultdict(list)
    for number in range(first, first + BATCH):
        seed = [list(DESIGNS).index(name), list(SAMPLES).index(kind), number]
        sample = sample_of(np.random.default_rng(seed), name, effect)
        row = gain_of_step(sample, "effort")
        values = {key: row[key] for key in KEPT} | {"right_gain": right_gain(sample, effect), "sd": row["sd"]}
        for key, value in values.items():
            found[key].append(float(f"{value:.4g}"))
    facts = {"design": name, "effect": kind, "ms": effect, "first": first, "words": len(sample.words)}
    return facts | {"units": len(sample.rows.sizes), "few_texts": sample.few_texts, "found": dict(found)}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def together(lines: list[dict[str, Any]], name: str, kind: str) -> dict[str, Any] | None:
    """All samples of a design with an effect."""
    chosen = [line for line in lines if (line["design"], line["effect"]) == (name, kind)]
    if not chosen:
        return None
    found = {key: np.concatenate([line["found"][key] for line in chosen]) for key in chosen[0]["found"]}
    return chosen[0] | {"found": found}


def smallest(cell: dict[str, Any], family: int) -> tuple[float, float]:
    """The smallest detectable effect in ms per standard deviation, and its gain, mean over samples."""
    found = cell["found"]
    each = [
        detectable(error, design, cell["words"], family, cost)
        for error, design, cost in zip(found["effect_se"], found["design"], found["cost"], strict=True)
    ]
    effect, gained = np.mean(each, axis=0)
    return float(effect), float(gained)


def share(hits: np.ndarray) -> str:
    """A percentage with its Monte-Carlo standard error."""
    return f"{100 * hits.mean():.1f} ({100 * np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits)):.1f})"


def family_error(p: np.ndarray) -> str:
    """How often at least one of twelve true null hypotheses is rejected, over families drawn from the samples."""
    rng = np.random.default_rng(0)
    families = rng.choice(p, (10_000, 12))
    return f"{100 * (families.min(1) < 0.05 / 12).mean():.1f}"  # Holm rejects any where it rejects the smallest


def page(lines: list[dict[str, Any]]) -> str:
    """The tables."""
    size, power = [], []
    for name in DESIGNS:
        cells = {kind: together(lines, name, kind) for kind in SAMPLES}
        nothing = cells["none"]
        if nothing is None:
            continue
        found = nothing["found"]
        units = f"{nothing['units']} {'sentences' if nothing['few_texts'] else 'texts'}"
        size.append(
            {
                "design": name,
                "units": units,
                "samples": len(found["p"]),
                "p < 0.05": share(found["p"] < 0.05),
                "p < 0.05/12": share(found["p"] < 0.05 / 12),
                "any of twelve": family_error(found["p"]),
                "mean gain": f"{1000 * found['delta_ll'].mean():+.2f}",
                "effect covered": share((found["effect_low"] < 0) & (found["effect_high"] > 0)),
                "sum covered": share((found["total_low"] < 0) & (found["total_high"] > 0)),
            }
        )
        for kind, family in FAMILIES.items():
            cell = cells[kind]
            if cell is None:
                continue
            shown, true = cell["found"], cell["ms"] * cell["found"]["sd"]
            power.append(
                {
                    "design": name,
                    "level": "0.05" if family == 1 else "0.05/12",
                    "samples": len(shown["p"]),
                    "effect, ms": f"{cell['ms']:.2f}",
                    "shown": share(shown["p"] < 0.05 / family),
                    "gain": f"{1000 * shown['delta_ll'].mean():.1f}",
                    "foretold": f"{1000 * smallest(nothing, family)[1]:.1f}",
                    "effect covered": share((shown["effect_low"] < true) & (true < shown["effect_high"])),
                    "effect in bound": share(true <= shown["effect_bound"]),
                    "gain in bound": share(shown["right_gain"] <= shown["gain_bound"]),
                }
            )
    return PAGE.format(
        size=tabulate(size, headers="keys", tablefmt="github", disable_numparse=True),
        power=tabulate(power, headers="keys", tablefmt="github", disable_numparse=True),
    )


PAGE = """# Do the tests of held-out gains keep their size, and what do they show?

Made by `python benchmarks/simulate_gains.py` on made-up words and reading times, whose effect of effort is known. Times
have what the models do not know: slow sentences, errors that go along with those of the word before, and in trials
words that are slow for everybody. Percentages have their Monte-Carlo standard error in parentheses.

The test of a gain hardly ever errs where there is no effect, over texts and over sentences alike: its true size is far
below 5 %, because a predictor without an effect loses on unseen texts. What is called detectable is shown about as
often as is said, but less often with two dozen texts, above all at the level of the first of twelve: few units have
skewed sums. Intervals over units are a little short: those of 95 % cover about 93 %, and with two dozen texts as few as
88 %.

## Without an effect

Each row is a design. `p < 0.05` is how often one test rejects, nominally at most 5 %; `p < 0.05/12` the same at the
level of the first step of Holm's correction, nominally at most 0.4 %; `any of twelve` how often it rejects in families
of twelve, nominally at most 5 %. The mean gain is in nats per 1,000 words. It is negative, because coefficients that
are learnt on other texts lose. The last columns say how often the 95 % intervals of the word's own effect, and of the
sum with its lags, contain zero.

{size}

## With the effect that is said to be detectable

Each row is a design with the effect that `cladastats human` calls detectable, at the level of one test or of the first
of twelve. `shown` should be about 80 %. `gain` is the mean found, `foretold` the detectable gain, in nats per 1,000
words. `effect covered` should be 95 %: the interval of the word's own effect. `effect in bound` and `gain in bound`
should be at least 95 %: true effects and gains that were not excluded.

{power}
"""


def main() -> None:
    """Simulate what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "simulation-gains.jsonl")
    parser.add_argument("--page", type=Path, default=FIGURES / "GAINS_POWER.md")
    args = parser.parse_args()
    cells = [(name, kind, first) for kind in SAMPLES for first in range(0, SAMPLES[kind], BATCH) for name in DESIGNS]
    cells.sort(key=lambda cell: cell[2] >= (PILOT if cell[1] == "none" else SAMPLES[cell[1]] // 2))
    for name, kind, first in tqdm(cells, unit="batch"):
        lines = read(args.results)
        if any((line["design"], line["effect"], line["first"]) == (name, kind, first) for line in lines):
            continue
        effect = 0.0
        if kind != "none":
            pilot = together([line for line in lines if line["first"] < PILOT], name, "none")
            effect = round(smallest(pilot, FAMILIES[kind])[0], 3) if pilot else 0.0
        line = json.dumps(batch(name, kind, effect, first))
        with args.results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    args.page.write_text(page(read(args.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
