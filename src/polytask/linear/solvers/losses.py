"""The smooth part of every estimator: mean losses of T tasks with intercepts that are solved for exactly.

    F(W) = sum_t s_t min_b sum_i a_i loss(y_i, x_i^T w_t + b)          W: (T, d), s_t = c_t / sum_i a_i

with loss(y, z) = 1/2 (y - z)² (squared), log(1 + exp(z)) - y z with y in {0, 1} (logistic), or, with
r = y - z, r² / 2 for |r| <= delta_t and delta_t |r| - delta_t² / 2 beyond (Huber). A multinomial loss
belongs to K rows of W at once, one per class: log sum_k exp(z_k) - z_y, with y given as K columns 0/1.
Since the best intercept is used everywhere, F is a function of W only: its gradient is the usual
one, its Hessian is that of inputs centred with the curvature weights, and the residuals of every
task add up to zero, which makes scaled residuals a feasible point of the dual problem.

Squared losses are computed from moments, the others (and squared ones whose Gram matrices would be
too large) from the rows. Sparse rows stay sparse: their mean is subtracted from the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import diags_array
from scipy.special import expit, logsumexp, xlogy

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.moments import Block, Moments, MomentsOnly, Stack, is_sparse, totals_of

Bools = NDArray[np.bool_]

SQUARED, HUBER, LOGISTIC, MULTINOMIAL = 0, 1, 2, 3  # from MULTINOMIAL on, one number per loss

_LARGEST_GRAMS = 20_000_000  # numbers; 160 MB
_LARGEST_CURVATURE = 60_000_000  # numbers; 480 MB
_MOST_CURVATURE = 1_000_000_000  # numbers; 8 GB
OUTSIDE = 0.1  # share of the bounding curvature that stands in for the zero beyond Huber's threshold
_HALVINGS = 30
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
        Per block of rows: y minus the mean response, ``(m, k)`` (None for blocks kept as moments); of Huber
        losses not yet cut off at delta.
    stacked
        The same of the rows of tasks with logistic losses and rows of their own, ``(m,)``.
    """

    W: Floats
    gradient: Floats
    intercept: Floats
    losses: Floats
    residuals: tuple[Floats, ...]
    stacked: Floats | None = None

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


def kinds_of(curvature: Curvature) -> tuple[Floats, Ints]:
    """Return the distinct Hessians (pattern, scale) ``(2, K)`` and which of them each task has, ``(T,)``."""
    T = len(curvature.pattern)
    if len(curvature.grams) == T and (curvature.pattern == np.arange(T)).all():
        return np.stack([np.arange(T), curvature.scale]), np.arange(T)
    kinds, which = np.unique(np.stack([curvature.pattern, curvature.scale]), axis=1, return_inverse=True)
    return kinds, which.reshape(-1)


class Hessian(Protocol):
    """Something that multiplies the Hessians of all tasks with the rows of W."""

    def times(self, W: Floats) -> Floats:
        """Return the Hessians times the rows of ``W`` ``(T, d)``."""
        ...


