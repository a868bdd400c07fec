"""Texts as their words, and what every word costs a model.

    text.py       a text: its words, and what stands between them
    tablefile.py  tables that users bring, every cell as it is written: encodings, delimiters and decimals detected
    stimuli.py    running text, and tables with a row per word or sentence, as texts
    alignment.py  which token belongs to which word
    effort.py     the thresholds that a word's effort is counted by
    lens.py       a model of any class: hidden states, and logits of them
    reading.py    surprisal, entropy and effort of every token, in batches
    meter.py      surprisal, entropy and effort of every word of a text
    layers.py     the same of every layer, and its figure
    table.py      stimuli and a model, as a table with a row per word: `cladastats.word_table`
    output.py     the files of such a table, and what they say of it

Knows models and tokenizers. Must not know the people who read the texts.
"""
