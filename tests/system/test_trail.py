"""What one agent, or a stranger, can make the trail hold; and what it holds of calls that a kill ended."""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

from proxy.hub.calls.limits import TICK_S
from proxy.hub.calls.starts import CHECK_EVERY_S, STARTED_AFTER_S
from proxy.hub.home.sections.limits import LimitsConfig
from tests.system.raw import RawClient, Talk, marked_path
from tests.system.waiting import wait_until
from tests.system.world import NAMESPACE, POD, WAYS, World, running_world

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

QUERY_KEPT = 2048
WHOLE_MAX = 64 * 1024
DAY_S = 24 * 3600

# What an agent of these may add to the trail: small enough that a test meets it within seconds.
BYTES_PER_S = 200_000
BYTES_AT_ONCE = 1_000_000
# The agent exceeds its budget and recovers this many times.
DEBTS = 3

# A stranger's flood: sixty requests a second, from one window of ten seconds into the next. The rows do not
# depend on its pace, and a faster one takes the machine from other tests.
ROUNDS = 110
ROUND_EVERY_S = 0.1


@pytest.fixture(params=WAYS)
def client(world: World, request: pytest.FixtureRequest) -> RawClient:
    return RawClient(world, request.param)


@pytest.fixture(scope="module")
def lasting_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world for tests that end and start its hub. After each test, all of it runs."""
    with running_world(tmp_path_factory.mktemp("lasting")) as running:
        yield running


@pytest.fixture
def narrow_world(tmp_path: Path) -> Iterator[World]:
    """One whose agents may add little to the trail."""
    limits = f"[limits]\naudit_bytes_per_second = {BYTES_PER_S}\naudit_bytes_at_once = {BYTES_AT_ONCE}\n"
    with running_world(tmp_path, hub_settings=limits) as running:
        yield running


def rows_with(world: World, mark: str) -> list[dict[str, Any]]:
    """The trail's rows of a request line with the mark in it, once one of them ends the call."""

    def marked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if mark in json.dumps(row.get("req"))]

    wait_until(lambda: any(row["phase"] != "intent" for row in marked(world.audit_rows("--since", "2m"))))
    return marked(world.audit_rows("--since", "2m"))


def requested(row: dict[str, object]) -> dict[str, object]:
    req = row["req"]
    assert isinstance(req, dict)
    return req


def stored_bytes(world: World) -> int:
    """What the trail has grown to, with what is not in the file yet but in the write-ahead log beside it."""
    with closing(sqlite3.connect(f"file:{world.folder / 'hub' / 'audit.db'}?mode=ro", uri=True)) as trail:
        pages: int = trail.execute("PRAGMA page_count").fetchone()[0]
    return pages * 4096


def test_of_a_reads_long_query_a_row_has_2_kib_and_the_sum_of_the_whole(client: RawClient) -> None:
    _, mark = marked_path()
    path = f"/version/{mark}"
    target = f"{path}?x={'y' * 60_000}"
    assert client.get(target).status in {403, 404}
    [row] = rows_with(client.world, mark)
    assert requested(row)["raw_target"] == f"{path}?x={'y' * (QUERY_KEPT - 2)}…"
    assert requested(row)["target_bytes"] == len(target)
    assert requested(row)["target_sha256"] == hashlib.sha256(target.encode()).hexdigest()
    assert len(json.dumps(row)) < 2 * QUERY_KEPT + 2000

    # Where nothing is cut there is no sum either.
    _, mark = marked_path()
    client.get(f"/version/{mark}?x={'y' * 100}")
    [row] = rows_with(client.world, mark)
    assert not {"target_bytes", "target_sha256"} & requested(row).keys()


def test_a_token_in_a_long_query_is_neither_in_the_row_nor_in_its_sum(client: RawClient) -> None:
    _, mark = marked_path()
    path, token = f"/version/{mark}", client.token()
    for said in (f"a={'y' * 3000}&access_token={token}", f"access_token={token}&a={'y' * 3000}"):
        assert client.get(f"{path}?{said}").status == 400
    rows = rows_with(client.world, mark)
    assert len(rows) == 2
    for row, hidden in zip(
        rows, (f"a={'y' * 3000}&access_token=***", f"access_token=***&a={'y' * 3000}"), strict=True
    ):
        assert token[-40:] not in json.dumps(row)
        # An attacker who guesses a token can't verify it by the checksum.
        assert requested(row)["target_sha256"] == hashlib.sha256(f"{path}?{hidden}".encode()).hexdigest()


