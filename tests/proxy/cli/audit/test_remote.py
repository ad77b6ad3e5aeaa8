"""`hawse audit` over the admin API: it prints what it prints on the hub's machine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result
from msgspec.structs import replace

from audit.record import Event, Kind, Phase, Request, Response
from audit.search.filters import Filters
from audit.store import AuditStore
from proxy.agent.https.blocking import trusting
from proxy.cli.admin.api import following
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.admin.api.logins import AdminLogin, save_login
from proxy.cli.audit import remote
from proxy.cli.audit.commands import audit
from proxy.cli.audit.remote import follow_remote, list_remote
from proxy.cli.errors import CommandError
from proxy.hub.home.files.local_admin import AdminEndpoint
from tests.audit.events import NOW_S, call
from tests.fakes.https import Reply
from tests.fakes.hub import fake_hub
from tests.proxy.cli.admin.conftest import Hub

MANY = 70


def event(number: int, *, text: str = "", phase: Phase = Phase.COMPLETE) -> Event:
    verb, status = ("get", 200) if number % 3 else ("delete", 403)
    req = Request("GET", f"/api/v1/pods/{number}{text}", verb, "", "v1", "pods", "", "app")
    resp = Response(status, processed="yes")
    return replace(call(phase=phase, at_s=NOW_S + number), req=req, resp=resp)


def write(hub: Hub, *events: Event) -> None:
    with closing(AuditStore(hub.data.audit_file)) as store:
        store.append(events)


async def run(hub: Hub, *arguments: str, **env: str | None) -> Result:
    clean = {"HAWSE_HUB_CONFIG": None, **hub.elsewhere(), **env}
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(audit, arguments, env=clean))


async def both(hub: Hub, *arguments: str) -> Result:
    """Run a command here and from elsewhere: exit status, output and notes are the same."""
    here = await run(hub, *arguments, "--data-dir", str(hub.data.path))
    there = await run(hub, *arguments)
    assert (there.exit_code, there.stdout) == (here.exit_code, here.stdout), (arguments, there.stderr)
    assert there.stderr == here.stderr
    return there


async def test_a_list_is_the_same_from_elsewhere(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three answers hold them.
    monkeypatch.setattr(remote, "PAGE_EVENTS_MAX", 30)
    write(hub, *(event(number, text="-ünï\x1b" if number == 7 else "") for number in range(MANY)))
    calls = ("list", "--kind", "call")
    table = await both(hub, *calls)
    assert len(table.stdout.splitlines()) == 51
    assert "showing the newest 50 events" in table.stderr
    for arguments in (
        ("--json", "--limit", "3"),
        ("--limit", "0"),
        ("--limit", "65"),
        ("--limit", "all"),
        ("--json",),
        ("--json", "--status", "4xx", "--verb", "delete,get"),
        ("--agent", "robot", "--cluster", "prod", "--namespace", "app", "--resource", "pods"),
        ("--actor", "agent:robot", "--limit", "2"),
        ("--actor", "operator:nobody"),
        ("--resource", "pod"),
        ("--text", "PODS/61", "--json"),
        ("--since", "2001-01-01T00:00:00Z", "--until", "2001-01-02T00:00:00Z"),
        ("--since", "2001-01-01T00:00:00Z", "--limit", "1"),
    ):
        await both(hub, *calls, *arguments)
    unknown = await run(hub, "list", "--agent", "robott")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert "unknown agent 'robott': it is neither in the trail nor in the hub's store" in unknown.stderr
    assert len((await both(hub, *calls, "--json")).stdout.splitlines()) == MANY


async def test_a_call_is_shown_the_same_from_elsewhere(hub: Hub) -> None:
    begun = event(1, phase=Phase.INTENT)
    write(hub, begun, replace(event(1), eid=begun.eid), event(2))
    for arguments in ((begun.eid,), (begun.eid[:-1],), (begun.eid, "--json")):
        shown = await both(hub, "show", *arguments)
        assert begun.eid in shown.stdout
    [listed] = (await run(hub, "list", "--kind", "call", "--json", "--limit", "1")).stdout.splitlines()
    await both(hub, "show", str(json.loads(listed)["seq"]))
    missing = await run(hub, "show", "0199a1b2-4c5d-7e6f-8a9b-0c1d2e3f4a5b")
    assert missing.exit_code == 1
    assert "no event has the id 0199a1b2-4c5d-7e6f-8a9b-0c1d2e3f4a5b: " in missing.stderr
    malformed = await run(hub, "show", "xyz")
    assert (malformed.exit_code, malformed.stdout) == (1, "")
    assert "expected an id such as" in malformed.stderr


async def test_reads_from_elsewhere_are_recorded_by_the_hub(hub: Hub) -> None:
    write(hub, event(1))
    await run(hub, "list", "--agent", "robot", "--text", "pods", "--limit", "5")
    lines: list[str] = []
    with trio.fail_after(10):
        # It is written soon after the answer.
        while not lines:
            listed = await run(hub, "list", "--json", "--actor", "operator:local", "--text", "robot")
            lines = listed.stdout.splitlines()
    read = json.loads(lines[0])
    assert (read["actor"]["type"], read["actor"]["name"]) == ("operator", "local")
    assert read["note"] == "audit list agent=robot q=pods limit=5"


async def test_a_named_hub_and_an_auditor_suffice(hub: Hub, tmp_path: Path) -> None:
    write(hub, event(1))
    made = await hub.json("token", "add", "ada", "--role", "auditor")
    viewer = await hub.json("token", "add", "bob", "--role", "viewer")
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    url = hub.elsewhere()["HAWSE_ADMIN_URL"] or ""
    for name, token in (("prod", made["token"]), ("poor", viewer["token"])):
        save_login(env, name, AdminLogin(url, token, hub.ca.read_text()))
    unset = dict.fromkeys(("HAWSE_ADMIN_URL", "HAWSE_ADMIN_TOKEN", "HAWSE_ADMIN_CA"))
    listed = await run(hub, "list", "--hub", "prod", "--kind", "call", **env, **unset)
    assert (listed.exit_code, len(listed.stdout.splitlines())) == (0, 2)
    refused = await run(hub, "list", "--hub", "poor", **env, **unset)
    assert "has the role viewer" in refused.stderr
    contradiction = await run(hub, "list", "--hub", "prod", "--data-dir", ".", **env)
    assert contradiction.exit_code == 2


async def test_a_follower_of_a_named_hub_prints_each_event_as_it_is_written(hub: Hub, tmp_path: Path) -> None:
    write(hub, event(1))
    made = await hub.json("token", "add", "ada", "--role", "auditor")
    url = hub.elsewhere()["HAWSE_ADMIN_URL"] or ""
    env = {"XDG_CONFIG_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    save_login(env, "prod", AdminLogin(url, made["token"], hub.ca.read_text()))
    # A process of its own: it prints to a pipe, and ends by a signal.
    argv = [sys.executable, "-m", "hawse", "audit", "follow", "--hub", "prod", "--kind", "call", "--json"]
    process = await trio.lowlevel.open_process(argv, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with trio.fail_after(30):
        printed = b""
        while printed.count(b"\n") < 2:
            printed += await process.stdout.receive_some()
            if printed.count(b"\n") == 1:
                write(hub, event(2))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    await process.stdout.aclose()
    targets = [json.loads(line)["req"]["raw_target"] for line in printed.splitlines()]
    assert targets == ["/api/v1/pods/1", "/api/v1/pods/2"]


def client_of(hub: Hub) -> AdminClient:
    elsewhere = hub.elsewhere()
    return AdminClient(
        elsewhere["HAWSE_ADMIN_URL"] or "",
        elsewhere["HAWSE_ADMIN_TOKEN"] or "",
        trusting(hub.ca.read_text()),
    )


async def test_a_follower_goes_on_from_its_search_without_gap_or_repetition(hub: Hub) -> None:
    write(hub, *map(event, range(1, 4)))
    client, asked = client_of(hub), {"kind": "call"}
    first = await trio.to_thread.run_sync(lambda: client.get("audit", "events", **asked))
    # Between the search and the stream.
    write(hub, event(4))
    found: list[str] = []

    def follow() -> None:
        with closing(follow_remote(client, asked, str(first["follow"]))) as events:
            for stored in itertools.islice(events, 4):
                found.append(json.loads(stored.body)["req"]["raw_target"])
                trio.from_thread.run_sync(seen.set)

    seen = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, follow)
        with trio.fail_after(20):
            await seen.wait()
            write(hub, event(5), replace(event(0), kind=Kind.AUTH_FAILED), event(6))
            write(hub, event(7))
    assert found == [f"/api/v1/pods/{number}" for number in range(4, 8)]


def message(number: int, cursor: str) -> bytes:
    body = json.dumps({"events": [{"event": {"seq": number, "eid": "x"}}]})
    return f": comment\nid: {cursor}\nevent: events\ndata: {body}\n\n".encode()


def test_a_follower_that_loses_its_hub_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "RECONNECT_MIN_S", 0.001)
    drained = b'event: end\ndata: {"code": "draining", "message": "the hub stops"}\n\n'
    gap = b'event: gap\ndata: {"message": "too slow"}\n\n'
    refused = b'event: end\ndata: {"code": "expired", "message": "the token expired"}\n\n'
    busy: Reply = 503, {}, b'{"error": {"code": "too_many_streams", "message": "too many"}}'
    replies: list[Reply] = [
        (200, {}, message(1, "a") + drained),
        busy,
        busy,
        (200, {}, message(2, "b") + gap + b"id: c\ndata: {}\n\n"),
        # What the end cuts off is no message.
        (200, {}, message(3, "d") + b'id: lost\nevent: events\ndata: {"ev'),
        (200, {}, refused),
    ]
    with fake_hub("") as fake:
        fake.reply = lambda _: replies.pop(0)
        client = AdminClient(fake.url, "hws_x", trusting(fake.ca_pem))
        events = follow_remote(client, {}, "start")
        assert [stored.seq for stored in itertools.islice(events, 3)] == [1, 2, 3]
        with pytest.raises(CommandError, match="the token expired"):
            next(events)
    cursors = [asked.headers["last-event-id"] for asked in fake.asked]
    assert cursors == ["start", "a", "a", "a", "c", "d"]
    assert capsys.readouterr().err.splitlines() == [
        "hawse: too many; trying again",
        "hawse: connected again",
        "hawse: too slow; trying again",
    ]


def test_a_follower_that_never_begins_fails(tmp_path: Path) -> None:
    with fake_hub("") as fake:
        fake.reply = lambda _: (503, {}, b'{"error": {"code": "busy", "message": "later"}}')
        client = AdminClient(fake.url, "hws_x", trusting(fake.ca_pem))
        with pytest.raises(CommandError, match="later"):
            next(follow_remote(client, {}, ""))
    with pytest.raises(CommandError, match="nothing listens"):
        next(follow_remote(client, {}, ""))


def test_an_export_that_is_cut_is_an_error() -> None:
    with fake_hub("") as fake:
        cut = b'{"seq": 1, "eid": "x"}\n{"seq": 2, "ei'
        page = json.dumps({"events": [], "older": "x", "follow": "x", "notes": []}).encode()
        fake.reply = lambda asked: (200, {}, page if "events" in asked.path else cut)
        client = AdminClient(fake.url, "hws_x", trusting(fake.ca_pem))
        with pytest.raises(CommandError, match="ends within an event"):
            list_remote(client, Filters(), None, follow=False, as_json=True)


def test_a_text_is_searched_no_further_than_on_the_hubs_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "events": [{"event": {"seq": 7, "eid": "x"}}],
        "older": "p7",
        "stopped": "text",
        "searched_to": "2026-12-01T12:00:00.000Z",
    }
    with fake_hub("") as fake:
        fake.reply = lambda _: (200, {}, json.dumps({**found, "follow": "x", "notes": []}).encode())
        client = AdminClient(fake.url, "hws_x", trusting(fake.ca_pem))
        list_remote(client, Filters(q="web"), None, follow=False, as_json=True)
    assert [asked.path.partition("?")[0] for asked in fake.asked] == ["/v1/audit/events"]
    printed = capsys.readouterr()
    assert printed.out == '{"seq":7,"eid":"x"}\n'
    assert "that match the other options, back to 2026-12-01 12:00:00 UTC" in printed.err


async def test_the_notes_say_whose_trail_is_read(hub: Hub) -> None:
    write(hub, event(1))
    folder = str(hub.data.path)
    by_variable = await run(hub, "list", "--kind", "call", HAWSE_HUB_DATA_DIR=folder)
    assert by_variable.stderr == (
        f"hawse: reading the trail of {folder} on this machine, and not of HAWSE_ADMIN_URL\n"
    )
    running = await run(hub, "list", "--kind", "call", "--data-dir", folder)
    assert running.stderr == ""
    endpoint = hub.data.admin.endpoint()
    assert endpoint is not None
    hub.data.admin.write_endpoint(AdminEndpoint("https://127.0.0.1:1", endpoint.certificate_pem))
    stopped = f"hawse: the hub of {folder} is stopped: reading its trail from {folder}/audit.db\n"
    for command in (("list", "--kind", "call"), ("show", "1")):
        done = await run(hub, *command, "--data-dir", folder)
        assert (done.exit_code, done.stderr) == (0, stopped)
