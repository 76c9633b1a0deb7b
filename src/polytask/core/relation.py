"""What tasks share, as something a person can read: a named matrix, a tree or loadings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.errors import InputError

_KINDS = ("coefficients", "correlation", "covariance", "weights", "loadings", "tree")


@dataclass(frozen=True)
class Relation:
    """One named table of what is shared.

    Parameters
    ----------
    kind
        ``coefficients`` (features × outputs), ``correlation``/``covariance`` (tasks × tasks),
        ``weights`` (one row of weights per task), ``loadings`` (factors × tasks) or ``tree``
        (a SciPy linkage matrix, ``(n_leaves - 1, 4)``, whose leaves are ``rows``).
    values
        2-d array of finite numbers.
    rows, columns
        Names along the two axes.
    about
        One sentence that says how to read it.
    """

    kind: str
    values: NDArray[np.float64]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    about: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f'relation kind "{self.kind}" is not one of {", ".join(_KINDS)}')
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values)
        if values.ndim != 2 or not np.isfinite(values).all():
            raise InputError(f"a relation needs a 2-d array of finite numbers, got shape {values.shape}")
        if self.kind != "tree" and values.shape != (len(self.rows), len(self.columns)):
            raise InputError(
                f"relation values have shape {values.shape} but {len(self.rows)} row and "
                f"{len(self.columns)} column names were given"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "values": self.values.tolist(),
            "rows": list(self.rows),
            "columns": list(self.columns),
            "about": self.about,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Relation:
        return cls(
            plain["kind"], np.array(plain["values"]), tuple(plain["rows"]), tuple(plain["columns"]), plain["about"]
        )
