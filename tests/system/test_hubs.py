"""Several hubs on one PostgreSQL, behind one name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import PostgresServer
from tests.system.hubs import HubsWorld, running_hubs
from tests.system.world import POD

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[HubsWorld]:
    with (
        postgres.new_database() as database,
        running_hubs(tmp_path_factory.mktemp("hubs"), postgres.url(database)) as running,
    ):
        yield running


def test_kubectl_works_through_the_balancer(world: HubsWorld) -> None:
    done = world.kubectl("tunnel", "get", "pods")
    assert (done.code, POD.encode() in done.out) == (0, True)
    assert world.cut_relays() == 2
