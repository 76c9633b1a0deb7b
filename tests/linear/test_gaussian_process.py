"""MultiTaskGaussianProcess: GPyTorch's and scikit-learn's values, limits, exact gradients, odd tasks."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern

import polytask.linear.gaussian_process as module
from polytask.core.errors import InputError
from polytask.linear import GraphRegularised, MultiTaskGaussianProcess
from polytask.linear.kernels import kernel_matrix
from polytask.linear.solvers.marginal_likelihood import Hyperparameters, MarginalLikelihood
from polytask.linear.solvers.task_kernel import Cells, DenseSystem, KroneckerSystem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its use of deprecated parts of torch
    import gpytorch

FIXED = {"normalize_y": False, "n_restarts": 1}


def covariance(rng, T=3, rank=2):
    L = rng.normal(size=(T, rank))
    return L @ L.T + np.diag(rng.uniform(0.1, 0.5, T))


def block(seed=0, n=20, T=3, d=2):
    """Tasks labelled on the same rows, new rows, a task covariance, noise and length scales."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    Y = np.column_stack([np.sin(X @ rng.normal(size=d)) for _ in range(T)]) + 0.1 * rng.normal(size=(n, T))
    return X, Y, rng.normal(size=(7, d)), covariance(rng, T), rng.uniform(0.05, 0.3, T), rng.uniform(0.5, 2.0, d)


def holes(Y, seed=1, share=0.3):
    found = Y.copy()
    found[np.random.default_rng(seed).random(Y.shape) < share] = np.nan
    return found


def fixed(B, noise, scale, **settings):
    return MultiTaskGaussianProcess(task_covariance=B, noise=noise, length_scale=scale, **FIXED | settings)


# -- GPyTorch ----------------------------------------------------------------------------------


def their_kernel(name, scale):
    if name == "linear":
        assert len(scale) == 1
        kernel = gpytorch.kernels.LinearKernel()
        kernel.variance = 1 / scale[0] ** 2
        return kernel
    dims = len(scale) if len(scale) > 1 else None
    nu = {"matern32": 1.5, "matern52": 2.5}.get(name)
    kernel = gpytorch.kernels.MaternKernel(nu, ard_num_dims=dims) if nu else gpytorch.kernels.RBFKernel(dims)
    kernel.lengthscale = torch.tensor(scale)
    return kernel


class KroneckerGP(gpytorch.models.ExactGP):
    def __init__(self, X, Y, likelihood, kernel, T):
        super().__init__(X, Y, likelihood)
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ZeroMean(), num_tasks=T)
        self.covar_module = gpytorch.kernels.MultitaskKernel(kernel, num_tasks=T, rank=T)

    def forward(self, x):
        return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


class OwnRowsGP(gpytorch.models.ExactGP):
    def __init__(self, inputs, y, likelihood, kernels, T):
        super().__init__(inputs, y, likelihood)
        self.kernels = torch.nn.ModuleList(kernels)
        self.indices = torch.nn.ModuleList([gpytorch.kernels.IndexKernel(num_tasks=T, rank=T) for _ in kernels])

    def forward(self, x, i):
        total = sum(k(x).to_dense() * B(i).to_dense() for k, B in zip(self.kernels, self.indices, strict=True))
        return gpytorch.distributions.MultivariateNormal(torch.zeros(len(x), dtype=x.dtype), total)


def set_index_kernel(kernel, B):
    """Make the B of an IndexKernel: its factor carries all of it."""
    kernel.covar_factor.data = torch.tensor(np.linalg.cholesky(B))
    kernel.var = torch.full((len(B),), 1e-30, dtype=torch.float64)


