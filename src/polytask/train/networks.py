"""Networks by name: a description of plain values builds the network, for learners and for saved models alike.

A new network is one builder and one entry in :data:`NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from polytask.core.errors import ModelRefusedError, unknown
from polytask.core.task import Task
from polytask.deep.adaptive import AdaptiveSharing
from polytask.deep.attention import MTAN
from polytask.deep.base import SharingNetwork
from polytask.deep.cross_stitch import CrossStitch
from polytask.deep.encoders import Encoder, convnet, mlp
from polytask.deep.experts import PLE, DSelectK, MMoE
from polytask.deep.hard import HardSharing
from polytask.deep.joint_many import JointManyTask
from polytask.deep.low_supervision import LowSupervision
from polytask.deep.relationship import RelationshipNetwork
from polytask.deep.routing import LearnedBranching
from polytask.deep.single import SingleTask
from polytask.deep.sluice import Sluice
from polytask.deep.soft import SoftSharing
from polytask.deep.tensor_factor import TensorFactorisation
from polytask.deep.trace_norm_sharing import TraceNormSharing

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
        ``network`` (a name in :data:`NETWORKS`) and that network's own settings; for the encoder ``widths``,
        ``dropout``, ``norm``, ``activation`` and, of a table, ``n_numeric`` and ``cardinalities``; of images,
        ``image`` (channels, height, width) and ``channels``.
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
    """Return a multilayer perceptron for tables, a small convolutional network for images."""
    widths, dropout = [int(width) for width in description["widths"]], float(description["dropout"])
    if "image" in description:
        return convnet(
            [int(size) for size in description["image"]],
            [int(size) for size in description["channels"]],
            widths=widths,
            norm=description["norm"],
            activation=description["activation"],
            dropout=dropout,
            seed=seed,
        )
    return mlp(
        int(description["n_numeric"]),
        widths,
        cardinalities=[int(size) for size in description["cardinalities"]],
        dropout=dropout,
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


def _trace_norm_sharing(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return TraceNormSharing(
        tasks, encoder, strength=float(description["strength"]), form=description["form"], seed=seed
    )


def _cross_stitch(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return CrossStitch(
        tasks,
        encoder,
        granularity=description["granularity"],
        own_weight=float(description["own_weight"]),
        mixing_rate=float(description["mixing_rate"]),
        seed=seed,
    )


def _sluice(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return Sluice(
        tasks,
        encoder,
        subspaces=int(description["subspaces"]),
        own_weight=float(description["own_weight"]),
        orthogonality=float(description["orthogonality"]),
        mixing_rate=float(description["mixing_rate"]),
        seed=seed,
    )


def _mmoe(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return MMoE(tasks, encoder, n_experts=int(description["n_experts"]), seed=seed)


def _dselect_k(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return DSelectK(
        tasks,
        encoder,
        n_experts=int(description["n_experts"]),
        n_selected=int(description["n_selected"]),
        strength=float(description["strength"]),
        seed=seed,
    )


def _ple(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return PLE(
        tasks,
        encoder,
        n_shared=int(description["n_shared"]),
        n_private=int(description["n_private"]),
        levels=int(description["levels"]),
        seed=seed,
    )


def _mtan(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return MTAN(tasks, encoder, reduction=int(description["reduction"]), seed=seed)


def _relationship(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    own = int(description["own_layers"])
    return RelationshipNetwork(
        tasks,
        encoder,
        strength=float(description["strength"]),
        own_stages=encoder.names[len(encoder.names) - own :],
        mode=description["mode"],
        cov=description["cov"],
        refresh_every=int(description["refresh_every"]),
        seed=seed,
    )


def _tensor_factorisation(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return TensorFactorisation(
        tasks,
        encoder,
        ranks=description["ranks"] if len(tasks) > 1 else 1,
        form=description["form"],
        weight_decay=float(description["weight_decay"]),
        seed=seed,
    )


def _adaptive_sharing(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return AdaptiveSharing(
        tasks,
        encoder,
        alpha=float(description["alpha"]),
        phase_epochs=int(description["phase_epochs"]),
        seed=seed,
    )


def _learned_branching(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return LearnedBranching(
        tasks,
        encoder,
        n_branches=int(description["n_branches"]),
        anneal_epochs=int(description["anneal_epochs"]),
        seed=seed,
    )


def _low_supervision(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    return LowSupervision(tasks, encoder, levels=_levels(description), seed=seed)


def _joint_many_task(tasks: Tasks, encoder: Encoder, description: Description, seed: int) -> SharingNetwork:
    delta = float(description["delta"])
    return JointManyTask(tasks, encoder, levels=_levels(description), delta=delta, head_delta=10 * delta, seed=seed)


def _levels(description: Description) -> dict[str, int | str]:
    return {str(task): int(level) for task, level in description["levels"].items()}


NETWORKS: dict[str, Builder] = {
    "single-task": _single_task,
    "hard-sharing": _hard_sharing,
    "soft-sharing": _soft_sharing,
    "trace-norm-sharing": _trace_norm_sharing,
    "cross-stitch": _cross_stitch,
    "sluice": _sluice,
    "relationship-network": _relationship,
    "tensor-factorisation": _tensor_factorisation,
    "mmoe": _mmoe,
    "dselect-k": _dselect_k,
    "ple": _ple,
    "mtan": _mtan,
    "adaptive-sharing": _adaptive_sharing,
    "learned-branching": _learned_branching,
    "low-supervision": _low_supervision,
    "joint-many-task": _joint_many_task,
}
"""Name of a network → what builds it from (tasks, encoder, description, seed)."""
