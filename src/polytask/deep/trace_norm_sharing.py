"""Soft sharing by trace norm: the stacked weights of all tasks' networks are pulled to low rank.

    minimise  Σ_t L_t(W_t) + strength · Σ_layers Σ_k c_k ‖M_k(W)‖_*       ‖M‖_* = sum of M's singular values

W ``(T, D_1, …, D_{N-1})`` are a layer's weights of all tasks. With the task axis last, its unfoldings M_k are

    form "laf":     one,  T × D_1…D_{N-1}                      tasks are mixtures of few task-like weights
    form "tucker":  N,    D_k × all others, the task axis too    low rank along every axis
    form "tt":      N-1,  D_1…D_k × D_{k+1}…D_{N-1} T            low rank at every cut

``c_k = 1``; with ``normalise`` it is ``1 / √(larger side)``, which makes the penalty of a layer independent of its
size. The singular values of what training adds by chance grow with that root, though: normalised thresholds empty
small layers before large ones lose a rank, and on Omniglot only the plain sum helps.

The gradient of a trace norm is ``U V'`` of the singular value decomposition. It is made without one, as
``G^{-1/2} M`` from the eigenvalues of the smaller Gram matrix ``G = M M'``, small ones raised to ``ε · largest``; so
equal singular values and ranks that are not full do no harm.
With update "prox" each step of size η is followed by soft-thresholding of the singular values,
``σ ← max(0, σ - η · strength · c_k)``, also by the Gram matrix: exactly low rank, the exact proximal step for
"laf", and for the sums of "tucker" and "tt" one proximal step per unfolding, in order.

All tasks start from the same weights, where every stack of them has rank one along the tasks; strength 0 is
single-task learning. Load a single-task network's state to start from trained networks. Heads are not coupled.

Yang, Hospedales, Trace Norm Regularised Deep Multi-Task Learning, ICLR 2017 workshop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.coupling import CoupledTowers, Update
from polytask.deep.encoders import Encoder

Form = Literal["laf", "tucker", "tt"]
_FORMS = ("laf", "tucker", "tt")
_MOST_FACTORS = 10
_LEAST_FACTOR = 1e-3


class TraceNormSharing(CoupledTowers):
    """T networks whose stacked weights are pulled to low rank.

    Parameters
    ----------
    tasks
        The tasks. A lone task has no penalty.
    encoder
        The encoder each task gets a copy of, with the same weights.
    strength
        Weight of the penalty, at least 0. With update "prox" 0.5 to 30 act; the authors' demonstration, which follows
        the gradient, takes 1e-3.
    form
        Which unfoldings: ``"laf"``, ``"tucker"`` or ``"tt"``.
    normalise
        Divide each unfolding's norm by the root of its larger side.
    update
        ``"prox"`` or ``"gradient"`` (the authors').
    stages
        Names of the encoder's stages that are coupled; None couples all.
    biases
        Whether one-dimensional weights (biases, scales and shifts of norms) are coupled too.
    seed
        Seed of the heads' initial weights.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        strength: float,
        form: Form = "laf",
        normalise: bool = False,
        update: Update = "prox",
        stages: Sequence[str] | None = None,
        biases: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, encoder, strength=strength, update=update, stages=stages, biases=biases, seed=seed)
        if form not in _FORMS:
            raise InputError(unknown("form", form, _FORMS))
        self.form, self.normalise = form, normalise

    def value(self, name: str, weight: Tensor) -> Tensor:  # noqa: ARG002  # all weights alike
        norms = []
        for rows in unfoldings(self.form, weight.dim()):
            matrix = unfold(weight, rows)
            norms.append(self._scale(matrix) * singular_values(matrix).sum())
        return torch.stack(norms).sum()

    def add_gradient(self, name: str, weight: Tensor, gradient: Tensor) -> None:  # noqa: ARG002
        for rows in unfoldings(self.form, weight.dim()):
            matrix = unfold(weight, rows)
            gradient.add_(fold(trace_norm_gradient(matrix), rows, weight), alpha=self.strength * self._scale(matrix))

    def move(self, name: str, weight: Tensor, learning_rate: float) -> None:  # noqa: ARG002
        for rows in unfoldings(self.form, weight.dim()):
            matrix = unfold(weight, rows)
            shrunk = soft_threshold(matrix, learning_rate * self.strength * self._scale(matrix))
            weight.copy_(fold(shrunk, rows, weight))

    def _scale(self, matrix: Tensor) -> float:
        return float(max(matrix.shape)) ** -0.5 if self.normalise else 1.0

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return the cosines of the encoders' changes, and the strongest common factors of the coupled weights."""
        found = super().relations()
        if not found or len(self.tasks) == 1:
            return found
        stacked = torch.cat([weight.flatten(1).double() for weight in self.coupled().values()], dim=1)
        values, vectors = torch.linalg.eigh(stacked @ stacked.T)
        sizes = values.clamp(min=0).sqrt().flip(0)
        kept = max(1, min(_MOST_FACTORS, int((sizes > _LEAST_FACTOR * sizes[0]).sum())))
        loadings = (vectors.flip(1) * sizes).T[:kept]
        largest = loadings.gather(1, loadings.abs().argmax(1, keepdim=True))
        loadings = torch.where(largest < 0, -loadings, loadings).cpu().numpy()
        factors = tuple(f"factor {k + 1}" for k in range(kept))
        about = "part of each task's encoder weights along the factors that tasks have in common, strongest first"
        found["factors"] = Relation("loadings", loadings, factors, tuple(task.name for task in self.tasks), about)
        return found


def unfoldings(form: str, n_axes: int) -> list[tuple[int, ...]]:
    """Return the axes of stacked weights ``(T, D_1, …)`` that make the rows of each unfolding."""
    if form == "laf":
        return [(0,)]
    if form == "tucker":
        return [(axis,) for axis in range(n_axes)]
    return [tuple(range(1, last + 1)) for last in range(1, n_axes)]


def unfold(weight: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Return the matrix whose rows run over the axes ``rows`` of a tensor, and its columns over the others."""
    order = (*rows, *(axis for axis in range(weight.dim()) if axis not in rows))
    return weight.permute(order).reshape(math.prod(weight.shape[axis] for axis in rows), -1)


def fold(matrix: Tensor, rows: tuple[int, ...], like: Tensor) -> Tensor:
    """Undo :func:`unfold`."""
    order = (*rows, *(axis for axis in range(like.dim()) if axis not in rows))
    return matrix.reshape([like.shape[axis] for axis in order]).movedim(tuple(range(like.dim())), order)


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of a matrix, by the eigenvalues of its smaller Gram matrix, in float64."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt()


def trace_norm_gradient(matrix: Tensor) -> Tensor:
    """Return ``U V'`` of the singular value decomposition: a subgradient of the sum of singular values."""
    return _along_singular_vectors(matrix, lambda sizes: 1 / sizes)


def soft_threshold(matrix: Tensor, threshold: float) -> Tensor:
    """Return the matrix with ``threshold`` subtracted from its singular values, at least 0 remaining."""
    return _along_singular_vectors(matrix, lambda sizes: (1 - threshold / sizes).clamp(min=0))


def _along_singular_vectors(matrix: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``U diag(σ f(σ)) V'``, as ``U diag(f(σ)) U' M`` with the smaller side's singular vectors U."""
    if matrix.shape[0] > matrix.shape[1]:
        return _along_singular_vectors(matrix.T, factor).T
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    floor = torch.finfo(values.dtype).eps * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    sizes = values.clamp(min=floor).sqrt()
    return ((vectors * factor(sizes)) @ vectors.T) @ matrix
