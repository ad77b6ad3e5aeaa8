"""What a relay says of its API server and of its cluster, and what the hub makes of it: real processes.

The API servers are scripted. What they answer to the relay's own two requests is all that differs here.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import attrs
import pytest

from sandbox.demo.processes import Daemons
from tests.fakes.apiserver import READYZ, SYSTEM_NAMESPACE, ApiServer, Exchange, running_apiserver
from tests.system.raw import RawClient, parse
from tests.system.world import USER, World, make_world, start_and_enrol

pytestmark = pytest.mark.timeout(180)

EAST, WEST = "11111111-aaaa-4aaa-8aaa-111111111111", "22222222-bbbb-4bbb-8bbb-222222222222"
DEADLINE_S = 40.0


@attrs.define(eq=False)
class Stage:
    """A hub, and two clusters of which a relay can be started in each."""

    world: World
    servers: dict[str, ApiServer]

    def start(self, where: str, way: str = "tunnel") -> None:
        """Start the tunnel cluster's relay in a Kubernetes cluster, under its name."""
        self.world.relay_kubeconfig = self.world.folder / f"{where}.kubeconfig"
        self.world.start_relay(way, where)

    def stop(self, where: str, way: str = "tunnel") -> None:
        self.world.relays.pop(f"{way}-{where}").stop()

    def row(self, where: str) -> dict[str, object] | None:
        rows = [row for row in self.world.relay_rows() if row["instance"] == where and row["connected"]]
        return rows[0] if rows else None

    def health(self, where: str, path: str, way: str = "tunnel") -> tuple[int, str]:
        port = self.world.health_ports[f"{way}-{where}"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def pin(self, cluster: str = "tunnel") -> object:
        return json.loads(self.world.admin("cluster", "show", cluster, "--json"))["cluster_uid"]

    def events(self, kind: str) -> list[tuple[str, str]]:
        """Instance and note of each."""
        events = self.world.hub_audit("--kind", kind)
        return [(event["relay"]["instance"], str(event.get("note", ""))) for event in events]


def namespace(uid: str) -> Callable[[Exchange], None]:
    body = json.dumps({"kind": "Namespace", "metadata": {"name": "kube-system", "uid": uid}}).encode()
    return lambda exchange: exchange.answer(200, body, "Content-Type: application/json")


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("clusters")
    with running_apiserver() as east, running_apiserver() as west, Daemons(folder) as daemons:
        for name, server, uid in (("east", east, EAST), ("west", west, WEST)):
            server.write_kubeconfig(folder / f"{name}.kubeconfig")
            server.always(SYSTEM_NAMESPACE, namespace(uid))
        world = make_world(folder, daemons, folder / "east.kubeconfig")
        start_and_enrol(world)
        yield Stage(world, {"east": east, "west": west})
        for server in (east, west):
            # Nothing but the two that the relay makes of its own goes without an identity.
            assert all(exchange.header("impersonate-user") == [USER] for exchange in server.exchanges)


def test_a_relay_before_a_dead_api_server_lives_and_is_not_ready(stage: Stage) -> None:
    server = stage.servers["east"]
    server.always(READYZ, lambda exchange: exchange.reset())
    stage.start("east")
    wait_for(lambda: stage.row("east"), "the relay does not reach its hub")
    row = stage.row("east")
    assert row is not None
    assert row["api_server"] == "down"
    assert stage.health("east", "/healthz") == (200, "ok\n")
    assert stage.health("east", "/readyz") == (503, "the API server does not answer\n")
    assert "hawse_relay_api_server_up 0\n" in stage.health("east", "/metrics")[1]
    assert b" down " in stage.world.admin("relay", "list")
    # A 5xx is as bad, and any other answer is one: also that the relay may not ask.
    server.always(READYZ, lambda exchange: exchange.refuse(500, "etcd is away"))
    stage.world.relays["tunnel-east"].wait_for("/readyz is answered with 500")
    server.always(READYZ, lambda exchange: exchange.refuse(403, "no"))
    wait_for(lambda: stage.health("east", "/readyz") == (200, "ok\n"), "it does not become ready")
    wait_for(lambda: (stage.row("east") or {}).get("api_server") == "up", "the hub is not told")
    assert "hawse_relay_api_server_up 1\n" in stage.health("east", "/metrics")[1]
    # It has learned meanwhile which cluster this is, and the hub by it.
    wait_for(lambda: stage.pin() == EAST, "what is told later is not pinned")


def test_a_relay_in_another_cluster_is_refused_until_that_is_meant(stage: Stage) -> None:
    stage.start("east")
    wait_for(lambda: stage.row("east"), "no relay")
    assert stage.pin() == EAST
    assert stage.events("relay.pinned") == [("east", f"kube-system uid={EAST}")]
    stage.start("west")
    line = stage.world.relays["tunnel-west"].wait_for("wrong cluster: ")
    assert "`hawse admin cluster repin tunnel`" in line
    # It backs off as from any refusal.
    assert float(line.rpartition("the next attempt is in ")[2].split()[0]) >= 5
    assert stage.row("west") is None
    assert stage.row("east") is not None
    [(instance, note)] = set(stage.events("relay.refused"))
    assert instance == "west"
    assert EAST in note
    assert WEST in note
    # The cluster was moved: the next relay that connects is right, and the one before is in the wrong place.
    stage.world.admin("cluster", "repin", "tunnel", "--yes")
    wait_for(lambda: stage.pin() == WEST, "the other cluster is not pinned")
    stage.world.relays["tunnel-east"].wait_for("wrong cluster: ")
    wait_for(lambda: stage.row("east") is None, "the relay in the old cluster stays")
    assert stage.row("west") is not None
    again = stage.world.try_admin("cluster", "repin", "direct", "--yes")
    assert again.code != 0
    assert b"cluster direct is not pinned" in again.err


def test_the_hub_sends_nothing_to_a_direct_relay_in_another_cluster(stage: Stage) -> None:
    world = stage.world
    client = RawClient(world, "direct")
    path = "/api/v1/namespaces/work/configmaps"

    def get() -> tuple[int, bytes]:
        request = f"GET /clusters/direct{path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n"
        bearer = f"Authorization: Bearer {client.token()}\r\n\r\n"
        answer = parse(client.send((request + bearer).encode()))
        return answer.status, answer.body

    stage.start("east", "direct")
    wait_for(lambda: stage.health("east", "/readyz", "direct") == (200, "ok\n"), "it does not become ready")
    assert get()[0] == 200
    assert stage.pin("direct") == EAST
    row = stage.row("direct")
    assert row is not None
    assert (row["api_server"], row["pinned"]) == ("up", True)
    stage.stop("east", "direct")
    # The hub that starts knows of no relay but what is pinned.
    assert world.hub is not None
    world.hub.stop()
    world.start_hub()
    stage.start("west", "direct")
    wait_for(lambda: stage.health("west", "/readyz", "direct") == (200, "ok\n"), "it does not become ready")
    status, body = get()
    assert status == 503
    assert b"its relay is in another Kubernetes cluster than the pinned one" in body
    assert stage.events("relay.refused")[-1][1].startswith("wrong cluster: ")
    assert [each.target for each in stage.servers["west"].exchanges if each.target == path] == []
    world.admin("cluster", "repin", "direct", "--yes")
    assert get()[0] == 200
    assert stage.pin("direct") == WEST
    [seen] = [each for each in stage.servers["west"].exchanges if each.target == path]
    assert seen.header("impersonate-user") == [USER]


def test_a_relay_without_the_right_runs_and_is_shown_as_not_pinned(stage: Stage) -> None:
    stage.servers["east"].always(SYSTEM_NAMESPACE, lambda exchange: exchange.refuse(403, "no"))
    stage.start("east")
    wait_for(lambda: stage.row("east"), "no relay")
    row = stage.row("east")
    assert row is not None
    assert (row["api_server"], row["pinned"]) == ("up", False)
    assert b"not pinned" in stage.world.admin("relay", "list")
    assert stage.pin() is None
    assert "hawse admin cluster rbac" in stage.world.relays["tunnel-east"].wait_for("kube-system: ")
