"""The assignment of a run's tasks to its ranks."""

from dataclasses import replace

from torch import nn

from ddp_agent.data.multi_task_labels import loss_of
from ddp_agent.data.slicing.base import Slicing
from ddp_agent.data.slicing.tasks import Owners
from ddp_agent.data.task import Task
from ddp_agent.models.common.multi_task import MultiTask
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.by_owner import ByOwner
from ddp_agent.training.evaluate import inference


def assign_tasks(slicing: Slicing, task: Task, model: nn.Module, ranks: int) -> Owners:
    """Return the ranks that train each task; empty for data with one task."""
    if not isinstance(model, MultiTask):
        return {}
    costs = head_flops(model, task) if slicing.deal == "by_cost" else dict.fromkeys(model.heads, 0)
    return slicing.assign_tasks(costs, ranks)


def head_flops(model: MultiTask, task: Task) -> dict[str, int]:
    """Return the cost of each head per sample, in multiplications and additions of a forward pass.

    It is counted, not timed, since all ranks and all attempts of a run must find the same numbers.
    """
    from torch.utils.flop_counter import FlopCounterMode  # most runs do not need it

    inputs = task.data.train[0][0].unsqueeze(0)
    flops = {}
    with inference(model):
        features = model.trunk(task.data.transformed(inputs))
        for name, head in model.heads.items():
            with FlopCounterMode(display=False) as counter:
                head(features)
            flops[name] = counter.get_total_flops()
    return flops


def partition(task: Task, model: nn.Module, sync: SyncStrategy, owners: Owners, rank: int) -> tuple[Task, SyncStrategy]:
    """Return the task and the sync mode of `rank`. They differ from the given ones if ranks train different tasks.

    The tasks of this rank and their weights are set in `model.trained`. The trunk's gradient is a mean over all ranks,
    in which a task counts in proportion to the ranks that train it. The weights undo that: all tasks count the same, as
    if every rank trained all of them.
    """
    ranks = len({owner for owners_of_task in owners.values() for owner in owners_of_task})
    if not isinstance(model, MultiTask) or all(len(some) == ranks for some in owners.values()):
        return task, sync
    model.trained = {name: ranks / len(some) for name, some in owners.items() if rank in some}
    mine = replace(task, objective=replace(task.objective, train_loss=loss_of(task.subtasks, list(model.trained))))
    return mine, ByOwner(mode=sync, owners={f"heads.{name}": some for name, some in owners.items()})
