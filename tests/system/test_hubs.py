"""Several hubs on one PostgreSQL, behind one name."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import attrs
import pytest

from sandbox.demo.hubs import HubProcess
from tests.console.browser.chromium import MISSING, Chromium, find_chromium, running_chromium
from tests.console.browser.tab import new_tab
from tests.console.browser.world import sign_in
from tests.deploy.monitoring import ONLY_POSTGRES, missing
from tests.postgres import PostgresServer
from tests.programs import lacking
from tests.system.approvals.scene import HELD, LATER, Row, Scene
from tests.system.hubs import CLUSTER, RELAYS, HubsWorld, administration_of, rows_of, running_hubs
from tests.system.raw import RawClient
from tests.system.world import AGENT, DEADLINE_S, NAMESPACE, POD

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[HubsWorld]:
    with (
        postgres.new_database() as database,
        running_hubs(tmp_path_factory.mktemp("hubs"), postgres.url(database), console=True) as running,
    ):
        yield running


def test_kubectl_works_through_the_balancer(world: HubsWorld) -> None:
    done = world.kubectl("tunnel", "get", "pods")
    assert (done.code, POD.encode() in done.out) == (0, True)
    world.wait_for_tunnels(4)
    assert world.cut_relays() == 4


def test_the_metrics_that_alerts_name_and_only_a_database_has_are_scraped(world: HubsWorld) -> None:
    assert missing(ONLY_POSTGRES, [metrics_of(world.members[0])]) == {}


def metrics_of(member: HubProcess) -> str:
    admin = administration_of(member)
    request = Request(f"{admin.url}/metrics", headers={"Authorization": f"Bearer {admin.token}"})
    with urlopen(request, timeout=DEADLINE_S, context=admin.context) as answer:
        return str(answer.read().decode())


def test_a_third_relay_is_refused_whichever_hub_it_dials(world: HubsWorld) -> None:
    world.wait_for_tunnels(4)
    for member in world.members:
        tunnels = [row for row in rows_of(member, "relays") if row["connected"] and not row["leaving"]]
        # Two tunnels each, to two hubs, whichever hub is asked.
        assert len(tunnels) >= 4
        assert {str(row["instance"]) for row in tunnels} == set(RELAYS)
    world.start_relay(CLUSTER, "third")
    third = world.relays.pop(f"{CLUSTER}-third")
    third.wait_for("has 2 relays here")
    third.stop()
    assert all("third" not in names for names in world.tunnels().values())


def test_the_calls_of_all_hubs_are_listed_and_ended_at_any_of_them(world: HubsWorld) -> None:
    first, second, third = world.members
    with ExitStack() as stack:
        watches = []
        for member in world.members:
            client = RawClient(world, CLUSTER, at=member.port)
            watches.append(stack.enter_context(client.talk()))
            watches[-1].send(client.head(f"/api/v1/namespaces/{NAMESPACE}/pods?watch=1"))
            assert watches[-1].answer(body=False).status == 200
        ids = {row["hub"]: row["address"] for row in rows_of(first, "hubs")}
        assert len(set(ids.values())) == 3
        for member in world.members:
            assert sorted(str(row["hub"]) for row in rows_of(member, "sessions")) == sorted(ids)
        # A hub that hangs is named in time, and the others answer.
        third.signal(signal.SIGSTOP)
        try:
            found = administration_of(first).get("sessions")
            assert found["silent_hubs"] == [hub for hub in ids if ids[hub] == f"127.0.0.1:{third.peer_port}"]
            assert len(found["sessions"]) == 2
        finally:
            third.signal(signal.SIGCONT)
        kill = {"agent": AGENT, "reason": "incident 7"}
        killed = administration_of(second).post("sessions", "kill", body=kill)
        assert sorted(str(row["hub"]) for row in killed["killed"]) == sorted(ids)
        for watch in watches:
            assert b"incident 7" not in watch.rest()
        assert rows_of(third, "sessions") == []


@pytest.fixture(scope="module")
def scene(world: HubsWorld) -> Scene:
    return Scene.of(world)


def at(world: HubsWorld, member: HubProcess) -> list[str]:
    """The flags that lead the agent's kubectl to this hub, past the balancer: its plugin goes by the URL."""
    server = f"--server=https://127.0.0.1:{member.port}/clusters/{CLUSTER}"
    return [server, f"--token={RawClient(world, CLUSTER).token()}"]


