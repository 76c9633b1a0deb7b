"""Every public estimator keeps scikit-learn's own contract, and importing the room compiles nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import polytask.linear
from polytask.linear import (
    AlternatingStructure,
    BlockSparse,
    BlockSparseCV,
    ClusteredTasks,
    DirichletProcessTasks,
    DirtyModel,
    ElasticBlockSparse,
    FeatureAugmentation,
    GaussianMixtureTasks,
    GraphGuidedFusedLasso,
    GraphRegularised,
    GroupingOverlap,
    LearnedTaskGroups,
    MeanRegularised,
    MeanRegularisedCV,
    MultiTaskFeatureLearning,
    MultiTaskGaussianProcess,
    OnlineMultiTask,
    PathCV,
    RelaxedClusters,
    RobustMultiTask,
    SimultaneousLasso,
    SimultaneousLassoCV,
    SparseGroup,
    TaskClustering,
    TaskCovariance,
    TaskGating,
    TaskHierarchy,
    TaskKernelRidge,
    TaskKernelSVM,
    TaskLasso,
    TaskLassoCV,
    TraceNorm,
    TraceNormCV,
    TreeGuidedGroupLasso,
)

ESTIMATORS = [
    AlternatingStructure(),
    BlockSparse(alpha=0.01),
    BlockSparseCV(n_alphas=5, tol=1e-10),
    ClusteredTasks(),
    GraphRegularised(),
    GroupingOverlap(),
    MeanRegularised(),
    MeanRegularisedCV(n_alphas=5),
    PathCV(SparseGroup(tol=1e-10), n_alphas=5),
    SimultaneousLassoCV(n_alphas=5, tol=1e-10),
    TaskLassoCV(n_alphas=5, tol=1e-10),
    TraceNormCV(n_alphas=5, tol=1e-10),
    FeatureAugmentation(),
    MultiTaskFeatureLearning(),
    MultiTaskGaussianProcess(n_restarts=1),
    RelaxedClusters(),
    RobustMultiTask(),
    TaskCovariance(),
    TaskKernelRidge(),
    TaskKernelSVM(tol=1e-10),
    DirtyModel(),
    ElasticBlockSparse(),
    SimultaneousLasso(),
    SparseGroup(),
    TaskLasso(),
    TraceNorm(),
    GraphGuidedFusedLasso(),
    LearnedTaskGroups(),
    OnlineMultiTask(),
    TaskClustering(),
    DirichletProcessTasks(),
    GaussianMixtureTasks(),
    TaskGating(),
    TaskHierarchy(),
    TreeGuidedGroupLasso(),
]
EXPECTED_FAILED: dict[str, str] = {}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda _: EXPECTED_FAILED)
def test_estimator_keeps_the_scikit_learn_contract(estimator, check):
    check(estimator)


def test_every_public_estimator_is_checked():
    public = {
        value
        for value in vars(polytask.linear).values()
        if isinstance(value, type) and issubclass(value, BaseEstimator)
    }
    assert public == {type(estimator) for estimator in ESTIMATORS}
    for estimator in ESTIMATORS:
        assert repr(clone(estimator)) == repr(estimator)


def test_importing_the_room_loads_no_compiler_and_no_torch():
    code = "import sys, polytask.linear; print([m for m in ('numba', 'torch') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "[]"
