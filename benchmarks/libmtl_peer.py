"""LibMTL 1.1.5 as it is, on the CPU: its Trainer's own model, losses and backward pass, one step at a time.

The Trainer asks for ``cuda:0`` in its constructor; the parts it consists of are called here with a CPU device
instead. The package imports a function for pre-trained weights that torchvision does not have any more; a
stand-in takes its place. Its cross-stitch and PLE want an encoder with the attributes of a ResNet: the encoders
below have them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

INSTALLED = importlib.util.find_spec("LibMTL") is not None


class ResNetShaped(nn.Module):
    """Layers under the names LibMTL looks for; what is missing does nothing."""

    feature_dim = 0

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = (nn.Identity() for _ in range(4))
        padded = [*layers, *(nn.Identity() for _ in range(4 - len(layers)))]
        self.layer1, self.layer2, self.layer3, self.layer4 = padded

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _trainer() -> Any:
    if "torchvision.models.utils" not in sys.modules:
        stand_in = types.ModuleType("torchvision.models.utils")
        stand_in.load_state_dict_from_url = None  # type: ignore[attr-defined]
        for name in ("torchvision", "torchvision.models"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules["torchvision.models.utils"] = stand_in
    import LibMTL
    import LibMTL._record
    import LibMTL.loss

    return LibMTL


def step(
    architecture: str,
    encoder: Callable[[], nn.Module],
    heads: list[nn.Module],
    x: Tensor,
    y: Tensor,
    **options: object,
) -> Callable[[], float]:
    """Return LibMTL's training step with equal weights; targets ``(T, B)`` are class codes if integer."""
    library = _trainer()
    names = [f"task{t}" for t in range(len(heads))]
    classes = not y.is_floating_point()

    class Loss(library.loss.AbsLoss):  # type: ignore[misc, name-defined]
        def compute_loss(self, scores: Tensor, target: Tensor) -> Tensor:
            return functional.cross_entropy(scores, target) if classes else functional.mse_loss(scores[:, 0], target)

    trainer = library.Trainer.__new__(library.Trainer)
    nn.Module.__init__(trainer)
    trainer.device = torch.device("cpu")
    trainer.kwargs = {"weight_args": {}, "arch_args": options}
    trainer.task_dict = {name: {"metrics": [], "metrics_fn": None, "loss_fn": Loss(), "weight": []} for name in names}
    trainer.task_num, trainer.task_name = len(names), names
    trainer.rep_grad = trainer.multi_input = False
    decoders = nn.ModuleDict(dict(zip(names, heads, strict=True)))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer._prepare_model(library.weighting.EW, getattr(library.architecture, architecture), encoder, decoders)
        trainer._prepare_optimizer({"optim": "adam", "lr": 1e-3, "fused": True}, None)
        trainer.meter = library._record._PerformanceMeter(trainer.task_dict, False)
    targets = dict(zip(names, y, strict=True))
    trainer.model.train()

    def one() -> float:
        losses = trainer._compute_loss(trainer.process_preds(trainer.model(x)), targets)
        trainer.optimizer.zero_grad()
        trainer.model.backward(losses)
        trainer.optimizer.step()
        return 0.0

    return one
