"""llama.cpp in a process of its own, as beside other engines' threads it decodes at half its speed.

A process holds one server, whose opening and closing hangs now and then where one process does it often.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any


def serve(connection: Connection, path: str, threads: int, context: int, exact: bool) -> None:
    """Load a file and answer completion requests until the other end closes.

    Args:
        connection: gets None once the file is loaded, or what is wrong with it; then takes requests of llama.cpp's
            completion endpoint and returns its answers.
        path: a GGUF file.
        threads: for prompt and decoding.
        context: tokens of room.
        exact: keep the cache in float32 and compute attention in full, in place of float16 and flash attention.
    """
    import secrets

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0  # where a GPU is found it would be used
    params.fit_params = False  # nothing to fit into a GPU, and it reads the model twice
    params.cache_ram_mib = 0  # no store of past prompts
    params.api_keys = [secrets.token_hex()]  # it also listens on a local port: not for others
    params.verbosity = 1  # errors only; they go to stderr
    if exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        connection.send(str(error))
        return
    connection.send(None)
    request: dict[str, Any]
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(server.handle_completions(request))
