import pytest
import torch
from tests.deep.networks import MIXED
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, ViTConfig, ViTModel

from polytask.core.errors import InputError
from polytask.deep import (
    BranchedEncoder,
    HardSharing,
    MultiTaskLoss,
    SingleTask,
    from_hugging_face,
    from_sequential,
    from_timm,
)

ROWS = 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perturbed(encoder, n=3):
    """n copies of an encoder whose weights differ, and the copies as plain stages."""
    branched = BranchedEncoder(encoder, n).double()
    generator = torch.Generator().manual_seed(5)
    for weight in branched.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return branched


def assert_branches_equal_the_copies(branched, inputs, *, own):
    """Every branch is its plain copy, in features and in the gradient of every weight."""
    rows = {name: torch.stack([tensor] * branched.n) if own else tensor for name, tensor in inputs.items()}
    features = branched(rows, own)
    features.square().sum().backward()
    for k in range(branched.n):
        plain = nn.ModuleDict({name: stage.copy(k) for name, stage in branched.stages.items()})
        x, length = inputs, inputs.get("length")
        for stage in plain.values():
            reads = getattr(stage, "reads_length", False) and length is not None
            x = stage({"sequence": x, "length": length} if reads and isinstance(x, torch.Tensor) else x)
        expected = _mean(x, branched.channel_axis, length)
        torch.testing.assert_close(features[k], expected, rtol=0, atol=1e-10)
        expected.square().sum().backward()
        for name, weight in plain.named_parameters():
            stage, _, rest = name.partition(".")
            stacked = branched.stages[stage].weights[rest].grad[k]
            gradient = weight.grad if stacked.shape == weight.shape else weight.grad.T
            torch.testing.assert_close(stacked, gradient, rtol=0, atol=1e-10)


def _mean(x, channel_axis, length):
    if x.dim() == 2:
        return x
    if channel_axis == 1:
        return x.flatten(2).mean(2)
    if length is None:
        return x.flatten(1, -2).mean(1)
    return torch.stack([row[: int(size)].mean(0) for row, size in zip(x, length, strict=True)])


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
    )


def test_every_child_of_a_sequential_is_a_stage_and_a_dry_run_finds_its_channels():
    module = convolutions().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    encoder = from_sequential(module, torch.zeros(2, 1, 8, 8))
    assert encoder.channels == {
        "input": 1,
        "layer0": 4,
        "layer1": 4,
        "layer2": 4,
        "layer3": 4,
        "layer4": 64,
        "layer5": 5,
    }
    assert encoder.n_features == 5
    assert encoder.channel_axis == 1
    assert all(part.training for part in module.modules())
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


def test_stages_may_join_children_and_keep_their_names():
    module = convolutions()
    encoder = from_sequential(module, torch.zeros(2, 1, 8, 8), stages={"conv": "0123", "dense": ["4", "5"]})
    assert encoder.channels == {"input": 1, "conv": 4, "dense": 5}
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert encoder({"image": x}).equal(module(x))
    assert list(BranchedEncoder(encoder, 2).weights(["dense"])) == ["dense.5.weight", "dense.5.bias"]


@pytest.mark.parametrize("own", [True, False])
def test_branches_of_a_sequential_are_its_copies(own):
    module = convolutions().eval()
    branched = perturbed(from_sequential(module, torch.zeros(2, 1, 8, 8))).eval()
    assert_branches_equal_the_copies(branched, {"image": drawn(ROWS, 1, 8, 8)}, own=own)


def test_a_sequential_of_vectors_is_read_from_sequences_and_one_of_columns_from_numbers():
    per_position = from_sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(2, 5, 3))
    assert (per_position.channel_axis, per_position.channels) == (-1, {"input": 3, "layer0": 4, "layer1": 4})
    assert per_position({"sequence": torch.zeros(2, 5, 3)}).shape == (2, 4)
    along = from_sequential(nn.Sequential(nn.Conv1d(3, 4, 3)), {"sequence": torch.zeros(2, 3, 9)}, channel_axis=1)
    assert along.channels == {"input": 3, "layer0": 4}
    table = from_sequential(nn.Sequential(nn.Linear(3, 4)), torch.zeros(2, 3))
    assert table({"numeric": torch.zeros(2, 3)}).shape == (2, 4)


class Features(nn.ModuleDict):
    """What ``timm.create_model(..., features_only=True)`` returns: children in order, some of them returned."""

    def __init__(self):
        super().__init__(
            {
                "conv1": nn.Conv2d(3, 4, 3, stride=2, padding=1),
                "act1": nn.ReLU(),
                "maxpool": nn.MaxPool2d(2),
                "layer1": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
                "layer2": nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.SiLU()),
            }
        )
        self.return_layers = {"act1": "0", "layer1": "1", "layer2": "2"}
        self.output_fmt = "NCHW"

    def forward(self, x):
        found = []
        for name, child in self.items():
            x = child(x)
            if name in self.return_layers:
                found.append(x)
        return found


