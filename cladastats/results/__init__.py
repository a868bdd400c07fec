"""Fitted regressions and answers of checks, as values that show themselves as tables.

    labels.py      names of measures and groups as readers see them
    fit.py         the six columns of a metric and response
    robustness.py  the answers of the robustness checks as one table
    verdicts.py    the one rule by which claims are judged
    plots.py       how figures look: sizes, lines that differ in grey, legends
    tables.py      finished cells as text, Markdown, LaTeX and HTML

Knows numbers and names alone. Must not know studies, stages or models.
"""
