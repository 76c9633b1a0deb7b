"""Tensor factorisation (DMTRL): every task has a network, and layers of one shape share the factors of their weights.

    W_l = product of factors,        W_l: (T, in, out) or (T, out, in, …), row t of the first factor is task t's code

The factors are learned in place of the weights, which every forward synthesises in the cheapest order of
products; forms and ranks are those of :mod:`polytask.deep.factorisation`. Biases, norms and heads of unequal
size stay the tasks' own. At full rank nothing is shared: the form can be any T networks. With one component
of code 1 for all tasks it is one network.

Decay acts on the synthesised weights, not on the factors: after a step of size η every factor of a layer of
n is multiplied by ``(1 - η decay)^(1/n)``, which multiplies W by ``1 - η decay``, as decoupled decay of W
does. Squared decay of the factors themselves would be a trace-norm penalty in disguise,
``||codes||² + ||basis||² >= 2 ||W||_*``.

Yang & Hospedales, Deep Multi-task Representation Learning: A Tensor Factorisation Approach, ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import ParameterGroup, SharingNetwork
from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder, Encoder
from polytask.deep.factorisation import (
    FORMS,
    Form,
    decompose,
    full_ranks,
    random_factors,
    sharing_strength,
    synthesise,
)
from polytask.deep.heads import Heads
from polytask.deep.layers import key, matrix_paths
from polytask.deep.seeding import seeded
from polytask.deep.single import SingleTask

Ranks = int | Mapping[str, Sequence[int]]


class TensorFactorisation(SharingNetwork):
    """T networks whose layers' weights are products of shared factors and a code per task.

    The factors start from random numbers such that weights vary as the layers' own would;
    :meth:`from_single_task` starts them from trained networks. A lone task is factorised in nothing.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The encoder each task gets a copy of.
    ranks
        Number of components of the task codes (the other ranks are then as large as they are of use; where a
        layer has fewer components, these), or name of a layer → its ranks
        (:func:`~polytask.deep.factorisation.decompose`). Layers have the name of their stage, and of their weight
        where a stage has several; the output layers are ``"heads"``.
    form
        ``"laf"``, ``"tucker"`` or ``"tt"``.
    stages
        Stages whose weights are factorised; None: all. The others are the tasks' own.
    heads
        Whether the heads are factorised, which needs tasks with equally many outputs. None: if they can be.
    weight_decay
        Decoupled decay of the synthesised weights, at least 0 (see the module).
    seed
        Seed of the factors' and heads' initial values.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        ranks: Ranks,
        form: Form = "tucker",
        stages: Sequence[str] | None = None,
        heads: bool | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        if form not in FORMS:
            raise InputError(unknown("form", form, FORMS))
        if not 0 <= weight_decay < float("inf"):
            raise InputError(f"weight_decay is {weight_decay}; give a finite number of at least 0")
        self.form, self.weight_decay = form, float(weight_decay)
        self.towers = _Towers(
            BranchedEncoder(encoder, len(tasks), seed=seed + 1),
            Heads(tasks, encoder.n_features, seed=seed, identical=True),
        )
        paths = _layers(self.tasks, self.towers.encoder, self.towers.heads, stages, heads)
        chosen = _ranks({name: self.towers.get_parameter(path).shape for name, path in paths.items()}, form, ranks)
        self._paths = paths
        self.factorised = nn.ModuleDict()
        with seeded(seed + 2) as generator:
            for name, path in paths.items():
                weight = _taken(self.towers, path)
                std = float(weight.detach().square().mean().sqrt())
                shape = [weight.shape[mode] for mode in _order(form, weight.dim())]
                factors = random_factors(shape, form, chosen[name], std=std, generator=generator)
                self.factorised[key(name)] = FactorisedWeight(factors, form)

    @classmethod
    def from_single_task(
        cls,
        network: SingleTask,
        *,
        tolerance: float = 0.1,
        ranks: Ranks | None = None,
        form: Form = "tucker",
        stages: Sequence[str] | None = None,
        heads: bool | None = None,
        weight_decay: float = 0.0,
        split: Literal["balanced", "codes"] = "balanced",
    ) -> Self:
        """Return the factorisation of trained single-task networks.

        Parameters
        ----------
        network
            The trained networks; they are not changed.
        tolerance
            Largest relative error of each layer's stacked weights in the Frobenius norm; it chooses the ranks.
            0 reproduces the networks.
        ranks
            Ranks in place of a tolerance.
        form, stages, heads, weight_decay
            As of the class.
        split
            As of :func:`~polytask.deep.factorisation.decompose`.
        """
        if form not in FORMS:
            raise InputError(unknown("form", form, FORMS))
        paths = _layers(network.tasks, network.encoder, network.heads, stages, heads)
        stacked = {name: network.get_parameter(path).detach() for name, path in paths.items()}
        given = None if ranks is None else _ranks({name: W.shape for name, W in stacked.items()}, form, ranks)
        factors = {
            name: decompose(
                W.permute(_order(form, W.dim())),
                form,
                tolerance=tolerance,
                ranks=None if given is None else given[name],
                split=split,
            )
            for name, W in stacked.items()
        }
        found = {name: _ranks_of(some, form) for name, some in factors.items()}
        made = cls(
            network.tasks,
            _plain(network.encoder),
            ranks=found,
            form=form,
            stages=stages,
            heads=heads,
            weight_decay=weight_decay,
        ).to(next(network.parameters()))
        made.towers.load_state_dict(
            {name: value for name, value in network.state_dict().items() if name not in paths.values()}
        )
        for name, weight in made._weights():
            weight.start(factors[name])
        return made

    @property
    def heads(self) -> Heads:
        """The output layers."""
        return self.towers.heads

    @property
    def ranks(self) -> dict[str, tuple[int, ...]]:
        """Name of a layer → its ranks."""
        return {name: _ranks_of(weight.factors(), self.form) for name, weight in self._weights()}

    def _weights(self) -> Iterator[tuple[str, FactorisedWeight]]:
        for name in self._paths:
            weight = self.factorised[key(name)]
            assert isinstance(weight, FactorisedWeight)
            yield name, weight

    def weights(self) -> dict[str, Tensor]:
        """Return name of a layer → its synthesised weights ``(T, …)``."""
        return {name: weight() for name, weight in self._weights()}

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        weights = {self._paths[name]: weight(chosen) for name, weight in self._weights()}
        scores: Tensor = functional_call(self.towers, weights, (inputs, own_rows, chosen))
        return scores

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all factors but the codes."""
        return [factor for _, weight in self._weights() for factor in weight.factors()[1:]]

    def has_towers(self) -> bool:
        return True

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the factors, whose product decays by :meth:`after_step`, and the rest."""
        factors = list(self.factorised.parameters())
        return [ParameterGroup(list(self.towers.parameters())), ParameterGroup(factors, weight_decay=False)]

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:
        if self.weight_decay == 0:
            return
        kept = max(0.0, 1 - learning_rate * self.weight_decay)
        for _, weight in self._weights():
            factors: list[Tensor] = [*weight.factors()]
            torch._foreach_mul_(factors, kept ** (1 / len(factors)))

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return the tasks' codes in every layer, and how strongly the tasks share each."""
        found, strengths = {}, []
        tasks = tuple(task.name for task in self.tasks)
        for name, weight in self._weights():
            codes = weight.factors()[0].detach().double().cpu()
            about = f"how much of each shared component the weights of {name} have, task by task"
            components = tuple(f"component {number}" for number in range(1, codes.shape[1] + 1))
            found[f"{name} codes"] = Relation("loadings", codes.T.numpy(), components, tasks, about)
            strengths.append([sharing_strength(codes), sharing_strength(codes, normalise="softmax")])
        if strengths:
            about = (
                "mean cosine between two tasks' codes, without sign: 0 = nothing in common, 1 = the same components; "
                "the paper's softmax is above 0 for tasks with nothing in common"
            )
            values = torch.tensor(strengths, dtype=torch.float64).numpy()
            found["sharing strength"] = Relation("weights", values, tuple(self._paths), ("l1", "softmax"), about)
        return found


