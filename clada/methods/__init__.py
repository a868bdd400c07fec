"""What may be left out of a token's computation: methods, plans, thresholds, load rules.

    registry.py      a row for every method
    rules.py         what keeps a neuron, an input, a value, a word: pure functions on arrays
    plan.py          what a method may leave out of a model within a loss
    coefficients.py  lambda and gamma, and the load rule of Eq. 11
    policy.py        a method with its thresholds and its load rule, for one model
    selection.py     what one token needs, as arrays
    observed.py      what is read off a model in torch: norms of weights, statistics of prompts
    screen.py        the cheap estimate of all logits
    dejavu.py        the trained predictors of the method dejavu

Knows models. Must not know how a step is computed, nor how a loss is measured.
"""
