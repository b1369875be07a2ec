"""The table of a model's layers: parameters as torch counts them, output shapes, FLOPs by known formulas."""

import logging
import re

import pytest
import torch
from torch import Tensor, nn

from ddp_agent.models.common.blocks import Block
from ddp_agent.models.common.layer_table import layer_table


def rows(table: str) -> dict[str, list[str]]:
    """Return the cells of each row by the name of its layer."""
    cells = [
        [cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")
    ]
    return {row[0]: row for row in cells[2:]}


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.embed(tokens))
        return outputs


def test_the_layer_table_counts_what_torch_counts() -> None:
    table = layer_table(Tied())
    assert "| (model) | Tied | scale 5 | 5 |" in table
    assert "| head | Linear | weight 7×3 | 21 |" in table
    assert f"**{5 + 21}**" in table


def test_shapes_and_flops_of_known_layers() -> None:
    """A matrix costs 2 x inputs x outputs each time that it is applied. Layers without products cost nothing."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 7, 4))
    for samples in (1, 3):
        layers = rows(layer_table(model, torch.randn(samples, 3, 5, 7)))
        assert layers["0"][4:] == ["8×5×7", f"{2 * 3 * 9 * 8 * 35:,}"]
        assert layers["1"][4:] == ["8×5×7", "0"]
        assert layers["3"][4:] == ["4", f"{2 * 280 * 4:,}"]
        assert number(layers["total"][5]) == 2 * 3 * 9 * 8 * 35 + 2 * 280 * 4


def test_attention_outside_any_layer_belongs_to_the_module_that_attends() -> None:
    tokens, width = 6, 8
    model = nn.Sequential(Block(width, heads=2, dropout=0.0, blocks=1), nn.Linear(width, 3))
    layers = rows(layer_table(model, torch.randn(1, tokens, width)))
    if "0" not in layers:
        pytest.skip("this torch counts no attention on a CPU")
    assert number(layers["0"][5]) == 2 * 2 * tokens * tokens * width
    assert number(layers["0.attention_in"][5]) == 2 * tokens * width * 3 * width
    total = sum(number(row[5]) for name, row in layers.items() if name != "total")
    assert number(layers["total"][5]) == total


class Listed(nn.Module):
    """A model whose layers are in a list, which is never called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers[1](self.layers[0](inputs)) * self.scale
        return outputs


def test_layers_in_a_list_count_once() -> None:
    layers = rows(layer_table(Listed(), torch.randn(1, 3)))
    assert [number(layers[name][5]) for name in ("(model)", "layers.0", "layers.1", "total")] == [0, 18, 18, 36]


def test_looking_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    assert "| 1 | BatchNorm1d |" in layer_table(model, torch.randn(1, 3, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_cannot_be_run_so_has_its_table_without(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 4)
    with caplog.at_level(logging.WARNING):
        assert layer_table(model, torch.randn(1, 5)) == layer_table(model)
    assert re.search(r"no shapes and FLOPs of the model's layers: RuntimeError: ", caplog.text)
