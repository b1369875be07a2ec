"""The model of a run, made for its data, and the tasks of it that each rank trains."""

import functools
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ddp_agent.config.fields import REQUIRED, parameters
from ddp_agent.config.registry import build, is_own, locate
from ddp_agent.data.multi_task_labels import loss_of
from ddp_agent.data.slicing.base import Slicing
from ddp_agent.data.slicing.tasks import Owners
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError
from ddp_agent.models.common.meta_build import build_on_meta
from ddp_agent.models.common.multi_task import MultiTask, with_heads
from ddp_agent.rng import seed_everything
from ddp_agent.sync.base import SyncStrategy
from ddp_agent.sync.engine.by_owner import ByOwner
from ddp_agent.training.contracts import BreachError, called, described
from ddp_agent.training.evaluate import inference
from ddp_agent.training.settings import RUNTIME, Settings


def create_model(settings: Settings, task: Task) -> nn.Module:
    """Return the model with the weights that the run's seed gives it, on the CPU.

    Raises ConfigError if the model does not fit the data.
    """
    given = {"input_shape": task.data.input_shape, "outputs": task.objective.outputs, **task.model_arguments}
    wanted = model_parameters(settings)
    if absent := [key for key in RUNTIME["model"] if key not in given and wanted.get(key) is REQUIRED]:
        raise ConfigError(
            f"model: {settings.label('model')} must be told {', '.join(absent)} by the data, which "
            f"{settings.label('dataset')} does not have; choose another model or dataset"
        )
    trusted = settings.options.trusted_packages
    construct = functools.partial(build, "model", settings.model, trusted_packages=trusted, **given)
    if is_own(settings.model["name"]):
        build_on_meta(construct)
    seed_everything(settings.options.seed)
    model: nn.Module = construct()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.name: found {settings.model['name']}, expected a torch.nn.Module")
    make_lazy_parameters(model, task)
    try:
        heads = {subtask.name: subtask.outputs for subtask in task.subtasks}
        return with_heads(model, heads) if heads else model
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def make_lazy_parameters(model: nn.Module, task: Task) -> None:
    """Give parameters and buffers that wait for a first input (`nn.LazyLinear`) their shapes, in a pass of one sample.

    In evaluation mode, where dropout draws nothing: the weights depend on the seed alone. Raises ConfigError for a
    parameter that no pass reaches.
    """
    if not _lazy(model):
        return
    try:
        with inference(model):
            inputs = task.data.transformed(task.data.train[0][0].unsqueeze(0))
            called(
                f"model: {type(model).__name__} cannot take the dataset's inputs, {described(inputs)}", model, inputs
            )
    except BreachError as breach:
        raise ConfigError(str(breach)) from breach
    if left := _lazy(model):
        raise ConfigError(
            f"model: found parameters that no forward pass gives a shape: {', '.join(left)}; expected them to be used "
            "in evaluation, or layers with their number of inputs (nn.Linear for nn.LazyLinear)"
        )


def _lazy(model: nn.Module) -> list[str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in named if is_lazy(tensor)]


def model_parameters(settings: Settings) -> dict[str, Any]:
    """Return the parameters of the model's constructor: name to default."""
    target = locate("model", settings.model["name"], settings.options.trusted_packages)
    return {name: parameter.default for name, parameter in parameters(target).items()}


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
