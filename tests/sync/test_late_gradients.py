"""Parameters that are unfrozen, dropped for a step or left early: training goes on in every mode, ranks together."""

from collections.abc import Iterable

import pytest
import torch
from loops import DTYPE, Loop, random_batch
from mode_cases import ALL, TRAITS
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ddp_agent.distributed.comm import mean_


class Late(nn.Module):
    """A model whose second layer is frozen at first, and whose third one is left out in some steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(*sizes, dtype=DTYPE) for sizes in ((5, 4), (4, 4), (4, 4), (4, 3)))
        self.layers[1].requires_grad_(False)
        self.drops = True
        self.step = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.step += 1
        if self.step == 3:
            self.layers[1].requires_grad_(True)
        first, second, third, last = self.layers
        hidden = torch.tanh(second(torch.tanh(first(inputs))))
        hidden = hidden if self.drops and self.step in (1, 5) else third(hidden)
        outputs: Tensor = last(hidden)
        return outputs


class Whole(Late):
    def __init__(self) -> None:
        super().__init__()
        self.drops = False


def fused(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)


def trained(name: str, drops: bool) -> tuple[float, float, bool]:
    """Return the distance to the mean over ranks, to one process that has all ranks' batches, and what was learned."""
    model = Late if drops else Whole
    loop = Loop(ALL[name](), model=model, optimizer=fused).run(8).flush()
    mean = loop.weights
    mean_(mean, loop.topology.world)
    alone, batches = model(), [[random_batch(step, rank) for rank in range(2)] for step in range(1, 9)]
    optimizer = SGD(alone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for both in batches:
        inputs, target = (torch.cat(parts) for parts in zip(*both, strict=True))
        nn.functional.mse_loss(alone(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    whole = torch.cat([parameter.detach().reshape(-1) for parameter in alone.parameters()])
    second = loop.module.get_parameter("layers.1.weight")
    learned = not torch.equal(second, model().get_parameter("layers.1.weight"))
    return (loop.weights - mean).abs().max().item(), (loop.weights - whole).abs().max().item(), learned


@pytest.mark.parametrize("name", ALL)
def test_layers_that_are_unfrozen_are_trained_together(ranks2: RankPool, name: str) -> None:
    """A mean gradient is that of all batches, for late layers too."""
    for apart, off, learned in ranks2.run(trained, name, False):
        assert learned
        if TRAITS[name].identical != "never":
            assert apart < 1e-12
        if TRAITS[name].sends == "gradients":
            assert off < 1e-12


@pytest.mark.parametrize("name", [name for name in ALL if name != "allreduce in buckets"])
def test_layers_that_are_left_out_now_and_then_are_trained(ranks2: RankPool, name: str) -> None:
    """In DDP's own buckets they are refused: `test_state_policies.py`."""
    for apart, _, learned in ranks2.run(trained, name, True):
        assert learned
        if TRAITS[name].identical != "never":
            assert apart < 1e-12
