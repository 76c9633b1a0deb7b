"""Results go to JSON and back; equal results are equal bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytask import InputError, Relation, Results
from polytask.core.results import Comparison, MethodInfo, Run, Verdict


def example(seconds: float = 1.0) -> Results:
    relation = Relation("correlation", np.eye(2), ("a", "b"), ("a", "b"), "of coefficients")
    run = Run("ridge", 0, 1, scores={"a": {"rmse": 1.5}}, relations={"tasks": relation})
    return Results(
        title="trial",
        setup={"seed": 1},
        data={"rows": 3},
        tasks=({"name": "a", "kind": "regression", "metrics": ["rmse"], "labels": []},),
        methods=(MethodInfo("ridge", "single", "alone"),),
        runs=(run,),
        comparisons=(Comparison("a", "ridge", "ridge", "rmse", gain=0.1),),
        verdicts=(Verdict("a", "gains", "ridge", "ridge", 0.1, 0.0, 0.2, ("x",), "share it"),),
        timing={"seconds": seconds},
    )


def test_results_survive_json():
    text = example().to_json()
    again = Results.from_json(text)
    assert again.to_json() == text
    assert again.verdicts[0] == example().verdicts[0]
    np.testing.assert_array_equal(again.runs[0].relations["tasks"].values, np.eye(2))


def test_equal_runs_differ_in_timing_only():
    assert example(1.0).to_json() != example(2.0).to_json()
    assert example(1.0).without_timing().to_json() == example(2.0).without_timing().to_json()


def test_nan_never_reaches_the_file():
    bad = Results("t", {}, {}, (), (), (Run("r", 0, 0, scores={"a": {"rmse": float("nan")}}),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        bad.to_json()


@pytest.mark.parametrize("text", ["[]", json.dumps({"format": 99})])
def test_other_files_are_refused(text):
    with pytest.raises(InputError, match="format"):
        Results.from_json(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relation("odd", np.eye(1), ("a",), ("a",)), "not one of"),
        (lambda: Relation("weights", np.array([[np.nan]]), ("a",), ("a",)), "finite"),
        (lambda: Relation("weights", np.eye(2), ("a",), ("a", "b")), "1 row and 2 column"),
    ],
)
def test_bad_relations_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
