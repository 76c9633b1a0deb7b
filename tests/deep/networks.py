"""Small tasks, data and networks that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from polytask.core.task import Binary, Multiclass, Ordinal, Regression, Task
from polytask.deep import (
    MTAN,
    PLE,
    AdaptiveSharing,
    CrossStitch,
    DSelectK,
    HardSharing,
    JointManyTask,
    LearnedBranching,
    LowSupervision,
    MMoE,
    OMoE,
    RelationshipNetwork,
    SharingNetwork,
    SingleTask,
    Sluice,
    SoftSharing,
    TensorFactorisation,
    TraceNormSharing,
    mlp,
)

MIXED: tuple[Task, ...] = (
    Regression("price"),
    Binary("sold", classes=("no", "yes")),
    Multiclass("type", classes=("flat", "house", "boat")),
    Ordinal("state", classes=("bad", "fair", "good", "new")),
    Regression("area"),
)
CARDINALITIES = (4, 7)


def encoder(widths=(8, 6), **options):
    return mlp(3, widths, **options)


def table(*shape: int, seed: int = 0, categorical: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {"numeric": torch.randn(*shape, 3, generator=generator, dtype=torch.float64)}
    if categorical:
        codes = [torch.randint(0, rows, shape, generator=generator) for rows in CARDINALITIES]
        inputs["categorical"] = torch.stack(codes, dim=-1)
    return inputs


def labels(tasks, n_rows: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for task in tasks:
        if task.labels:
            rows.append(torch.randint(0, len(task.labels), (n_rows,), generator=generator).double())
        else:
            rows.append(torch.randn(n_rows, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


LEVELS = {"price": 2, "sold": 1, "type": 2, "state": 0, "area": 2}
"""Number of the stage that the head of each task of MIXED reads."""


def levels(tasks) -> dict[str, int]:
    return {task.name: LEVELS[task.name] for task in tasks}


def tree(n_tasks: int) -> list[list[int]]:
    """Branches of the stages input, layer1 and layer2: one, up to two, up to four."""
    return [[0] * n_tasks, [0, 1, 0, 1, 1][:n_tasks], [0, 1, 2, 1, 3][:n_tasks]]


NETWORKS: dict[str, Callable[..., SharingNetwork]] = {
    "single": SingleTask,
    "single, different starts": lambda tasks, encoder, **o: SingleTask(tasks, encoder, identical=False, **o),
    "hard": HardSharing,
    "soft": lambda tasks, encoder, **o: SoftSharing(tasks, encoder, strength=0.3, **o),
    "soft, pairwise gradient": lambda tasks, encoder, **o: SoftSharing(
        tasks, encoder, strength=0.3, form="pairwise", update="gradient", **o
    ),
    "soft, graph": lambda tasks, encoder, **o: SoftSharing(
        tasks, encoder, strength=0.3, form="graph", graph=np.ones((len(tasks), len(tasks))), **o
    ),
    "soft, anchor": lambda tasks, encoder, **o: SoftSharing(
        tasks, encoder, strength=0.3, form="anchor", anchor=tasks[0].name, **o
    ),
    "trace norm": lambda tasks, encoder, **o: TraceNormSharing(tasks, encoder, strength=0.1, **o),
    "trace norm, tucker gradient": lambda tasks, encoder, **o: TraceNormSharing(
        tasks, encoder, strength=0.1, form="tucker", update="gradient", **o
    ),
    "cross-stitch": CrossStitch,
    "cross-stitch, channels": lambda tasks, encoder, **o: CrossStitch(
        tasks, encoder, granularity="channel", identical=False, **o
    ),
    "sluice": lambda tasks, encoder, **o: Sluice(tasks, encoder, orthogonality=0.1, **o),
    "sluice, activations": lambda tasks, encoder, **o: Sluice(
        tasks, encoder, orthogonality=0.1, on="activations", identical=False, **o
    ),
    "relationship": lambda tasks, encoder, **o: RelationshipNetwork(tasks, encoder, refresh_every=2, **o),
    "tensor factorisation, laf": lambda tasks, encoder, **o: TensorFactorisation(
        tasks, encoder, ranks=3, form="laf", **o
    ),
    "tensor factorisation, tucker": lambda tasks, encoder, **o: TensorFactorisation(
        tasks, encoder, ranks=3, weight_decay=0.1, **o
    ),
    "tensor factorisation, tt": lambda tasks, encoder, **o: TensorFactorisation(
        tasks, encoder, ranks=3, form="tt", **o
    ),
    "adaptive": AdaptiveSharing,
    "adaptive, grown": lambda tasks, encoder, **o: AdaptiveSharing(tasks, encoder, tree=tree(len(tasks)), **o),
    "low supervision": lambda tasks, encoder, **o: LowSupervision(tasks, encoder, levels=levels(tasks), **o),
    "joint many-task": lambda tasks, encoder, **o: JointManyTask(tasks, encoder, levels=levels(tasks), **o),
    "learned branching": lambda tasks, encoder, **o: LearnedBranching(tasks, encoder, noise=False, **o),
    "mmoe": MMoE,
    "mmoe, one expert": lambda tasks, encoder, **o: MMoE(tasks, encoder, n_experts=1, **o),
    "mmoe, towers": lambda tasks, encoder, **o: MMoE(tasks, encoder, towers=(5,), **o),
    "omoe": OMoE,
    "dselect-k": lambda tasks, encoder, **o: DSelectK(tasks, encoder, n_experts=5, **o),
    "dselect-k, per example": lambda tasks, encoder, **o: DSelectK(tasks, encoder, per_example=True, **o),
    "cgc": lambda tasks, encoder, **o: PLE(tasks, encoder, levels=1, **o),
    "ple": PLE,
    "mtan": MTAN,
}

NEVER_SINGLE = {"mmoe", "mmoe, towers", "omoe", "dselect-k", "dselect-k, per example", "cgc", "ple", "mtan"}
