from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from polytask.compare import MethodSpec, Plan, SplitPlan, run
from polytask.compare.statistics import Parts, best_of, corrected_error, holm, interval, standard_error
from polytask.core.data import Labels, TaskData
from polytask.core.results import Comparison
from polytask.core.task import Regression

from .learners import AloneLearner, CommonLearner, DrawnLearner, DrawnSharedLearner, SameLearner

ALONE = MethodSpec("alone", learner=AloneLearner)
COMMON = MethodSpec("common", learner=CommonLearner)


def compare(table, folder, *methods, **options):
    plan = Plan((ALONE, *methods), SplitPlan(4, 2), trials=3, n_jobs=0, **options)
    return run(plan, table, folder=folder)


def test_holm_agrees_with_a_hand_computation():
    # sorted: .01 x4 = .04, .02 x3 = .06, .03 x2 = .06, .5 x1
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_interval_uses_the_t_quantile():
    found = interval(0.3, 0.1, 7)
    assert found.high - 0.3 == pytest.approx(0.1 * 2.3646242510103, rel=1e-9)
    assert found.p == pytest.approx(2 * (1 - stats.t.cdf(3.0, 7)), rel=1e-9)
    on_edge = interval(2.3646242510103 * 0.1, 0.1, 7)
    assert on_edge.p == pytest.approx(0.05)
    assert on_edge.low == pytest.approx(0.0, abs=1e-9)


def test_an_estimate_without_spread_is_its_own_interval():
    assert interval(0.0, 0.0, 3).p == 1.0
    assert interval(0.2, 0.0, 3).p == 0.0


def test_corrected_error_agrees_with_nadeau_and_bengio():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    assert corrected_error(values, 0.25) == pytest.approx(np.sqrt((0.25 + 0.25) * 10 / 3))


def parts_of(table, clusters=None):
    """Rows' values in one round of folds, each fold centred by its own mean."""
    splits = table.mean(axis=1)
    n = table.size
    rows = np.arange(n) if clusters is None else clusters
    places = np.split(rows, len(table))
    return Parts(splits, tuple((place, fold - fold.mean()) for place, fold in zip(places, table, strict=True)))


def test_without_an_effect_of_models_the_error_is_that_of_a_mean_of_rows():
    values = np.random.default_rng(0).normal(size=(5, 40))
    values -= values.mean(axis=1, keepdims=True)  # no differences between splits
    error, degrees = standard_error(parts_of(values), 0.25)
    assert error == pytest.approx(np.sqrt(np.square(values).sum() / (200 * 195)), rel=1e-9)
    assert 100 < degrees <= 199


def test_models_that_differ_add_their_variance():
    rng = np.random.default_rng(1)
    values = np.linspace(-3.0, 3.0, 5)[:, None] + 0.01 * rng.normal(size=(5, 40))
    error, degrees = standard_error(parts_of(values), 0.25)
    assert error == pytest.approx(corrected_error(np.linspace(-3, 3, 5), 0.25), rel=0.01)
    assert degrees == pytest.approx(4.0, rel=0.01)


def test_testing_the_same_rows_again_is_no_new_information():
    values = np.random.default_rng(2).normal(size=(5, 40))
    once = parts_of(values)
    twice = Parts(np.tile(once.splits, 2), once.rows * 2)
    rows_only = replace(once, splits=np.zeros(5))
    rows_twice = replace(twice, splits=np.zeros(10))
    assert standard_error(rows_twice, 0.25)[0] == pytest.approx(standard_error(rows_only, 0.25)[0], rel=1e-12)


def test_rows_of_a_group_that_move_together_count_as_one():
    rng = np.random.default_rng(3)
    groups = rng.normal(size=(5, 10))
    spread = np.repeat(groups, 8, axis=1)
    one_each = replace(parts_of(groups), splits=np.zeros(5))
    clustered = replace(parts_of(spread, np.repeat(np.arange(50), 8)), splits=np.zeros(5))
    assert standard_error(clustered, 0.25)[0] == pytest.approx(standard_error(one_each, 0.25)[0], rel=1e-12)
    assert (
        standard_error(replace(parts_of(spread), splits=np.zeros(5)), 0.25)[0] < 0.5 * standard_error(one_each, 0.25)[0]
    )


