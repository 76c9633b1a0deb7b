"""Training on several processes: every process holds the data, takes its rows of each batch, and all stay equal.

Start a script with PyTorch's own launcher and let it join:

    torchrun --nproc-per-node 2 script.py

    with join_processes(time_out=60) as processes:
        fit(network, balancer, train, valid, processes=processes)

The processes draw the same batch; process r of R takes every R-th row of it. ``batch_size`` counts the rows of the
joint batch, so that their number changes how long training takes and not, but for rounding, what comes out.
What is random in the network (dropout) is drawn by each process for its rows, and batch norm takes the
statistics of each process's rows; its running means are averaged after every epoch.

Messages: labels of each task per step, losses, what the balancer compares, and one sum of all gradients. After every
epoch the processes compare digests of all weights and stop where these differ. Nothing here can hold or
run code: only tensors are sent. Weights may be spread over the processes (:mod:`polytask.train.sharding`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polytask.balance.exchange import Exchange
from polytask.core.errors import InputError, PolytaskError
from polytask.train.sharding import is_part

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLostError(PolytaskError, RuntimeError):
    """Another process of the group ended, or did not answer in time."""


class ProcessesDifferError(PolytaskError, RuntimeError):
    """Processes that must hold the same weights do not."""


class Processes:
    """One of ``size`` processes that train together, and how it adds up with the others.

    Parameters
    ----------
    rank, size
        Number of this process, from 0, and how many there are.
    device
        Where tensors are sent from; also the device of a fit whose setting is ``"auto"``.
    summed_grams
        See :class:`~polytask.balance.exchange.Exchange`.
    sharded
        Whether a fit spreads its weights over the processes.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        device: torch.device | None = None,
        summed_grams: bool = False,
        sharded: bool = False,
    ) -> None:
        self.rank, self.size, self.summed_grams = rank, size, summed_grams
        self.sharded = sharded and size > 1
        self.device = device or torch.device("cpu")

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes, the same bits in each."""
        if self.size == 1:
            return tensor
        sent = tensor.detach().to(self.device, copy=True).contiguous()
        with self.told_if_lost():
            dist.all_reduce(sent)
        return sent.to(tensor.device)

    @contextmanager
    def told_if_lost(self) -> Iterator[None]:
        """Say in one sentence, where sending or waiting fails, that the others are lost."""
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise ProcessLostError(
                f"process {self.rank} of {self.size} lost the others: one ended (look at its own message) or did not "
                "answer within time_out; start all again, and training goes on from the last checkpoint. "
                f"PyTorch says: {str(error).splitlines()[0]}"
            ) from error

    def gather(self, tensor: Tensor) -> Tensor:
        """Return what every process has, ``(size, …)``."""
        table = tensor.new_zeros(self.size, *tensor.shape)
        table[self.rank] = tensor
        return self.sum(table)

    def any(self, *facts: bool) -> list[bool]:
        """Return for each fact whether it holds in some process."""
        if self.size == 1:
            return list(facts)
        return [bool(count) for count in self.sum(torch.tensor(facts, dtype=torch.int64))]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sums over processes, in one message; those of spread weights are sums already."""
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        found = [gradient for gradient in found if not is_part(gradient)]
        if self.size > 1 and found:
            _spread(self.sum(_joined(found)), found)

    def average(self, buffers: Mapping[str, Tensor]) -> None:
        """Replace what differs between processes by the mean over them."""
        floats = {name: value for name, value in buffers.items() if value.is_floating_point()}
        apart = [floats[name] for name in self.differing(floats)]
        if apart:
            _spread(self.sum(_joined(apart)) / self.size, apart)

    def differing(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Return the names of tensors that are not the same, bit for bit, in all processes; parts never are."""
        digests = {
            name: _digest(name, value) for name, value in tensors.items() if self.size > 1 and not is_part(value)
        }
        if not digests:
            return []
        everyone = self.gather(torch.tensor(list(digests.values())))
        return [name for name, same in zip(digests, (everyone == everyone[0]).all(0), strict=True) if not same]

    def check_same(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Refuse to go on where tensors are not the same, bit for bit, in all processes.

        Raises
        ------
        ProcessesDifferError
            Names the first such tensor.
        """
        apart = self.differing(tensors)
        if apart:
            raise ProcessesDifferError(
                f'{when} the processes hold different values of "{apart[0]}"'
                + (f" and {len(apart) - 1} more" if len(apart) > 1 else "")
                + "; give all of them the same data, settings, seed and first weights, and the same kind of machine"
            )

    def exchange(self, scale: float = 1.0) -> Exchange | None:
        """Return what a balancer is told; None: it sees the whole batch, unscaled."""
        if self.size == 1 and scale == 1.0:
            return None
        return Exchange(self.sum, grams=self.summed_grams or self.size == 1, scale=scale)


@contextmanager
def join_processes(
    *, time_out: float = 600.0, backend: str | None = None, summed_grams: bool = False, sharded: bool = False
) -> Iterator[Processes]:
    """Join the processes that a launcher started, and part at the end.

    Parameters
    ----------
    time_out
        Seconds after which a process that does not answer is given up.
    backend
        ``"nccl"`` or ``"gloo"``; None: nccl where PyTorch finds CUDA, gloo elsewhere.
    summed_grams
        Compare parameter gradients by summed Gram matrices: cheaper, approximate
        (:class:`~polytask.balance.exchange.Exchange`).
    sharded
        Spread weights, gradients and the optimiser's state over the processes, for networks that are too large for one
        (:mod:`polytask.train.sharding`); with loss weightings only.

    Raises
    ------
    InputError
        Where no launcher set the environment.
    ProcessLostError
        Where the others do not come within ``time_out``.

    A group that exists already is used as it is, with its own time-out, and left alone.
    """
    if not time_out > 0:
        raise InputError(f"time_out is {time_out}; give a number of seconds > 0")
    own = not dist.is_initialized()
    cuda = torch.cuda.is_available() and (dist.get_backend() if not own else backend or "nccl") == "nccl"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if own:
        missing = [name for name in _ENVIRONMENT if name not in os.environ]
        if missing:
            raise InputError(
                f"{missing[0]} is not in the environment; start the script with "
                "torchrun --nproc-per-node N script.py, which sets it"
            )
        try:
            dist.init_process_group(
                backend or ("nccl" if cuda else "gloo"),
                timeout=timedelta(seconds=time_out),
                device_id=device if cuda else None,
            )
        except RuntimeError as error:
            raise ProcessLostError(f"the processes did not come together within {time_out:g} s: {error}") from error
    try:
        yield Processes(
            dist.get_rank(), dist.get_world_size(), device=device, summed_grams=summed_grams, sharded=sharded
        )
    finally:
        if own:
            dist.destroy_process_group()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, torch.split(flat, [each.numel() for each in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _digest(name: str, tensor: Tensor) -> int:
    plain = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    text = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    return int.from_bytes(hashlib.blake2b(text + plain.tobytes(), digest_size=8).digest(), "little", signed=True)
