"""Where compiled kernels are kept between processes.

numba keeps a compiled function beside its source file, or in a folder of the user, and makes it anew when that one file
changes. A kernel consists of functions of many files, though: a change in one of them would go unnoticed. It also
refuses to be imported where no folder can be written to. Kernels therefore have a cache of their own: in a folder of
`CLADA_CACHE` whose name is a checksum of all their sources. Nothing is written before something is compiled.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.codegen import CPUCodeLibrary, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu import CPUContext
from numba.core.dispatcher import Dispatcher

from clada.cpu import llvm, precision
from clada.cpu.blocks import compiled, kinds, rows, tiles
from clada.methods import screen, selection
from clada.system.cache import cache_dir, sources_stamp

KERNELS = Path(__file__).parent / "kernels"

# What else is part of compiled code: instructions that precisions give, constants.
COMPILED_IN = (compiled, kinds, llvm, precision, rows, screen, selection, tiles)

_DAMAGED = (EOFError, pickle.UnpicklingError)  # what reading a file ends in that is not whole


def _leave_scipy_aside() -> None:
    """Let numba set itself up without scipy.linalg, whose import is a good part of a start.

    numba imports it to know that products of matrices could be compiled. The kernels have none. scipy is there, since
    this package depends on it, and numba imports it where it does compile one.
    """
    from numba.np import linalg

    asked = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        from numba.np import arraymath
    finally:
        linalg.ensure_blas = asked
    arraymath.ensure_blas = asked


_leave_scipy_aside()


@functools.cache
def source_stamp() -> str:
    """Checksum of all sources of the kernels, their names included."""
    return sources_stamp([*sorted(KERNELS.glob("*.py")), *(Path(str(module.__file__)) for module in COMPILED_IN)])


class _Locator(_CacheLocator):
    """Tells numba the folder, and what must be the same for its files to be used."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file = file  # numba's name, which its warnings use
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        """Of a function; numba asks several kinds of locators in turn, we have one."""
        return cls(py_func, py_file)

    def get_cache_path(self) -> str:
        """A folder for these sources only, so that versions beside each other do not overwrite each other's files."""
        return str(cache_dir() / "kernels" / source_stamp()[:16])

    def get_source_stamp(self) -> str:
        """The whole checksum."""
        return source_stamp()

    def get_disambiguator(self) -> str:
        """The line, which tells functions of one name in one file apart."""
        return str(self._line)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012  # as numba declares it