@pytest.fixture
def exact_gpytorch():
    """Double precision and Cholesky everywhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with (
        gpytorch.settings.max_cholesky_size(10_000),
        gpytorch.settings.fast_computations(False, False, False),
        gpytorch.settings.debug(False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["rbf", "matern32", "matern52", "linear"])
@pytest.mark.parametrize("ard", [False, True])
def test_full_block_values_are_gpytorchs(exact_gpytorch, name, ard):
    X, Y, new, B, noise, scale = block()
    scale = scale if ard and name != "linear" else scale[:1]
    ours = fixed(B, noise, scale, kernel=name).fit(X, Y)
    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(
        num_tasks=3, has_global_noise=False, noise_constraint=gpytorch.constraints.GreaterThan(1e-9)
    )
    likelihood.task_noises = torch.tensor(noise)
    theirs = KroneckerGP(torch.tensor(X), torch.tensor(Y), likelihood, their_kernel(name, scale), 3)
    set_index_kernel(theirs.covar_module.task_covar_module, B)
    theirs.train()
    log_p = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, theirs)(theirs(torch.tensor(X)), torch.tensor(Y))
    assert ours.log_marginal_likelihood_ == pytest.approx(float(log_p) * Y.size, rel=1e-6)
    theirs.eval()
    likelihood.eval()
    with torch.no_grad():
        latent = theirs(torch.tensor(new))
        label = likelihood(latent)
    mean, std = ours.predict(new, return_std=True)
    np.testing.assert_allclose(mean, latent.mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(std**2, label.variance.numpy(), atol=1e-6)
    inner = ours.predict(new, return_std=True, include_noise=False)[1]
    np.testing.assert_allclose(inner**2, latent.variance.numpy(), atol=1e-6)


@pytest.mark.parametrize("names", [("rbf",), ("matern52",), ("rbf", "matern32")])
def test_values_with_missing_labels_and_several_kernels_are_gpytorchs(exact_gpytorch, names):
    X, Y, new, B, noise, scale = block(1)
    Y = holes(Y)
    Bs = [B, covariance(np.random.default_rng(5))][: len(names)]
    scales = [scale, scale[:1] / 3][: len(names)]
    one = len(names) == 1
    ours = fixed(Bs[0] if one else Bs, noise, scales[0] if one else scales, kernel=names, n_kernels=len(names)).fit(
        X, Y
    )
    task, row = np.nonzero(~np.isnan(Y.T))
    inputs, y = (torch.tensor(X[row]), torch.tensor(task)[:, None]), torch.tensor(Y.T[task, row])
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.tensor(noise[task]))
    theirs = OwnRowsGP(inputs, y, likelihood, [their_kernel(n, s) for n, s in zip(names, scales, strict=True)], 3)
    for index, matrix in zip(theirs.indices, Bs, strict=True):
        set_index_kernel(index, matrix)
    theirs.train()
    log_p = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, theirs)(theirs(*inputs), y)
    assert ours.log_marginal_likelihood_ == pytest.approx(float(log_p) * len(y), rel=1e-6)
    theirs.eval()
    for t in range(3):
        with torch.no_grad():
            latent = theirs(torch.tensor(new), torch.full((len(new), 1), t))
        mean, std = ours.predict(new, return_std=True, include_noise=False)
        np.testing.assert_allclose(mean[:, t], latent.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(std[:, t] ** 2, latent.variance.numpy(), atol=1e-6)


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [False, True])
def test_identity_task_covariance_gives_independent_processes(missing):
    X, Y, new, _, noise, scale = block(2)
    Y = holes(Y) if missing else Y
    together = fixed("identity", noise, scale).fit(X, Y)
    mean, std = together.predict(new, return_std=True, include_noise=False)
    total = 0.0
    for t in range(3):
        seen = ~np.isnan(Y[:, t])
        alone = GaussianProcessRegressor(RBF(scale), alpha=noise[t], optimizer=None).fit(X[seen], Y[seen, t])
        their_mean, their_std = alone.predict(new, return_std=True)
        np.testing.assert_allclose(mean[:, t], their_mean, atol=1e-9)
        np.testing.assert_allclose(std[:, t], their_std, atol=1e-9)
        total += alone.log_marginal_likelihood_value_
    assert together.log_marginal_likelihood_ == pytest.approx(total)


def test_rank_zero_shares_length_scales_and_nothing_else():
    X, Y, new, _, _, _ = block(3)
    model = MultiTaskGaussianProcess(rank=0, n_restarts=1).fit(X, holes(Y))
    assert np.array_equal(model.task_covariance_, np.diag(np.diag(model.task_covariance_)))
    for t in range(3):
        column = holes(Y)[:, [t]]
        alone = MultiTaskGaussianProcess(
            task_covariance=model.task_covariance_[t : t + 1, t : t + 1],
            noise=model.noise_[t],
            length_scale=model.length_scales_[0],
        ).fit(X, column)
        np.testing.assert_allclose(alone.predict(new)[:, 0], model.predict(new)[:, t], atol=1e-8)


def test_equal_tasks_with_equal_noise_are_one_pooled_process(problems):
    X, y, tasks = problems.stacked()
    model = fixed(np.ones((5, 5)), 0.3, 2.0, kernel="matern52").fit(X, y, tasks=tasks)
    pooled = GaussianProcessRegressor(Matern(2.0, nu=2.5), alpha=0.3, optimizer=None).fit(X, y)
    mean, std = model.predict(X + 0.1, tasks, return_std=True, include_noise=False)
    their_mean, their_std = pooled.predict(X + 0.1, return_std=True)
    np.testing.assert_allclose(mean, their_mean, atol=1e-8)
    np.testing.assert_allclose(std, their_std, atol=1e-7)
    assert model.log_marginal_likelihood_ == pytest.approx(pooled.log_marginal_likelihood_value_)


def test_autokrigeability_without_noise_nothing_is_gained_from_other_tasks_on_the_same_rows():
    X, Y, new, B, _, _ = block(4)
    apart = {}
    for noise in (1e-9, 0.1):
        tied = fixed(B, noise, 0.5, kernel="matern32").fit(X, Y).predict(new)
        alone = fixed("identity", noise, 0.5, kernel="matern32").fit(X, Y).predict(new)
        apart[noise] = np.abs(tied - alone).max()
    assert apart[1e-9] < 1e-5
    assert apart[0.1] > 0.01


def test_with_missing_labels_other_tasks_help_even_without_noise():
    X, Y, new, B, _, _ = block(4)
    Y = holes(Y)
    tied = fixed(B, 1e-9, 0.5, kernel="matern32").fit(X, Y).predict(new)
    alone = fixed("identity", 1e-9, 0.5, kernel="matern32").fit(X, Y).predict(new)
    assert np.abs(tied - alone).max() > 0.01


@pytest.mark.parametrize("missing", [False, True])
def test_with_the_linear_kernel_the_mean_is_the_task_coupled_ridge_of_the_same_covariance(missing):
    X, Y, new, _, _, _ = block(5)
    Y = holes(Y) if missing else Y
    alpha, ridge, graph = 0.05, 0.3, np.array([[0, 1.0, 0.2], [1.0, 0, 0], [0.2, 0, 0]])
    quadratic = GraphRegularised(alpha, ridge, graph=graph, fit_intercept=False, tol=1e-13).fit(X, Y)
    B = np.linalg.inv(np.diag(graph.sum(axis=1)) - graph + ridge * np.eye(3))
    noise = alpha * (~np.isnan(Y)).sum(axis=0)
    process = fixed(B, noise, None, kernel="linear").fit(X, Y)
    np.testing.assert_allclose(process.predict(new), quadratic.predict(new), atol=1e-8)


def test_two_kernels_that_are_equal_are_one_with_the_summed_covariance():
    X, Y, new, B, noise, scale = block(6)
    C = covariance(np.random.default_rng(7))
    two = fixed([B, C], noise, [scale, scale], n_kernels=2).fit(X, Y)
    one = fixed(B + C, noise, scale).fit(X, Y)
    assert two.log_marginal_likelihood_ == pytest.approx(one.log_marginal_likelihood_)
    for mine, theirs in zip(two.predict(new, return_std=True), one.predict(new, return_std=True), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)
    np.testing.assert_allclose(two.task_covariance_, B + C)
    assert two.task_covariances_.shape == (2, 3, 3)


# -- likelihood and its gradient ---------------------------------------------------------------


def likelihood(kernels, *, ard, missing, weighted=False, dense=False, shared=False, seed=0):
    X, Y, *_ = block(seed)
    Y = holes(Y) if missing else Y
    task, row = np.nonzero(~np.isnan(Y.T))
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 4, len(row)).astype(float) if weighted else np.ones(len(row))
    cells = Cells(row, task, Y.T[task, row], weights, 20, 3)
    widths = [2 if ard else 1 for _ in kernels]
    start = Hyperparameters(
        loadings=[rng.normal(size=(3, 2)) for _ in kernels],
        variances=[rng.uniform(0.2, 1, 3) for _ in kernels],
        length_scales=[rng.uniform(0.5, 2, width) for width in widths],
        noise=np.full(3, 0.2) if shared else rng.uniform(0.05, 0.3, 3),
        fixed_covariances=None,
        learned_scales=[ard or kernel != "linear" for kernel in kernels],
        learned_noise=True,
        shared_noise=shared,
        sizes=np.ones(len(kernels)),
        noise_size=1.0,
    )
    return MarginalLikelihood(cells, X, kernels, start, dense=dense)


@pytest.mark.parametrize("kernels", [("rbf",), ("matern32",), ("matern52",), ("linear",), ("rbf", "linear")])
@pytest.mark.parametrize("ard", [False, True])
@pytest.mark.parametrize("form", ["full", "missing", "weighted", "shared"])
def test_gradient_of_the_log_marginal_likelihood_is_that_of_differences(kernels, ard, form):
    problem = likelihood(
        kernels, ard=ard, missing=form in ("missing", "weighted"), weighted=form == "weighted", shared=form == "shared"
    )
    theta = problem.start.pack()
    value, gradient = problem.objective(theta)
    total = problem.value(problem.start, *problem.solve(problem.start))
    assert value == pytest.approx(-total / problem.cells.weights.sum())
    steps = 1e-6 * np.eye(len(theta))
    differences = [(problem.objective(theta + s)[0] - problem.objective(theta - s)[0]) / 2e-6 for s in steps]
    np.testing.assert_allclose(gradient, differences, atol=1e-7)


@pytest.mark.parametrize("kernel", ["rbf", "matern32", "linear"])
def test_kronecker_path_equals_the_dense_path(kernel):
    quick, dense = (likelihood((kernel,), ard=True, missing=False, dense=dense) for dense in (False, True))
    assert isinstance(quick.system(quick.start), KroneckerSystem)
    assert isinstance(dense.system(dense.start), DenseSystem)
    theta = quick.start.pack()
    assert quick.objective(theta)[0] == pytest.approx(dense.objective(theta)[0], abs=1e-8)
    np.testing.assert_allclose(quick.objective(theta)[1], dense.objective(theta)[1], atol=1e-8)
    X, Y, new, B, noise, scale = block()
    models = [fixed(B, noise, scale, solver=solver).fit(X, Y) for solver in ("auto", "dense")]
    for mine, theirs in zip(*(model.predict(new, return_std=True) for model in models), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)
    assert models[0].log_marginal_likelihood_ == pytest.approx(models[1].log_marginal_likelihood_, abs=1e-8)


def test_packing_and_unpacking_hyperparameters_are_inverse_and_starts_lie_within_bounds():
    start = likelihood(("rbf", "linear"), ard=True, missing=False).start
    theta = start.pack()
    np.testing.assert_allclose(start.unpack(theta).pack(), theta)
    low, high = start.bounds()
    assert (low < theta).all()
    assert (theta < high).all()
    again = start.scattered(np.random.default_rng(0), 0.5)
    assert again.pack().shape == theta.shape


def test_the_covariance_of_all_cells_is_positive_semidefinite():
    X, Y, *_ = block(8)
    model = MultiTaskGaussianProcess(n_restarts=1).fit(X, holes(Y))
    K = np.kron(model.task_covariance_, kernel_matrix("rbf", X, X, model.length_scales_[0]))
    assert np.linalg.eigvalsh(K).min() > -1e-10


# -- learning ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    """Labels drawn from a process with known hyper-parameters."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-3, 3, size=(70, 1))
    B = np.array([[1.0, 0.9, -0.8], [0.9, 1.0, -0.7], [-0.8, -0.7, 1.0]])
    K = kernel_matrix("rbf", X, X, np.array([0.8]))
    f = np.linalg.cholesky(np.kron(B, K) + 1e-9 * np.eye(210)) @ rng.normal(size=210)
    return X, f.reshape(3, 70).T + 0.1 * rng.normal(size=(70, 3)), B


