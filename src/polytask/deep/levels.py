"""At which stage of an encoder the head of each task sits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.encoders import Encoder


def stage_numbers(tasks: Sequence[Task], encoder: Encoder, levels: Mapping[str, int | str] | None) -> tuple[int, ...]:
    """Return for each task the number of the stage, from 0, that its head reads.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        Its stages are numbered from 0, the input, so that 1 is the first layer.
    levels
        Task name → number or name of a stage; every task has one. None: all tasks read the last stage.

    Raises
    ------
    InputError
        A task is missing or unknown, or a stage is not there.
    """
    names = encoder.names
    if levels is None:
        return (len(names) - 1,) * len(tasks)
    known = [task.name for task in tasks]
    for name in levels:
        if name not in known:
            raise InputError("levels: " + unknown("task", name, known))
    found = []
    for name in known:
        if name not in levels:
            raise InputError(f'levels has no entry for the task "{name}"; give the stage that its head reads')
        found.append(_number(levels[name], name, names))
    return tuple(found)


def _number(level: int | str, task: str, names: tuple[str, ...]) -> int:
    if isinstance(level, str):
        if level not in names:
            raise InputError(f'levels of task "{task}": ' + unknown("stage", level, names))
        return names.index(level)
    if not 0 <= level < len(names):
        raise InputError(f'levels has {level} for the task "{task}"; the stages are 0 … {len(names) - 1}')
    return level


def stage_widths(encoder: Encoder) -> list[int]:
    """Return the number of channels of every stage."""
    if not encoder.channels:
        raise InputError(
            "the encoder does not say how many channels its stages have, which heads at lower stages must know; "
            "build it with channels="
        )
    return [encoder.channels[name] for name in encoder.names]


def lower_part(encoder: Encoder, top: int) -> Encoder:
    """Return the encoder without the stages above number ``top``."""
    names = encoder.names[: top + 1]
    if names == encoder.names:
        return encoder
    return Encoder(
        {name: encoder.stages[name] for name in names},
        n_features=encoder.channels[names[-1]],
        channels={name: encoder.channels[name] for name in names},
        channel_axis=encoder.channel_axis,
    )


def levels_relation(tasks: Sequence[Task], names: tuple[str, ...], levels: Sequence[int]) -> dict[str, Relation]:
    """Return through which stages each task passes; nothing for a lone task."""
    if len(tasks) == 1:
        return {}
    values = np.array([[float(stage <= level) for stage in range(len(names))] for level in levels])
    about = "1 where a task's loss shapes a stage; two tasks share the stages where both have 1"
    return {"levels": Relation("weights", values, tuple(task.name for task in tasks), names, about)}
