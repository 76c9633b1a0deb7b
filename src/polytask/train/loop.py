"""The one training loop: minibatches with missing labels, early stopping, exact resume.

Each step draws a batch (:mod:`polytask.train.batches`), asks the network for the scores of all tasks as one
tensor, the loss for one number per task, and the balancer for gradients; then it clips, steps
(AdamW) and lets the network apply what its penalty needs. No step loops over tasks in Python.

After every epoch the validation loss of each task is divided by that of the best constant of the training
labels. A network whose tasks depend on each other stops on the mean over tasks and keeps the
weights of its best epoch. In :class:`~polytask.deep.single.SingleTask` the tasks are T models that
happen to be computed together, so each task stops by itself and keeps its own slice of the stacked
weights at its own best epoch; a task that stopped is not computed any more, and its learning curve stays
at its last value.

A network may grow (:meth:`~polytask.deep.base.SharingNetwork.grow`) after an epoch that ends a phase: from the
weights of its best epoch, which growth does not change the scores of, with the optimiser's state of the
branches that new ones copy; early stopping then counts anew. A network may also ask for its tasks in
groups, one after the other (:meth:`~polytask.deep.base.SharingNetwork.task_order`).

Same data, settings and seed give the same weights, bit for bit on one machine with one number of
threads (on CUDA as far as its kernels are deterministic); a run that was killed and started again
ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytask.balance.base import Balancer, GradientBalancer, GramBalancer, LossBalancer
from polytask.balance.features import Features, LinearHeads
from polytask.core.data import TaskData
from polytask.core.errors import InputError, PolytaskError, unknown
from polytask.core.learner import Progress
from polytask.core.scaling import TargetScaler
from polytask.core.task import Floats
from polytask.deep.base import HeldOut, ParameterGroup, SharingNetwork
from polytask.deep.heads import MultiTaskLoss
from polytask.deep.single import SingleTask
from polytask.train import checkpoint as disk
from polytask.train.average import AveragedWeights
from polytask.train.batches import Batch, Placed, Share
from polytask.train.groups import groups_of
from polytask.train.interruptions import is_out_of_memory, patient_interrupt
from polytask.train.left_out import LeftOut
from polytask.train.parallel import Processes
from polytask.train.precision import Precision
from polytask.train.record import Recorder, Several
from polytask.train.sampling import DrawnTasks, make_sampler
from polytask.train.sequence import TaskSampler
from polytask.train.settings import TrainSettings as TrainSettings
from polytask.train.sharding import check_spreadable, gathered, is_part, spread, spread_network, whole
from polytask.train.stopping import EarlyStopping, constant_losses
from polytask.train.undo import Undo

_SEEDS = 0x9E3779B97F4A7C15
"""Spreads the seeds of processes."""


Seen = tuple[Tensor, Tensor]
"""Labels of each task in a part of a batch, and how many labels count as one mean, ``(T,)``."""


class DivergedError(PolytaskError, RuntimeError):
    """The loss of a task stopped being a finite number."""


class OutOfMemoryError(PolytaskError, MemoryError):
    """A step needs more memory than there is."""


@dataclass(frozen=True)
class Fitted:
    """What a fit gives back.

    Attributes
    ----------
    network, balancer
        The network with the weights of the best epoch, in evaluation mode; the balancer as training left it.
    scaler
        How regression targets were standardised.
    trained
        Which tasks had a training label, ``(T,)``.
    train_curve, valid_curve
        Mean loss of each task in each epoch, ``(E, T)``, standardised targets; NaN where there was no label.
        The training loss is the running mean over the epoch's batches.
    best_epoch
        Epoch (from 0) whose weights each task has, ``(T,)``; -1 when there was nothing to train.
    """

    network: SharingNetwork
    balancer: Balancer
    scaler: TargetScaler
    trained: np.ndarray[Any, np.dtype[np.bool_]]
    train_curve: Floats
    valid_curve: Floats
    best_epoch: np.ndarray[Any, np.dtype[np.int64]]


def pick_device(name: str) -> torch.device:
    """Return the device of a setting: ``"auto"`` is CUDA when there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(unknown("device", name, ["auto", "cpu", "cuda"]))
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f'device is "{name}" but PyTorch finds no CUDA here; use device="auto" or "cpu"')
    return torch.device(name)