class KernelCache(FunctionCache):
    """The cache of one kernel, which works where it cannot write and says when its kernel is compiled.

    Args:
        function: the kernel in Python.
        announce: say on stderr when it is compiled, because that takes long.
    """

    _impl_class = _Implementation
    _said_unwritable = False  # of all kernels: once a process

    def __init__(self, function: Callable[..., Any], announce: bool) -> None:
        super().__init__(function)
        self._announce = announce

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel for these types, or None, after which numba compiles it."""
        compiled = None
        with contextlib.suppress(OSError, *_DAMAGED):  # compiled again
            compiled = super().load_overload(sig, target_context)
        if compiled is None and self._announce:
            seconds, _ = last_compilation()
            expected = f"{seconds:.0f} s the last time" if seconds else "about half a minute"
            print(f"clada: compiling the kernels, {self._how_often()}: {expected}", file=sys.stderr, flush=True)
        return compiled

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        with contextlib.suppress(OSError):
            try:
                super().save_overload(sig, data)
            except _DAMAGED:  # the index, which says what else there is
                self.flush()
                super().save_overload(sig, data)

    def _how_often(self) -> str:
        try:
            self._impl.locator.ensure_cache_path()
        except OSError as error:
            if not KernelCache._said_unwritable:
                KernelCache._said_unwritable = True
                return (
                    f"at every start because {self.cache_path} cannot be written to ({error.strerror or error}; set "
                    "CLADA_CACHE to a folder that you may write to)"
                )
            return "again"
        return "once for each precision"


def _note() -> Path:
    return cache_dir() / "kernels" / "last-compilation"


def last_compilation() -> tuple[float, int]:
    """The seconds that a kernel took to compile here the last time, and of how many functions; zeros if unknown."""
    try:
        seconds, functions = _note().read_text(encoding="utf-8").split()
        return float(seconds), int(functions)
    except (OSError, ValueError):
        return 0.0, 0


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[], None]]:
    """How far a kernel is, on a terminal; gives what is called for each function. What it took is kept."""
    from tqdm import tqdm

    begin = time.monotonic()
    _, functions = last_compilation()
    with tqdm(
        desc="functions of the kernels, then all in one",
        total=functions or None,
        leave=False,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
    ) as progress:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            progress.update()

        yield count
    with contextlib.suppress(OSError):
        _note().write_text(f"{time.monotonic() - begin:.1f} {done}", encoding="utf-8")


@contextlib.contextmanager
def _linked_into(name: str, count: Callable[[], None]) -> Iterator[None]:
    """Within the block, what numba compiles is only linked into its callers, but for the function of this name.

    numba makes machine code of every function that a kernel calls, with all that this calls in turn, although Python
    never calls it, most with wrappers for Python and for C, and optimises the same code again in every caller. Here
    only the whole is optimised, made code of and wrapped. A kernel compiles in a third of the time. Python cannot call
    what was only linked: it is forgotten after the block, so that numba compiles it again if it must.
    """
    from unittest import mock  # takes asyncio along, which a start from the cache need not wait for

    finish, set_env = CPUCodeLibrary._finalize_final_module, JITCPUCodegen.set_env
    add_overload, compiled = Dispatcher.add_overload, set[Any]()
    wrap = CPUContext.create_cpython_wrapper

    def optimise_whole(library: Any) -> None:
        # numba goes over the code once before this, for the sake of reference counts, which kernels have not.
        if library.name == name:
            passes, builder = library._codegen._module_pass_manager()
            passes.run(library._final_module, builder)

    def finish_whole(library: Any) -> None:
        if library.name == name:
            finish(library)
        else:
            library._finalized = True

    def wrap_whole(context: Any, library: Any, *args: Any, **options: Any) -> None:
        if library.name == name:
            wrap(context, library, *args, **options)

    def set_env_of_whole(codegen: Any, env_name: str, env: Any) -> None:
        if codegen._engine.is_symbol_defined(env_name):  # only Python objects need it, which kernels have not
            set_env(codegen, env_name, env)

    def add_and_note(dispatcher: Any, result: Any) -> None:
        compiled.add(dispatcher)
        count()
        add_overload(dispatcher, result)

    patched = (
        (Dispatcher, "add_overload", add_and_note),
        (CPUContext, "create_cpython_wrapper", wrap_whole),
        (CPUContext, "create_cfunc_wrapper", lambda *_: None),  # of first-class functions, which kernels have not
        (CPUCodeLibrary, "_optimize_final_module", optimise_whole),
        (CPUCodeLibrary, "_finalize_final_module", finish_whole),
        (JITCPUCodegen, "set_env", set_env_of_whole),
    )
    with contextlib.ExitStack() as stack, global_compiler_lock:
        for owner, attribute, function in patched:
            stack.enter_context(mock.patch.object(owner, attribute, function))
        try:
            yield
        finally:
            for dispatcher in compiled:
                dispatcher._reset_overloads()


def kernel(*, announce: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that Python calls as a kernel: `numba.njit` with a `KernelCache`.

    Functions that only kernels call are compiled into these and take a plain `njit`.

    Args:
        announce: say on stderr when it is compiled, because that takes long.
        options: of `njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        # As numpy divides by zero: a check for it in a loop would keep vector instructions out of it.
        dispatcher = njit(error_model="numpy", **options)(function)
        dispatcher._cache = KernelCache(function, announce)  # what enable_caching() does with numba's own
        compiler = dispatcher._compiler
        compile_all = compiler._compile_core

        def compile_whole(args: Any, return_type: Any) -> Any:
            watched = _watched() if announce else contextlib.nullcontext(lambda: None)
            with watched as count, _linked_into(function.__qualname__, count):
                return compile_all(args, return_type)

        compiler._compile_core = compile_whole
        return dispatcher

    return decorate
