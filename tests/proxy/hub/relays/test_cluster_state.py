from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from proxy.hub.relays.cluster_state import cluster_state
from proxy.hub.relays.registry import Registry
from proxy.hub.store.entities import Mode
from proxy.kubernetes.statement import Statement
from proxy.message.failure import OutboundBroken
from sandbox.demo.processes import free_port
from tests.proxy.hub.relays.direct_relays import ANN, ask, cluster_at, name_the_caller, old_keys, open_relays
from tests.proxy.relay.apiserver import running
from tests.proxy.relay.ways import direct_way


@pytest.mark.parametrize(
    ("api_server", "state"), [(None, "online"), (True, "online"), (False, "API server down")]
)
async def test_a_cluster_in_direct_mode_is_as_its_relay_has_stated(
    tmp_path: Path, api_server: bool | None, state: str
) -> None:
    async with (
        running(name_the_caller, tmp_path) as server,
        direct_way(server.access, tmp_path, statement=lambda: Statement(api_server=api_server)) as way,
        open_relays(old_keys) as relays,
    ):
        cluster = cluster_at(way)
        # No relay is asked for a list.
        assert cluster_state(cluster, Registry(), relays) == "not tried"
        await ask(relays, cluster, ANN)
        assert cluster_state(cluster, Registry(), relays) == state
        # Where it is by another address, nothing is known of that one.
        moved = attrs.evolve(cluster, relay_url=f"https://127.0.0.1:{free_port()}")
        assert cluster_state(moved, Registry(), relays) == "not tried"
        with pytest.raises(OutboundBroken):
            await ask(relays, moved, ANN)
        assert cluster_state(moved, Registry(), relays) == "offline"
        # No relay has dialled the hub.
        tunnelled = attrs.evolve(cluster, mode=Mode.TUNNEL)
        assert cluster_state(tunnelled, Registry(), relays) == "offline"
