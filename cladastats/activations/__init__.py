"""Neuron activations at the target token: measured, and kept in checked files.

    work.py       what a worker measures for a shard
    attention.py  attention of many tokens after a cache
    parts.py      the file that a shard becomes
    clusters.py   shards on the workers of a cluster

Knows models and sequences. Must not know similarities or regressions.
"""
