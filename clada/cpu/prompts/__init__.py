"""Prompts and known texts on the CPU: many tokens at once.

    layers.py    the layers, stage by stage, and the threads that share them
    matrices.py  a layer's matrices, made ready for products with many tokens

Steps of few tokens are the kernels' own, see `clada.cpu.kernels`. Must not know torch, transformers, plans or names of
families.
"""
