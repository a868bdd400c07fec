"""How likely are texts that a regression has not seen? Joint normal densities of whole texts, given the others.

The regression has a random intercept of each text, and where trials are kept a second one, crossed with it, of each
subject: y = X b + text + subject + error, by maximum likelihood, both ratios of variances searched anew in every fit.

    fit        from sums over texts and subjects alone, so that a fit costs the same for a thousand rows and a million
               (Bates, Maechler, Bolker and Walker 2015, section 3.4: the profiled deviance)
    density    of a text that was held out, given the training data: one joint normal density of all its rows. Its own
               intercept is new and is integrated out. Subjects have the mean and the covariance that the training data
               leave them; one who is not there has the prior. Coefficients and variances are those of the fit.
    sentences  log p(text) is the sum over its sentences of log p(sentence | earlier sentences of the text), exactly.

The texts of one fold are each judged given the training data, not given each other, though they share subjects: what
is predicted is one new text. No matrix of rows by rows is made. With the covariance I + r Z Z' of the one factor the
other is a second update of it (Woodbury's identity, and the lemma of determinants).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, sparse

FOLDS = 10

LEAST_RATIO, LARGEST_RATIO = math.exp(-12), math.exp(6)  # of variances; less is none

SAME = 1e-9  # share of a column's sum of squares that the columns before leave; with less it is their combination


@dataclass(frozen=True)
class Moments:
    """All that a fit needs to know of its rows: sums of products of columns, and of columns in each group.

    Attributes:
        inner: [k, k], products of the columns; the constant is the first, the measure the last.
        items: [I, k], sums over the rows of each text; the constant's are their numbers.
        subjects: [S, k], over those of each subject; S is 0 where there are none.
        counts: [I, S], rows of each text and subject.
    """

    inner: np.ndarray
    items: np.ndarray
    subjects: np.ndarray
    counts: np.ndarray

    def of(self, columns: Sequence[int]) -> Moments:
        """Those of some columns."""
        chosen = list(columns)
        return replace(
            self,
            inner=self.inner[np.ix_(chosen, chosen)],
            items=self.items[:, chosen],
            subjects=self.subjects[:, chosen],
        )

    def independent(self) -> list[int]:
        """The columns that are no combination of those before them; the measure is not looked at, and kept."""
        scale = np.sqrt(np.diag(self.inner))[:-1]
        scale[scale == 0] = np.inf
        left = self.inner[:-1, :-1] / scale[:, None] / scale
        kept = []
        for column in range(len(left)):
            pivot = left[column, column]
            if pivot > SAME:
                kept.append(column)
                left = left - np.outer(left[:, column], left[column]) / pivot
        return [*kept, len(scale)]

    def profile(self, ratios: Sequence[float]) -> tuple[float, np.ndarray, np.ndarray, float]:
        """What is left when the coefficients and the variance of errors are the best ones for two ratios of variances.

        Args:
            ratios: variance between texts, and between subjects, over that of errors.

        Returns:
            the deviance up to a constant (-2 log likelihood), its gradient by the ratios [2], coefficients [k - 1],
            variance of errors.
        """
        large, small, counts, swapped = self.items, self.subjects, self.counts, False
        if len(small) > len(large):  # the matrix that is inverted is that of the factor with fewer groups
            large, small, counts, swapped = small, large, counts.T, True
        ratio, other = (ratios[1], ratios[0]) if swapped else (ratios[0], ratios[1])
        kept = 1 / (1 + ratio * large[:, 0])
        shares = (ratio * kept)[:, None]
        between = small - counts.T @ (shares * large)
        core = np.diag(small[:, 0]) - counts.T @ (shares * counts)
        updated = np.eye(len(small)) + other * core
        inverse = np.linalg.inv(updated)
        inner = self.inner - large.T @ (shares * large) - other * between.T @ inverse @ between
        beta = np.linalg.solve(inner[:-1, :-1], inner[:-1, -1])
        rows, unexplained = self.inner[0, 0], inner[-1, -1] - beta @ inner[:-1, -1]
        deviance = rows * math.log(unexplained / rows) - np.log(kept).sum() + np.linalg.slogdet(updated)[1]

        residual = np.append(-beta, 1.0)
        of_small = inverse @ (between @ residual)
        part = counts.T * kept
        of_large = kept * (large @ residual) - other * part.T @ of_small
        gradient = np.array(
            [
                (large[:, 0] * kept).sum() - other * (part * (inverse @ part)).sum(),
                (inverse * core).sum(),
            ]
        ) - rows / unexplained * np.array([of_large @ of_large, of_small @ of_small])
        return float(deviance), gradient[::-1] if swapped else gradient, beta, float(unexplained / rows)


@dataclass(frozen=True)
class InterceptFit:
    """A linear model with random intercepts, by maximum likelihood.

    Attributes:
        beta: [k], the constant first; 0 for a column that the rows cannot tell from those before it.
        residual: variance of errors.
        ratios: variance between texts, and between subjects, over that of errors.
        deviance: -2 log likelihood.
        subject_means: [S], intercepts of the subjects expected given the rows.
        subject_spread: [S, S], their covariance given the rows, over the variance of errors.
    """

    beta: np.ndarray
    residual: float
    ratios: tuple[float, float]
    deviance: float
    subject_means: np.ndarray
    subject_spread: np.ndarray


def fit_intercepts(moments: Moments, ratios: tuple[float, float] | None = None) -> InterceptFit:
    """Fit by maximum likelihood.

    Args:
        moments: Of the rows.
        ratios: of variances, if they are known; None: the most likely ones.
    """
    kept = moments.independent()
    used = moments.of(kept)
    if ratios is None:
        ratios = _most_likely(used)
    deviance, _, beta, variance = used.profile(ratios)
    rows = moments.inner[0, 0]
    wide = np.zeros(len(moments.inner) - 1)
    wide[kept[:-1]] = beta
    shares = (ratios[0] / (1 + ratios[0] * moments.items[:, 0]))[:, None]
    core = np.diag(moments.subjects[:, 0]) - moments.counts.T @ (shares * moments.counts)
    spread = ratios[1] * np.linalg.inv(np.eye(len(core)) + ratios[1] * core)
    sums = (moments.subjects - moments.counts.T @ (shares * moments.items)) @ np.append(-wide, 1.0)
    return InterceptFit(
        wide, variance, ratios, deviance + rows * (1 + math.log(2 * math.pi)), spread @ sums, (spread + spread.T) / 2
    )


def _most_likely(moments: Moments) -> tuple[float, float]:
    """The ratios of variances at which the rows are most likely, 0 among them."""
    free = 2 if len(moments.subjects) else 1

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        values = np.exp(logs)
        deviance, gradient, *_ = moments.profile([*values, *[0.0] * (2 - free)])
        return deviance, gradient[:free] * values

    limits = (math.log(LEAST_RATIO), math.log(LARGEST_RATIO))
    found = optimize.minimize(
        loss, [-2.0] * free, jac=True, method="L-BFGS-B", bounds=[limits] * free, options={"ftol": 1e-13, "gtol": 1e-5}
    )
    best, lowest = [*np.exp(found.x), *[0.0] * (2 - free)], float(found.fun)
    for place in range(free):
        without = [*best[:place], 0.0, *best[place + 1 :]]
        deviance = moments.profile(without)[0]
        if deviance <= lowest:
            best, lowest = without, deviance
    return float(best[0]), float(best[1])


def folds_of(groups: np.ndarray) -> np.ndarray:
    """The fold of every row: whole groups, at most `FOLDS` folds of about the same size."""
    sizes = np.bincount(groups)
    filled = np.zeros(min(FOLDS, len(sizes)))
    place = np.zeros(len(sizes), int)
    for group in np.argsort(-sizes, kind="stable"):
        place[group] = int(filled.argmin())
        filled[place[group]] += sizes[group]
    return place[groups]


class Rows:
    """The rows of a measure with columns that may explain it, each text to be predicted from the other folds' texts.

    Args:
        y: [n], the measure.
        x: [n, k], columns in standard deviations around their mean.
        items: [n], numbers of the texts, from 0 on.
        units: [n], numbers of what gets a density, from 0 on: the texts themselves, or parts of them, such as
            sentences, numbered in reading order.
        subjects: [n], numbers of the subjects, from 0 on; None: every row is an average over them.
    """

    def __init__(
        self, y: np.ndarray, x: np.ndarray, items: np.ndarray, units: np.ndarray, subjects: np.ndarray | None = None
    ) -> None:
        self.items, self.units, self.subjects = items, units, subjects
        self.center, self.scale = float(y.mean()), float(y.std())
        self.values = np.column_stack([np.ones(len(y)), x, (y - self.center) / self.scale])
        self.folds = folds_of(items)
        self.sizes = np.bincount(units).astype(float)
        people = 0 if subjects is None else int(subjects.max()) + 1
        texts = int(items.max()) + 1
        self.item_sums = grouped_sums(items, self.values, texts)
        self.counts: np.ndarray = np.zeros((texts, people))
        if subjects is not None:
            self.counts = np.bincount(items * people + subjects, minlength=texts * people).reshape(texts, people) * 1.0
        self._parts = [self._moments(self.folds == fold) for fold in range(self.folds.max() + 1)]
        self.whole = Moments(
            np.sum([part.inner for part in self._parts], axis=0),
            self.item_sums,
            np.sum([part.subjects for part in self._parts], axis=0),
            self.counts,
        )

    def _moments(self, chosen: np.ndarray) -> Moments:
        """Of the rows of some whole texts."""
        values, texts = self.values[chosen], np.unique(self.items[chosen])
        people = self.counts.shape[1]
        subjects = np.zeros((0, values.shape[1]))
        if self.subjects is not None:
            subjects = grouped_sums(self.subjects[chosen], values, people)
        return Moments(values.T @ values, self.item_sums[texts], subjects, self.counts[texts])

    def _training(self) -> Iterator[tuple[np.ndarray, Moments]]:
        """For each fold its rows, and the sums over all other rows."""
        for fold, part in enumerate(self._parts):
            test = self.folds == fold
            others = np.setdiff1d(np.arange(len(self.item_sums)), self.items[test])
            yield (
                test,
                Moments(
                    self.whole.inner - part.inner,
                    self.item_sums[others],
                    self.whole.subjects - part.subjects,
                    self.counts[others],
                ),
            )

    def _places(self, columns: Sequence[int]) -> list[int]:
        return [0, *(column + 1 for column in columns), self.values.shape[1] - 1]

    def fit(self, columns: Sequence[int]) -> InterceptFit:
        """The fit of all rows; the measure is in standard deviations around its mean."""
        return fit_intercepts(self.whole.of(self._places(columns)))

    def ratios(self, columns: Sequence[int]) -> list[tuple[float, float]]:
        """The most likely ratios of variances in every fold's training data."""
        places = self._places(columns)
        return [fit_intercepts(training.of(places)).ratios for _, training in self._training()]

    def density(self, columns: Sequence[int], ratios: Sequence[tuple[float, float]] | None = None) -> np.ndarray:
        """Log density (nats) of every unit, given the texts of the other folds, and the earlier units of its text.

        Args:
            columns: Which of x.
            ratios: of variances in each fold; None: the most likely ones.
        """
        places = self._places(columns)
        found = np.empty(len(self.sizes))
        for fold, (test, training) in enumerate(self._training()):
            fit = fit_intercepts(training.of(places), None if ratios is None else ratios[fold])
            errors = self.values[np.ix_(test, np.array(places))] @ np.append(-fit.beta, 1.0)
            subjects = None if self.subjects is None else self.subjects[test]
            units, numbers = np.unique(self.units[test], return_inverse=True)
            found[units] = text_densities(fit, errors, self.items[test], numbers, subjects)
        return found - self.sizes * math.log(self.scale)

    def weighted(self, fit: InterceptFit, columns: Sequence[int]) -> np.ndarray:
        """The columns, constant first and measure last, times the inverse of the rows' covariance, [n, k + 2]."""
        moments, values = self.whole.of(self._places(columns)), self.values[:, self._places(columns)]
        shares = (fit.ratios[0] / (1 + fit.ratios[0] * moments.items[:, 0]))[:, None]
        values = values - (shares * moments.items)[self.items]
        if self.subjects is not None:
            means = fit.subject_spread @ (moments.subjects - moments.counts.T @ (shares * moments.items))
            values = values - means[self.subjects] + (shares * (moments.counts @ means))[self.items]
        return values / fit.residual


