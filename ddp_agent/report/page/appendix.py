"""Sections at the end of the page: settings, environment, runs left out, and how the numbers were computed."""

from ddp_agent.report.comparison.result import Result
from ddp_agent.report.comparison.rows import config_differences
from ddp_agent.report.formatting import counted, listed
from ddp_agent.report.page.html import Cells, section, table, text
from ddp_agent.report.runs.facts import environment


def differences_section(result: Result) -> str:
    """List the settings in which rows differ, by row: most keys belong to one mode alone."""
    differences = config_differences([line.row for line in result.lines])
    if not differences:
        return ""
    common = [key for key, values in differences.items() if len(values) > 1 and not key.startswith("sync.")]
    note = "Rows differ in the mode and its own settings alone."
    if common:
        note = f"Besides the mode and its own settings, rows differ in {listed(common)}."
    items = ""
    for label in (line.label for line in result.lines):
        own = [f"<code>{text(key)}={text(of[label])}</code>" for key, of in differences.items() if label in of]
        items += f"<dt>{text(label)}</dt>\n<dd>{' '.join(own) or 'nothing of its own'}</dd>\n"
    return section("What was set differently", f'<p class="note">{text(note)}</p>\n<dl>\n{items}</dl>\n')


def environment_section(result: Result) -> str:
    """List the machines' facts; where runs differ, each value with its runs."""
    facts = environment(result.runs)
    if not facts:
        return ""
    cells = [_by_value(values) for values in facts.values()]
    columns = [Cells("what", list(map(text, facts))), Cells("value", cells, "wraps")]
    return section("Environment", table("Environment", columns))


def _by_value(values: dict[str, list[str]]) -> str:
    if len(values) == 1:
        return text(next(iter(values)))
    return "<br>".join(f"{text(value)} (runs {text(', '.join(runs))})" for value, runs in values.items())


def failed_section(result: Result) -> str:
    """List the runs that are in no table, with the reasons."""
    if not result.failed:
        return ""
    columns = [
        Cells("run", [text(run.path) for run in result.failed]),
        Cells("asked for", [text(run.overrides) for run in result.failed], "wraps"),
        Cells("why it is not in the tables", [text(run.problem) for run in result.failed], "wraps"),
    ]
    title = f"{counted(len(result.failed), 'run')} left out"
    return section(title, table(title, columns))


def computed_section(result: Result) -> str:
    """Explain how the numbers were computed."""
    rises = "higher" if result.higher_is_better else "lower"
    name = text(result.metric_name)
    return section(
        "How it was computed",
        f"""<ul>
<li>Runs are compared only if they agree in data, world size, sample budget and evaluation points. Runs of one seed must
also agree in initial weights and, if they are sliced alike, in the order of samples. The hashes that each run wrote
show this.</li>
<li>{name.capitalize()} is the consensus model's after the last step; {rises} is better. ± is the half-width of the 95 %
interval of the mean over n seeds: t<sub>0.975, n−1</sub> · s ∕ √n, with the sample standard deviation s and Student’s
t.</li>
<li>A difference is paired: for each seed the mode’s value minus the baseline’s, then the mean and interval of these
differences. The verdict says on which side of zero the interval lies. With zero inside, no difference was shown.</li>
<li>The target counts as reached at the first evaluation at or beyond it. Nothing is extrapolated, and a mean is given
only where all seeds reached the target.</li>
<li>MB (10⁶ bytes) are what rank 0 sent. Seconds are the slowest rank’s, without evaluation and checkpoints. Exposed
communication is the share of training time in which nothing else was done. Waiting is the share of training time spent
on ranks that arrived later. Consensus distance is √ mean ‖w<sub>k</sub> − w̄‖² over the ranks k, before the last
synchronisation. The relative distance is divided by ‖w̄‖.</li>
</ul>
""",
    )
