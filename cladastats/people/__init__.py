"""What words cost a model and its readers.

    meter.py      surprisal, entropy and effort of every word of a text
    corpora.py    corpora of reading times and brain responses, checked
    published.py  the same as their authors published them
    gains.py      what a predictor adds to the density of texts that were held out
    results.py    the results as files, a table and sentences

Knows models and words. Must not know studies of prefixes.
"""
