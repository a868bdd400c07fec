"""Simulated experiments whose mixed models are compared with lme4's.

`tests/reference/lme4.json` holds what lme4 found, made once by `benchmarks/lme4_reference.R`. Data are made anew by
numpy's RandomState, whose numbers never change, and are rounded, so that every machine has the same.
"""

import hashlib

import numpy as np
import pandas as pd


def _trials(random, subjects, items, share=1.0):
    """Subject and item of every trial: each subject reads each item once, or a share of them."""
    subject, item = np.divmod(np.arange(subjects * items), items)
    kept = random.random_sample(len(subject)) < share
    return subject[kept], item[kept]


def _table(**columns):
    return pd.DataFrame({name: np.round(c, 3) if np.asarray(c).dtype == float else c for name, c in columns.items()})


def _names(prefix, numbers):
    return np.array([f"{prefix}{number:03d}" for number in range(numbers.max() + 1)], dtype=object)[numbers]


def crossed_intercepts():
    """Self-paced reading: every subject reads every item."""
    random = np.random.RandomState(1)
    subject, item = _trials(random, 40, 60)
    surprisal, length = random.gamma(2, 3, 60)[item], random.randint(2, 12, 60)[item]
    rt = 320 + 4 * surprisal + 6.0 * length + random.normal(0, 40, 40)[subject] + random.normal(0, 15, 60)[item]
    return _table(
        subject=subject, item=item, surprisal=surprisal, length=length, rt=rt + random.normal(0, 70, len(item))
    )


def crossed_slopes():
    """Two conditions within subjects and items, whose effect varies with both."""
    random = np.random.RandomState(2)
    subject, item = _trials(random, 48, 32)
    condition = (subject + item) % 2
    surprisal = random.gamma(2, 3, len(item))
    by_subject = random.multivariate_normal([0, 0], [[900, 180], [180, 400]], 48)[subject]
    by_item = random.multivariate_normal([0, 0], [[400, -60], [-60, 225]], 32)[item]
    rt = 350 + 25.0 * condition + 3 * surprisal + by_subject[:, 0] + by_item[:, 0]
    rt = rt + condition * (by_subject[:, 1] + by_item[:, 1]) + random.normal(0, 60, len(item))
    return _table(
        subject=_names("s", subject),
        item=_names("i", item),
        condition=np.array(["easy", "hard"], dtype=object)[condition],
        surprisal=surprisal,
        rt=rt,
    )


def unbalanced():
    """Four tenths of the trials, subjects with few of them, missing values, and a predictor within items."""
    random = np.random.RandomState(3)
    subject, item = _trials(random, 60, 90, 0.4)
    kept = random.random_sample(len(subject)) < ((subject % 5) + 1) / 5
    subject, item = subject[kept], item[kept]
    surprisal = random.gamma(2, 3, len(item))
    slope = random.normal(0, 2.5, 60)[subject]
    rt = 300 + (5 + slope) * surprisal + random.normal(0, 50, 60)[subject] + random.normal(0, 20, 90)[item]
    rt = rt + random.normal(0, 80, len(item))
    table = _table(subject=subject, item=item, surprisal=surprisal, rt=rt)
    table.loc[random.random_sample(len(item)) < 0.03, "rt"] = np.nan
    table.loc[random.random_sample(len(item)) < 0.02, "surprisal"] = np.nan
    return table


def near_singular():
    """Slopes that go along with intercepts, r = 0.97, and items that hardly differ."""
    random = np.random.RandomState(4)
    subject, item = _trials(random, 50, 40)
    x = random.normal(0, 1, len(item))
    common = random.normal(0, 1, 50)
    slope = 12 * (0.97 * common + np.sqrt(1 - 0.97**2) * random.normal(0, 1, 50))
    rt = 400 + 30 * common[subject] + (10 + slope[subject]) * x + random.normal(0, 9, 40)[item]
    return _table(subject=subject, item=item, x=x, rt=rt + random.normal(0, 50, len(item)))


def singular():
    """Subjects and items differ in their means only, and items hardly; the model lets slopes vary too."""
    random = np.random.RandomState(7)
    subject, item = _trials(random, 30, 24)
    x = random.normal(0, 1, len(item))
    rt = 400 + 10 * x + random.normal(0, 30, 30)[subject] + random.normal(0, 100, len(item))
    return _table(subject=subject, item=item, x=x, rt=rt)


