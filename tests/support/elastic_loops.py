"""The plain loop of `loops`, as one replica of a group."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from loops import Loop
from torch import nn

from ddp_agent.distributed.consistency import ReplicatedTensor, require_replicated
from ddp_agent.distributed.process import Replica
from ddp_agent.distributed.topology import Topology
from ddp_agent.elastic.group import ElasticGroup
from ddp_agent.sync import SyncStrategy
from ddp_agent.sync.engine.internals import internals


class ElasticLoop(Loop):
    """`address` is the coordinator's. Begins at once."""

    def __init__(self, sync: SyncStrategy, address: str, number: int, count: int, **options: Any) -> None:
        self.replica_group = ElasticGroup(Replica(number=number, count=count, coordinator=address), timeout_s=20)
        super().__init__(sync, topology=Topology(world=self.replica_group.comm, ranks_per_node=1), **options)
        self.joined = self.replica_group.begin(self)

    def run(self, steps: int) -> "ElasticLoop":
        for _ in range(steps):
            self.take_step()
            if internals(self.sync).exchanges(self.step):
                self.replica_group.run_collective(self, partial(self.sync.after_step, self.step), "sync")
            else:
                self.sync.after_step(self.step)
        return self

    def take_step(self) -> None:
        self.step += 1
        inputs, target = self.batches(self.step, self.replica_group.slot)
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(inputs), target).backward()
        self.optimizer.step()

    def flush(self) -> "ElasticLoop":
        self.replica_group.run_collective(self, partial(self.sync.flush, self.step), "flush")
        return self

    def end(self) -> None:
        self.replica_group.end()

    def die(self) -> None:
        """Let this replica die as the others see it: no more heartbeats, and closed connections."""
        self.replica_group._membership.close()
        self.replica_group.comm.close()

    # As a participant.

    def check_start(self) -> None:
        world = self.topology.world
        require_replicated([ReplicatedTensor(self.flat.parameters, range(world.size))], world, 0)

    def snapshot(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "weights": self.flat.snapshot(),
                "syncs": self.syncs,
                "sync": self.sync.state_dict(),
                "reducer": self.reducer.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.flat.restore(snapshot["weights"])
        internals(self.sync).syncs = snapshot["syncs"]
        for name in ("sync", "reducer", "optimizer"):
            getattr(self, name).load_state_dict(snapshot[name])

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        self.reducer.regroup(rank, size, new_size)

    def join_state(self) -> dict[str, Any]:
        return self.snapshot() | {"step": self.step, "reducer": self.reducer.common_state()}

    def load_join_state(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.restore(state)
