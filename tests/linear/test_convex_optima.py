"""Every convex estimator, squared and logistic loss: its objective is the optimum of a general convex solver."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

import polytask.linear
from polytask.linear import (
    BlockSparse,
    ClusteredTasks,
    DirtyModel,
    ElasticBlockSparse,
    GraphGuidedFusedLasso,
    GraphRegularised,
    MeanRegularised,
    MultiTaskFeatureLearning,
    RelaxedClusters,
    RobustMultiTask,
    SimultaneousLasso,
    SparseGroup,
    TaskCovariance,
    TaskLasso,
    TraceNorm,
    TreeGuidedGroupLasso,
)
from polytask.linear.estimator import TaskEstimator

T, D = 4, 4


def rows(W):
    return cp.sum(cp.norm(W, 2, axis=0))


def columns(W):
    return cp.sum(cp.norm(W, 2, axis=1))


def entries(W):
    return cp.sum(cp.abs(W))


def largest(W):
    return cp.sum(cp.max(cp.abs(W), axis=0))


def mean_regularised(model, W):
    common = cp.Variable(D)
    own = sum(cp.sum_squares(W[t] - common) for t in range(T))
    return 0.5 * model.alpha * (1 + model.mu) * (cp.sum_squares(common) + own / model.mu)


def edges(model, W):
    between = sum(cp.sum_squares(W[s] - W[t]) for s in range(T) for t in range(s)) / T
    return 0.5 * model.alpha * (between + model.ridge * cp.sum_squares(W))


def tree(model, W):
    members = [(row.max(), np.flatnonzero(row)) for row in model.group_weights_]
    return model.alpha * sum(weight * rows(W[group]) for weight, group in members if len(group))


def fused(model, W):
    joined = zip(*np.nonzero(np.triu(model.graph_, 1)), strict=True)
    parts = [abs(model.graph_[e]) * cp.norm1(W[e[0]] - np.sign(model.graph_[e]) * W[e[1]]) for e in joined]
    return model.alpha * entries(W) + model.gamma * sum(parts)


def inverse_quadratic(W, M, constraints):
    """trace(W^T M^-1 W) as a semidefinite problem."""
    R = cp.Variable((D, D), symmetric=True)
    constraints.append(cp.bmat([[R, W.T], [W, M]]) >> 0)
    return cp.trace(R)


def cluster_norm(model, W):
    low, high, r = 1 / model.within, 1 / model.between, model.n_clusters
    S, centre, constraints = cp.Variable((T, T), symmetric=True), np.eye(T) - 1 / T, []
    constraints += [S >> low * np.eye(T), high * np.eye(T) >> S, cp.trace(S) == (T - r + 1) * low + (r - 1) * high]
    spread = inverse_quadratic(centre @ W, S, constraints)
    return 0.5 * model.alpha * (model.mean * T * cp.sum_squares(cp.sum(W, axis=0) / T) + spread), constraints


def relaxed_clusters(model, W):
    eta = model.ridge / model.alpha
    M = cp.Variable((T, T), symmetric=True)
    constraints = [M >> 0, np.eye(T) >> M, cp.trace(M) == model.n_clusters]
    return 0.5 * model.ridge * (1 + eta) * inverse_quadratic(W, eta * np.eye(T) + M, constraints), constraints


# the estimator and its penalty, by the definition, of one matrix or of two that are added up
CONVEX = [
    (BlockSparse(0.05), lambda m, W: m.alpha * rows(W)),
    (TaskLasso(0.03, ridge=0.02), lambda m, W: m.alpha * entries(W) + 0.5 * m.ridge * cp.sum_squares(W)),
    (SimultaneousLasso(0.1), lambda m, W: m.alpha * largest(W)),
    (SparseGroup(0.05, 0.4), lambda m, W: m.alpha * (0.4 * entries(W) + 0.6 * rows(W))),
    (ElasticBlockSparse(0.05, ridge=0.1), lambda m, W: m.alpha * rows(W) + 0.05 * cp.sum_squares(W)),
    (DirtyModel(0.1, 0.04), lambda m, P, Q: m.alpha * largest(P) + m.own * entries(Q)),
    (TreeGuidedGroupLasso(0.05, root_height=0.8), tree),
    (GraphGuidedFusedLasso(0.02, 0.03, threshold=0.0), fused),
    (MeanRegularised(0.05, 0.4), mean_regularised),
    (GraphRegularised(0.1, 0.3), edges),
    (TraceNorm(0.05), lambda m, W: m.alpha * cp.normNuc(W)),
    (MultiTaskFeatureLearning(0.02), lambda m, W: m.alpha * cp.square(cp.normNuc(W))),
    (
        TaskCovariance(0.02, 0.01),
        lambda m, W: 0.5 * m.ridge * cp.sum_squares(W) + 0.5 * m.alpha * cp.square(cp.normNuc(W)),
    ),
    (ClusteredTasks(0.1, 2, mean=0.1, between=0.4, within=2.0), cluster_norm),
    (RelaxedClusters(0.1, 2, ridge=0.03), relaxed_clusters),
    (RobustMultiTask(0.05, 0.04), lambda m, P, Q: m.alpha * cp.normNuc(P) + m.outlier * columns(Q)),
    (RobustMultiTask(0.05, 0.04, shared="features"), lambda m, P, Q: m.alpha * rows(P) + m.outlier * columns(Q)),
]
# not convex, or certified elsewhere: kernels (test_task_kernel_ridge.py, test_task_kernel_svm.py)
OTHERS = {
    "AlternatingStructure", "DirichletProcessTasks", "GaussianMixtureTasks", "GroupingOverlap",
    "LearnedTaskGroups", "MultiTaskGaussianProcess", "TaskGating", "TaskHierarchy", "TaskKernelRidge",
    "TaskKernelSVM",
}  # fmt: skip


def split(penalty, model, W):
    """Return the penalty of the definition of a matrix, the least over its parts, and the constraints of that."""
    if penalty.__code__.co_argcount == 2:
        found = penalty(model, W)
        return found if isinstance(found, tuple) else (found, [])
    P = cp.Variable((T, D))
    return penalty(model, P, W - P), []


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize(("estimator", "penalty"), CONVEX, ids=lambda value: type(value).__name__)
def test_objective_is_that_of_a_general_convex_solver(problems, estimator, penalty, loss):
    X, y, tasks = problems.stacked(20, sizes=(30, 40, 25, 32), d=D, noise=3.0)
    if loss == "logistic":
        y = (y > np.array([np.median(y[tasks == t]) for t in range(T)])[tasks]).astype(float)
    model = estimator.set_params(loss=loss, tol=1e-8).fit(X, y, tasks=tasks)
    best = problems.optimum(X, y, tasks, lambda W: split(penalty, model, W[0]), logistic=loss == "logistic")
    value, constraints = split(penalty, model, cp.Constant(model.coef_))
    reached = problems.loss(model, X, y, tasks) + cp.Problem(cp.Minimize(value), constraints).solve(solver="CLARABEL")
    assert reached == pytest.approx(best, rel=1e-5)
    assert model.coef_.any()
    null = T * np.log(2) if loss == "logistic" else problems.null_loss(y, tasks)
    assert getattr(model, "dual_gap_", 0.0) <= 1e-8 * null


def test_every_convex_estimator_is_compared():
    public = {
        name
        for name, value in vars(polytask.linear).items()
        if isinstance(value, type) and issubclass(value, TaskEstimator) and not name.endswith("CV")
    }
    assert public - OTHERS == {type(estimator).__name__ for estimator, _ in CONVEX}
