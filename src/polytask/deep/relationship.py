"""Deep relationship networks: layers of the tasks' own whose weights share a learned tensor-normal prior.

    minimise  sum_t L_t  +  strength sum_l c_l 0.5 <W_l, W_l ×_0 S_l0^-1 ×_1 S_l1^-1 ×_2 S_l2^-1>

The lower stages of the encoder are one trunk; the upper ones and the heads exist once per task. A layer's
stacked weights W_l are (T, in, out), or (T, out, in, positions) for convolutions; S_l0 (T, T) says how the
tasks relate, S_l1 and S_l2 how inputs and outputs do. The weights follow the gradient of the losses
and, in closed form, of the prior; every ``refresh_every`` steps the covariances follow the weights
(:mod:`polytask.deep.tensor_normal`). They start as identities: plain squared decay.

After an exact update the quadratic form equals its number of weights D, whatever W is, so its raw pull has
size D against a loss of order 1. Mode "stable" therefore takes c_l = 1 / D and scales every S to trace D_k:
the covariances shape the decay, ``strength`` alone sets its size. The paper prints the log-determinants of
its objective with a minus sign; maximum a posteriori needs plus, and plus is used here.

Long, Cao, Wang, Yu, Learning Multiple Tasks with Multilinear Relationship Networks, NIPS 2017
(Long, Wang, Learning Multiple Tasks with Deep Relationship Networks, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import ParameterGroup, SharingNetwork
from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.layers import key, matrix_paths
from polytask.deep.tensor_normal import (
    Covariances,
    correlation,
    flip_flop,
    inverse,
    mean_one,
    mode_product,
    prior_gradient,
    scatter,
)

Mode = Literal["stable", "paper", "authors"]

_MODES = ("stable", "paper", "authors")
_SHOWN = 64
"""Relations between more inputs or outputs of a layer than this are not shown."""
_AUTHORS_RIDGE, _AUTHORS_FLOOR, _AUTHORS_TRACE = 1e-5, 0.1, 3000.0


class RelationshipNetwork(SharingNetwork):
    """A shared trunk, upper stages and heads for each task, and learned covariances between their weights.

    Only weights with two axes or more per task are related; biases and norms are the tasks' own. A lone task
    has nothing to relate to and no prior. Covariances are buffers, so they are saved with the network. The
    weights under the prior have no other decay (:meth:`parameter_groups`).

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The encoder: its lower stages become the trunk, every task gets a copy of the upper ones.
    strength
        Weight of the prior, at least 0. 0 is hard sharing with upper layers of the tasks' own.
    own_stages
        Names of the stages that every task has of its own: the last ones, in order. None: the last stage;
        for mode "authors", and for an encoder of one stage, none.
    heads
        Whether the heads are under the prior, which needs tasks with equally many outputs. None: if they can be.
    mode
        ``"stable"``: trace rule, damping, eps relative to the mean eigenvalue, prior divided by the number of
        weights. ``"paper"``: the updates of the paper, eps added as it is, no trace rule, no damping, no
        division. ``"authors"``: what the authors' program does: only the tasks' precision is learned, from
        ``W_(0) W_(0)' + 1e-5 I`` without division; of its singular values s those above 0.1 become 1 / s and
        the others stay; the trace is limited to 3000; the quadratic form counts without its half.
    cov
        ``"ml"``: covariances of maximum likelihood; ``"mtrl"``: the square roots of trace 1 that minimise the
        quadratic form alone (rescaled to trace D_k in mode "stable").
    modes
        ``"all"`` or ``"tasks"``: learn every covariance of a layer or only that between tasks.
    largest, large
        Covariances of inputs or outputs of more than ``largest`` units are ``"diagonal"`` or the ``"identity"``; in
        mode "stable" so are those of which there are too few weights: fewer than two per unit and unit, or a layer
        with a single output or input.
    eps
        Added to the eigenvalues of covariances, above 0.
    damping
        Share of the old covariance that a refresh keeps (mode "stable"), from 0 up to, but without, 1.
    refresh_every
        Steps between two updates of the covariances.
    identical
        Start every task's upper stages from the encoder's weights; False draws new ones for every task but
        the first.
    seed
        Seed of the heads' initial weights; heads are drawn independently.
    """

    steps: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        strength: float = 1.0,
        own_stages: Sequence[str] | None = None,
        heads: bool | None = None,
        mode: Mode = "stable",
        cov: Literal["ml", "mtrl"] = "ml",
        modes: Literal["all", "tasks"] = "all",
        largest: int = 256,
        large: Literal["diagonal", "identity"] = "diagonal",
        eps: float = 1e-3,
        damping: float = 0.9,
        refresh_every: int = 100,
        identical: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        _check_choices({"mode": (mode, _MODES), "cov": (cov, ("ml", "mtrl")), "modes": (modes, ("all", "tasks"))})
        _check_choices({"large": (large, ("diagonal", "identity"))})
        _check_numbers(strength, eps, damping, refresh_every)
        if mode == "authors" and cov == "mtrl":
            raise InputError('mode "authors" has its own rule for covariances; use cov="ml" with it')
        self.strength, self.refresh_every = float(strength), int(refresh_every)
        names = encoder.names
        if own_stages is None:
            own_stages = names[1:][-1:] if mode != "authors" else ()
        self.own_stages = tuple(own_stages)
        self.shared_stages = _below(names, self.own_stages)
        self.encoder = BranchedEncoder(encoder, 1)
        for number, name in enumerate(self.own_stages, start=1):
            self.encoder.stages[name] = Branches(
                encoder.stages[name], len(tasks), seed=seed + number, identical=identical
            )
        self.heads = Heads(tasks, encoder.n_features, seed=seed)
        self._paths = self._find_weights(heads)
        rule = LayerRule(mode, cov, "tasks" if mode == "authors" else modes, largest, large, eps, damping)
        self.priors = nn.ModuleDict(
            {key(name): LayerPrior(weight.shape, rule) for name, weight in self.coupled().items()}
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _find_weights(self, heads: bool | None) -> dict[str, str]:
        """Return name of a layer → path of its stacked weights, for all weights under the prior."""
        if len(self.tasks) == 1:
            return {}
        found = matrix_paths(self.tasks, self.encoder, self.heads, stages=self.own_stages, with_heads=heads)
        if not found:
            raise InputError(
                "no layer's weights can be related: the tasks' heads differ in size or are left out, and no stage with "
                "weights is the tasks' own; name some in own_stages, or use HardSharing"
            )
        return found

    def _stage(self, name: str) -> Branches:
        stage = self.encoder.stages[name]
        assert isinstance(stage, Branches)
        return stage

    def coupled(self) -> dict[str, nn.Parameter]:
        """Return name of a layer → its stacked weights ``(T, …)``, for all weights under the prior."""
        return {name: self.get_parameter(path) for name, path in self._paths.items()}

    def _layers(self) -> Iterator[tuple[str, nn.Parameter, LayerPrior]]:
        for name, weight in self.coupled().items():
            prior = self.priors[key(name)]
            assert isinstance(prior, LayerPrior)
            yield name, weight, prior

    def covariances(self) -> dict[str, list[Tensor | None]]:
        """Return name of a layer → its covariances, one per mode, the tasks' first; None is the identity."""
        return {name: prior.covariances() for name, _, prior in self._layers()}

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        x, own = self._trunk(inputs, own_rows)
        for name in self.own_stages:
            x, own = self.encoder.run_stage(name, x, own, chosen, length=inputs.get("length"))
        assert isinstance(x, Tensor)
        features = pooled(x, self.encoder.channel_axis, own, length=inputs.get("length"))
        scores: Tensor = self.heads(features, own, only=chosen)
        return scores

    def _trunk(self, inputs: Mapping[str, Tensor], own_rows: bool) -> tuple[Mapping[str, Tensor] | Tensor, bool]:
        """Return the trunk's output, without task axis unless each task has its own rows."""
        if not self.shared_stages:
            return inputs, own_rows
        n_tasks, n_rows = next(iter(inputs.values())).shape[:2]
        joined = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()} if own_rows else inputs
        x: Mapping[str, Tensor] | Tensor = joined
        branched = False
        for name in self.shared_stages:
            x, branched = self.encoder.run_stage(name, x, branched, length=joined.get("length"))
        assert isinstance(x, Tensor)
        x = x[0] if branched else x
        return (x.reshape(n_tasks, n_rows, *x.shape[1:]) if own_rows else x), own_rows

    def shared_parameters(self) -> list[nn.Parameter]:
        if len(self.tasks) == 1:
            return []
        return [parameter for name in self.shared_stages for parameter in self._stage(name).parameters()]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the weights under the prior, without other decay, and the rest."""
        related = list(self.coupled().values())
        known = {id(parameter) for parameter in related}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [ParameterGroup(rest), ParameterGroup(related, weight_decay=False)]

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        x, own = self._trunk(inputs, False)
        return pooled(x, self.encoder.channel_axis, own, length=inputs.get("length")) if isinstance(x, Tensor) else None

    @torch.no_grad()
    def penalty(self) -> Tensor:
        total = super().penalty()
        for _, weight, prior in self._layers():
            total = total + self.strength * prior.value(weight)
        return total

    @torch.no_grad()
    def penalty_gradient(self) -> None:
        if self.strength == 0:
            return
        for _, weight, prior in self._layers():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            prior.add_gradient(weight, self.strength)

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:  # noqa: ARG002  # the contract's signature
        self.steps += 1
        if int(self.steps) % self.refresh_every == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Update all covariances from the weights as they are; layers of zeros keep theirs."""
        for _, weight, prior in self._layers():
            prior.refresh(weight)

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return the correlations between tasks in every layer under the prior, and those between few units."""
        found = {}
        tasks = tuple(task.name for task in self.tasks)
        for name, weight, prior in self._layers():
            for mode, covariance in enumerate(prior.covariances()):
                if covariance is None or covariance.dim() == 1 or (mode and len(covariance) > _SHOWN):
                    continue
                axis = _axis(weight.dim(), mode)
                labels = tasks if mode == 0 else self._labels(name, axis, len(covariance))
                about = f"correlation between {axis} in the learned prior of the weights of {name}"
                values = correlation(covariance.double()).cpu().numpy()
                found[f"{name} {axis}"] = Relation("correlation", values, labels, labels, about)
        return found

    def _labels(self, name: str, axis: str, size: int) -> tuple[str, ...]:
        classes = {task.labels for task in self.tasks}
        if name == "heads" and axis == "outputs" and len(classes) == 1 and len(shared := classes.pop()) == size:
            return tuple(str(label) for label in shared)
        return tuple(f"{axis[:-1]} {number}" for number in range(1, size + 1))


@dataclass(frozen=True)
class LayerRule:
    """How covariances are learned; the fields are those of :class:`RelationshipNetwork`."""

    mode: Mode = "stable"
    cov: Literal["ml", "mtrl"] = "ml"
    modes: Literal["all", "tasks"] = "all"
    largest: int = 256
    large: Literal["diagonal", "identity"] = "diagonal"
    eps: float = 1e-3
    damping: float = 0.9


class LayerPrior(nn.Module):
    """The prior of one layer's stacked weights ``(T, …)``: covariances and their inverses, as buffers.

    Parameters
    ----------
    shape
        Shape of the stacked weights; the axes of a convolution's kernel count as one mode.
    rule
        How the covariances are learned.
    """

    def __init__(self, shape: Sequence[int], rule: LayerRule) -> None:
        super().__init__()
        self.rule = rule
        self.shape = tuple(shape) if len(shape) <= 4 else (*shape[:3], math.prod(shape[3:]))
        for number in range(len(self.shape)):
            start = _start(self.shape, number, rule)
            self.register_buffer(f"covariance{number}", start)
            self.register_buffer(f"precision{number}", None if start is None else start.clone())

    def covariances(self) -> list[Tensor | None]:
        """Return the covariances, one per mode; None is the identity."""
        return [getattr(self, f"covariance{number}") for number in range(len(self.shape))]

    def precisions(self) -> list[Tensor | None]:
        """Return what the prior multiplies weights with: the inverses, except in mode "authors"."""
        return [getattr(self, f"precision{number}") for number in range(len(self.shape))]

    @property
    def scale(self) -> float:
        """Factor on half the quadratic form."""
        return {"stable": 1 / math.prod(self.shape), "paper": 1.0, "authors": 2.0}[self.rule.mode]

    def value(self, weight: Tensor) -> Tensor:
        """Return the scaled quadratic form."""
        W = weight.view(self.shape)
        return 0.5 * self.scale * (W * prior_gradient(W, self.precisions())).sum()

    def add_gradient(self, weight: Tensor, strength: float) -> None:
        """Add ``strength`` times the gradient of :meth:`value` to ``weight.grad``."""
        assert weight.grad is not None
        tasks, *others = self.precisions()
        assert tasks is not None
        W = weight.view(self.shape)
        for number, precision in enumerate(others, start=1):
            W = mode_product(W, precision, number)
        n_tasks = len(W)
        weight.grad.view(n_tasks, -1).addmm_(tasks, W.reshape(n_tasks, -1), alpha=strength * self.scale)

    def refresh(self, weight: Tensor) -> None:
        """Update the covariances from the weights, in double precision."""
        W = weight.detach().view(self.shape).double()
        if not 0 < float(W.abs().max()) < math.inf:
            return
        rule = self.rule
        if rule.mode == "authors":
            self._store(*_authors_update(W))
            return
        old = [None if one is None else one.double() for one in self.covariances()]
        new = flip_flop(W, old, eps=rule.eps, relative=rule.mode == "stable", roots=rule.cov == "mtrl")
        if rule.mode == "stable":
            new = [
                fresh if kept is None or fresh is None else fresh.lerp(kept, rule.damping)
                for kept, fresh in zip(old, mean_one(new), strict=True)
            ]
        self._store(new, [inverse(one) for one in new])

    def _store(self, covariances: Covariances, precisions: Covariances) -> None:
        for number, (covariance, precision) in enumerate(zip(covariances, precisions, strict=True)):
            if covariance is not None and precision is not None:
                self.get_buffer(f"covariance{number}").copy_(covariance)
                self.get_buffer(f"precision{number}").copy_(precision)


def authors_precision(raw: Tensor) -> Tensor:
    """Return the task precision of the authors' program for ``raw = W_(0) W_(0)' + 1e-5 I``, ``(T, T)``.

    Singular values s above 0.1 become 1 / s, smaller ones stay as they are (which is no inverse); a result
    with a trace above 3000 is scaled down to it.
    """
    left, values, right = torch.linalg.svd(raw)
    inverted = torch.where(values > _AUTHORS_FLOOR, 1 / values, values)
    found = (left * inverted) @ right
    found = 0.5 * (found + found.T)
    return found * (_AUTHORS_TRACE / found.trace()).clamp(max=1)


def _authors_update(W: Tensor) -> tuple[Covariances, Covariances]:
    nothing = [None] * (W.dim() - 1)
    raw = scatter(W, [None, *nothing], 0) * (W.numel() / len(W)) + _AUTHORS_RIDGE * torch.eye(len(W)).to(W)
    return [raw, *nothing], [authors_precision(raw), *nothing]


def _start(shape: Sequence[int], number: int, rule: LayerRule) -> Tensor | None:
    """Return the first covariance of one mode; None: the identity, for good.

    A lone unit has only a scale, and that is the tasks'.
    """
    size = shape[number]
    if number == 0:
        return torch.eye(size)
    if rule.modes == "tasks" or size == 1:
        return None
    if size <= rule.largest and (rule.mode != "stable" or _identified(shape, size)):
        return torch.eye(size)
    return torch.ones(size) if rule.large == "diagonal" else None


def _identified(shape: Sequence[int], size: int) -> bool:
    """Return whether one layer's weights can tell a full covariance of ``size`` units from those of the other modes.

    The weights are a single observation. A covariance of about as many units as each has weights makes any weights
    white, and of a matrix (tasks and one other mode) either covariance explains everything.
    """
    return sum(side > 1 for side in shape) > 2 and 2 * size <= math.prod(shape) // size


def _below(names: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """Return the shared stages, after checking that the tasks' own are the last ones."""
    for name in own:
        if name not in names:
            raise InputError(unknown("stage", name, names))
    shared = len(names) - len(own)
    if list(own) != list(names[shared:]):
        raise InputError(f"own_stages is {list(own)}; name the last stages of {list(names)}, in order")
    return tuple(names[:shared])


def _axis(dim: int, mode: int) -> str:
    return (("tasks", "inputs", "outputs") if dim == 3 else ("tasks", "outputs", "inputs", "positions"))[mode]


def _key(name: str) -> str:
    return name.replace(".", "_")


def _check_choices(chosen: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    for name, (value, known) in chosen.items():
        if value not in known:
            raise InputError(unknown(name, value, known))


def _check_numbers(strength: float, eps: float, damping: float, refresh_every: int) -> None:
    if not 0 <= strength < math.inf:
        raise InputError(f"strength is {strength}; give a finite number of at least 0")
    if not 0 < eps < math.inf:
        raise InputError(f"eps is {eps}; give a positive number, such as 1e-3")
    if not 0 <= damping < 1:
        raise InputError(f"damping is {damping}; give a share from 0 up to, but without, 1")
    if refresh_every < 1:
        raise InputError(f"refresh_every is {refresh_every}; give a number of steps of at least 1")
