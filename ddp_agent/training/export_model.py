"""The final consensus model, and what it makes."""

from typing import Any

from ddp_agent.checkpoint import export
from ddp_agent.config.redaction import redacted
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training.evaluate import inference
from ddp_agent.training.model import model_parameters
from ddp_agent.training.scoring import recalibrate
from ddp_agent.training.session import Session
from ddp_agent.training.settings import Settings


def export_model(session: Session, settings: Settings, directory: RunDirectory, *, is_writer: bool) -> str | None:
    """Write the consensus model, its moving average and a sample of its text on the writer, which returns that text.

    Every replica writes into its own directory, whatever its rank among the others. A collective.
    """
    setup = session.setup
    described = _description(session, settings)
    with setup.sync.eval_weights():
        if setup.sync.buffers == "recalibrate":
            recalibrate(session)
        if is_writer:
            export.save(directory.path, setup.module, description=described)
        if session.ema is not None:
            with session.ema.eval_weights(internals(setup.sync).mean_) as averaged:
                if is_writer:
                    export.save(directory.path / "ema", averaged, description=described)
        return _sample(session, directory) if is_writer else None


def _description(session: Session, settings: Settings) -> dict[str, Any]:
    """Return all that is needed to build the model again."""
    task = session.setup.task
    arguments = redacted({key: value for key, value in settings.model.items() if key != "name"})
    wanted = model_parameters(settings)
    arguments |= {key: value for key, value in task.model_arguments.items() if key in wanted}
    return {
        "name": settings.model["name"],
        "arguments": {**arguments, "input_shape": list(task.data.input_shape), "outputs": task.objective.outputs},
        "dataset": settings.label("dataset"),
        "metric_name": task.objective.metric_name,
        "tasks": {subtask.name: subtask.outputs for subtask in task.subtasks},
    }


def _sample(session: Session, directory: RunDirectory) -> str | None:
    sample, module = session.setup.task.presentation.sample, session.setup.module
    if sample is None:
        return None
    with inference(module):
        text = sample(module)
    write_atomically(directory.sample, text)
    return text