class FactorisedWeight(nn.Module):
    """Stacked weights ``(T, …)`` as a product of factors.

    Parameters
    ----------
    factors
        As :func:`~polytask.deep.factorisation.decompose` returns them; of modes in the order of :func:`_order`.
    form
        Their form.
    """

    def __init__(self, factors: Sequence[Tensor], form: Form) -> None:
        super().__init__()
        self.form = form
        self.names = _factor_names(form, len(factors))
        for name, factor in zip(self.names, factors, strict=True):
            self.register_parameter(name, nn.Parameter(factor))

    def factors(self) -> list[nn.Parameter]:
        """Return the factors, the codes ``(T, K)`` first."""
        return [self._parameters[name] for name in self.names]  # type: ignore[misc]  # they are parameters

    @torch.no_grad()
    def start(self, factors: Sequence[Tensor]) -> None:
        """Set the factors."""
        for own, factor in zip(self.factors(), factors, strict=True):
            own.copy_(factor)

    def forward(self, only: Tensor | None = None) -> Tensor:
        """Return the weights ``(T, …)``; of tasks not in ``only`` they are not computed and have no meaning."""
        factors = self.factors()
        W = synthesise(factors, self.form, rows=only)
        W = W.permute(_order(self.form, W.dim())).contiguous()  # the order is its own inverse
        if only is None:
            return W
        return W.new_empty(len(factors[0]), *W.shape[1:]).index_copy(0, only, W)


