"""Soft parameter sharing: every task has its own network, and a penalty keeps the networks close.

    minimise  Σ_t L_t(W_t) + strength · R(W),        W: stacked encoder weights (T, …)

    form "mean":      R = Σ_t ‖W_t - mean W‖²
    form "pairwise":  R = Σ_{s<t} ‖W_s - W_t‖²  =  T · R_mean
    form "graph":     R = Σ_{s<t} A_st ‖W_s - W_t‖²  =  tr(W' Λ W),     Λ = diag(Σ_s A_ts) - A
    form "anchor":    R = Σ_t ‖W_t - W_a‖²,           W_a is not pulled: a task's weights, or a trained encoder's

With update "prox" each optimiser step of size η is followed by the exact proximal step, which is stable for
every strength, W ← (I + 2 η strength Λ)⁻¹ W; for the mean, and with W_a in its place for the anchor, it is

    W_t ← mean W + (W_t - mean W) / (1 + 2 η strength)              (pairwise: T · strength)

With "gradient" the closed-form gradient ``2 strength Λ W``, for the mean ``2 strength (W_t - mean W)``, joins
that of the losses. All tasks start from the same weights, otherwise the penalty would compare arbitrarily
permuted hidden units. Strength 0 is single-task learning; strength → ∞ is one encoder trained on the mean of the
losses (per connected part of the graph). Heads are not coupled.

Duong, Cohn, Bird, Cook, Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural
Network Parser, ACL 2015 (form "anchor", after training the source; "pairwise" of two tasks, jointly).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from polytask.core.errors import InputError, unknown
from polytask.core.task import Task
from polytask.deep.coupling import CoupledTowers, Update, buffer_name
from polytask.deep.encoders import BranchedEncoder, Encoder

Form = Literal["mean", "pairwise", "graph", "anchor"]
_FORMS = ("mean", "pairwise", "graph", "anchor")


class SoftSharing(CoupledTowers):
    """T networks whose encoder weights are pulled towards each other.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The encoder each task gets a copy of, with the same weights.
    strength
        Weight of the penalty, at least 0; 1e-4 … 1e1 is a usual range.
    form
        ``"mean"``, ``"pairwise"``, ``"graph"`` or ``"anchor"``.
    graph
        For form "graph": how much each pair of tasks is pulled together, ``(T, T)``, symmetric, not negative; the
        diagonal does not count.
    anchor
        For form "anchor": the name of the task whose weights the others are pulled to, or a trained encoder of
        the same build, which all tasks are pulled to and which does not change.
    update
        ``"prox"`` or ``"gradient"``.
    stages
        Names of the encoder's stages that are coupled; None couples all.
    biases
        Whether one-dimensional weights (biases, scales and shifts of norms) are coupled too.
    seed
        Seed of the heads' initial weights.

    Raises
    ------
    InputError
        A setting out of its range, or a graph or anchor that is missing, not wanted, or does not fit.
    """

    laplacian: Tensor
    graph_values: Tensor
    graph_vectors: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        strength: float,
        form: Form = "mean",
        graph: ArrayLike | None = None,
        anchor: str | Encoder | None = None,
        update: Update = "prox",
        stages: Sequence[str] | None = None,
        biases: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, encoder, strength=strength, update=update, stages=stages, biases=biases, seed=seed)
        if form not in _FORMS:
            raise InputError(unknown("form", form, _FORMS))
        for name, value in (("graph", graph), ("anchor", anchor)):
            if (value is None) == (form == name):
                raise InputError(f'{name} is {"missing" if value is None else "given"} but form is "{form}"')
        self.form = form
        self._average = torch.full((1, len(tasks)), 1 / len(tasks))
        self._anchor_task: int | None = None
        if graph is not None:
            self._take_graph(np.asarray(graph, dtype=np.float64))
        if isinstance(anchor, str):
            names = [task.name for task in tasks]
            if anchor not in names:
                raise InputError(unknown("task", anchor, names))
            self._anchor_task = names.index(anchor)
        elif anchor is not None:
            self._take_anchor(anchor)

    def _take_graph(self, graph: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
        n = len(self.tasks)
        if graph.shape != (n, n):
            raise InputError(f"graph has shape {graph.shape}; give one weight per pair of tasks, ({n}, {n})")
        if not np.isfinite(graph).all() or (graph < 0).any() or not np.allclose(graph, graph.T):
            raise InputError(
                "graph must be symmetric, finite and not negative; its weights say how much pairs are pulled"
            )
        between = graph - np.diag(np.diag(graph))
        laplacian = torch.from_numpy(np.diag(between.sum(1)) - between)
        values, vectors = torch.linalg.eigh(laplacian)
        self.register_buffer("laplacian", laplacian)
        # exact zeros of the connected parts, whose means no strength may move
        self.register_buffer("graph_values", values.where(values > 1e-12 * values.max(), 0.0))
        self.register_buffer("graph_vectors", vectors)

    def _take_anchor(self, anchor: Encoder) -> None:
        weights = BranchedEncoder(anchor, 1).weights()
        for name, weight in self.coupled().items():
            if name not in weights or weights[name].shape[1:] != weight.shape[1:]:
                raise InputError(f'anchor is an encoder without weights "{name}" of shape {tuple(weight.shape[1:])}')
            self.register_buffer(buffer_name("anchor", name), weights[name].detach().clone())

    def acts(self) -> bool:
        return super().acts() or (self.strength > 0 and self.form == "anchor" and self._anchor_task is None)

    @property
    def _pull(self) -> float:
        """Strength of the equivalent penalty of form "mean" or "anchor"."""
        return self.strength * (len(self.tasks) if self.form == "pairwise" else 1)

    def value(self, name: str, weight: Tensor) -> Tensor:
        if self.form == "graph":
            flat = weight.flatten(1)
            return (flat * (self.laplacian.to(flat) @ flat)).sum()
        centre = (
            weight.mean(0) if self.form != "anchor" else self._centre(name, weight.flatten(1)).view(weight.shape[1:])
        )
        return self._pull / self.strength * (weight - centre).square().sum()

    def add_gradient(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        flat, added = weight.flatten(1), gradient.view(len(weight), -1)
        if self.form == "graph":
            added.addmm_(self.laplacian.to(flat), flat, alpha=2 * self.strength)
        elif self.form == "anchor":
            added.add_(flat - self._centre(name, flat), alpha=2 * self._pull)
        else:
            added.add_(flat, alpha=2 * self._pull).sub_(self._centre(name, flat), alpha=2 * self._pull)

    def move(self, name: str, weight: Tensor, learning_rate: float) -> None:
        flat = weight.flatten(1)
        if self.form == "graph":
            shrunk = self.graph_vectors / (1 + 2 * learning_rate * self.strength * self.graph_values)
            flat.copy_((shrunk @ self.graph_vectors.T).to(flat) @ flat)
        else:
            flat.lerp_(self._centre(name, flat), 1 - 1 / (1 + 2 * learning_rate * self._pull))

    def _centre(self, name: str, flat: Tensor) -> Tensor:
        """Return what each task is pulled to, ``(1, size)``."""
        if self.form != "anchor":
            return self._mean(flat)
        if self._anchor_task is not None:
            return flat[self._anchor_task : self._anchor_task + 1].clone()
        return self.get_buffer(buffer_name("anchor", name)).flatten(1)

    def _mean(self, flat: Tensor) -> Tensor:
        """Return the mean over tasks ``(1, size)``, by a product: quicker than a reduction over the first axis."""
        if self._average.dtype != flat.dtype or self._average.device != flat.device:
            self._average = flat.new_full((1, len(flat)), 1 / len(flat))
        return self._average @ flat
