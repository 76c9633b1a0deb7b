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

from polytask.compare.cell import OUT_OF_MEMORY, Cell, Work, run_cell
from polytask.compare.store import Stored
from polytask.core.errors import PolytaskError

Finished = Callable[[Cell, Stored], None]

_THREADS = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB", "NUMEXPR", "NUMBA")
} | {"VECLIB_MAXIMUM_THREADS": "1"}
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
_PATIENCE = 5.0  # seconds for a process whose pipe is closed to be gone


def in_processes(work: Work, cells: Sequence[Cell], n_jobs: int, finished: Finished) -> None:
    """Run cells in ``n_jobs`` processes and call ``finished`` with each, in the order they finish.

    A cell whose worker dies or runs out of memory is run again after the others, alone; when that fails too, it is
    marked failed. No other cell is given to such a worker.

    Raises
    ------
    WorkerStartError
        There is no room for a worker.
    """
    for cell in sorted(_run(work, cells, n_jobs, finished), key=cells.index):
        for reason in _run(work, [cell], 1, finished).values():
            finished(cell, work.failed(cell, reason))


def _run(work: Work, cells: Sequence[Cell], n_jobs: int, finished: Finished) -> dict[Cell, str]:
    """Run cells; return those whose worker died or ran out of memory, and the reason."""
    waiting = list(reversed(cells))
    workers: list[_Worker] = []
    lost: dict[Cell, str] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < n_jobs:
                workers.append(_Worker(work, waiting.pop()))
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                stored = worker.answer()
                if stored is None:
                    lost[worker.cell] = worker.last_words()
                elif stored.run.error == OUT_OF_MEMORY:
                    lost[worker.cell] = OUT_OF_MEMORY
                else:
                    finished(worker.cell, stored)
                if waiting and worker.cell not in lost:
                    worker.give(waiting.pop())
                else:
                    workers.remove(worker)
                    worker.kill()
    finally:
        for worker in workers:
            worker.kill()
    return lost


class WorkerStartError(PolytaskError, RuntimeError):
    """A worker process cannot be started."""


class _Worker:
    """One process and the cell it runs."""

    def __init__(self, work: Work, cell: Cell) -> None:
        from joblib.externals.loky.backend import get_context

        context: Any = get_context("loky")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, os.getpid()), env=_THREADS)
        try:
            with _without_interrupt():
                self._process.start()
        except OSError as error:
            raise WorkerStartError(
                f"no worker process could be started ({error.strerror or error}); free memory, or run with fewer jobs "
                "(0: in this process)"
            ) from error
        theirs.close()
        self.cell = cell
        self.give(cell)

    def give(self, cell: Cell) -> None:
        """Let the worker run a cell."""
        self.cell = cell
        with suppress(OSError):  # it is gone: answer() tells
            self.pipe.send(cell)

    def answer(self) -> Stored | None:
        """Return the finished run, or None when the worker died.

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

    def last_words(self) -> str:
        """Say how the process ended, after :meth:`answer` found that it did."""
        self._process.join(_PATIENCE)
        code = self._process.exitcode
        if code is not None and code >= 0:
            return f"the worker process ended with exit code {code}"
        by = "" if code is None else f" by signal {-code}"
        return f"the worker process was killed{by}, as when memory runs out"

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
        except MemoryError:  # there was no room for the answer
            pipe.send(work.failed(cell, OUT_OF_MEMORY))
        except BaseException as error:
            pipe.send(error)
            raise


def _follow(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
