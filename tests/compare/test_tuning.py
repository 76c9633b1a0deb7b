from dataclasses import dataclass

import numpy as np
import pytest

from polytask.compare import MethodSpec, TaskwiseModel
from polytask.compare.tuning import configurations, inner_pairs, tune, tune_and_fit
from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError, PolytaskError
from polytask.core.search import Choice
from polytask.core.task import Regression

from .learners import AloneLearner, BadLearner, CommonLearner, HeldLearner, TinyModel, _ridge

ALONE = MethodSpec("alone", learner=AloneLearner)


def test_trial_0_is_the_defaults_and_the_rest_depend_on_the_seed_alone():
    first, again = configurations(ALONE, 6, seed=3), configurations(ALONE, 6, seed=3)
    assert first == again
    assert first[0] == {}
    assert len(first) == 6
    assert configurations(ALONE, 4, seed=3) == first[:4]
    assert configurations(ALONE, 6, seed=4)[1:] != first[1:]


def test_fixed_parameters_are_not_tuned():
    fixed = MethodSpec("alone", {"alpha": 2.5}, learner=AloneLearner)
    assert configurations(fixed, 9, seed=0) == [{}]
    assert fixed.build().alpha == 2.5


def test_a_single_task_method_takes_each_tasks_own_best(table):
    tuned = tune(ALONE, table, trials=12, seed=0)
    for name in table.names:
        best = min(tuned.trials, key=lambda trial, name=name: trial["valid"][name])
        assert tuned.valid[name] == best["valid"][name]
        assert tuned.chosen[name]["alpha"] == best["values"].get("alpha", 1.0)


def test_tasks_with_their_own_configuration_are_fitted_as_if_tuned_apart(table):
    tuned = tune(ALONE, table, trials=12, seed=0)
    assert isinstance(tuned.model, TaskwiseModel)
    assert len(tuned.model.parts) == len({repr(chosen) for chosen in tuned.chosen.values()}) > 1
    X = table.inputs["numeric"]
    for name, scores in tuned.model.predict(table).items():
        labels = table.labels[name]
        w, b = _ridge(X[labels.rows], labels.values, tuned.chosen[name]["alpha"])
        np.testing.assert_allclose(scores[:, 0], X @ w + b, rtol=1e-10)


def test_a_sharing_method_takes_the_best_mean_over_tasks(table):
    tuned = tune(MethodSpec("common", learner=CommonLearner), table, trials=12, seed=0)
    means = [np.mean(list(trial["valid"].values())) for trial in tuned.trials]
    assert tuned.chosen == {"all": {"alpha": tuned.trials[int(np.argmin(means))]["values"].get("alpha", 1.0)}}
    assert isinstance(tuned.model, TinyModel)


def test_criterion_is_validation_loss_over_the_constants_by_hand(table):
    fixed = MethodSpec("alone", {"alpha": 3.0}, learner=AloneLearner)
    tuned = tune(fixed, table, trials=1, seed=5)
    from polytask.compare.plan import mixed_seed

    losses, constants = [], []
    for train, valid in inner_pairs(table, 2, valid_share=0.2, seed=mixed_seed(5, 1)):
        X, y = table.inputs["numeric"], table.columns()[:, 0]
        w, b = _ridge(X[train], y[train], 3.0)
        losses.append((X[valid] @ w + b - y[valid]) ** 2)
        constants.append((y[train].mean() - y[valid]) ** 2)
    expected = np.concatenate(losses).mean() / np.concatenate(constants).mean()
    assert tuned.valid["a"] == pytest.approx(expected, rel=1e-10)


def test_a_method_that_does_not_refit_keeps_the_winning_trials_model(table):
    spec = MethodSpec("held", learner=HeldLearner)
    tuned = tune(spec, table, trials=5, seed=2)
    train, _ = inner_pairs(table, 1, valid_share=0.2, seed=_inner_seed(2))[0]
    by_hand = CommonLearner(**tuned.chosen["all"]).fit(table.rows(train))
    np.testing.assert_array_equal(tuned.model.weights["a"], by_hand.weights["a"])
    assert tuned.counts["a"] == {"train": 72, "valid": 18}


def _inner_seed(seed):
    from polytask.compare.plan import mixed_seed

    return mixed_seed(seed, 1)


