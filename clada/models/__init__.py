"""Language models by any kind of name, taken apart into what decoding and extraction need.

    open.py             opens a model by an embedded name, a folder, a GGUF file or a hub id
    assets.py           the embedded models and corpus: fetched once, checked, kept
    gguf.py             GGUF files as float32 folders of transformers
    gguf_statements.py  what a GGUF file states beyond what transformers reads of it
    gguf_blocks.py      its matrices as they are stored
    architectures.py    a row for every family; the only file that knows their names
    anatomy.py          a model taken apart by the row of its family
    description.py      what decoding must know of a model beside its weights
    tokenizer.py        a tokenizer without transformers
    hooks.py            the one manager of hooks: put into a model, and taken out again
    quiet.py            calls of transformers that say nothing while they work

Knows architectures. Must not know what may be left out of a computation, nor how the kernels compute.
"""
