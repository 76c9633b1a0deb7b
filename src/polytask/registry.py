"""The export lines are the registry: names are read from the rooms' ``__init__.py`` text, unimported.

A line ``from polytask.linear.learners import RidgeLearner as RidgeLearner`` in ``linear/__init__.py``
makes the learner ``ridge``; classes whose name ends in ``Model`` can be loaded from a model folder.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from polytask.core.errors import InputError, MissingExtraError, ModelRefusedError, unknown
from polytask.core.learner import Learner, Model

ROOMS = ("linear", "deep", "auxiliary", "balance", "train", "relations", "sources", "compare", "report")
_EXTRAS = {"torch": "torch", "pyarrow": "parquet"}


@cache
def exports(room: str) -> dict[str, str]:
    """Return exported name → module of one room, read from the text of its ``__init__.py``."""
    text = (Path(__file__).parent / room / "__init__.py").read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update({alias.asname: node.module for alias in node.names if alias.asname == alias.name})
    return found


def cli_name(class_name: str) -> str:
    """Return the command line's name of a learner: ``HardSharingLearner`` → ``hard-sharing``."""
    stem = class_name.removesuffix("Learner")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", stem).lower()


@cache
def learner_names() -> dict[str, tuple[str, str]]:
    """Return CLI name → (module, class name) of every exported learner."""
    return {
        cli_name(name): (module, name)
        for room in ROOMS
        for name, module in exports(room).items()
        if name.endswith("Learner")
    }


def learner_class(name: str) -> type[Learner]:
    """Import the learner of that CLI name."""
    known = learner_names()
    if name not in known:
        raise InputError(unknown("method", name, known))
    learner: type[Learner] = _load(*known[name])
    return learner


def model_class(name: str) -> type[Model]:
    """Import an exported model class; any other name is refused, so a folder cannot name arbitrary code."""
    for room in ROOMS:
        module = exports(room).get(name)
        if module is not None and name.endswith("Model"):
            found = _load(module, name)
            if isinstance(found, type) and issubclass(found, Model):  # not an estimator such as DirtyModel
                return found
    raise ModelRefusedError(f'the model folder names the model class "{name}", which this version does not have')


def _load(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise MissingExtraError(f'{name} needs {error.name}: pip install "polytask[{extra}]"') from error
