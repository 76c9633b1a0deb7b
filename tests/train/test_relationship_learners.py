import json

import numpy as np
import pytest

from polytask import Labels, Regression, TaskData
from polytask.core.errors import InputError
from polytask.deep import TensorFactorisation
from polytask.train import NetworkModel, RelationshipNetworkLearner, TensorFactorisationLearner

SHORT = {"max_epochs": 15, "widths": "16-16"}


def groups(n: int = 240, seed: int = 0) -> TaskData:
    """Four tasks with labels on different rows; the first two learn one function, the last two its opposite."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    y = np.tanh(X @ rng.normal(size=4))
    labels = {}
    for t in range(4):
        rows = np.arange(n)[t % 2 :: 2]
        labels[f"t{t}"] = Labels(rows, (y if t < 2 else -y)[rows] + 0.05 * rng.normal(size=len(rows)))
    tasks = tuple(Regression(name) for name in labels)
    return TaskData(tasks, {"numeric": X.astype(np.float32)}, labels)


@pytest.fixture(scope="module")
def data():
    return groups()


def test_the_learned_prior_relates_tasks_that_learn_the_same_and_opposes_the_others(data):
    model = RelationshipNetworkLearner(strength=100.0, own_layers=0, refresh_every=10, **SHORT).fit(data, seed=1)
    shown = model.relations()["heads tasks"]
    assert shown.rows == data.names
    assert shown.values[0, 1] > 0.3
    assert shown.values[2, 3] > 0.3
    assert shown.values[0, 2] < -0.3


def test_tensor_factorisation_starts_from_single_task_networks_with_ranks_by_tolerance(data):
    told = []
    sizes = {}
    for tolerance in (0.0, 0.5):
        learner = TensorFactorisationLearner(tolerance=tolerance, form="laf", **SHORT)
        model = learner.fit(data, seed=1, progress=lambda text, share: told.append((text, share)))
        sizes[tolerance] = {name: ranks[0] for name, ranks in model.network.ranks.items()}
    assert sizes[0.0] == {"layer1": 4, "layer2": 4, "heads": 4}
    assert all(rank < 4 for rank in sizes[0.5].values())
    assert told[0][0].startswith("single-task networks first")
    assert told[-1][1] == 1.0


def test_components_start_tensor_factorisation_from_random_factors(data):
    told = []
    model = TensorFactorisationLearner(components=2, **SHORT).fit(data, progress=lambda text, _: told.append(text))
    assert {ranks[0] for ranks in model.network.ranks.values()} == {2}
    assert not any("first" in text for text in told)


def test_a_row_of_one_task_passes_through_that_tasks_network_alone(data, monkeypatch):
    """Tasks share factors, yet each has a network of its own, so that other tasks' rows would cost it for nothing."""
    seen = set()
    plain = TensorFactorisation.all_scores

    def watched(network, inputs, own_rows=False, **options):
        if network.training:
            seen.add((own_rows, inputs["numeric"].dim()))
        return plain(network, inputs, own_rows, **options)

    monkeypatch.setattr(TensorFactorisation, "all_scores", watched)
    one_each = TaskData(
        data.tasks,
        data.inputs,
        {f"t{t}": Labels(np.arange(240)[t::4], np.linspace(-1, 1, 60)) for t in range(4)},
    )
    TensorFactorisationLearner(components=2, max_epochs=2, widths="8").fit(one_each)
    assert seen == {(True, 3)}


@pytest.mark.parametrize(
    "learner",
    [
        RelationshipNetworkLearner(own_layers=0, mode="authors", strength=1e-3, **SHORT),
        RelationshipNetworkLearner(own_layers=2, cov="mtrl", **SHORT),
        TensorFactorisationLearner(form="tt", **SHORT),
    ],
    ids=repr,
)
def test_a_saved_model_is_the_same_model(data, learner):
    model = learner.fit(data, seed=2)
    description, arrays = model.state()
    again = NetworkModel.from_state(data.tasks, json.loads(json.dumps(description)), arrays)
    for name, scores in model.predict(data).items():
        np.testing.assert_array_equal(again.predict(data)[name], scores)
    assert {n: r.to_json() for n, r in again.relations().items()} == {
        n: r.to_json() for n, r in model.relations().items()
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RelationshipNetworkLearner(strength=-1.0), "strength is -1.0"),
        (lambda: RelationshipNetworkLearner(own_layers=3), "give 0 to 2"),
        (lambda: RelationshipNetworkLearner(mode="stabel"), 'Did you mean "stable"'),
        (lambda: RelationshipNetworkLearner(cov="mlt"), "unknown cov"),
        (lambda: RelationshipNetworkLearner(refresh_every=0), "refresh_every is 0"),
        (lambda: TensorFactorisationLearner(form="tuker"), 'Did you mean "tucker"'),
        (lambda: TensorFactorisationLearner(tolerance=1.0), "tolerance is 1.0"),
        (lambda: TensorFactorisationLearner(components=-1), "components is -1"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
