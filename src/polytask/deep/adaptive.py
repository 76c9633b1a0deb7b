"""Fully-adaptive feature sharing: a trunk that grows into a tree of branches, from the heads down.

    x_0 = input,   x_l[b] = f_l,b( x_{l-1}[parent of b] ),   scores_t = W_t' x_L[branch of t] + b_t

Training starts with one branch everywhere, which is hard sharing. When a phase of training ends, the highest
stage not yet decided is divided: the tasks (at the top) or the branches above it are grouped by which rows they find
difficult (:mod:`polytask.deep.branching`), every group gets a copy of the stage, and the next phase trains
all. The scores do not change at a split, because the copies start equal. A stage where one group is best ends the
growth: everything below stays shared. A branch at stage l costs ``base_cost · 2^p``, p the number of pooling
layers in that stage and above: early stages are dear.

Lu, Kumar, Zhai, Cheng, Javidi, Feris, Fully-adaptive Feature Sharing in Multi-Task Networks with Applications
in Person Attribute Classification, CVPR 2017. A thin encoder from a wide one: :mod:`polytask.deep.somp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import HeldOut, Origins, SharingNetwork
from polytask.deep.branches import Branches
from polytask.deep.branching import Labels, best_grouping, branch_affinity, margins, numbered, task_affinity
from polytask.deep.encoders import BranchedEncoder, Encoder
from polytask.deep.heads import Heads
from polytask.deep.routes import tree_scores
from polytask.deep.tree import Step, Tree, check_tree, plan, refines, tree_relation

_POOLING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip


class AdaptiveSharing(SharingNetwork):
    """A tree of branches over the stages of an encoder, grown while training.

    The tree is part of the state: a network built with the same arguments takes the tree, and the sizes of its
    stacked weights, from the state dict it loads. Build an optimiser after loading, not before.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The trunk before the first split (copied). Its first stage is never divided.
    alpha
        Weight of the separation of tasks that do not belong together, which lies in [0, 1]; one more branch is
        worth it where it lowers the separation by more than ``base_cost · 2^p / alpha``. 0 never splits.
    base_cost
        Cost of a branch in a stage with no pooling layer in it or above.
    phase_epochs
        Epochs after which a phase ends even though training still improves; None: only when it stalls.
    tree
        Branches to start with, ``(stages, tasks)`` (:mod:`polytask.deep.tree`); None: one branch everywhere. With a
        tree of more than one branch the network does not grow.
    seed
        Seed of the heads' initial weights and of clustering.
    """

    tree: Tensor
    junction: Tensor
    affinity: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        alpha: float = 4.0,
        base_cost: float = 1.0,
        phase_epochs: int | None = None,
        tree: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha is {alpha}; give a finite number of at least 0")
        if not 0 <= base_cost < float("inf"):
            raise InputError(f"base_cost is {base_cost}; give a finite number of at least 0")
        if phase_epochs is not None and phase_epochs < 1:
            raise InputError(f"phase_epochs is {phase_epochs}; a phase needs at least one epoch")
        self.alpha, self.base_cost, self.phase_epochs, self.seed = alpha, base_cost, phase_epochs, seed
        self.trunk = BranchedEncoder(encoder, 1)
        self.heads = Heads(tasks, encoder.n_features, seed=seed)
        self._pools = _pools_from(encoder)
        self._bears = [any(True for _ in encoder.stages[name].parameters()) for name in encoder.names]
        n_stages = len(encoder.names)
        self.register_buffer("tree", torch.zeros(n_stages, len(tasks), dtype=torch.int64))
        self.register_buffer("junction", torch.tensor(self._next_down(n_stages)))
        self.register_buffer("affinity", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))
        self._plans: dict[tuple[int, ...], list[Step]] = {}
        if tree is not None:
            self._take_shape(check_tree(tree, n_stages, len(tasks)))
            if int(self.tree.max()) > 0:
                self.junction.zero_()

    # -- scores -------------------------------------------------------------------------------

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        asked = tuple(range(len(self.tasks))) if only is None else tuple(only)
        return tree_scores(self.trunk, self.heads, self._plan(asked), inputs, own_rows, only)

    def _plan(self, asked: tuple[int, ...]) -> list[Step]:
        if asked not in self._plans:
            self._plans[asked] = plan(self.tree.cpu().numpy(), asked)
        return self._plans[asked]

    def _branches(self, name: str) -> Branches:
        branches = self.trunk.stages[name]
        assert isinstance(branches, Branches)
        return branches

    # -- what is shared -----------------------------------------------------------------------

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the weights of all stages in which some branch serves two or more tasks."""
        shared = []
        for name in self.trunk.names:
            branches = self._branches(name)
            if branches.n < len(self.tasks):
                shared += list(branches.parameters())
        return shared

    def relations(self) -> dict[str, Relation]:
        """Return the tree of branches and, once it was measured, the affinity of the tasks."""
        if len(self.tasks) == 1:
            return {}
        found = {"branches": tree_relation(self.tree.cpu().numpy(), self.tasks)}
        if bool(self.affinity.any()):
            names = tuple(task.name for task in self.tasks)
            about = "share of held-out rows that are difficult for both tasks or for neither; about 0.5 is chance"
            found["difficulty"] = Relation("correlation", self.affinity.cpu().numpy(), names, names, about)
        return found

    # -- growth -------------------------------------------------------------------------------

    def ready_to_grow(self, epochs: int, stalled: bool) -> bool:
        """Return True at the end of a phase, while there is a stage left to decide on."""
        over = self.phase_epochs is not None and epochs >= self.phase_epochs
        return (stalled or over) and int(self.junction) > 0 and len(self.tasks) > 1

    @torch.no_grad()
    def grow(self, held_out: HeldOut) -> Origins | None:
        """Decide on the highest undecided stage; None: it stays shared, and so does all below."""
        stage = int(self.junction)
        present = held_out.present.cpu().numpy()
        distances = margins(
            self.tasks, held_out.scores.double().cpu().numpy(), held_out.targets.double().cpu().numpy(), present
        )
        affinity = task_affinity(distances, present)
        self.affinity.copy_(torch.from_numpy(affinity))
        above = self._above(stage)
        groups = best_grouping(
            branch_affinity(affinity, above),
            alpha=self.alpha,
            cost=self.base_cost * 2.0 ** self._pools[stage],
            seed=self.seed,
        )
        if int(groups.max()) == 0:
            self.junction.zero_()
            return None
        self.junction.fill_(self._next_down(stage))
        return self.split(self.trunk.names[stage], groups[above])

    def split(self, stage: str, branches: ArrayLike) -> Origins:
        """Give groups of tasks copies of a stage, without changing any score.

        Stages without weights right above it are routed alike.

        Parameters
        ----------
        stage
            Name of the stage.
        branches
            Number of the branch that each task shall run through, ``(T,)``; tasks that part now shared a branch before.

        Returns
        -------
        Origins
            Where the new parameters come from.
        """
        if stage not in self.trunk.names:
            raise InputError(unknown("stage", stage, self.trunk.names))
        number = self.trunk.names.index(stage)
        old = self.tree.cpu().numpy()
        row = np.asarray(branches)
        if row.shape != (len(self.tasks),) or not np.issubdtype(row.dtype, np.integer):
            raise InputError(
                f"branches has shape {row.shape}; give one whole number for each of {len(self.tasks)} tasks"
            )
        row = numbered(row.astype(np.int64))
        if not refines(row, old[number]):
            raise InputError(f'branches joins tasks that stage "{stage}" separates; a split only divides branches')
        new = old.copy()
        new[number] = row
        for level in range(number + 1, len(new)):
            if self._bears[level]:
                break
            new[level] = row if refines(row, new[level]) else new[level]
        return self._take_shape(check_tree(new, *new.shape))

    def _above(self, stage: int) -> Labels:
        """Return the branch above the junction that each task belongs to; the tasks themselves at the top."""
        above = next((level for level in range(stage + 1, len(self._bears)) if self._bears[level]), None)
        return np.arange(len(self.tasks)) if above is None else self.tree[above].cpu().numpy()

    def _next_down(self, stage: int) -> int:
        """Return the next stage with weights below this one; 0, the first stage, is never divided."""
        return next((level for level in range(stage - 1, 0, -1) if self._bears[level]), 0)

    @torch.no_grad()
    def _take_shape(self, tree: Tree) -> Origins:
        """Route the tasks by a tree; a new branch copies the branch that its first task ran through."""
        origins: Origins = {}
        old = self.tree.cpu().numpy()
        for name, row, before in zip(self.trunk.names, tree, old, strict=True):
            _, first = np.unique(row, return_index=True)
            sources = before[first].tolist()
            grown = self._branches(name)
            if sources != list(range(grown.n)):
                copies = Branches.from_modules([grown.copy(source) for source in sources]).train(grown.training)
                for part, weight in copies.weights.items():
                    weight.requires_grad_(grown.weights[part].requires_grad)
                    origins[weight] = (grown.weights[part], torch.tensor(sources, device=weight.device))
                self.trunk.stages[name] = copies
        self.tree.copy_(torch.from_numpy(tree))
        self._plans = {}
        return origins

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        tree = state_dict.get(f"{prefix}tree")
        if isinstance(tree, Tensor):
            try:
                self._take_shape(check_tree(tree.cpu().numpy(), *self.tree.shape))
            except InputError as error:
                rest[-1].append(f"{prefix}tree: {error}")  # load_state_dict collects what is wrong and raises it
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _pools_from(encoder: Encoder) -> list[int]:
    """Return, for each stage, how many pooling layers it and the stages above have."""
    counts = [sum(isinstance(part, _POOLING) for part in encoder.stages[name].modules()) for name in encoder.names]
    return np.cumsum(counts[::-1])[::-1].tolist()
