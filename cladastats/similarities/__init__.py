"""Similarity of activations, and panels of it. Knows no regressions."""
