"""Fixtures: the examples of ``example.py``."""

import importlib.util
import sys
from pathlib import Path

import pytest

from polytask.report import collect


@pytest.fixture(scope="session")
def example():
    path = Path(__file__).with_name("example.py")
    spec = importlib.util.spec_from_file_location("report_example", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def wide(example):
    return example.make()


@pytest.fixture(scope="session")
def long(example):
    return example.make_long()


@pytest.fixture(scope="session")
def empty(example):
    return example.make_empty()


@pytest.fixture(scope="session")
def wide_facts(wide):
    return collect(wide)


@pytest.fixture(scope="session")
def long_facts(long):
    return collect(long)
