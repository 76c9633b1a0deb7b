"""The export lines are the registry: every exported method is importable, documented and listed."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest

import polytask
from polytask import registry
from polytask.core.errors import InputError, ModelRefusedError
from polytask.core.learner import Model
from polytask.core.search import Choice, LogUniform, Uniform

ROOT = Path(polytask.__file__).parent
EXPORTS = sorted((room, name) for room in registry.ROOMS for name in registry.exports(room))
LEARNERS = sorted(registry.learner_names())
ESTIMATORS = ("DirtyModel",)  # a method named so by its paper, which no model folder may name


@pytest.mark.parametrize(("room", "name"), EXPORTS)
def test_every_export_is_importable_and_documented(room, name):
    thing = getattr(importlib.import_module(f"polytask.{room}"), name)
    assert thing.__doc__ is None or len(thing.__doc__.strip()) > 20 or not callable(thing)
    if isinstance(thing, type):
        assert thing.__doc__
        assert not thing.__doc__.startswith(f"{name}(")  # a dataclass's generated signature is no documentation


@pytest.mark.parametrize("room", registry.ROOMS)
def test_a_room_has_at_least_one_export_and_each_line_marks_it_public(room):
    tree = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))
    aliases = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert aliases
    assert all(alias.asname == alias.name for alias in aliases)


def test_the_methods_of_the_main_job_are_registered():
    expected = {
        "ridge", "lasso", "single-task-network", "pooled", "block-sparse", "mean-regularised",
        "hard-sharing", "soft-sharing",
    }  # fmt: skip
    assert expected <= set(LEARNERS)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_is_a_frozen_dataclass_whose_search_space_names_its_fields(name):
    learner = registry.learner_class(name)
    assert dataclasses.is_dataclass(learner)
    assert learner.sharing in {"single", "pooled", "shared"}
    assert 10 < len(learner.summary) < 160
    assert "\n" not in learner.summary
    assert learner.inner_folds >= 1
    assert isinstance(learner.refits, bool)
    fields = {field.name for field in dataclasses.fields(learner)}
    space = learner.search_space()
    assert set(space) <= fields
    rng = np.random.default_rng(0)
    for distribution in space.values():
        assert isinstance(distribution, Choice | LogUniform | Uniform)
        drawn = {field: d.sample(rng) for field, d in space.items()}
    if space:
        assert learner(**drawn)
    with pytest.raises(dataclasses.FrozenInstanceError):
        learner().seed = 1


@pytest.mark.parametrize("name", sorted(n for r, n in EXPORTS if n.endswith("Model") and n not in ESTIMATORS))
def test_exported_model_classes_are_models(name):
    assert issubclass(registry.model_class(name), Model)


def test_unknown_names_are_answered_with_the_nearest_right_one():
    with pytest.raises(InputError, match='Did you mean "hard-sharing"'):
        registry.learner_class("hard-sharng")
    for name in ("posix", *ESTIMATORS):
        with pytest.raises(ModelRefusedError, match=name):
            registry.model_class(name)


def test_names_are_made_for_the_command_line():
    assert registry.cli_name("HardSharingLearner") == "hard-sharing"
    assert registry.cli_name("RidgeLearner") == "ridge"