@dataclass(frozen=True)
class _Rows:
    """A block of rows whose columns all have the same kind of loss.

    Parameters
    ----------
    shift
        What is to be subtracted from every row of sparse inputs, ``(d,)``; None: nothing (dense inputs are centred).
    delta
        Thresholds of Huber losses, ``(k,)``.
    """

    block: Block
    kind: int
    shift: Floats | None = None
    delta: Floats | None = None

    def times(self, W: Floats) -> Floats:
        """Return X W^T, ``(m, k)``."""
        product = np.asarray(self.block.X @ W.T)
        return product if self.shift is None else product - W @ self.shift

    def back(self, R: Floats) -> Floats:
        """Return R^T X, ``(k, d)``, of ``R`` ``(m, k)``."""
        if not is_sparse(self.block.X):
            return np.asarray(R.T @ self.block.X)
        product = np.asarray((self.block.X.T @ R).T)
        return product if self.shift is None else product - np.outer(R.sum(axis=0), self.shift)

    def gram(self, root: Floats, features: Ints | None, *, centre: bool) -> Floats:
        """Return sum_i r_i² (x_i - mean)(x_i - mean)^T on some features, the mean weighted by r² (or 0)."""
        X = self.block.X if features is None else self.block.X[:, features]
        if not is_sparse(X):
            return _weighted_gram(X, root, centre)
        rooted = diags_array(root) @ X
        gram = np.asarray((rooted.T @ rooted).toarray())
        total = float(root @ root)
        sums = np.asarray(rooted.T @ root)
        if centre and total > 0:
            return gram - np.outer(sums, sums) / total
        if self.shift is None:
            return gram
        mean = self.shift if features is None else self.shift[features]
        cross = np.outer(sums, mean)
        return gram - cross - cross.T + total * np.outer(mean, mean)

    def psi(self, residual: Floats) -> Floats:
        """Return minus the derivatives of the losses."""
        return residual if self.delta is None else np.clip(residual, -self.delta, self.delta)

    def bend(self, residual: Floats, outside: float) -> Floats:
        """Return weights of the squares in the quadratic model of the losses, ``(m, k)``, for row weights 1.

        They are ``(m, 1)`` where all columns have the same: a multinomial Hessian diag(p) - p p^T is at most
        2 max p (1 - p) times the identity.
        """
        if self.kind == SQUARED:
            return np.ones((len(residual), 1))
        if self.kind == HUBER:
            size = np.abs(residual)
            assert self.delta is not None
            return np.where(size <= self.delta, 1.0, outside * self.delta / np.maximum(size, 1e-300))
        mean = self.block.Y - residual
        part = mean * (1.0 - mean)
        return part if self.kind == LOGISTIC else 2.0 * part.max(axis=1, keepdims=True)


@dataclass(frozen=True)
class RowHessian:
    """The Hessians by products with the rows: exact for multinomial losses, and for any number of features.

    Parameters
    ----------
    known
        The Hessians of the tasks kept as moments.
    parts
        Blocks of rows with the means of multinomial losses, or the weights of the squares of the others.
    """

    known: Curvature | None
    parts: list[tuple[_Rows, Floats]]
    scale: Floats
    centre: bool
    inverses: dict[int, Floats] = field(default_factory=dict)

    def times(self, W: Floats) -> Floats:
        """Return the Hessians times the rows of ``W`` ``(T, d)``."""
        found = np.zeros_like(W) if self.known is None else self.known.times(W)
        for rows, weights in self.parts:
            out = rows.block.outputs
            moved = rows.times(W[out])
            if rows.kind >= MULTINOMIAL:
                moved = self._multinomial(rows, weights, moved)
            else:
                if self.centre and rows.kind != SQUARED:
                    total = weights.sum(axis=0)
                    moved -= (weights * moved).sum(axis=0) / np.where(total > 0, total, 1.0)
                moved = weights * moved
            found[out] = rows.back(moved) * self.scale[out][:, None]
        return found

    def diagonal(self) -> Floats:
        """Return diagonals of the Hessians or a little more, ``(T, d)``; there are no multinomial losses."""
        found = np.zeros((len(self.scale), self.parts[0][0].block.X.shape[1]))
        if self.known is not None:
            own = np.einsum("pdd->pd", self.known.grams)
            found += own[self.known.pattern] * self.known.scale[:, None]
        for rows, weights in self.parts:
            X = rows.block.X
            squares = X.power(2) if is_sparse(X) else np.square(X)
            found[rows.block.outputs] = (squares.T @ weights).T * self.scale[rows.block.outputs][:, None]
        return found

    def _multinomial(self, rows: _Rows, p: Floats, moved: Floats) -> Floats:
        """Return a (diag(p) - p p^T) times each row of ``moved`` less the best change of the intercepts."""
        ap = rows.block.weights[:, None] * p
        found = ap * (moved - np.einsum("mk,mk->m", p, moved)[:, None])
        if self.centre:
            if rows.kind not in self.inverses:
                self.inverses[rows.kind] = _inverse(np.diag(ap.sum(axis=0)) - ap.T @ p)
            step = self.inverses[rows.kind] @ found.sum(axis=0)
            found -= ap * (step - (p @ step)[:, None])
        return found


