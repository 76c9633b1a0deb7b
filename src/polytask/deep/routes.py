"""Running the branches of a tree, stage by stage, for some of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.rows import Input, all_joined, joined, parted, selection, taken
from polytask.deep.tree import Step


def tree_scores(
    trunk: BranchedEncoder,
    heads: Heads,
    steps: Sequence[Step],
    inputs: Mapping[str, Tensor],
    own_rows: bool,
    only: Sequence[int] | None,
) -> Tensor:
    """Return the scores ``(T', B, K)`` of the tasks that the steps were planned for.

    With rows of each task's own a branch sees the rows of its tasks together, and branches with equally many
    tasks run as one.
    """
    chosen = None if only is None else torch.tensor(only, device=heads.used.device)
    scores: Tensor
    if own_rows:
        scores = heads(_own_features(trunk, inputs, steps), own=True, only=chosen)
        return scores
    features = _shared_features(trunk, inputs, steps)
    if len(features) == 1:
        scores = heads(features[0], only=chosen)
    else:
        scores = heads(taken(features, steps[-1].place), own=True, only=chosen)
    return scores


def _shared_features(trunk: BranchedEncoder, inputs: Mapping[str, Tensor], steps: Sequence[Step]) -> Tensor:
    """Return the features ``(k, B, h)`` of the branches that run."""
    x: Input = inputs
    device = next(iter(inputs.values())).device
    own, length = False, inputs.get("length")
    for name, step in zip(trunk.names, steps, strict=True):
        if own and isinstance(x, Tensor):
            x, own = (x[0], False) if len(x) == 1 else (taken(x, step.parents), True)
        x, own = trunk.run_stage(name, x, own, _only(trunk, name, step.branches, device), length=length)
    assert isinstance(x, Tensor)
    features = pooled(x, trunk.channel_axis, own, length=length)
    return features if own else features[None]


def _own_features(trunk: BranchedEncoder, inputs: Mapping[str, Tensor], steps: Sequence[Step]) -> Tensor:
    """Return the features ``(T', B, h)`` of each task's own rows."""
    x: Input = inputs
    length = inputs.get("length")
    for name, step in zip(trunk.names, steps, strict=True):
        x = _own_stage(trunk, name, x, step, length)
    assert isinstance(x, Tensor)
    return pooled(x, trunk.channel_axis, True, length=length)


def _own_stage(trunk: BranchedEncoder, name: str, x: Input, step: Step, length: Tensor | None) -> Tensor:
    place = np.array(step.place)
    sizes = np.bincount(place)
    outputs, order = [], []
    for size in np.unique(sizes):
        members = [np.flatnonzero(place == branch) for branch in np.flatnonzero(sizes == size)]
        flat = np.concatenate(members).tolist()
        shape = (len(members), int(size))
        device = (x if isinstance(x, Tensor) else next(iter(x.values()))).device
        only = _only(trunk, name, tuple(step.branches[place[one[0]]] for one in members), device)
        lengths = None if length is None else joined(length, flat, shape)
        y, own = trunk.run_stage(name, all_joined(x, flat, shape), True, only, length=lengths)
        assert own
        outputs.append(parted(y, len(flat), y.shape[1] // shape[1]))
        order += flat
    return taken(outputs[0] if len(outputs) == 1 else torch.cat(outputs), np.argsort(order).tolist())


def _only(trunk: BranchedEncoder, name: str, branches: tuple[int, ...], device: torch.device) -> Tensor | None:
    stage = trunk.stages[name]
    assert isinstance(stage, Branches)
    return selection(branches, stage.n, device)
