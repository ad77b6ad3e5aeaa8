"""The operator's steps against the agent, and their effects on the agent."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from sandbox.demo.cluster import NAMESPACE, POD, last_line
from sandbox.demo.processes import DemoError
from sandbox.demo.program import first_line
from sandbox.demo.scene import Scene, Show, Step, apply_policy, expect, prose, write_policy

# The hub ends open streams within two seconds of a lock; the rest is for kubectl on a busy machine.
LOCK_DEADLINE_S = 10.0
POLICY = f"""\
apiVersion: hawse.dev/v1
kind: Policy
metadata: {{name: keep, contact: "#platform"}}
spec:
  bind: {{teams: [demo]}}
  rules:
    - {{id: all, effect: deny, verbs: [delete], namespaces: [{NAMESPACE}],
       reason: agents delete nothing here, instead: label it for removal}}
"""
RULE = "keep/all"
# The events from `policy apply` to the end of the session.
TRAIL_SHOWN = 12
# More events than the session has.
TRAIL_READ_MAX = 1_000


def simulate(scene: Scene, show: Show) -> None:
    write_policy(scene, show, "policy.yaml", POLICY)
    show("$ hawse admin policy simulate policy.yaml")
    out, err = scene.hawse.run("admin", "policy", "simulate", str(scene.folder / "policy.yaml"))
    # The session's only deletion so far.
    expect(out + err, "newly denied", "configmaps", RULE, "1 newly denied")
    show(out + err)


def denied(scene: Scene, show: Show) -> None:
    apply_policy(scene, show, "policy.yaml")
    show(f"$ kubectl delete pod {POD}")
    _, err = scene.kubectl.run("delete", "pod", POD, exit_code=1)
    expect(err, "Forbidden", f"denied by {RULE}: agents delete nothing here", "label it", "#platform")
    show(prose(last_line(err)))


def lock(scene: Scene, show: Show) -> None:
    show(f"$ kubectl exec {POD} -- sh -c 'echo at work; exec sleep 600' &")
    with scene.kubectl.started("exec", POD, "--", "sh", "-c", "echo at work; exec sleep 600") as executing:
        line = first_line(executing)
        expect(line, "at work")
        show(line)
        show(f"$ hawse admin agent lock {scene.agent}")
        _, said = scene.hawse.run("admin", "agent", "lock", scene.agent)
        try:
            _, err = executing.communicate(timeout=LOCK_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the exec is still open {LOCK_DEADLINE_S:.0f} s after the lock") from None
    if executing.returncode == 0:
        raise DemoError("the exec ended with exit code 0, as if by itself")
    # In this order, since kubectl ends while hawse still waits for the hub's answer.
    show(prose(last_line(err)))
    show(prose(said))
    show("$ kubectl get pods")
    _, err = scene.kubectl.run("get", "pods", exit_code=1)
    # Refused as a call, or as a new token where the cached one has just expired.
    expect(err, f"{scene.agent_user} is locked")
    show(prose(last_line(err)))


def unlock(scene: Scene, show: Show) -> None:
    show(f"$ hawse admin agent unlock {scene.agent}")
    out, err = scene.hawse.run("admin", "agent", "unlock", scene.agent)
    show(out + err)
    show("$ kubectl get pods")
    out, _ = scene.kubectl.run("get", "pods")
    expect(out, POD)
    show(out)


def trail(scene: Scene, show: Show) -> None:
    show(f"$ hawse audit list --limit {TRAIL_SHOWN}")
    scene.hawse.print("audit", "list", "--limit", str(TRAIL_SHOWN))
    # Read last, since reading also adds an event.
    lines, _ = scene.hawse.run("audit", "list", "--json", "--limit", str(TRAIL_READ_MAX))
    events = [json.loads(line) for line in lines.splitlines()]
    check_trail(events, scene.agent)
    show(f"the newest {TRAIL_SHOWN} of {len(events) - 1} events of this session")


def check_trail(events: list[dict[str, Any]], agent: str) -> None:
    """Raise DemoError unless it has the denial, the lock, the exec that the lock ended, and each call's
    outcome.
    """
    of_agent = [event for event in events if event["actor"].get("name") == agent]
    policy, rule = RULE.split("/")
    found = {
        "the denial": [
            event
            for event in of_agent
            if event.get("decision", {}).get("effect") == "deny"
            and (event["decision"].get("policy"), event["decision"].get("rule")) == (policy, rule)
        ],
        "the lock": [
            event
            for event in events
            if event["kind"] == "admin.action"
            and event["req"].get("raw_target", "").endswith(f"/{agent}/lock")
        ],
        "the exec that the lock ended": [event for event in of_agent if event["kind"] == "session.killed"],
    }
    for name, matching in found.items():
        if not matching:
            raise DemoError(f"the trail lacks {name}")
    begun, ended = (
        {event["eid"] for event in of_agent if event["phase"] == phase} for phase in ("intent", "complete")
    )
    if open_calls := begun - ended:
        raise DemoError(f"the trail has no outcome of {', '.join(sorted(open_calls))}")


OPERATOR_STEPS = (
    Step("simulate", "the session so far, decided once more: one call differs", simulate),
    Step("denied", "RBAC allows it, the policy does not: rule, reason, contact", denied),
    Step("lock", "the hub ends the open exec and refuses the next call", lock),
    Step("unlock", "the agent's key is still good", unlock),
    Step("trail", "calls, denials and the operator's own actions", trail),
)
