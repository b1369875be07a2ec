"""The assignment of tasks to ranks, for data with several tasks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from ddp_agent.config.problems import Problem

Deal = Literal["round_robin", "by_cost"] | tuple[tuple[str, ...], ...]
"""The way to assign tasks: a rule, or one list of tasks per rank."""
Owners = dict[str, tuple[int, ...]]
"""The ranks that train each task, ascending."""


def partition_problems(deal: Deal, tasks: Sequence[str], ranks: int) -> Iterator[Problem]:
    """Yield the reasons why `tasks` cannot be partitioned among `ranks` by `deal`."""
    if len(tasks) < 2:
        yield Problem(
            "slicing.tasks",
            "found partition, but these data have one task; expected several, such as "
            "dataset=intents dataset.tasks=[domain,intent], or slicing.tasks=replicate",
        )
        return
    if isinstance(deal, str):
        return
    if len(deal) != ranks:
        yield _deal_problem(f"{len(deal)} lists of tasks for {ranks} ranks, expected one for each rank")
    for rank, listed in enumerate(deal):
        if unknown := [task for task in listed if task not in tasks]:
            yield _deal_problem(f"{', '.join(unknown)} for rank {rank}, expected some of {', '.join(tasks)}")
        if not listed:
            yield _deal_problem(f"no task for rank {rank}, expected at least one: it would train nothing")
    if idle := [task for task in tasks if not any(task in listed for listed in deal)]:
        yield _deal_problem(f"no rank that trains {', '.join(idle)}, expected at least one for each task")


def _deal_problem(text: str) -> Problem:
    return Problem("slicing.deal", f"found {text}")


def partitioned(deal: Deal, costs: Mapping[str, int], ranks: int) -> Owners:
    """Return the owners of each task, in the order of `costs`: the work per sample, which only `by_cost` looks at."""
    if deal == "round_robin":
        return round_robin(list(costs), ranks)
    if deal == "by_cost":
        return by_cost(costs, ranks)
    return {task: tuple(rank for rank, listed in enumerate(deal) if task in listed) for task in costs}


def round_robin(tasks: Sequence[str], ranks: int) -> Owners:
    """Assign task after task to rank after rank, until every task has a rank and every rank a task."""
    pairs = [(turn % len(tasks), turn % ranks) for turn in range(max(len(tasks), ranks))]
    return {task: tuple(rank for number, rank in pairs if number == index) for index, task in enumerate(tasks)}


def by_cost(costs: Mapping[str, int], ranks: int) -> Owners:
    """Assign costly tasks first, each to the rank with the least work.

    A rank that is left over gets the task with the highest cost per owner.
    """
    owners: dict[str, list[int]] = {task: [] for task in costs}
    load = [(0, 0, rank) for rank in range(ranks)]  # cost and number of a rank's tasks
    for task in sorted(costs, key=lambda task: -costs[task]):
        cost, count, rank = min(load)
        owners[task].append(rank)
        load[rank] = (cost + costs[task], count + 1, rank)
    for _, count, rank in load:
        if not count:
            owners[max(costs, key=lambda task: costs[task] / len(owners[task]))].append(rank)
    return {task: tuple(sorted(ranks_of)) for task, ranks_of in owners.items()}