class _Stacked:
    """Tasks with logistic losses and rows of their own, all dealt with at once by compiled loops."""

    def __init__(self, stack: Stack, fit_intercept: bool) -> None:
        from polytask.linear.solvers.logistic_rows import centre  # numba: loaded when a fit needs it

        m = len(stack.y)
        self.outputs, self.bounds, self.fit_intercept = stack.outputs, stack.bounds, fit_intercept
        self.a = np.ones(m) if stack.weights is None else stack.weights
        self.y = np.ascontiguousarray(stack.y)
        self.means = np.empty((len(stack), stack.X.shape[1]))
        self.sizes = np.empty_like(self.means)
        self.columns = np.empty(stack.X.size)
        centre(
            np.ascontiguousarray(stack.X, dtype=np.float64),
            self.a,
            self.bounds,
            fit_intercept,
            self.means,
            self.columns,
            self.sizes,
        )
        share = np.add.reduceat(self.a * self.y, stack.bounds[:-1]) / stack.totals
        self.odds = np.zeros(len(stack))
        if fit_intercept:
            self.odds = np.log(share) - np.log1p(-share)

    def at(self, W: Floats, intercept: Floats) -> tuple[Floats, Floats, Floats]:
        """Return losses, gradients and residuals, and write the best intercepts, which go in as a guess."""
        from polytask.linear.solvers.logistic_rows import evaluate

        losses, gradient, residual = np.empty(len(W)), np.empty_like(W), np.empty(len(self.y))
        evaluate(
            self.columns,
            self.y,
            self.a,
            self.bounds,
            np.ascontiguousarray(W),
            self.fit_intercept,
            intercept,
            losses,
            gradient,
            residual,
        )
        return losses, gradient, residual

    def reach(self, step: Floats, enough: float) -> Floats:
        """Return the largest change of a margin of each task, ``(K,)``; see the function of this name."""
        from polytask.linear.solvers.logistic_rows import reach

        found = np.empty(len(step))
        reach(self.columns, self.bounds, self.sizes, np.ascontiguousarray(step), enough, found)
        return found

    def entropies(self, residual: Floats, shrink: float) -> Floats:
        """Return the dual objective of each task at ``shrink`` times the residuals, ``(K,)``."""
        from polytask.linear.solvers.logistic_rows import entropies

        found = np.empty(len(self.outputs))
        entropies(self.y, self.a, self.bounds, residual, shrink, found)
        return found

    def grams(self, residual: Floats, features: Ints | None, found: Floats) -> None:
        """Write the Hessians on some features into ``found`` ``(K, f, f)``."""
        from polytask.linear.solvers.logistic_rows import curvatures

        chosen = np.arange(self.means.shape[1]) if features is None else features
        curvatures(self.columns, self.y, self.a, self.bounds, residual, chosen, self.fit_intercept, found)


