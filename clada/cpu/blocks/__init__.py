"""Weights in blocks: codes of a few bits, of which some share a scale.

    kinds.py     what kinds of blocks there are, and how they lie in memory
    matrix.py    float32 and GGUF's bytes into blocks
    rows.py      a row as the kernels' instructions read it
    compiled.py  their instructions that make float32 of rows, and multiply them with a step's inputs
    tiles.py     those that multiply codes with the many inputs of a prompt

A kind says how many bits a code has and how many share a scale; GGUF's types are the kinds. Must not know the kernels
or torch.
"""
