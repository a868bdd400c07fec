"""Threads that run one function side by side, and the barriers at which they meet."""

from __future__ import annotations

import os
import platform
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from clada.cpu.kernels.rows import FIRST, WAITING
from clada.cpu.kernels.vectors import prefetch_row


@intrinsic
def _atomic_add(_context: Any, _array: Any, _value: Any) -> Any:
    """Add to the first element of an int64 array; returns what was there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, args[1], "seq_cst")

    return types.int64(types.Array(types.int64, 1, "C"), types.int64), codegen


@intrinsic
def _atomic_load(_context: Any, _array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(data, "seq_cst", 8)

    return types.int64(types.Array(types.int64, 1, "C")), codegen


AWAKE = 1 << 20  # times that a thread looks for the next call before it sleeps

# A thread that waits for another one gives its core away now and then, in case the other one needs it.
_yield_core = types.ExternalFunction(
    "SwitchToThread" if platform.system() == "Windows" else "sched_yield", types.int32()
)


@njit(forceinline=True)
def _arrive(sync, threads):  # type: ignore[no-untyped-def]
    """Say that this thread has come to a barrier, whose number it returns; the last one ends it."""
    number = _atomic_load(sync[1])
    if _atomic_add(sync[0], 1) == threads - 1:
        _atomic_add(sync[0], -threads)
        _atomic_add(sync[1], 1)
    return number


@njit
def barrier(sync, threads):  # type: ignore[no-untyped-def]
    """Wait for all threads."""
    number, spins = _arrive(sync, threads), 0
    while _atomic_load(sync[1]) == number:
        spins += 1
        if spins % 4096 == 0:
            _yield_core()


@njit
def barrier_before(rows, begin, sync, threads):  # type: ignore[no-untyped-def]
    """Wait for all threads, and meanwhile fetch the rows that the next part begins with into a cache."""
    for i in range(begin, min(begin + FIRST, rows.shape[0])):
        prefetch_row(rows, i)
    number, spins = _arrive(sync, threads), 0
    i, end = begin + FIRST, min(begin + WAITING, rows.shape[0])
    while _atomic_load(sync[1]) == number:
        if i < end:
            prefetch_row(rows, i)
            i += 1
        spins += 1
        if spins % 4096 == 0:
            _yield_core()


@njit(forceinline=True)
def begin_call(t, sync):  # type: ignore[no-untyped-def]
    """What a function for a team begins with: threads that wait in `end_call` come too.

    Said from here, where Python's lock is free: a thread that gets it at once need not sleep for it.
    """
    if t == 0:
        _atomic_add(sync[2], 1)


@njit
def end_call(t, threads, sync):  # type: ignore[no-untyped-def]
    """What a function for a team ends with: wait for all; then all but the first wait for the next call.

    While decoding it follows sooner than a sleeping thread could be woken. After a while they sleep.
    """
    seen, spins = _atomic_load(sync[2]), 0
    barrier(sync, threads)
    while t > 0 and spins < AWAKE and _atomic_load(sync[2]) == seen:
        spins += 1
        if spins % 4096 == 0:
            _yield_core()


class Team:
    """Threads that run one function side by side.

    They are Python's own: a pool of numba's beside torch's would have both spin on the same cores between regions.
    These sleep while there is nothing to do for longer than between two tokens. A forked child starts them anew.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._crew: list[_Member] = []
        weakref.finalize(self, _dismiss, self._crew)  # at the end of the process too
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        # Arrivals at barriers, barriers passed and calls begun, each on a cache line of its own.
        self._sync = np.zeros((3, 8), np.int64)
        self._crew[:] = [_Member(t, self.threads, self._sync) for t in range(1, self.threads)]

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Call function(t, threads, sync, *args) in every thread.

        It must begin with `begin_call` and end with `end_call`, or with what the first thread alone does.
        """
        if self._process != os.getpid():  # a forked child has the thread that forked and no other
            self._start()
        number = int(self._sync[2, 0])
        try:
            self._run(number, function, args)
        except (KeyboardInterrupt, SystemExit):
            # Others may wait for a thread that was interrupted before it began: take part first.
            if self._sync[2, 0] == number:
                self._run(number, function, args)
            raise

    def _run(self, number: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        for member in self._crew:
            member.calls.put((number, function, args))
        function(0, self.threads, self._sync, *args)


def _work(t: int, threads: int, sync: np.ndarray, calls: SimpleQueue[Any]) -> None:
    last = -1
    while (call := calls.get()) is not None:
        number, function, args = call
        if number != last:  # the same again after an interruption
            function(t, threads, sync, *args)
        last = number
        del call, function, args  # or the last step's arrays live until the next one


class _Member:
    """A thread of a team, from 1 on, and the calls that it waits for."""

    def __init__(self, t: int, threads: int, sync: np.ndarray) -> None:
        self.calls: SimpleQueue[Any] = SimpleQueue()
        self.sync = sync
        self.thread = threading.Thread(target=_work, args=(t, threads, sync, self.calls), daemon=True)
        self.thread.start()


def _dismiss(crew: Sequence[_Member]) -> None:
    """Let the threads end, and wait for it.

    A thread that comes back from compiled code when Python is no longer there ends the process as a crash.
    """
    for member in crew:
        member.calls.put(None)
        member.sync[2, 0] += 1  # it no longer waits for the next call within `end_call`
    for member in crew:
        if member.thread is not threading.current_thread():
            member.thread.join(timeout=5)  # rather a crash than to wait for ever
