"""What stands at the end of the page: settings, environment, runs that are missing, and how all was computed."""

from typing import Any

from ddp_agent.report.facts import config_differences, environment
from ddp_agent.report.markup import Cells, section, table, text
from ddp_agent.report.result import Result
from ddp_agent.report.shown import listed, plural


def differences_section(result: Result) -> str:
    """By row rather than by key: most keys are of one mode alone."""
    having = config_differences([line.row for line in result.lines])
    if not having:
        return ""
    common = [key for key, values in having.items() if len(values) > 1 and not key.startswith("sync.")]
    said = "Rows differ in the mode and its own settings alone."
    if common:
        said = f"Besides the mode and its own settings, rows differ in {listed(common)}."
    items = "".join(f"<dt>{text(line.label)}</dt>\n<dd>{_settings(line.label, having)}</dd>\n" for line in result.lines)
    return section("What was set differently", f'<p class="note">{text(said)}</p>\n<dl>\n{items}</dl>\n')


def _settings(label: str, having: dict[str, Any]) -> str:
    own = [f"<code>{text(key)}={text(values[label])}</code>" for key, values in having.items() if label in values]
    return " ".join(own) or "nothing of its own"


def environment_section(result: Result) -> str:
    facts = environment(result.runs)
    if not facts:
        return ""
    shown = [_by_value(values) for values in facts.values()]
    columns = [Cells("what", list(map(text, facts))), Cells("value", shown, "wraps")]
    return section("Environment", table("Environment", columns))


def _by_value(values: dict[str, list[str]]) -> str:
    if len(values) == 1:
        return text(next(iter(values)))
    return "<br>".join(f"{text(value)} (runs {text(', '.join(runs))})" for value, runs in values.items())


def failed_section(result: Result) -> str:
    if not result.failed:
        return ""
    columns = [
        Cells("run", [text(run.path) for run in result.failed]),
        Cells("asked for", [text(run.asked) for run in result.failed], "wraps"),
        Cells("why it is not in the tables", [text(run.problem) for run in result.failed], "wraps"),
    ]
    title = f"{plural(len(result.failed), 'run')} left out"
    return section(title, table(title, columns))


def computed_section(result: Result) -> str:
    rises = "higher" if result.higher_is_better else "lower"
    name = text(result.metric_name)
    return section(
        "How it was computed",
        f"""<ul>
<li>Runs are compared only if they agree in data, world size, sample budget and evaluation points, and those of one seed
in initial weights and order of samples, as the hashes say that each run wrote down.</li>
<li>{name.capitalize()} is the consensus model's after the last step; {rises} is better. ± is the half-width of the 95 %
interval of the mean over n seeds: t<sub>0.975, n−1</sub> · s ∕ √n, with the sample standard deviation s and Student’s
t.</li>
<li>A difference is paired: within each seed the mode’s value minus the baseline’s, then mean and interval of these
differences. A verdict says on which side of zero the interval lies; if it holds zero, no difference was shown.</li>
<li>The target counts as reached at the first evaluation at or beyond it; nothing is extrapolated, and a mean is given
only where all seeds reached it.</li>
<li>MB (10⁶ bytes) are what rank 0 sent. Seconds are the slowest rank’s, without evaluation and checkpoints. Exposed
communication is the share of training time that nothing else was done in; of which waiting, the share of training time
spent on ranks that came later. Consensus distance is √ mean ‖w<sub>k</sub> − w̄‖² over the ranks k, before the last
synchronisation; relative is that over ‖w̄‖.</li>
</ul>
""",
    )
