"""The mirror of `metrics.jsonl` in TensorBoard, without any care for errors: see `tracking.TensorBoard`."""

import logging
import re
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from math import ceil, isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ddp_agent.config.redaction import redacted
from ddp_agent.config.untrusted import open_regular, plain
from ddp_agent.models.common.layer_table import layer_table
from ddp_agent.outputs.files import to_json
from ddp_agent.outputs.metrics_file import Record, read_metrics
from ddp_agent.outputs.run_files import RunFiles

log = logging.getLogger(__name__)

_LIMIT_BYTES = 64 << 30

# With 4,096 values and 30 bins (as many as TensorBoard draws) the histograms of ResNet-50's 161 parameters cost about
# 0.2 s and 0.2 MB per evaluation, whatever the size of the parameters.
_HISTOGRAM_SAMPLES = 4096
_HISTOGRAM_BINS = 30

# The results by which the HParams tab compares runs. Missing ones and targets that were not reached are left out.
_COMPARED = (
    "test_metric", "best_metric", "test_loss", "time_to_target_s", "bytes_to_target", "train_s",
    "exposed_comm_s", "samples_per_s", "syncs", "payload_bytes", "wire_bytes", "consensus_distance",
)  # fmt: skip

# The tab shows five hyperparameters at first, the others can be ticked. It takes its columns from one run, which need
# not have a period.
_COLUMNS = ("lr", "reducer", "seed", "sync", "sync.period")


@dataclass(frozen=True)
class History:
    """The records of a run up to `last_step`.

    Pictures, histograms and texts of evaluations are in the event files alone. The newest file holds all of them.
    """

    records: list[Record]
    event_file: Path | None
    last_step: int

    @classmethod
    def read(cls, run: Path, last_step: int) -> Self:
        """Return the history of a run directory."""
        files = RunFiles(run)
        event_files = [file for file in files.tensorboard.glob("events.out.tfevents.*") if _is_regular(file, run)]
        return cls(read_metrics(files.metrics, last_step), max(event_files, key=_number, default=None), last_step)

    def drawn_events(self) -> Iterator[Any]:
        """Yield TensorBoard's events with pictures, histograms and texts of evaluations."""
        if self.event_file is None:
            return
        reader = import_module("tensorboard.backend.event_processing.event_file_loader")
        for event in reader.LegacyEventFileLoader(str(self.event_file)).Load():  # up to a record cut short
            if event.step <= self.last_step and any(_is_drawn(value, event.step) for value in event.summary.value):
                yield event


def _number(event_file: Path) -> tuple[int, str]:
    """Return the number in an event file's name, by which readers order the files of a run, and the name."""
    digits = event_file.name.split(".")[3:4]
    return (int(digits[0][:18]) if digits and digits[0].isascii() and digits[0].isdecimal() else 0), event_file.name


@contextmanager
def _next_number(directory: Path) -> Iterator[None]:
    """Let an event file that is made now have the highest number of all in `directory`.

    The number would be the clock's seconds. TensorBoard shows nothing of a file that is ordered before another one, as
    that of an attempt on a machine whose clock is behind.
    """
    earlier = [_number(file)[0] for file in directory.glob("events.out.tfevents.*")]
    number = max([int(time.time()), *(highest + 1 for highest in earlier)]) if earlier else time.time()
    module: Any = import_module("tensorboard.summary.writer.event_file_writer")
    clock, module.time = module.time, SimpleNamespace(time=lambda: number)
    try:
        yield
    finally:
        module.time = clock


def _is_regular(file: Path, run: Path) -> bool:
    """Return whether TensorBoard's reader may open `file`: it would wait for a FIFO, and follow a link."""
    try:
        open_regular(file, _LIMIT_BYTES, below=run).close()
    except OSError as error:
        log.warning("%s: %s; its pictures are not shown again", plain(file), error.strerror)
        return False
    return True


def _is_drawn(value: Any, step: int) -> bool:
    """Return whether an event is to be replayed. Texts of step 0 are not: `describe` writes them again."""
    return bool(value.HasField("histo") or value.HasField("image") or (value.HasField("tensor") and step > 0))


