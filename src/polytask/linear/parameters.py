"""Checks of numbers that the user gives as parameters."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from polytask.core.errors import InputError


def positive(name: str, value: Any, meaning: str) -> float:
    """Return the parameter as a number; refuse anything but a positive finite one."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < np.inf:
        raise InputError(f"{name} must be a positive number, got {value!r}; it is {meaning}")
    return float(value)


def not_negative(name: str, value: Any, meaning: str) -> float:
    """Return the parameter as a number; refuse anything but 0 or a positive finite one."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < np.inf:
        raise InputError(f"{name} must be a number of at least 0, got {value!r}; it is {meaning}")
    return float(value)


def count(name: str, value: Any, meaning: str, *, least: int = 1) -> int:
    """Return the parameter as a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}; it is {meaning}")
    return int(value)


def yes_or_no(name: str, value: Any) -> bool:
    """Return the parameter as a truth value."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return bool(value)
