"""Measurements: means per step over the runs of one setting, on one link, with one number of ranks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from ddp_agent.config.untrusted import plain
from ddp_agent.distributed.traffic import Collective, from_plain
from ddp_agent.plan import history
from ddp_agent.report.runs.facts import differing_keys, settings_of
from ddp_agent.report.runs.run import ReportError, Run, find_runs

# Keys for the number of ranks and the work of each: other values are another measurement of the same setting.
_NOT_A_SETTING = ("global_batch_size", "accumulation_steps", "ranks_per_node", "device")
_MUST_AGREE = ("dataset", "model", "data_sha256", "params", "metric_name")
_DIVISORS = ("samples", "steps", "world_size", "train_s", "nodes", "link_rate_bits_per_s")
_NEEDED = ("world_size", "samples", "train_s", "data_s", "compute_s", "exposed_comm_s", "wire_bytes", "payload_bytes")

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Setting:
    """One setting, whose `key` holds its settings sorted by name."""

    key: Key
    label: str

    @property
    def mode(self) -> str:
        """The label of the sync mode."""
        return dict(self.key)["sync"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Means per step over the runs of a setting. `batch` is in samples; `local_s` is data and compute."""

    batch: float
    local_s: float
    exposed_s: float
    straggler_s: float | None  # None where runs did not separate waiting from moving bytes
    syncs: float
    collectives: float | None
    payload_bytes: float
    wire_bytes: float

    @property
    def step_s(self) -> float:
        """The seconds of a step."""
        return self.local_s + self.exposed_s

    @property
    def moving_s(self) -> float:
        """The exposed communication without the part that is known to be waiting."""
        return max(0.0, self.exposed_s - (self.straggler_s or 0.0))

    @property
    def samples_per_s(self) -> float:
        """The speed of all ranks together."""
        return self.batch / self.step_s


@dataclass(frozen=True, kw_only=True)
class Measured(Step):
    """A setting on some number of ranks and some link, as its runs measured it."""

    setting: Setting
    ranks: int
    ranks_per_node: int
    rate_bits_per_s: float | None  # None where the link is not known
    traffic: tuple[Collective, ...]  # that of the whole first run
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The setting's label."""
        return self.setting.label

    @property
    def period(self) -> int | None:
        """The period H, or None if there is none or a cadence changes it."""
        if any(each.varies for each in self.traffic):
            return None
        return max((each.period for each in self.traffic if each.period is not None), default=None)

    @property
    def shortest_period(self) -> int:
        """The shortest H that the mode can have."""
        return max((each.shortest for each in self.traffic), default=1)

    @property
    def where(self) -> tuple[int, float | None, float]:
        """The ranks, the link's rate and the batch: everything that a prediction changes."""
        return self.ranks, self.rate_bits_per_s, self.batch


def read(directories: Sequence[Path]) -> tuple[list[Run], list[Run]]:
    """Return usable and unusable runs. Raises ReportError, with the reasons, if no run is usable."""
    runs = find_runs(directories)
    usable = [run for run in runs if run.problem is None and not _lacking(run)]
    if not usable:
        reasons = [f"  {run.path}: {why_not(run)}" for run in runs]
        raise ReportError("\n".join(["no finished run to fit from:", *reasons]))
    return usable, [run for run in runs if run not in usable]


def why_not(run: Run) -> str:
    """Return the reason why a run is unusable."""
    return run.problem or f"its summary.json lacks {', '.join(_lacking(run))}"


def _lacking(run: Run) -> list[str]:
    """Return the needed keys that are missing, and those whose number makes no sense: below 0, or 0 of a divisor."""
    missing = [key for key in _NEEDED if run.value(key) is None]
    numbers = {key: value for key in {*_NEEDED, *_DIVISORS} if (value := run.value(key)) is not None}
    return missing + sorted(key for key, value in numbers.items() if value < 0 or (value == 0 and key in _DIVISORS))


