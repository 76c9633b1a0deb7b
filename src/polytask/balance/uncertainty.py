"""Uncertainty weighting: each task's noise is learned and divides its loss.

    regression:       ½ e^{-s_t} L_t + ½ s_t          s_t = log σ_t²,  optimum  e^{s_t} = L_t
    with classes:       e^{-s_t} L_t + ½ s_t                           optimum  e^{s_t} = 2 L_t
    Laplace noise:      e^{-s_t} L_t + s_t            s_t = log b_t,   optimum  e^{s_t} = L_t    (L: absolute error)
    positive:         ½ e^{-s_t} L_t + log(1 + e^{s_t})                optimum  e^{s_t} = (L_t + √(L_t² + 8 L_t)) / 4

At the optimum the update does not depend on the scales of the losses. The total may be negative, so
early stopping must watch the tasks' own losses. s is kept in [-10, 10]: a task that is learned perfectly
would otherwise get an unbounded weight. Its optimiser group must have no weight decay. The positive form keeps the
total above 0 for losses above 0, and gives up the independence of scales.

Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
Semantics, CVPR 2018. Positive form: Liebel and Körner, Auxiliary Tasks in Multi-task Learning, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.balance.base import LossBalancer
from polytask.core.errors import InputError, unknown
from polytask.core.task import KINDS

_LIMIT = 10.0


class Uncertainty(LossBalancer):
    """Learned noise of every task as its weight.

    Parameters
    ----------
    kinds
        Kind of each task: ``[task.kind for task in tasks]``.
    init
        Starting value of every s, in [-10, 10], or ``"auto"``: the optimum for the first loss that each
        task shows, which saves the time s needs to get there.
    noise
        Noise of regression tasks: ``"gaussian"`` for squared errors, ``"laplace"`` for absolute errors.
    positive
        Use the positive form, for tasks of every kind.

    Attributes
    ----------
    log_variances
        s, shape ``(T,)``.
    """

    factors: Tensor
    slopes: Tensor
    started: Tensor

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        init: float | Literal["auto"] = 0.0,
        noise: Literal["gaussian", "laplace"] = "gaussian",
        positive: bool = False,
    ) -> None:
        super().__init__()
        if noise not in ("gaussian", "laplace"):
            raise InputError(unknown("noise", noise, ("gaussian", "laplace")))
        if positive and noise == "laplace":
            raise InputError('positive=True has no form of its own for noise="laplace"; choose one of the two')
        if not kinds:
            raise InputError("kinds is empty; give the kind of each task")
        for kind in kinds:
            if kind not in KINDS:
                raise InputError(unknown("task kind", kind, KINDS))
        automatic = isinstance(init, str)
        if isinstance(init, str):
            if init != "auto":
                raise InputError(f'init is "{init}"; give a number in [-10, 10] or "auto"')
            init = 0.0
        if not -_LIMIT <= init <= _LIMIT:
            raise InputError(f'init is {init}; give a number in [-10, 10] or "auto"')
        self.log_variances = nn.Parameter(torch.full((len(kinds),), float(init)))
        self.positive = positive
        laplace = torch.tensor([noise == "laplace" and kind == "regression" for kind in kinds])
        halved = torch.tensor([positive or (noise == "gaussian" and kind == "regression") for kind in kinds])
        self.register_buffer("factors", torch.where(halved, 0.5, 1.0), persistent=False)
        self.register_buffer("slopes", torch.where(laplace, 1.0, 0.5), persistent=False)
        self.register_buffer("started", torch.full((len(kinds),), not automatic))

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        with torch.no_grad():
            if not bool(self.started.all()):
                new = present & ~self.started
                optimum = self._optimum(losses).log().to(self.log_variances)
                self.log_variances.copy_(torch.where(new, optimum, self.log_variances))
                self.started |= new
            self.log_variances.clamp_(-_LIMIT, _LIMIT)
        return self.factors * torch.exp(-self.log_variances)

    def _optimum(self, losses: Tensor) -> Tensor:
        if self.positive:
            return (losses + (losses**2 + 8 * losses).sqrt()) / 4
        return self.factors / self.slopes * losses

    def regulariser(self, present: Tensor) -> Tensor:
        s = self.log_variances
        return (functional.softplus(s) if self.positive else self.slopes * s).masked_fill(~present, 0.0).sum()
