import numpy as np
import pytest

from polytask.compare import MethodSpec, Plan, SplitPlan
from polytask.compare.plan import estimate, validate
from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Regression

from .learners import AloneLearner, BadLearner, CommonLearner

ALONE, COMMON = MethodSpec("alone", learner=AloneLearner), MethodSpec("common", learner=CommonLearner)


def test_five_by_two_is_five_folds_twice(table):
    splits = SplitPlan.parse("5x2")
    assert (splits.folds, splits.repeats, splits.n_splits) == (5, 2, 10)
    pairs = splits.pairs(table, seed=3)
    for train, test in pairs:
        assert len(np.intersect1d(train, test)) == 0
        assert len(train) + len(test) == table.n_rows
    for repeat in (pairs[:5], pairs[5:]):
        assert sorted(np.concatenate([test for _, test in repeat])) == list(range(table.n_rows))
    assert not np.array_equal(pairs[0][1], pairs[5][1])


@pytest.mark.parametrize("text", ["", "x2", "1x2", "5x0", "five"])
def test_a_wrong_split_text_is_refused(text):
    with pytest.raises(InputError, match="splits"):
        SplitPlan.parse(text)


def test_time_splits_test_only_what_comes_after(table):
    data = TaskData(table.tasks, table.inputs, table.labels, keys={"day": np.arange(90.0)[::-1].copy()})
    for splits in (SplitPlan(4, time="day"), SplitPlan(test_share=0.3, time="day")):
        for train, test in splits.pairs(data, seed=0):
            assert data.keys["day"][train].max() < data.keys["day"][test].min()
    assert len(SplitPlan(4, 3, time="day").pairs(data, seed=0)) == SplitPlan(4, 3, time="day").n_splits == 4


def test_group_splits_never_part_a_group(table):
    data = TaskData(table.tasks, table.inputs, table.labels, keys={"who": np.repeat(np.arange(30), 3)})
    for train, test in SplitPlan(3, 2, group="who").pairs(data, seed=0):
        assert not set(data.keys["who"][train]) & set(data.keys["who"][test])


def test_random_splits_have_the_test_share(table):
    pairs = SplitPlan(repeats=7, test_share=0.2).pairs(table, seed=1)
    assert len(pairs) == 7
    assert {len(test) for _, test in pairs} == {18}


def test_fingerprint_changes_with_what_determines_results_and_not_with_workers(table):
    plan = Plan((ALONE, COMMON))
    same = plan.fingerprint(table)
    assert Plan((ALONE, COMMON), n_jobs=7).fingerprint(table) == same
    others = [
        Plan((ALONE, COMMON), trials=3).fingerprint(table),
        Plan((ALONE, COMMON), seeds=(1,)).fingerprint(table),
        Plan((ALONE, COMMON), thin={"a": 9}).fingerprint(table),
        Plan((MethodSpec("alone", {"alpha": 2.0}, learner=AloneLearner), COMMON)).fingerprint(table),
        plan.fingerprint(table.rows(np.arange(89))),
        plan.fingerprint(table.only(["a", "b"])),
    ]
    assert len({same, *others}) == 7


def test_adding_a_method_leaves_the_keys_of_the_others(table):
    one, two = Plan((ALONE,)).method_fingerprints(table), Plan((ALONE, COMMON)).method_fingerprints(table)
    assert one["alone"] == two["alone"] != two["common"]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(()), "no method"),
        (Plan((COMMON,)), "no single-task baseline"),
        (Plan((ALONE, ALONE)), "given twice"),
        (Plan((MethodSpec("rigde"),)), 'Did you mean "ridge"'),
        (Plan((MethodSpec("alone", {"alhpa": 1}, learner=AloneLearner),)), 'Did you mean "alpha"'),
        (Plan((ALONE,), thin={"A": 3}), 'unknown task "A". Did you mean "a"'),
        (Plan((ALONE,), metrics={"a": ("auc",)}), "unknown metric"),
        (Plan((ALONE,), trials=0), "trials=0"),
        (Plan((ALONE,), seeds=(1, 1)), "seeds"),
        (Plan((ALONE,), SplitPlan(group="who")), 'unknown key column "who"'),
        (Plan((ALONE,), SplitPlan(91)), "n_folds"),
        (Plan((ALONE,), least_labels=91), "no task has at least 91 labels"),
        (Plan((ALONE,), n_jobs=-1), "n_jobs=-1"),
    ],
)
def test_an_impossible_plan_is_refused_with_what_is_wrong(table, plan, says):
    with pytest.raises(InputError, match=says.replace(".", r"\.").replace("(", r"\(")):
        validate(plan, table)


def test_estimate_counts_fits(table):
    # 2 methods x 6 splits x (5 trials x 2 inner folds + 1 final fit)
    found = estimate(Plan((ALONE, COMMON), SplitPlan(3, 2), trials=5), table)
    assert (found.runs, found.fits) == (12, 132)
    fixed = MethodSpec("alone", {"alpha": 1.0}, learner=AloneLearner)
    assert estimate(Plan((fixed,), SplitPlan(3, 2), trials=5), table).fits == 6 * 3


def test_label_names_the_fixed_parameters():
    assert MethodSpec("bad", {"what": "kill", "alpha": 2}, learner=BadLearner).label == "bad (alpha=2, what=kill)"


def test_metrics_of_the_plan_replace_those_of_the_task(table):
    data = Plan((ALONE,), metrics={"b": ("r2", "rmse")}).apply_metrics(table)
    assert [task.metric for task in data.tasks] == ["rmse", "r2", "rmse"]
    assert isinstance(data.tasks[1], Regression)
