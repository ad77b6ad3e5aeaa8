"""Requests for approval of the made-up hub: one of each kind that a page has to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

import attrs

from proxy.hub.approvals.request import LIFE_S, NewRequest, Request, State
from proxy.hub.approvals.view import Change, View
from proxy.hub.store.entities import Snapshot

# The word of the preview for a value that is not shown.
MASKED = "hidden"
PERSON = "ada@example.com"
OTHER = "grace@example.com"

_UPSTREAMS = "".join(f"upstream_{number} = 10.0.{number}.1:8080\n" for number in range(40))
_POLICY = {
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": f"web-{one}"}}}]} for one in range(5)],
}


@attrs.frozen
class MadeUp:
    """A request, and what became of it."""

    agent: str
    cluster: str
    what: str
    view: View
    age_s: float
    state: State = State.PENDING
    by: str = ""
    answer: str = ""
    rule: str = "risky"
    reason: str = "changes in the namespace of the shop need a second pair of eyes"
    approvers: tuple[str, ...] = ("owner", OTHER)
    interactive: bool = False
    path: str = ""

    @property
    def method(self) -> str:
        """The method of the call."""
        return {"delete": "DELETE", "patch": "PATCH", "update": "PUT"}.get(
            self.what.partition(" ")[0], "POST"
        )

    @property
    def target(self) -> str:
        """The target of the call, made from its line if there is no other."""
        if self.path:
            return self.path
        _, resource, place = self.what.split(" ")
        resource, _, subresource = resource.partition("/")
        resource, _, group = resource.partition(".")
        namespace, name = place.split("/")
        base = f"/apis/{group}/v1" if group else "/api/v1"
        query = "?command=psql&command=-c&command=vacuum+orders&stdin=true&tty=true" if subresource else ""
        end = f"/{subresource}" if subresource else ""
        return f"{base}/namespaces/{namespace}/{resource}/{name}{end}{query}"

    def new(self, agent_id: str, cluster_id: str, number: int) -> NewRequest:
        """Return it before it has a row; the number makes its plan differ from all others."""
        return NewRequest(
            agent_id=agent_id,
            cluster_id=cluster_id,
            plan=f"{number:064x}",
            effect=f"{number + 7:064x}",
            what=self.what,
            reason=self.reason,
            policy="shop-changes",
            rule=self.rule,
            bundle="4-0cb4271b433ad5bf",
            approvers=self.approvers,
            valid_for_s=900,
            interactive=self.interactive,
            view=self.view,
            method=self.method,
            target=self.target,
        )


_BECAUSE = {
    State.CANCELLED: "the rule that asked is switched off",
    State.STALE: "the object was changed since it was approved",
    State.REVOKED: "revoked by ada@example.com",
}
SCALE = View(
    summary="scales Deployment checkout to 0, at least 6 pods",
    flags=("scales to 0",),
    changes=(Change("spec.replicas", "6", "0"),),
    claimed_reason="the checkout loops, and its queue is full",
)
DELETE = View(
    summary="deletes Deployment web, at least 6 pods",
    flags=("deletes at once (grace period 0)",),
    notes=("at least 2 ReplicaSets and 6 pods go with it, as far as the agent may list them",),
)
APPLY = View(
    summary="changes Deployment search-indexer",
    flags=("runs privileged", "mounts a folder of the host", "changes a service account"),
    changes=(
        Change("metadata.labels.version", '"1.8.2"', '"1.9.0"'),
        Change(
            "spec.template.spec.containers[name=indexer].image",
            '"registry.example.com/search/indexer:1.8.2"',
            f'"registry.example.com/search/indexer@sha256:{"4a7f2d90b3c1e5f6" * 4}"',
        ),
        Change(
            "spec.template.spec.containers[name=indexer].securityContext",
            None,
            '{"privileged":true,"runAsUser":0}',
        ),
        Change("spec.template.spec.containers[name=indexer].env[name=API_TOKEN].value", MASKED, MASKED),
        Change("spec.template.spec.serviceAccountName", '"search"', '"cluster-admin"'),
        Change(
            "spec.template.spec.volumes[name=host]", None, '{"hostPath":{"path":"/var/run"},"name":"host"}'
        ),
        Change("spec.template.spec.tolerations", '[{"key":"spot","operator":"Exists"}]', None),
    ),
    left_out=("metadata.annotations.example.com/checksum", "spec.template.metadata.annotations.stamp"),
    notes=("values of env are not shown",),
)
CONFIGURE = View(
    summary="changes ConfigMap router",
    changes=(
        Change(
            "data.upstreams", json.dumps(_UPSTREAMS), json.dumps(_UPSTREAMS.replace("10.0.7.1", "10.9.9.9"))
        ),
        Change("data.banner", '"maintenance on sunday"', '"all systems normal"'),
        Change("data.policy", json.dumps(json.dumps(_POLICY)), json.dumps(json.dumps(_POLICY, indent=1))),
    ),
)
UNTRIED = View(
    summary="creates Thing nightly-report",
    notes=("not tried out: this API may not honour dryRun",),
    body=json.dumps({"apiVersion": "aggregated.example.com/v1", "kind": "Thing", "spec": _POLICY}),
)
SHELL = View(summary="opens a shell in Pod db-0", notes=("what is typed later is not seen",))
HUGE = View(summary="changes ConfigMap dashboards", too_large=True)

MADE_UP: Sequence[MadeUp] = (
    MadeUp("deploy-bot", "prod-eu-1", "patch deployments.apps shop/checkout", SCALE, 42),
    MadeUp("oncall-helper", "prod-eu-1", "delete deployments.apps shop/web", DELETE, 190),
    MadeUp("search-indexer", "staging", "patch deployments.apps search/search-indexer", APPLY, 700),
    MadeUp(
        "db-migrator", "prod-us-1", "create pods/exec payments/db-0", SHELL, 95, rule="shell",
        interactive=True,
    ),
    MadeUp("deploy-bot", "staging", "patch configmaps shop/router", CONFIGURE, 320, approvers=("!owner",)),
    MadeUp("rightsizer", "prod-eu-1", "update configmaps shop/dashboards", HUGE, 1300),
    MadeUp(
        "triage", "dev", "create things.aggregated.example.com shop/nightly-report", UNTRIED, 2000,
        approvers=("any",),
    ),
    MadeUp("deploy-bot", "prod-eu-1", "delete pods shop/web-1", DELETE, 600, State.APPROVED, PERSON),
    MadeUp("deploy-bot", "prod-eu-1", "patch deployments.apps shop/web", SCALE, 900, State.USED, PERSON),
    MadeUp(
        "oncall-helper", "prod-eu-1", "delete persistentvolumeclaims shop/orders", DELETE, 1500, State.DENIED,
        OTHER, "take a snapshot first, and ask again",
    ),
    MadeUp("db-migrator", "prod-us-1", "create pods/exec payments/db-0", SHELL, 2400, State.REVOKED, PERSON),
    MadeUp("rightsizer", "staging", "patch deployments.apps shop/search", SCALE, 2600, State.STALE, OTHER),
    MadeUp("cost-reporter", "dev", "delete jobs.batch shop/nightly", DELETE, 7600, State.EXPIRED),
    MadeUp("triage", "dev", "patch services shop/web", SCALE, 9000, State.CANCELLED),
)  # fmt: skip


def hostile(texts: Sequence[str]) -> list[MadeUp]:
    """Requests with these texts in every part that an agent or an object chooses."""
    made = []
    for number, text in enumerate(texts):
        quoted = json.dumps(text)
        view = View(
            summary=text,
            claimed_reason=text,
            flags=(text,),
            changes=(Change(text, quoted, None), Change(f"a.{text}", text, json.dumps({text: [text] * 20}))),
            left_out=(text,),
            notes=(text,),
            body=text,
        )
        state, by = (State.PENDING, "") if number % 2 else (State.DENIED, PERSON)
        path = f"/api/v1/namespaces/shop/pods/{quote(text, safe='')}/exec?command={quote(text)}"
        told = {"by": by, "answer": text, "reason": text, "path": path}
        made.append(MadeUp("deploy-bot", "prod-eu-1", text, view, 60.0 + number, state, **told))
    return made


def made_up_requests(
    snapshot: Snapshot, now: float, *, count: int = len(MADE_UP), texts: Sequence[str] = ()
) -> list[Request]:
    """Return so many requests of the agents, the oldest first; with these texts, if there are any."""
    made = hostile(texts) if texts else [MADE_UP[number % len(MADE_UP)] for number in range(count)]
    aged = [
        attrs.evolve(one, age_s=one.age_s + 3000.0 * (number // len(MADE_UP)))
        for number, one in enumerate(made)
    ]
    known = [
        (number, one)
        for number, one in enumerate(aged)
        if one.agent in snapshot.agents_by_name and one.cluster in snapshot.clusters_by_name
    ]
    requests = [_request(snapshot, one, number, now) for number, one in known]
    return sorted(requests, key=lambda request: request.created_at)


def _request(snapshot: Snapshot, one: MadeUp, number: int, now: float) -> Request:
    new = one.new(snapshot.agents_by_name[one.agent].id, snapshot.clusters_by_name[one.cluster].id, number)
    created_at = now - one.age_s
    approved = bool(one.by) and one.state is not State.DENIED
    ended = not one.state.open
    if one.state is State.CANCELLED:
        # What it has shown is deleted.
        new = attrs.evolve(new, view=View())
    return Request(
        id=f"0199a1b2-0000-7cc3-98c4-{number:012x}",
        new=new,
        state=one.state,
        uses_returned=0,
        created_at=created_at,
        expires_at=created_at + LIFE_S,
        decided_by=one.by,
        answer=one.answer,
        decided_at=created_at + 30 if one.by else None,
        valid_until=created_at + 30 + new.valid_for_s if approved else None,
        ended_at=created_at + 45 if ended else None,
        because=_BECAUSE.get(one.state, ""),
    )