def test_inner_folds_never_part_a_group_and_never_look_ahead(table):
    who = np.repeat(np.arange(30), 3)
    data = TaskData(table.tasks, table.inputs, table.labels, keys={"who": who, "day": np.arange(90.0)})
    for folds in (1, 3):
        for train, valid in inner_pairs(data, folds, valid_share=0.2, seed=0, group="who"):
            assert not set(who[train]) & set(who[valid])
        for train, valid in inner_pairs(data, folds, valid_share=0.2, seed=0, time="day"):
            assert train.max() < valid.min()


class LostError(PolytaskError, RuntimeError):
    """Like the error of a training that diverged."""


@dataclass(frozen=True)
class FragileLearner(CommonLearner):
    """Works for some values only."""

    mode: str = "good"

    @classmethod
    def search_space(cls):
        return {"mode": Choice(("overflow", "lost", "nan", "good2"))}

    def fit(self, train, **options):
        if self.mode == "overflow":
            raise OverflowError("too large")
        if self.mode == "lost":
            raise LostError("diverged")
        model = super().fit(train, **options)
        if self.mode == "nan":
            model.intercepts = {name: value * np.nan for name, value in model.intercepts.items()}
        return model


def test_configurations_that_fail_lose_and_do_not_stop_the_search(table):
    tuned = tune(MethodSpec("fragile", learner=FragileLearner), table, trials=12, seed=0)
    assert tuned.chosen["all"]["mode"] in ("good", "good2")
    unmeasured = TaskData(
        (*table.tasks, Regression("flat")), table.inputs, {**table.labels, "flat": Labels(np.arange(90), np.ones(90))}
    )
    again = tune(MethodSpec("fragile", learner=FragileLearner), unmeasured, trials=12, seed=0)
    assert again.chosen == tuned.chosen
    errors = {trial["values"].get("mode"): trial["error"] for trial in tuned.trials}
    assert errors["lost"] == "diverged"
    assert errors["overflow"] == "too large"
    assert "not finite" in errors["nan"]


def test_when_every_configuration_fails_the_first_error_is_raised(table):
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        tune(MethodSpec("bad", learner=BadLearner), table, trials=3)


def test_refused_tasks_are_left_out_and_all_refused_is_an_error(with_binary):
    spec = MethodSpec("common", learner=CommonLearner)
    tuned = tune(spec, with_binary, trials=2)
    assert [task.name for task in tuned.model.tasks] == ["a", "b"]
    with pytest.raises(InputError, match="refuses every task"):
        tune(spec, with_binary.only(["yes"]), trials=2)


def test_a_task_without_labels_or_with_a_constant_target_leaves_the_others_unchanged(table):
    none = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
    flat = Labels(np.arange(90), np.full(90, 7.0))
    tasks = (*table.tasks, Regression("none"), Regression("flat"))
    more = TaskData(tasks, table.inputs, {**table.labels, "none": none, "flat": flat})
    with_them, without = tune(ALONE, more, trials=6), tune(ALONE, table, trials=6)
    assert with_them.valid == without.valid
    assert {name: with_them.chosen[name] for name in table.names} == without.chosen


class Shift:
    """An encoder that centres by the rows it is fitted on."""

    def fit(self, data):
        self.centre = data.inputs["numeric"].mean(0)
        self.fitted_on = data.n_rows
        return self

    def transform(self, data):
        return TaskData(data.tasks, {"numeric": data.inputs["numeric"] - self.centre}, data.labels)

    def state(self):
        return {}


def test_the_encoder_is_fitted_on_the_rows_the_model_is_fitted_on(table):
    mine = Shift()
    assert tune(ALONE, table, encoder=mine, trials=2).encoder.fitted_on == 90
    assert tune(MethodSpec("held", learner=HeldLearner), table, encoder=mine, trials=2).encoder.fitted_on == 72
    assert not hasattr(mine, "centre")


def test_tune_and_fit_finds_a_method_by_its_name(table):
    tuned = tune_and_fit("ridge", table, trials=2, fixed={}, seed=1)
    scores = tuned.model.predict(table.without_labels())
    assert {name: array.shape for name, array in scores.items()} == dict.fromkeys("abc", (90, 1))
    with pytest.raises(InputError, match='Did you mean "ridge"'):
        tune_and_fit("rigde", table)


def test_progress_goes_up_to_one(table):
    seen = []

    class Telling(AloneLearner):
        def fit(self, train, *, valid=None, seed=0, progress=None, checkpoint=None):
            progress("fitting", 1.0)
            return super().fit(train)

    tune(MethodSpec("telling", learner=Telling), table, trials=4, progress=lambda text, share: seen.append(share))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5 < seen[-1] <= 1.0