@pytest.mark.parametrize("own", [True, False])
def test_a_feature_network_has_a_stage_per_feature_map(own):
    encoder = from_timm(Features().eval(), torch.zeros(2, 3, 16, 16))
    assert encoder.channels == {"input": 3, "act1": 4, "layer1": 6, "layer2": 8}
    assert_branches_equal_the_copies(perturbed(encoder).eval(), {"image": drawn(ROWS, 3, 16, 16)}, own=own)


class Blocks(nn.Module):
    """What timm's EfficientNet looks like with ``features_only=True`` or, with ``act1``, its MobileNetV3."""

    def __init__(self, act1=None):
        super().__init__()
        self.conv_stem, self.bn1 = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        if act1 is not None:
            self.act1 = act1
        self.blocks = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.SiLU())
        )

    def forward(self, x):
        x = self.bn1(self.conv_stem(x))
        x = self.act1(x) if hasattr(self, "act1") else x
        return [x := block(x) for block in self.blocks]


@pytest.mark.parametrize("act1", [None, nn.Hardswish(inplace=True)])
def test_a_network_of_stem_and_blocks_has_a_stage_for_each(act1):
    encoder = from_timm(Blocks(act1).eval(), torch.zeros(2, 3, 16, 16))
    assert encoder.channels == {"input": 3, "stem": 4, "stage1": 4, "stage2": 6}
    assert_branches_equal_the_copies(perturbed(encoder).eval(), {"image": drawn(ROWS, 3, 16, 16)}, own=False)


def bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    return BertModel(BertConfig(vocab_size=20, max_position_embeddings=16, **sizes)).eval()


def distilled():
    return DistilBertModel(
        DistilBertConfig(vocab_size=20, max_position_embeddings=16, dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    ).eval()


def vision():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    return ViTModel(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes)).eval()


def text(length=True):
    inputs = {"tokens": torch.randint(1, 20, (ROWS, 6), generator=torch.Generator().manual_seed(0))}
    return {**inputs, "length": torch.tensor([6, 3, 1, 5])} if length else inputs


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("build", "inputs"),
    [(bert, text()), (bert, text(length=False)), (distilled, text()), (vision, {"image": drawn(ROWS, 1, 8, 8)})],
    ids=["bert", "bert without lengths", "distilbert", "vit"],
)
def test_branches_of_a_hugging_face_model_are_its_copies(build, inputs, own):
    model = build()
    encoder = from_hugging_face(model, {name: x.float() if name == "image" else x for name, x in inputs.items()})
    assert list(encoder.channels)[:3] == ["input", "layer1", "layer2"]
    assert set(encoder.channels.values()) == {8}
    assert_branches_equal_the_copies(perturbed(encoder, 2).eval(), inputs, own=own)


def test_features_of_a_hugging_face_model_are_the_mean_of_its_last_hidden_states():
    model, inputs = bert(), text()
    mask = (torch.arange(6) < inputs["length"][:, None]).long()
    hidden = model(input_ids=inputs["tokens"], attention_mask=mask).last_hidden_state
    expected = (hidden * mask[..., None]).sum(1) / inputs["length"][:, None]
    torch.testing.assert_close(from_hugging_face(model, inputs)(inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", [SingleTask, HardSharing])
def test_tasks_train_on_a_hugging_face_model(network):
    inputs = text()
    tasks = MIXED[:2]
    trained = network(tasks, from_hugging_face(bert(), inputs)).train()
    optimiser = torch.optim.Adam(trained.parameters(), lr=1e-2)
    targets, present = torch.tensor([[1.0, 0, -1, 0.5], [0, 1, 1, 0]]), torch.ones(2, ROWS, dtype=torch.bool)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = MultiTaskLoss(tasks)(trained.all_scores(inputs), targets, present).sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class Crossing(nn.ModuleDict):
    """Its forward does more than its children in a row."""

    def __init__(self):
        super().__init__({"a": nn.Conv2d(1, 2, 1), "b": nn.Conv2d(2, 2, 1)})
        self.return_layers = {"a": "0", "b": "1"}

    def forward(self, x):
        first = self["a"](x)
        return [first, self["b"](first + 1)]


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: from_sequential(Doubled(nn.Linear(3, 4)), torch.zeros(2, 3)), "give an nn.Sequential"),
        (lambda: from_sequential(nn.Sequential(nn.Linear(3, 4)), torch.zeros(3)), "example has shape"),
        (lambda: from_sequential(convolutions(), torch.zeros(2, 1, 8, 8), stages={"a": ["0"]}), "name every child"),
        (
            lambda: from_sequential(nn.Sequential(nn.Linear(3, 4)), {"a": torch.zeros(2), "b": torch.zeros(2)}),
            "one input",
        ),
        (lambda: from_sequential(nn.Sequential(nn.Flatten(0), nn.Linear(6, 4)), torch.zeros(2, 3)), 'stage "layer0"'),
        (lambda: from_timm(convolutions(), torch.zeros(2, 1, 8, 8)), "features_only=True"),
        (lambda: from_timm(Crossing(), torch.zeros(2, 1, 8, 8)), "does more between them"),
        (lambda: from_hugging_face(convolutions(), text()), "embeddings and a list"),
        (lambda: from_hugging_face(bert(), {"numeric": torch.zeros(2, 3)}), 'give "tokens" or "image"'),
    ],
)
def test_networks_that_are_no_chain_of_stages_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
