"""What words cost their readers, beside what they cost a model.

    corpora.py    corpora of reading times and brain responses, checked
    published.py  the same as their authors published them
    formula.py    formulas of mixed models, and the columns they stand for
    mixed.py      mixed models with crossed random effects
    gains.py      what a predictor adds to the density of texts that were held out
    results.py    the results as files, a table and sentences

Knows words and what they cost a model. Must not know studies of prefixes.
"""
