"""The plain loop of `loops`, as one replica of a crew."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from loops import Loop
from torch import nn

from ddp_agent.distributed.consistency import Common, require_common
from ddp_agent.distributed.topology import Topology
from ddp_agent.distributed.torchrun_env import Replica
from ddp_agent.elastic.quorum import Crew
from ddp_agent.sync import SyncStrategy


class ElasticLoop(Loop):
    """`address` is the keeper's. Begins at once."""

    def __init__(self, sync: SyncStrategy, address: str, number: int, count: int, **options: Any) -> None:
        self.crew = Crew(Replica(number=number, count=count, keeper=address), timeout_s=20)
        super().__init__(sync, topology=Topology(world=self.crew.comm, ranks_per_node=1), **options)
        self.joined = self.crew.begin(self)

    def run(self, steps: int) -> "ElasticLoop":
        for _ in range(steps):
            self.take_step()
            if self.sync.meets(self.step):
                self.crew.together(self, partial(self.sync.after_step, self.step), "sync")
            else:
                self.sync.after_step(self.step)
        return self

    def take_step(self) -> None:
        self.step += 1
        inputs, target = self.batches(self.step, self.crew.slot)
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(inputs), target).backward()
        self.optimizer.step()

    def flush(self) -> "ElasticLoop":
        self.crew.together(self, partial(self.sync.flush, self.step), "flush")
        return self

    def end(self) -> None:
        self.crew.end()

    def die(self) -> None:
        """As the others see it: no more signs of life, and closed connections."""
        self.crew._membership.close()
        self.crew.comm.close()

    # A member.

    def check_start(self) -> None:
        world = self.topology.world
        require_common([Common(self.sync.flat.parameters, range(world.size))], world, 0)

    def snapshot(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "weights": self.sync.flat.snapshot(),
                "syncs": self.sync.syncs,
                "sync": self.sync.state_dict(),
                "reducer": self.reducer.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.sync.flat.restore(snapshot["weights"])
        self.sync.syncs = snapshot["syncs"]
        for name in ("sync", "reducer", "optimizer"):
            getattr(self, name).load_state_dict(snapshot[name])

    def regroup(self, rank: int, size: int, new_size: int) -> None:
        self.reducer.regroup(rank, size, new_size)

    def parcel(self) -> dict[str, Any]:
        return self.snapshot() | {"step": self.step, "reducer": self.reducer.common_state()}

    def adopt(self, parcel: Mapping[str, Any]) -> None:
        self.step = parcel["step"]
        self.restore(parcel)