def test_mean_of_estimates_keeps_what_their_rows_have_in_common():
    parts = parts_of(np.random.default_rng(4).normal(size=(5, 12)))
    flat = replace(parts, splits=np.zeros(5))
    opposite = Parts(flat.splits, tuple((rows, -values) for rows, values in flat.rows))
    assert standard_error(Parts.mean([flat, flat]), 0.25)[0] == pytest.approx(standard_error(flat, 0.25)[0], rel=0.05)
    assert standard_error(Parts.mean([flat, opposite]), 0.25)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_error_is_right_on_average_where_rows_and_models_are_independent():
    rng = np.random.default_rng(5)
    found, means = [], []
    for _ in range(400):
        values = rng.normal(size=(2, 5, 30))
        rows = rng.normal(size=(5, 30))
        both = 0.5 * values + rows + 0.2 * rng.normal(size=(2, 5, 1))
        table = both.reshape(10, 30)
        places = np.split(np.arange(150), 5) * 2
        parts = Parts(table.mean(1), tuple((p, v - v.mean()) for p, v in zip(places, table, strict=True)))
        found.append(standard_error(parts, 0.0)[0] ** 2)
        means.append(table.mean())
    assert np.mean(found) == pytest.approx(np.var(means), rel=0.15)


def test_gain_by_hand_and_positive_where_the_error_is_smaller(table, tmp_path):
    results = compare(table, tmp_path, COMMON)
    found = next(item for item in results.comparisons if item.task == "c")
    scores = {
        name: np.mean([r.scores["c"]["rmse"] for r in results.runs if r.method == name]) for name in ("alone", "common")
    }
    assert found.gain == pytest.approx((scores["alone"] - scores["common"]) / scores["alone"])
    assert found.gain < 0
    assert found.verdict == "hurt"
    assert found.low < found.gain < found.high < 0
    assert found.p < found.p_holm < 0.05


def test_gain_is_positive_for_a_metric_where_higher_is_better(table, tmp_path):
    errors = compare(table, tmp_path / "1", COMMON)
    shares = compare(table, tmp_path / "2", COMMON, metrics=dict.fromkeys(table.names, ("r2",)))
    for one, other in zip(errors.comparisons[:3], shares.comparisons[:3], strict=True):
        assert other.metric == "r2"
        assert np.sign(one.gain) == np.sign(other.gain)


def test_a_method_identical_to_the_baseline_has_gain_0_in_its_interval(table, tmp_path):
    same = MethodSpec("same", {"alpha": 2.0}, learner=SameLearner)
    plan = Plan((MethodSpec("alone", {"alpha": 2.0}, learner=AloneLearner), same), SplitPlan(4, 2), trials=3, n_jobs=0)
    results = run(plan, table, folder=tmp_path)
    for item in results.comparisons:
        assert item.low <= 0.0 <= item.high
        assert item.verdict == "cannot tell"
    assert {verdict.verdict for verdict in results.verdicts} == {"cannot tell"}


def test_a_method_and_itself_with_other_draws_are_seldom_told_apart(tmp_path):
    methods = (
        MethodSpec("one", {"stream": 1}, "one", DrawnLearner),
        MethodSpec("two", {"stream": 2}, "two", DrawnSharedLearner),
    )
    apart = 0
    for number in range(16):
        rng = np.random.default_rng(number)
        X = rng.normal(size=(60, 4))
        Y = np.tanh(X @ rng.normal(size=(4, 3))) + 0.5 * rng.normal(size=(60, 3))
        data = TaskData.from_columns([Regression(name, ("rmse",)) for name in "abc"], X, Y)
        plan = Plan(methods, SplitPlan(4, 1), seeds=(number,), trials=1, n_jobs=0)
        results = run(plan, data, folder=tmp_path / str(number))
        apart += any(verdict.verdict != "cannot tell" for verdict in results.verdicts)
    assert apart <= 2  # 5 % of 16 plus two standard errors


def test_gains_do_not_depend_on_units(table, tmp_path):
    one = compare(table, tmp_path / "1", COMMON)
    scale = {"a": 1e3, "b": 1e3, "c": 1e3}
    labels = {name: Labels(part.rows, scale[name] * part.values) for name, part in table.labels.items()}
    other = compare(TaskData(table.tasks, table.inputs, labels), tmp_path / "2", COMMON)
    for left, right in zip(one.comparisons, other.comparisons, strict=True):
        assert (left.gain, left.low, left.high) == pytest.approx((right.gain, right.low, right.high), rel=1e-6)
        assert left.verdict == right.verdict


