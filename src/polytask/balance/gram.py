"""Inner products of the tasks' gradients with respect to shared parameters, ``A = J Jᵀ``.

    J: (P tasks, d shared parameters)      A[s, t] = sum over parameters of ⟨∂L_s/∂θ, ∂L_t/∂θ⟩

J itself is not formed where a layer allows it. A linear layer ``y = x Wᵀ`` has ``∂L_t/∂W = δ_tᵀ x`` with
``δ_t = ∂L_t/∂y``, so that, with n rows in x,

    ⟨∂L_s/∂W, ∂L_t/∂W⟩ = ⟨δ_s, (x xᵀ) δ_t⟩          x xᵀ: (n, n), computed once for all tasks

which saves the product with x for every task, half of its backward pass, and the storage of ``∂L_t/∂W``
(a convolution is the same with its patches as rows). Where n is larger than the layer's input it does not
pay and the rows of J are formed for that parameter alone, as they are for biases, norm layers and anything
else. Every task costs one backward pass of activations, one after the other, so that nothing needs a
batching rule: compiled blocks, recurrent layers and custom functions work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn import functional

_LAYOUT = frozenset(
    f"{name}Backward0"
    for name in ("T", "Transpose", "Permute", "View", "ReshapeAlias", "UnsafeView", "Clone", "Squeeze", "Unsqueeze")
)
"""Operations that only rearrange a weight: they keep inner products."""


@dataclass(frozen=True)
class _Ghost:
    """A layer whose weight's inner products come from rows x ``(n, in)`` and ``δ_t`` alone."""

    edge: GradientEdge
    rows: Tensor
    convolution: bool

    def gram(self, deltas: Sequence[Tensor | None]) -> Tensor:
        shape = next((delta.shape for delta in deltas if delta is not None), None)
        if shape is None:
            return torch.zeros(len(deltas), len(deltas), dtype=self.rows.dtype, device=self.rows.device)
        rows = _precise(self.rows)
        delta = torch.stack([rows.new_zeros(shape) if each is None else each.to(rows) for each in deltas])
        if self.convolution:  # (P, B, out, …) to one row per patch
            delta = delta.flatten(3).transpose(2, 3).flatten(1, 2)
        return delta.flatten(1) @ torch.matmul(rows @ rows.T, delta).flatten(1).T


def _precise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor


Start = Callable[[int], Tensor | None]
"""Place → the gradient to start with at that root; None for a scalar root."""


