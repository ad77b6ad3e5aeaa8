"""What an operator should look at first."""

from __future__ import annotations

from msgspec.structs import replace

from proxy.hub.admin.overview.attention import LACKS_RIGHTS_FOR_S, attention, ending_tokens
from proxy.hub.admin.overview.shapes import Attention, ClusterRow, HubFacts, HubRow
from proxy.hub.store.entities import AdminToken
from proxy.hub.store.roles import Role

NOW = 1_800_000_000.0
ONLINE = ClusterRow("prod", "tunnel", "online", 2, 2, None, 1.5, 0, ["0.1.0"])
HUB = HubRow("aaaaaaaa", True, "serving", True, "0.1.0", 2, 0, None)
DISK = Attention("disk-full", "warning", "trail", "", "nearly full")


def kinds(
    clusters: list[ClusterRow] | None = None,
    facts: list[HubFacts] | None = None,
    hubs: list[HubRow] | None = None,
    silent: list[str] | None = None,
    faults: list[str] | None = None,
) -> list[tuple[str, str]]:
    found = attention(clusters or [], facts or [], hubs or [], silent or [], faults or [], "0.1.0", NOW)
    return [(each.kind, each.name) for each in found]


def test_a_fleet_in_order_needs_no_attention() -> None:
    assert kinds([ONLINE], [HubFacts()], [HUB]) == []
    # A cluster whose relay is still to come is no trouble: its page waits for it.
    assert kinds([replace(ONLINE, state="new", relays=0, expected=0, versions=[])]) == []


def test_the_most_urgent_comes_first() -> None:
    degraded = replace(ONLINE, name="dev", state="degraded", relays=1)
    offline = replace(ONLINE, name="stage", state="offline", relays=0, last_heard_at="2027-01-15T07:00:00Z")
    old = replace(ONLINE, name="old", versions=["0.0.9"])
    api = replace(ONLINE, name="api", state="degraded")
    assert kinds([degraded, old, offline, api], [HubFacts(troubles=[DISK])]) == [
        ("api-server-down", "api"),
        ("cluster-offline", "stage"),
        ("disk-full", ""),
        ("relay-missing", "dev"),
        ("version-skew", "0.0.9"),
    ]


def test_hubs_that_are_lost_silent_or_of_another_version() -> None:
    lost = replace(HUB, hub="bbbbbbbb", living=False)
    newer = replace(HUB, hub="cccccccc", version="0.2.0")
    assert kinds(hubs=[HUB, lost, newer], silent=["dddddddd"]) == [
        ("hub-lost", "bbbbbbbb"),
        ("hub-silent", "dddddddd"),
        ("version-skew", "cccccccc"),
    ]


def test_the_same_trouble_of_two_hubs_is_one() -> None:
    assert kinds(facts=[HubFacts(troubles=[DISK]), HubFacts(troubles=[DISK])]) == [("disk-full", "")]


def test_rights_that_a_relay_lacks_are_shown_for_an_hour_with_the_command() -> None:
    facts = [HubFacts(lacks_rights={"prod": NOW - 9999}), HubFacts(lacks_rights={"prod": NOW - 60})]
    [found] = attention([], facts, [], [], [], "0.1.0", NOW)
    assert (found.kind, found.name, found.since) == ("rbac-to-apply", "prod", "2027-01-15T07:59:00Z")
    assert "hawse admin cluster rbac prod | kubectl apply -f -" in found.message
    assert kinds(facts=[HubFacts(lacks_rights={"prod": NOW - LACKS_RIGHTS_FOR_S})]) == []


def test_invalid_rows_are_counted_beyond_five() -> None:
    [found] = attention([], [], [], [], [f"row {number}" for number in range(7)], "0.1.0", NOW)
    assert found.message.endswith("row 0; row 1; row 2; row 3; row 4, and 2 more")


def test_tokens_that_end_within_two_weeks() -> None:
    def token(name: str, ends_in_s: float | None) -> AdminToken:
        ends = None if ends_in_s is None else NOW + ends_in_s
        return AdminToken("t", name, Role.VIEWER, True, NOW, ends)

    day = 86400
    tokens = [token("a", None), token("b", 15 * day), token("c", 13 * day), token("d", -1)]
    assert [each.name for each in ending_tokens(tokens, NOW)] == ["c"]
