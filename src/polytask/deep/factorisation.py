"""Stacked weights as products of small factors: decompositions, their ranks, and synthesis.

Stacked weights W (T, D_1, …, D_{N-1}) have the task first. In every form the first factor, the codes
``(T, K)``, has one row per task, and the second has K as its first axis:

    "laf"     W[t] = sum_k codes[t, k] basis[k]                      basis (K, D_1, …, D_{N-1})
    "tucker"  W = core ×_0 codes ×_1 U_1 … ×_{N-1} U_{N-1}           core (K, K_1, …, K_{N-1}), U_n (D_n, K_n)
    "tt"      W[t, d_1, …] = codes[t] G_1[:, d_1] … G_{N-1}[:, d_{N-1}]
              (tensor train)                              G_n (r_n, D_n, r_{n+1}), the last (r_{N-1}, D_{N-1})

They are computed by truncated SVD, higher-order SVD and TT-SVD. A rank is the smallest whose truncation
stays within its share of the tolerance, in the Frobenius norm; the shares are such that the whole product
keeps ``||W - product||_F <= tolerance ||W||_F``. (The authors' program gives every SVD the whole
tolerance and takes it in the spectral norm.)

Yang & Hospedales, Deep Multi-task Representation Learning: A Tensor Factorisation Approach, ICLR 2017;
De Lathauwer, De Moor, Vandewalle, A multilinear singular value decomposition, SIAM J. Matrix Anal. Appl.
21, 2000; Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33, 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from polytask.core.errors import InputError
from polytask.deep.tensor_normal import mode_product, unfold

Form = Literal["laf", "tucker", "tt"]
FORMS: tuple[Form, ...] = ("laf", "tucker", "tt")


def decompose(
    W: Tensor,
    form: Form,
    *,
    tolerance: float = 0.0,
    ranks: Sequence[int] | None = None,
    split: Literal["balanced", "codes"] = "balanced",
) -> list[Tensor]:
    """Return the factors of W in a form.

    Parameters
    ----------
    W
        Stacked weights ``(T, D_1, …)``.
    form
        ``"laf"``, ``"tucker"`` or ``"tt"``.
    tolerance
        Largest ``||W - product||_F / ||W||_F``, from 0 (exact) up to, but without, 1.
    ranks
        Ranks in place of a tolerance: (K,), (K, K_1, …, K_{N-1}) or (r_1, …, r_{N-1}); no more than
        :func:`full_ranks`.
    split
        ``"balanced"``: codes and second factor share the singular values evenly, component by component;
        ``"codes"``: as the decomposition gives them: the codes hold the singular values (laf, tt), the core
        does (tucker).
    """
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance is {tolerance}; give a share from 0 up to, but without, 1")
    if ranks is not None:
        check_ranks(W.shape, form, ranks)
    factors = _DECOMPOSITIONS[form](W, tolerance, ranks)
    return balance(factors) if split == "balanced" else factors


def synthesise(factors: Sequence[Tensor], form: Form, *, rows: Tensor | None = None) -> Tensor:
    """Return the product of the factors, ``(T, D_1, …)``, contracted in the cheapest order.

    Parameters
    ----------
    factors
        As of :func:`decompose`.
    form
        Their form.
    rows
        Numbers of the tasks to compute, int64 ``(m,)``: the result is ``(m, D_1, …)``.
    """
    codes, *rest = factors
    if rows is not None:
        codes = codes.index_select(0, rows)
    if form == "laf":
        return _expand(codes, rest[0])
    return _tucker_product(codes, rest) if form == "tucker" else _train_product(codes, rest)


def balance(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return factors of the same product in which each column of the codes is as long as its slice of the second."""
    codes, second, *rest = factors
    lengths, others = codes.norm(dim=0), second.flatten(1).norm(dim=1)
    scale = torch.where((lengths > 0) & (others > 0), (others / lengths).sqrt(), 1.0)
    return [codes * scale, second / scale.view(-1, *(1,) * (second.dim() - 1)), *rest]