class _Towers(nn.Module):
    """T networks: encoder copies and heads."""

    def __init__(self, encoder: BranchedEncoder, heads: Heads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads

    def forward(self, inputs: Mapping[str, Tensor], own: bool, only: Tensor | None) -> Tensor:
        scores: Tensor = self.heads(self.encoder(inputs, own, only=only), own=True, only=only)
        return scores


def _layers(
    tasks: Sequence[Task], encoder: BranchedEncoder, heads: Heads, stages: Sequence[str] | None, with_heads: bool | None
) -> dict[str, str]:
    for name in stages or ():
        if name not in encoder.names:
            raise InputError(unknown("stage", name, encoder.names))
    stages = encoder.names if stages is None else stages
    found = matrix_paths(tasks, encoder, heads, stages=stages, with_heads=with_heads)
    if not found:
        raise InputError(
            "no layer's weights can be factorised: the tasks' heads differ in size or are left out, and no stage has "
            "weights; name some in stages, or use SingleTask"
        )
    return found if len(tasks) > 1 else {}


def _ranks(shapes: Mapping[str, Sequence[int]], form: Form, ranks: Ranks) -> dict[str, tuple[int, ...]]:
    """Return name of a layer → its ranks; ranks themselves are checked where factors are made."""
    ordered = {name: [shape[mode] for mode in _order(form, len(shape))] for name, shape in shapes.items()}
    if not isinstance(ranks, Mapping):
        if not isinstance(ranks, int) or ranks < 1:
            raise InputError(
                f"ranks is {ranks}; give the number of components, at least 1, or every layer's ranks (a tolerance is "
                "for TensorFactorisation.from_single_task)"
            )
        return {name: full_ranks(shape, form, ranks) for name, shape in ordered.items()}
    for name in ranks:
        if name not in shapes:
            raise InputError(unknown("layer", name, shapes))
    if missing := [name for name in shapes if name not in ranks]:
        raise InputError(f"ranks lacks the layers {missing}; give ranks of every factorised layer, or one number")
    return {name: tuple(int(rank) for rank in ranks[name]) for name in shapes}


def _ranks_of(factors: Sequence[Tensor], form: Form) -> tuple[int, ...]:
    if form == "tucker":
        return tuple(factors[1].shape)
    return tuple(factor.shape[-1] for factor in factors[:-1])


def _order(form: Form, dim: int) -> tuple[int, ...]:
    """Return the order of modes in the factors; it is its own inverse.

    In a tensor train the order matters: the paper's is inputs, outputs, tasks. From the task's end that is
    (T, out, in), so the weights (T, in, out) of linear layers have their axes exchanged; those of convolutions,
    (T, out, in, …), are in that order.
    """
    return (0, 2, 1) if form == "tt" and dim == 3 else tuple(range(dim))


def _factor_names(form: Form, count: int) -> tuple[str, ...]:
    if form == "laf":
        return ("codes", "basis")
    if form == "tucker":
        return ("codes", "core", *(f"side{number}" for number in range(1, count - 1)))
    return ("codes", *(f"core{number}" for number in range(1, count)))


def _taken(module: nn.Module, path: str) -> nn.Parameter:
    """Return a parameter and leave None in its place, so that the owner keeps its name and order."""
    parent, _, leaf = path.rpartition(".")
    owner = module.get_submodule(parent)
    weight = owner.get_parameter(leaf)
    owner.register_parameter(leaf, None)
    return weight


def _plain(encoder: BranchedEncoder) -> Encoder:
    """Return an encoder equal to branch 0."""
    stages = {}
    for name in encoder.names:
        branches = encoder.stages[name]
        assert isinstance(branches, Branches)
        stages[name] = branches.copy(0)
    return Encoder(
        stages, n_features=encoder.n_features, channels=encoder.channels or None, channel_axis=encoder.channel_axis
    )
