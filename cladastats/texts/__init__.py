"""Texts as their words, and what every word costs a model.

    text.py       a text: its words, and what stands between them
    delimited.py  tables of text: separators, decimal signs and encodings detected
    alignment.py  which token belongs to which word
    effort.py     the thresholds that a word's effort is counted by
    meter.py      surprisal, entropy and effort of every word of a text

Knows models and tokenizers. Must not know the people who read the texts.
"""