def approve_at(member: HubProcess, scene: Scene, row: Row) -> None:
    approver = attrs.evolve(administration_of(member), token=scene.approver.token)
    approver.post("requests", str(row["id"]), "approve", body={"shown": row["shown"]})


def test_of_a_call_that_waits_at_two_hubs_an_approval_at_a_third_lets_one_through(
    world: HubsWorld, scene: Scene
) -> None:
    first, second, third = world.members
    name = scene.named(HELD)
    scene.make(name)
    with ExitStack() as stack:
        clients = []
        for member in (first, second):
            clients.append(world.popen("tunnel", *at(world, member), "delete", "configmap", name))
            stack.enter_context(clients[-1])
            stack.callback(clients[-1].kill)
        world.until(
            lambda: sum(row["verb"] == "delete" for row in rows_of(third, "sessions")) == len(clients),
            "both calls",
        )
        # Both wait for one request.
        row = scene.waiting(name)
        assert [client.poll() for client in clients] == [None, None]
        approve_at(third, scene, row)
        ends = [(client.communicate(timeout=DEADLINE_S), client.returncode) for client in clients]
    assert sorted(code for _, code in ends) == [0, 1], ends
    assert (scene.is_there(name), scene.ended(row)) == (False, "used")
    assert scene.writes(f"configmaps/{name}") == [200]
    assert len(scene.requests(name)) == 1


def test_a_call_that_one_hub_has_refused_is_made_at_another_after_its_approval_and_once(
    world: HubsWorld, scene: Scene
) -> None:
    first, second, third = world.members
    name = scene.named(LATER)
    delete = ("delete", "configmap", name)
    scene.make(name)
    refused = world.kubectl("tunnel", *at(world, first), *delete)
    assert (refused.code, b"pending" in refused.err) == (1, True), refused.err
    row = scene.waiting(name)
    approve_at(third, scene, row)
    done = world.kubectl("tunnel", *at(world, second), *delete)
    assert (done.code, scene.ended(row)) == (0, "used"), done.err
    # There is an object to delete again, and the hub that asked has not used the approval itself.
    scene.make(name)
    again = world.kubectl("tunnel", *at(world, first), *delete)
    assert (again.code, b"was used already" in again.err) == (1, True), again.err
    assert scene.is_there(name)
    assert scene.writes(f"configmaps/{name}") == [200]
    assert len(scene.requests(name)) == 1


@pytest.fixture
def chromium() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        lacking(MISSING)
    with running_chromium(program) as running:
        yield running


def connections_of(member: HubProcess) -> int:
    """The connections of the hub's console, by its metrics."""
    name = 'hawse_console_connections{state="authenticated"} '
    [line] = [line for line in metrics_of(member).splitlines() if line.startswith(name)]
    return int(float(line.removeprefix(name)))


def test_a_page_outlives_the_hub_that_serves_it(world: HubsWorld, chromium: Chromium) -> None:
    chromium.run(outlive_a_hub, world, chromium)


def outlive_a_hub(world: HubsWorld, chromium: Chromium) -> None:
    """An open page shows the calls of all hubs, and goes on at another hub when its own one is killed."""
    url = str(administration_of(world.members[0]).post("console", "codes")["url"])
    with new_tab(chromium.browser, world.behind.console_url) as tab, ExitStack() as stack:
        sign_in(tab, url)
        tab.open("/calls")
        tab.page.locator("#live[data-state=on]").wait_for()
        # Gone on a page that was loaded again.
        tab.page.evaluate("document.body.dataset.mark = 'kept'")
        for number, member in enumerate(world.members, 1):
            client = RawClient(world, CLUSTER, at=member.port)
            watch = stack.enter_context(client.talk())
            watch.send(client.head(f"/api/v1/namespaces/{NAMESPACE}/pods?watch=1"))
            assert watch.answer(body=False).status == 200
            tab.page.locator(f"#calls-rows tr[id]:nth-child({number})", has_text="watch").wait_for()
        [serving] = [member for member in world.members if connections_of(member)]
        with tab.page.expect_response("**/v1/stream") as stream:
            serving.signal(signal.SIGKILL)
        assert stream.value.status == 200
        # The calls of the killed hub are gone, and the page is live again.
        tab.page.locator("#calls-rows tr", has_text="watch").nth(2).wait_for(state="detached")
        tab.page.locator("#live[data-state=on]").wait_for()
        assert tab.page.locator("#calls-rows tr", has_text="watch").count() == 2
        assert tab.page.evaluate("document.body.dataset.mark") == "kept"
        tab.page.get_by_role("button", name="Sign out").click()
        tab.page.wait_for_url(f"{tab.origin}/signin**")
        # The browser reports the stream that was cut.
        tab.expected.append("net::ERR_")
        tab.check()
    world.start(serving)


