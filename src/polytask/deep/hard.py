"""Hard parameter sharing: one trunk for all tasks, one linear head for each.

    scores_t = W_t' f(x) + b_t          f: shared encoder,  W_t: (n_features, n_outputs_t)

Caruana, Multitask Learning: A Knowledge-Based Source of Inductive Bias, ICML 1993; Machine Learning 28, 1997.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder
from polytask.deep.heads import Heads


class HardSharing(SharingNetwork):
    """One trunk, T heads.

    With one batch per task the trunk sees all rows together, so batch norm takes its statistics over
    the rows of all tasks.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The shared trunk (copied).
    seed
        Seed of the heads' initial weights; heads are drawn independently.
    """

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, *, seed: int = 0) -> None:
        super().__init__(tasks)
        self.trunk = BranchedEncoder(encoder, 1)
        self.heads = Heads(tasks, encoder.n_features, seed=seed)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        if own_rows:
            n_tasks, n_rows = next(iter(inputs.values())).shape[:2]
            joined = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
            features = self.features(joined).view(n_tasks, n_rows, -1)
        else:
            features = self.features(inputs)
        scores: Tensor = self.heads(features, own_rows, only=chosen)
        return scores

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.trunk.parameters()) if len(self.tasks) > 1 else []

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        features: Tensor = self.trunk(inputs)[0]
        return features

    def scores_and_features(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        features = self.features(inputs)
        scores: Tensor = self.heads(features)
        return scores, features, self.heads.linear.weights["weight"]