def exec_path(script: str, mark: str, words: int = 0) -> str:
    argv = ["sh", "-c", script, mark, *["w"] * words]
    return f"/api/v1/namespaces/{NAMESPACE}/pods/{mark}/exec?stdout=1&" + "&".join(
        f"command={quote(word)}" for word in argv
    )


def test_a_command_stands_in_the_trail_whole_or_is_refused(client: RawClient) -> None:
    _, mark = marked_path()
    for path in (exec_path("x" * 60_000, mark), exec_path("x", mark, 6_000)):
        assert len(path) < WHOLE_MAX
        with client.talk(client.upgrade(path)) as talk:
            assert talk.answer().status in {403, 404}
    wait_until(lambda: len(rows_with(client.world, mark)) == 4)
    rows = rows_with(client.world, mark)
    assert {json.dumps(requested(row)) for row in rows if "x" * 60_000 in json.dumps(row)}
    for row in rows:
        assert "target_sha256" not in requested(row)
        stream = row["stream"]
        assert isinstance(stream, dict)
        assert len(stream["command"]) in {4, 6_004}
        assert "…" not in json.dumps(stream, ensure_ascii=False)

    # What is longer would hide what was run.
    _, mark = marked_path()
    for request in (
        client.upgrade(exec_path("x" * 66_000, mark)),
        client.upgrade(
            f"/api/v1/namespaces/{NAMESPACE}/pods/{mark}/exec?command=id&" + "&a=b" * 9_000 + "c" * 40_000
        ),
        client.head(
            f"/api/v1/namespaces/{NAMESPACE}/configmaps?{mark}={'x' * 66_000}",
            "Content-Length: 0",
            method="POST",
        ),
        # A path is kept whole, regardless of the request.
        client.head(f"/version/{mark}/{'x' * 66_000}"),
    ):
        with client.talk(request) as talk:
            answer = talk.answer()
        assert answer.status == 414, answer.raw[:300]
        said = json.loads(answer.body)
        assert (said["kind"], said["code"]) == ("Status", 414)
        assert "65536" in said["message"], said
    rows = rows_with(client.world, mark)
    assert [row["resp"]["status"] for row in rows] == [414] * 4
    assert max(len(json.dumps(row)) for row in rows) < 16_000
    # A read of as much is none of that: it is cut.
    _, mark = marked_path()
    assert client.get(f"/api/v1/namespaces/{NAMESPACE}/configmaps?{mark}={'x' * 100_000}").status == 200
    [row] = rows_with(client.world, mark)
    assert requested(row)["target_bytes"] > 100_000  # type: ignore[operator]


def test_what_a_client_has_ended_reads_so_and_is_shown_by_the_clusters_audit_id(world: World) -> None:
    """kubectl closes its connection at the end of a watch, as of some `cp`: nothing has failed."""
    _, mark = marked_path()
    target = f"{POD}:/tmp/{mark.strip('/')}"
    assert world.kubectl("tunnel", "exec", POD, "--", "touch", target.partition(":")[2]).code == 0
    assert world.kubectl("tunnel", "cp", target, str(world.folder / "copied")).code == 0
    name = f"--for=jsonpath={{.metadata.name}}={POD}"
    assert world.kubectl("tunnel", "wait", name, f"pod/{POD}", "--timeout=20s").code == 0
    copied = rows_with(world, mark)[-1]

    def watched() -> list[dict[str, Any]]:
        rows = world.audit_rows("--since", "2m", "--verb", "watch", "--limit", "10")
        return [row for row in rows if row["phase"] == "complete" and POD in json.dumps(row["req"])]

    wait_until(lambda: bool(watched()))
    watch = watched()[-1]
    # As earlier versions record it.
    assert watch["stream"]["close_reason"] == "client gone"
    table = world.hawse("audit", "list", "--since", "2m", "--limit", "all", environment=world.operator)
    lines = {line.split()[0]: line for line in table.decode().splitlines()}
    assert lines[str(watch["seq"])].endswith("(ended by the client)")
    assert "client gone" not in lines[str(copied["seq"])]

    ids = [str(event["auditID"]) for event in world.cluster_audit() if event.get("verb") == "watch"]
    assert watch["eid"] in ids
    page = world.hawse("audit", "show", str(watch["eid"]), environment=world.operator).decode()
    assert f"kubectl --context tunnel get pods {POD} -n {NAMESPACE} --watch" in page
    assert "ended by the client" in page
    assert f"{watch['seq']} (complete)" in page


