"""What several hubs behind one name survive: one is killed, a relay is cut off, all of them are restarted."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from typing import Any

from sandbox.connections import client_ports
from sandbox.demo.cluster import NAMESPACE, POD
from sandbox.demo.hubs import HubProcess, Hubs
from sandbox.demo.live import Load, Shell, shell
from sandbox.demo.processes import POLL_S, DemoError
from sandbox.demo.scene import Scene, Show, Step, expect

# A relay that has one tunnel dials another hub until it has met one, some seconds apart.
SETTLED_DEADLINE_S = 40.0
# With kubectl's own time, which is most of it.
CALL_DEADLINE_S = 5.0
# A call that runs for less is finished in order by a hub that restarts.
EXEC_S = 3
LEAVE_DEADLINE_S = 30.0
LOCK_DEADLINE_S = 10.0
# Round robin leads a third of the connections to each hub.
OPEN_TRIES = 12
COUNTED = "".join(f"{number}\n" for number in range(EXEC_S))
COUNT = f"for i in {' '.join(COUNTED.split())}; do echo $i; sleep 1; done"


def hubs_of(scene: Scene) -> Hubs:
    assert scene.several is not None
    return scene.several


def hub_rows(scene: Scene) -> dict[str, dict[str, Any]]:
    """The rows of `hawse admin hub list` of the processes that serve, by the demo's name of each hub."""
    out, _ = scene.hawse.run("admin", "hub", "list", "--json")
    by_port = {hub.peer_port: hub.name for hub in hubs_of(scene).all}
    rows = [row for row in json.loads(out) if row["state"] == "serving" and row["living"]]
    # A hub that was killed is listed for a while, beside its next process.
    rows.sort(key=lambda row: row["started_at"])
    return {by_port[int(row["address"].rpartition(":")[2])]: row for row in rows}


def wait_settled(scene: Scene, tunnels: int = 0) -> float:
    """Wait until all hubs serve and reach one another, with so many tunnels; returns how long that took."""
    hubs, began = len(hubs_of(scene).all), time.monotonic()
    while True:
        rows = hub_rows(scene).values()
        settled = len(rows) == hubs and not any(row["unreachable"] for row in rows)
        if settled and sum(row["tunnels"] for row in rows) >= tunnels:
            return time.monotonic() - began
        if time.monotonic() - began > SETTLED_DEADLINE_S:
            raise DemoError(f"the hubs have not settled in {SETTLED_DEADLINE_S:.0f} s: {list(rows)}")
        time.sleep(POLL_S)


def sessions(scene: Scene) -> list[dict[str, Any]]:
    """The agent's open calls at all hubs."""
    out, _ = scene.hawse.run("admin", "session", "list", "--agent", scene.agent, "--json")
    rows: list[dict[str, Any]] = json.loads(out)
    return rows


def list_hubs(scene: Scene, show: Show) -> None:
    # Each relay wants two, and may have met one hub again and again.
    wait_settled(scene, len(scene.relays) + 1)
    show("$ hawse admin hub list")
    scene.hawse.print("admin", "hub", "list")


def kill_one(scene: Scene, show: Show) -> None:
    several = hubs_of(scene)
    with contextlib.ExitStack() as stack:
        executing, through = shell_without_hop(scene, stack)
        # Not the operator's own.
        victim = next(hub for hub in reversed(several.all) if hub.name != through)
        show(f"$ kill -9 {victim.pid}      # {victim.name}, while an exec goes through {through}")
        victim.kill()
        took_s = first_good_call(scene)
        executing.say("after the kill")
        executing.leave()
    show(f"the exec went on, and the next kubectl was right, {took_s:.1f} s after the kill")
    victim.launch(several.daemons)
    several.wait_ready(victim)
    settled_s = wait_settled(scene, len(scene.relays) + 1)
    show(f"{victim.name} is back; {settled_s:.1f} s later each hub reaches it")


def shell_without_hop(scene: Scene, stack: contextlib.ExitStack) -> tuple[Shell, str]:
    """An open exec at a hub that has a tunnel itself, and the name of that hub."""
    for _ in range(OPEN_TRIES):
        before = {row["id"] for row in sessions(scene)}
        executing = stack.enter_context(shell(scene))
        rows = {row["hub"]: (name, row["tunnels"]) for name, row in hub_rows(scene).items()}
        [hub] = {row["hub"] for row in sessions(scene) if row["id"] not in before}
        name, tunnels = rows[hub]
        if tunnels:
            return executing, name
    raise DemoError(f"{OPEN_TRIES} execs have not met a hub that has a tunnel")


