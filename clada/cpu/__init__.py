"""The engine's forward pass on a CPU: packed weights, kernels, decoding.

    llvm.py          instructions that the kernels and the precisions are written in
    precision.py     an object for every precision: storage, packing, widening, instructions
    blocks/          weights as codes of a few bits, in groups with a scale each
    sources.py       where the blocks of a model come from
    storage.py       matrices stored by rows, and layers of transformers on top of them
    fused.py         packed layers where a model has several projections in one module
    pack.py          the weights of a model at one precision, and layers of transformers on their memory
    weights.py       the same as arrays alone
    kept.py          packed models in the cache, read without torch
    kernels/         the compiled functions of a step
    kernel_cache.py  where compiled kernels are kept between processes
    prompts/         prompts and known texts: many tokens at once, with products of matrices
    decoder.py       the state of decoding, and a step of it

Knows the arrays of a selection. Must not know which method chose them, nor what they are measured for.
"""
