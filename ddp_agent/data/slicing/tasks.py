"""Which ranks train which task."""

from collections.abc import Iterator, Mapping, Sequence

from ddp_agent.data.slicing.base import Slicing

Owners = dict[str, tuple[int, ...]]
"""The ranks that train each task, ascending."""


def task_problems(slicing: Slicing, tasks: Sequence[str], ranks: int) -> Iterator[str]:
    """What keeps `ranks` from sharing these tasks, and what would help; a line each."""
    if slicing.tasks == "replicate":
        return
    if len(tasks) < 2:
        yield (
            "slicing.tasks: found partition, but these data have one task; expected several, such as "
            "dataset=intents dataset.tasks=[domain,intent], or slicing.tasks=replicate"
        )
        return
    if isinstance(slicing.deal, str):
        return
    if len(slicing.deal) != ranks:
        yield f"slicing.deal: found {len(slicing.deal)} lists of tasks for {ranks} ranks, expected one for each rank"
    for rank, dealt in enumerate(slicing.deal):
        if unknown := [task for task in dealt if task not in tasks]:
            yield f"slicing.deal: found {', '.join(unknown)} for rank {rank}, expected some of {', '.join(tasks)}"
        if not dealt:
            yield f"slicing.deal: found no task for rank {rank}, expected at least one: it would train nothing"
    if idle := [task for task in tasks if not any(task in dealt for dealt in slicing.deal)]:
        yield f"slicing.deal: found no rank that trains {', '.join(idle)}, expected at least one for each task"


def owners_of(slicing: Slicing, costs: Mapping[str, int], ranks: int) -> Owners:
    """By task, in the order of `costs`, which say how much work each is; only deal=by_cost looks at the numbers."""
    if slicing.tasks == "replicate":
        return {task: tuple(range(ranks)) for task in costs}
    if slicing.deal == "round_robin":
        return round_robin(list(costs), ranks)
    if slicing.deal == "by_cost":
        return by_cost(costs, ranks)
    return {task: tuple(rank for rank, dealt in enumerate(slicing.deal) if task in dealt) for task in costs}


def round_robin(tasks: Sequence[str], ranks: int) -> Owners:
    """Task after task to rank after rank, until every task has a rank and every rank a task."""
    pairs = [(turn % len(tasks), turn % ranks) for turn in range(max(len(tasks), ranks))]
    return {task: tuple(rank for number, rank in pairs if number == place) for place, task in enumerate(tasks)}


def by_cost(costs: Mapping[str, int], ranks: int) -> Owners:
    """Costly tasks first, each to the rank that has least to do; ranks left over to the task that costs each of its
    ranks most."""
    owners: dict[str, list[int]] = {task: [] for task in costs}
    load = [(0, 0, rank) for rank in range(ranks)]  # cost and number of a rank's tasks
    for task in sorted(costs, key=lambda task: -costs[task]):
        cost, count, rank = min(load)
        owners[task].append(rank)
        load[rank] = (cost + costs[task], count + 1, rank)
    for _, count, rank in load:
        if not count:
            owners[max(costs, key=lambda task: costs[task] / len(owners[task]))].append(rank)
    return {task: tuple(sorted(found)) for task, found in owners.items()}