def grouped_sums(groups: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """Sums of the rows of each group, [number, k]."""
    rows = len(groups)
    return np.asarray(sparse.csr_array((np.ones(rows), (groups, np.arange(rows))), (number, rows)) @ values)


def text_densities(
    fit: InterceptFit, errors: np.ndarray, items: np.ndarray, units: np.ndarray, subjects: np.ndarray | None
) -> np.ndarray:
    """Log density of every unit of texts that the fit has not seen, given the units of its text before, [U].

    Args:
        fit: With what it knows of the subjects.
        errors: [n], the measure less the fixed effects.
        items: [n], the text of each row.
        units: [n], numbers from 0 on, in reading order within a text.
        subjects: [n], the subject of each row, or None.
    """
    if subjects is not None:
        errors = errors - fit.subject_means[subjects]
    sums = np.stack([np.bincount(units), np.bincount(units, errors), np.bincount(units, errors**2)])
    text_of = np.zeros(sums.shape[1], int)
    text_of[units] = items
    order = np.lexsort((np.arange(len(text_of)), text_of))
    starts = np.flatnonzero(np.diff(text_of[order], prepend=-1))
    density = np.empty(len(text_of))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        chosen = order[start:stop]
        rows, total, squares = sums[:, chosen].cumsum(1)
        share = fit.ratios[0] / (1 + fit.ratios[0] * rows)
        log_det, quadratic = np.log1p(fit.ratios[0] * rows), squares - share * total**2
        if subjects is not None and fit.ratios[1] > 0:
            inside = items == text_of[chosen[0]]
            parts = np.searchsorted(chosen, units[inside])
            more, quadratic = _with_subjects(fit, errors[inside], parts, subjects[inside], quadratic)
            log_det = log_det + more
        joint = -0.5 * (rows * math.log(2 * math.pi * fit.residual) + log_det + quadratic / fit.residual)
        density[chosen] = np.diff(joint, prepend=0.0)
    return density


def _with_subjects(
    fit: InterceptFit, errors: np.ndarray, parts: np.ndarray, subjects: np.ndarray, quadratic: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What subjects add to the log determinant of the first parts of one text, and what they leave of its quadratic.

    Args:
        fit: With what it knows of the subjects.
        errors: [n].
        parts: [n], numbers from 0 on.
        subjects: [n].
        quadratic: [K], of the first 1, 2, ... K parts without differences between subjects.
    """
    present, numbers = np.unique(subjects, return_inverse=True)
    places, shape = parts * len(present) + numbers, (len(quadratic), len(present))
    rows = np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape).cumsum(0) * 1.0
    sums = np.bincount(places, errors, shape[0] * shape[1]).reshape(shape).cumsum(0)
    share = (fit.ratios[0] / (1 + fit.ratios[0] * rows.sum(1)))[:, None]
    before = np.linalg.inv(fit.subject_spread[np.ix_(present, present)])
    # The last pivot of a matrix with one more row and column is what the others leave of its last element.
    bordered = np.zeros((shape[0], shape[1] + 1, shape[1] + 1))
    bordered[:, :-1, :-1] = before - share[:, :, None] * rows[:, :, None] * rows[:, None, :]
    places_of_one = np.arange(shape[1])
    bordered[:, places_of_one, places_of_one] += rows
    bordered[:, -1, :-1] = bordered[:, :-1, -1] = sums - share * rows * sums.sum(1)[:, None]
    bordered[:, -1, -1] = quadratic
    pivots = np.diagonal(np.linalg.cholesky(bordered), axis1=1, axis2=2) ** 2
    return np.log(pivots[:, :-1]).sum(1) - np.linalg.slogdet(before)[1], pivots[:, -1]
