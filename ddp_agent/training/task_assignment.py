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
    """What each head costs for a sample, in multiplications and additions of a forward pass.

    Counted, not timed: all ranks, and all attempts of a run, must come to the same numbers.
    """
    from torch.utils.flop_counter import FlopCounterMode  # which most runs do not need

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
    """What a rank trains, `model` told so, and what keeps it in step, where ranks train different tasks.

    As many ranks as train a task show it so many samples, and their mean is a task's part of the trunk's gradient: so
    that all tasks count alike there, as if every rank trained all of them, those of few ranks count more.
    """
    ranks = len({owner for each in owners.values() for owner in each})
    if not isinstance(model, MultiTask) or all(len(each) == ranks for each in owners.values()):
        return task, sync
    model.trained = {name: ranks / len(each) for name, each in owners.items() if rank in each}
    mine = replace(task, objective=replace(task.objective, train_loss=loss_of(task.subtasks, list(model.trained))))
    return mine, ByOwner(mode=sync, owners={f"heads.{name}": each for name, each in owners.items()})
