"""What leaving out costs and gains: loss, speed, tasks, and other engines.

    loss.py          perplexity and divergence of a text, by the engine's own rules
    tables.py        the tables of a plan, from a calibration text
    search.py        the largest share that may be left out within a loss
    comparison.py    speed and loss of methods on the same work
    peers.py         transformers and llama.cpp, to compare with
    llama_server.py  llama.cpp in a process of its own
    gguf_export.py   a model as a GGUF file for llama.cpp
    tasks.py         the tasks of `clada evaluate`, from local files
    scores.py        scores of items, kept and compared with dense
    texts.py         windows of tokens from the texts that a user names
    plots.py         figures of the engine

Knows all rooms below it. Must not know command lines, nor print results.
"""
