"""Learned branching: every branch, and every task, learns which branch of the stage below it reads.

    input of branch k of stage l  =  sum_j z_kj x_{l-1}[j],        z_k = softmax((θ_k + g) / τ)
    scores_t                      =  W_t' sum_j z_tj x_L[j] + b_t

Each stage after the first has n branches, drawn independently; θ are learned, g is Gumbel noise drawn anew for
every batch, so that the largest entry of θ + g is a sample from softmax(θ), and the temperature τ falls
geometrically while training, which turns mixtures into choices. In evaluation mode every branch and task
reads the parent of its largest θ, without noise: a tree, of which only the branches in use are computed.

n = 1 is hard sharing.

Guo, Lee, Ulbricht, Learning to Branch for Multi-Task Learning, ICML 2020. Gumbel-softmax: Jang, Gu, Poole, ICLR
2017; Maddison, Mnih, Teh, ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import ParameterGroup, SharingNetwork
from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.routes import tree_scores
from polytask.deep.tree import Tree, plan, tree_relation

_TASKS = "tasks"


class LearnedBranching(SharingNetwork):
    """Branches whose connections are learned.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        Its stages are the blocks. The first has one branch for all; of the others branch 0 starts with the
        encoder's weights.
    n_branches
        Branches of every stage after the first; None: one per task.
    start_temperature, end_temperature
        Temperature at first, and after ``anneal_epochs`` epochs, from when it stays.
    anneal_epochs
        Epochs in which the temperature falls, at least 1.
    noise
        Whether training draws Gumbel noise.
    rate
        Factor on the learning rate of θ, which never decays; above 1 choices are made early and may lock in.
    seed
        Seed of initial weights.
    """

    temperature: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        n_branches: int | None = None,
        start_temperature: float = 5.0,
        end_temperature: float = 0.1,
        anneal_epochs: int = 30,
        noise: bool = True,
        rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        n = len(tasks) if n_branches is None else n_branches
        if n < 1:
            raise InputError(f"n_branches is {n}; every stage needs at least one branch")
        if not 0 < end_temperature <= start_temperature < float("inf"):
            raise InputError(
                f"end_temperature is {end_temperature} and start_temperature {start_temperature}; "
                "the temperature falls from a finite number to one above 0"
            )
        if anneal_epochs < 1:
            raise InputError(f"anneal_epochs is {anneal_epochs}; give at least one epoch")
        if not 0 < rate < float("inf"):
            raise InputError(f"rate is {rate}; give a finite number above 0")
        if len(encoder.names) < 2:
            raise InputError("the encoder has one stage only, which is never divided; give it at least one more")
        self.noise, self.rate = noise, rate
        self.end_temperature = end_temperature
        self.cooling = (end_temperature / start_temperature) ** (1 / anneal_epochs)
        first = encoder.names[0]
        self.trunk = BranchedEncoder(encoder, n, seed=seed + 1, identical=False)
        self.trunk.stages[first] = Branches(encoder.stages[first], 1)
        self.heads = Heads(tasks, encoder.n_features, seed=seed)
        readers = dict.fromkeys(encoder.names[2:], n) | {_TASKS: len(tasks)}
        self.choices = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(count, n)) for name, count in readers.items() if n > 1}
        )
        """θ: reader (a stage's branches, or the tasks) → logits (readers, branches of the stage below)."""
        self.register_buffer("temperature", torch.tensor(float(start_temperature)))

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        asked = list(range(len(self.tasks))) if only is None else list(only)
        if not self.training or not self.choices:
            return tree_scores(self.trunk, self.heads, plan(self.tree(), asked), inputs, own_rows, only)
        chosen = None if only is None else torch.tensor(only, device=self.temperature.device)
        n_rows = next(iter(inputs.values())).shape[int(own_rows)]
        x = self._branch_features(inputs, own_rows)
        z = self._weights(_TASKS)
        z = z if chosen is None else z.index_select(0, chosen)
        rows = x.reshape(len(x), -1, n_rows, x.shape[-1])  # (n, T', B, h) where each task has its own
        mixed = torch.einsum("tn,ntbh->tbh", z, rows) if own_rows else _mixed(z, x)
        scores: Tensor = self.heads(mixed, own=True, only=chosen)
        return scores

    def _branch_features(self, inputs: Mapping[str, Tensor], own_rows: bool) -> Tensor:
        """Return the features of all branches of the last stage, ``(n, R, h)``; R joins the rows of all tasks."""
        if own_rows:
            inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        length = inputs.get("length")
        x, own = self.trunk.run_stage(self.trunk.names[0], inputs, length=length)
        x, own = (x[0], False) if own else (x, own)
        for name in self.trunk.names[1:]:
            if own and name in self.choices:
                x = _mixed(self._weights(name), x)
            x, own = self.trunk.run_stage(name, x, own, length=length)
        features = pooled(x, self.trunk.channel_axis, own, length=length)
        return features if own else features.expand(self.trunk.n, *features.shape)

    def _weights(self, reader: str) -> Tensor:
        """Return z ``(readers, branches)``, rows summing to 1."""
        logits = self.choices[reader]
        if self.noise:
            logits = logits - torch.empty_like(logits).exponential_().log()
        return torch.softmax(logits / self.temperature, dim=-1)

    def tree(self) -> Tree:
        """Return the branch of each stage that each task runs through in evaluation mode, ``(stages, tasks)``."""
        n_tasks = len(self.tasks)
        rows = []
        at = np.arange(n_tasks)
        for name in (_TASKS, *reversed(self.trunk.names[2:])):
            logits = self.choices[name].detach() if name in self.choices else None
            at = np.zeros(n_tasks, dtype=np.int64) if logits is None else logits.argmax(-1).cpu().numpy()[at]
            rows.append(at)
        return np.stack([np.zeros(n_tasks, dtype=np.int64), *reversed(rows)])

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all but heads and the tasks' own choices, which the losses reach through mixtures."""
        if len(self.tasks) == 1:
            return []
        return [*self.trunk.parameters(), *(value for name, value in self.choices.items() if name != _TASKS)]

    def parameter_groups(self) -> list[ParameterGroup]:
        choices = ParameterGroup(list(self.choices.values()), learning_rate_scale=self.rate, weight_decay=False)
        return [ParameterGroup([*self.trunk.parameters(), *self.heads.parameters()]), choices]

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Let the temperature fall."""
        self.temperature.mul_(self.cooling).clamp_(min=self.end_temperature)

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return the tree that evaluation uses, and with which probability each task reads which branch."""
        if len(self.tasks) == 1 or not self.choices:
            return {}
        names = tuple(task.name for task in self.tasks)
        odds = torch.softmax(self.choices[_TASKS].double(), dim=-1).cpu().numpy()
        columns = tuple(f"branch {k}" for k in range(odds.shape[1]))
        about = "probability that a task reads a branch of the last stage; evaluation takes the largest"
        return {
            "branches": tree_relation(self.tree(), self.tasks),
            "choices": Relation("weights", odds, names, columns, about),
        }


def _mixed(z: Tensor, x: Tensor) -> Tensor:
    """Return ``sum_j z_kj x_j``, ``(readers, R, …)`` from ``(branches, R, …)``."""
    return (z @ x.flatten(1)).reshape(len(z), *x.shape[1:])
