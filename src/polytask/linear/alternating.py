"""What alternating estimators share: a falling objective, a stop when it stands still, warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from polytask.core.task import Floats


def alternate(start: float, advance: Callable[[], float], *, tol: float, max_iter: int, method: str) -> Floats:
    """Call ``advance``, which returns the objective it has reached, until that falls by at most ``tol`` of itself.

    Returns the objective before the first and after every round, ``(n_rounds + 1,)``; it never rises by
    more than rounding.
    """
    reached = [start]
    for _ in range(max_iter):
        reached.append(advance())
        if reached[-2] - reached[-1] <= tol * abs(reached[-1]):
            return np.array(reached)
    warnings.warn(
        f"{method} stopped after max_iter={max_iter} while its objective still fell by "
        f"{(reached[-2] - reached[-1]) / max(abs(reached[-1]), 1e-300):.1e} of itself per round, above tol={tol:.1e}; "
        "increase max_iter or tol",
        ConvergenceWarning,
        stacklevel=4,
    )
    return np.array(reached)
