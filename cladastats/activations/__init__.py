"""Activations at the target token: measured, in parts on disk, here or on a cluster. Knows no similarity."""
