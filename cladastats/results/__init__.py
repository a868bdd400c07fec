"""Fitted regressions as values that show themselves as tables. Knows nothing of studies, stages or models."""
