"""Similarities of activations: formulas, the metrics made of them, and panels of a study. Knows no regressions."""
