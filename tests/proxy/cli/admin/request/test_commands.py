"""`hawse admin request` against a hub's API."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import attrs
import trio

from proxy.agent.https.blocking import trusting
from proxy.cli.admin.api.client import AdminClient
from proxy.cli.admin.request.following import followed
from proxy.cli.admin.request.showing import SUMMARY_CHARACTERS_MAX, followed_line
from proxy.cli.output import text
from proxy.hub.approvals.request import State
from proxy.hub.approvals.view import Change, View
from tests.fakes.requests import VIEW
from tests.fakes.terminal import on_terminal
from tests.proxy.cli.admin.conftest import Hub

PERSON = "grace@example.com"


async def a_request(hub: Hub, **more: object) -> str:
    """Open a request of the agent sre-1 on prod; return its id."""
    if "sre-1" not in hub.directory.current.agents_by_name:
        await hub.ok("team", "add", "sre")
        await hub.ok("cluster", "add", "prod", "--team", "sre")
        await hub.ok("agent", "add", "sre-1", "--owner", "ada@example.com", "--team", "sre")
    now = hub.directory.current
    return hub.requests.add(now.agents_by_name["sre-1"].id, now.clusters_by_name["prod"].id, **more).id


async def as_approver(hub: Hub, person: str = PERSON) -> Mapping[str, str | None]:
    """Return the environment of an approver on another machine."""
    name = person.partition("@")[0]
    made = await hub.ok("token", "add", name, "--role", "approver", "--person", person)
    return {**hub.elsewhere(), "HAWSE_ADMIN_TOKEN": made.stdout.strip()}


async def test_a_person_reads_a_request_and_approves_what_was_shown(hub: Hub) -> None:
    found = await a_request(hub, approvers=("owner", PERSON))
    env = await as_approver(hub)
    assert (await hub.ok("request", "list", env=env)).stdout.splitlines()[1].split()[:4] == [
        found,
        "pending",
        "sre-1",
        "prod",
    ]
    assert VIEW.summary in (await hub.ok("request", "list", env=env)).stdout
    shown = (await hub.ok("request", "show", found, env=env)).stdout
    assert shown.splitlines()[:3] == [
        "agent:sre-1 (owner ada@example.com) on prod",
        "  delete deployments.apps shop/web",
        "rule shop/risky: deletions in shop need a look",
    ]
    effect = shown.index(f"\n{VIEW.summary}\n  ! {VIEW.flags[0]}\n")
    changes = '  spec.replicas\n    - 3\n    + 0\n  metadata.labels.old\n    - "x"\n'
    assert effect < shown.index(changes) < shown.index("\nnot compared: ") < shown.index("\nnotes\n")
    assert f"may approve  the agent's owner (ada@example.com), or {PERSON}\n" in shown
    # The command to copy.
    [command] = re.findall(r"^to approve +hawse admin (.+)$", shown, re.MULTILINE)
    approved = await hub.ok(*command.split(), env=env)
    assert approved.stdout == ""
    about = f"request {found} of agent:sre-1 on prod (delete deployments.apps shop/web)"
    assert f"{about} is approved by {PERSON}, for one call until " in approved.stderr
    assert hub.requests.found[0].state is State.APPROVED
    again = await hub.fails(*command.split(), env=env)
    assert f"request {found} was approved by {PERSON}" in again


async def test_the_whole_target_is_shown(hub: Hub) -> None:
    target = "/api/v1/namespaces/shop/services/http:web:80/proxy/admin/wipe?all=true"
    found = await a_request(hub, view=View(body="{}"))
    [request] = hub.requests.found
    new = attrs.evolve(request.new, method="POST", target=target)
    hub.requests.found[0] = attrs.evolve(request, new=new)
    shown = (await hub.ok("request", "show", found)).stdout
    assert f"\n  POST {target}\n" in shown
    assert "\nwhat it sends\n  {}\n" in shown


async def test_the_command_to_copy_names_the_hub(hub: Hub, tmp_path: Path) -> None:
    found = await a_request(hub)
    env = {**await as_approver(hub), "XDG_CONFIG_HOME": str(tmp_path)}
    token = str(env["HAWSE_ADMIN_TOKEN"])
    where = ("--url", str(env["HAWSE_ADMIN_URL"]), "--ca", str(hub.ca))
    login = await hub.run("login", "work", *where, stdin=token, env=env)
    assert login.exit_code == 0, login.output
    shown = await hub.ok("--hub", "work", "request", "show", found, env=env)
    assert f"hawse admin --hub work request approve {found} --shown " in shown.stdout
    assert f"hawse admin --hub work request deny {found} --because TEXT" in shown.stdout


async def test_an_admin_sees_denies_and_revokes_and_does_not_approve(hub: Hub) -> None:
    found = await a_request(hub)
    shown = await hub.ok("request", "show", found)
    assert "you may not  approving takes a token of the role approver" in shown.stdout
    digest = hub.requests.found[0].new.shown
    refused = await hub.fails("request", "approve", found, "--shown", digest)
    assert "has the role admin, which may not approve requests: that takes the role approver" in refused
    assert hub.requests.found[0].state is State.PENDING
    denied = await hub.ok("request", "deny", found, "--because", "not on a Friday")
    assert "is denied by the admin token local:" in denied.stderr
    assert ": not on a Friday" in denied.stderr
    other = await a_request(hub, state=State.APPROVED)
    assert "is revoked" in (await hub.ok("request", "revoke", other)).stderr


async def test_a_person_that_the_rule_does_not_name_does_not_approve(hub: Hub) -> None:
    found = await a_request(hub, approvers=("owner", "ops@example.com"))
    env = await as_approver(hub)
    digest = hub.requests.found[0].new.shown
    refused = await hub.fails("request", "approve", found, "--shown", digest, env=env)
    assert f"{PERSON} is not among the approvers" in refused
    assert "the agent's owner or ops@example.com" in refused
    owner = await as_approver(hub, "ada@example.com")
    await hub.ok("request", "approve", found, "--shown", digest, env=owner)


async def test_approve_without_a_digest_needs_a_terminal(hub: Hub) -> None:
    found = await a_request(hub)
    refused = await hub.fails("request", "approve", found, env=await as_approver(hub))
    assert f"hawse admin request show {found}" in refused
    assert "is not what you were shown: look at it again" in await hub.fails(
        "request", "approve", found, "--shown", "0" * 64, env=await as_approver(hub, "eve@example.com")
    )


async def test_hostile_texts_of_a_request_are_escaped(hub: Hub) -> None:
    evil = "\x1b[2Ja\nto approve   hawse admin request approve"
    view = View(
        summary=evil,
        claimed_reason=evil,
        flags=(evil,),
        changes=(Change(evil, None, evil),),
        left_out=(evil,),
        notes=(evil,),
        body=evil,
    )
    found = await a_request(hub, view=view, reason=evil)
    shown = (await hub.ok("request", "show", found, env=await as_approver(hub))).stdout
    assert "\x1b" not in shown
    # No line of a request looks like the command to copy.
    assert len([line for line in shown.splitlines() if line.startswith("to approve")]) == 1


async def test_json_is_the_hubs_answer(hub: Hub) -> None:
    found = await a_request(hub)
    [row] = await hub.json("request", "list")
    assert (row["id"], row["may_approve"]) == (found, False)
    detail = await hub.json("request", "show", found)
    assert detail["changes"][0] == {"path": "spec.replicas", "before": "3", "after": "0"}
    assert (await hub.json("request", "deny", found, "--because", "no"))["state"] == "denied"
    empty = await hub.ok("request", "list")
    assert empty.stdout == ""
    assert "hawse admin request list --all" in empty.stderr
    [ended] = await hub.json("request", "list", "--all")
    assert ended["answer"] == "no"


async def test_a_follower_gets_what_is_open_and_then_each_change(hub: Hub) -> None:
    first = await a_request(hub)
    await a_request(hub, state=State.USED)
    env = await as_approver(hub)
    token, got = str(env["HAWSE_ADMIN_TOKEN"]), list[tuple[str, str]]()

    def read() -> None:
        client = AdminClient(str(env["HAWSE_ADMIN_URL"]), token, trusting(hub.ca.read_text()))
        with closing(followed(client, {"state": "pending,approved"})) as rows:
            for row in rows:
                got.append((text(row, "id"), text(row, "state")))
                trio.from_thread.run_sync(came.set)
                if len(got) == 4:
                    return

    came = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, read)
        with trio.fail_after(20):
            await came.wait()
            second = await a_request(hub)
            while len(got) < 2:  # noqa: ASYNC110 - the reader is a thread
                await trio.sleep(0.01)
            shown = hub.requests.found[0].new.shown
            await hub.ok("request", "approve", first, "--shown", shown, env=env)
            while len(got) < 3:  # noqa: ASYNC110 - the reader is a thread
                await trio.sleep(0.01)
            # Its agent was removed, and the request with it.
            hub.requests.found = [each for each in hub.requests.found if each.id != second]
            # It leaves the chosen states.
            await hub.ok("request", "revoke", first, env=env)
    assert got == [(first, "pending"), (second, "pending"), (first, "approved"), (first, "revoked")]


async def test_a_person_at_a_terminal_sees_the_request_and_is_asked(hub: Hub) -> None:
    found = await a_request(hub)
    env = {**os.environ, **{key: value for key, value in (await as_approver(hub)).items() if value}}
    command = [sys.executable, "-m", "hawse", "admin", "request", "approve", found]

    def at_terminal(answer: bytes) -> bytes:
        with on_terminal(command, env) as terminal:
            terminal.read_until(rb"Approve exactly this call\?")
            terminal.type(answer)
            return terminal.read_all()

    assert VIEW.summary.encode() in await trio.to_thread.run_sync(at_terminal, b"n\n")
    assert hub.requests.found[0].state is State.PENDING
    said = await trio.to_thread.run_sync(at_terminal, b"y\n")
    assert f"is approved by {PERSON}".encode() in said
    assert hub.requests.found[0].state is State.APPROVED


def test_a_followed_request_says_what_it_would_do_while_it_waits() -> None:
    row = {
        "id": "a1",
        "agent": "sre-1",
        "cluster": "prod",
        "what": "create pods/exec shop/web",
        "expires_at": "12:00",
        "summary": f"runs `{'x' * 200}`",
        "flags": ["runs privileged"],
        "decided_by": PERSON,
    }
    about = "request a1 of agent:sre-1 on prod (create pods/exec shop/web) is"
    effect = f"runs `{'x' * (SUMMARY_CHARACTERS_MAX - 6)}..."
    assert followed_line({**row, "state": "pending"}) == (
        f"{about} pending, until 12:00: {effect}; runs privileged"
    )
    assert followed_line({**row, "state": "used"}) == f"{about} used, approved by {PERSON}"