def fit(
    network: SharingNetwork,
    balancer: Balancer,
    train: TaskData,
    valid: TaskData | None = None,
    *,
    settings: TrainSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    processes: Processes | None = None,
    record: Recorder | Sequence[Recorder] | None = None,
) -> Fitted:
    """Train a network on encoded data.

    Parameters
    ----------
    network
        Its tasks are those of ``train``. It is moved to the device and trained in place.
    balancer
        Turns the task losses into gradients; its own parameters are trained too.
    train, valid
        Encoded data. Without validation labels training runs for ``max_epochs`` and keeps the last weights.
    settings
        See :class:`TrainSettings`.
    seed
        Seed of batches and dropout, 0 or more (initial weights belong to the network).
    progress
        Called after every epoch.
    checkpoint
        Folder for checkpoints. A fit with the same settings, seed, data and first weights goes on from
        the one it finds there; others are left alone. Ctrl-C waits for the end of the step, writes a
        checkpoint and then raises KeyboardInterrupt; a second Ctrl-C does not wait. A step that runs out of memory is
        undone and the one before it written, in one process and unless the weights had begun to move.
    processes
        Those that train together (:func:`~polytask.train.parallel.join_processes`), each of which calls this with the
        same arguments; the first one writes checkpoints, which all must be able to read. None: this one alone. Where
        they spread their weights, ``network`` changes at the end only.
    record
        Notes one event per epoch (:mod:`polytask.train.record`), in the first process.

    Raises
    ------
    InputError
        Settings, tasks or inputs that do not fit together.
    DivergedError
        The loss of a task is not finite in an epoch, or in a step where ``on_nonfinite="stop"``; names task, step and
        rows.
    OutOfMemoryError
        There is not enough memory for a step; says how to need less, and from where the fit can go on.
    DiskError
        A checkpoint cannot be written.
    ProcessLostError
        Another process ended or does not answer; the last checkpoint can be used.
    ProcessesDifferError
        The processes were given different things, or do not hold the same weights after an epoch.
    """
    processes = processes or Processes()
    settings = settings or TrainSettings()
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or a positive number")
    if [task.name for task in network.tasks] != list(train.names):
        raise InputError(f"the network has the tasks {[t.name for t in network.tasks]}, the data {list(train.names)}")
    if valid is not None and valid.names != train.names:
        raise InputError(f"train has the tasks {list(train.names)}, valid {list(valid.names)}; they must be the same")
    ours = processes.size > 1 and settings.device == "auto"
    device = processes.device if ours else pick_device(settings.device)
    one_trunk = type(network).scores_and_features is not SharingNetwork.scores_and_features
    balancer.check(
        network.shared_parameters(), features=one_trunk, network=type(network).__name__, apart=_apart(settings)
    )
    given = network
    if processes.sharded:
        check_spreadable(network, balancer, settings)
        processes.check_same(network.state_dict(), "before the first step")
        network = spread_network(network, device, processes.size)
    own_seed = (seed + processes.rank * _SEEDS) % 2**63
    with torch.random.fork_rng(devices=_cuda_index(device)):
        torch.default_generator.manual_seed(own_seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own_seed)
        loop = _Loop(
            network.to(device), balancer.to(device), train, valid, settings, seed, device, checkpoint, processes
        )
        loop.resume()
        if processes.rank == 0:
            loop.note_to(Several(record) if isinstance(record, Sequence) else record)
        with (
            patient_interrupt(checkpoint is not None) as interrupted,
            loop.short_of_memory(),
            processes.told_if_lost(),
        ):
            stop, first = False, processes.rank == 0
            try:
                while loop.advance():
                    if loop.step == 0 and progress is not None and first:
                        progress(f"epoch {loop.epoch} of {settings.max_epochs}", loop.epoch / settings.max_epochs)
                    stop, due = processes.any(interrupted(), loop.due())
                    if stop:
                        raise KeyboardInterrupt
                    if due:
                        loop.save()
                (stop,) = processes.any(interrupted())
                if stop:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                if stop or processes.size == 1:  # what one process alone decides, the others do not wait for
                    loop.save()
                raise
        loop.finish()
        loop.note("end")
        if processes.sharded:
            loop.gather_into(given)
    if progress is not None and first:
        progress(f"stopped after {loop.epoch} epochs", 1.0)
    return loop.fitted()


