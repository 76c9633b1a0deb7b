import pytest
import torch
from tests.deep.networks import CARDINALITIES, table
from torch import nn

from polytask.core.errors import InputError
from polytask.deep import BranchedEncoder, Encoder, Recurrent, bilstm, convnet, mlp, pooled, resnet


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


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: mlp(3, seed=seed),
        lambda seed: convnet((1, 8, 8), seed=seed),
        lambda seed: resnet((1, 8, 8), seed=seed),
        lambda seed: bilstm(n_inputs=3, seed=seed),
    ],
    ids=["mlp", "convnet", "resnet", "bilstm"],
)
def test_one_seed_gives_one_encoder_and_global_random_state_is_left_alone(build):
    state = torch.get_rng_state()
    one, two, other = (list(build(seed).parameters()) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(one, two, strict=True))
    assert not one[0].equal(other[0])


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


def image(*lead, shape=(2, 8, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)}


LENGTH = torch.tensor([5, 1, 3, 5, 2, 0, 4])


def sequence(*lead, length=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = {"sequence": torch.randn(*lead, 5, 3, generator=generator, dtype=torch.float64)}
    if length:
        inputs["length"] = LENGTH.expand(lead)
    return inputs


def text(*lead, seed=0):
    tokens = torch.randint(0, 11, (*lead, 5), generator=torch.Generator().manual_seed(seed))
    return {"tokens": tokens, "length": LENGTH.expand(lead)}


ENCODERS = {
    "convnet": (lambda: convnet((2, 8, 9), (3, 4), widths=(6,)), image),
    "convnet, batch norm, mean": (
        lambda: convnet((2, 8, 9), (3, 4), widths=(), norm="batch", activation="tanh"),
        image,
    ),
    "convnet, group norm": (lambda: convnet((2, 8, 9), (3, 4), norm="group", widths=(6, 5), pool=1, kernel=5), image),
    "resnet": (lambda: resnet((2, 8, 9), (3, 4), blocks=2), image),
    "resnet, group norm": (lambda: resnet((2, 8, 9), (4, 4), norm="group"), image),
    "bilstm of tokens": (lambda: bilstm(vocabulary=11, embedding=3, hidden=(4, 2)), text),
    "bilstm of vectors": (lambda: bilstm(n_inputs=3, hidden=(4, 2)), sequence),
    "gru without lengths": (
        lambda: bilstm(n_inputs=3, hidden=(4,), cell="gru", bidirectional=False),
        lambda *lead: sequence(*lead, length=False),
    ),
}


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_branched_encoder_of_images_or_sequences_equals_its_encoder(kind, own):
    build, inputs = ENCODERS[kind]
    encoder = build().double()
    branched = BranchedEncoder(encoder, 3).double()
    rows = inputs(*((3, 7) if own else (7,)))
    features = branched(rows, own)
    features.square().sum().backward()
    assert features.shape == (3, 7, encoder.n_features)
    total = 0
    for k in range(3):
        expected = encoder({name: tensor[k] if own else tensor for name, tensor in rows.items()})
        torch.testing.assert_close(features[k], expected, rtol=0, atol=1e-10)
        total = total + expected.square().sum()
    total.backward()
    for (name, weight), stacked in zip(encoder.named_parameters(), branched.parameters(), strict=True):
        gradient = stacked.grad.sum(0)
        gradient = gradient if gradient.shape == weight.shape else gradient.T
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_stage_has_the_channels_it_says_and_pools_to_rows_of_them(kind):
    build, inputs = ENCODERS[kind]
    encoder = build().double()
    assert list(encoder.channels) == list(encoder.names)
    for name, output in encoder.outputs(inputs(7)).items():
        assert output.shape[encoder.channel_axis] == encoder.channels[name]
        assert pooled(output, encoder.channel_axis).shape == (7, encoder.channels[name])
    assert encoder.channels[encoder.names[-1]] == encoder.n_features


@pytest.mark.parametrize("kind", ENCODERS)
def test_stages_in_a_row_are_the_branched_encoder(kind):
    build, inputs = ENCODERS[kind]
    branched = BranchedEncoder(build().double(), 3, identical=False)
    rows, only = inputs(7), torch.tensor([2, 0])
    x, own = rows, False
    for name in branched.names:
        x, own = branched.run_stage(name, x, own, only, length=rows.get("length"))
    features = pooled(x, branched.channel_axis, own, length=rows.get("length"))
    torch.testing.assert_close(features, branched(rows)[only], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_layers_are_the_librarys_on_packed_rows(cell):
    layer = Recurrent(3, 4, cell=cell).double()
    library = (nn.LSTM if cell == "lstm" else nn.GRU)(3, 4, batch_first=True, bidirectional=True).double()
    for suffix, own in (("", layer.ahead), ("_reverse", layer.back)):
        for name, weight in own.named_parameters():
            library.get_parameter(name + suffix).data.copy_(weight.data)
    rows = sequence(7)
    some = rows["length"] > 0
    packed = nn.utils.rnn.pack_padded_sequence(
        rows["sequence"][some], rows["length"][some], batch_first=True, enforce_sorted=False
    )
    expected, _ = nn.utils.rnn.pad_packed_sequence(library(packed)[0], batch_first=True, total_length=5)
    found = layer(rows)
    torch.testing.assert_close(found[some], expected, rtol=0, atol=1e-12)
    assert (found[~some] == 0).all()
    full = layer(rows["sequence"])
    torch.testing.assert_close(full, library(rows["sequence"])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [True, False])
def test_what_stands_in_padding_reaches_neither_features_nor_gradients(own):
    branched = BranchedEncoder(bilstm(n_inputs=3, hidden=(4, 2)).double(), 2)
    rows = sequence(*((2, 7) if own else (7,)))
    x = rows["sequence"].requires_grad_()
    branched(rows, own).square().sum().backward()
    beyond = torch.arange(5) >= rows["length"].unsqueeze(-1)
    assert (x.grad[beyond] == 0).all()
    assert (x.grad[~beyond] != 0).all()
    other = x.detach().masked_fill(beyond.unsqueeze(-1), 7.0)
    assert branched({**rows, "sequence": other}, own).equal(branched(rows, own))


@pytest.mark.parametrize("own", [True, False])
def test_pooling_is_the_mean_over_valid_positions(own):
    lead = (3, 7) if own else (7,)
    x = image(*lead)["image"]
    torch.testing.assert_close(pooled(x, 1, own), x.mean((-1, -2)), rtol=0, atol=1e-14)
    rows = sequence(*lead)
    mean = pooled(rows["sequence"], -1, own, length=rows["length"])
    for k in range(3 if own else 1):
        for b, length in enumerate(LENGTH):
            row = (rows["sequence"][k] if own else rows["sequence"])[b, :length]
            expected = row.mean(0) if length else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close((mean[k] if own else mean)[b], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(pooled(rows["sequence"], -1, own), rows["sequence"].mean(-2), rtol=0, atol=1e-14)
    assert pooled(mean, -1, own) is mean


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
        (lambda: Encoder({"a": nn.Identity()}, n_features=3, channels={"b": 3}), "name the same stages"),
        (lambda: Encoder({"a": nn.Identity()}, n_features=3, channel_axis=2), "channel_axis is 2"),
        (lambda: convnet((8, 8)), "height and width"),
        (lambda: convnet((1, 8, 8), (4, 0)), "at least one channel"),
        (lambda: convnet((1, 8, 8), (4, 4, 4, 4)), "fewer stages"),
        (lambda: convnet((1, 8, 8), kernel=4), "odd number"),
        (lambda: convnet((1, 8, 8), norm="layer"), 'unknown norm "layer"'),
        (lambda: resnet((1, 8, 8), blocks=0), "at least one block"),
        (lambda: bilstm(hidden=(3,)), "for tokens"),
        (lambda: bilstm(n_inputs=3, hidden=(0,)), "at least one unit"),
        (lambda: bilstm(n_inputs=3, cell="rnn"), "unknown cell"),
        (lambda: BranchedEncoder(mlp(3), 2).weights(["layer9"]), "unknown stage"),
        (lambda: BranchedEncoder(Encoder({"a": nn.LSTM(1, 1)}, n_features=1), 2), "LSTM"),
    ],
)
def test_impossible_encoders_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
