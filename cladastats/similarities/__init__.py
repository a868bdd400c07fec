"""Similarities of activations, and panels of them.

    formulas.py  similarities of two matrices, and the shifts that follow: functions of arrays
    metrics.py   a metric is an object: what it does to activations, and how it compares them
    blocks.py    the activations of a study, one pair at a time
    panels.py    the similarities of all pairs, one row for each hybrid

Knows activations on disk. Must not know regressions or models.
"""
