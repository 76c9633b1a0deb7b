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

import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polytask.balance.base import Balancer, GradientBalancer
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
from polytask.train.batches import Batch, Placed, Sampler
from polytask.train.sequence import TaskSampler

SCHEDULES = ("constant", "cosine", "one-cycle")


class DivergedError(PolytaskError, RuntimeError):
    """The loss of a task stopped being a finite number."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; plain values only.

    Parameters
    ----------
    learning_rate
        Of AdamW; the peak, where the schedule changes it. A network may scale it for some of its parameters
        (:meth:`~polytask.deep.base.SharingNetwork.parameter_groups`).
    weight_decay
        Decoupled decay of weight matrices; biases, the balancer's parameters and those that the network
        exempts have none.
    batch_size
        Most rows per step; small tables get smaller batches (:class:`~polytask.train.batches.Sampler`).
    max_epochs
        Most passes over the training rows.
    patience
        Epochs without a better validation loss after which training stops.
    clip
        Largest Euclidean norm of the gradient, or of each task's where tasks share no parameters; None: no
        limit.
    schedule
        ``"constant"``, ``"cosine"`` (falls to 0 at ``max_epochs``) or ``"one-cycle"`` (rises over the
        first tenth from a 25th, then falls to 0).
    own_rows
        Whether each task draws its own batches. None: where each task has a tower of its own
        (:meth:`~polytask.deep.base.SharingNetwork.has_towers`) and fewer than half of (rows × tasks) are
        labelled, or each row carries one task's label.
    least_steps
        Steps an epoch has at least, as long as batches keep 8 rows.
    device
        ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    checkpoint_seconds
        Time between two checkpoints, in seconds; does not influence the result.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    max_epochs: int = 200
    patience: int = 20
    clip: float | None = 1.0
    schedule: str = "constant"
    own_rows: bool | None = None
    least_steps: int = 10
    device: str = "auto"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise InputError(unknown("schedule", self.schedule, SCHEDULES))
        for name in ("batch_size", "max_epochs", "patience", "least_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be positive or None, got {self.clip}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of one step of ``steps``."""
        if self.schedule == "constant":
            return self.learning_rate
        done = step / max(1, steps)
        if self.schedule == "one-cycle":
            if done < 0.1:
                return self.learning_rate * (0.04 + 0.96 * done / 0.1)
            done = (done - 0.1) / 0.9
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


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
        checkpoint and then raises KeyboardInterrupt; a second Ctrl-C does not wait.

    Raises
    ------
    InputError
        Settings, tasks or inputs that do not fit together.
    DivergedError
        The loss of a task is not finite; names task and epoch.
    DiskError
        A checkpoint cannot be written.
    """
    settings = settings or TrainSettings()
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or a positive number")
    if [task.name for task in network.tasks] != list(train.names):
        raise InputError(f"the network has the tasks {[t.name for t in network.tasks]}, the data {list(train.names)}")
    if valid is not None and valid.names != train.names:
        raise InputError(f"train has the tasks {list(train.names)}, valid {list(valid.names)}; they must be the same")
    one_trunk = type(network).scores_and_features is not SharingNetwork.scores_and_features and not settings.own_rows
    balancer.check(network.shared_parameters(), features=one_trunk, network=type(network).__name__)
    device = pick_device(settings.device)
    with torch.random.fork_rng(devices=_cuda_index(device)):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        loop = _Loop(network.to(device), balancer.to(device), train, valid, settings, seed, device, checkpoint)
        loop.resume()
        with _patient_interrupt(checkpoint is not None) as interrupted:
            try:
                while loop.advance():
                    if loop.step == 0 and progress is not None:
                        progress(f"epoch {loop.epoch} of {settings.max_epochs}", loop.epoch / settings.max_epochs)
                    if interrupted():
                        raise KeyboardInterrupt
                    loop.save_if_due()
                if interrupted():
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                loop.save()
                raise
        loop.finish()
    if progress is not None:
        progress(f"stopped after {loop.epoch} epochs", 1.0)
    return loop.fitted()


class _Loop:
    """State of a fit; it is whole (could be saved) whenever :meth:`advance` returns."""

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
    ) -> None:
        self.network, self.balancer, self.settings, self.device = network, balancer, settings, device
        self.loss = MultiTaskLoss(network.tasks).to(device)
        self.scaler = TargetScaler.fit(train)
        self.train = Placed(train, self.scaler, device)
        self.valid = None if valid is None else Placed(valid, self.scaler, device)
        self.each_stops = isinstance(network, SingleTask)
        own_rows = settings.own_rows
        if own_rows is None:
            sparse = train.one_task_per_row or 2 * self.train.sizes.sum() < train.n_rows * len(train.tasks)
            own_rows = sparse and network.has_towers() and network.task_order() is None
        self.own_rows = bool(own_rows)
        self.looks_at_features = isinstance(balancer, GradientBalancer) and not self.own_rows
        drawing: dict[str, Any] = {
            "batch_size": settings.batch_size,
            "seed": seed,
            "least_steps": settings.least_steps,
        }
        order = network.task_order()
        self.sampler: Sampler | TaskSampler
        if order is None:
            self.sampler = Sampler(self.train, own_rows=self.own_rows, **drawing)
        else:
            self.sampler = TaskSampler(self.train, order, **drawing)
        self.constant_loss = _constant_losses(train, valid, self.scaler)
        n_tasks, groups = len(train.tasks), len(train.tasks) if self.each_stops else 1
        self.epoch = self.step = self.phase = 0
        self.sums, self.counts = torch.zeros(2, n_tasks, device=device)
        self.dropped = torch.zeros(n_tasks, dtype=torch.int64, device=device)
        self.curves: list[Tensor] = []  # (2, T) per epoch: train, valid
        self.best = torch.full((groups,), torch.inf, dtype=torch.float64)
        self.best_epoch = torch.full((groups,), -1, dtype=torch.int64)
        self.stopped = torch.zeros(groups, dtype=torch.bool)
        if self.each_stops:
            self.stopped = torch.from_numpy(self.train.sizes == 0)
        self.best_weights = self.snapshot()
        self.gather_parameters({})
        self.running: tuple[Tensor, list[int]] | None = None
        self.skip_stopped()
        self.whole = True
        self.path: Path | None = None
        if checkpoint is not None:
            facts = {
                "settings": asdict(replace(settings, checkpoint_seconds=0.0)),
                "seed": seed,
                "tasks": [task.describe() for task in train.tasks],
                "network": type(network).__name__,
                "balancer": [type(balancer).__name__, _plain_settings(balancer)],
                "torch": torch.__version__,
                "device": device.type,
            }
            first = {**network.state_dict(), **disk.flatten("balancer", balancer.state_dict())}
            arrays = [{name: value.detach().cpu().numpy() for name, value in first.items()}]
            arrays += [dict(part.describe()) for part in (self.train, self.valid) if part is not None]
            self.path = checkpoint / f"fit-{disk.fingerprint(facts, arrays)}.safetensors"
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
        alike: dict[tuple[float, float], list[nn.Parameter]] = {}
        for group in [*self.network.parameter_groups(), ParameterGroup(balancing, weight_decay=False)]:
            for value in group.parameters:
                if value.requires_grad:
                    decays = group.weight_decay and id(value) not in biases
                    key = (group.learning_rate_scale, self.settings.weight_decay if decays else 0.0)
                    alike.setdefault(key, []).append(value)
        return [{"params": values, "weight_decay": decay, "scale": scale} for (scale, decay), values in alike.items()]

    # -- one step, one epoch ------------------------------------------------------------------

    def advance(self) -> bool:
        """Do one step and, after an epoch's last, evaluate; return False when training is over."""
        if self.over():
            return False
        if self.sampler.epoch != self.epoch:
            self.sampler.start(self.epoch)
            self.network.train()
        if self.step < self.sampler.steps:
            self.whole = False
            self.update()
            self.step += 1
            self.whole = True
        if self.step == self.sampler.steps:
            self.close_epoch()
        return True

    def over(self) -> bool:
        return self.epoch >= self.settings.max_epochs or not self.sampler.steps or bool(self.stopped.all())

    def update(self) -> None:
        settings = self.settings
        if isinstance(self.sampler, TaskSampler):
            tasks, first = self.sampler.tasks(self.step)
            self.running = (torch.tensor(tasks, device=self.device), tasks)
            if first:
                self.network.begin_tasks(tasks)
        batch = self.sampler.batch(self.step)
        done = self.epoch * self.sampler.steps + self.step
        rate = settings.rate(done, settings.max_epochs * self.sampler.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        losses, counts, features = self.measure(batch, balance=True)
        finite = losses.detach().isfinite()
        if not bool(finite.all()):
            losses, counts, features = self.measure(batch, balance=True, kept=finite)
            self.dropped += ~finite
        self.optimiser.zero_grad()
        self.balancer.backward(losses, self.shared, self.private, present=counts > 0, features=features)
        self.network.penalty_gradient()
        if settings.clip is not None:
            (_clip_each if self.separate else nn.utils.clip_grad_norm_)(self.parameters, settings.clip)
        self.optimiser.step()
        self.network.after_step(rate)
        if self.balancer.needs_second_look:
            with torch.no_grad():
                again, seen, _ = self.measure(batch)
            self.balancer.after_step(again, present=(seen > 0) & (counts > 0) & again.isfinite())
        self.sums += losses.detach() * counts
        self.counts += counts

    def measure(
        self, batch: Batch, *, balance: bool = False, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Features | None]:
        """Return each task's mean loss and number of labels, ``(T,)``; tasks that stopped are not computed.

        With ``balance`` comes the last shared representation, for a balancer that looks at it. Tasks
        outside ``kept`` ``(T,)`` have no label.
        """
        present = batch.present if kept is None else batch.present & kept[:, None]
        features: Features | None = None
        if self.running is not None:
            index, numbers = self.running
            inputs = {name: array[index] for name, array in batch.inputs.items()} if self.own_rows else batch.inputs
            some = self.network.all_scores(inputs, self.own_rows, only=numbers)
            scores = some.new_zeros(self.train.n_tasks, *some.shape[1:]).index_copy(0, index, some)
            present = present & torch.zeros_like(present[:, :1]).index_fill(0, index, True)
        elif balance and self.looks_at_features and (found := self.network.scores_and_features(batch.inputs)):
            scores, shared, weight = found
            features = LinearHeads(shared, scores, weight)
        else:
            scores = self.network.all_scores(batch.inputs, self.own_rows)
        return self.loss(scores, batch.targets, present), present.sum(1), features

    def skip_stopped(self) -> None:
        """Note which tasks still train, where each stops by itself; None stands for all."""
        self.running = None
        if self.each_stops and bool(self.stopped.any()):
            numbers = torch.nonzero(~self.stopped).flatten()
            self.running = (numbers.to(self.device), numbers.tolist())

    def close_epoch(self) -> None:
        train = self.sums / self.counts  # no label: 0 / 0
        self.skip_stopped()
        valid = self.valid_losses()
        curve = torch.stack([train, valid]).double().cpu()
        if self.each_stops and self.curves:
            curve = torch.where(self.stopped, self.curves[-1], curve)
        self.check_finite(curve)
        self.whole = False
        improved = self.judge(curve[1].numpy())
        self.keep(improved)
        self.skip_stopped()
        self.curves.append(curve)
        self.sums.zero_()
        self.counts.zero_()
        self.balancer.end_epoch()
        self.epoch, self.step = self.epoch + 1, 0
        self.network.end_epoch()
        epochs, stalled = self.epoch - self.phase, bool(self.stopped.all())
        judged = self.valid is not None and bool(self.valid.sizes.any())
        if judged and self.epoch < self.settings.max_epochs and self.network.ready_to_grow(epochs, stalled):
            self.begin_phase()
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
            return
        state: dict[Tensor, Any] = dict(self.optimiser.state)
        for new, (old, branches) in origins.items():
            state[new] = _branches_of(state.get(old, {}), old, branches)
        self.gather_parameters(state)
        self.phase = self.epoch
        self.stopped.fill_(False)

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
        sums, counts = torch.zeros(2, self.train.n_tasks, device=self.device)
        if self.valid is not None:
            self.network.eval()
            with torch.no_grad():
                for batch in self.valid.everything(self.own_rows):
                    losses, number, _ = self.measure(batch)
                    sums += losses * number
                    counts += number
        return sums / counts

    def check_finite(self, curve: Tensor) -> None:
        sizes = [self.train.sizes, np.zeros_like(self.train.sizes) if self.valid is None else self.valid.sizes]
        bad = ~np.isfinite(curve.numpy()) & (np.stack(sizes) > 0) & (self.train.sizes > 0)
        if bad.any():
            part, task = (int(i) for i in np.argwhere(bad)[0])
            raise DivergedError(
                f'the {("training", "validation")[part]} loss of task "{self.train.names[task]}" is '
                f"{curve[part, task].item()} in epoch {self.epoch + 1}; lower learning_rate "
                f"({self.settings.learning_rate:g}) or look for extreme values in its inputs or targets"
            )

    # -- early stopping -----------------------------------------------------------------------

    def judge(self, valid: Floats) -> Tensor:
        """Compare with the best epoch so far and return which groups improved, ``(G,)``."""
        relative = valid / self.constant_loss
        if self.each_stops:
            score = torch.from_numpy(relative)
        else:
            seen = relative[np.isfinite(relative)]
            score = torch.tensor([seen.mean() if len(seen) else np.nan], dtype=torch.float64)
        blind = score.isnan()
        improved = ~self.stopped & (blind | (score < self.best))
        self.best = torch.where(improved & ~blind, score, self.best)
        self.best_epoch = torch.where(improved, self.epoch, self.best_epoch)
        since = self.epoch - self.best_epoch.clamp(min=self.phase - 1)
        self.stopped |= (since >= self.settings.patience) & ~blind
        if not bool(blind.all()):  # tasks that cannot be judged stop with the last of the others
            self.stopped |= bool((self.stopped | blind).all())
        return improved

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
        if self.path is not None and (self.saved > self.began or self.due()):
            self.save()
        self.network.load_state_dict(self.best_weights)
        self.network.eval()
        for name, count in zip(self.train.names, self.dropped.tolist(), strict=True):
            if count:
                warnings.warn(
                    f'the loss of task "{name}" was not finite in {count} of {self.epoch * self.sampler.steps} steps, '
                    "which went on without it; look for extreme values in its targets, or lower learning_rate",
                    stacklevel=3,
                )

    def fitted(self) -> Fitted:
        curves = torch.stack(self.curves).numpy() if self.curves else np.zeros((0, 2, self.train.n_tasks))
        best = self.best_epoch.expand(self.train.n_tasks).numpy().copy()
        return Fitted(self.network, self.balancer, self.scaler, self.train.sizes > 0, curves[:, 0], curves[:, 1], best)

    # -- checkpoints --------------------------------------------------------------------------

    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.settings.checkpoint_seconds

    def save_if_due(self) -> None:
        if self.path is not None and self.due():
            self.save()

    def save(self) -> None:
        """Write a checkpoint; a step that was broken off half-way is not one."""
        if self.path is None or not self.whole:
            return
        tensors = {
            **disk.flatten("network", self.network.state_dict()),
            **disk.flatten("balancer", self.balancer.state_dict()),
            **disk.flatten("best", self.best_weights),
            "random/cpu": torch.get_rng_state(),
            "stop/best": self.best,
            "stop/best_epoch": self.best_epoch,
            "stop/stopped": self.stopped,
            "epoch/sums": self.sums,
            "epoch/counts": self.counts,
            "dropped": self.dropped,
            "curves": torch.stack(self.curves) if self.curves else torch.zeros(0, 2, self.train.n_tasks).double(),
        }
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        for number, value in enumerate(self._optimised()):
            tensors |= disk.flatten(f"optimiser/{number}", self.optimiser.state.get(value, {}))
        disk.write(self.path, tensors, {"epoch": self.epoch, "step": self.step, "phase": self.phase})
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint of this very fit, if there is one."""
        found = None if self.path is None else disk.read(self.path)
        if found is None:
            return
        tensors, facts = found
        self.network.load_state_dict(disk.under("network", tensors, self.device))
        self.gather_parameters({})  # a network that grew has others than at the start
        self.balancer.load_state_dict(disk.under("balancer", tensors, self.device))
        self.best_weights = disk.under("best", tensors, self.device)
        for number, value in enumerate(self._optimised()):
            state = disk.under(f"optimiser/{number}", tensors, self.device)
            if state:
                self.optimiser.state[value] = state
        self.best, self.best_epoch = tensors["stop/best"], tensors["stop/best_epoch"]
        self.stopped = tensors["stop/stopped"]
        self.skip_stopped()
        self.sums, self.counts = tensors["epoch/sums"].to(self.device), tensors["epoch/counts"].to(self.device)
        self.dropped = tensors["dropped"].to(self.device)
        self.curves = list(tensors["curves"])
        self.epoch, self.step, self.phase = (int(facts[name]) for name in ("epoch", "step", "phase"))
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda" and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)

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


def _constant_losses(train: TaskData, valid: TaskData | None, scaler: TargetScaler) -> Floats:
    """Return each task's validation loss at the best constant of its training labels; NaN: cannot be judged."""
    found = np.full(len(train.tasks), np.nan)
    if valid is None:
        return found
    for number, task in enumerate(train.tasks):
        labels = valid.labels[task.name]
        if len(labels) and len(train.labels[task.name]):
            scores = task.constant_scores(scaler.apply(number, train.labels[task.name].values))
            values = scaler.apply(number, labels.values)
            loss = task.losses(np.broadcast_to(scores, (len(values), task.n_outputs)), values).mean()
            found[number] = loss if loss > 1e-12 else np.nan
    return found


def _cuda_index(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def _patient_interrupt(wanted: bool) -> Iterator[Any]:
    """Let the first Ctrl-C wait for the end of a step; leave handlers that are not Python's own alone."""
    seen: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if (
        not wanted
        or usual is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield lambda: False
        return

    def remember(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, usual)
    if seen:
        raise KeyboardInterrupt