def random_factors(
    shape: Sequence[int], form: Form, ranks: Sequence[int], *, std: float, generator: torch.Generator
) -> list[Tensor]:
    """Return normal factors whose product has entries of standard deviation ``std``.

    The second factor (tt: the last) has entries of deviation ``std``; every other is scaled so that
    summing over its rank leaves the variance as it is.

    Parameters
    ----------
    shape
        Shape of the product, ``(T, D_1, …)``.
    form, ranks
        As of :func:`decompose`.
    std
        Standard deviation of the product's entries.
    generator
        Source of randomness, on the CPU.
    """
    check_ranks(shape, form, ranks)
    shapes = factor_shapes(shape, form, ranks)
    plain = 1 if form != "tt" else len(shapes) - 1
    return [
        torch.randn(size, generator=generator) * (std if number == plain else size[-1] ** -0.5)
        for number, size in enumerate(shapes)
    ]


def factor_shapes(shape: Sequence[int], form: Form, ranks: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of the factors."""
    n_tasks, *others = shape
    codes = (n_tasks, ranks[0])
    if form == "laf":
        return [codes, (ranks[0], *others)]
    if form == "tucker":
        return [codes, tuple(ranks), *zip(others, ranks[1:], strict=True)]
    inner = zip(ranks[:-1], others[:-1], ranks[1:], strict=True)
    return [codes, *inner, (ranks[-1], others[-1])]


def full_ranks(shape: Sequence[int], form: Form, first: int | None = None) -> tuple[int, ...]:
    """Return the smallest ranks with which every tensor of a shape is such a product.

    Parameters
    ----------
    shape
        Shape of the product, ``(T, D_1, …)``.
    form
        The form.
    first
        Rank of the codes, where it is to be smaller: the others are then as large as they are of use.
    """
    size = math.prod(shape)
    rank = min(shape[0], size // shape[0])
    if first is not None:
        rank = min(rank, first)
    if form == "laf":
        return (rank,)
    if form == "tucker":
        return (rank, *(min(side, rank * size // shape[0] // side) for side in shape[1:]))
    found, before, after = [rank], rank, size // shape[0]
    for side in shape[1:-1]:
        before, after = before * side, after // side
        found.append(min(before, after))
    return tuple(found)


def check_ranks(shape: Sequence[int], form: Form, ranks: Sequence[int]) -> None:
    """Refuse ranks that are too many, too few or out of range for a shape and a form."""
    most = full_ranks(shape, form)
    if len(ranks) != len(most) or any(not 1 <= rank <= top for rank, top in zip(ranks, most, strict=True)):
        raise InputError(
            f'ranks is {list(ranks)} for weights of shape {list(shape)} in the form "{form}"; give {len(most)} '
            f"numbers from 1 to at most {list(most)}"
        )
    if form == "tt":
        for side, rank, following in zip(shape[1:-1], ranks[:-1], ranks[1:], strict=True):
            if rank > side * following:
                raise InputError(
                    f"ranks is {list(ranks)}: {rank} is more than {side} units times the rank {following} that follows"
                )


def sharing_strength(codes: Tensor, *, normalise: Literal["softmax", "l1"] = "l1") -> float:
    """Return the mean cosine between two tasks' codes after normalising their absolute values.

        rho = mean_{i<j} cos(s_i, s_j),        s_t = softmax |codes_t|   or   |codes_t| / sum |codes_t|

    With "l1" it is 0 where tasks use different components and 1 where they use them alike. The paper's
    "softmax" is above 0 in either case: 0.72 for four tasks with a component each. Both depend on how
    the components are chosen: ``codes Q, Q^-1 basis`` has the same product.

    Parameters
    ----------
    codes
        ``(T, K)``, two tasks or more.
    normalise
        ``"l1"`` or ``"softmax"``.
    """
    size = codes.abs()
    size = size.softmax(1) if normalise == "softmax" else size / size.sum(1, keepdim=True).clamp(min=1e-30)
    unit = torch.nn.functional.normalize(size, dim=1)
    cosines = unit @ unit.T
    n_tasks = len(codes)
    return float((cosines.sum() - cosines.trace()) / (n_tasks * (n_tasks - 1)))


def _laf(W: Tensor, tolerance: float, ranks: Sequence[int] | None) -> list[Tensor]:
    left, values, right = torch.linalg.svd(unfold(W, 0), full_matrices=False)
    rank = _rank(values, tolerance, W) if ranks is None else ranks[0]
    return [left[:, :rank] * values[:rank], right[:rank].reshape(rank, *W.shape[1:])]


def _tucker(W: Tensor, tolerance: float, ranks: Sequence[int] | None) -> list[Tensor]:
    share = tolerance / math.sqrt(W.dim())
    sides, core = [], W
    for mode in range(W.dim()):
        left, values, _ = torch.linalg.svd(unfold(W, mode), full_matrices=False)
        rank = _rank(values, share, W) if ranks is None else ranks[mode]
        sides.append(left[:, :rank].contiguous())
        core = mode_product(core, sides[-1].T, mode)
    return [sides[0], core, *sides[1:]]


def _train(W: Tensor, tolerance: float, ranks: Sequence[int] | None) -> list[Tensor]:
    share = tolerance / math.sqrt(W.dim() - 1)
    cores: list[Tensor] = []
    rest, after = W, list[int]()  # rest (T, D_1, …, D_n, r_{n+1})
    for mode in range(W.dim() - 1, 0, -1):
        left, values, right = torch.linalg.svd(rest.reshape(math.prod(W.shape[:mode]), -1), full_matrices=False)
        rank = _rank(values, share, W) if ranks is None else ranks[mode - 1]
        cores.insert(0, right[:rank].reshape(rank, W.shape[mode], *after))
        rest, after = left[:, :rank] * values[:rank], [rank]
    return [rest, *cores]


_DECOMPOSITIONS = {"laf": _laf, "tucker": _tucker, "tt": _train}


def _rank(values: Tensor, tolerance: float, W: Tensor) -> int:
    """Return the smallest rank, at least 1, beyond which the singular values' norm is within ``tolerance ||W||``."""
    beyond = values.square().flip(0).cumsum(0).flip(0).sqrt()
    return max(1, int((beyond > tolerance * W.norm()).sum()))


def _expand(codes: Tensor, basis: Tensor) -> Tensor:
    return (codes @ basis.flatten(1)).view(len(codes), *basis.shape[1:])


def _tucker_product(codes: Tensor, rest: Sequence[Tensor]) -> Tensor:
    core, *sides = rest
    matrices = [codes, *sides]
    found = core
    for mode in cheapest_order(core.shape, [len(matrix) for matrix in matrices]):
        found = mode_product(found, matrices[mode], mode)
    return found


def cheapest_order(small: Sequence[int], large: Sequence[int]) -> list[int]:
    """Return the order of modes in which growing a core from ``small`` to ``large`` costs the fewest products.

    Growing i before j costs ``D_i + D_i D_j / K_i`` in place of ``D_j + D_i D_j / K_j`` times what has the size of
    neither, so whichever has the smaller ``1 / K - 1 / D`` goes first.
    """
    return sorted(range(len(small)), key=lambda mode: 1 / small[mode] - 1 / large[mode])


def _train_product(codes: Tensor, cores: Sequence[Tensor]) -> Tensor:
    shape = (len(codes), *(core.shape[1] for core in cores))
    if _outward_is_cheaper(len(codes), [core.shape for core in cores]):
        found = codes
        for core in cores:
            found = found.view(-1, len(core)) @ core.flatten(1)
        return found.view(shape)
    basis = cores[-1]
    for core in reversed(cores[:-1]):
        basis = core.flatten(0, 1) @ basis.view(core.shape[-1], -1)
    return (codes @ basis.view(codes.shape[1], -1)).view(shape)


def _outward_is_cheaper(n_tasks: int, shapes: Sequence[Sequence[int]]) -> bool:
    """Return whether to go from the codes to the last core, rather than from the last core to the codes."""
    outward, rows = 0, n_tasks
    for shape in shapes:
        outward += rows * math.prod(shape)
        rows *= shape[1]
    inward, columns = 0, 1
    for number, shape in enumerate(reversed(shapes)):
        inward += math.prod(shape) * columns if number else 0
        columns *= shape[1]
    return outward <= inward + n_tasks * shapes[0][0] * columns
