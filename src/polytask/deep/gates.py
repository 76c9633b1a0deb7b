"""Gates: how much of each of E experts a task takes, all tasks' gates in one matrix product.

:class:`LinearGates`, linear in what they read, without bias:

    g_t(x) = softmax(x W_t)                                       W_t: (p, E)

:class:`SelectGates` (DSelect-k), at most k of E experts, differentiable:

    g_t = sum_{j ≤ k} softmax(w_t)_j r(z_tj)                      w_t: (k,),  z_tj: (bits,),  bits = ⌈log2 E⌉
    r_i(z) = prod_b  S(z_b)  or  1 - S(z_b)                       by the b-th binary digit of i
    S(a) = 0 (a ≤ -γ/2),   1 (a ≥ γ/2),   -2a³/γ³ + 3a/(2γ) + 1/2 between

w and z are parameters of each task, or linear functions of what the gates read (``per_example``). Once all
z lie beyond ±γ/2 every r is one expert exactly. Towards that pulls the penalty

    strength · sum_tj entropy(r(z_tj))  +  sum_tj 1 / sum_i r_i(z_tj)     (the second if E is not a power of 2,

where r may put weight on experts that do not exist); per example, the mean of it over the rows of a batch.

Ma, Zhao, Yi, Chen, Hong, Chi, Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018. Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong, Chi, DSelect-k:
Differentiable Selection in the Mixture of Experts with Applications to Multi-Task Learning, NeurIPS 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError
from polytask.deep.branches import Branches
from polytask.deep.seeding import seeded

_SMALL = 1e-6
_START_OF_WEIGHTS = 0.05


def smooth_step(a: Tensor, width: float = 1.0) -> Tensor:
    """Return S(a): 0 up to ``-width/2``, 1 from ``width/2``, the cubic with continuous slope between."""
    inside = a.clamp(-width / 2, width / 2)
    return (-2 / width**3 * inside.square() + 1.5 / width) * inside + 0.5


def selectors(z: Tensor, n_experts: int, width: float = 1.0) -> Tensor:
    """Return r(z), ``(…, E)``, from ``(…, bits)``; it sums to 1 where E is a power of 2, to at most 1 otherwise."""
    chosen = z.new_ones(*z.shape[:-1], 1)
    for step in smooth_step(z, width).unbind(-1):
        digit = torch.stack([1 - step, step], dim=-1)
        chosen = (chosen.unsqueeze(-1) * digit.unsqueeze(-2)).flatten(-2)
    return chosen[..., :n_experts]


class LinearGates(nn.Module):
    """Softmax gates that are linear in what they read.

    Parameters
    ----------
    n_gates
        Number of gates.
    n_inputs
        Number p of features the gates read.
    n_experts
        Number E of experts.
    seed
        Seed of the initial weights, drawn independently for every gate.
    """

    sums_to_one = True

    def __init__(self, n_gates: int, n_inputs: int, n_experts: int, *, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            first = nn.Linear(n_inputs, n_experts, bias=False)
        self.linear = Branches(first, n_gates, seed=seed + 1)

    def forward(self, x: Tensor, own: bool = False, *, only: Tensor | None = None) -> Tensor:
        """Return gates ``(n, B, E)`` from ``(B, p)`` or, with ``own``, ``(n, B, p)``; ``only`` picks gates."""
        gates: Tensor = self.linear(x, own, only=only).softmax(-1)
        return gates


class SelectGates(nn.Module):
    """Gates that take at most k experts.

    Parameters
    ----------
    n_gates, n_inputs, n_experts
        As for :class:`LinearGates`.
    n_selected
        Most experts a gate takes, k.
    per_example
        Whether each row chooses; False: each task chooses once for all rows.
    width
        Width γ of the smooth step.
    strength
        Weight of the entropy penalty.
    seed
        Seed of the initial values: z and what makes it uniform on ±γ/100, w on ±0.05.
    """

    last: Tensor

    def __init__(
        self,
        n_gates: int,
        n_inputs: int,
        n_experts: int,
        *,
        n_selected: int = 2,
        per_example: bool = False,
        width: float = 1.0,
        strength: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n_experts < 2:
            raise InputError(f"n_experts is {n_experts}; to choose from, give at least 2")
        if not 1 <= n_selected <= n_experts:
            raise InputError(f"n_selected is {n_selected}; give a number from 1 to the number of experts, {n_experts}")
        if not 0 < width < math.inf:
            raise InputError(f"width is {width}; give a positive number")
        if not 0 <= strength < math.inf:
            raise InputError(f"strength is {strength}; give a finite number of at least 0")
        self.n_experts, self.n_selected, self.width, self.strength = n_experts, n_selected, width, strength
        n_bits = (n_experts - 1).bit_length()
        self.sums_to_one = n_experts == 2**n_bits
        n_steps = n_selected * n_bits
        self.linear: Branches | None = None
        with seeded(seed):
            if per_example:
                self.linear = Branches.from_modules([self._drawn(n_inputs, n_steps) for _ in range(n_gates)])
            else:
                self.z = nn.Parameter(self._uniform(width / 100, n_gates, n_steps))
                self.w = nn.Parameter(self._uniform(_START_OF_WEIGHTS, n_gates, n_selected))
        self.register_buffer("last", torch.zeros(()))
        self._read: tuple[Tensor, bool, Tensor | None] | None = None

    @staticmethod
    def _uniform(bound: float, *shape: int) -> Tensor:
        return torch.empty(*shape).uniform_(-bound, bound)

    def _drawn(self, n_inputs: int, n_steps: int) -> nn.Linear:
        linear = nn.Linear(n_inputs, n_steps + self.n_selected)
        for weight in (linear.weight, linear.bias):
            nn.init.uniform_(weight[:n_steps], -self.width / 100, self.width / 100)
            nn.init.uniform_(weight[n_steps:], -_START_OF_WEIGHTS, _START_OF_WEIGHTS)
        return linear

    def _selectors(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return r ``(n, B, k, E)`` and the logits of its weights ``(n, B, k)``; B is 1 unless per example."""
        if self.linear is None:
            z, w = (part if only is None else part[only] for part in (self.z, self.w))
            z, w = z.unsqueeze(1), w.unsqueeze(1)
        else:
            logits: Tensor = self.linear(x, own, only=only)
            n_steps = logits.shape[-1] - self.n_selected
            z, w = logits[..., :n_steps], logits[..., n_steps:]
        return selectors(torch.unflatten(z, -1, (self.n_selected, -1)), self.n_experts, self.width), w

    def forward(self, x: Tensor, own: bool = False, *, only: Tensor | None = None) -> Tensor:
        """Return gates ``(n, B, E)`` from ``(B, p)`` or, with ``own``, ``(n, B, p)``; ``only`` picks gates."""
        chosen, logits = self._selectors(x, own, only)
        if self.linear is not None and self.training and torch.is_grad_enabled():
            self._read = (x.detach(), own, only)
            self.last = self._cost(chosen.detach())
        gates = (logits.softmax(-1).unsqueeze(-1) * chosen).sum(-2)
        return gates.expand(-1, x.shape[-2], -1)

    def _cost(self, chosen: Tensor) -> Tensor:
        costs = -self.strength * (chosen * (chosen + _SMALL).log()).sum(-1)
        if not self.sums_to_one:
            costs = costs + 1 / (chosen.sum(-1) + _SMALL)
        return costs.mean(1).sum()

    def penalty(self) -> Tensor:
        """Return the penalty without gradient; per example, that of the last training batch (0 before the first)."""
        if self.linear is not None:
            return self.last
        with torch.no_grad():
            return self._cost(self._selectors(self.z, False, None)[0])

    def penalty_gradient(self) -> None:
        """Add the penalty's gradient to that of the gates' own parameters; per example, over the last batch's rows."""
        read = (self.last, False, None) if self.linear is None else self._read
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if read is None or not parameters or (self.strength == 0 and self.sums_to_one):
            return
        self._read = None
        with torch.enable_grad():
            cost = self._cost(self._selectors(*read)[0])
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(cost, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
