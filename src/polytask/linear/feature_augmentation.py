"""Feature augmentation (FEDA, "frustratingly easy"): a copy of the inputs for all tasks and one for each.

    x of task t  ->  ( x sqrt(rho);  0 … x sqrt(1 - rho) … 0 ),      rho = 1 / (1 + mu)

with T + 1 blocks of d columns, so that the inner product is (rho + (1 - rho) [s = t]) x^T z. A linear
model with an l2 penalty on these columns is the mean-regularised model of several tasks: any single-task
learner becomes a multi-task one. Daumé's map (x; 0 … x … 0) is that of mu = 1 times sqrt 2.

Daumé, Frustratingly easy domain adaptation, ACL 2007; Evgeniou & Pontil, Regularized multi-task
learning, KDD 2004.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.layout import _task_labels, split_tasks, task_numbers
from polytask.linear.parameters import not_negative, yes_or_no


class FeatureAugmentation(TransformerMixin, BaseEstimator):
    """Give every task its own copy of the inputs beside a common one (see the module for the formula).

    Parameters
    ----------
    mu
        How independent the tasks are, 0 … inf, as of :class:`~polytask.linear.mean_regularised.MeanRegularised`.
    sparse_output
        Whether to return a sparse CSR matrix (each row has 2 d of its (T + 1) d numbers) or an array.

    Attributes
    ----------
    tasks_ : ndarray of shape (n_tasks,)
        Task labels (0 where ``tasks`` was not given).
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0], [2.0]])
    >>> augment = FeatureAugmentation(mu=1.0, sparse_output=False)
    >>> (np.sqrt(2) * augment.fit_transform(X, tasks=["a", "b"])).round(6)
    array([[1., 1., 0.],
           [2., 0., 2.]])
    >>> augment.get_feature_names_out().tolist()
    ['common__x0', 'a__x0', 'b__x0']
    """

    def __init__(self, mu: float = 0.1, *, sparse_output: bool = True) -> None:
        self.mu = mu
        self.sparse_output = sparse_output

    def fit(self, X: Any, y: Any = None, tasks: Any = None) -> FeatureAugmentation:  # noqa: ARG002 - for pipelines
        """Learn which tasks there are.

        Parameters
        ----------
        X
            Inputs, ``(n_samples, n_features)``.
        y
            Not used.
        tasks
            Task label of each row ``(n_samples,)``, or the name of the column of the frame ``X`` that holds
            them (it is no input then); None: one task.

        Returns
        -------
        self
        """
        self._shares()
        yes_or_no("sparse_output", self.sparse_output)
        self._task_column = tasks if isinstance(tasks, str) else None
        X, labels = split_tasks(X, tasks)
        X = validate_data(self, X, dtype=np.float64)
        self._apart = labels is not None
        self.tasks_: NDArray[Any] = (
            np.zeros(1, dtype=np.int64) if labels is None else np.unique(_task_labels(labels, len(X)))
        )
        return self

    def transform(self, X: Any, tasks: Any = None) -> Floats | csr_matrix:
        """Return the augmented inputs, ``(n_samples, (n_tasks + 1) n_features)``; ``tasks`` as of :meth:`fit`."""
        check_is_fitted(self)
        if tasks is None and self._task_column in list(getattr(X, "columns", ())):
            tasks = self._task_column
        X, labels = split_tasks(X, tasks)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        if labels is None and self._apart:
            raise InputError("tasks is missing: the tasks were told apart in fit; pass one task label per row")
        n, d = X.shape
        number = np.zeros(n, dtype=np.int64) if labels is None else task_numbers(labels, self.tasks_, n)
        common, own = self._shares()
        values = np.concatenate([common * X, own * X], axis=1)
        columns = np.concatenate(
            [np.broadcast_to(np.arange(d), (n, d)), np.arange(d) + ((number + 1) * d)[:, None]], axis=1
        )
        starts = 2 * d * np.arange(n + 1)
        found = csr_array((values.ravel(), columns.ravel(), starts), shape=(n, (len(self.tasks_) + 1) * d))
        return csr_matrix(found) if self.sparse_output else found.toarray()

    def fit_transform(self, X: Any, y: Any = None, tasks: Any = None) -> Floats | csr_matrix:
        """Fit and return the augmented inputs of the same rows."""
        return self.fit(X, y, tasks).transform(X, tasks)

    def _shares(self) -> tuple[float, float]:
        if self.mu == np.inf:
            return 0.0, 1.0
        independence = not_negative("mu", self.mu, "how independent the tasks are")
        return float(np.sqrt(1.0 / (1.0 + independence))), float(np.sqrt(independence / (1.0 + independence)))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return ``common__x`` for every input x, then ``task__x`` for every task."""
        check_is_fitted(self)
        names = _check_feature_names_in(self, input_features)
        groups = ["common", *map(str, self.tasks_.tolist())]
        return np.array([f"{group}__{name}" for group in groups for name in names], dtype=object)
