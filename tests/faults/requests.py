"""Single requests to the hub, beside those that kubectl makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.world import BY_HAND, CLUSTER, FaultWorld
from tests.system.load import get
from tests.system.raw import RawClient, Talk
from tests.system.world import POD_PATH


@contextmanager
def asking(world: FaultWorld, token_of: str = BY_HAND) -> Iterator[Talk]:
    """A client that has asked something of the cluster whose relay is by hand."""
    client = world.client(token_of)
    with client.talk(client.head("/api/v1/nodes")) as talk:
        yield talk


def ask(world: FaultWorld, api_key: str = "") -> tuple[int, bytes]:
    """One request, by the world's own agent or another one, under a token that is made now."""
    client = RawClient(world, CLUSTER, api_key)
    return get(client, client.token(), POD_PATH)
