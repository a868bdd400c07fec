"""Sequences of tokens from texts, as a study needs them.

    sources.py       where text comes from: embedded, hub, JSON lines, a folder
    tokenizer.py     the tokenizer of a study, which must be the one its corpus was made with
    windows.py       windows of natural text
    random_words.py  random words with the parts of speech of a source
    pairs.py         pairs, hybrids and matched references
    placebos.py      hybrids that should not act as prefixes do

Knows texts and tokenizers. Must not know activations or statistics.
"""