def check_same_task(runs: Sequence[Run]) -> None:
    """Raise ReportError if runs trained different things: their seconds and metrics have nothing in common."""
    for key in _MUST_AGREE:
        runs_by_value: defaultdict[str, list[Run]] = defaultdict(list)
        for run in runs:
            runs_by_value[plain(run.summary.get(key))[:12]].append(run)
        if len(runs_by_value) > 1:
            lines = [f"  {value}: {', '.join(str(run.path) for run in of)}" for value, of in runs_by_value.items()]
            raise ReportError("\n".join([f"{key} differs, so one model cannot describe these runs:", *lines]))


def measure(runs: Sequence[Run], labels: Mapping[Key, str]) -> list[Measured]:
    """Average the runs of each measurement, in the order of the runs. `labels` is from `labels_of`."""
    groups: defaultdict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        where = (run.value("world_size"), _nodes(run), run.value("link_rate_bits_per_s"), _batch(run))
        groups[_key(run), *where].append(run)
    return [_mean(Setting(_key(group[0]), labels[_key(group[0])]), group) for group in groups.values()]


def traffic_of(run: Run) -> list[Collective]:
    """Return the traffic that a run states. Raises ReportError if the statement has an unknown form."""
    stated = run.summary.get("traffic")
    if stated is None:
        return history.collectives(run, settings_of(run))
    try:
        return from_plain(stated)
    except TypeError as error:
        reason = "traffic: its summary.json has no list of collectives there"
        raise ReportError(f"{run.path}: {reason} ({error})") from error


def _key(run: Run) -> Key:
    settings, traffic = settings_of(run), traffic_of(run)
    kept = {name: value for name, value in settings.items() if name not in _NOT_A_SETTING}
    grouped = settings.get("ranks_per_node", "null")
    if grouped != "null" and any(each.group == "node" for each in traffic):
        kept["ranks_per_node"] = grouped
    if any(each.varies or each.until_step is not None for each in traffic):  # a longer run sends less per step
        kept["steps"] = str(int(run.summary["steps"]))
    return tuple(sorted(kept.items()))


def _batch(run: Run) -> float:
    return float(run.summary["samples"]) / int(run.summary["steps"])


def _nodes(run: Run) -> int:
    return int(run.value("nodes") or 1)


def _mean(setting: Setting, runs: Sequence[Run]) -> Measured:
    first = runs[0]
    ranks = int(first.summary["world_size"])

    def per_step(*keys: str) -> float:
        return mean(sum(float(run.summary[key]) for key in keys) / int(run.summary["steps"]) for run in runs)

    def if_known(key: str) -> float | None:
        return per_step(key) if all(run.value(key) is not None for run in runs) else None

    return Measured(
        setting=setting,
        ranks=ranks,
        ranks_per_node=max(1, ranks // _nodes(first)),
        rate_bits_per_s=first.value("link_rate_bits_per_s"),
        batch=_batch(first),
        local_s=per_step("data_s", "compute_s"),
        exposed_s=per_step("exposed_comm_s"),
        straggler_s=if_known("straggler_wait_s"),
        syncs=if_known("syncs") or 0.0,
        collectives=if_known("collectives"),
        payload_bytes=per_step("payload_bytes"),
        wire_bytes=per_step("wire_bytes"),
        traffic=tuple(traffic_of(first)),
        runs=tuple(runs),
    )


def labels_of(runs: Iterable[Run]) -> dict[Key, str]:
    """Label settings by mode, H and reducer, and where these are equal by the other keys that differ."""
    by_short_label: defaultdict[str, dict[Key, Mapping[str, str]]] = defaultdict(dict)
    for key in map(_key, runs):
        by_short_label[_short(dict(key))][key] = dict(key)
    labels: dict[Key, str] = {}
    for short, group in by_short_label.items():
        names = differing_keys(list(group.values()))
        for key, values in group.items():
            others = [f"{name.removeprefix('sync.')}={values.get(name, '–')}" for name in names]
            labels[key] = " ".join([short, *others])
    return labels


def _short(values: Mapping[str, str]) -> str:
    prefixes = {"sync.period": "H=", "sync.global_period": f"H={values.get('sync.node_period', '1')},"}
    names = (*prefixes, "reducer", "cadence")
    usual = ("null", "dense", "fixed")
    parts = [prefixes.get(name, "") + values[name] for name in names if values.get(name, "null") not in usual]
    return " ".join([values["sync"], *filter(None, parts)])
