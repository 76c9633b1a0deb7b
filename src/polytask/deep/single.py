"""Single-task networks: every task has its own encoder and head; the baseline of every comparison.

    scores_t = head_t(encoder_t(x)),        no parameter in common

All T networks are computed as one (:class:`~polytask.deep.branches.Branches`). Trained on the *sum* of
the task losses, each behaves as if it were trained alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder
from polytask.deep.heads import Heads


class SingleTask(SharingNetwork):
    """T separate networks.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The encoder each task gets a copy of.
    seed
        Seed of the heads' initial weights.
    identical
        Start every task from the same weights, as T runs with one seed would; False draws new weights
        for every task but the first.
    """

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, *, seed: int = 0, identical: bool = True) -> None:
        super().__init__(tasks)
        self.encoder = BranchedEncoder(encoder, len(tasks), seed=seed + 1, identical=identical)
        self.heads = Heads(tasks, encoder.n_features, seed=seed, identical=identical)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        features = self.encoder(inputs, own_rows, only=chosen)
        scores: Tensor = self.heads(features, own=True, only=chosen)
        return scores
