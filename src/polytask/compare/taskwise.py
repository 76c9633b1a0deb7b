"""A model made of one model per task, such as the best-tuned one of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Arrays, Model
from polytask.core.relation import Relation
from polytask.core.task import Floats, Task, task_from
from polytask.registry import model_class


class TaskwiseModel(Model):
    """Each task predicted by its own model, such as the one tuned for that task.

    Parameters
    ----------
    tasks
        The tasks, in order.
    parts
        Models, each with the names of the tasks it is used for.
    """

    def __init__(self, tasks: tuple[Task, ...], parts: tuple[tuple[tuple[str, ...], Model], ...]) -> None:
        super().__init__(tasks)
        covered = sorted(name for names, _ in parts for name in names)
        if covered != sorted(task.name for task in tasks):
            raise InputError(f"parts must cover every task exactly once, got {covered}")
        self.parts = parts

    def predict(self, data: TaskData) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for names, model in self.parts:
            scores = model.predict(data)
            found.update({name: scores[name] for name in names})
        return {task.name: found[task.name] for task in self.tasks}

    def relations(self) -> dict[str, Relation]:
        return {}

    def history(self) -> dict[str, Any]:
        """Join the curves of the parts; a part that stopped early is carried on with NaN-free last values."""
        joined: dict[str, Any] = {}
        for names, model in self.parts:
            curves = model.history()
            for side in ("train", "valid"):
                for name in names:
                    if name in curves.get(side, {}):
                        joined.setdefault(side, {})[name] = curves[side][name]
        if not joined:
            return {}
        longest = max(len(curve) for side in joined.values() for curve in side.values())
        for side in joined.values():
            for name, curve in side.items():
                side[name] = list(curve) + [curve[-1]] * (longest - len(curve))
        return {"epoch": list(range(1, longest + 1)), **joined}

    def state(self) -> tuple[dict[str, Any], Arrays]:
        described, arrays = [], {}
        for number, (names, model) in enumerate(self.parts):
            inner, inner_arrays = model.state()
            described.append(
                {
                    "names": list(names),
                    "model": type(model).__name__,
                    "tasks": [task.describe() for task in model.tasks],
                    "description": inner,
                }
            )
            arrays.update({f"{number}/{name}": array for name, array in inner_arrays.items()})
        return {"parts": described}, arrays

    @classmethod
    def from_state(cls, tasks: tuple[Task, ...], description: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        parts = []
        for number, part in enumerate(description["parts"]):
            prefix = f"{number}/"
            own = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            inner_tasks = tuple(task_from(task) for task in part["tasks"])
            model = model_class(part["model"]).from_state(inner_tasks, part["description"], own)
            parts.append((tuple(part["names"]), model))
        return cls(tasks, tuple(parts))