class TaskLosses:
    """F for given data.

    Parameters
    ----------
    blocks
        The labelled rows; every task is in one block at most, and a task in none has loss 0.
    logistic
        Per task whether its loss is logistic, ``(T,)``; its targets are 0 and 1, and with an intercept
        both occur.
    delta
        Per task the threshold of its Huber loss, ``(T,)``; inf: its loss is another. None: no task has one.
    classes
        Per multinomial loss the numbers of its K columns in W, one per class; their targets are 0 and 1
        and lie in one block. These columns count as tasks everywhere.
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
        delta: Floats | None = None,
        classes: Sequence[Ints] = (),
    ) -> None:
        self.n_tasks = len(weights)
        self.n_features = n_features
        self.fit_intercept = fit_intercept
        self.logistic = np.asarray(logistic, dtype=np.bool_)
        self.totals = np.ones(self.n_tasks)
        totals_of(blocks, self.totals)
        self.scale = np.asarray(weights, dtype=np.float64) / self.totals
        self.kind = np.where(self.logistic, LOGISTIC, SQUARED)
        self.delta = np.full(self.n_tasks, np.inf) if delta is None else np.asarray(delta, dtype=np.float64)
        self.kind[np.isfinite(self.delta)] = HUBER
        for number, columns in enumerate(classes):
            self.kind[columns] = MULTINOMIAL + number
        self.shift = np.zeros((self.n_tasks, n_features))
        self.stacked: _Stacked | None = None
        if self._is_stacked(blocks):
            assert isinstance(blocks, Stack)
            self.stacked = _Stacked(blocks, fit_intercept)
            self.shift[blocks.outputs] = self.stacked.means
            blocks = []
        squared, rest = _by_loss(blocks, self.kind)
        self.rows = [self._rows_of(block) for block in rest]
        if isinstance(squared, MomentsOnly) or (squared and len(squared) * n_features**2 <= _LARGEST_GRAMS):
            raw = Moments.of_blocks(squared, self.n_tasks, n_features)
            self.moments: Moments | None = raw if fit_intercept else raw.uncentred()
            alone = self.kind == SQUARED
            self.shift[alone] = self.moments.mean_x[self.moments.pattern[alone]]
        else:
            self.moments = None
            self.rows = [*[self._rows_of(block) for block in squared], *self.rows]
        self.in_moments = (self.kind == SQUARED) & (self.moments is not None)

    def _is_stacked(self, blocks: Sequence[Block]) -> bool:
        """Whether the blocks are rows of a stack whose losses are all logistic, and not too large for Hessians."""
        if not isinstance(blocks, Stack) or is_sparse(blocks.X) or not (self.kind == LOGISTIC).all():
            return False
        return len(blocks) * self.n_features**2 <= _LARGEST_CURVATURE

    def _rows_of(self, block: Block) -> _Rows:
        """Return a block of one kind of loss about the means of its inputs, if there are intercepts."""
        kind = int(self.kind[block.outputs[0]])
        delta = self.delta[block.outputs] if kind == HUBER else None
        shift = None
        if self.fit_intercept:
            mean = np.asarray(block.X.T @ block.weights, dtype=np.float64) / block.total
            self.shift[block.outputs] = mean
            if is_sparse(block.X):
                shift = mean
            else:
                block = Block(block.X - mean, block.weights, block.Y, block.outputs)
        return _Rows(block, kind, shift, delta)

    @property
    def all_quadratic(self) -> bool:
        """Whether F is quadratic."""
        return bool((self.kind == SQUARED).all())

    @property
    def separable(self) -> bool:
        """Whether every row of W has a Hessian of its own, unlike the classes of a multinomial loss."""
        return bool((self.kind < MULTINOMIAL).all())

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
            margin = rows.times(W[out])
            if self.fit_intercept:
                near = (
                    np.zeros(len(out))
                    if start is None
                    else start.intercept[out] + np.einsum("kd,kd->k", self.shift[out], W[out])
                )
                intercept[out] = _intercepts(rows, margin, near)
            z = margin + intercept[out]
            if rows.kind == LOGISTIC:
                residual = block.Y - expit(z)
                loss = np.logaddexp(0.0, z) - block.Y * z
            elif rows.kind >= MULTINOMIAL:
                level = logsumexp(z, axis=1)[:, None]
                residual = block.Y - np.exp(z - level)
                loss = block.Y * (level - z)  # the loss of a row stands with its class
            else:
                residual = block.Y - z
                cut = rows.psi(residual)
                loss = cut * (residual - 0.5 * cut)
            losses[out] = self.scale[out] * (block.weights @ loss)
            gradient[out] = -self.scale[out][:, None] * rows.back(rows.psi(residual) * block.weights[:, None])
            residuals.append(residual)
        together = None
        if self.stacked is not None:
            out = self.stacked.outputs
            near = self.stacked.odds.copy()
            if start is not None and self.fit_intercept:
                near = start.intercept[out] + np.einsum("kd,kd->k", self.shift[out], W[out])
            values, slopes, together = self.stacked.at(W[out], near)
            intercept[out] = near
            losses[out] = self.scale[out] * values
            gradient[out] = self.scale[out, None] * slopes
        intercept -= np.einsum("td,td->t", self.shift, W)
        return Point(W, gradient, intercept, losses, tuple(residuals), together)

    def reach(self, step: Floats, enough: float) -> Floats:
        """Return how far a step ``(T, d)`` moves a margin of each task with logistic loss at most, ``(T,)``.

        It may be more as long as it is at most ``enough``.
        """
        found = np.zeros(self.n_tasks)
        for rows in self.rows:
            if rows.kind == LOGISTIC:
                out = rows.block.outputs
                found[out] = np.abs(rows.times(step[out])).max(axis=0)
        if self.stacked is not None:
            found[self.stacked.outputs] = self.stacked.reach(step[self.stacked.outputs], enough)
        return found

    def require_grams(self) -> None:
        """Refuse inputs with more features than Gram matrices can have at all."""
        size = max(len(self.rows), 1) * self.n_features**2
        if size > _MOST_CURVATURE:
            raise InputError(
                f"{self.n_features} features are too many for this method, which needs Gram matrices of "
                f"{8e-9 * size:.0f} GB; use a method of sparse or low-rank coefficients, or fewer features"
            )

    def hessian(self, point: Point, *, outside: float = OUTSIDE) -> Hessian:
        """Return the Hessian as something that multiplies; ``outside`` as of :meth:`curvature`.

        It goes by products with the rows where there are many features, or multinomial losses.
        """
        grams = sum(1 if rows.kind == SQUARED else len(rows.block.outputs) for rows in self.rows)
        if grams * self.n_features**2 > _LARGEST_CURVATURE or bool((self.kind >= MULTINOMIAL).any()):
            m = self.moments
            known = None if m is None else Curvature(m.gram, m.pattern, self.scale * self.in_moments)
            parts = [
                (
                    rows,
                    rows.block.Y - residual
                    if rows.kind >= MULTINOMIAL
                    else rows.block.weights[:, None] * rows.bend(residual, outside),
                )
                for rows, residual in zip(self.rows, point.residuals, strict=True)
            ]
            return RowHessian(known, parts, self.scale, self.fit_intercept)
        return self.curvature(point, outside=outside)

    def curvature(
        self, point: Point, features: Ints | None = None, *, outside: float = OUTSIDE, by_feature: bool = False
    ) -> Curvature:
        """Return the Hessian at ``point``, on all features or on some; ``by_feature``: laid out as ``(k, P, k)``.

        Of multinomial losses it is a bound, the same for all classes. Beyond the threshold of a Huber loss,
        where there is none, it is ``outside`` times that of the square that touches and bounds the loss.
        """
        k = self.n_features if features is None else len(features)
        if features is None:
            self.require_grams()
        pattern = np.zeros(self.n_tasks, dtype=np.int64)
        scale = self.scale.copy()
        grams, count = np.zeros((1, k, k)), 0
        if self.moments is not None:
            m = self.moments
            grams, count = _on_features(m.gram, features, by_feature), len(m.gram)
            pattern[self.in_moments] = m.pattern[self.in_moments]
        others = self._hessians_of_rows()
        if others:
            known = grams[:count]
            shape = (k, count + others, k) if by_feature else (count + others, k, k)
            grams = np.empty(shape).transpose(1, 0, 2) if by_feature else np.empty(shape)
            grams[:count] = known
        for rows, residual in zip(self.rows, point.residuals, strict=True):
            block, out = rows.block, rows.block.outputs
            if rows.kind != SQUARED:
                roots = np.sqrt(block.weights[:, None] * rows.bend(residual, outside))
                for number, root in enumerate(roots.T):
                    grams[count] = rows.gram(root, features, centre=self.fit_intercept)
                    pattern[out if len(roots.T) == 1 else out[number]] = count
                    count += 1
            else:
                grams[count] = rows.gram(np.sqrt(block.weights), features, centre=False)
                pattern[out] = count
                count += 1
        if self.stacked is not None and point.stacked is not None:
            own = len(self.stacked.outputs)
            found = grams[count : count + own]
            self.stacked.grams(point.stacked, features, found)
            pattern[self.stacked.outputs] = count + np.arange(own)
        absent = np.ones(self.n_tasks, dtype=np.bool_)
        absent[self.in_moments] = False
        if self.stacked is not None:
            absent[self.stacked.outputs] = False
        for rows in self.rows:
            absent[rows.block.outputs] = False
        scale[absent] = 0.0
        return Curvature(grams, pattern, scale)

    def _hessians_of_rows(self) -> int:
        """Return how many Hessians are computed from rows."""
        single = [rows.kind == SQUARED or rows.kind >= MULTINOMIAL for rows in self.rows]
        known = sum(1 if one else len(rows.block.outputs) for one, rows in zip(single, self.rows, strict=True))
        return known + (0 if self.stacked is None else len(self.stacked.outputs))

    def dual(self, point: Point, shrink: float) -> float:
        """Return the dual objective at the residuals of ``point`` times ``shrink`` (0 … 1).

        With theta = shrink * residual: squared and Huber: sum s a (theta y - theta²/2); logistic and
        multinomial: sum s a entropy(y - theta).
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
            theta = shrink * rows.psi(residual)
            if rows.kind >= LOGISTIC:
                q = block.Y - theta
                part = -xlogy(q, q)
                if rows.kind == LOGISTIC:
                    part -= xlogy(1.0 - q, 1.0 - q)
            else:
                Y = block.Y - block.weights @ block.Y / block.total if self.fit_intercept else block.Y
                part = theta * Y - 0.5 * np.square(theta)
            value += float((block.weights @ part) @ self.scale[block.outputs])
        if self.stacked is not None and point.stacked is not None:
            value += float(self.stacked.entropies(point.stacked, shrink) @ self.scale[self.stacked.outputs])
        return value


