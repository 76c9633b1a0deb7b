"""Raw tables become matrices: standardised numbers and category codes, fitted on training rows only.

With x_ij the value of numeric column j in row i, m_j its training median, and mu, s the mean and
standard deviation after filling::

    numeric[i, j] = (filled_ij - mu_j) / s_j,      filled_ij = x_ij, or m_j where missing
    numeric[i, k] = (missing_ij - mu_k) / s_k      one more column per j that has enough missing values
    categorical[i, j] = 1 … K_j for the frequent levels, 0 for missing, rare and unseen ones

The figures are learned with scikit-learn (``SimpleImputer`` and ``StandardScaler`` in a
``ColumnTransformer``, one ``OrdinalEncoder`` per categorical column); applying them is plain NumPy, so
that a saved model predicts without scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from polytask.core.data import Array, TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.task import Floats
from polytask.sources.columns import present

ENCODER_FORMAT = 1


@dataclass(frozen=True)
class NumericColumn:
    """What was learned about one numeric column.

    Attributes
    ----------
    median
        Filled in where a value is missing.
    mean, scale
        Of the filled training values; ``scale`` is None for a constant column, which is left out.
    indicator
        Mean and scale of the missing indicator, or None when there is none.
    """

    median: float
    mean: float
    scale: float | None
    indicator: tuple[float, float] | None


@dataclass(frozen=True)
class CategoricalColumn:
    """What was learned about one categorical column.

    Attributes
    ----------
    levels
        Levels with a code of their own, 1 … K.
    rare
        Levels seen in training that share code 0.
    """

    levels: tuple[str, ...]
    rare: tuple[str, ...]


@dataclass(frozen=True)
class _Fitted:
    numeric: Mapping[str, NumericColumn]
    categorical: Mapping[str, CategoricalColumn]
    order: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class TableEncoder:
    """Turn raw task data into encoded task data; all figures come from the rows given to :meth:`fit`.

    Parameters
    ----------
    max_levels
        Categories with a code of their own, the most frequent ones first.
    min_rows
        Training rows a category needs for a code of its own.
    min_missing
        Training rows that must lack (and have) a value for a missing indicator to be made. A rarer
        indicator would be a column of a few huge standardised values. Columns that are missing in the
        same training rows share one indicator.

    Examples
    --------
    >>> import numpy as np
    >>> from polytask.core import Regression, TaskData
    >>> data = TaskData.from_columns(
    ...     [Regression("y")], {"age": np.array([1.0, 2.0, 3.0])}, np.array([[1.0], [2.0], [3.0]])
    ... )
    >>> TableEncoder().fit(data).transform(data).inputs["numeric"].ravel().round(2).tolist()
    [-1.22, 0.0, 1.22]
    """

    max_levels: int = 50
    min_rows: int = 5
    min_missing: int = 10
    _fitted: _Fitted | None = None

    def __post_init__(self) -> None:
        for name in ("max_levels", "min_rows", "min_missing"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    def fit(self, data: TaskData) -> TableEncoder:
        """Learn medians, means, scales and levels from every row of ``data``; return a fitted copy."""
        for name, values in data.inputs.items():
            if values.ndim != 1:
                raise InputError(
                    f'input "{name}" has shape {values.shape}: the data is encoded already; use no encoder'
                )
            if values.dtype != object and np.isinf(values).any():
                raise InputError(f'input "{name}" is infinite in row {int(np.flatnonzero(np.isinf(values))[0]) + 1}')
        texts = [name for name, values in data.inputs.items() if values.dtype == object]
        numbers = [name for name in data.inputs if name not in texts]
        with_values = [name for name in numbers if present(data.inputs[name]).any()]
        numeric = self._fit_numeric({name: data.inputs[name] for name in with_values})
        empty = NumericColumn(0.0, 0.0, None, None)
        fitted = _Fitted(
            {name: numeric.get(name, empty) for name in numbers},
            {name: self._fit_levels(data.inputs[name]) for name in texts},
            tuple(data.inputs),
        )
        return replace(self, _fitted=fitted)

    def _fit_numeric(self, columns: Mapping[str, Array]) -> dict[str, NumericColumn]:
        if not columns:
            return {}
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import MissingIndicator, SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        matrix = np.column_stack(list(columns.values()))
        gaps_of = {j: np.isnan(matrix[:, j]) for j in range(matrix.shape[1])}
        least, most = self.min_missing, len(matrix) - self.min_missing
        patterns = {gap.tobytes(): j for j, gap in reversed(gaps_of.items()) if least <= gap.sum() <= most}
        gappy = np.array(sorted(patterns.values()), dtype=np.int64)  # columns with equal gaps get one indicator
        everywhere = np.arange(matrix.shape[1])
        plan: list[tuple[str, Any, Any]] = [
            ("values", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), everywhere)
        ]
        if len(gappy):
            plan.append(("gaps", make_pipeline(MissingIndicator(features="all"), StandardScaler()), gappy))
        fitted = ColumnTransformer(plan).fit(matrix).named_transformers_
        imputer, scaler = (step for _, step in fitted["values"].steps)
        gaps = fitted["gaps"].steps[-1][1] if len(gappy) else None
        indicators = (
            {int(j): (float(gaps.mean_[k]), float(gaps.scale_[k])) for k, j in enumerate(gappy)} if gaps else {}
        )
        found = {}
        for j, name in enumerate(columns):
            mean, spread = float(scaler.mean_[j]), float(np.sqrt(scaler.var_[j]))
            varies = spread > 1e-12 * max(1.0, abs(mean))
            found[name] = NumericColumn(
                float(imputer.statistics_[j]), mean, float(scaler.scale_[j]) if varies else None, indicators.get(j)
            )
        return found

    def _fit_levels(self, values: Array) -> CategoricalColumn:
        from sklearn.preprocessing import OrdinalEncoder

        known = values[present(values)]
        if not len(known):
            return CategoricalColumn((), ())
        # scikit-learn counts the group of infrequent levels among max_categories
        encoder = OrdinalEncoder(max_categories=self.max_levels + 1, min_frequency=self.min_rows)
        encoder.fit(known.reshape(-1, 1))
        every = encoder.categories_[0].tolist()
        infrequent = encoder.infrequent_categories_[0]
        rare = set() if infrequent is None else set(infrequent.tolist())
        return CategoricalColumn(tuple(v for v in every if v not in rare), tuple(v for v in every if v in rare))

    def _learned(self) -> _Fitted:
        if self._fitted is None:
            raise InputError("the encoder has not been fitted; call fit with the training rows first")
        return self._fitted

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Names of the encoded columns by input."""
        fitted = self._learned()
        names = [name for name, column in fitted.numeric.items() if column.scale is not None]
        names += [f"{name} missing" for name, column in fitted.numeric.items() if column.indicator is not None]
        found = {"numeric": tuple(names)}
        return found | {"categorical": tuple(fitted.categorical)} if fitted.categorical else found

    def transform(self, data: TaskData) -> TaskData:
        """Encode rows; tasks, labels and keys pass through.

        Returns
        -------
        TaskData
            ``inputs["numeric"]`` ``(n, p)`` and, if there are categories, ``inputs["categorical"]``
            ``(n, q)`` int64 with ``cardinalities`` K_j + 1.

        Raises
        ------
        InputError
            When a column of the training rows is absent or of another type.
        """
        fitted = self._learned()
        self._check(data)
        n = data.n_rows
        values, gaps = [], []
        for name, column in fitted.numeric.items():
            missing = np.isnan(data.inputs[name])
            if column.scale is not None:
                values.append((np.where(missing, column.median, data.inputs[name]) - column.mean) / column.scale)
            if column.indicator is not None:
                gaps.append((missing - column.indicator[0]) / column.indicator[1])
        together = [*values, *gaps]
        numeric: Floats = np.column_stack(together) if together else np.zeros((n, 0))
        inputs: dict[str, Array] = {"numeric": numeric}
        if fitted.categorical:
            codes = np.zeros((n, len(fitted.categorical)), dtype=np.int64)
            for j, (name, levels) in enumerate(fitted.categorical.items()):
                code = {level: number for number, level in enumerate(levels.levels, start=1)}
                codes[:, j] = [code.get(cell, 0) for cell in data.inputs[name].tolist()]
            inputs["categorical"] = codes
        cardinalities = tuple(len(column.levels) + 1 for column in fitted.categorical.values())
        return replace(data, inputs=inputs, features=self.features, cardinalities=cardinalities)

    def _check(self, data: TaskData) -> None:
        fitted = self._learned()
        for name in fitted.order:
            if name not in data.inputs:
                raise InputError(unknown("input column", name, data.inputs) + " The encoder was fitted with it.")
            text = data.inputs[name].dtype == object
            if text != (name in fitted.categorical):
                was = "texts" if name in fitted.categorical else "numbers"
                raise InputError(f'input "{name}" held {was} when the encoder was fitted; read it with the same schema')

    def unseen(self, data: TaskData) -> dict[str, int]:
        """Return column → rows whose category did not occur in training (treated as "other"), where any."""
        found = {}
        for name, column in self._learned().categorical.items():
            known = {None, *column.levels, *column.rare}
            count = sum(cell not in known for cell in data.inputs[name].tolist())
            if count:
                found[name] = count
        return found

    def state(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; :meth:`from_state` is the inverse."""
        fitted = self._learned()
        return {
            "format": ENCODER_FORMAT,
            "max_levels": self.max_levels,
            "min_rows": self.min_rows,
            "min_missing": self.min_missing,
            "order": list(fitted.order),
            "numeric": {
                name: {
                    "median": column.median,
                    "mean": column.mean,
                    "scale": column.scale,
                    "indicator": None if column.indicator is None else list(column.indicator),
                }
                for name, column in fitted.numeric.items()
            },
            "categorical": {
                name: {"levels": list(column.levels), "rare": list(column.rare)}
                for name, column in fitted.categorical.items()
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TableEncoder:
        """Build the encoder that :meth:`state` described; it encodes to the same numbers."""
        if state.get("format") != ENCODER_FORMAT:
            raise InputError(f"the encoder has format {state.get('format')!r}, this version reads {ENCODER_FORMAT}")
        order = tuple(state["order"])
        numeric = {}
        for name in order:
            if name in state["numeric"]:
                plain = state["numeric"][name]
                pair = None if plain["indicator"] is None else (plain["indicator"][0], plain["indicator"][1])
                numeric[name] = NumericColumn(plain["median"], plain["mean"], plain["scale"], pair)
        categorical = {
            name: CategoricalColumn(
                tuple(state["categorical"][name]["levels"]), tuple(state["categorical"][name]["rare"])
            )
            for name in order
            if name in state["categorical"]
        }
        return cls(state["max_levels"], state["min_rows"], state["min_missing"], _Fitted(numeric, categorical, order))
