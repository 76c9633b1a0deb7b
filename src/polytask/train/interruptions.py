"""What may end a fit from outside: Ctrl-C, and memory that runs out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from polytask.core.errors import PolytaskError


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that there is not enough memory; PyTorch has no one kind for it on the CPU."""
    if isinstance(error, PolytaskError):
        return False
    told = str(error).lower()
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or "can't allocate memory" in told or "not enough memory" in told


@contextmanager
def patient_interrupt(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C wait for the end of a step, which asks whether there was one; a second does not wait.

    Handlers that are not Python's own are left alone.
    """
    seen: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if (
        not wanted
        or usual is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield lambda: False
        return

    def remember(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, usual)
    if seen:
        raise KeyboardInterrupt