class Person:
    """A browser that reaches one hub, and then another: a balancer would choose."""

    def __init__(self, world: HubsWorld) -> None:
        self.at = world.behind.console_url.removeprefix("http://")
        self.cookie = ""

    def ask(
        self, member: HubProcess, target: str, form: Mapping[str, str] | None = None
    ) -> tuple[HTTPConnection, HTTPResponse]:
        name = f"hawse-{self.at.rpartition(':')[2]}"
        headers = {"Host": self.at, "Cookie": f"{name}={self.cookie}", "Sec-Fetch-Site": "same-origin"}
        connection = HTTPConnection("127.0.0.1", member.console_port, timeout=DEADLINE_S)
        body = None if form is None else urlencode(form)
        connection.request("GET" if form is None else "POST", target, body, headers)
        return connection, connection.getresponse()

    def status(self, member: HubProcess, target: str) -> int:
        connection, answer = self.ask(member, target)
        connection.close()
        return answer.status

    def sign_in(self, member: HubProcess, code: str) -> int:
        connection, answer = self.ask(member, "/signin", {"code": code})
        connection.close()
        cookie = answer.headers.get("Set-Cookie", "")
        self.cookie = cookie.partition("=")[2].partition(";")[0] or self.cookie
        return answer.status


def test_a_sign_in_counts_at_every_hub_and_outlives_each_of_them(world: HubsWorld) -> None:
    first, second, third = world.members
    code = str(administration_of(first).post("console", "codes")["code"])
    person, other = Person(world), Person(world)
    # At a hub that has not made the code, and at once at one that has not seen the sign-in.
    assert person.sign_in(second, code) == 303
    assert [person.status(member, "/") for member in (third, first, second)] == [200, 200, 200]
    assert other.sign_in(third, code) == 401
    with ExitStack() as stack:
        for member in world.members:
            client = RawClient(world, CLUSTER, at=member.port)
            watch = stack.enter_context(client.talk())
            watch.send(client.head(f"/api/v1/namespaces/{NAMESPACE}/pods?watch=1"))
            assert watch.answer(body=False).status == 200
        connection, answer = person.ask(second, "/v1/sessions")
        calls = json.loads(answer.read())["sessions"]
        connection.close()
        assert len({call["hub"] for call in calls}) == 3
    # A page follows the first hub, which dies; its next stream is at another one.
    connection, stream = person.ask(first, "/v1/stream")
    assert stream.status == 200
    assert stream.readline()
    first.signal(signal.SIGKILL)
    with suppress(ConnectionError, IncompleteRead):
        while stream.readline():
            pass
    connection.close()
    connection, stream = person.ask(second, "/v1/stream")
    assert stream.status == 200
    assert stream.readline()
    # It ends at a hub with the session, which another hub ends.
    operator = administration_of(third)
    [session] = operator.get("console", "sessions")["sessions"]
    operator.delete("console", "sessions", session["id"])
    began = time.monotonic()
    with suppress(ConnectionError, IncompleteRead):
        while stream.readline():
            pass
    # Its hub learns of it and looks at the session in 1.5 s. The rest is for a busy machine.
    assert time.monotonic() - began < 1.5 + 8
    assert [person.status(member, "/") for member in (third, second)] == [303, 303]
    connection.close()