@pytest.mark.parametrize("missing", [False, True])
def test_hyperparameters_are_at_least_as_likely_as_the_true_ones_and_near_them(drawn, missing):
    X, Y, B = drawn
    Y = holes(Y) if missing else Y
    learned = MultiTaskGaussianProcess(normalize_y=False).fit(X, Y)
    true = fixed(B, 0.01, 0.8).fit(X, Y)
    assert learned.log_marginal_likelihood_ >= true.log_marginal_likelihood_
    assert learned.length_scales_[0][0] == pytest.approx(0.8, rel=0.25)
    np.testing.assert_allclose(np.sqrt(learned.noise_), 0.1, rtol=0.3)
    correlation = learned.relations_["task correlation"].values
    assert correlation[0, 1] > 0.8
    assert correlation[0, 2] < -0.6


def test_the_end_is_a_stationary_point(drawn):
    X, Y, _ = drawn
    model = MultiTaskGaussianProcess(n_restarts=1, normalize_y=False, tol=1e-6).fit(X, Y)
    B, noise, scale = model.task_covariance_, model.noise_, model.length_scales_[0]
    best = model.log_marginal_likelihood_
    for factor in (0.97, 1.03):
        assert fixed(factor * B, noise, scale).fit(X, Y).log_marginal_likelihood_ < best
        assert fixed(B, factor * noise, scale).fit(X, Y).log_marginal_likelihood_ < best
        assert fixed(B, noise, factor * scale).fit(X, Y).log_marginal_likelihood_ < best


