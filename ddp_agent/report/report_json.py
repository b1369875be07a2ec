"""The file report.json: everything that the report shows, as numbers.

    generator, files      mark of a report's folder, and the names of its files
    metric, higher_is_better, target, baseline, confidence, comparisons (the number of differences with an interval)
    answer, notes         the sentences of the page
    shared                facts that are equal in all runs: dataset, model, ranks, samples …
    rows                  the settings, the baseline first; each has
        label, mode, reducer, period (text: H, or the range a cadence went through), cadence, seeds, runs (folders)
        metric            an estimate: mean, low, high (of the 95 % interval; null with one seed), n, by_seed
        difference        an estimate, to the baseline over the common seeds; null for the baseline itself
        verdict           better | worse | no difference shown | no verdict | baseline
        why               the verdict's reason
        to_target         null without a target; reached (runs), of (runs), and steps, seconds, wire_bytes: estimates,
                          null unless all seeds reached it
        costs             estimates or null: wire_bytes, syncs, train_s, samples_per_s, exposed_comm_percent and
                          straggler_wait_percent (both of train_s), consensus_distance, peak_memory_bytes …
        parts_s           mean seconds of data, compute, moving bytes, waiting for stragglers, evaluation, checkpoints;
                          "communication" in place of the middle two where runs did not separate them
        curve             one object per evaluation: step, train_s, wire_bytes (means), metric (an estimate)
        settings          the config with dotted keys, without the keys that do not change the training
    config_differences    the keys in which rows differ, each with the rows' values
    environment           facts about the machines: each key with its values, each value with its runs
    failed                the other runs: run (folder), asked (command line), reason

Bytes are rank 0's. Times are the slowest rank's. Those in `curve` and `to_target`, taken during a run, are rank 0's.
"""

import json
from collections.abc import Iterable
from typing import Any

from ddp_agent.report.comparison.intervals import CONFIDENCE, Estimate
from ddp_agent.report.comparison.result import Line, Reached, Result
from ddp_agent.report.comparison.rows import config_differences
from ddp_agent.report.comparison.sentences import answer, notes
from ddp_agent.report.output_folder import GENERATOR
from ddp_agent.report.runs.facts import environment, shared


def report_json(result: Result, files: Iterable[str]) -> str:
    """Return the text of report.json. `files` are the names of the files in the report folder."""
    content = {
        "generator": GENERATOR,
        "files": sorted(files),
        "metric": result.runs[0].metric,
        "higher_is_better": result.higher_is_better,
        "target": result.target,
        "baseline": result.baseline.label,
        "confidence": CONFIDENCE,
        "comparisons": len(result.compared),
        "answer": answer(result),
        "notes": notes(result),
        "shared": shared(result.runs),
        "rows": [_row(line) for line in result.lines],
        "config_differences": config_differences([line.row for line in result.lines]),
        "environment": environment(result.runs),
        "failed": [{"run": str(run.path), "asked": run.overrides, "reason": run.problem} for run in result.failed],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _row(line: Line) -> dict[str, Any]:
    return {
        "label": line.label,
        "mode": line.row.mode,
        "reducer": line.row.reducer,
        "period": line.row.period,
        "cadence": line.row.settings.get("cadence"),
        "seeds": [run.seed for run in line.row.runs],
        "runs": [str(run.path) for run in line.row.runs],
        "metric": _estimate(line.metric),
        "difference": _estimate(line.difference),
        "verdict": line.verdict,
        "why": line.reason,
        "to_target": _to_target(line.reached),
        "costs": {name: _estimate(cost) for name, cost in line.costs.items()},
        "parts_s": line.parts_s,
        "curve": [vars(point) | {"metric": _estimate(point.metric)} for point in line.points],
        "settings": line.row.settings,
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    keys = ("mean", "low", "high", "n", "by_seed")
    return {key: getattr(estimate, key) for key in keys}


def _to_target(reached: Reached | None) -> dict[str, Any] | None:
    if reached is None:
        return None
    means = {"steps": reached.step, "seconds": reached.train_s, "wire_bytes": reached.wire_bytes}
    return {"reached": reached.runs, "of": reached.of, **{name: _estimate(mean) for name, mean in means.items()}}