class _Loop:
    """State of a fit; it is whole (could be saved) whenever :meth:`advance` returns, and can be made so in a step."""

    def __init__(
        self,
        network: SharingNetwork,
        balancer: Balancer,
        train: TaskData,
        valid: TaskData | None,
        settings: TrainSettings,
        seed: int,
        device: torch.device,
        checkpoint: Path | None,
        processes: Processes | None = None,
    ) -> None:
        self.network, self.balancer, self.settings, self.device = network, balancer, settings, device
        self.processes = processes or Processes()
        self.precision = Precision(settings.precision, device)
        dtype = next(network.parameters()).dtype
        self.loss = MultiTaskLoss(network.tasks).to(device)
        self.scaler = TargetScaler.fit(train)
        self.train = Placed(train, self.scaler, device, dtype)
        self.valid = None if valid is None else Placed(valid, self.scaler, device, dtype)
        self.each_stops = isinstance(network, SingleTask)
        order = network.task_order()
        own_rows = settings.own_rows if settings.sampling is None else settings.sampling == "round"
        if own_rows is None:
            sparse = train.one_task_per_row or 2 * self.train.sizes.sum() < train.n_rows * len(train.tasks)
            own_rows = sparse and network.has_towers()
        # tasks in an order of their own see the rows with their labels only
        self.own_rows = bool(own_rows) and order is None
        self.looks_at_features = isinstance(balancer, GradientBalancer) and not self.own_rows
        alike = None if settings.groups is None else groups_of(train, settings.groups)
        self.sampler = make_sampler(self.train, settings, order, own_rows=self.own_rows, seed=seed, groups=alike)
        number, size = self.processes.rank, self.processes.size
        cuts = settings.accumulate * size
        self.shares = [Share(part * size + number, cuts) for part in range(settings.accumulate)]
        self.splits = cuts > 1
        if self.splits and self.sampler.steps and self.sampler.fewest < 2 * cuts:
            raise InputError(
                f"some batch has {self.sampler.fewest} rows, too few for {size} processes with accumulate="
                f"{settings.accumulate}; use fewer, a larger batch_size or a smaller least_steps (now "
                f"{settings.least_steps})"
            )
        self.weighs_first = settings.accumulate > 1 and isinstance(balancer, LossBalancer) and not balancer.constant
        usual = torch.from_numpy(self.sampler.labels / max(1, self.sampler.steps)).to(device, dtype)
        self.usual = usual.clamp(min=1e-9) if settings.missing == "unbiased" else None
        n_tasks = len(train.tasks)
        self.epoch = self.step = 0
        self.sums, self.counts = torch.zeros(2, n_tasks, device=device, dtype=dtype)
        self.left_out = LeftOut(self.train.names, device)
        self.curves: list[Tensor] = []  # (2, T) per epoch: train, valid
        self.stopping = EarlyStopping(
            constant_losses(train, valid, self.scaler),
            each=self.each_stops,
            patience=settings.patience,
            trained=self.train.sizes > 0,
        )
        self.average = None if settings.average is None else AveragedWeights(network, settings.average)
        self.best_weights = self.snapshot()
        self.gather_parameters({})
        self.running: tuple[Tensor, list[int], Tensor] | None = None
        self.skip_stopped()
        self.record: Recorder | None = None
        self.used, self.uses = torch.zeros(2, n_tasks, device=device, dtype=dtype)
        self.whole = True
        self.undo: Callable[[], None] | None = None
        self.path: Path | None = None
        if checkpoint is not None or self.processes.size > 1:
            facts = {
                "settings": asdict(replace(settings, checkpoint_seconds=0.0, accumulate=1, on_nonfinite="drop")),
                "processes": self.processes.size,
                "seed": seed,
                "tasks": [task.describe() for task in train.tasks],
                "network": type(network).__name__,
                "balancer": [type(balancer).__name__, _plain_settings(balancer)],
                "torch": torch.__version__,
                "device": device.type,
            }
            first = {**whole(network.state_dict()), **disk.flatten("balancer", balancer.state_dict())}
            arrays = [{name: value.detach().cpu().numpy() for name, value in first.items()}]
            arrays += [dict(part.describe()) for part in (self.train, self.valid) if part is not None]
            arrays += [] if alike is None else [{"groups": alike.of_row}]
            told = disk.fingerprint(facts, arrays)
            self.path = None if checkpoint is None else checkpoint / f"fit-{told}.safetensors"
            given = {"data, settings or seed": torch.tensor(list(told.encode())), **first}
            self.processes.check_same(given, "before the first step")
        self.began = self.saved = time.monotonic()

    def gather_parameters(self, state: Mapping[Tensor, Any]) -> None:
        """List the parameters and build the optimiser; ``state`` is kept of those that already were there."""
        named = [(name, value) for name, value in self.network.named_parameters() if value.requires_grad]
        self.shared = self.network.shared_parameters()
        known = {id(value) for value in self.shared}
        self.private = [value for _, value in named if id(value) not in known]
        self.parameters = [value for _, value in named]
        self.separate = not self.shared and all(len(value) == self.train.n_tasks for value in self.parameters)
        self.optimiser = torch.optim.AdamW(self.groups(named), lr=self.settings.learning_rate, fused=True)
        for group in self.optimiser.param_groups:
            for value in group["params"]:
                if value in state:
                    self.optimiser.state[value] = state[value]

    def groups(self, named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Return the optimiser's groups: one per scale of the learning rate and decay, so that few calls step all."""
        biases = {id(value) for name, value in named if "bias" in name.rsplit(".", 1)[-1]}
        balancing = [value for value in self.balancer.parameters() if value.requires_grad]
        alike: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for group in [*self.network.parameter_groups(), ParameterGroup(balancing, weight_decay=False)]:
            for value in group.parameters:
                if value.requires_grad:
                    decays = group.weight_decay and id(value) not in biases
                    key = (group.learning_rate_scale, self.settings.weight_decay if decays else 0.0, is_part(value))
                    alike.setdefault(key, []).append(value)
        return [
            {"params": values, "weight_decay": decay, "scale": scale} for (scale, decay, _), values in alike.items()
        ]

    # -- one step, one epoch ------------------------------------------------------------------

    def advance(self) -> bool:
        """Do one step and, after an epoch's last, evaluate; return False when training is over."""
        if self.over():
            return False
        if self.sampler.epoch != self.epoch:
            self.sampler.start(self.epoch)
            self.network.train()
        if self.step < self.sampler.steps:
            undo = None if self.path is None else self.undoing()
            self.whole, self.undo = False, undo
            self.update()
            self.step += 1
            self.whole, self.undo = True, None
        if self.step == self.sampler.steps:
            self.close_epoch()
        return True

    def undoing(self) -> Callable[[], None]:
        """Return what puts back all that a step changes before the optimiser moves the weights."""

        def places() -> dict[str, Tensor]:
            return {
                **disk.flatten("network", dict(self.network.named_buffers())),
                **disk.flatten("balancer", self.balancer.state_dict()),
                **{name: getattr(self, name) for name in ("sums", "counts", "used", "uses")},
                "left out": self.left_out.counts,
            }

        tensors = Undo(places, self.device)
        scale, calm, first = self.precision.scale, self.precision.calm, dict(self.left_out.first)

        def undo() -> None:
            tensors.restore()
            self.precision.scale, self.precision.calm, self.left_out.first = scale, calm, first

        return undo

    def over(self) -> bool:
        return self.epoch >= self.settings.max_epochs or not self.sampler.steps or self.stopping.over()

    def update(self) -> None:
        settings = self.settings
        if isinstance(self.sampler, TaskSampler | DrawnTasks):
            tasks, first = self.sampler.tasks(self.step)
            self.run_only(tasks)
            if first:
                self.network.begin_tasks(tasks)
        done = self.epoch * self.sampler.steps + self.step
        rate = settings.rate(done, settings.max_epochs * self.sampler.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        parts = [self.sampler.batch(self.step, share) for share in self.shares]
        seen = self.labels_of(parts)
        self.optimiser.zero_grad()
        self.left_out.begin_step()
        given = self.weights_of(parts, seen) if self.weighs_first else None
        for batch, labels in zip(parts, seen, strict=True):
            present = self.balance(batch, labels, given)
        self.take_step(rate)
        if self.balancer.needs_second_look:
            again, counts = self.losses_of(parts, seen) if self.weighs_first else self.losses_of(parts[-1:], seen[-1:])
            self.balancer.after_step(again, present=(counts > 0) & present & again.isfinite())

    def losses_of(self, parts: list[Batch], seen: list[Seen | None]) -> tuple[Tensor, Tensor]:
        """Return the losses and labels of some parts of a batch together, ``(T,)``, without gradient."""
        with torch.no_grad():
            found = []
            for batch, labels in zip(parts, seen, strict=True):
                mine, counts, _ = self.measure(batch)
                found.append(self.join(mine, counts, labels)[1:3])
        losses, labelled = zip(*found, strict=True)
        return torch.stack(losses).mean(0), torch.stack(labelled).sum(0)

    def weights_of(self, parts: list[Batch], seen: list[Seen | None]) -> tuple[Tensor, Tensor]:
        """Return a loss weighting's weights for the losses of all parts, and which tasks take part, ``(T,)``.

        What the balancer learns gets its gradient here, times the number of parts, over which gradients are averaged.
        """
        undo = Undo(lambda: dict(self.network.named_buffers()), self.device)
        losses, counts = self.losses_of(parts, seen)
        undo.restore()  # the parts see the same masks again, and running means move once
        if not bool(losses.isfinite().all()):
            self.meet_nonfinite(losses)
        present = (counts > 0) & losses.isfinite()
        used = self.balancer.backward(losses.requires_grad_(), [], [], present=present)
        for value in self.balancer.parameters():
            if value.grad is not None:
                value.grad *= len(parts)
        return used, present

    def balance(self, batch: Batch, seen: Seen | None, given: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Add the balanced gradients of one part of a batch and return which tasks took part, ``(T,)``.

        With ``given`` weights, and tasks that take part, the balancer is not asked.
        """
        kept = None if given is None else given[1]
        losses, counts, features = self.measure(batch, balance=True, kept=kept)
        losses, values, counts, unit = self.join(losses, counts, seen, kept)
        finite = values.isfinite()
        if not bool(finite.all()):
            self.meet_nonfinite(values)
            kept = finite if kept is None else kept & finite
            losses, counts, features = self.measure(batch, balance=True, kept=kept)
            losses, values, counts, unit = self.join(losses, counts, seen, kept)
        if given is None:
            exchange = self.processes.exchange(self.precision.scale)
            more = {} if exchange is None else {"exchange": exchange}
            used = self.balancer.backward(
                losses, self.shared, self.private, present=counts > 0, features=features, **more
            )
        else:
            used = given[0].masked_fill(counts == 0, 0.0)
            losses.backward(used)  # type: ignore[no-untyped-call]  # torch's is
        if self.record is not None:
            self.used += used
            self.uses += counts > 0
        self.sums += values * unit
        self.counts += counts
        return counts > 0 if given is None else given[1]

    def meet_nonfinite(self, losses: Tensor) -> None:
        """Count the tasks whose loss ``(T,)`` is not finite and tell where that was; or stop, before weights change."""
        batch = self.sampler.batch(self.step)  # of all parts and processes
        for loss in self.left_out.meet(losses, batch, f"step {self.step + 1} of epoch {self.epoch + 1}"):
            if self.settings.on_nonfinite == "stop":
                self.save()
                raise DivergedError(
                    f'the loss of task "{loss.task}" is {loss.value} in {loss.where}; look for extreme values there, '
                    f"lower learning_rate ({self.settings.learning_rate:g}), or leave the task out of such steps: "
                    'on_nonfinite="drop" (--on-nan drop)'
                )
            if loss.new:
                facts = {"task": loss.task, "epoch": self.epoch + 1, "step": self.step + 1}
                self.note("left out", {**facts, "rows": loss.rows, "n_rows": loss.n_rows})

    def labels_of(self, parts: list[Batch]) -> list[Seen | None]:
        """Count the labels of each part of a step, over processes; None where the one part is all there is."""
        if not self.splits and self.usual is None:
            return [None]
        mask = True if self.running is None else self.running[2]
        counts = self.processes.sum(torch.stack([(part.present & mask).sum(1) for part in parts]))
        unit = counts.sum(0).clamp(min=1).to(self.sums) if self.usual is None else self.usual
        return [(labels, unit / len(parts)) for labels in counts]

    def join(
        self, losses: Tensor, counts: Tensor, seen: Seen | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make means over this process's labels parts of those that count.

        Returns
        -------
        losses, values, counts, unit
            The parts, their sum over processes without gradient, the labels of all processes, and the number of labels
            by which sums of losses were divided, all ``(T,)``.
        """
        if seen is None:
            return losses, losses.detach(), counts, counts
        labels, unit = seen
        losses = losses * (counts / unit).to(losses)
        return losses, self.processes.sum(losses.detach()), labels if kept is None else labels * kept, unit

    def take_step(self, rate: float) -> None:
        """Step along the gradients of all parts and processes, unless half precision overflowed."""
        self.processes.sum_gradients(self.parameters)
        if len(self.shares) > 1:
            for value in self._optimised():
                if value.grad is not None:
                    value.grad /= len(self.shares)
        if not self.precision.unscale(self.parameters):
            return
        self.network.penalty_gradient()
        if self.settings.clip is not None:
            (_clip_each if self.separate else nn.utils.clip_grad_norm_)(self.parameters, self.settings.clip)
        self.undo = None
        self.optimiser.step()
        self.network.after_step(rate)
        if self.average is not None:
            self.average.update(self.network)

    def measure(
        self, batch: Batch, *, balance: bool = False, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Features | None]:
        """Return each task's mean loss and number of labels, ``(T,)``; tasks that stopped are not computed.

        With ``balance`` comes the last shared representation, for a balancer that looks at it. Tasks
        outside ``kept`` ``(T,)`` have no label.
        """
        present = batch.present if kept is None else batch.present & kept[:, None]
        features: Features | None = None
        with self.precision.forward():
            if self.running is not None:
                index, numbers, mask = self.running
                inputs = {name: array[index] for name, array in batch.inputs.items()} if self.own_rows else batch.inputs
                some = self.network.all_scores(inputs, self.own_rows, only=numbers)
                scores = some.new_zeros(self.train.n_tasks, *some.shape[1:]).index_copy(0, index, some)
                present = present & mask
            elif balance and self.looks_at_features and (found := self.network.scores_and_features(batch.inputs)):
                scores, shared, weight = found
                features = LinearHeads(shared, scores, weight)
            else:
                scores = self.network.all_scores(batch.inputs, self.own_rows)
        scores = self.precision.full(scores, scaled=balance)
        return self.loss(scores, batch.targets, present), present.sum(1), features

    def run_only(self, tasks: list[int] | None) -> None:
        """Compute these tasks only from now on; None: all."""
        self.running = None
        if tasks is not None:
            index = torch.tensor(tasks, dtype=torch.int64, device=self.device)
            mask = torch.zeros(self.train.n_tasks, 1, dtype=torch.bool, device=self.device)
            self.running = (index, tasks, mask.index_fill(0, index, True))

    def skip_stopped(self) -> None:
        """Note which tasks still train, where each stops by itself; None stands for all."""
        some = self.each_stops and bool(self.stopping.stopped.any())
        self.run_only(torch.nonzero(~self.stopping.stopped).flatten().tolist() if some else None)

    def close_epoch(self) -> None:
        train = self.sums / self.counts  # no label: 0 / 0
        self.skip_stopped()
        if self.processes.size > 1:
            self.processes.average(dict(self.network.named_buffers()))
        with nullcontext() if self.average is None else self.average.in_place(self.network):
            valid = self.valid_losses()
            self.whole = False
            curve = torch.stack([train, valid]).double().cpu()
            if self.each_stops and self.curves:
                curve = torch.where(self.stopping.stopped, self.curves[-1], curve)
            self.check_finite(curve)
            improved = self.stopping.judge(curve[1].numpy(), self.epoch)
            self.keep(improved)
        self.skip_stopped()
        self.curves.append(curve)
        self.note("epoch")
        self.sums.zero_()
        self.counts.zero_()
        self.balancer.end_epoch()
        self.epoch, self.step = self.epoch + 1, 0
        self.network.end_epoch()
        epochs, stalled = self.epoch - self.stopping.phase, self.stopping.over()
        judged = self.valid is not None and bool(self.valid.sizes.any())
        if judged and self.epoch < self.settings.max_epochs and self.network.ready_to_grow(epochs, stalled):
            self.begin_phase()
        if self.processes.size > 1:
            state = {**self.network.state_dict(), **disk.flatten("balancer", self.balancer.state_dict())}
            self.processes.check_same({**state, "learning curve": curve}, f"after epoch {self.epoch}")
        self.whole = True

    def begin_phase(self) -> None:
        """Let the network grow from the weights of its best epoch and, if it does, give it a new lease of patience."""
        current, before = self.snapshot(), self.best_weights
        self.network.load_state_dict(before)
        origins = self.network.grow(self.held_out())
        self.best_weights = self.snapshot()
        if origins is None:  # training goes on where it was; what the network noted stays
            noted = {name: value for name, value in self.best_weights.items() if not value.equal(before[name])}
            self.network.load_state_dict({**current, **noted})
            if self.average is not None:
                self.average.load(noted)
            return
        if self.average is not None:
            self.average = AveragedWeights(self.network, self.average.decay, self.average.steps)
        state: dict[Tensor, Any] = dict(self.optimiser.state)
        for new, (old, branches) in origins.items():
            state[new] = _branches_of(state.get(old, {}), old, branches)
        self.gather_parameters(state)
        self.stopping.begin_phase(self.epoch)

    def held_out(self) -> HeldOut:
        assert self.valid is not None
        self.network.eval()
        with torch.no_grad():
            parts = [
                (self.network.all_scores(batch.inputs), batch.targets, batch.present)
                for batch in self.valid.everything(own_rows=False)
            ]
        scores, targets, present = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return HeldOut(scores, targets, present)

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def valid_losses(self) -> Tensor:
        """Return the mean validation loss of each task, ``(T,)``; NaN where it has no label."""
        found = torch.zeros(2, self.train.n_tasks, device=self.device, dtype=self.sums.dtype)
        sums, counts = found
        if self.valid is not None:
            self.network.eval()
            batches = self.valid.everything(self.own_rows)
            with torch.no_grad(), gathered(self.network):
                for batch in islice(batches, self.processes.rank, None, self.processes.size):
                    losses, number, _ = self.measure(batch)
                    sums += losses * number
                    counts += number
        sums, counts = self.processes.sum(found)
        return sums / counts

    def check_finite(self, curve: Tensor) -> None:
        trained = self.train.sizes
        if isinstance(self.sampler, DrawnTasks):  # a task that no step drew has no training loss
            trained = trained * (self.left_out.counts > 0).cpu().numpy()
        sizes = [trained, np.zeros_like(self.train.sizes) if self.valid is None else self.valid.sizes]
        bad = ~np.isfinite(curve.numpy()) & (np.stack(sizes) > 0) & (self.train.sizes > 0)
        if bad.any():
            part, task = (int(i) for i in np.argwhere(bad)[0])
            name = self.train.names[task]
            told = self.left_out.first
            first = f", first in {told[name]}" if part == 0 and name in told else ""
            raise DivergedError(
                f'the {("training", "validation")[part]} loss of task "{name}" is '
                f"{curve[part, task].item()} in epoch {self.epoch + 1}{first}; lower learning_rate "
                f"({self.settings.learning_rate:g}) or look for extreme values in its inputs or targets"
            )

    # -- what is noted ------------------------------------------------------------------------

    def note_to(self, record: Recorder | None) -> None:
        self.record = record
        self.note("start")

    def note(self, event: str, more: Mapping[str, Any] | None = None) -> None:
        """Hand an event to the recorder, if there is one; an epoch's with what is known of its tasks."""
        if self.record is None:
            return
        facts: dict[str, Any] = {"event": event, "epoch": self.epoch, "seconds": time.monotonic() - self.began}
        if event == "epoch":
            train, valid = self.curves[-1].numpy()
            facts |= {
                "epoch": self.epoch + 1,
                "step": (self.epoch + 1) * self.sampler.steps,
                "learning_rate": self.optimiser.param_groups[0]["lr"] / self.optimiser.param_groups[0]["scale"],
                "train": self.by_task(train),
                "valid": self.by_task(valid),
                "explained": self.by_task(1 - valid / self.stopping.constant_loss),
                "weights": self.by_task((self.used / self.uses).double().cpu().numpy()),
                "cosines": self.cosines(),
                "left_out": self.left_out.by_task(),
            }
            self.used.zero_()
            self.uses.zero_()
        facts |= more or {}
        self.record.write({name: value for name, value in facts.items() if value != {}})

    def by_task(self, values: np.ndarray[Any, Any]) -> dict[str, Any]:
        pairs = zip(self.train.names, values.tolist(), strict=True)
        return {name: value for name, value in pairs if np.isfinite(value)}

    def cosines(self) -> dict[str, float]:
        """Return the cosines between the gradients that the balancer last looked at."""
        if not isinstance(self.balancer, GramBalancer) or self.balancer.latest is None:
            return {}
        gram, tasks = self.balancer.latest
        length = gram.diagonal().sqrt()
        cosines = (gram / length / length[:, None]).tolist()
        names = [self.train.names[task] for task in tasks]
        return {
            f"{names[i]} | {names[j]}": cosines[i][j]
            for i in range(len(names))
            for j in range(i)
            if np.isfinite(cosines[i][j])
        }

    # -- the best epoch ------------------------------------------------------------------------

    def keep(self, improved: Tensor) -> None:
        """Copy the weights of what improved."""
        if not bool(improved.any()):
            return
        everything = bool(improved.all())
        chosen = improved.to(self.device)
        for name, value in self.network.state_dict().items():
            if everything or not value.ndim or len(value) != self.train.n_tasks:
                self.best_weights[name].copy_(value)
            else:
                self.best_weights[name][chosen] = value[chosen]

    def finish(self) -> None:
        """Put the best weights in place, after a last checkpoint of a long fit."""
        if self.saved > self.began or self.processes.any(self.due())[0]:
            self.save()
        self.network.load_state_dict(self.best_weights)
        self.network.eval()
        self.left_out.warn(self.epoch * self.sampler.steps)

    def gather_into(self, network: SharingNetwork) -> None:
        """Put the weights that are spread over processes into a whole network, and go on with that."""
        network.to(self.device).load_state_dict(whole(self.network.state_dict()))
        network.eval()
        self.network = network

    def fitted(self) -> Fitted:
        curves = torch.stack(self.curves).numpy() if self.curves else np.zeros((0, 2, self.train.n_tasks))
        best = self.stopping.best_epoch.expand(self.train.n_tasks).numpy().copy()
        return Fitted(self.network, self.balancer, self.scaler, self.train.sizes > 0, curves[:, 0], curves[:, 1], best)

    # -- checkpoints --------------------------------------------------------------------------

    def due(self) -> bool:
        """Say whether it is time for a checkpoint; the first process tells the others."""
        writes = self.path is not None and self.processes.rank == 0
        return writes and time.monotonic() - self.saved >= self.settings.checkpoint_seconds

    def save(self) -> None:
        """Write a checkpoint of the last finished step; there is none once a step has begun to move the weights."""
        if self.path is None or not (self.whole or self.undo):
            return
        if self.undo is not None:
            self.undo()
            self.whole, self.undo = True, None
        buffers = dict(self.network.named_buffers())
        own = {name: self.processes.gather(buffers[name]) for name in self.processes.differing(buffers)}
        random = self.processes.gather(torch.get_rng_state())
        on_device = self.device.type == "cuda"
        random_cuda = self.processes.gather(torch.cuda.get_rng_state(self.device)) if on_device else None
        self.saved = time.monotonic()
        tensors = {
            **disk.flatten("network", self.network.state_dict()),
            **disk.flatten("balancer", self.balancer.state_dict()),
            **disk.flatten("best", self.best_weights),
            **disk.flatten("own", own),
            "random/cpu": random,
            **self.stopping.state(),
            "epoch/sums": self.sums,
            "epoch/counts": self.counts,
            "epoch/used": self.used,
            "epoch/uses": self.uses,
            "dropped": self.left_out.counts,
            "curves": torch.stack(self.curves) if self.curves else torch.zeros(0, 2, self.train.n_tasks).double(),
        }
        if random_cuda is not None:
            tensors["random/cuda"] = random_cuda
        if self.average is not None:
            tensors |= disk.flatten("average", self.average.values)
        for number, value in enumerate(self._optimised()):
            tensors |= disk.flatten(f"optimiser/{number}", self.optimiser.state.get(value, {}))
        tensors = whole(tensors)
        if self.processes.rank > 0:
            return
        facts: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "phase": self.stopping.phase}
        if self.left_out.first:
            facts["first_dropped"] = self.left_out.first
        if self.precision.scales:
            facts |= {"scale": int(self.precision.scale), "calm": self.precision.calm}
        if self.average is not None:
            facts["averaged"] = self.average.steps
        disk.write(self.path, tensors, facts)

    def resume(self) -> None:
        """Go on from the checkpoint of this very fit, if there is one."""
        found = None if self.path is None else disk.read(self.path)
        place = [-1] if found is None else [int(found[1][name]) for name in ("epoch", "step", "phase")]
        self.processes.check_same({"the checkpoint folder": torch.tensor(place)}, "before the first step")
        if found is None:
            return
        tensors, facts = found
        like = self.network.state_dict()
        self.network.load_state_dict(spread(disk.under("network", tensors, self.device), like))
        for name, values in disk.under("own", tensors, self.device).items():  # such as batch norm's running means
            self.network.get_buffer(name).copy_(values[self.processes.rank])
        self.gather_parameters({})  # a network that grew has others than at the start
        self.balancer.load_state_dict(disk.under("balancer", tensors, self.device))
        self.best_weights = spread(disk.under("best", tensors, self.device), like)
        for number, value in enumerate(self._optimised()):
            state = disk.under(f"optimiser/{number}", tensors, self.device)
            if state:
                self.optimiser.state[value] = spread(state, dict.fromkeys(state, value))
        self.stopping.load(tensors, int(facts["phase"]))
        self.skip_stopped()
        self.sums, self.counts = tensors["epoch/sums"].to(self.device), tensors["epoch/counts"].to(self.device)
        self.used, self.uses = tensors["epoch/used"].to(self.device), tensors["epoch/uses"].to(self.device)
        self.left_out.counts = tensors["dropped"].to(self.device)
        self.left_out.first = dict(facts.get("first_dropped", {}))
        self.curves = list(tensors["curves"])
        self.epoch, self.step = int(facts["epoch"]), int(facts["step"])
        if self.precision.scales:
            self.precision.scale, self.precision.calm = float(facts["scale"]), int(facts["calm"])
        if self.average is not None:
            self.average = AveragedWeights(self.network, self.average.decay, int(facts["averaged"]))
            self.average.load(disk.under("average", tensors, self.device))
        torch.set_rng_state(tensors["random/cpu"][self.processes.rank].clone())
        if self.device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"][self.processes.rank].clone(), self.device)

    @contextmanager
    def short_of_memory(self) -> Iterator[None]:
        """Write the last finished step where memory runs out, if that can be done, and say how to go on."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # what the step had computed
            self.optimiser.zero_grad()
            self.rescue()
            parts, stepping = self.settings.accumulate, self.step < self.sampler.steps
            place = f"step {self.step + 1}" if stepping else "the validation"
            remedy = f"with accumulate={2 * parts}, which needs about half as much" if stepping else "with more memory"
            written = self.path is not None and self.path.is_file()
            where = f"the checkpoint {self.path}" if written else "the start, since there is no checkpoint"
            raise OutOfMemoryError(
                f"out of memory in {place} of epoch {self.epoch + 1} (batches of {self.sampler.batch_size} rows, "
                f"accumulate={parts}); start the same fit again {remedy}; it goes on from {where}. "
                f"PyTorch says: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error

    def rescue(self) -> None:
        """Write the last finished step, if memory is left for that; several processes would have to agree on it."""
        if self.processes.size > 1:
            return
        try:
            self.save()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise

    def _optimised(self) -> Iterator[nn.Parameter]:
        for group in self.optimiser.param_groups:
            yield from group["params"]


def _branches_of(state: Mapping[str, Tensor], old: nn.Parameter, branches: Tensor) -> dict[str, Tensor]:
    """Return an optimiser's state for copies of branches: they go on with the moments of what they copy.

    A stack counts its steps once; a branch that began with moments of zero would take too long first steps.
    """
    return {
        name: value.index_select(0, branches) if value.shape == old.shape else value.clone()
        for name, value in state.items()
    }


def _apart(settings: TrainSettings) -> str | None:
    """Return the setting with which tasks do not see the same rows in a step; None: they do."""
    if settings.own_rows:
        return "own_rows=True"
    return None if settings.sampling in (None, "rows", "balanced") else f'sampling="{settings.sampling}"'


def _plain_settings(balancer: Balancer) -> dict[str, Any]:
    """Return the balancer's settings that are plain values; what it remembers is part of its state."""
    kinds = (bool, int, float, str, type(None))
    return {
        name: value for name, value in sorted(vars(balancer).items()) if isinstance(value, kinds) and name[0] != "_"
    }


def _clip_each(parameters: list[nn.Parameter], limit: float) -> None:
    """Scale each task's slices of the stacked gradients to a norm of at most ``limit``."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    scale = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient *= scale.view(-1, *[1] * (gradient.ndim - 1))


def _cuda_index(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]