class TaskRows:
    """The rows of J, held per parameter as ``(P, …)``."""

    def __init__(self, roots: Sequence[Tensor], start: Start, shared: Sequence[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in shared if parameter.requires_grad]
        self.size, self.reference = len(roots), roots[0]
        found = _sweep(roots, start, self.parameters)
        self.rows = [_rows(parameter, column) for parameter, column in zip(self.parameters, found, strict=True)]

    def gram(self, add: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return ``A`` ``(P, P)``; with ``add``, of the sums over processes that it returns."""
        gram = _empty(self.reference, self.size)
        for parameter, rows in zip(self.parameters, self.rows, strict=True):
            if add is None:
                _add_products(gram, rows)
            else:  # a parameter that no loss reaches here may be reached in another process
                _add_products(gram, add(parameter.new_zeros(self.size, *parameter.shape) if rows is None else rows))
        return gram

    def combined(self, weights: Tensor) -> list[Tensor | None]:
        """Return ``sum_t w_t ∂L_t/∂θ`` of every parameter; None where nothing reaches it."""
        return [
            None if rows is None else (weights.to(rows) @ rows.flatten(1)).view_as(parameter)
            for parameter, rows in zip(self.parameters, self.rows, strict=True)
        ]


def parameter_gram(roots: Sequence[Tensor], start: Start, shared: Sequence[nn.Parameter]) -> Tensor:
    """Return ``A`` ``(P, P)`` of P roots, without rows of J where a layer allows it.

    Parameters
    ----------
    roots
        One tensor per task, or the same one P times, that is differentiated.
    start
        What to start with at each.
    shared
        The parameters; those that do not require a gradient are left out.
    """
    ghosts, parameters = _split(roots, [parameter for parameter in shared if parameter.requires_grad])
    inputs: list[Any] = [layer.edge for layer in ghosts] + parameters
    found = _sweep(roots, start, inputs)
    gram = _empty(roots[0], len(roots))
    for layer, deltas in zip(ghosts, found, strict=False):
        gram += layer.gram(deltas).to(gram)
    for parameter, column in zip(parameters, found[len(ghosts) :], strict=True):
        _add_products(gram, _rows(parameter, column))
    return gram


def _sweep(roots: Sequence[Tensor], start: Start, inputs: Sequence[Any]) -> list[list[Tensor | None]]:
    """Return the gradients of each input, one per root: one backward pass after the other."""
    found: list[list[Tensor | None]] = [[] for _ in inputs]
    for place, root in enumerate(roots):
        gradients = torch.autograd.grad(root, inputs, start(place), retain_graph=True, allow_unused=True)
        for column, gradient in zip(found, gradients, strict=True):
            column.append(gradient)
    return found


def _empty(root: Tensor, size: int) -> Tensor:
    return torch.zeros(size, size, dtype=torch.promote_types(root.dtype, torch.float32), device=root.device)


def _rows(parameter: Tensor, column: list[Tensor | None]) -> Tensor | None:
    """Stack the rows of one parameter and let go of the single ones."""
    if all(row is None for row in column):
        return None
    rows = torch.stack([torch.zeros_like(parameter) if row is None else row for row in column])
    column.clear()
    return rows


def _add_products(gram: Tensor, rows: Tensor | None) -> None:
    if rows is not None:
        flat = _precise(rows.flatten(1))
        gram += (flat @ flat.T).to(gram)


def reaches_around(losses: Sequence[Tensor], features: Tensor, shared: Sequence[nn.Parameter]) -> bool:
    """Say whether some loss reaches a shared parameter by a path that does not pass the representation."""
    wanted = {id(parameter) for parameter in shared}
    nodes = _nodes(losses, stop=features.grad_fn)
    return any(id(getattr(node, "variable", None)) in wanted for node, _ in nodes)


def _nodes(roots: Sequence[Tensor], *, stop: Any = None) -> list[tuple[Any, tuple[tuple[Any, int], ...]]]:
    """Return every node of the graph above the roots with its inputs."""
    seen: dict[Any, tuple[tuple[Any, int], ...]] = {stop: ()} if stop is not None else {}
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = node.next_functions
        waiting.extend(after for after, _ in node.next_functions if after is not None)
    return [(node, inputs) for node, inputs in seen.items() if node is not stop]


def _split(roots: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> tuple[list[_Ghost], list[nn.Parameter]]:
    """Tell the parameters whose layer has a ghost form from the others."""
    users: dict[Any, list[tuple[Any, int]]] = {}
    leaves: dict[int, Any] = {}
    for node, inputs in _nodes(roots):
        for place, (after, _) in enumerate(inputs):
            if after is not None:
                users.setdefault(after, []).append((node, place))
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = node
    ghosts, others = [], []
    for parameter in parameters:
        node = leaves.get(id(parameter))
        layer = None if node is None or parameter.dim() < 2 else _layer(node, users)
        if layer is None:
            others.append(parameter)
        else:
            ghosts.append(layer)
    return ghosts, others


def _layer(node: Any, users: dict[Any, list[tuple[Any, int]]]) -> _Ghost | None:
    """Follow a weight through changes of layout to its only use, and return that layer's ghost form."""
    while True:
        uses = users.get(node, [])
        if len(uses) != 1:
            return None
        node, place = uses[0]
        name = node.name()
        if name not in _LAYOUT and name != "ToCopyBackward0":
            break
    if (name, place) in (("AddmmBackward0", 2), ("MmBackward0", 1)):
        rows = node._saved_mat1 if name == "AddmmBackward0" else node._saved_self
        if name == "AddmmBackward0" and node._saved_alpha != 1:
            return None
        paying = rows.shape[0] <= rows.shape[1]
        return _Ghost(GradientEdge(node, 0), rows.detach(), False) if paying else None
    if name == "ConvolutionBackward0" and place == 1:
        return _convolution(node)
    return None


def _convolution(node: Any) -> _Ghost | None:
    x, weight = node._saved_input.detach(), node._saved_weight
    if x.dim() != 4 or node._saved_transposed or node._saved_groups != 1:
        return None
    kernel, stride = tuple(weight.shape[2:]), node._saved_stride
    padding, dilation = node._saved_padding, node._saved_dilation
    places = [
        (size + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for size, pad, gap, taps, step in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    if len(x) * places[0] * places[1] > weight[0].numel():
        return None
    patches = functional.unfold(_precise(x), kernel, dilation, padding, stride)
    return _Ghost(GradientEdge(node, 0), patches.transpose(1, 2).flatten(0, 1), True)
