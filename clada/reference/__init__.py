"""The same forward pass in plain torch, by the formulas as they are written.

    decoder.py    a step; the kernels are tested against it, and other devices run it
    prompt.py     prompts, in transformers' modules
    attention.py  attention that leaves out values of little weight

Knows the packed weights and the rules of the methods. Must not know the kernels.
"""