def _inverse(bend: Floats) -> Floats:
    """Return the inverse of a Hessian of intercepts, which is singular along the ones, on what it does not map to 0."""
    return np.asarray(np.linalg.pinv(bend, rcond=1e-12, hermitian=True), dtype=np.float64)


def _by_loss(blocks: Sequence[Block], kind: Ints) -> tuple[Sequence[Block], list[Block]]:
    """Return the columns with squared loss and the others, in blocks of one kind each."""
    if not kind.any():
        return blocks, []
    squared: list[Block] = []
    rest: list[Block] = []
    for block in blocks:
        kinds = kind[block.outputs]
        for number in np.unique(kinds):
            (squared if number == SQUARED else rest).append(_columns(block, kinds == number))
    return squared, rest


def _columns(block: Block, chosen: Bools) -> Block:
    if chosen.all():
        return block
    return Block(block.X, block.weights, block.Y[:, chosen], block.outputs[chosen])


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


def _on_features(gram: Floats, features: Ints | None, by_feature: bool) -> Floats:
    """Return ``gram`` ``(P, d, d)`` on some features, ``(P, k, k)``; ``by_feature``: laid out as ``(k, P, k)``."""
    if features is None:
        return (
            np.ascontiguousarray(gram.transpose(1, 0, 2)).transpose(1, 0, 2)
            if by_feature
            else np.ascontiguousarray(gram)
        )
    if by_feature:
        return np.asarray(gram[np.arange(len(gram))[:, None], features[:, None, None], features].transpose(1, 0, 2))
    return np.asarray(gram[np.arange(len(gram))[:, None, None], features[:, None], features])  # in this order at once


