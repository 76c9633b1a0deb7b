"""The fitted model of every linear learner: one coefficient vector per output over one-hot inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Arrays, Model
from polytask.core.relation import Relation
from polytask.core.task import Floats, Multiclass, Task

ONE_VS_REST = "one-vs-rest"
IDENTITY = "identity"


@dataclass(frozen=True)
class Design:
    """How encoded inputs become columns: the numeric ones as they are, then one indicator per category code.

    No level is dropped: under a penalty every level is drawn towards the others' common intercept,
    whichever comes first.

    Parameters
    ----------
    numeric, categorical
        Names of the columns.
    cardinalities
        Number of codes of each categorical column.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    cardinalities: tuple[int, ...] = ()

    @classmethod
    def of(cls, data: TaskData) -> Design:
        """Read the layout of encoded data."""
        if "numeric" not in data.inputs or np.asarray(data.inputs["numeric"]).ndim != 2:
            raise InputError(
                'linear learners need encoded data with inputs["numeric"] of shape (n, p); encode it first'
            )
        p = np.asarray(data.inputs["numeric"]).shape[1]
        q = np.asarray(data.inputs["categorical"]).shape[1] if "categorical" in data.inputs else 0
        if len(data.cardinalities) != q:
            raise InputError(f"cardinalities has {len(data.cardinalities)} entries for {q} categorical columns")
        numeric = tuple(data.features.get("numeric", ())) or tuple(f"x{number}" for number in range(p))
        categorical = tuple(data.features.get("categorical", ())) or tuple(f"c{number}" for number in range(q))
        return cls(numeric, categorical, tuple(int(size) for size in data.cardinalities))

    @property
    def starts(self) -> tuple[int, ...]:
        """First column of each categorical column's indicators."""
        return tuple(int(start) for start in len(self.numeric) + np.cumsum([0, *self.cardinalities])[:-1])

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.numeric) + sum(self.cardinalities)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns; the indicator of code c of column x is ``x[c]``."""
        levels = [
            f"{name}[{code}]"
            for name, size in zip(self.categorical, self.cardinalities, strict=True)
            for code in range(size)
        ]
        return (*self.numeric, *levels)

    def _parts(self, data: TaskData) -> tuple[Floats, Any]:
        numeric = np.asarray(data.inputs["numeric"], dtype=np.float64)
        codes = np.asarray(data.inputs.get("categorical", np.zeros((data.n_rows, 0), dtype=np.int64)))
        if numeric.shape[1] != len(self.numeric) or codes.shape[1] != len(self.categorical):
            raise InputError(
                f"the model has {len(self.numeric)} numeric and {len(self.categorical)} categorical columns, "
                f"the data {numeric.shape[1]} and {codes.shape[1]}; use the encoder of the training data"
            )
        if (codes < 0).any() or (codes >= np.array(self.cardinalities, dtype=np.int64)).any():
            raise InputError("a categorical code is out of range; use the encoder of the training data")
        return numeric, codes

    def matrix(self, data: TaskData) -> Floats:
        """Return the columns of encoded data, ``(n, width)``."""
        numeric, codes = self._parts(data)
        full = np.zeros((len(numeric), self.width))
        full[:, : len(self.numeric)] = numeric
        rows = np.arange(len(numeric))
        for number, start in enumerate(self.starts):
            full[rows, start + codes[:, number]] = 1.0
        return full

    def times(self, data: TaskData, coef: Floats) -> Floats:
        """Return ``matrix(data) @ coef`` without building the matrix."""
        numeric, codes = self._parts(data)
        product = numeric @ coef[: len(self.numeric)]
        for number, (start, size) in enumerate(zip(self.starts, self.cardinalities, strict=True)):
            product += coef[start : start + size][codes[:, number]]
        return np.asarray(product)

    def describe(self) -> dict[str, Any]:
        """Return plain data; :meth:`read` is the inverse."""
        return {
            "numeric": list(self.numeric),
            "categorical": list(self.categorical),
            "cardinalities": list(self.cardinalities),
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Design:
        return cls(
            tuple(str(name) for name in plain["numeric"]),
            tuple(str(name) for name in plain["categorical"]),
            tuple(int(size) for size in plain["cardinalities"]),
        )


class LinearModel(Model):
    """Scores = design @ coef + intercept, one column per output of every task.

    Parameters
    ----------
    tasks
        The tasks.
    design
        Layout of the inputs.
    coef, intercept
        ``(width, n_outputs)`` and ``(n_outputs,)``, in units of the targets; the outputs of the tasks
        lie side by side in the order of the tasks.
    scale
        What the coefficients of each task are divided by to compare tasks (the standard deviation of
        a regression target; 1 otherwise), ``(T,)``.
    links
        Per task ``"identity"``, or ``"one-vs-rest"``: the scores are log sigmoid of the columns, so
        that the probabilities are those of K separate yes/no models, made to add up to 1.
    learned
        What the method has learned about the tasks besides the coefficients, by name.
    """

    def __init__(
        self,
        tasks: tuple[Task, ...],
        design: Design,
        coef: Floats,
        intercept: Floats,
        scale: Floats,
        links: Sequence[str],
        learned: Mapping[str, Relation] | None = None,
    ) -> None:
        super().__init__(tasks)
        self.design = design
        self.coef = coef
        self.intercept = intercept
        self.scale = scale
        self.links = tuple(links)
        self.learned = dict(learned or {})

    def with_learned(self, learned: Mapping[str, Relation]) -> LinearModel:
        """Return the model with what the method has learned about the tasks."""
        return LinearModel(self.tasks, self.design, self.coef, self.intercept, self.scale, self.links, learned)

    def _slices(self) -> list[slice]:
        ends = np.cumsum([task.n_outputs for task in self.tasks])
        return [slice(int(end) - task.n_outputs, int(end)) for task, end in zip(self.tasks, ends, strict=True)]

    def predict(self, data: TaskData) -> dict[str, Floats]:
        every = self.design.times(data, self.coef) + self.intercept
        found = {}
        for task, part, link in zip(self.tasks, self._slices(), self.links, strict=True):
            scores = every[:, part]
            found[task.name] = -np.logaddexp(0.0, -scores) if link == ONE_VS_REST else np.array(scores)
        return found

    def state(self) -> tuple[dict[str, Any], Arrays]:
        description: dict[str, Any] = {"design": self.design.describe(), "links": list(self.links)}
        if self.learned:
            description["learned"] = {name: relation.to_json() for name, relation in self.learned.items()}
        return description, {"coef": self.coef, "intercept": self.intercept, "scale": self.scale}

    @classmethod
    def from_state(cls, tasks: tuple[Task, ...], description: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        design = Design.read(description["design"])
        coef, intercept, scale = (np.asarray(arrays[name], dtype=np.float64) for name in ("coef", "intercept", "scale"))
        outputs = sum(task.n_outputs for task in tasks)
        links = [str(link) for link in description["links"]]
        if coef.shape != (design.width, outputs) or intercept.shape != (outputs,) or scale.shape != (len(tasks),):
            raise InputError(
                f"coefficients of shape {coef.shape} do not fit {design.width} columns and {outputs} outputs"
            )
        if len(links) != len(tasks) or set(links) - {IDENTITY, ONE_VS_REST}:
            raise InputError(f"links {links} do not fit {len(tasks)} tasks")
        learned = {str(name): Relation.from_json(plain) for name, plain in description.get("learned", {}).items()}
        return cls(tasks, design, coef, intercept, scale, links, learned)

    def relations(self) -> dict[str, Relation]:
        found = {}
        columns, directions, names = [], [], []
        for number, (task, part) in enumerate(zip(self.tasks, self._slices(), strict=True)):
            coef = self.coef[:, part] / self.scale[number]
            columns.append(coef)
            if not isinstance(task, Multiclass):
                directions.append(coef.mean(axis=1))
                names.append(task.name)
        found["coefficients"] = Relation(
            "coefficients",
            np.concatenate(columns, axis=1),
            self.design.names,
            tuple(name for task in self.tasks for name in output_names(task)),
            "Change of the standardised target (or of the log-odds) per standard deviation of a numeric column, "
            "or for having that category.",
        )
        if len(names) >= 2:
            found["task correlation"] = Relation(
                "correlation",
                _correlation(np.array(directions)),
                tuple(names),
                tuple(names),
                "Correlation over inputs of the tasks' coefficients: 1 means the inputs act alike on both tasks.",
            )
        found.update(self.learned)
        return found


def output_names(task: Task) -> list[str]:
    """Return one name per output: that of the task, with the class where there are several."""
    if task.n_outputs == 1:
        return [task.name]
    if isinstance(task, Multiclass):
        return [f"{task.name}={label}" for label in task.labels]
    return [f"{task.name}>{label}" for label in task.labels[:-1]]


def _correlation(vectors: Floats) -> Floats:
    """Return the correlation matrix of the rows; 0 with a row that does not vary, 1 on the diagonal."""
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    varying = norms > 1e-12 * max(float(norms.max(initial=0.0)), 1e-300)
    unit = np.where(varying[:, None], centred / np.where(varying, norms, 1.0)[:, None], 0.0)
    matrix = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    return np.asarray(matrix)
