"""The smooth part of every estimator: mean losses of T tasks with intercepts that are solved for exactly.

    F(W) = sum_t s_t min_b sum_i a_i loss(y_i, x_i^T w_t + b)          W: (T, d), s_t = c_t / sum_i a_i

with loss(y, z) = 1/2 (y - z)² (squared) or log(1 + exp(z)) - y z with y in {0, 1} (logistic).
Since the best intercept is used everywhere, F is a function of W only: its gradient is the usual
one, its Hessian is that of inputs centred with the curvature weights, and the residuals of every
task add up to zero, which makes scaled residuals a feasible point of the dual problem.

Squared losses are computed from moments, logistic ones (and squared ones whose Gram matrices would
be too large) from the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, xlogy

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.moments import Block, Moments

Bools = NDArray[np.bool_]

_LARGEST_GRAMS = 20_000_000  # numbers; 160 MB
_INTERCEPT_STEPS = 100


@dataclass(frozen=True)
class Point:
    """F and what belongs to it at one W.

    Parameters
    ----------
    W, gradient
        ``(T, d)``.
    intercept
        The best intercepts, ``(T,)``.
    losses
        c_t times the mean loss of each task, ``(T,)``.
    residuals
        Per block of rows: y minus the mean response, ``(m, k)`` (None for blocks kept as moments).
    """

    W: Floats
    gradient: Floats
    intercept: Floats
    losses: Floats
    residuals: tuple[Floats, ...]

    @property
    def value(self) -> float:
        return float(self.losses.sum())


@dataclass(frozen=True)
class Curvature:
    """Hessian of task t = scale[t] * grams[pattern[t]], on some features."""

    grams: Floats
    pattern: Ints
    scale: Floats

    def times(self, W: Floats) -> Floats:
        """Return the Hessians times the rows of ``W`` ``(T, k)``."""
        return _rows_times(self.grams, self.pattern, W) * self.scale[:, None]


@dataclass(frozen=True)
class _Rows:
    """A block of rows whose columns all have the same loss."""

    block: Block
    logistic: bool


class TaskLosses:
    """F for given data.

    Parameters
    ----------
    blocks
        The labelled rows; every task is in one block at most, and a task in none has loss 0.
    logistic
        Per task whether its loss is logistic, ``(T,)``; its targets are 0 and 1, and with an intercept
        both occur.
    weights
        c_t, ``(T,)``.
    n_features
        d.
    fit_intercept
        Whether there are intercepts; otherwise b = 0.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        logistic: Bools,
        weights: Floats,
        n_features: int,
        fit_intercept: bool = True,
    ) -> None:
        self.n_tasks = len(weights)
        self.n_features = n_features
        self.fit_intercept = fit_intercept
        self.logistic = np.asarray(logistic, dtype=np.bool_)
        self.totals = np.ones(self.n_tasks)
        for block in blocks:
            self.totals[block.outputs] = block.total
        self.scale = np.asarray(weights, dtype=np.float64) / self.totals
        squared, rest = _by_loss(blocks, self.logistic)
        self.shift = np.zeros((self.n_tasks, n_features))
        self.rows = [_Rows(block, True) for block in rest]
        if len(squared) * n_features**2 <= _LARGEST_GRAMS:
            raw = Moments.of_blocks(squared, self.n_tasks, n_features)
            self.moments: Moments | None = raw if fit_intercept else raw.uncentred()
            self.shift[:] = self.moments.mean_x[self.moments.pattern]
        else:
            self.moments = None
            self.rows = [*[_Rows(block, False) for block in squared], *self.rows]
        if fit_intercept:
            for rows in self.rows:
                block = rows.block
                self.shift[block.outputs] = block.weights @ block.X / block.total
        self.rows = [_Rows(_centred(rows.block) if fit_intercept else rows.block, rows.logistic) for rows in self.rows]
        self.in_moments = ~self.logistic if self.moments is not None else np.zeros(self.n_tasks, dtype=np.bool_)

    @property
    def all_quadratic(self) -> bool:
        """Whether F is quadratic."""
        return not self.logistic.any()

    def at(self, W: Floats, start: Point | None = None) -> Point:
        """Evaluate F at ``W``; ``start`` is a point whose intercepts are near."""
        gradient, losses = np.zeros_like(W), np.zeros(self.n_tasks)
        intercept = np.zeros(self.n_tasks)  # of centred inputs, until the end
        if self.moments is not None:
            m = self.moments
            product = _rows_times(m.gram, m.pattern, W)
            rest = m.yy - 2.0 * np.einsum("td,td->t", m.cross, W) + np.einsum("td,td->t", W, product)
            gradient += self.in_moments[:, None] * self.scale[:, None] * (product - m.cross)
            losses += self.in_moments * self.scale * 0.5 * np.maximum(rest, 0.0)
            intercept += self.in_moments * m.mean_y
        residuals = []
        for rows in self.rows:
            block, out = rows.block, rows.block.outputs
            margin = block.X @ W[out].T
            if rows.logistic:
                near = (
                    np.zeros(len(out))
                    if start is None
                    else start.intercept[out] + np.einsum("kd,kd->k", self.shift[out], W[out])
                )
                if self.fit_intercept:
                    intercept[out] = _logistic_intercepts(block, margin, near)
                z = margin + intercept[out]
                residual = block.Y - expit(z)
                loss = np.logaddexp(0.0, z) - block.Y * z
            else:
                centre = block.weights @ block.Y / block.total if self.fit_intercept else np.zeros(len(out))
                intercept[out] = centre
                residual = block.Y - centre - margin
                loss = 0.5 * np.square(residual)
            losses[out] = self.scale[out] * (block.weights @ loss)
            gradient[out] = -self.scale[out][:, None] * ((residual * block.weights[:, None]).T @ block.X)
            residuals.append(residual)
        intercept -= np.einsum("td,td->t", self.shift, W)
        return Point(W, gradient, intercept, losses, tuple(residuals))

    def curvature(self, point: Point, features: Ints | None = None) -> Curvature:
        """Return the Hessian at ``point``, on all features or on some."""
        k = self.n_features if features is None else len(features)
        parts: list[Floats] = []
        pattern = np.zeros(self.n_tasks, dtype=np.int64)
        scale = self.scale.copy()
        count = 0
        if self.moments is not None:
            m = self.moments
            grams = m.gram if features is None else m.gram[:, features[:, None], features]
            parts.append(grams)
            pattern[self.in_moments] = m.pattern[self.in_moments]
            count = len(grams)
        for rows, residual in zip(self.rows, point.residuals, strict=True):
            block, out = rows.block, rows.block.outputs
            X = block.X if features is None else block.X[:, features]
            if rows.logistic:
                mean = block.Y - residual
                for column, output in enumerate(out):
                    root = np.sqrt(block.weights * mean[:, column] * (1.0 - mean[:, column]))
                    parts.append(_weighted_gram(X, root, self.fit_intercept)[None])
                    pattern[output] = count
                    count += 1
            else:
                parts.append(_weighted_gram(X, np.sqrt(block.weights), False)[None])
                pattern[out] = count
                count += 1
        absent = np.ones(self.n_tasks, dtype=np.bool_)
        absent[self.in_moments] = False
        for rows in self.rows:
            absent[rows.block.outputs] = False
        scale[absent] = 0.0
        grams = np.concatenate(parts) if parts else np.zeros((1, k, k))
        return Curvature(np.ascontiguousarray(grams), pattern, scale)

    def dual(self, point: Point, shrink: float) -> float:
        """Return the dual objective at the residuals of ``point`` times ``shrink`` (0 … 1).

        With theta = shrink * residual: squared: sum s a (theta y - theta²/2); logistic:
        sum s a entropy(y - theta).
        """
        value = 0.0
        if self.moments is not None:
            m = self.moments
            product = np.einsum("td,td->t", m.cross, point.W)
            rest = np.where(self.in_moments, 2.0 * point.losses / np.where(self.scale > 0, self.scale, 1.0), 0.0)
            rest_y = m.yy - product
            value += float((self.in_moments * self.scale * (shrink * rest_y - 0.5 * shrink**2 * rest)).sum())
        for rows, residual in zip(self.rows, point.residuals, strict=True):
            block = rows.block
            theta = shrink * residual
            if rows.logistic:
                q = block.Y - theta
                part = -xlogy(q, q) - xlogy(1.0 - q, 1.0 - q)
            else:
                Y = block.Y - block.weights @ block.Y / block.total if self.fit_intercept else block.Y
                part = theta * Y - 0.5 * np.square(theta)
            value += float((block.weights @ part) @ self.scale[block.outputs])
        return value


