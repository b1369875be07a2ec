"""The model of a run, made for its data."""

import functools
from typing import Any

from torch import nn

from ddp_agent.config.fields import REQUIRED, parameters
from ddp_agent.config.registry import build, is_own, locate
from ddp_agent.data.task import Task
from ddp_agent.errors import ConfigError
from ddp_agent.models.common.meta_build import build_on_meta
from ddp_agent.models.common.multi_task import with_heads
from ddp_agent.rng import seed_everything
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
    construct = functools.partial(
        build, "model", settings.model, trusted_packages=settings.options.trusted_packages, **given
    )
    if is_own(settings.model["name"]):
        build_on_meta(construct)
    seed_everything(settings.options.seed)
    model: nn.Module = construct()
    try:
        heads = {subtask.name: subtask.outputs for subtask in task.subtasks}
        return with_heads(model, heads) if heads else model
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def model_parameters(settings: Settings) -> dict[str, Any]:
    """Return the parameters of the model's constructor: name to default."""
    target = locate("model", settings.model["name"], settings.options.trusted_packages)
    return {name: parameter.default for name, parameter in parameters(target).items()}
