"""Models: every yaml builds a model that fits suitable data; unsuitable data are refused by name."""

from pathlib import Path
from typing import Any

import model_inputs
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ddp_agent.config.registry import build
from ddp_agent.data.datasets.digits import Digits
from ddp_agent.data.loader import Share, micro_batches
from ddp_agent.data.sample_order import SampleOrder
from ddp_agent.errors import ConfigError
from ddp_agent.models.cnn import CNN
from ddp_agent.models.linear import Linear
from ddp_agent.models.mlp import MLP
from ddp_agent.models.resnet20 import ResNet20
from ddp_agent.models.torchvision_model import TorchvisionModel

CONF = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))
FOR_IMAGES = [name for name in NAMES if model_inputs.kind(name) == "images"]
SHAPES = [(10,), (1, 8, 8), (1, 28, 28), (3, 32, 32)]
REFUSED = {(name, (10,)) for name in ("cnn", "resnet20", "speech_cnn", "torchvision")}


def node(name: str, **values: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()} | values


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FOR_IMAGES)
def test_every_yaml_for_images_builds_and_learns_with_every_parameter(name: str, shape: tuple[int, ...]) -> None:
    if (name, shape) in REFUSED:
        with pytest.raises(
            ConfigError, match=r"found data of shape \(10,\), expected images \(channels, height, width\)"
        ):
            build("model", node(name), input_shape=shape, outputs=7)
        return
    model = build("model", node(name), input_shape=shape, outputs=7)
    output = model(torch.randn(3, *shape))
    assert output.shape == (3, 7)
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name: str) -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = build("model", node(name), **model_inputs.arguments(name, outputs=10))
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_IMAGES])
def test_every_yaml_for_numbers_of_things_learns_with_every_parameter(name: str) -> None:
    model = build("model", node(name), **model_inputs.arguments(name, outputs=7))
    output = model(model_inputs.inputs(name, samples=64))
    assert len(output) == 64 and output.isfinite().all()
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_linear_is_wx_plus_b() -> None:
    model = Linear(input_shape=(2, 3), outputs=4).double()
    inputs = torch.randn(5, 2, 3, dtype=torch.float64)
    weight, bias = model.parameters()
    torch.testing.assert_close(model(inputs), inputs.reshape(5, 6) @ weight.T + bias)
    assert count(model) == 4 * 6 + 4


def test_mlp_has_the_layers_that_were_asked_for() -> None:
    model = MLP(input_shape=(10,), outputs=2, hidden=(32, 16))
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [
        (32, 10),
        (32,),
        (16, 32),
        (16,),
        (2, 16),
        (2,),
    ]
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 2
    assert count(MLP(input_shape=(10,), outputs=2, hidden=())) == 22


def test_cnn_is_small() -> None:
    assert count(build("model", node("cnn"), input_shape=(1, 28, 28), outputs=10)) < 250_000


def test_cnn_refuses_more_layers_than_pixels() -> None:
    CNN(input_shape=(1, 8, 8), outputs=2, channels=(4, 4, 4), hidden=8)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"found 4 layers.*expected at most 3"):
        CNN(input_shape=(1, 8, 8), outputs=2, channels=(4, 4, 4, 4), hidden=8)


