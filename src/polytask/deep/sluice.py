"""Sluice networks: towers split in subspaces, learned mixtures of all subspaces, and a learned mixture of layers.

    [h¹_t … hˢ_t] = x_t              the channels of a stage's output, S equal parts for each of T tasks
    h̃ = α h                          h: (T·S, B, C/S),   α: (T·S, T·S) per stage, kept as (T, S, T, S)
    scores_t = head_t(Σ_k β_tk x̃_tk)  x̃_tk: mixed (and pooled) output of layer k,   β: (T, K)

    minimise  Σ_t L_t + orthogonality · Σ_{t,k} Σ_{s<v} ||G_s' G_v||²_F / (C/S)²

``G_s`` are the columns of a layer's weights ``(in, C)`` that write subspace s, so that ``G_s' G_v`` holds the
inner products of units of two subspaces; its closed-form gradient is ``2 G_v (G_v' G_s)`` for ``G_s``. With
``on="activations"`` ``G_s`` are the batch's activations instead, ``(rows, C/S)`` divided by the root of the rows.

The layers of β are those that the towers mix after, and the last. Where they differ in width, a learned
linear map of each task brings the others to the width of the last. Special cases: α = I and β = e_K are separate
networks; α = A ⊗ I and β = e_K the cross-stitch network A; equal towers with rows of α that sum to one and
β_t = e_K are hard sharing, with β_t = e_k low supervision of task t at layer k; zero blocks of α between all
but one subspace of two tasks give shared and private features.

Ruder, Bingel, Augenstein, Søgaard, Latent Multi-Task Architecture Learning, AAAI 2019 (Sluice networks, 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.branches import Branches
from polytask.deep.cross_stitch import convex
from polytask.deep.encoders import Encoder
from polytask.deep.mixing import MixedTowers, channels_of, mix, mix_own_rows, single_encoder, weighted_sum
from polytask.deep.seeding import seeded
from polytask.deep.single import SingleTask

Where = Literal["weights", "activations"]


class Sluice(MixedTowers):
    """T towers that exchange subspaces, with heads that read all layers.

    With own rows the rows of all tasks go through all towers (T² passes); batch norm then takes its statistics
    over the rows of all tasks.

    Parameters
    ----------
    tasks
        The tasks. A lone task has nothing to mix: its network is the single-task network.
    encoder
        The encoder each task gets a copy of; it must tell its channels.
    subspaces
        Number of parts S that the channels of a mixed stage are split into; it divides their number.
    stages
        Names of the stages after which subspaces are mixed; None: every stage but the first.
    own_weight
        Initial weight of a subspace's own features, from 0 to 1; the others share the rest. ``1 / (T·S)`` is the
        paper's "balanced" start.
    last_weight
        Initial weight β of the last layer, from 0 to 1; the others share the rest.
    orthogonality
        Weight of the penalty, at least 0.
    on
        ``"weights"`` or ``"activations"``. Activations cost one more forward and backward pass per step (of the
        last batch seen in training, in which batch norm counts it once more).
    normalise
        Divide the penalty of a layer by ``(C/S)²``, so that it does not grow with the width.
    mixing_rate
        Factor on the learning rate of α and β, which never decay.
    seed
        Seed of the initial weights.
    identical
        Start all towers and heads from the same weights; False draws new ones for every task but the first.

    Raises
    ------
    InputError
        A setting out of its range, channels that ``subspaces`` does not divide, or a penalty on the weights of
        a stage that has none of the usual form (recurrent ones).
    """

    recent_penalty: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        subspaces: int = 2,
        stages: Sequence[str] | None = None,
        own_weight: float = 0.9,
        last_weight: float = 0.9,
        orthogonality: float = 0.0,
        on: Where = "weights",
        normalise: bool = True,
        mixing_rate: float = 100.0,
        seed: int = 0,
        identical: bool = True,
    ) -> None:
        super().__init__(tasks, encoder, stages=stages, mixing_rate=mixing_rate, seed=seed, identical=identical)
        for name, share in (("own_weight", own_weight), ("last_weight", last_weight)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} is {share}; give a share from 0 to 1, such as 0.9")
        if not 0 <= orthogonality < float("inf"):
            raise InputError(f"orthogonality is {orthogonality}; give a finite number of at least 0")
        if orthogonality and subspaces < 2:
            raise InputError(f"orthogonality is {orthogonality} but subspaces is {subspaces}; it needs at least 2")
        if on not in ("weights", "activations"):
            raise InputError(unknown("on", on, ("weights", "activations")))
        self.subspaces, self.orthogonality, self.on, self.normalise = subspaces, float(orthogonality), on, normalise
        self.layers = tuple(n for n in encoder.names if n in self.sites or n == encoder.names[-1])
        self.projections = nn.ModuleDict()
        self.register_parameter("layer_weights", None)
        self.register_buffer("recent_penalty", torch.zeros(()))
        self._seen: tuple[Mapping[str, Tensor], bool] | None = None
        self._outputs: list[Tensor] | None = None
        for name in self.sites:
            _check_subspaces(subspaces, channels_of(encoder, name), name)
            alpha = convex(len(tasks) * subspaces, own_weight)
            self.mixing[name] = nn.Parameter(alpha.view(len(tasks), subspaces, len(tasks), subspaces))
        if self.sites:
            self._add_layers(encoder, last_weight, seed)
            if orthogonality and on == "weights":
                for name in self.sites:
                    _check_weights(list(self._constrained(name)), name)

    def _add_layers(self, encoder: Encoder, last_weight: float, seed: int) -> None:
        others = (1 - last_weight) / max(1, len(self.layers) - 1)
        beta = torch.full((len(self.tasks), len(self.layers)), others)
        beta[:, -1] = last_weight if len(self.layers) > 1 else 1.0
        self.layer_weights = nn.Parameter(beta)
        with seeded(seed + 2):
            for name in self.layers:
                if (width := channels_of(encoder, name)) != encoder.n_features:
                    plain = nn.Linear(width, encoder.n_features, bias=False)
                    self.projections[name] = Branches(plain, len(self.tasks), identical=True)

    @classmethod
    def from_single_task(
        cls,
        network: SingleTask,
        *,
        subspaces: int = 2,
        stages: Sequence[str] | None = None,
        own_weight: float = 0.9,
        last_weight: float = 0.9,
        orthogonality: float = 0.0,
        on: Where = "weights",
        normalise: bool = True,
        mixing_rate: float = 100.0,
        seed: int = 0,
    ) -> Self:
        """Return a sluice network whose towers and heads are copies of trained single-task networks."""
        made = cls(
            network.tasks,
            single_encoder(network),
            subspaces=subspaces,
            stages=stages,
            own_weight=own_weight,
            last_weight=last_weight,
            orthogonality=orthogonality,
            on=on,
            normalise=normalise,
            mixing_rate=mixing_rate,
            seed=seed,
        )
        return made.take_towers(network)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        if not self.sites:
            features = self.encoder(inputs, own_rows, only=chosen)
        else:
            if self.training and self.on == "activations" and self.orthogonality and only is None:
                self._seen = dict(inputs), own_rows
            features = self._joined(self.read(inputs, own_rows, chosen, self.layers), chosen)
        scores: Tensor = self.heads(features, own=True, only=chosen)
        return scores

    def _joined(self, layers: list[Tensor], only: Tensor | None) -> Tensor:
        """Return ``Σ_k β_tk x̃_tk``, ``(m, B, n_features)``, from the layers ``(m, B, C_k)``."""
        beta = self.layer_weights if only is None else self.layer_weights[only]
        same = [
            self.projections[name](layer, True, only=only) if name in self.projections else layer
            for name, layer in zip(self.layers, layers, strict=True)
        ]
        return weighted_sum(beta, same)

    def mixed(self, site: str, x: Tensor, own_rows: bool, only: Tensor | None) -> Tensor:
        if self._outputs is not None:
            self._outputs.append(x)
        alpha = self.mixing[site] if only is None else self.mixing[site][only]
        if not own_rows:
            return mix(alpha, x, self.encoder.channel_axis)
        return mix_own_rows(alpha, x.unflatten(1, (len(alpha), -1)), self.encoder.channel_axis)  # type: ignore[no-untyped-call]

    def mixing_parameters(self) -> list[nn.Parameter]:
        return [*super().mixing_parameters(), *([self.layer_weights] if self.sites else [])]

    # -- the penalty ----------------------------------------------------------------------------

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """Return the weighted penalty; on activations that of the last training step."""
        if not self.sites or not self.orthogonality:
            return super().penalty()
        if self.on == "activations":
            return self.recent_penalty.clone()
        terms = [
            self._scale(units) * torch.stack([cross.square().sum() for _, _, cross in self._crosses(units)]).sum()
            for site in self.sites
            for units in map(_units, self._constrained(site))
        ]
        return torch.stack(terms).sum()

    def penalty_gradient(self) -> None:
        if not self.sites or not self.orthogonality:
            return
        if self.on == "activations":
            self._activations_gradient()
            return
        with torch.no_grad():
            for site in self.sites:
                for weight in self._constrained(site):
                    if weight.grad is None:
                        weight.grad = torch.zeros_like(weight)
                    weight.grad.add_(_like(self._units_gradient(_units(weight)), weight))

    def _constrained(self, site: str) -> Iterator[nn.Parameter]:
        """Yield the stacked weights that write the stage's channels: linear ``(T, in, C)``, kernels ``(T, C, …)``."""
        for name, weight in self.encoder.weights([site]).items():
            axis = -1 if weight.dim() == 3 else 1
            if name.endswith("weight") and weight.dim() > 2 and weight.shape[axis] == self.encoder.channels[site]:
                yield weight

    def _scale(self, units: Tensor) -> float:
        width = units.shape[-1] // self.subspaces
        return self.orthogonality / (width**2 if self.normalise else 1)

    def _crosses(self, units: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for each pair of subspaces ``G_s (T, in, C/S)``, ``G_v`` and ``G_s' G_v``."""
        for first, second in combinations(units.chunk(self.subspaces, dim=-1), 2):
            yield first, second, torch.bmm(first.transpose(1, 2), second)

    def _units_gradient(self, units: Tensor) -> Tensor:
        parts = list(torch.zeros_like(units).chunk(self.subspaces, dim=-1))
        for (s, v), (first, second, cross) in zip(
            combinations(range(self.subspaces), 2), self._crosses(units), strict=True
        ):
            parts[s] += torch.bmm(second, cross.transpose(1, 2))
            parts[v] += torch.bmm(first, cross)
        return 2 * self._scale(units) * torch.cat(parts, dim=-1)

    def _activations_gradient(self) -> None:
        if self._seen is None:
            return
        inputs, own_rows = self._seen
        self._outputs = []
        with torch.enable_grad():
            self.read(inputs, own_rows, None, ())
            value = torch.stack([self._activation_penalty(x) for x in self._outputs]).sum()
            value.backward()  # type: ignore[no-untyped-call]
        self._outputs = None
        self.recent_penalty.copy_(value.detach())

    def _activation_penalty(self, x: Tensor) -> Tensor:
        """Return one stage's weighted penalty from its outputs ``(T, B, C, …)`` or ``(T, B, …, C)``."""
        rows = (x.movedim(2, -1) if self.encoder.channel_axis == 1 else x).flatten(1, -2)
        rows = rows / rows.shape[1] ** 0.5
        return self._scale(rows) * torch.stack([cross.square().sum() for _, _, cross in self._crosses(rows)]).sum()

    # -- what is shared -------------------------------------------------------------------------

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return α of every stage, subspaces × subspaces, and β, tasks × layers."""
        if not self.sites:
            return {}
        parts = tuple(f"{task.name} [{s + 1}]" for task in self.tasks for s in range(self.subspaces))
        about = "weight of each column's subspace in the features that each row's subspace goes on with"
        found = {
            f"mixing_{site}": Relation("weights", _matrix(alpha.flatten(0, 1).flatten(1)), parts, parts, about)
            for site, alpha in self.mixing.items()
        }
        names = tuple(task.name for task in self.tasks)
        about = "weight of each layer in the features that the task's output reads"
        found["layers"] = Relation("weights", _matrix(self.layer_weights), names, self.layers, about)
        return found


def _units(weight: Tensor) -> Tensor:
    """Return the weights into each channel as columns, ``(T, in, C)``."""
    return weight if weight.dim() == 3 else weight.flatten(2).transpose(1, 2)


def _like(units: Tensor, weight: Tensor) -> Tensor:
    """Undo :func:`_units`."""
    return units if weight.dim() == 3 else units.transpose(1, 2).reshape(weight.shape)


def _matrix(values: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return values.double().cpu().numpy()


def _check_subspaces(subspaces: int, channels: int, stage: str) -> None:
    if subspaces < 1 or channels % subspaces:
        raise InputError(
            f'subspaces is {subspaces} but stage "{stage}" has {channels} channels; give a number of at least 1 '
            "that divides them"
        )


def _check_weights(weights: Sequence[nn.Parameter], stage: str) -> None:
    if not weights:
        raise InputError(
            f'orthogonality on weights needs linear or convolution layers that write the channels of stage "{stage}"; '
            'use on="activations" for this encoder'
        )
