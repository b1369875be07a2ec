"""Both records of a run, fed as a trainer and a run feed them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddp_agent.outputs.observer import Evaluation, Result, Start, stamped
from ddp_agent.outputs.run_directory import RunDirectory
from ddp_agent.outputs.tensorboard import History
from ddp_agent.outputs.tracking import MetricsLog, TensorBoard

NO_MODEL = nn.ReLU()  # without parameters there are no histograms


class Records:
    """The observers of rank 0: `metrics.jsonl` and TensorBoard."""

    def __init__(self, directory: RunDirectory, metric_name: str, *, history: History | None = None) -> None:
        self.metrics = MetricsLog(directory, history)
        self.board = TensorBoard(directory, metric_name, history=history)
        self.observers = (self.metrics, self.board)

    def begin(self, model: nn.Module, config: Mapping[str, Any], inputs: Tensor | None = None) -> None:
        for observer in self.observers:
            observer.begin(Start(model=model, config=config, step=0, inputs=inputs))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        record = stamped(values)
        for observer in self.observers:
            observer.logged(step, record)

    def evaluation(
        self, step: int, values: Mapping[str, Any], *, train_s: float, payload_bytes: int, model: nn.Module = NO_MODEL
    ) -> None:
        costs = {"train_s": train_s, "payload_bytes": payload_bytes}
        shown = Evaluation(step=step, values=stamped({**values, **costs}), model=model)
        for observer in self.observers:
            observer.evaluated(shown)

    def finish(self, summary: Mapping[str, Any], hparams: Mapping[str, Any], sample: str | None = None) -> None:
        for observer in self.observers:
            observer.finished(Result(summary=summary, hparams=hparams, run_dir=Path("run"), sample=sample))
        self.close()

    def close(self) -> None:
        for observer in self.observers:
            observer.close()
