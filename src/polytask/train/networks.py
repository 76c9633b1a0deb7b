"""Networks by name: a description of plain values builds the network, for learners and for saved models alike.

A new network is one builder and one entry in :data:`NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polytask.core.errors import ModelRefusedError, unknown
from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import Encoder, mlp
from polytask.deep.hard import HardSharing
from polytask.deep.single import SingleTask
from polytask.deep.soft import SoftSharing

Tasks = tuple[Task, ...]
Description = Mapping[str, Any]
Builder = Callable[[Tasks, Encoder, Description, int], SharingNetwork]


def build(tasks: Tasks, description: Description, *, seed: int = 0) -> SharingNetwork:
    """Build the network of a description.

    Parameters
    ----------
    tasks
        Its tasks.
    description
        ``network`` (a name in :data:`NETWORKS`) and that network's own settings; for the encoder of a table
        ``n_numeric``, ``cardinalities``, ``widths``, ``dropout``, ``norm`` and ``activation``.
    seed
        Seed of the initial weights.

    Raises
    ------
    ModelRefusedError
        If no network has that name.
    """
    name = str(description["network"])
    if name not in NETWORKS:
        raise ModelRefusedError(unknown("network", name, NETWORKS))
    return NETWORKS[name](tasks, _encoder(description, seed), description, seed)


def _encoder(description: Description, seed: int) -> Encoder:
    return mlp(
        int(description["n_numeric"]),
        [int(width) for width in description["widths"]],
        cardinalities=[int(size) for size in description["cardinalities"]],
        dropout=float(description["dropout"]),
        norm=description["norm"],
        activation=description["activation"],
        seed=seed,
    )


def _single_task(tasks: Tasks, encoder: Encoder, _: Description, seed: int) -> SharingNetwork:
    return SingleTask(tasks, encoder, seed=seed)


def _hard_sharing(tasks: Tasks, encoder: Encoder, _: Description, seed: int) -> SharingNetwork:
    return HardSharing(tasks, encoder, seed=seed)


def _soft_sharing(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return SoftSharing(tasks, encoder, strength=float(description["strength"]), seed=seed)


NETWORKS: dict[str, Builder] = {
    "single-task": _single_task,
    "hard-sharing": _hard_sharing,
    "soft-sharing": _soft_sharing,
}
"""Name of a network → what builds it from (tasks, encoder, description, seed)."""
