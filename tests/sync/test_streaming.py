"""streaming_diloco: the definition worked out by hand, what it is a case of, and how a model is cut into fragments."""

from typing import Any

import pytest
import torch
from loops import DTYPE, Loop, alone, apart, mlp, sgd, train
from pieces import REDUCERS
from rank_pool import RankPool
from torch import Tensor, nn
from torch.optim import SGD

from ddp_agent.distributed.comm import Comm
from ddp_agent.reducers import Dense
from ddp_agent.reducers.base import Finish
from ddp_agent.sync import DiLoCo, StreamingDiLoCo
from ddp_agent.sync.engine.fragments import by_modules, equal_cuts

# Two parameters of one number each, so two fragments; each inner step takes 2 off both. Outer lr 2, no momentum:
# the anchor moves by twice the change. H = 6: the first is applied after steps 3 and 9, the second after 6 and 12.
#
# delay 0, alpha 0: -6 after step 3, D = 6, anchor -12, and the parameter with it; six steps later -24, D = 12,
# anchor -36. The second: -12 after step 6, D = 12, anchor -24; -36 after step 12, D = 12, anchor -48.
# delay 1: D is what it was one step earlier, 4 after step 2, so the anchor becomes -8 after step 3; and so on.
# alpha 1: a rank keeps its own, and only the anchor moves. alpha 1/2: half way between both.
WORKED: dict[tuple[int, float], tuple[list[float], list[float]]] = {
    (0, 0.0): ([-2, -4, -12, -14, -16, -18, -20, -22, -36, -38, -40, -42],
               [-2, -4, -6, -8, -10, -24, -26, -28, -30, -32, -34, -48]),
    (0, 0.5): ([-2, -4, -9, -11, -13, -15, -17, -19, -25.5, -27.5, -29.5, -31.5],
               [-2, -4, -6, -8, -10, -18, -20, -22, -24, -26, -28, -33]),
    (0, 1.0): ([-2, -4, -6, -8, -10, -12, -14, -16, -18, -20, -22, -24],
               [-2, -4, -6, -8, -10, -12, -14, -16, -18, -20, -22, -24]),
    (1, 0.0): ([-2, -4, -8, -10, -12, -14, -16, -18, -28, -30, -32, -34],
               [-2, -4, -6, -8, -10, -20, -22, -24, -26, -28, -30, -40]),
    (1, 0.5): ([-2, -4, -7, -9, -11, -13, -15, -17, -22.5, -24.5, -26.5, -28.5],
               [-2, -4, -6, -8, -10, -16, -18, -20, -22, -24, -26, -30]),
    (1, 1.0): ([-2, -4, -6, -8, -10, -12, -14, -16, -18, -20, -22, -24],
               [-2, -4, -6, -8, -10, -12, -14, -16, -18, -20, -22, -24]),
}  # fmt: skip
# With alpha 1 it shows in the anchors, after steps 6 and 12. Delay 0: 0 - 2 * 6, then D = -12 + 18 = 6; 0 - 2 * 12,
# then D = -24 + 24 = 0. Delay 1: 0 - 2 * 4, then D = -8 + 16 = 8; 0 - 2 * 10, then D = -20 + 22 = 2.
ANCHORS = {0: [(-12.0, -24.0), (-24.0, -24.0)], 1: [(-8.0, -20.0), (-24.0, -24.0)]}


class TwoNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, dtype=DTYPE))
        self.second = nn.Parameter(torch.zeros(1, dtype=DTYPE))


def worked(delay: int, alpha: float) -> tuple[list[list[float]], list[tuple[float, ...]]]:
    """The parameters after every step, and the anchors after every period."""
    model = TwoNumbers()
    optimizer = SGD(model.parameters(), lr=1.0)
    sync = StreamingDiLoCo(
        period=6, fragments=2, delay=delay, alpha=alpha, outer_lr=2, outer_momentum=0, nesterov=False
    )
    sync.setup(model, optimizer, Loop(DiLoCo(period=1)).topology, Dense())
    history, anchors = [], []
    for step in range(1, 13):
        (2 * (model.first + model.second)).sum().backward()
        sync.before_step(step)
        optimizer.step()
        sync.after_step(step)
        optimizer.zero_grad()
        history.append([model.first.item(), model.second.item()])
        if step % 6 == 0:
            anchors.append(tuple(sync.anchor.tolist()))
    return history, anchors


@pytest.mark.parametrize(("delay", "alpha"), WORKED)
def test_the_definition_worked_out_by_hand(ranks2: RankPool, delay: int, alpha: float) -> None:
    for history, anchors in ranks2.run(worked, delay, alpha):
        assert history == [list(pair) for pair in zip(*WORKED[delay, alpha], strict=True)]
        if alpha == 1:
            assert anchors == ANCHORS[delay]


def measure_one_fragment(name: str, **changed: Any) -> bool:
    """Return whether one fragment without delay gives DiLoCo's bits, inside a period and after the flush."""
    reducer = REDUCERS[name]
    streaming = Loop(
        StreamingDiLoCo(period=4, fragments=1, **{"delay": 0} | changed), reducer=reducer(), optimizer=sgd(momentum=0.9)
    )
    diloco = Loop(DiLoCo(period=4), reducer=reducer(), optimizer=sgd(momentum=0.9))
    same = torch.equal(streaming.run(10).weights, diloco.run(10).weights)
    return same and torch.equal(streaming.flush().weights, diloco.flush().weights)


