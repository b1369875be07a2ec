"""The composition of replicas is checked before anything starts."""

import pytest

from ddp_agent.cli.replicas import world_size
from ddp_agent.distributed.process import REPLICA, Replica, TorchrunEnvironment
from ddp_agent.errors import ConfigError

TOLD = dict(zip(REPLICA, ("2", "4", "127.0.0.1:29600"), strict=True))
CONTINUE, STOP = {"on_rank_loss": "continue"}, {"on_rank_loss": "stop"}


def tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)


def test_a_replica_reads_who_it_is() -> None:
    assert Replica.read(TOLD) == Replica(number=2, count=4, coordinator="127.0.0.1:29600")
    assert Replica.read({}) is None


def test_an_ordinary_run_has_no_replicas() -> None:
    assert world_size(STOP, TorchrunEnvironment()) is None


def test_the_world_of_a_replica_is_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch)
    assert world_size(CONTINUE, TorchrunEnvironment()) == 4


def test_without_the_launcher_it_is_refused_with_the_remedy() -> None:
    for environment in (TorchrunEnvironment(), None):
        with pytest.raises(ConfigError, match=r"on_rank_loss: found 'continue'.*launch/elastic\.sh"):
            world_size(CONTINUE, environment)


def test_several_ranks_in_one_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch)
    with pytest.raises(ConfigError, match="among 2 ranks of one torchrun, expected 1"):
        world_size(CONTINUE, TorchrunEnvironment(world_size=2))


def test_a_replica_that_would_stop_with_the_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch)
    with pytest.raises(ConfigError, match="found 'stop' in a replica"):
        world_size(STOP, TorchrunEnvironment())