def test_more_starts_are_never_worse_and_the_seed_decides(drawn):
    X, Y, _ = drawn
    Y = holes(Y[::2], share=0.5)
    one, three = (MultiTaskGaussianProcess(n_restarts=n).fit(X[::2], Y) for n in (1, 3))
    assert three.log_marginal_likelihood_ >= one.log_marginal_likelihood_
    again = MultiTaskGaussianProcess(n_restarts=3).fit(X[::2], Y)
    assert again.predict(X).tobytes() == three.predict(X).tobytes()


def test_a_related_task_fills_a_gap(drawn):
    X, Y, _ = drawn
    gap = np.where((X > 0) & (np.arange(3) == 1), np.nan, Y)
    mean, std = MultiTaskGaussianProcess(n_restarts=1).fit(X, gap).predict(X, return_std=True)
    alone = MultiTaskGaussianProcess(rank=0, n_restarts=1).fit(X, gap).predict(X)
    unseen = X[:, 0] > 0
    errors = [np.square(found[unseen, 1] - Y[unseen, 1]).mean() for found in (mean, alone)]
    assert errors[0] < 0.3 * errors[1]
    assert std[unseen, 1].mean() > std[~unseen, 1].mean()


def test_ninety_percent_intervals_hold_nine_in_ten_new_labels(drawn):
    X, Y, B = drawn
    rng = np.random.default_rng(3)
    kept = rng.random(Y.shape) < 0.6
    mean, std = fixed(B, 0.01, 0.8).fit(X, np.where(kept, Y, np.nan)).predict(X, return_std=True)
    assert 0.8 < (np.abs(mean - Y)[~kept] < 1.645 * std[~kept]).mean() < 0.97