def test_resnet20_is_the_published_one() -> None:
    model = ResNet20(input_shape=(3, 32, 32), outputs=10)
    assert count(model) == 269_722  # "0.27M" in table 6 of the paper
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 20
    assert model.blocks(model.stem(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 8, 8)


def test_resnet20_shortcuts_carry_the_input() -> None:
    model = ResNet20(input_shape=(1, 8, 8), outputs=2).eval()
    widening = model.blocks[3]
    for parameter in widening.parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(2, 16, 8, 8)
    output = widening(images)
    assert torch.equal(output[:, :16], images[:, :, ::2, ::2])
    assert not output[:, 16:].any()


def test_torchvision_has_the_published_size() -> None:
    assert count(TorchvisionModel(input_shape=(3, 224, 224), outputs=1000, arch="resnet18")) == 11_689_512


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet"])
def test_torchvision_takes_the_channels_and_classes_of_the_data(arch: str) -> None:
    model = TorchvisionModel(input_shape=(1, 64, 64), outputs=5, arch=arch)
    assert all(module.training for module in model.modules())
    assert all(not buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked"))
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)


def test_torchvision_names_what_is_near() -> None:
    with pytest.raises(ConfigError, match=r"model: arch: found 'resnet_18'.*resnet18"):
        build("model", node("torchvision", arch="resnet_18"), input_shape=(3, 32, 32), outputs=10)
    with pytest.raises(ConfigError, match="deeplabv3"):  # known to torchvision, but no classifier
        build("model", node("torchvision", arch="deeplabv3_resnet50"), input_shape=(3, 32, 32), outputs=10)


@pytest.mark.parametrize(("arch", "size"), [("vit_b_32", 32), ("alexnet", 28)])
def test_torchvision_refuses_images_that_do_not_fit(arch: str, size: int) -> None:
    with pytest.raises(ValueError, match=rf"'{arch}', which cannot take images of shape \(3, {size}, {size}\)"):
        TorchvisionModel(input_shape=(3, size, size), outputs=10, arch=arch)


def test_mlp_learns_digits() -> None:
    task = Digits(loss="cross_entropy").load()
    torch.manual_seed(0)
    model = build("model", node("mlp"), input_shape=task.data.input_shape, outputs=task.objective.outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = micro_batches(
        task.data,
        SampleOrder(1438, seed=0),
        Share(rank=0, world_size=1, micro_batch=64),
        steps=range(1, 201),
        device=torch.device("cpu"),
    )
    for inputs, targets in batches:
        torch.autograd.backward(task.objective.loss(model(inputs), targets))
        optimizer.step()
        optimizer.zero_grad()
    inputs, targets = task.data.test[:]
    assert task.objective.metric(model(inputs), targets).mean() > 0.93


# Speech


def test_speech_cnn_is_small_and_takes_clips_of_any_length() -> None:
    model = build("model", node("speech_cnn"), input_shape=(1, 40, 63), outputs=16)
    assert count(model) == 63_488
    assert model(torch.randn(2, 1, 40, 250)).shape == model(torch.randn(2, 1, 40, 7)).shape == (2, 16)
    assert not list(model.buffers())


def test_speech_cnn_hears_what_is_said_and_hardly_when() -> None:
    torch.manual_seed(0)
    model = build("model", node("speech_cnn"), input_shape=(1, 40, 128), outputs=16).eval()
    low, high = (torch.randn(1, 1, 40, 64) + sign * torch.linspace(2, -2, 40).view(40, 1) for sign in (1, -1))
    outputs = [model(torch.cat(parts, 3)) for parts in ((low, high), (high, low), (low, low), (high, high))]
    assert (outputs[0] - outputs[1]).abs().max() < 0.25 * (outputs[2] - outputs[3]).abs().max()


def test_speech_cnn_normalises_channels_in_eights() -> None:
    with pytest.raises(ConfigError, match=r"channels: found 20, expected multiples of 8"):
        build("model", node("speech_cnn", channels=[16, 20]), input_shape=(1, 40, 63), outputs=16)


# Texts


def text_model(name: str, **values: Any) -> nn.Module:
    """Return a model in evaluation mode, without dropout."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"input_shape": (6,), "outputs": 5, "vocabulary": 11}
    return build("model", node(name, **values), **given).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["text_bag", "text_transformer"])
def test_padding_changes_nothing(name: str) -> None:
    model = text_model(name)
    tokens = torch.tensor([[3, 1, 4, 0, 0, 0], [3, 1, 4, 1, 5, 9]])
    before = model(tokens)
    assert not torch.allclose(before[0], before[1], atol=1e-4)  # control
    with torch.no_grad():
        table = next(part for part in model.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag))
        table.weight[0] = 7.0  # the row of the padding
    torch.testing.assert_close(model(tokens), before)
    assert model(torch.zeros(1, 6, dtype=torch.int64)).isfinite().all()


def test_a_bag_has_no_order_and_a_transformer_has() -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    for name, same in (("text_bag", True), ("text_transformer", False), ("gpt", False)):
        model = text_model(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)  # so that differences are seen
        outputs, turned = (model(order).flatten(0, -2)[-1] for order in (tokens, tokens[:, [2, 1, 0, 3, 4, 5]]))
        assert torch.allclose(outputs, turned, atol=1e-5) == same, name


def test_a_language_model_sees_what_came_before_and_nothing_later() -> None:
    model = text_model("gpt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # so that differences are seen
    tokens = torch.tensor([3, 1, 4, 1, 5, 9])
    for position in range(6):
        outputs = model(torch.stack([tokens, tokens.index_fill(0, torch.tensor([position]), 7)]))
        changed = ~torch.isclose(outputs[0], outputs[1], atol=1e-5).all(1)
        assert changed.tolist() == [later >= position for later in range(6)]


@pytest.mark.parametrize("name", ["text_bag", "text_transformer"])
def test_hidden_tokens_are_hidden_in_training_only(name: str) -> None:
    model = text_model(name, token_dropout=0.5, dropout=0.0)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]]).expand(40, -1)
    assert len(model(tokens).unique(dim=0)) == 1
    assert len(model.train()(tokens).unique(dim=0)) > 5
    assert len(text_model(name, token_dropout=0.0, dropout=0.0).train()(tokens).unique(dim=0)) == 1


def test_models_for_texts_refuse_images() -> None:
    for name in ("text_bag", "text_transformer", "gpt"):
        with pytest.raises(ConfigError, match=r"found data of shape \(1, 8, 8\), expected texts \(tokens,\)"):
            build("model", node(name), input_shape=(1, 8, 8), outputs=5, vocabulary=11)
    for name in ("text_transformer", "gpt"):
        with pytest.raises(ConfigError, match=r"heads: found 5, expected a divisor of width 128"):
            build("model", node(name, heads=5), input_shape=(6,), outputs=5, vocabulary=11)


# Users and items


def test_factorisation_is_a_product_two_biases_and_the_mean() -> None:
    torch.manual_seed(0)
    model = build("model", node("matrix_factorisation", width=3), users=5, items=7, mean=3.5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    user, item = model.user_vectors.weight, model.item_vectors.weight
    outputs = model(torch.tensor([[4, 0, 6], [1, 2, 2]]))
    for row, (u, *items) in enumerate([(4, 0, 6), (1, 2, 2)]):
        for column, i in enumerate(items):
            biases = model.user_bias.weight[u, 0] + model.item_bias.weight[i, 0]
            torch.testing.assert_close(outputs[row, column], user[u] @ item[i] + biases + 3.5)


@pytest.mark.parametrize("name", ["matrix_factorisation", "neumf"])
def test_what_is_rated_does_not_depend_on_what_else_is(name: str) -> None:
    torch.manual_seed(0)
    model = build("model", node(name), users=5, items=7, mean=2.0).eval()
    rows = torch.tensor([[4, 0, 6, 3], [1, 2, 2, 5]])
    one_by_one = [model(rows[:, [0, column]]) for column in (1, 2, 3)]
    torch.testing.assert_close(model(rows), torch.cat(one_by_one, 1))
    assert (model(rows) - 2.0).abs().max() < 0.7  # begins near the mean