@pytest.mark.parametrize("name", REDUCERS)
def test_one_fragment_without_delay_is_diloco(ranks3: RankPool, name: str) -> None:
    assert ranks3.run(measure_one_fragment, name) == [True] * 3


def measure_controls() -> list[bool]:
    return [measure_one_fragment("dense", delay=1), measure_one_fragment("dense", alpha=0.5)]


def test_control_delay_and_alpha_are_something_else(ranks2: RankPool) -> None:
    assert ranks2.run(measure_controls) == [[False, False]] * 2


class Watched(Dense):
    """Writes down when it is started and when it is waited for."""

    def __post_init__(self) -> None:
        self.events: list[str] = []

    def start(self, tensor: Tensor, comm: Comm) -> Finish:
        finish = super().start(tensor, comm)
        self.events.append(f"start {tensor.numel()}")

        def watched() -> None:
            self.events.append(f"finish {tensor.numel()}")
            finish()

        return watched


def when_under_way() -> list[list[str]]:
    reducer = Watched()
    loop = Loop(StreamingDiLoCo(period=8, fragments=2, delay=3), reducer=reducer)
    happened = []
    for _ in range(8):
        loop.run(1)
        happened.append(list(reducer.events))
        reducer.events.clear()
    return happened


def test_an_all_reduce_has_the_delay_to_finish(ranks2: RankPool) -> None:
    """39 parameters: 20 and 19, the cut lying behind a whole row."""
    nothing: list[str] = []
    expected = [["start 20"], nothing, nothing, ["finish 20"], ["start 19"], nothing, nothing, ["finish 19"]]
    assert ranks2.run(when_under_way) == [expected] * 2


def measure_modules() -> tuple[float, float]:
    cuts = StreamingDiLoCo(period=4, fragments=2, delay=0)
    modules = StreamingDiLoCo(period=4, fragments=(("0.weight",), ("0.bias", "2")), delay=0)
    scattered = StreamingDiLoCo(period=4, fragments=(("0.weight", "2.bias"), ("0.bias", "2.weight")), delay=0)
    return apart(train(cuts), train(modules)), apart(train(cuts), train(scattered))


def test_fragments_may_be_lists_of_modules(ranks2: RankPool) -> None:
    """The first layer's 20 weights are just half of the 39 parameters."""
    for same, control in ranks2.run(measure_modules):
        assert same == 0.0
        assert control > 1e-4


@pytest.mark.parametrize(
    ("fragments", "message"),
    [
        ((("0",), ("3",)), r"'3' is no module with parameters; parameter '2.weight' is in no fragment"),
        ((("0", "2"), ("2",)), r"parameter '2.weight' is in fragments \[0, 1\]"),
        ((("0",),), r"parameter '2.bias' is in no fragment"),
    ],
)
def test_modules_that_do_not_cover_the_model_are_refused(fragments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loop(StreamingDiLoCo(period=4, fragments=fragments, delay=0), topology=alone())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": 6, "fragments": 4}, r"fragments: found 4 in a period of 6 steps.*sync\.period=8"),
        ({"period": 6, "fragments": 2, "delay": 3}, "delay: found 3, expected less than the 3 steps"),
        ({"period": 6, "fragments": 0}, "fragments: found 0"),
        ({"period": 6, "fragments": ()}, "fragments: found 0 in a period of 6"),
        ({"period": 6, "alpha": 1.5}, "alpha: found 1.5"),
    ],
)
def test_fragments_and_delays_that_do_not_fit_the_period(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingDiLoCo(**options)


def shapes(*sizes: tuple[int, ...]) -> list[torch.Size]:
    return [torch.Size(size) for size in sizes]


def test_cuts_are_equal_and_never_through_a_row() -> None:
    cut = equal_cuts(shapes((10, 3), (7,), (4, 2, 2)), 3)
    assert [fragment.spans for fragment in cut] == [((0, 18),), ((18, 35),), ((35, 53),)]
    cut = equal_cuts(shapes((10, 4), (5,)), 2)
    assert [fragment.spans for fragment in cut] == [((0, 24),), ((24, 45),)]
    assert [fragment.shapes for fragment in cut] == [tuple(shapes((6, 4))), tuple(shapes((4, 4), (5,)))]


def test_more_fragments_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="fragments: found 3, expected fewer for 1 parameters of 8 numbers"):
        equal_cuts(shapes((2, 4)), 3)


def test_neighbouring_modules_are_one_span() -> None:
    names = [name for name, _ in mlp().named_parameters()]
    sizes = [parameter.shape for parameter in mlp().parameters()]
    whole, parts = (
        by_modules(names, sizes, [["0", "2"]]),
        by_modules(names, sizes, [["0.weight", "2.weight"], ["0.bias", "2.bias"]]),
    )
    assert [fragment.spans for fragment in whole] == [((0, 39),)]
    assert [fragment.spans for fragment in parts] == [((0, 20), (24, 36)), ((20, 24), (36, 39))]