def test_units_of_targets_and_inputs_do_not_matter_and_normalised_is_standardised_by_hand(drawn):
    X, Y, _ = drawn
    Y = holes(Y[::2])
    X = X[::2]
    plain = MultiTaskGaussianProcess(n_restarts=1).fit(X, Y)
    other = MultiTaskGaussianProcess(n_restarts=1).fit(100 * X + 7, Y * [1e3, 1.0, 1e-3] + 5)
    np.testing.assert_allclose(other.predict(100 * X + 7), plain.predict(X) * [1e3, 1.0, 1e-3] + 5, rtol=1e-3)
    np.testing.assert_allclose(
        other.predict(100 * X + 7, return_std=True)[1], plain.predict(X, return_std=True)[1] * [1e3, 1, 1e-3], rtol=1e-3
    )
    mean, std = np.nanmean(Y, axis=0), np.nanstd(Y, axis=0)
    by_hand = MultiTaskGaussianProcess(n_restarts=1, normalize_y=False).fit(X, (Y - mean) / std)
    np.testing.assert_allclose(by_hand.predict(X) * std + mean, plain.predict(X), atol=1e-6)
    assert by_hand.log_marginal_likelihood_ == pytest.approx(plain.log_marginal_likelihood_, rel=1e-9)


@pytest.mark.parametrize("missing", [False, True])
def test_a_label_of_weight_two_is_the_same_as_having_it_twice(missing):
    X, Y, new, B, noise, scale = block(9)
    Y = holes(Y) if missing else Y
    times = np.random.default_rng(0).integers(1, 4, len(X))
    weighted = fixed(B, noise, scale, normalize_y=True).fit(X, Y, sample_weight=times)
    twice = fixed(B, noise, scale, normalize_y=True).fit(X.repeat(times, 0), Y.repeat(times, 0))
    assert weighted.log_marginal_likelihood_ == pytest.approx(twice.log_marginal_likelihood_)
    for mine, theirs in zip(weighted.predict(new, return_std=True), twice.predict(new, return_std=True), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


def test_columns_and_stacked_rows_give_the_same_process():
    X, Y, new, B, noise, scale = block(10)
    Y = holes(Y)
    wide = fixed(B, noise, scale, normalize_y=True).fit(X, Y)
    row, task = np.nonzero(~np.isnan(Y))
    long = fixed(B, noise, scale, normalize_y=True).fit(X[row], Y[row, task], tasks=task)
    assert long.log_marginal_likelihood_ == pytest.approx(wide.log_marginal_likelihood_)
    mean, std = wide.predict(new, return_std=True)
    of = np.array([0, 1, 2, 2, 1, 0, 1])
    own_mean, own_std = long.predict(new, of, return_std=True)
    np.testing.assert_allclose(own_mean, mean[np.arange(7), of], atol=1e-9)
    np.testing.assert_allclose(own_std, std[np.arange(7), of], atol=1e-9)


# -- odd input ---------------------------------------------------------------------------------


def test_a_task_with_one_target_gets_it_as_prediction_and_an_unknown_deviation():
    X, Y, new, B, noise, scale = block(11)
    Y[:, 1] = 4.0
    with pytest.warns(UserWarning, match="task 1"):
        model = fixed(B, noise, scale, normalize_y=True).fit(X, Y)
    kept = np.ix_([0, 2], [0, 2])
    without = fixed(B[kept], noise[[0, 2]], scale, normalize_y=True).fit(X, Y[:, [0, 2]])
    mean, std = model.predict(new, return_std=True)
    np.testing.assert_allclose(mean[:, [0, 2]], without.predict(new), atol=1e-9)
    np.testing.assert_allclose(std[:, [0, 2]], without.predict(new, return_std=True)[1], atol=1e-9)
    np.testing.assert_allclose(mean[:, 1], 4.0)
    assert np.isnan(std[:, 1]).all()
    assert np.isfinite(model.relations_["task covariance"].values).all()
    with pytest.warns(UserWarning, match="task 0"):
        only = MultiTaskGaussianProcess().fit(X, np.ones(20))
    mean, std = only.predict(new, return_std=True)
    np.testing.assert_allclose(mean, 1.0)
    assert np.isnan(std).all()


def test_one_task_and_one_column_have_their_own_shapes():
    X, Y, new, *_ = block(12)
    single = MultiTaskGaussianProcess(n_restarts=1).fit(X, Y[:, 0])
    column = MultiTaskGaussianProcess(n_restarts=1).fit(X, Y[:, [0]])
    assert [part.shape for part in single.predict(new, return_std=True)] == [(7,), (7,)]
    assert [part.shape for part in column.predict(new, return_std=True)] == [(7, 1), (7, 1)]
    assert "task tree" not in single.relations_


def test_an_unfinished_fit_says_so():
    X, Y, *_ = block(13)
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        MultiTaskGaussianProcess(max_iter=2, n_restarts=1).fit(X, Y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "rbs"}, 'Did you mean "rbf"'),
        ({"kernel": ["rbf", "rbf"]}, "kernel has 2 names but n_kernels is 1"),
        ({"rank": -1}, "rank must be a whole number of at least 0"),
        ({"n_restarts": 0}, "n_restarts must be a whole number of at least 1"),
        ({"solver": "fast"}, "solver must be"),
        ({"ard": 1}, "ard must be True or False"),
        ({"noise": 0.0}, "noise must be a positive number or 3"),
        ({"noise": [0.1, 0.2]}, "noise must be a positive number or 3"),
        ({"task_covariance": np.eye(2)}, r"task_covariance has shape \(2, 2\)"),
        ({"task_covariance": "unit"}, 'task_covariance must be "identity"'),
        ({"task_covariance": [np.eye(3)], "n_kernels": 2}, "task_covariance has 1 entries for 2 kernels"),
        ({"length_scale": [1.0, 2.0, 3.0]}, "length_scale must be a positive number or 2"),
        ({"length_scale": [1.0], "n_kernels": 2}, "length_scale has 1 entries for 2 kernels"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    X, Y, *_ = block()
    with pytest.raises(InputError, match=message):
        MultiTaskGaussianProcess(**settings).fit(X, Y)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