class TensorBoardMirror:
    """A TensorBoard writer. It also draws the test metric, whose key is `metric`, over seconds and over megabytes."""

    def __init__(self, directory: Path, metric: str) -> None:
        from torch.utils.tensorboard import SummaryWriter, summary  # 0.5 s, on rank 0 alone

        self.directory = directory
        self._metric = metric
        self._protos: Any = summary
        self._start_s = time.time()
        self._samples: dict[str, Tensor] = {}
        # A purge at the checkpoint's step would hit seconds and megabytes, too, since one field serves all three. So
        # every attempt voids everything before it (readers ignore the first such mark that they meet), and `replay`
        # writes it again. Old files stay, because a TensorBoard that is reading one would not get past its removal.
        with _next_number(directory):
            self._writer: Any = SummaryWriter(str(directory), purge_step=0, flush_secs=10)

    def replay(self, history: History) -> None:
        """Write the history of the run that this one continues."""
        for event in history.drawn_events():
            self._writer.file_writer.add_event(event, event.step, event.wall_time)
        for record in history.records:
            self.record(record)

    def record(self, record: Record) -> None:
        """Draw a line of `metrics.jsonl`."""
        scalars = dict(record)
        step, unix_s = scalars.pop("step"), scalars.pop("unix_s")
        self._scalars(scalars, step, unix_s)
        if {self._metric, "train_s", "payload_bytes"} <= record.keys():
            value, train_s, sent_bytes = record[self._metric], record["train_s"], record["payload_bytes"]
            # TensorBoard's axis has whole numbers only: in seconds and megabytes small runs would be a few dots.
            for unit, axis in (("seconds", train_s), ("time_ms", 1e3 * train_s)):
                self._scalars({self._tag(unit): value}, round(axis), self._start_s + train_s)
            for unit, axis in (("megabytes", sent_bytes / 1e6), ("traffic_kB", sent_bytes / 1e3)):
                self._scalars({self._tag(unit): value}, round(axis), unix_s)
            self._scalars({self._tag("step"): value}, step, unix_s)

    def _tag(self, unit: str) -> str:
        """Return the tag of the test metric by `unit`.

        TensorBoard sorts tags by name. With a 0 in front, the page opens on the test metric and not on `checkpoint_s`.
        Seconds and megabytes keep the tags that they had before.
        """
        first = unit in ("step", "time_ms", "traffic_kB")
        return f"0_{self._metric}/by_{unit}" if first else f"{self._metric}/by_{unit}"

    def describe(self, model: nn.Module, config: Mapping[str, Any], inputs: Tensor | None) -> None:
        """Show the model, with shapes and FLOPs if there are `inputs` [1, ...], and the configuration."""
        self._samples = _sample(model)
        self._writer.add_text("model", layer_table(model, inputs))
        self._writer.add_text("config", _code_block(to_json(redacted(config), indent=2)))
        self._writer.add_custom_scalars(self._layout())

    def histograms(self, model: nn.Module, step: int) -> None:
        """Draw the parameters, and their change since the last time or since `describe`."""
        earlier, self._samples = self._samples, _sample(model)
        for name, values in self._samples.items():
            self._histogram(f"parameters/{name}", values, step)
            if name in earlier:
                self._histogram(f"updates/{name}", values - earlier[name], step)

    def picture(self, tag: str, pixels: Tensor, step: int) -> None:
        """Show an image, uint8 [height, width, 3]."""
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def text(self, tag: str, text: str, step: int) -> None:
        """Show a text as it is, line by line."""
        self._writer.add_text(tag, _code_block(text), step)

    def compare(self, summary: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        """Write the run's row of the HParams tab. SummaryWriter.add_hparams would put it into a run of its own."""
        finite = {f"summary/{key}": finite_or_none(summary.get(key)) for key in _COMPARED}
        results = {tag: number for tag, number in finite.items() if number is not None}
        self._scalars(results, summary["steps"], time.time())
        values = dict(_flat(redacted(hparams)))
        columns, _, _ = self._protos.hparams({"sync.period": 0} | values, results)
        _, start, end = self._protos.hparams(values, results)
        for part in (_with_first(columns, _COLUMNS), start, end):
            self._writer.file_writer.add_summary(part)

    def close(self) -> None:
        """Write what is still buffered."""
        self._writer.close()

    def _scalars(self, values: Mapping[str, float | None], step: int, unix_s: float) -> None:
        """Write all values in one event: eight scalars cost 70 µs together, 400 µs apart."""
        value = self._protos.Summary.Value
        points = [value(tag=tag, simple_value=number) for tag, number in values.items() if number is not None]
        if points:
            self._writer.file_writer.add_summary(self._protos.Summary(value=points), step, unix_s)

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        finite = values[values.isfinite()]
        if len(finite):
            self._writer.add_histogram(tag, finite.numpy(), step, bins=_HISTOGRAM_BINS)

    def _layout(self) -> dict[str, dict[str, list[Any]]]:
        def chart(*tags: str) -> list[Any]:  # tags are patterns, which match everything that begins like them
            return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]

        return {
            self._metric: {
                "by step": chart(self._metric),
                "by milliseconds of training": chart(self._tag("time_ms")),
                "by kilobytes handed to collectives": chart(self._tag("traffic_kB")),
            },
            "loss": {"train and test": chart("train_loss", "test_loss")},
            "communication": {
                "bytes": chart("payload_bytes", "wire_bytes"),
                "exposed seconds": chart("exposed_comm_s", "straggler_wait_s"),
                "period": chart("period"),
            },
            "ranks": {
                "consensus distance": chart("consensus_distance"),
                "relative to the weights": chart("consensus_relative"),
                "cosine between ranks": chart("change_cosine", "gradient_cosine"),
                "mean change of a period": chart("pseudo_gradient_norm"),
                "critical batch in samples": chart("critical_batch_samples"),
            },
        }


@torch.no_grad()
def _sample(model: nn.Module) -> dict[str, Tensor]:
    """Return evenly spaced values of each parameter, always the same ones, in one copy from the device."""
    views = {
        name: parameter.detach().flatten()[:: ceil(parameter.numel() / _HISTOGRAM_SAMPLES)].float()
        for name, parameter in model.named_parameters()
        if parameter.numel()
    }
    if not views:
        return {}
    values: Any = torch.cat(list(views.values())).cpu()
    return dict(zip(views, values.split([len(view) for view in views.values()]), strict=True))


def _code_block(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield f"{prefix}{key}", value
        elif value is not None:
            yield f"{prefix}{key}", to_json(value)


def _with_first(columns: Any, names: Container[str]) -> Any:
    """Return `columns` with these hyperparameters first.

    `columns` is the event that declares the tab's columns. TensorBoard sorts the columns whose `differs` is set before
    all others, then by name. SummaryWriter has no argument for it, so the flag is set in the message that it made.
    """
    plugin = columns.value[0].metadata.plugin_data
    messages = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    declared = messages.HParamsPluginData.FromString(plugin.content)
    for column in declared.experiment.hparam_infos:
        column.differs = column.name in names
    plugin.content = declared.SerializeToString()
    return columns


def finite_or_none(value: float | Tensor | None) -> float | None:
    """Return a number for JSON: None for NaN and infinities, which JSON does not know."""
    number = value.item() if isinstance(value, Tensor) else value
    return number if number is not None and isfinite(number) else None