def _weighted_gram(X: Floats, root: Floats, centre: bool) -> Floats:
    """Return sum_i r_i² (x_i - mean)(x_i - mean)^T with the mean weighted by r² (or 0)."""
    rooted = X * root[:, None]
    gram = rooted.T @ rooted
    total = float(root @ root)
    if centre and total > 0:
        mean = root @ rooted
        gram -= np.outer(mean, mean) / total
    return np.asarray(gram)


def _intercepts(rows: _Rows, margin: Floats, near: Floats) -> Floats:
    """Return the best intercepts of centred inputs for these margins ``(m, k)``."""
    block = rows.block
    if rows.kind == SQUARED:
        return np.asarray(block.weights @ (block.Y - margin) / block.total)
    if rows.kind == HUBER:
        assert rows.delta is not None
        return _huber_intercepts(block, margin, near, rows.delta)
    if rows.kind == LOGISTIC:
        return _logistic_intercepts(block, margin, near)
    return _multinomial_intercepts(block, margin, near)


def _huber_intercepts(block: Block, margin: Floats, start: Floats, delta: Floats) -> Floats:
    """Solve sum_i a_i clip(y_i - margin_i - b, -delta, delta) = 0, piecewise linear, by Newton steps in a bracket."""
    a = block.weights
    rest = block.Y - margin
    low, high = rest.min(axis=0), rest.max(axis=0)
    b = np.clip(start, low, high)
    bound = 1e-15 * block.total * delta
    for _ in range(_INTERCEPT_STEPS):
        left = rest - b
        missing = a @ np.clip(left, -delta, delta)
        if (np.abs(missing) <= bound).all():
            break
        low, high = np.where(missing > 0, b, low), np.where(missing < 0, b, high)
        slope = a @ (np.abs(left) <= delta)
        step = b + missing / np.where(slope > 0, slope, 1.0)
        inside = (slope > 0) & (step > low) & (step < high)
        new = np.where(np.abs(missing) <= bound, b, np.where(inside, step, 0.5 * (low + high)))
        if (new == b).all():
            break
        b = new
    return b


