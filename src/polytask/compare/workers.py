"""Cells in worker processes: each worker runs one cell at a time, and one that dies takes only its own with it.

Workers are started through loky, so that a script needs no ``if __name__ == "__main__"``; each has its
own pipe, so the parent knows what every one was doing. Ctrl-C is the parent's business; workers
are killed when it stops, and end by themselves when it is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from polytask.compare.cell import Cell, Work, run_cell
from polytask.compare.store import Stored

KILLED = "the worker process was killed, as when memory runs out"
Finished = Callable[[Cell, Stored], None]

_THREADS = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB", "NUMEXPR", "NUMBA")
} | {"VECLIB_MAXIMUM_THREADS": "1"}
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def in_processes(work: Work, cells: Sequence[Cell], n_jobs: int, finished: Finished) -> None:
    """Run cells in ``n_jobs`` processes and call ``finished`` with each, in the order they finish.

    A cell whose worker is killed is run again after the others, alone; killed again, it is marked failed.
    """
    killed = _run(work, cells, n_jobs, finished)
    for cell in sorted(killed, key=cells.index):
        if _run(work, [cell], 1, finished):
            finished(cell, work.failed(cell, KILLED))


def _run(work: Work, cells: Sequence[Cell], n_jobs: int, finished: Finished) -> list[Cell]:
    """Run cells; return those whose worker was killed."""
    waiting = list(reversed(cells))
    workers: list[_Worker] = []
    killed: list[Cell] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < n_jobs:
                workers.append(_Worker(work, waiting.pop()))
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                stored = worker.answer()
                if stored is None:
                    killed.append(worker.cell)
                else:
                    finished(worker.cell, stored)
                if stored is not None and waiting:
                    worker.give(waiting.pop())
                else:
                    workers.remove(worker)
                    worker.kill()
    finally:
        for worker in workers:
            worker.kill()
    return killed


class _Worker:
    """One process and the cell it runs."""

    def __init__(self, work: Work, cell: Cell) -> None:
        from joblib.externals.loky.backend import get_context

        context: Any = get_context("loky")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, os.getpid()), env=_THREADS)
        with _without_interrupt():
            self._process.start()
        theirs.close()
        self.cell = cell
        self.give(cell)

    def give(self, cell: Cell) -> None:
        """Let the worker run a cell."""
        self.cell = cell
        with suppress(OSError):  # it is gone: answer() tells
            self.pipe.send(cell)

    def answer(self) -> Stored | None:
        """Return the finished run, or None when the worker was killed.

        Raises
        ------
        BaseException
            What a mistake in the program raised in the worker.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, BaseException):
            raise answer
        stored: Stored = answer
        return stored

    def kill(self) -> None:
        """End the process at once, and wait for it."""
        if self._process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, _KILL)
        self._process.join()
        self.pipe.close()


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Let a process that is started here inherit that Ctrl-C is not for it, from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, work: Work, parent: int) -> None:
    """Run the cells that come through the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "getppid"):
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    while True:
        try:
            cell = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_cell(work, cell))
        except BaseException as error:
            pipe.send(error)
            raise


def _follow(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