def test_a_strangers_flood_adds_little_to_the_trail(world: World) -> None:
    """Of a stranger's requests, a few rows a second are kept, and some KiB of each."""
    client = RawClient(world, "tunnel")
    heads = []
    for method in ("GET", "POST"):
        for target in (
            "/version?x=" + "%41" * 20_000,
            "/" + "x" * 64_000,
            "/?" + "é".encode().hex() * 16_000,
        ):
            lines = [
                f"{method} /clusters/tunnel{target} HTTP/1.1",
                f"Host: 127.0.0.1:{world.hub_port}",
                f"User-Agent: {'u' * 60_000}",
                "Authorization: Bearer nothing",
                *(["Content-Length: 0"] if method == "POST" else []),
            ]
            heads.append("\r\n".join(lines).encode() + b"\r\n\r\n")
    before, began = stored_bytes(world), time.monotonic()
    asked = 0
    for number in range(ROUNDS):
        time.sleep(max(0.0, began + number * ROUND_EVERY_S - time.monotonic()))
        with client.talk() as talk:
            for head in heads:
                talk.send(head)
                assert talk.answer().status == 401
                asked += 1
    took_s = time.monotonic() - began
    # Measured first: each reading of the trail adds an event to it.
    grown = stored_bytes(world) - before
    wait_until(lambda: any(row.get("count", 1) != 1 for row in world.audit_rows("--kind", "auth.failed")))
    # Eleven rows of a kind in ten seconds; a window may have begun before, and another end later.
    rows = 11 * (took_s / 10 + 2)
    assert asked > rows * 3
    assert grown < rows * 4096, f"{grown} bytes of {asked} requests"
    # Both kinds of a stranger's failures, all day: far below what one agent may add.
    assert 2 * 1.1 * 2 * 4096 * DAY_S < 2e9


def test_an_agent_adds_no_more_to_the_trail_than_its_budget(narrow_world: World) -> None:
    """By reads, writes, denials and tokens, as fast as it can; scaled, and then by the defaults for a day."""
    world = narrow_world
    client = RawClient(world, "tunnel")
    token = client.token()
    long = "y" * 2_000
    requests = []
    for method, path in (
        ("GET", f"/version?x={'y' * 60_000}"),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps?x={long}"),
        ("DELETE", f"/api/v1/namespaces/{NAMESPACE}/configmaps/none?x={'y' * 5_000}"),
        ("DELETE", f"/api/v1/namespaces/none/secrets/none?x={'y' * 5_000}"),
        ("GET", f"/api/v1/namespaces/../secrets?x={'y' * 5_000}"),
    ):
        lines = [
            f"{method} /clusters/tunnel{path} HTTP/1.1",
            f"Host: 127.0.0.1:{world.hub_port}",
            f"Authorization: Bearer {token}",
        ]
        requests.append("\r\n".join(lines).encode() + b"\r\n\r\n")
    seen: dict[int, int] = {}
    in_debt, refused = False, ""
    beyond: list[float] = []
    before, began = stored_bytes(world), time.monotonic()
    with ExitStack() as stack:
        talk = Talk(stack.enter_context(client.connect()))
        # Or the end of each head waits for the hub's delayed ACK of what is before it.
        talk.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while len(beyond) < DEBTS or seen.get(429, 0) <= 50 or seen.get(200, 0) <= 5:
            assert time.monotonic() - began < 60.0, seen
            for request in requests:
                talk.send(request)
                answer = talk.answer()
                seen[answer.status] = seen.get(answer.status, 0) + 1
                if in_debt and answer.status != 429:
                    # It is out of debt again, so all that it added before is within the budget.
                    took_s = time.monotonic() - began
                    beyond.append(stored_bytes(world) - before - BYTES_AT_ONCE - BYTES_PER_S * took_s)
                in_debt = answer.status == 429
                if in_debt and not refused:
                    refused = json.loads(answer.body)["message"]
                    # A token is an event as well.
                    with pytest.raises(HTTPError, match="429"):
                        client.token()
    took_s = time.monotonic() - began
    assert seen[429] > 50, seen
    assert "limits.audit_bytes_per_second" in refused
    assert seen.get(200, 0) > 5, seen
    # A batch of the recorder may be on its way, and one request of each kind.
    assert beyond, seen
    assert max(beyond) < 500_000, (beyond, seen)
    rows = [
        row
        for row in world.hub_audit("--agent", "probe")
        if row.get("decision", {}).get("rule") == "limits.audit_bytes_per_second"
    ]
    # All of them are counted, and few have a row.
    wait_until(lambda: counted(world) >= seen[429])
    assert len(rows) <= 2 * 11 * (took_s / 10 + 2)

    # By default: what a day lets through, with two looks' delay at 20 MB/s, is less than 6 GB.
    limits = LimitsConfig()
    day = limits.audit_bytes_at_once + limits.audit_bytes_per_second * DAY_S + 2 * TICK_S * 20e6
    assert day < 6e9