def test_the_order_of_tasks_does_not_change_verdicts(table, tmp_path):
    one = compare(table, tmp_path / "1", COMMON)
    other = compare(table.only(["c", "a", "b"]), tmp_path / "2", COMMON)
    back = {(item.task, item.method): item for item in other.comparisons}
    for item in one.comparisons:
        twin = back[item.task, item.method]
        assert (item.gain, item.low) == pytest.approx((twin.gain, twin.low), rel=1e-9)
        assert item.verdict == twin.verdict


def test_gains_are_relative_to_the_best_baseline_however_many_weak_ones_there_are(table, tmp_path):
    weak = MethodSpec("weak", {"alpha": 1e4}, learner=AloneLearner)
    alone = {item.task: item for item in compare(table, tmp_path / "1", COMMON).comparisons}
    both = [item for item in compare(table, tmp_path / "2", weak, COMMON).comparisons if item.task]
    assert {item.baseline for item in both} == {"alone"}
    for item in both:
        assert item.gain == pytest.approx(alone[item.task].gain)
        if (item.gain or 0.0) > 0.0:  # far surer against the weak one: the best one decides
            assert item.p == pytest.approx(alone[item.task].p)
        else:  # looked for among two baselines
            assert item.p == pytest.approx(min(1.0, 2 * alone[item.task].p))


def test_a_gain_must_be_sure_against_every_baseline():
    def against(gain, p):
        return Comparison("t", "m", f"b{gain}", "rmse", gain=gain, p=p), None

    assert best_of([against(0.02, 0.03), against(0.05, 0.4)])[0].p == 0.4
    assert best_of([against(0.02, 0.03), against(0.05, 0.4)])[0].gain == 0.02
    assert best_of([against(-0.02, 0.03), against(0.05, 0.4)])[0].p == pytest.approx(0.06)


def test_a_baseline_near_0_is_not_measurable_and_another_metric_is_suggested(tmp_path):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(120, 3))
    noise = rng.normal(size=(120, 2))  # nothing to learn: R² is about 0
    data = TaskData.from_columns([Regression("a", ("r2",)), Regression("b", ("r2",))], X, noise)
    results = compare(data, tmp_path, COMMON)
    for item in results.comparisons[:2]:
        assert item.verdict == "not measurable"
        assert "choose another metric" in item.reason
        assert item.low is None
    assert {verdict.verdict for verdict in results.verdicts} == {"not measurable"}


def test_verdict_names_the_largest_sure_gain_and_everything_that_hurts(tmp_path):
    rng = np.random.default_rng(7)
    X = rng.normal(size=(160, 80))
    w = rng.normal(size=80)
    Y = X @ np.tile(w[:, None], 8) + 5.0 * rng.normal(size=(160, 8))
    Y[:, 7] = -Y[:, 7]
    data = TaskData.from_columns([Regression(f"t{k}") for k in range(8)], X, Y)
    results = compare(data, tmp_path, COMMON)
    by_task = {verdict.task: verdict for verdict in results.verdicts}
    assert by_task["t0"].verdict == "gains"
    assert by_task["t0"].method == "common"
    assert "Share it by common" in by_task["t0"].advice
    assert by_task["t7"].verdict == "hurt"
    assert by_task["t7"].hurt_by == ("common",)
    assert "Learn it alone with alone" in by_task["t7"].advice


def test_only_baselines_give_no_comparison_and_say_so(table, tmp_path):
    results = compare(table, tmp_path)
    assert results.comparisons == ()
    assert {verdict.verdict for verdict in results.verdicts} == {"not measurable"}
    assert "No method that shares was compared" in results.verdicts[0].advice


def test_one_split_gives_a_gain_without_interval(table, tmp_path):
    plan = Plan((ALONE, COMMON), SplitPlan(repeats=1, test_share=0.3), trials=2, n_jobs=0)
    results = run(plan, table, folder=tmp_path)
    assert {item.verdict for item in results.comparisons if item.task} == {"cannot tell"}
    assert all(item.low is None and item.gain is not None for item in results.comparisons)
    results.to_json()


def test_overall_scores_have_a_mean_inside_their_interval(table, tmp_path):
    results = compare(table, tmp_path, COMMON)
    for method in ("alone", "common"):
        for bounds in results.overall[method].values():
            assert bounds["low"] < bounds["mean"] < bounds["high"]
