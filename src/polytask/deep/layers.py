"""The layers that tasks have of their own, by name: where their stacked weights are found in a network."""

from __future__ import annotations

from collections.abc import Sequence

from polytask.core.errors import InputError
from polytask.core.task import Task
from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder
from polytask.deep.heads import Heads


def matrix_paths(
    tasks: Sequence[Task], encoder: BranchedEncoder, heads: Heads, *, stages: Sequence[str], with_heads: bool | None
) -> dict[str, str]:
    """Return name of a layer → path of its stacked weights in a module with an ``encoder`` and ``heads``.

    Only weights with two axes or more per task count; biases, scales and shifts of norms do not. A layer is called
    like its stage or, where a stage has several, like its stage and weight: ``"layer2"``, ``"block.0.weight"``.

    Parameters
    ----------
    tasks
        The tasks.
    encoder, heads
        Where the weights are.
    stages
        Stages of the encoder that every task has of its own.
    with_heads
        Whether the heads count, which needs tasks with equally many outputs. None: if they can.
    """
    if with_heads and heads.ragged:
        sizes = [task.n_outputs for task in tasks]
        raise InputError(f"heads is True, but the tasks have {sizes} outputs; only equal heads can be related")
    owners = {name: (f"encoder.stages.{name}.stack", encoder.stages[name]) for name in stages}
    if not heads.ragged and with_heads is not False:
        owners["heads"] = ("heads.linear.stack", heads.linear)
    found: dict[str, str] = {}
    for layer, (path, branches) in owners.items():
        assert isinstance(branches, Branches)
        matrices = [name for name, weight in branches.weights.items() if weight.dim() > 2]
        found |= {layer if len(matrices) == 1 else f"{layer}.{name}": f"{path}.{name}" for name in matrices}
    return found


def key(name: str) -> str:
    """Return a layer's name as one that a module or buffer can have."""
    return name.replace(".", "_")
