import pytest
import torch
from tests.deep.networks import CARDINALITIES, table
from torch import nn

from polytask.core.errors import InputError
from polytask.deep import BranchedEncoder, Encoder, mlp


def test_stages_are_named_in_order_and_sizes_add_up():
    encoder = mlp(3, (8, 5), cardinalities=CARDINALITIES, norm="layer", dropout=0.1)
    assert list(encoder.stages) == ["input", "layer1", "layer2"]
    assert encoder.stages["layer1"][0].in_features == 3 + 2 + 4  # widths (4 + 1) // 2 and (7 + 1) // 2
    assert encoder.n_features == 5
    assert encoder.float()(
        {k: v.float() if k == "numeric" else v for k, v in table(6, categorical=True).items()}
    ).shape == (6, 5)


def test_an_encoder_without_layers_passes_the_inputs_on():
    inputs = table(6)
    assert mlp(3, ())(inputs).equal(inputs["numeric"])
    assert mlp(3, ()).n_features == 3


def test_an_encoder_of_codes_only_works():
    inputs = table(6, categorical=True)
    inputs["numeric"] = inputs["numeric"][:, :0].float()
    assert mlp(0, (4,), cardinalities=CARDINALITIES, embedding=3)(inputs).shape == (6, 4)


def test_one_seed_gives_one_encoder_and_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    one, two, other = mlp(3, seed=1), mlp(3, seed=1), mlp(3, seed=2)
    assert torch.get_rng_state().equal(state)
    assert one.stages["layer1"][0].weight.equal(two.stages["layer1"][0].weight)
    assert not one.stages["layer1"][0].weight.equal(other.stages["layer1"][0].weight)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_a_branched_encoder_equals_its_encoder(norm, own):
    encoder = mlp(3, (8, 9, 4), cardinalities=CARDINALITIES, norm=norm, activation="tanh").double()
    branched = BranchedEncoder(encoder, 3).double()
    inputs = table(*((3, 7) if own else (7,)), categorical=True)
    features = branched(inputs, own)
    for k in range(3):
        expected = encoder({name: tensor[k] if own else tensor for name, tensor in inputs.items()})
        torch.testing.assert_close(features[k], expected, rtol=0, atol=1e-12)


def test_weights_of_a_branched_encoder_are_named_by_stage():
    branched = BranchedEncoder(mlp(3, (8, 5)), 2)
    assert {name: tuple(weight.shape) for name, weight in branched.weights(["layer2"]).items()} == {
        "layer2.0.weight": (2, 8, 5),
        "layer2.0.bias": (2, 5),
    }
    assert len(branched.weights()) == 4


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mlp(0), "at least one column"),
        (lambda: mlp(3, (8, 0)), "at least one unit"),
        (lambda: mlp(3, dropout=1.0), "dropout is 1.0"),
        (lambda: mlp(3, activation="rleu"), 'Did you mean "relu"'),
        (lambda: mlp(3, norm="bath"), 'Did you mean "batch"'),
        (lambda: mlp(3, cardinalities=(4,), embedding=0), "embedding is 0"),
        (lambda: Encoder({}, n_features=3), "stages is empty"),
        (lambda: BranchedEncoder(mlp(3), 2).weights(["layer9"]), "unknown stage"),
        (lambda: BranchedEncoder(Encoder({"a": nn.LSTM(1, 1)}, n_features=1), 2), "LSTM"),
    ],
)
def test_impossible_encoders_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
