"""The tutorials' code runs as it stands, block after block, and prints what its comments say."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

TUTORIALS = {path.stem: path for path in (Path(__file__).parent.parent / "docs" / "tutorials").glob("*.md")}
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
SAID = re.compile(r"^print\(.*\)  # (.*)$", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def ran():
    """Run a tutorial, once; return its names and what it printed."""
    done = {}

    def execute(name):
        if name not in done:
            names, printed = {"__name__": name}, io.StringIO()
            with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
                warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)  # Lightning in torch
                warnings.filterwarnings("ignore", message=".*does not have many workers")
                for number, block in enumerate(BLOCK.findall(TUTORIALS[name].read_text(encoding="utf-8")), start=1):
                    exec(compile(block, f"{name}, block {number}", "exec"), names)
            done[name] = names, printed.getvalue().splitlines()
        return done[name]

    return execute


@pytest.mark.parametrize("name", sorted(TUTORIALS))
def test_a_tutorial_prints_what_it_says(name, ran):
    _, printed = ran(name)
    said = SAID.findall(TUTORIALS[name].read_text(encoding="utf-8"))
    assert said
    assert [text for text in said if text not in printed] == []


def test_both_loops_of_the_own_network_learn_both_tasks_and_change_the_mixture(ran):
    names, _ = ran("own_network")
    x, (price, sold) = names["x"], names["y"]
    for network in (names["network"], names["joint"].network):
        scores = network({"numeric": x})
        assert 1 - (scores["price"][:, 0] - price).square().mean() / price.var() > 0.9
        assert ((scores["sold"][:, 0] > 0) == sold.bool()).float().mean() > 0.75
        for relation in network.relations().values():
            assert not np.allclose(relation.values, [[0.9, 0.1], [0.1, 0.9]], atol=1e-3)


def test_the_own_network_itself_is_not_trained(ran):
    names, _ = ran("own_network")
    towers = names["network"].encoder.stages["low"].weights["0.weight"]
    own = names["own"][0].weight
    assert towers.shape == (2, *own.T.shape)
    assert own.grad is None
    assert not np.allclose(towers[0].detach(), own.T.detach())