def _by_loss(blocks: Sequence[Block], logistic: Bools) -> tuple[list[Block], list[Block]]:
    """Return the squared and the logistic columns of the blocks."""
    if not logistic.any():
        return list(blocks), []
    squared, rest = [], []
    for block in blocks:
        is_logistic = logistic[block.outputs]
        if not is_logistic.all():
            squared.append(_columns(block, ~is_logistic))
        if is_logistic.any():
            part = _columns(block, is_logistic)
            rest.append(part)
    return squared, rest


def _columns(block: Block, chosen: Bools) -> Block:
    if chosen.all():
        return block
    return Block(block.X, block.weights, block.Y[:, chosen], block.outputs[chosen])


def _centred(block: Block) -> Block:
    return Block(block.X - block.weights @ block.X / block.total, block.weights, block.Y, block.outputs)


def _rows_times(grams: Floats, pattern: Ints, W: Floats) -> Floats:
    """Return G_p(t) w_t for every row of ``W``; a Gram matrix that several tasks share is used once."""
    if len(grams) == len(W) and (pattern == np.arange(len(W))).all():
        return np.asarray(np.matmul(W[:, None, :], grams)[:, 0])
    product = np.empty_like(W)
    order = np.argsort(pattern, kind="stable")
    ends = np.cumsum(np.bincount(pattern, minlength=len(grams)))
    start = 0
    for gram, end in zip(grams, ends, strict=True):
        tasks = order[start:end]
        product[tasks] = W[tasks] @ gram
        start = end
    return product


def _weighted_gram(X: Floats, root: Floats, centre: bool) -> Floats:
    """Return sum_i r_i² (x_i - mean)(x_i - mean)^T with the mean weighted by r² (or 0)."""
    rooted = X * root[:, None]
    gram = rooted.T @ rooted
    total = float(root @ root)
    if centre and total > 0:
        mean = root @ rooted
        gram -= np.outer(mean, mean) / total
    return np.asarray(gram)


def _logistic_intercepts(block: Block, margin: Floats, start: Floats) -> Floats:
    """Solve sum_i a_i (y_i - sigmoid(margin_i + b)) = 0 for every column, which has both classes, by Newton steps."""
    a = block.weights
    b = start.copy()
    goal = a @ block.Y
    moving = np.arange(len(b))
    for _ in range(_INTERCEPT_STEPS):
        p = expit(margin[:, moving] + b[moving])
        missing = goal[moving] - a @ p
        slope = a @ (p * (1.0 - p))
        step = np.clip(missing / np.maximum(slope, 1e-300), -2.0, 2.0)
        b[moving] += step
        moving = moving[np.abs(step) > 1e-12 * (1.0 + np.abs(b[moving]))]
        if len(moving) == 0:
            break
    return b
