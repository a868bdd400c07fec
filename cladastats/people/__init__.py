"""What words cost their readers, beside what they cost a model.

    descriptions/   the corpora that come with the package, one description each
    description.py  what a table measures, how its files look, which of its rows count
    trials.py       trials of participants, as they were published
    checks.py       a measure's unit, its implausible values, its place; columns that are the same
    corpora.py      corpora of reading times and brain responses, checked
    own.py          a user's own trials, merged with the words that were read
    formula.py      formulas of mixed models as lme4 reads them
    mixed.py        linear mixed models with crossed random effects
    gains.py        what a predictor adds to the density of texts that were held out
    density.py      the joint density of held-out texts, their random effects integrated out
    evidence.py     intervals, tests, smallest effects and bounds, and estimates over corpora
    results.py      the results as files, a table and sentences

Knows words and what they cost a model. Must not know studies of prefixes.
"""
