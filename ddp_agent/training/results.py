"""The results of a finished run: its summary, the consensus model, and what the model makes."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch

from ddp_agent.checkpoint import export
from ddp_agent.config.redaction import redacted
from ddp_agent.distributed.traffic import to_plain
from ddp_agent.outputs import environment
from ddp_agent.outputs.confusion import values as class_accuracies
from ddp_agent.outputs.files import write_atomically
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.summary import Summary
from ddp_agent.sync.engine.internals import internals
from ddp_agent.training import link_bytes
from ddp_agent.training.evaluate import inference, recalibrate
from ddp_agent.training.model import model_parameters
from ddp_agent.training.session import Session, TrainSetup
from ddp_agent.training.settings import Settings
from ddp_agent.training.trainer import Outcome

GROUPS = ("dataset", "slicing", "model", "sync", "cadence", "reducer")
HPARAM_GROUPS = ("model", "dataset", "slicing", "sync", "cadence", "reducer", "optimizer", "schedule")
HPARAM_OPTIONS = ("seed", "global_batch_size", "accumulation_steps", "precision")


def summarise(session: Session, settings: Settings, outcome: Outcome, **origin: Any) -> Summary:
    """Return the summary. Bytes are rank 0's, times are those of the slowest rank. A collective.

    `origin`: the fields of `outputs.summary.Origin` that only the run knows.
    """
    setup, options, task, scores = session.setup, settings.options, session.setup.task, outcome.scores
    costs = session.costs()
    labels: dict[str, Any] = {group: settings.label(group) for group in GROUPS}
    # Without a measurement at a synchronisation, the distance is the one at the end.
    measured: dict[str, Any] = {"consensus_distance": outcome.consensus_distance} | session.diagnostics.latest
    times, peak_memory_bytes = _of_all_ranks(costs, setup)
    samples = session.step * options.global_batch_size
    metrics = {part.name: scores.more[f"{part.name}_{task.objective.metric_name}"] for part in task.subtasks}
    return Summary(
        **labels,
        period=settings.cfg["sync"].get("period"),
        world_size=session.batches.share.world_size,
        seed=options.seed,
        steps=session.step,
        samples=samples,
        params=internals(setup.sync).flat.parameters.numel(),
        metric_name=task.objective.metric_name,
        higher_is_better=task.objective.higher_is_better,
        test_metric=scores.metric,
        test_loss=scores.loss,
        class_accuracies=class_accuracies(scores.confusion, task.presentation.class_names),
        task_metrics=metrics or None,
        **times,
        syncs=internals(setup.sync).syncs,
        collectives=setup.topology.world.stats.calls,
        traffic=to_plain(internals(setup.sync).traffic(session.step)),
        payload_bytes=int(costs["payload_bytes"]),
        wire_bytes=int(costs["wire_bytes"]),
        frozen_share=internals(setup.sync).frozen_share if costs["payload_bytes"] else 0.0,
        **link_bytes.summary(session.state.link),
        **measured,
        target=options.target,
        **asdict(session.best),
        samples_per_s=samples / times["train_s"],
        peak_memory_bytes=peak_memory_bytes,
        **environment.describe(setup.device),
        data_sha256=task.data.sha256,
        order_sha256=session.batches.order.sha256(options.global_batch_size),
        **origin,
    )


def _of_all_ranks(costs: Mapping[str, float], setup: TrainSetup) -> tuple[dict[str, Any], int]:
    """Return the times of the one rank that trained longest, so that they add up, and the largest peak memory."""
    world, memory = setup.topology.world, environment.peak_memory_bytes(setup.device)
    names = [key for key in costs if key.endswith("_s")]
    with world.uncounted():
        own = torch.tensor([*(costs[name] for name in names), memory], dtype=torch.float64, device=world.device)
        ranks: list[list[float]] = [other.tolist() for other in world.all_gather(own)]
    slowest = max(ranks, key=lambda rank: rank[names.index("train_s")])
    return dict(zip(names, slowest, strict=False)), int(max(rank[-1] for rank in ranks))


def hparams(settings: Settings, world_size: int) -> dict[str, Any]:
    """Return the hyperparameters by which TensorBoard compares runs."""
    return {
        **{group: settings.label(group) for group in HPARAM_GROUPS},
        **{f"sync.{key}": value for key, value in settings.cfg["sync"].items() if key != "name"},
        "lr": settings.optimizer.lr,
        "world_size": world_size,
        **{key: getattr(settings.options, key) for key in HPARAM_OPTIONS},
    }


def export_model(session: Session, settings: Settings, directory: RunDirectory, *, is_writer: bool) -> str | None:
    """Write the consensus model, its moving average and a sample of its text on the writer, which returns that text.

    Every replica writes into its own directory, whatever its rank among the others. A collective.
    """
    setup = session.setup
    described = _description(session, settings)
    writing = setup.failure_detector.progress.writing(directory.path) if is_writer else nullcontext()
    with writing, setup.sync.eval_weights():
        if setup.sync.buffers == "recalibrate":
            recalibrate(session)
        if is_writer:
            export.save(directory.path, setup.module, description=described)
        if session.ema is not None:
            with session.ema.eval_weights(internals(setup.sync).mean_) as averaged:
                if is_writer:
                    export.save(directory.path / "ema", averaged, description=described)
        sample = setup.task.presentation.sample
        if not is_writer or sample is None:
            return None
        with inference(setup.module):
            text = sample(setup.module)
        write_atomically(directory.sample, text)
        return text


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
