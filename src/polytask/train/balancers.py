"""Balancers by name, as the settings of a learner and the command line call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import polytask.balance as balance
from polytask.balance.base import Balancer
from polytask.core.errors import InputError, unknown
from polytask.core.task import Task

Reduction = Literal["sum", "mean"]

_PLAIN: dict[str, Callable[[int], Balancer]] = {
    "dwa": balance.DWA,
    "famo": balance.FAMO,
    "gls": lambda _: balance.GLS(),
    "imtl-l": balance.IMTLL,
    "scale-normalisation": balance.ScaleNormalisation,
    "stch": balance.STCH,
    "uw-so": lambda _: balance.UWSO(),
    "aligned-mtl": balance.AlignedMTL,
    "cagrad": balance.CAGrad,
    "config": balance.ConFIG,
    "db-mtl": balance.DBMTL,
    "fairgrad": balance.FairGrad,
    "gradnorm": balance.GradNorm,
    "imtl-g": balance.IMTLG,
    "mgda": balance.MGDA,
    "nash-mtl": balance.NashMTL,
    "upgrad": balance.UPGrad,
}
_RANDOM: dict[str, Callable[..., Balancer]] = {
    "rlw": balance.RLW,
    "graddrop": balance.GradDrop,
    "gradvac": balance.GradVac,
    "pcgrad": balance.PCGrad,
}
BALANCERS = ("equal", "uncertainty", *sorted([*_PLAIN, *_RANDOM]))
"""Names of all balancers; the first two are what tuning draws from."""
TUNED = BALANCERS[:2]
_MOST_TASKS_TO_PROBE = 2


def make_balancer(name: str, tasks: tuple[Task, ...], *, reduction: Reduction = "sum", seed: int = 0) -> Balancer:
    """Return the balancer of that name for these tasks, with its usual settings.

    Parameters
    ----------
    name
        One of :data:`BALANCERS`.
    tasks
        The tasks whose losses are balanced.
    reduction
        Whether ``"equal"`` takes the sum or the mean of the losses.
    seed
        Seed of balancers that draw random numbers.
    """
    check_balancer(name)
    if name == "equal" or len(tasks) == 1:  # one loss has nothing to be balanced with
        return balance.Equal(len(tasks), reduction=reduction)
    if name == "uncertainty":
        return balance.Uncertainty([task.kind for task in tasks], init="auto")
    if name in _RANDOM:
        return _RANDOM[name](len(tasks), seed=seed)
    return _PLAIN[name](len(tasks))


def check_balancer(name: str, *, shares: bool = True) -> None:
    """Refuse an unknown name, and a gradient balancer where the network shares no parameters (``shares`` False)."""
    if name not in BALANCERS:
        raise InputError(unknown("balancer", name, BALANCERS))
    if shares or name in ("equal", "uncertainty"):
        return
    made = _RANDOM[name](_MOST_TASKS_TO_PROBE) if name in _RANDOM else _PLAIN[name](_MOST_TASKS_TO_PROBE)
    if made.needs_shared:
        raise InputError(
            f'balancer is "{name}", which balances gradients of shared parameters, but this network shares none; '
            'use a loss weighting such as "uncertainty", or a method that shares parameters, such as hard-sharing'
        )
