"""Coefficients that diffuse down a binary tree over tasks: exact beliefs, and the tree that explains them.

Lineages start at the tasks (height 0) and join in pairs at rising heights up to the root. With Lam =
diag(l_1 … l_d), w_root ~ N(0, root Lam) and w_child ~ N(w_parent, length Lam) on every branch, so that

    Cov(w_s, w_t) = C_st Lam,    C_st = root + height of the root - height at which s and t join.

In units of Lam^(1/2) all variances are lengths. What the labels below a node say about it is a
quadratic log phi(u) = const + h^T u - 1/2 u^T J u; over a branch of length l, with R = (I + l J)^-1,

    J -> J R,    h -> R h,    const -> const - 1/2 log det(I + l J) + l / 2 h^T R h,

and quadratics of children add up. This gives the marginal likelihood of all labels; one pass back
down gives mean and covariance of every node and branch: O(T d³) instead of O(T³ d³).

The prior of trees is Kingman's coalescent: n lineages join at the rate n (n - 1) / 2, every pair
alike, in an unknown unit of time (Lam has one too). With x_n = wait n (n - 1) / 2 it is

    sum_n log(x_n / mean x) - log(n (n - 1) / 2),

the density of log waits at the best unit, and the chance of each join; to the latter is added the log of how
many pairs would have done as well (what a sequential sampler of trees weighs a step by). Heights, Lam, the
branch above the root and the noise variance follow the gradient of the marginal likelihood, which is

    d / d log l_b = 1/2 sum_j ( E (change along branch b)_j² / (length l_j) - 1 )

for a branch, and likewise for the other scales.

Daumé, Bayesian multitask learning with latent hierarchies, UAI 2009; Teh, Daumé & Roy, Bayesian
agglomerative clustering with coalescents, NIPS 2007.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.solvers.task_evidence import TaskEvidence

_NEAR = 1e-7
_EXACT = 1e-13  # change of the objective, relative, at which it stands still
_MOST_POLISHED = 64
_POLISHES = 3
_SLACK = 1e-9  # of the objective that rounding may cost
_DIFFERENCE = 1e-4  # of logarithms
_RANGE = 30.0  # of the logarithms of scales, about their start


@dataclass(frozen=True)
class Beliefs:
    """What a pass over the tree finds, in the units of the quadratics.

    Parameters
    ----------
    value
        Log marginal likelihood.
    mean, covariance
        Of the tasks, ``(T, d)`` and ``(T, d, d)``.
    changes
        E (change)² along the branch above every node, the root's last, ``(2T - 1, d)``.
    """

    value: float
    mean: Floats
    covariance: Floats
    changes: Floats


def lengths_of(linkage: Floats, n_tasks: int) -> Floats:
    """Return the length of the branch above every node but the root, ``(2T - 2,)``."""
    heights = np.concatenate([np.zeros(n_tasks), linkage[:, 2]])
    above = np.zeros(2 * n_tasks - 2)
    for number, (first, second) in enumerate(linkage[:, :2].astype(np.int64).tolist()):
        top = heights[n_tasks + number]
        above[first], above[second] = top - heights[first], top - heights[second]
    return above


def covariance_of(linkage: Floats, n_tasks: int, root: float) -> Floats:
    """Return C, ``(T, T)``."""
    if n_tasks == 1:
        return np.full((1, 1), root)
    height = float(linkage[-1, 2])
    C = np.full((n_tasks, n_tasks), root)
    np.fill_diagonal(C, root + height)
    members = [[task] for task in range(n_tasks)]
    for first, second, top, _ in linkage.tolist():
        one, two = members[int(first)], members[int(second)]
        C[np.ix_(one, two)] = C[np.ix_(two, one)] = root + height - top
        members.append(one + two)
    return C


def _rates(n_joins: int) -> Floats:
    n = np.arange(n_joins + 1, 1, -1)
    return np.asarray(0.5 * n * (n - 1))


def log_prior(linkage: Floats) -> float:
    """Return the log density of the tree's shape: of log waits under the coalescent at its best unit of time.

    With x_n = wait n times n (n - 1) / 2, which are independent exponentials: sum log(x_n / mean x).
    """
    waits = np.diff(linkage[:, 2], prepend=0.0) * _rates(len(linkage))
    if len(waits) == 0 or (waits <= 0).any():
        return 0.0 if len(waits) == 0 or not waits.any() else -np.inf
    return float(np.log(waits / waits.mean()).sum())


def typical_heights(n_tasks: int) -> Floats:
    """Return the heights of the joins when every wait is its expectation, ``(T - 1,)``."""
    return np.asarray(np.cumsum(1.0 / _rates(n_tasks - 1)))


def levels_of(linkage: Floats) -> list[Ints]:
    """Return the numbers of the joins in layers, each of which needs only those before."""
    T = len(linkage) + 1
    depth = np.zeros(2 * T - 1, dtype=np.int64)
    for number, pair in enumerate(linkage[:, :2].astype(np.int64).tolist()):
        depth[T + number] = 1 + max(depth[pair[0]], depth[pair[1]])
    own = depth[T:]
    return [np.flatnonzero(own == layer) for layer in range(1, int(own.max(initial=0)) + 1)]


def believe(precision: Floats, linear: Floats, constant: Floats, linkage: Floats, root: float) -> Beliefs:
    """Return the beliefs for quadratics of the tasks, ``(T, d, d)``, ``(T, d)`` and ``(T,)``, on a tree."""
    T, d = linear.shape
    eye = np.eye(d)
    above = np.append(lengths_of(linkage, T), root)  # the last branch leads to the fixed origin 0
    children = linkage[:, :2].astype(np.int64)
    layers = levels_of(linkage)
    nodes = 2 * T - 1
    J, h = np.zeros((nodes, d, d)), np.zeros((nodes, d))
    R = np.empty((nodes, d, d))
    J[:T], h[:T] = precision, linear
    R[:T] = np.linalg.inv(eye + above[:T, None, None] * precision)
    for layer in layers:
        node, pairs = T + layer, children[layer]
        message = (J[pairs] @ R[pairs]).sum(axis=1)
        J[node] = 0.5 * (message + message.transpose(0, 2, 1))
        h[node] = np.matmul(R[pairs], h[pairs][..., None])[..., 0].sum(axis=1)
        R[node] = np.linalg.inv(eye + above[node, None, None] * J[node])
    value = float(constant.sum()) + 0.5 * float(np.linalg.slogdet(R)[1].sum())
    value += 0.5 * float(above @ (h * np.matmul(R, h[:, :, None])[:, :, 0]).sum(axis=1))
    own = above[:, None, None] * 0.5 * (R + R.transpose(0, 2, 1))  # covariance of a node given its parent
    pulled = np.matmul(own, h[:, :, None])[:, :, 0]
    mean, covariance, changes = pulled.copy(), own.copy(), np.empty((nodes, d))
    spread = np.einsum("ndd->nd", own).copy()
    changes[-1] = np.square(mean[-1]) + spread[-1]
    shrink = R - eye
    for layer in reversed(layers):
        for child in children[layer].T:
            parent = T + layer
            mean[child] += np.matmul(R[child], mean[parent][:, :, None])[:, :, 0]
            covariance[child] += R[child] @ covariance[parent] @ R[child].transpose(0, 2, 1)
            around = ((shrink[child] @ covariance[parent]) * shrink[child]).sum(axis=2)
            changes[child] = np.square(mean[child] - mean[parent]) + spread[child] + around
    return Beliefs(value, mean[:T], covariance[:T], changes)


@dataclass(frozen=True)
class Scales:
    """What is learned for one tree: heights, Lam, the branch above the root and the noise variance.

    Parameters
    ----------
    linkage
        The tree.
    features
        Lam, ``(d,)``.
    root
        Length of the branch above the root.
    noise
        Noise variance of tasks with squared loss.
    """

    linkage: Floats
    features: Floats
    root: float
    noise: float


class Diffusion:
    """The objective for trees of one shape: log marginal likelihood (or its lower bound) plus log prior.

    Parameters
    ----------
    evidence
        What the labels say; its noise variance follows the scales.
    heights
        ``"learned"``: all heights, joins in the same order; ``"star"``: one height at which all tasks join;
        ``"fixed"``.
    ties
        Sum over joins of the log of how many pairs would have done as well: a tree stands for those that join
        its tasks in any such order.
    expected
        What the inverse-gamma prior of each l_j, which is worth one branch, expects; that of the branch above
        the root expects 1.
    """

    def __init__(self, evidence: TaskEvidence, heights: str, expected: float, ties: float = 0.0) -> None:
        self.evidence, self.heights, self.expected, self.ties = evidence, heights, expected, ties
        self.squared = bool((~evidence.logistic).any() and evidence.squared.n.sum() > 0)

    def prior(self, scales: Scales) -> float:
        """Return the log prior of the variances and of the tree; a star, or a tree that is given, has none."""
        ratio = self.expected / scales.features
        value = -0.5 * float((ratio - np.log(ratio) - 1.0).sum())
        value -= 0.5 * (1.0 / scales.root + np.log(scales.root) - 1.0)
        if self.squared:
            value += self.evidence.squared.noise_log_prior(scales.noise)
        if self.heights != "learned":
            return value
        return value + log_prior(scales.linkage) + self.ties - float(np.log(_rates(len(scales.linkage))).sum())

    def beliefs(self, scales: Scales) -> Beliefs:
        """Return the beliefs, in units of Lam^(1/2)."""
        evidence, half = self.evidence, np.sqrt(scales.features)
        if self.squared and evidence.noise != scales.noise:
            evidence.set_noise(scales.noise)
        precision = evidence.precision * half[:, None] * half
        return believe(precision, evidence.linear * half, evidence.constant, scales.linkage, scales.root)

    def value(self, scales: Scales) -> float:
        """Return the objective."""
        return self.beliefs(scales).value + self.prior(scales)

    def pack(self, scales: Scales) -> Floats:
        """Return the logarithms of what is learned."""
        waits = np.diff(scales.linkage[:, 2], prepend=0.0)
        learned = {"learned": waits, "star": waits[:1], "fixed": waits[:0]}[self.heights]
        rest = [scales.root, scales.noise] if self.squared else [scales.root]
        parts: list[Floats] = [learned, scales.features, np.array(rest)]
        return np.log(np.maximum(np.concatenate(parts), 1e-300))

    def _least(self, scales: Scales) -> Floats:
        """Return logarithms below which the objective only rises: a prior worth one in n + 1 keeps 1 / (n + 1) of it.

        What the labels say is lost in rounding far below them, most of all where columns are collinear.
        """
        T, d = self.evidence.n_tasks, len(scales.features)
        low = [np.full(d, self.expected / (2 * T)), np.array([1.0 / (d + 1)])]
        if self.squared:
            low.append(np.array([self.evidence.squared.noise(0.0)]))
        found = np.log(np.concatenate(low))
        return np.concatenate([np.full(len(self.pack(scales)) - len(found), -np.inf), found])

    def unpack(self, logs: Floats, like: Scales) -> Scales:
        """Return the scales whose logarithms these are."""
        found = np.exp(logs)
        linkage, d = like.linkage.copy(), len(like.features)
        n_heights = {"learned": len(linkage), "star": min(len(linkage), 1), "fixed": 0}[self.heights]
        if self.heights != "fixed":
            linkage[:, 2] = found[:n_heights].cumsum() if self.heights == "learned" else found[:n_heights]
        rest = found[n_heights:]
        return Scales(linkage, rest[:d], float(rest[d]), float(rest[d + 1]) if self.squared else like.noise)

    def value_and_gradient(self, logs: Floats, like: Scales) -> tuple[float, Floats]:
        """Return the objective and its gradient at logarithms of the scales."""
        scales = self.unpack(logs, like)
        beliefs = self.beliefs(scales)
        linkage, T = scales.linkage, self.evidence.n_tasks
        lengths = np.append(lengths_of(linkage, T), scales.root)
        used = lengths > 0
        pull = 0.5 * (beliefs.changes[used] / lengths[used, None] - 1.0)  # slope of the log of each branch, by feature
        by_branch = np.zeros(len(lengths))
        by_branch[used] = pull.sum(axis=1) / lengths[used]
        parts: list[Floats] = []
        if self.heights != "fixed" and len(linkage):
            slope = np.zeros(len(linkage))  # of the heights
            children = linkage[:, :2].astype(np.int64)
            slope += by_branch[children].sum(axis=1)
            slope[: T - 2] -= by_branch[T : 2 * T - 2]
            if self.heights == "star":
                parts.append(np.array([slope.sum() * linkage[0, 2]]))
            else:
                waits = np.exp(logs[: T - 1])
                x = _rates(T - 1) * waits
                parts.append(slope[::-1].cumsum()[::-1] * waits + 1.0 - (T - 1) * x / x.sum())
        parts.append(pull.sum(axis=0) + 0.5 * (self.expected / scales.features - 1.0))
        parts.append(np.array([by_branch[-1] * scales.root + 0.5 * (1.0 / scales.root - 1.0)]))
        if self.squared:
            squares = self._squares(scales, beliefs)
            parts.append(np.array([self.evidence.squared.noise_slope(squares, scales.noise)]))
        return beliefs.value + self.prior(scales), np.concatenate(parts)

    def _squares(self, scales: Scales, beliefs: Beliefs) -> float:
        """Return the expected sum of squared residuals of tasks with squared loss."""
        half, squared = np.sqrt(scales.features), self.evidence.squared
        _, rest = squared.residual(beliefs.mean * half)
        spread = np.einsum(
            "tde,tde->t", squared.gram[squared.pattern], beliefs.covariance * half[:, None] * half, optimize=True
        )
        return float((rest + spread)[~self.evidence.logistic].sum())

    def improve(self, scales: Scales, steps: int, *, exact: bool = False) -> Scales:
        """Return better scales by L-BFGS on their logarithms; ``exact``: to rounding, not to what matters."""
        start, least = self.pack(scales), self._least(scales)
        start = np.maximum(start, least)

        def objective(logs: Floats) -> tuple[float, Floats]:
            value, gradient = self.value_and_gradient(logs, scales)
            return -value, -gradient

        before, _ = objective(start)
        found = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(max(value - _RANGE, low), value + _RANGE) for value, low in zip(start, least, strict=True)],
            options={"maxiter": steps, "ftol": _EXACT if exact else _NEAR, "gtol": _EXACT if exact else _NEAR},
        )
        if not found.fun <= before:
            return scales
        return self.unpack(self._polished(found.x, scales) if exact else found.x, scales)

    def _polished(self, logs: Floats, like: Scales) -> Floats:
        """Take Newton steps: values of the objective tell logarithms apart only to the root of rounding.

        The Hessian is that of differences of gradients, so only a few scales are polished.
        """
        if len(logs) > _MOST_POLISHED:
            return logs
        value, gradient = self.value_and_gradient(logs, like)
        steps = _DIFFERENCE * np.eye(len(logs))
        for _ in range(_POLISHES):
            sides = [
                (self.value_and_gradient(logs + step, like)[1], self.value_and_gradient(logs - step, like)[1])
                for step in steps
            ]
            hessian = np.stack([(up - down) / (2.0 * _DIFFERENCE) for up, down in sides])
            polished = logs - np.linalg.lstsq(0.5 * (hessian + hessian.T), gradient, rcond=1e-8)[0]
            after, flatter = self.value_and_gradient(polished, like)
            if np.abs(flatter).max() >= np.abs(gradient).max() or after < value - _SLACK * (1.0 + abs(value)):
                break
            logs, value, gradient = polished, after, flatter
        return logs


def star(n_tasks: int, height: float) -> Floats:
    """Return a linkage in which all tasks join at one height."""
    linkage = np.zeros((n_tasks - 1, 4))
    sizes = [1] * n_tasks
    for number in range(n_tasks - 1):
        sizes.append(sizes[2 * number] + sizes[2 * number + 1])
        linkage[number] = (2 * number, 2 * number + 1, height, sizes[-1])
    return linkage


def linkage_of(partitions: Sequence[Ints], heights: Floats) -> Floats:
    """Return the linkage matrix of partitions that join two groups at a time, from every task alone to one group."""
    T = len(partitions[0])
    linkage = np.zeros((T - 1, 4))
    node = np.arange(T)  # of the group of every task
    for number, (before, after) in enumerate(pairwise(partitions)):
        count_before = np.bincount(before)
        grown = np.flatnonzero(count_before[before] != np.bincount(after)[after])  # the tasks of the joined group
        pair = sorted(float(value) for value in np.unique(node[grown]))
        linkage[number] = (pair[0], pair[1], heights[number], len(grown))
        node[grown] = T + number
    return linkage