def counted(world: World) -> int:
    rows = world.audit_rows("--agent", "probe", "--status", "429")
    refused = [
        row for row in rows if row.get("resp", {}).get("status") == 429 and row["kind"] != "auth.failed"
    ]
    return sum(int(str(row.get("count", 1))) for row in refused)


def test_what_lasts_has_a_row_when_the_hub_is_killed(lasting_world: World) -> None:
    """Watches and followed logs, by both ways; what is over by then has its one row, as ever."""
    world = lasting_world
    earlier = len(world.audit_rows())
    with ExitStack() as stack:
        running: list[subprocess.Popen[bytes]] = []
        for way in WAYS:
            for args in (
                ["get", "pods", "--watch"],
                ["get", "secrets", "--watch"],
                ["logs", "--follow", POD],
            ):
                running.append(stack.enter_context(world.popen(way, *args)))
                stack.callback(running[-1].kill)
        wait_until(lambda: sum(row["kind"] in {"watch", "log"} for row in world.session_rows()) >= 6)
        began = time.monotonic()

        def started() -> list[dict[str, Any]]:
            return [row for row in world.audit_rows()[earlier:] if row["phase"] == "start"]

        wait_until(lambda: len(started()) == 6)
        assert time.monotonic() - began < STARTED_AFTER_S + 2 * CHECK_EVERY_S + 10.0
        assert {row["stream"]["proto"] for row in started()} == {"http"}
        assert world.hub is not None
        world.hub.process.kill()
        world.hub.process.wait()
        eids = [str(row["eid"]) for row in started()]
        world.start_hub()
    rows = world.hub_audit()[earlier:]
    by_eid = {eid: [row["phase"] for row in rows if row["eid"] == eid] for eid in eids}
    assert by_eid == {eid: ["start", "unknown"] for eid in eids}
    [unknown, *_] = [row for row in rows if row["phase"] == "unknown"]
    assert unknown["req"]
    assert unknown["cluster"]
    # Each other call has one row, or its intent and its end.
    ends = [str(row["eid"]) for row in rows if row["phase"] in {"complete", "unknown"}]
    assert len(ends) == len(set(ends))
    world.wait_for_tunnel()


def test_what_lasts_and_ends_has_a_start_and_an_end(lasting_world: World) -> None:
    """Also when the hub is replaced meanwhile, which no call of the old one's notices."""
    world = lasting_world
    earlier = len(world.audit_rows())
    client = RawClient(world, "tunnel")
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps?watch=1"
    with closing(client.connect()) as connection:
        talk = Talk(connection)
        talk.send(client.head(path, connection="keep-alive"))
        assert talk.answer(body=False).status == 200
        wait_until(lambda: any(row["phase"] == "start" for row in world.audit_rows()[earlier:]))
        old = world.replace_hub()
        # The new one has looked for the calls of dead hubs by now; the old one lives.
        assert all(row["phase"] != "unknown" for row in world.hub_audit()[earlier:])
        connection.shutdown(socket.SHUT_RDWR)
    assert old.process.wait(30) == 0
    rows = world.hub_audit()[earlier:]
    [start] = [row for row in rows if row["phase"] == "start"]
    phases = [row["phase"] for row in rows if row["eid"] == start["eid"]]
    assert phases == ["start", "complete"]
