"""What words cost their readers, beside what they cost a model.

    corpora.py    corpora of reading times and brain responses, checked
    published.py  the same as their authors published them
    density.py    how likely texts are that a regression has not seen, with crossed random intercepts
    evidence.py   how sure a gain is, how large an effect could have been seen, and what corpora say together
    gains.py      what a predictor adds to the density of texts that were held out
    results.py    the results as files, a table and sentences

Knows words and what they cost a model. Must not know studies of prefixes.
"""
