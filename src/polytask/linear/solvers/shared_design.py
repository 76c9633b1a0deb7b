"""Row-sparse least squares on one design that all tasks share: the fast route, single and along a path.

    min_W  1/(2 n) ||Y - W X^T||_F² + alpha sum_j ||w^j||_2      W: (T, d), X: (n, d) and Y: (T, n) centred

Features outside a working set stay at zero. Block coordinate descent with subspace steps solves on the
working set (``block_descent.py``): with its Gram matrix up to 2 n features, with the residual above; with the
Gram matrix of all features where it pays or where the data are moments. Then the residual and the
gradient on all features are computed anew, and with them the duality gap at the scaled residual,

    gap = P(W) - D(s R),  D(R) = (<R, Y> - ||R||² / 2) / n,  s = min(1, alpha n / max_j ||R x_j||),

which certifies the solution or shows the features to add.

From one alpha to the next the last step is continued, as far as it lowers the new objective; gradients
are linear in W, so that the same step predicts them, and with them the next working set (as the
strong rules do with a bound in place of the prediction). A single alpha is reached over a few larger
ones, solved roughly, and on very many rows first on some of the rows.

The problem does not change under rotations of the tasks: with C = Y X of rank r < T it is solved for the
r tasks U^T Y, C = U s V^T, and turned back; what Y has outside U is not explained by any W.

Tibshirani et al., Strong rules for discarding predictors in lasso-type problems, JRSS-B 2012; Massias,
Vaiter, Gramfort & Salmon, Dual extrapolation for sparse generalized linear models, JMLR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.moments import Block, Moments
from polytask.linear.solvers.losses import Bools
from polytask.linear.solvers.row_sparse import Solution

BLOCK = 64  # as in block_descent.py, which is imported when a fit needs it
LARGEST_GRAM = 20_000_000  # numbers; 160 MB
_SMALL_GRAM = 256  # up to so many features the Gram matrix is computed at once
_CENTRED_COPY = 1 << 20  # up to so many numbers X is centred in a copy
_FAR = 1e4  # mean² in units of the variance above which X is centred in a copy
_MARGIN = 0.003  # features whose predicted gradient is so near to alpha join the working set
_PRUNE = 0.95  # share of the working set that must be in use or near to alpha
_ROUNDS = 12  # rounds without a smaller gap: rounding
_STEP, _STEP_WIDE = 0.5, 0.7  # ratio of the alphas on the way to a single one; with more features than rows
_ROUGH = 1e-3  # gap on the way, as a share of ||Y||² / 2 n
_MANY_ROWS = 4096
_THINNED = 8
_GLANCE_SWEEPS = 200
_FAINT = 0.02
_FEW = 0.5  # share of the features beyond which a part of the rows says little of which ones matter
_COARSE = 1e-9  # gap, as a share of ||Y||² / n, that is far above the rounding of so many updates
_PATH = 10  # from so many alphas on the Gram matrix of all features pays


@dataclass
class SharedDesign:
    """A shared design, centred, and what is known of it.

    Parameters
    ----------
    n
        Sum of the row weights.
    Y
        Targets of the rotated tasks, centred, ``(r, n)``; None: known by moments only.
    X
        Inputs ``(n, d)``; None: known by moments only.
    shift
        What is to be subtracted from every row of ``X``, ``(d,)``; None: nothing.
    mean_x, mean_y
        Means for the intercepts, ``(d,)`` and ``(T,)``; zeros without intercepts.
    total
        ||Y||² / n of all tasks.
    yy
        ||Y||² / n of the rotated tasks.
    turn
        U ``(T, r)``; None: the tasks are not rotated.
    gram
        X^T X / n ``(d, d)``, where it is known.
    cross
        Y X / n of the rotated tasks ``(r, d)``, where it is known.
    """

    n: float
    Y: Floats | None
    X: Any
    shift: Floats | None
    mean_x: Floats
    mean_y: Floats
    total: float
    yy: float
    turn: Floats | None = None
    gram: Floats | None = None
    cross: Floats | None = None

    @classmethod
    def of_block(cls, block: Block, *, fit_intercept: bool) -> SharedDesign:
        """Read the rows of a block of tasks."""
        X = np.asarray(block.X, dtype=np.float64)
        m, d = X.shape
        a, n = block.weights, block.total
        plain = bool((a == 1.0).all())
        mean_x, mean_y = np.zeros(d), np.zeros(block.Y.shape[1])
        if fit_intercept:
            mean_x, mean_y = a @ X / n, a @ block.Y / n
        Y = np.ascontiguousarray((block.Y - mean_y).T)
        shift = None
        if not plain:
            root = np.sqrt(a)
            Y *= root
            X = (X - mean_x) * root[:, None] if fit_intercept else X * root[:, None]
        elif fit_intercept and (X.size <= _CENTRED_COPY or _is_far(X, mean_x)):
            X = X - mean_x
        elif fit_intercept:
            shift = mean_x
        total = float(np.vdot(Y, Y)) / n
        design = cls(n, Y, X, shift, mean_x, mean_y, total, total)
        T = len(Y)
        if min(m, d) < T or (T > 1 and _is_deficient(Y @ Y.T)):
            design._rotate()
        return design

    @classmethod
    def of_moments(cls, moments: Moments, *, fit_intercept: bool) -> SharedDesign:
        """Read moments whose tasks have the same rows."""
        if not fit_intercept:
            moments = moments.uncentred()
        n = float(moments.weight[0])
        total = float(moments.yy.sum()) / n
        design = cls(
            n,
            None,
            None,
            None,
            moments.mean_x[0],
            moments.mean_y,
            total,
            total,
            gram=moments.gram[0] / n,
            cross=moments.cross / n,
        )
        T, d = moments.cross.shape
        if d < T or (T > 1 and _is_deficient(moments.cross @ moments.cross.T)):
            design._rotate()
        return design

    def thinned(self, times: int) -> SharedDesign:
        """Return about every ``times``-th row, in a few runs; the rows are taken as they are, not centred anew."""
        assert self.X is not None
        assert self.Y is not None
        m = len(self.X)
        size = m // (times * 8)
        rows = np.concatenate([np.arange(start, start + size) for start in range(0, m - size, m // 8)])
        X, Y = self.X[rows], np.ascontiguousarray(self.Y[:, rows])
        if self.shift is not None:
            X = X - self.shift
        yy = float(np.vdot(Y, Y)) / len(rows)
        return SharedDesign(float(len(rows)), Y, X, None, self.mean_x, self.mean_y, yy, yy)

    def _rotate(self) -> None:
        cross = self.correlations()
        U, s, _ = np.linalg.svd(cross, full_matrices=False)
        rank = max(int((s > s[0] * max(cross.shape) * np.finfo(np.float64).eps).sum()), 1)
        if rank == len(cross):
            return
        self.turn = np.ascontiguousarray(U[:, :rank])
        self.cross = self.turn.T @ cross
        if self.Y is not None:
            self.Y = np.ascontiguousarray(self.turn.T @ self.Y)
            self.yy = float(np.vdot(self.Y, self.Y)) / self.n
        # of moments the part of Y outside U is unknown, but so is all that could depend on it

    @property
    def n_features(self) -> int:
        """Number of features d."""
        return len(self.mean_x)

    @property
    def n_rows(self) -> int:
        """Number of rows; of moments, what they count."""
        return int(self.n) if self.X is None else len(self.X)

    @property
    def n_tasks(self) -> int:
        """Number of rotated tasks r."""
        if self.Y is not None:
            return len(self.Y)
        assert self.cross is not None
        return len(self.cross)

    def correlations(self) -> Floats:
        """Return Y X / n, ``(r, d)``."""
        if self.cross is None:
            assert self.Y is not None
            self.cross = self.back(self.Y)
        return self.cross

    def back(self, R: Floats) -> Floats:
        """Return R X / n of residuals ``(r, n)``."""
        product = R @ self.X
        if self.shift is not None:
            product -= np.outer(R.sum(axis=1), self.shift)
        product /= self.n
        return np.asarray(product)

    def columns(self, features: Ints) -> Floats:
        """Return these columns of the centred X as rows, ``(k, n)``."""
        rows = np.ascontiguousarray(self.X[:, features].T)
        if self.shift is not None:
            rows -= self.shift[features, None]
        return rows

    def require_gram(self) -> Floats:
        """Return X^T X / n, computed once."""
        if self.gram is None:
            # the product of a matrix with its own transpose is symmetric to the last bit
            gram = self.X.T @ self.X
            gram /= self.n
            if self.shift is not None:
                gram -= np.outer(self.shift, self.shift)
            self.gram = gram
        return self.gram

    def write(self, features: Ints, W: Floats, out: Floats) -> None:
        """Write coefficients of the rotated tasks on these features ``(r, k)`` into zeros ``(T, d)``."""
        out[:, features] = W if self.turn is None else self.turn @ W

    def intercepts(self, W: Floats) -> Floats:
        """Return the best intercepts of coefficients ``(T, d)``."""
        return np.asarray(self.mean_y - W @ self.mean_x)


def _is_far(X: Floats, mean: Floats) -> bool:
    """Whether columns lie so far from zero that their sums of squares about the mean would lose digits."""
    some = X[:: max(len(X) // 256, 1)]
    spread = some.var(axis=0)
    return bool((np.square(mean) > _FAR * spread).any())


def _is_deficient(products: Floats) -> bool:
    """Whether rows with these inner products may be linearly dependent."""
    values = np.linalg.eigvalsh(products)
    return bool(values[0] <= 1e-10 * values[-1])


@dataclass(frozen=True)
class _Mark:
    """A certified point of the path: working set, coefficients on it, negative gradient and residual."""

    features: Ints
    W: Floats
    slopes: Floats
    residual: Floats | None


class _Search:
    """The state of a solution: working set, coefficients on it, and the last certificate."""

    def __init__(self, design: SharedDesign, *, whole: bool) -> None:
        from polytask.linear.solvers import block_descent  # numba: loaded when a fit needs it

        self.kernels = block_descent
        self.design = design
        self.sweeps = 0
        self.computed = True  # whether the last gradient was computed from the coefficients
        self.trust = 1.0  # the gap by the estimate of a sweep with the residual
        self.place = np.full(design.n_features, -1)
        self.before: _Mark | None = None
        self.last: _Mark | None = None
        self.whole = design.gram is not None
        self.residual = design.Y
        self.slopes, self.norms = np.zeros((0, 0)), np.zeros(0)
        self.rest = self.along = design.yy
        self._set(np.empty(0, dtype=np.int64), np.zeros((design.n_tasks, 0)))
        if whole or design.n_features <= min(_SMALL_GRAM, design.n_rows):
            self._know_gram()

    # -- the working set ----------------------------------------------------------------------

    def _know_gram(self) -> None:
        """Go over to the Gram matrix of all features."""
        if not self.whole:
            self.design.require_gram()
            self.whole = True
            self._set(self.features, self.W[:, : self.size])

    def _wants_gram(self, k: int) -> bool:
        """Whether a working set of ``k`` features costs so much that the Gram matrix of all is no more."""
        d = self.design.n_features
        return not self.whole and 2 * k > d and d <= self.design.n_rows and d * d <= LARGEST_GRAM

    def _set(self, features: Ints, W: Floats) -> None:
        """Take these features with these coefficients as the working set."""
        design, r = self.design, self.design.n_tasks
        k = len(features)
        padded = max(-(-k // BLOCK), 1) * BLOCK
        self.features, self.size, self.padded = features, k, padded
        self.place[:] = -1
        self.place[features] = np.arange(k)
        self.W = np.zeros((r, padded))
        self.W[:, :k] = W
        self.directions = np.zeros((self.kernels.SLOTS, r, padded))
        self.used = np.zeros(self.kernels.SLOTS, dtype=np.bool_)
        self.ring = np.zeros(1, dtype=np.int64)
        self.by_gram = self.whole or padded <= 2 * design.n_rows
        self.X = np.zeros((0, 0))
        self.grams = np.zeros((0, BLOCK, BLOCK))
        if not self.whole:
            self.X = np.zeros((padded, len(design.X)))
            self.X[:k] = design.columns(features)
        if self.by_gram:
            self.G = np.zeros((padded, padded))
            self.G[:k, :k] = self._products(features, slice(0, k), features)
            self.target = np.zeros((r, padded))
            self.target[:, :k] = self._targets(features, slice(0, k))
            self.S = self.target - self.W @ self.G
            self.images = np.zeros((self.kernels.SLOTS, r, padded))
        else:
            assert design.Y is not None
            self.G = np.zeros((0, 0))
            self.target = design.Y
            self.S = design.Y - self.W @ self.X
            self.images = np.zeros((self.kernels.SLOTS, r, len(design.X)))
            self._block_grams(0)

    def _products(self, new: Ints, place: slice, features: Ints) -> Floats:
        """Return the Gram matrix of new features, which lie at ``place`` of the working set, with its features."""
        if self.whole:
            gram = self.design.require_gram()
            if len(new) == len(gram) == len(features) and (new == features).all() and _is_range(new):
                return gram
            return gram[new][:, features]
        return np.asarray(self.X[place] @ self.X[: len(features)].T / self.design.n)

    def _targets(self, new: Ints, place: slice) -> Floats:
        cross = self.design.cross
        if cross is not None or self.whole:
            return self.design.correlations()[:, new]
        assert self.design.Y is not None
        return np.asarray(self.design.Y @ self.X[place].T / self.design.n)

    def _block_grams(self, first: int) -> None:
        grams = np.zeros((self.padded // BLOCK, BLOCK, BLOCK))
        grams[:first] = self.grams[:first]
        for number in range(first, len(grams)):
            rows = self.X[number * BLOCK : (number + 1) * BLOCK]
            grams[number] = rows @ rows.T / self.design.n
        self.grams = grams

    def _add(self, new: Ints) -> None:
        """Add features, which have coefficient zero, to the working set."""
        if len(new) == 0:
            return
        design, old = self.design, self.size
        k = old + len(new)
        d = design.n_features
        padded = -(-k // BLOCK) * BLOCK
        if self._wants_gram(k):
            design.require_gram()
            self.whole = True
        if self.whole and 2 * k > d:
            W = np.zeros((len(self.W), d))
            W[:, self.features] = self.W[:, :old]
            self._set(np.arange(d), W)
            return
        if self.by_gram and not self.whole and padded > 2 * design.n_rows:
            self._reorder(np.ones(old, dtype=np.bool_), new)
            return
        self.features = np.concatenate([self.features, new])
        self.place[new] = np.arange(old, k)
        self.size = k
        if padded != self.padded:
            self._pad(padded)
        if not self.whole:
            self.X[old:k] = design.columns(new)
        if not self.by_gram:
            self._block_grams(old // BLOCK)
            return
        part = self._products(new, slice(old, k), self.features)
        self.G[old:k, :k] = part
        self.G[:k, old:k] = part.T
        self.target[:, old:k] = self._targets(new, slice(old, k))
        earlier = part[:, :old].T
        self.S[:, old:k] = self.target[:, old:k] - self.W[:, :old] @ earlier
        for slot in np.flatnonzero(self.used).tolist():
            self.images[slot, :, old:k] = -self.directions[slot, :, :old] @ earlier

    def _pad(self, padded: int) -> None:
        def grown(array: Floats, *shape: int) -> Floats:
            larger = np.zeros(shape)
            larger[tuple(slice(0, size) for size in array.shape)] = array
            return larger

        r, slots = len(self.W), self.kernels.SLOTS
        self.padded = padded
        self.W = grown(self.W, r, padded)
        self.directions = grown(self.directions, slots, r, padded)
        if not self.whole:
            self.X = grown(self.X, padded, self.X.shape[1])
        if self.by_gram:
            self.G = grown(self.G, padded, padded)
            self.target = grown(self.target, r, padded)
            self.S = grown(self.S, r, padded)
            self.images = grown(self.images, slots, r, padded)

    def _reorder(self, kept: Bools, new: Ints) -> None:
        """Take the features to keep and new ones, in order: neighbours are often correlated."""
        features = np.concatenate([self.features[kept], new])
        W = np.concatenate([self.W[:, : self.size][:, kept], np.zeros((len(self.W), len(new)))], axis=1)
        order = np.argsort(features)
        self._set(features[order], W[:, order])

    # -- certificates -------------------------------------------------------------------------

    def certify(self, *, coarse: bool = False) -> None:
        """Compute the negative gradient on all features from the coefficients alone.

        Where the Gram matrix and the working set are of all features the sweeps keep it up to date, which serves
        for a ``coarse`` gap, but not twice in turn: continued steps would multiply the rounding.
        """
        design, k = self.design, self.size
        self.computed = not (coarse and self.computed and self.whole and k == design.n_features)
        if not self.computed:
            self.slopes = self.S[:, :k].copy()
            self.along = design.yy - float(np.vdot(self.target, self.W))
            self.rest = max(self.along - float(np.vdot(self.S, self.W)), 0.0)
            self.norms = _norms(self.slopes)
            return
        if self.whole:
            gram, cross = design.require_gram(), design.correlations()
            used = np.flatnonzero(self.W[:, :k].any(axis=0))
            if 4 * len(used) > len(gram):
                dense = np.zeros_like(cross)
                dense[:, self.features] = self.W[:, :k]
                self.slopes = cross - dense @ gram
            else:
                self.slopes = cross - self.W[:, used] @ gram[self.features[used]]
            self.S[:, :k] = self.slopes[:, self.features]
            explained = float(np.vdot(self.target, self.W))
            self.along = design.yy - explained
            self.rest = max(self.along - float(np.vdot(self.S, self.W)), 0.0)
        else:
            assert design.Y is not None
            residual = design.Y - self.W[:, :k] @ self.X[:k]
            self.residual = residual
            self.slopes = design.back(residual)
            self.rest = float(np.vdot(residual, residual)) / design.n
            self.along = float(np.vdot(residual, design.Y)) / design.n
            if self.by_gram:
                self.S[:, :k] = self.slopes[:, self.features]
            else:
                self.S = residual.copy()
        self.norms = _norms(self.slopes)

    def gap(self, alpha: float) -> float:
        """Return the duality gap by the last certificate; it is not negative but for rounding."""
        top = float(self.norms.max(initial=0.0))
        shrink = alpha / top if top > alpha else 1.0
        penalty = alpha * float(_norms(self.W).sum())
        return max(0.5 * self.rest + penalty - shrink * self.along + 0.5 * shrink**2 * self.rest, 0.0)

    # -- solving ------------------------------------------------------------------------------

    def begin(self, W: Floats | None) -> None:
        """Begin at coefficients ``(T, d)``, not yet certified, or at zero."""
        if W is None:
            self.slopes = self.design.correlations()
            self.norms = _norms(self.slopes)
            return
        own = W if self.design.turn is None else self.design.turn.T @ W
        used = np.flatnonzero(own.any(axis=0))
        if self._wants_gram(len(used)):
            self.design.require_gram()
            self.whole = True
        if self.whole and 2 * len(used) > self.design.n_features:
            used = np.arange(self.design.n_features)
        self._set(used, np.ascontiguousarray(own[:, used]))

    def add_violated(self, alpha: float) -> int:
        """Add the features that the last certificate shows to be missing; return how many."""
        new = np.flatnonzero((self.norms > alpha) & (self.place < 0))
        self._add(new)
        return len(new)

    def advance(self, alpha: float, goal: float, max_sweeps: int, *, once: bool = False) -> float:
        """Go over to ``alpha`` and solve there until the gap is at most ``goal``; return the gap."""
        here = self.norms
        if self.last is not None:
            predicted = self._predict(alpha)
            if predicted is not None:
                here = predicted
        near = here > alpha * (1.0 - _MARGIN)
        new = np.flatnonzero(near & (self.place < 0))
        if self.by_gram:
            self._add(new)
        else:
            kept = self.W[:, : self.size].any(axis=0) | near[self.features]
            if len(new) or kept.mean() < _PRUNE:
                self._reorder(kept, new)
        gap = self.solve(alpha, goal, max_sweeps, once=once)
        self.before = self.last
        self.last = _Mark(self.features, self.W[:, : self.size].copy(), self.slopes, self.residual)
        return gap

    def _predict(self, alpha: float) -> Floats | None:
        """Continue the last step as far as it lowers the objective; return the norms of the predicted gradient."""
        before, last = self.before, self.last
        if before is None or last is None:
            return None
        step = np.zeros_like(self.W)
        step[:, : self.size] = last.W
        step[:, self.place[before.features]] -= before.W
        self.used[:] = False
        self.used[0] = True
        self.directions[0] = step
        if self.by_gram:
            self.images[0, :, : self.size] = (last.slopes - before.slopes)[:, self.features]
        else:
            assert last.residual is not None
            assert before.residual is not None
            self.images[0] = last.residual - before.residual
        moved = self.kernels.step_along(
            self.by_gram,
            self.G if self.by_gram else self.X,
            self.W,
            self.S,
            self.design.n,
            alpha,
            self.directions,
            self.images,
            self.used,
            -1,
        )
        self.used[:] = False
        if not moved:
            return None
        way = self.W[:, : self.size] - last.W
        size = float(np.vdot(self.directions[0], self.directions[0]))
        share = float(np.vdot(self.directions[0][:, : self.size], way)) / size if size > 0 else 0.0
        return _norms(last.slopes + share * (last.slopes - before.slopes))

    def solve(self, alpha: float, goal: float, max_sweeps: int, *, once: bool = False) -> float:
        """Solve at ``alpha`` from here until the gap is at most ``goal``, or (``once``) that of the working set."""
        best, best_at, stalls = np.inf, (self.features, self.W), 0
        left = max_sweeps
        while left > 0:
            sweeps, estimate = self.kernels.descend(
                self.by_gram,
                self.G if self.by_gram else self.X,
                self.grams,
                self.W,
                self.S,
                self.target,
                self.design.yy,
                self.design.n,
                alpha,
                0.8 * goal / self.trust,
                self.directions,
                self.images,
                self.used,
                self.ring,
                left,
                2 if self.by_gram else 3,
            )
            left -= sweeps
            self.sweeps += sweeps
            self.certify(coarse=goal > _COARSE * self.design.yy)
            gap = self.gap(alpha)
            if gap < best:
                stalls = 0 if gap < 0.9 * best else stalls + 1
                best, best_at = gap, (self.features, self.W[:, : self.size].copy())
            else:
                stalls += 1
            if gap <= goal or once or stalls > _ROUNDS:
                break
            by_residual = not self.by_gram
            if self.add_violated(alpha) == 0 and by_residual and estimate > 0.0:
                self.trust = min(max(gap / estimate, 0.05), 20.0)
        if gap > best:
            self._set(*best_at)
            self.certify()
        return best

    def coefficients(self) -> Floats:
        """Return W, ``(T, d)``."""
        found = np.zeros((len(self.design.mean_y), self.design.n_features))
        self.design.write(self.features, self.W[:, : self.size], found)
        return found


def _norms(A: Floats) -> Floats:
    return np.sqrt(np.einsum("tj,tj->j", A, A))


def _is_range(features: Ints) -> bool:
    return bool((features == np.arange(len(features))).all())


def solve_shared(
    design: SharedDesign, alpha: float, *, tol: float, max_sweeps: int, start: Floats | None = None
) -> Solution:
    """Solve for one ``alpha`` to a gap of ``tol`` ||Y||² / 2 n."""
    bound = 0.5 * tol * design.total
    search = _Search(design, whole=False)
    if start is not None and start.any():
        search.begin(start)
        search.certify()
        gap = search.gap(alpha)
        if gap > bound:
            search.add_violated(alpha)
            gap = search.solve(alpha, bound, max_sweeps)
    else:
        gap = _from_zero(search, alpha, bound, tol, max_sweeps)
    W = search.coefficients()
    return Solution(W, design.intercepts(W), gap, bound, max(search.sweeps, 1))


def _from_zero(search: _Search, alpha: float, bound: float, tol: float, max_sweeps: int) -> float:
    design = search.design
    if design.X is not None and len(design.X) >= _MANY_ROWS and not search.whole:
        part = _glance(design.thinned(_THINNED), alpha, max(_ROUGH, tol))
        sizes = _norms(part)
        if sizes.any():
            # on fewer rows noise looks like many small coefficients
            W = np.where(sizes > _FAINT * sizes.max(), part, 0.0)
            search.begin(W if design.turn is None else design.turn @ W)
            return search.solve(alpha, bound, max_sweeps)
    search.begin(None)
    level, rough = float(search.norms.max(initial=0.0)), max(_ROUGH * design.total, bound)
    if level <= alpha:
        return 0.0
    step = _STEP if design.n_features <= design.n_rows else _STEP_WIDE
    while level * step > alpha and search.sweeps < max_sweeps // 2:
        level *= step
        search.advance(level, rough, max_sweeps // 2, once=True)
    return search.advance(alpha, bound, max_sweeps - search.sweeps)


def _glance(design: SharedDesign, alpha: float, tol: float) -> Floats:
    """Return rough coefficients ``(T, d)`` at ``alpha``, or at a larger one below which many features come in."""
    search = _Search(design, whole=False)
    search.begin(None)
    level, goal = float(search.norms.max(initial=0.0)), 0.5 * tol * design.total
    while level > alpha:
        level = max(level * _STEP, alpha)
        if np.count_nonzero(search.norms > level) > _FEW * design.n_features:
            break
        search.advance(level, goal, _GLANCE_SWEEPS, once=True)
    return search.coefficients()


def largest_alpha(design: SharedDesign) -> float:
    """Return the smallest alpha at which W = 0 is the solution."""
    return float(_norms(design.correlations()).max(initial=0.0))


def solve_shared_path(
    design: SharedDesign, alphas: Floats, *, tol: float, max_sweeps: int, coefs: Floats
) -> tuple[Floats, Ints]:
    """Solve for descending ``alphas``, each to a gap of ``tol`` ||Y||² / 2 n.

    Writes the coefficients into ``coefs`` ``(len(alphas), T, d)``, which is zero; returns gaps and sweeps.
    """
    bound = 0.5 * tol * design.total
    n, d = design.n_rows, design.n_features
    search = _Search(design, whole=len(alphas) > _PATH and d <= n and d * d <= LARGEST_GRAM)
    search.begin(None)
    top = float(search.norms.max(initial=0.0))
    gaps, sweeps = np.zeros(len(alphas)), np.zeros(len(alphas), dtype=np.int64)
    for number, alpha in enumerate(alphas.tolist()):
        if alpha >= top:
            continue
        before = search.sweeps
        gaps[number] = search.advance(alpha, bound, max_sweeps)
        sweeps[number] = search.sweeps - before
        design.write(search.features, search.W[:, : search.size], coefs[number])
    return gaps, sweeps
