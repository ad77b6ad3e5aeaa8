"""A call of the agent that waits for a person, and the same call once more."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import attrs

from sandbox.demo.cluster import IMAGE, NAMESPACE, last_line
from sandbox.demo.processes import DemoError
from sandbox.demo.program import COMMAND_DEADLINE_S, Program
from sandbox.demo.scene import Scene, Show, Step, apply_policy, expect, prose, write_policy

PERSON = "you@example.com"
WEB = "web"
# It replaces the policy that denied deletions.
POLICY = f"""\
apiVersion: hawse.dev/v1
kind: Policy
metadata: {{name: keep, contact: "#platform"}}
spec:
  bind: {{teams: [demo]}}
  rules:
    - {{id: all, effect: ask, verbs: [delete], namespaces: [{NAMESPACE}],
       reason: a person looks at deletions, ask: {{approvers: ["{PERSON}"], wait: 45s}}}}
"""
# Within 10 s of its use an approval answers the same call, which then opens no other request.
USED_S = 11.0
LOOK_EVERY_S = 0.2
# The person's token stays beside the hub, and the agent does not get it.
TOKEN_FILE = "approver.token"  # noqa: S105 - a name


def approve(scene: Scene, show: Show) -> None:
    write_policy(scene, show, "asking.yaml", POLICY)
    apply_policy(scene, show, "asking.yaml")
    adding = ("admin", "token", "add", "you", "--role", "approver", "--person", PERSON)
    show(f"$ hawse {' '.join(adding)}")
    token, _ = scene.hawse.run(*adding)
    person = _as_person(scene, token.strip())
    show(f"$ kubectl create deployment {WEB} --image={IMAGE}")
    out, _ = scene.kubectl.run("create", "deployment", WEB, f"--image={IMAGE}")
    show(out)
    show(f"$ kubectl delete deployment {WEB} &")
    with scene.kubectl.started("delete", "deployment", WEB) as deleting:
        request = _waiting(person, deleting)
        show(f"$ hawse admin request show {request['id']}")
        out, _ = person.run("admin", "request", "show", request["id"])
        expect(out, f"deletes Deployment {WEB}", "keep/all", f"--shown {request['shown']}")
        show(_without_object(out))
        show(f"$ hawse admin request approve {request['id']} --shown {request['shown'][:8]}…")
        _, err = person.run("admin", "request", "approve", request["id"], "--shown", request["shown"])
        show(prose(err))
        out, _ = _ended(deleting, 0)
    expect(out, f'deployment.apps "{WEB}" deleted')
    show(out)


def ask_again(scene: Scene, show: Show) -> None:
    person = _as_person(scene, (scene.folder / TOKEN_FILE).read_text())
    used = time.monotonic()
    scene.kubectl.run("create", "deployment", WEB, f"--image={IMAGE}")
    # Within USED_S, the hub answers that the approval was used.
    time.sleep(max(0.0, used + USED_S - time.monotonic()))
    show(f"$ kubectl delete deployment {WEB} &")
    with scene.kubectl.started("delete", "deployment", WEB) as deleting:
        request = _waiting(person, deleting)
        show(f'$ hawse admin request deny {request["id"]} --because "once was enough"')
        _, err = person.run("admin", "request", "deny", request["id"], "--because", "once was enough")
        show(prose(err))
        _, err = _ended(deleting, 1)
    expect(err, "Forbidden", f"approval request {request['id']} was denied: once was enough")
    show(prose(last_line(err)))
    out, _ = scene.kubectl.run("get", "deployment", WEB, "--output=name")
    expect(out, WEB)


def _as_person(scene: Scene, token: str) -> Program:
    """Return `hawse` with the token of the person who approves."""
    file = scene.folder / TOKEN_FILE
    file.touch(mode=0o600)
    file.write_text(token)
    environment = {**scene.hawse.environment, "HAWSE_ADMIN_TOKEN": token}
    return attrs.evolve(scene.hawse, environment=environment)


def _waiting(person: Program, call: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the request of a call that waits; raises DemoError if the call ends instead."""
    deadline = time.monotonic() + COMMAND_DEADLINE_S
    while time.monotonic() < deadline:
        out, _ = person.run("admin", "request", "list", "--state", "pending", "--json")
        if found := json.loads(out):
            request: dict[str, Any] = found[0]
            return request
        if call.poll() is not None:
            _, err = call.communicate()
            raise DemoError(f"the call did not wait: {last_line(err)}")
        time.sleep(LOOK_EVERY_S)
    raise DemoError(f"no request for approval has come in {COMMAND_DEADLINE_S:.0f} s")


def _without_object(shown: str) -> str:
    """Return what `request show` prints without the object, which has 60 lines."""
    before, _, after = shown.partition("\nwhat it deletes\n")
    return f"{before}\nwhat it deletes\n  …\n{after[after.find('may approve') :]}"


def _ended(call: subprocess.Popen[str], exit_code: int) -> tuple[str, str]:
    """Return the outputs of a call that has waited; raises DemoError if it does not end so."""
    try:
        out, err = call.communicate(timeout=COMMAND_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise DemoError(f"the call still waits after {COMMAND_DEADLINE_S:.0f} s") from None
    if call.returncode != exit_code:
        raise DemoError(f"it ended with exit code {call.returncode}: {last_line(err or out)}")
    return out, err


APPROVAL_STEPS = (
    Step("approve", "the call waited, and a person's approval let it go on", approve),
    Step("ask again", "an approval is for one call: the same one asks again", ask_again),
)
