"""Panel regressions of the response on prefix and load, and what they say about the claims.

    columns.py     the six columns, with an effect for every pair
    clustered.py   their errors by the libraries: linearmodels, and pyfixest where clusters are few
    within.py      the same regression in sums of each cluster, for resampling, and the rule of errors
    robustness.py  what a careful reader would ask of the table
    contrasts.py   between the ratios, and between the groups
    strata.py      parts of the pairs, placebo hybrids, the trimmed similarity
    power.py       the smallest effect that a design sees
    claims.py      the paper's claims against a study, with verdicts
    overview.py    fits side by side, also with the published values
    answers.py     what a study answers, in sentences made of its numbers
    case_study.py  the paper's 13 sentences and activation maps

Knows panels and fits. Must not run stages; a command hands over what another stage made.
"""
