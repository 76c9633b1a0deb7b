"""Names and directions of the metrics; their computation lives in ``polytask.compare.metrics``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One score of one task.

    Attributes
    ----------
    name
        Key used in results and settings, such as ``"rmse"``.
    label
        How it is written for people.
    higher_is_better
        Direction.
    kinds
        The task kinds it applies to.
    """

    name: str
    label: str
    higher_is_better: bool
    kinds: tuple[str, ...]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("rmse", "RMSE", False, ("regression",)),
        Metric("r2", "R²", True, ("regression",)),
        Metric("explained_variance", "explained variance", True, ("regression",)),
        Metric("log_loss", "log-loss", False, ("binary", "multiclass", "ordinal")),
        Metric("auc", "AUC", True, ("binary",)),
        Metric("accuracy", "accuracy", True, ("binary", "multiclass", "ordinal")),
        Metric("f1", "F1", True, ("binary", "multiclass")),
        Metric("ordinal_mae", "ordinal MAE", False, ("ordinal",)),
        Metric("quadratic_kappa", "quadratic kappa", True, ("ordinal",)),
    )
}
"""Every metric by name."""