def first_good_call(scene: Scene) -> float:
    """Call until it works; returns how long that took. Raises DemoError."""
    began = time.monotonic()
    while True:
        try:
            scene.kubectl.run("get", "pods")
        except DemoError:
            if time.monotonic() - began > CALL_DEADLINE_S:
                raise
        else:
            return time.monotonic() - began


def cut_relays(scene: Scene, show: Show) -> None:
    several = hubs_of(scene)
    with shell(scene) as executing:
        ports = [port for relay in scene.relays for port in client_ports(relay.process.pid, several.port)]
        cut = sum(several.balancer.cut(port) for port in ports)
        took_s = executing.say("after the cut")
        executing.leave()
    if not cut:
        raise DemoError("the relays have no connection that could be cut")
    show(f"{cut} connections of the relays were reset under an exec; it answered {took_s:.1f} s later")


def roll(scene: Scene, show: Show) -> None:
    several, load = hubs_of(scene), Load(scene)
    watch = f"/api/v1/namespaces/{NAMESPACE}/pods?watch=1&timeoutSeconds={EXEC_S}"
    began = time.monotonic()
    try:
        load.start("get", "pods")
        load.start("exec", POD, "--", "sh", "-c", COUNT, output=COUNTED)
        load.start("exec", POD, "--", "sh", "-c", COUNT, output=COUNTED)
        load.start("get", "--raw", watch)
        for hub in several.all:
            restart(scene, hub, show)
    finally:
        load.stop()
    took_s = time.monotonic() - began
    if load.failures:
        raise DemoError(f"{len(load.failures)} of {load.runs} commands failed: {load.failures[0]}")
    show(f"{load.runs} commands ran in these {took_s:.0f} s: none failed, none was cut")


def restart(scene: Scene, hub: HubProcess, show: Show) -> None:
    """Restart a hub as its supervisor does, and wait until the next one may be restarted."""
    several = hubs_of(scene)
    began = time.monotonic()
    hub.signal(signal.SIGTERM)
    try:
        code = hub.wait(LEAVE_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise DemoError(f"{hub.name} has not ended {LEAVE_DEADLINE_S:.0f} s after SIGTERM") from None
    assert hub.daemon is not None
    if code:
        raise DemoError(hub.daemon.last_words())
    left_s = time.monotonic() - began
    hub.launch(several.daemons)
    several.wait_ready(hub)
    wait_settled(scene)
    back_s = time.monotonic() - began
    show(f"{hub.name} left in order {left_s:.1f} s after SIGTERM, and is back after {back_s:.1f} s")


def lock_everywhere(scene: Scene, show: Show) -> None:
    """Lock the agent with an exec open at each hub."""
    hubs = {row["hub"] for row in hub_rows(scene).values()}
    with contextlib.ExitStack() as stack:
        opened: list[Shell] = []
        reached: set[str] = set()
        while reached != hubs:
            if len(opened) == OPEN_TRIES:
                raise DemoError(f"{OPEN_TRIES} execs have not reached every hub")
            opened.append(stack.enter_context(shell(scene)))
            now = {row["hub"] for row in sessions(scene)}
            if now == reached:
                # Each kubectl may open as many connections as there are hubs. This one takes one more.
                socket.create_connection(("127.0.0.1", hubs_of(scene).port)).close()
            reached = now
        show(f"$ hawse admin agent lock {scene.agent}      # with {len(opened)} execs, at {len(hubs)} hubs")
        began = time.monotonic()
        scene.hawse.run("admin", "agent", "lock", scene.agent)
        for each in opened:
            wait_for_end(each.process, began)
        took_s = time.monotonic() - began
    for _ in hubs:
        _, err = scene.kubectl.run("get", "pods", exit_code=1)
        # Refused as a call, or as a new token where the cached one has just expired.
        expect(err, f"{scene.agent_user} is locked")
    show(f"all ended within {took_s:.1f} s, and the next call was refused at each hub")
    scene.hawse.run("admin", "agent", "unlock", scene.agent)


def wait_for_end(process: subprocess.Popen[str], began: float) -> None:
    try:
        process.wait(max(0.1, began + LOCK_DEADLINE_S - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise DemoError(f"an exec is still open {LOCK_DEADLINE_S:.0f} s after the lock") from None
    if process.returncode == 0:
        raise DemoError("an exec ended with exit code 0, as if by itself")


HUB_STEPS = (
    Step("hubs", "each hub serves and reaches the others, and relays have several tunnels", list_hubs),
    Step("kill -9", "a hub's death costs only what went through it", kill_one),
    Step("cut", "the session goes on by another connection, whichever hub it comes to", cut_relays),
    Step("roll", "all hubs restart one after the other, and no call is lost", roll),
    Step("lock at all", "a revocation reaches every hub", lock_everywhere),
)
