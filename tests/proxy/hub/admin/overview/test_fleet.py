"""The clusters' rows: which relays are expected, and the state that follows."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.admin.overview.fleet import (
    EXPECTED_FOR_S,
    SUCCEEDS_WITHIN_S,
    cluster_rows,
    missing_relays,
)
from proxy.hub.admin.overview.shapes import HubFacts
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.entities import Cluster, Mode, RelayInstance

NOW = 1_800_000_000.0
PROD = Cluster(
    id="c1",
    name="prod",
    labels={},
    teams=(),
    team_ids=frozenset(),
    mode=Mode.TUNNEL,
    relay_keys=(),
    relay_url=None,
    relay_ca_pem=None,
    relay_address_private=False,
    created_at=NOW,
)


def up(instance: str, connected_at: float = NOW - 86400, **fields: object) -> RelayInfo:
    relay = RelayInfo("prod", instance, "hawse/0.1.0", "192.0.2.7", connected_at, NOW, 1.5, 0)
    return attrs.evolve(relay, **fields)  # type: ignore[arg-type]  # a test's own fields


def seen(instance: str, last_seen_at: float, connected_at: float = NOW - 2 * 86400) -> RelayInstance:
    return RelayInstance("c1", "prod", instance, "b", "0.1.0", "192.0.2.7", connected_at, last_seen_at, None)


@pytest.mark.parametrize(
    ("connected", "known", "missing"),
    [
        pytest.param([], [], 0, id="new"),
        pytest.param([up("a"), up("b")], [seen("a", NOW), seen("b", NOW)], 0, id="all there"),
        pytest.param([up("a")], [seen("a", NOW), seen("b", NOW - 60)], 1, id="one lost"),
        pytest.param([], [seen("a", NOW - 60), seen("b", NOW - 60)], 2, id="both lost"),
        pytest.param([up("a")], [seen("b", NOW - EXPECTED_FOR_S - 1)], 0, id="one taken away a day ago"),
        pytest.param(
            [up("c", NOW - 330), up("d", NOW - 200)],
            [seen("a", NOW - 300), seen("b", NOW - 150)],
            0,
            id="a rollout: two new ones came before the old ones went",
        ),
        pytest.param(
            [up("c", NOW - 200)],
            [seen("a", NOW - 300), seen("b", NOW - 250)],
            1,
            id="a successor succeeds one",
        ),
        pytest.param(
            [up("c", NOW - 60 - SUCCEEDS_WITHIN_S - 1)],
            [seen("a", NOW - 60)],
            1,
            id="it was there long before",
        ),
    ],
)
def test_a_lost_relay_is_expected_until_it_has_a_successor(
    connected: list[RelayInfo], known: list[RelayInstance], missing: int
) -> None:
    assert missing_relays(connected, known, NOW) == missing


@given(
    st.lists(st.floats(0, EXPECTED_FOR_S - 1), max_size=5), st.lists(st.floats(0, EXPECTED_FOR_S), max_size=5)
)
def test_the_most_losses_that_can_have_a_successor_have_one(lost: list[float], came: list[float]) -> None:
    known = [seen(f"old{number}", NOW - ago) for number, ago in enumerate(lost)]
    connected = [up(f"new{number}", NOW - ago) for number, ago in enumerate(came)]

    def most(left: list[RelayInstance], free: list[RelayInfo]) -> int:
        if not left:
            return 0
        first, *rest = left
        taken = [
            1 + most(rest, [other for other in free if other is not relay])
            for relay in free
            if relay.connected_at >= first.last_seen_at - SUCCEEDS_WITHIN_S
        ]
        return max([most(rest, free), *taken])

    assert missing_relays(connected, known, NOW) == len(known) - most(known, connected)


@pytest.mark.parametrize(
    ("connected", "known", "facts", "state", "relays", "expected"),
    [
        ([], [], HubFacts(), "new", 0, 0),
        ([up("a")], [], HubFacts(), "online", 1, 1),
        ([], [seen("a", NOW - 60)], HubFacts(), "offline", 0, 1),
        ([], [seen("a", NOW - 2 * EXPECTED_FOR_S)], HubFacts(), "offline", 0, 0),
        ([up("a")], [seen("b", NOW - 60)], HubFacts(), "degraded", 1, 2),
        ([up("a", leaving=True)], [seen("a", NOW)], HubFacts(), "offline", 0, 1),
        ([up("a", leaving=True), up("a")], [seen("a", NOW)], HubFacts(), "online", 1, 1),
        ([up("a")], [], HubFacts(rtt_ms={"prod": 1.0}, api_down=["prod"]), "degraded", 1, 1),
    ],
)
def test_the_state_of_a_cluster(
    connected: list[RelayInfo],
    known: list[RelayInstance],
    facts: HubFacts,
    state: str,
    relays: int,
    expected: int,
) -> None:
    [row] = cluster_rows([PROD], connected, known, [facts], NOW)
    assert (row.state, row.relays, row.expected) == (state, relays, expected)


def test_one_hub_that_reaches_the_api_server_is_enough() -> None:
    down = HubFacts(rtt_ms={"prod": 9.0}, api_down=["prod"], calls={"prod": 2})
    fine = HubFacts(rtt_ms={"prod": 3.0}, calls={"prod": 5, "other": 1})
    [row] = cluster_rows([PROD], [up("a")], [], [down, fine], NOW)
    assert (row.state, row.rtt_ms, row.calls) == ("online", 3.0, 7)


def test_a_row_names_the_last_contact_and_the_versions() -> None:
    [row] = cluster_rows([PROD], [], [seen("a", NOW - 60), seen("b", NOW - 5)], [], NOW)
    assert row.last_heard_at == "2027-01-15T07:59:55Z"
    relays = [up("a"), up("b", version="hawse/0.2.0"), up("c")]
    [row] = cluster_rows([PROD], relays, [seen("a", NOW)], [], NOW)
    assert (row.last_heard_at, row.versions) == (None, ["0.1.0", "0.2.0"])
