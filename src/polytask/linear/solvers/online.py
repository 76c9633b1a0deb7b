"""One pass of an online learner over labelled rows, compiled on first use."""

from __future__ import annotations

from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats


@njit(cache=True)
def learn(
    X: Floats,
    rows: Ints,
    tasks: Ints,
    y: Floats,
    W: Floats,
    K: Floats,
    constant: float,
    perceptron: bool,
    step: float,
    losses: Floats,
    seen: Ints,
) -> bool:
    """Learn in order from ``rows`` of ``X`` ``(n, d)`` with labels ``y`` of ``tasks``; return whether W changed.

    W: (T, d + 1), the last column goes with an input that is always ``constant``; K: (T, T) inverse
    interactions. The loss before every update is added to ``losses`` ``(T,)``, the row to ``seen``.
    """
    d = X.shape[1]
    changed = False
    for i in range(len(rows)):
        x, t = X[rows[i]], tasks[i]
        score = W[t, d] * constant
        for j in range(d):
            score += W[t, j] * x[j]
        seen[t] += 1
        push = 0.0
        if perceptron:
            if y[i] * score <= 0.0:
                losses[t] += 1.0
                push = y[i]
        else:
            error = y[i] - score
            losses[t] += 0.5 * error * error
            length = constant * constant
            for j in range(d):
                length += x[j] * x[j]
            if length > 0.0:
                push = step * error / (K[t, t] * length)
        if push == 0.0:
            continue
        changed = True
        for s in range(W.shape[0]):
            share = push * K[s, t]
            for j in range(d):
                W[s, j] += share * x[j]
            W[s, d] += share * constant
    return changed