def _multinomial_intercepts(block: Block, margin: Floats, start: Floats) -> Floats:
    """Solve sum_i a_i (y_i - softmax(margin_i + b)) = 0, all classes of which occur, by Newton steps; sum b = 0."""
    a, total = block.weights, block.total
    b = start - start.mean()
    goal = a @ block.Y

    def look(b: Floats) -> tuple[float, Floats]:
        z = margin + b
        level = logsumexp(z, axis=1)
        return float(a @ level - goal @ b), np.exp(z - level[:, None])

    value, p = look(b)
    for _ in range(_INTERCEPT_STEPS):
        missing = goal - a @ p
        if np.abs(missing).max() <= 1e-14 * total:
            break
        bend = np.diag(a @ p) - (p * a[:, None]).T @ p + total / len(b)  # the constant fixes the free direction
        step = np.linalg.lstsq(bend, missing, rcond=None)[0]
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-300))
        size = 1.0
        for _ in range(_HALVINGS):
            new_value, new_p = look(b + size * step)
            if new_value <= value + 1e-14 * abs(value):
                break
            size *= 0.5
        b, value, p = b + size * step, new_value, new_p
        if np.abs(size * step).max() <= 1e-13 * (1.0 + np.abs(b).max()):
            break
    return np.asarray(b - b.mean())


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
