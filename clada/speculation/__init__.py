"""Speculative decoding: tokens are drafted cheaply, and the dense model checks some of them in one step.

    checks.py    the steps: a draft, its check, what is kept of it
    drafters.py  who drafts: the text so far, or a cheaper form of the model
    pace.py      how long a draft should be: what was accepted so far, and how long things take

Knows the kernels' decoder, and how a token is chosen. Must not know how a model is opened or packed.
"""
