"""Small linear problems whose truth is known, for tests and simulations.

Rows x ~ N(0, I_p). Task t has weights w_t with ||w_t|| = 1 and

    y_t = x'w_t + noise · e,   e ~ N(0, 1)          (regression: R² of the truth is 1 / (1 + noise²))
    P(y_t = 1) = sigmoid(x'w_t / noise)             (binary)

``weights`` has shape (p features, T tasks). The generators differ in how the w_t relate:

* :func:`related` — few features matter, the same ones for every task, with similar weights;
* :func:`unrelated` — every task has its own features and its own weights;
* :func:`conflicting` — tasks pull a shared model in different directions;
* :func:`clustered` — groups of tasks with nearly equal weights, nothing in common between groups;
* :func:`curved_pair` — two curved tasks whose weights have a given cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.task import Binary, Floats, Regression, Task, sigmoid

_KINDS = ("regression", "binary")


@dataclass(frozen=True)
class Synthetic:
    """A generated problem and its truth.

    Attributes
    ----------
    data
        Training rows, encoded (``inputs["numeric"]`` of shape ``(n_rows, p)``).
    test
        ``n_test`` further rows of the same truth, or None.
    weights
        True weights, shape ``(p, T)``, unit norm per task.
    groups
        Cluster of each task, shape ``(T,)``; all 0 where tasks are related, all different where they are not.
    noise
        Standard deviation of the noise in units of the signal's.
    """

    data: TaskData
    test: TaskData | None
    weights: Floats
    groups: Ints
    noise: float


def related(
    n_rows: int,
    n_features: int,
    n_tasks: int,
    *,
    n_relevant: int = 5,
    similarity: float = 0.8,
    noise: float = 1.0,
    missing: float = 0.0,
    kind: str = "regression",
    seed: int = 0,
    n_test: int = 0,
) -> Synthetic:
    """Make tasks that share their relevant features and, partly, their weights.

    w_t is proportional to sqrt(similarity) c + sqrt(1 - similarity) v_t on ``n_relevant`` common
    features, with c and v_t standard normal: ``similarity`` is about the correlation of two tasks'
    weights (0: only the support is shared, 1: the tasks are equal).

    Parameters
    ----------
    n_rows, n_features, n_tasks
        Sizes n, p and T.
    n_relevant
        Number of features with a non-zero weight.
    similarity
        Share of the weights' variance that is common, 0 … 1.
    noise
        Noise standard deviation in units of the signal's (positive).
    missing
        Share of labels left out at random, 0 … 1 (exclusive).
    kind
        ``"regression"`` or ``"binary"``.
    seed
        Same seed, same problem. The test rows do not change the training rows.
    n_test
        Number of further rows in ``test``; these carry every label.
    """
    _check(n_relevant=(n_relevant, 1, n_features), similarity=(similarity, 0.0, 1.0))
    rng = np.random.default_rng([seed, 1])
    support = rng.choice(n_features, size=n_relevant, replace=False)
    common, own = rng.standard_normal((n_relevant, 1)), rng.standard_normal((n_relevant, n_tasks))
    weights = np.zeros((n_features, n_tasks))
    weights[support] = np.sqrt(similarity) * common + np.sqrt(1.0 - similarity) * own
    return _problem(weights, np.zeros(n_tasks, dtype=np.int64), n_rows, noise, missing, kind, seed, n_test)


def unrelated(
    n_rows: int,
    n_features: int,
    n_tasks: int,
    *,
    n_relevant: int = 5,
    noise: float = 1.0,
    missing: float = 0.0,
    kind: str = "regression",
    seed: int = 0,
    n_test: int = 0,
) -> Synthetic:
    """Make tasks that share nothing: each draws its own relevant features and weights.

    Supports are drawn independently, so two tasks may meet in a feature by chance. Parameters as in
    :func:`related`.
    """
    _check(n_relevant=(n_relevant, 1, n_features))
    rng = np.random.default_rng([seed, 2])
    weights = np.zeros((n_features, n_tasks))
    for task in range(n_tasks):
        support = rng.choice(n_features, size=n_relevant, replace=False)
        weights[support, task] = rng.standard_normal(n_relevant)
    return _problem(weights, np.arange(n_tasks), n_rows, noise, missing, kind, seed, n_test)


def conflicting(
    n_rows: int,
    n_features: int,
    n_tasks: int,
    *,
    way: str = "sign",
    n_relevant: int = 5,
    noise: float = 1.0,
    missing: float = 0.0,
    kind: str = "regression",
    seed: int = 0,
    n_test: int = 0,
) -> Synthetic:
    """Make tasks that are hurt by sharing.

    ``way="sign"``: all tasks use the same features, but every second one with the opposite sign
    (w_t = ±w), so a pooled model or a common mean of weights has nothing to offer and its pull is
    harmful. ``way="support"``: every task uses features of its own, disjoint from all the others',
    so choosing features jointly brings every task the noise of all the others'. Needs
    ``n_tasks * n_relevant <= n_features``. Other parameters as in :func:`related`.
    """
    if way not in ("sign", "support"):
        raise InputError(unknown("way", way, ("sign", "support")))
    rng = np.random.default_rng([seed, 3])
    weights = np.zeros((n_features, n_tasks))
    if way == "sign":
        _check(n_relevant=(n_relevant, 1, n_features))
        support = rng.choice(n_features, size=n_relevant, replace=False)
        signs = np.where(np.arange(n_tasks) % 2 == 0, 1.0, -1.0)
        weights[support] = rng.standard_normal((n_relevant, 1)) * signs
        groups = np.arange(n_tasks) % 2
    else:
        _check(n_relevant=(n_relevant, 1, n_features // n_tasks))
        support = rng.choice(n_features, size=n_relevant * n_tasks, replace=False)
        columns = np.repeat(np.arange(n_tasks), n_relevant)
        weights[support, columns] = rng.choice([-1.0, 1.0], size=len(support))
        groups = np.arange(n_tasks)
    return _problem(weights, groups, n_rows, noise, missing, kind, seed, n_test)


def clustered(
    n_rows: int,
    n_features: int,
    n_tasks: int,
    *,
    n_clusters: int = 3,
    spread: float = 0.2,
    noise: float = 1.0,
    missing: float = 0.0,
    kind: str = "regression",
    seed: int = 0,
    n_test: int = 0,
) -> Synthetic:
    """Make groups of tasks around common centres that have nothing to do with one another.

    w_t is proportional to c_g(t) + spread · v_t with standard normal centres and deviations; tasks
    are dealt to the groups in turn. Other parameters as in :func:`related`.
    """
    _check(n_clusters=(n_clusters, 1, n_tasks), spread=(spread, 0.0, np.inf))
    rng = np.random.default_rng([seed, 4])
    centres = rng.standard_normal((n_features, n_clusters))
    groups = np.arange(n_tasks) % n_clusters
    weights = centres[:, groups] + spread * rng.standard_normal((n_features, n_tasks))
    return _problem(weights, groups, n_rows, noise, missing, kind, seed, n_test)


def curved_pair(
    n_rows: int,
    n_features: int = 100,
    *,
    cosine: float,
    scale: float = 1.0,
    frequencies: Sequence[float] = (1.0, 2.0, 3.0),
    phases: Sequence[float] = (0.0, 1.0, 2.0),
    noise: float = 0.1,
    missing: float = 0.0,
    seed: int = 0,
    n_test: int = 0,
) -> Synthetic:
    """Make two curved regression tasks that are as alike as one number says.

        y_t = s_t + sum_i sin(a_i s_t + b_i) + noise · e,       s_t = scale · x'w_t
        w_1 = u_1,   w_2 = cosine · u_1 + sqrt(1 - cosine²) u_2          u_1, u_2 orthonormal, at random

    The published problem has 100 features and noise 0.1; scale, frequencies and phases it leaves open.

    Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.

    Parameters
    ----------
    n_rows, n_features
        Sizes n and p, p at least 2.
    cosine
        Inner product of the two tasks' weights, -1 … 1.
    scale
        Length of the weights (positive).
    frequencies, phases
        a and b, of equal length; empty: the tasks are linear.
    noise
        Standard deviation of the noise (positive).
    missing, seed, n_test
        As in :func:`related`.
    """
    _check(cosine=(cosine, -1.0, 1.0), n_features=(n_features, 2, np.inf), scale=(scale, 1e-12, np.inf))
    if len(frequencies) != len(phases):
        raise InputError(f"frequencies has {len(frequencies)} values, phases {len(phases)}; give one phase for each")
    rng = np.random.default_rng([seed, 5])
    directions, _ = np.linalg.qr(rng.standard_normal((n_features, 2)))
    weights = directions @ np.array([[1.0, cosine], [0.0, np.sqrt(1.0 - cosine**2)]])

    def curve(signal: Floats) -> Floats:
        steps = scale * signal
        waves = np.multiply.outer(steps, np.asarray(frequencies)) + np.asarray(phases)
        return np.asarray(steps + np.sin(waves).sum(axis=-1))

    return _problem(
        weights, np.zeros(2, dtype=np.int64), n_rows, noise, missing, "regression", seed, n_test, curve=curve
    )


def _check(**limits: tuple[float, float, float]) -> None:
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise InputError(f"{name} must lie in {low:g} … {high:g}, got {value:g}")


def _problem(
    weights: Floats,
    groups: Ints,
    n_rows: int,
    noise: float,
    missing: float,
    kind: str,
    seed: int,
    n_test: int,
    *,
    curve: Callable[[Floats], Floats] | None = None,
) -> Synthetic:
    if kind not in _KINDS:
        raise InputError(unknown("kind", kind, _KINDS))
    _check(n_rows=(n_rows, 1, np.inf), n_test=(n_test, 0, np.inf), missing=(missing, 0.0, 1.0 - 1e-9))
    if not noise > 0.0:
        raise InputError(f"noise must be positive, got {noise}")
    unit = weights / np.linalg.norm(weights, axis=0)
    names = [f"task {number + 1}" for number in range(unit.shape[1])]
    tasks: list[Task] = [
        Regression(name) if kind == "regression" else Binary(name, (), ("no", "yes")) for name in names
    ]
    data = _rows(unit, tasks, n_rows, noise, missing, np.random.default_rng([seed, 10]), curve)
    test = _rows(unit, tasks, n_test, noise, 0.0, np.random.default_rng([seed, 11]), curve) if n_test else None
    return Synthetic(data, test, unit, np.asarray(groups, dtype=np.int64), noise)


def _rows(
    weights: Floats,
    tasks: list[Task],
    n_rows: int,
    noise: float,
    missing: float,
    rng: np.random.Generator,
    curve: Callable[[Floats], Floats] | None,
) -> TaskData:
    inputs = rng.standard_normal((n_rows, weights.shape[0]))
    signal = inputs @ weights if curve is None else curve(inputs @ weights)
    if isinstance(tasks[0], Regression):
        targets = signal + noise * rng.standard_normal(signal.shape)
    else:
        targets = (rng.random(signal.shape) < sigmoid(signal / noise)).astype(np.float64)
    targets[rng.random(signal.shape) < missing] = np.nan
    names = tuple(f"x{number + 1}" for number in range(weights.shape[0]))
    return TaskData.from_columns(tasks, {"numeric": inputs}, targets, features={"numeric": names})