def nested():
    """Pupils of classes of schools, a condition with three levels, and an interaction."""
    random = np.random.RandomState(6)
    school, place = np.divmod(np.arange(8 * 5 * 6 * 8), 5 * 6 * 8)
    classroom, rest = np.divmod(place, 6 * 8)
    pupil = rest // 8
    condition = random.randint(0, 3, len(school))
    age = random.randint(84, 132, (8, 5, 6))[school, classroom, pupil]
    score = 50 + np.array([0, 3, -2.0])[condition] + 0.1 * age + 0.02 * age * (condition == 2)
    score = score + random.normal(0, 5, 8)[school] + random.normal(0, 3, (8, 5))[school, classroom]
    score = score + random.normal(0, 4, (8, 5, 6))[school, classroom, pupil] + random.normal(0, 6, len(school))
    return _table(
        school=_names("school", school),
        classroom=classroom,
        pupil=pupil,
        condition=np.array(["b", "A", "c"], dtype=object)[condition],
        age=age,
        score=score,
    )


def odd_units():
    """Time stamps as large as epochs, a rare truth value, seconds for a response, three grouping factors."""
    random = np.random.RandomState(8)
    subject, item = _trials(random, 36, 50, 0.8)
    when = 1.7e6 + 1000 * random.random_sample(len(item))
    frequency = random.gamma(3, 40, 50)[item] + 1
    first = random.random_sample(len(item)) < 0.1
    site = subject % 6
    seconds = 0.4 + 2e-5 * (when - 1.7e6) - 0.02 * np.log(frequency) + 0.05 * first
    seconds = seconds + random.normal(0, 0.05, 36)[subject] + random.normal(0, 0.02, 50)[item]
    seconds = seconds + random.normal(0, 0.03, 6)[site] + random.normal(0, 0.08, len(item))
    table = _table(subject=subject, item=item, site=site, when=when, frequency=frequency, first=first)
    return table.assign(seconds=np.round(seconds, 5))


DESIGNS = {
    "crossed_intercepts": (crossed_intercepts, "rt ~ surprisal + length + (1 | subject) + (1 | item)"),
    "crossed_slopes": (
        crossed_slopes,
        "rt ~ condition * surprisal + (1 + condition | subject) + (1 + condition | item)",
    ),
    "unbalanced": (unbalanced, "rt ~ surprisal + (1 + surprisal | subject) + (1 | item)"),
    "uncorrelated": (
        unbalanced,
        "log(rt + 500) ~ scale(surprisal) + I(surprisal^2) + (surprisal || subject) + (1 | item)",
    ),
    "near_singular": (near_singular, "rt ~ x + (1 + x | subject) + (1 | item)"),
    "singular": (singular, "rt ~ x + (1 + x | subject) + (1 + x | item)"),
    "nested": (nested, "score ~ condition * age + (1 | school/classroom/pupil)"),
    "category_slopes": (nested, "score ~ 0 + condition + (0 + condition | school) + (1 | school:classroom)"),
    "odd_units": (
        odd_units,
        "seconds ~ when + log(frequency) * first + (1 | subject) + (1 | item) + (1 | site)",
    ),
}
"""What lme4's values are stored of: the data, and a formula."""


CODINGS = [
    ("crossed_slopes", "rt ~ surprisal * condition + (1 | subject)"),
    ("crossed_slopes", "rt ~ surprisal + surprisal:condition + (condition | item)"),
    ("crossed_slopes", "rt ~ surprisal:condition + (0 + condition | item) + (1 | subject)"),
    ("crossed_slopes", "rt ~ condition / surprisal + (surprisal * condition || subject)"),
    ("nested", "score ~ 0 + condition * age + (1 | school/classroom/pupil)"),
    ("nested", "score ~ condition - 1 + age + (age | school:classroom) + (1 | school)"),
    ("nested", "score ~ I(age^2) + log(age + 1) + I((age - 90)/12 * 2) + I(-age^3) + (1 | school) + (1 | pupil)"),
    ("nested", "score ~ (age + condition + pupil)^2 - age:pupil + (1 | school)"),
    ("nested", "score ~ pupil + age + condition:pupil:age + condition:age + (0 + age | school) + (1 | school)"),
    ("odd_units", "log(seconds + 1) ~ first * scale(frequency) + (first || subject) + (1 | site/subject)"),
    ("odd_units", "I(1000 * seconds) ~ first + site + sqrt(abs(when)) + exp(-site) + log2(frequency) + (1 | item)"),
    ("odd_units", "seconds ~ (1 | item) + frequency + first:site + first + (frequency + first | subject:site)"),
]
"""Of which the names and sums of columns are stored: which data, and a formula."""


def checksum(table):
    """The first digits of the data's SHA-256, as CSV."""
    return hashlib.sha256(table.to_csv(index=False, lineterminator="\n").encode()).hexdigest()[:16]
