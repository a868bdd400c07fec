"""Sequences of tokens from texts: sources, windows, random words, pairs and placebo forms. Knows no activations."""
