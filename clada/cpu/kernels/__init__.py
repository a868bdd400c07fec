"""The compiled functions, by what they compute.

    step.py       a token through the whole model
    attention.py  attention over the key-value cache
    mlp.py        the MLP; neurons leave early
    head.py       which words are computed in full, logits, and what surprisal and entropy need
    rows.py       products of rows with inputs, each row read whole or not at all
    tiles.py      products of codes with the many inputs of a prompt
    vectors.py    instructions written out in vectors
    scalars.py    numbers as kernels read them: stored weights, scales, exponentials
    team.py       threads that run one function side by side, and their barriers
    arguments.py  what the kernels are given: named tuples of arrays
    bandwidth.py  what the machine can read from memory

They know arrays alone. Must not know torch, transformers, plans or names of families.
"""
