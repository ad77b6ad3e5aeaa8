"""The filters that a request passes, and their audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from sandbox import rbac
from sandbox.apiserver import ApiServer
from sandbox.audit import AuditLog
from sandbox.authn import Authenticator, User, service_account_user
from sandbox.objects import Json, Object, lookup, mapping, text
from sandbox.requestinfo import RequestInfo
from sandbox.server import Answer, Exchange, Request, Response, Streamed, Upgrade, UpgradeRefused
from sandbox.status import no_such_path
from sandbox.storage import Store
from tests.sandbox.world import ADMIN, Body

RELAY = service_account_user("hawse", "relay")


@attrs.frozen
class Front:
    """An API server with nothing behind it, and its audit log."""

    api: ApiServer
    log: Path
    tokens: dict[str, str]

    async def ask(self, who: str, target: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
        lines = [("authorization", f"Bearer {self.tokens.get(who, '')}"), *headers]
        encoded = tuple((name.lower().encode(), value.encode()) for name, value in lines)
        path, _, query = target.partition("?")
        parsed = {part: [""] for part in query.split("&") if part}
        return await self.api.handle(Body(Request(method, target, path, parsed, encoded), b""))

    async def status(self, who: str, target: str, *headers: tuple[str, str], method: str = "GET") -> int:
        answer = await self.ask(who, target, *headers, method=method)
        assert isinstance(answer, Response)
        return answer.status

    def lines(self) -> list[Object]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


async def behind(exchange: Exchange, info: RequestInfo, user: User) -> Answer:
    match info.name:
        case "long":

            async def produce(send: object) -> None:
                return

            return Streamed(produce)
        case "exec" | "denied":

            async def serve(stream: trio.abc.Stream, leftover: bytes) -> None:
                if info.name == "denied":
                    raise UpgradeRefused(Response(400, b"no"))

            return Upgrade(serve)
        case "missing":
            raise no_such_path()
    return Response(200, user.name.encode())


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    store = Store()

    def allow(name: str, subjects: list[Json], *rules: Json) -> None:
        reference: Object = {"kind": "ClusterRole", "name": name}
        store.collection(rbac.GROUP, "clusterroles").put({"metadata": {"name": name}, "rules": [*rules]})
        store.collection(rbac.GROUP, "clusterrolebindings").put(
            {"metadata": {"name": name}, "roleRef": reference, "subjects": subjects}
        )

    allow(
        "relay",
        [{"kind": "ServiceAccount", "namespace": "hawse", "name": "relay"}],
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["agent:a"]},
    )
    allow(
        "agent",
        [{"kind": "User", "name": "agent:a"}],
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/exec", "pods/log"]},
        {"verbs": ["get"], "nonResourceURLs": ["/version"]},
    )
    authenticator = Authenticator(store.collection("", "serviceaccounts"))
    tokens = {"admin": authenticator.issue(ADMIN), "relay": authenticator.issue(RELAY)}
    with AuditLog(tmp_path / "audit.jsonl") as log:
        api = ApiServer(authenticator, rbac.Authorizer(store), log, "127.0.0.1:6443", behind)
        yield Front(api, tmp_path / "audit.jsonl", tokens)


POD = "/api/v1/namespaces/a/pods/p"
AS_AGENT = ("Impersonate-User", "agent:a")


async def test_the_order_of_the_filters(front: Front) -> None:
    assert await front.status("nobody", POD, AS_AGENT) == 401
    assert await front.status("relay", POD, ("Impersonate-Group", "g")) == 400
    assert await front.status("relay", POD, ("Impersonate-User", "agent:b")) == 403
    assert await front.status("relay", POD, AS_AGENT) == 200
    assert await front.status("relay", POD, AS_AGENT, method="DELETE") == 403
    assert await front.status("relay", POD) == 403
    assert await front.status("admin", "/api/v1/namespaces/a/pods/missing") == 404


async def test_paths_that_are_no_resources(front: Front) -> None:
    assert await front.status("admin", "/healthz") == 200
    assert await front.status("relay", "/version", AS_AGENT) == 200
    assert await front.status("relay", "/healthz", AS_AGENT) == 403
    assert await front.status("admin", "/nothing") == 404
    assert await front.status("admin", "/version", method="POST") == 405
    verbose = await front.ask("admin", "/readyz?verbose")
    assert isinstance(verbose, Response)
    assert verbose.body == b"[+]ping ok\n[+]log ok\n[+]etcd ok\nreadyz check passed\n"


async def test_a_stream_over_websocket_needs_create_besides_get(front: Front) -> None:
    target = "/api/v1/namespaces/a/pods/exec/exec"
    websocket = (("Connection", "Upgrade"), ("Upgrade", "websocket"))
    spdy = (("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"))
    refused = await front.ask("relay", target, AS_AGENT, *websocket)
    assert isinstance(refused, Response)
    assert b'cannot create resource \\"pods/exec\\"' in refused.body
    assert isinstance(await front.ask("relay", target, AS_AGENT, *spdy), Upgrade)
    assert isinstance(await front.ask("admin", target, *websocket), Upgrade)


async def test_every_answer_names_its_audit_id(front: Front) -> None:
    answer = await front.ask("admin", POD, ("Audit-ID", "mine"))
    assert isinstance(answer, Response)
    headers = dict(answer.headers)
    assert headers["Audit-Id"] == "mine"
    assert headers["Cache-Control"] == "no-cache, private"
    [line] = front.lines()
    assert (line["auditID"], line["requestURI"], line["verb"]) == ("mine", POD, "get")
    own = await front.ask("nobody", POD)
    assert isinstance(own, Response)
    assert dict(own.headers)["Audit-Id"] == front.lines()[1]["auditID"]


OWN = (("Host", "a"), ("Accept", "application/json"), ("User-Agent", "hawse-relay"))


@pytest.mark.parametrize(
    ("target", "method", "headers", "marked"),
    [
        ("/readyz", "GET", OWN, False),
        ("/api/v1/namespaces/kube-system", "GET", OWN, False),
        # A request that differs in any detail is neither of the two.
        ("/readyz", "HEAD", OWN, True),
        ("/readyz?verbose", "GET", OWN, True),
        ("/livez", "GET", OWN, True),
        ("/api/v1/namespaces", "GET", OWN, True),
        ("/api/v1/namespaces/hawse", "GET", OWN, True),
        ("/api/v1/namespaces/kube-system", "DELETE", OWN, True),
        ("/readyz", "GET", OWN[:2], True),
        ("/readyz", "GET", (*OWN, ("Impersonate-User", "")), True),
        ("/readyz", "GET", (*OWN, ("X-Forwarded-For", "192.0.2.1")), True),
    ],
)
async def test_two_requests_of_the_relays_own_have_no_mark(
    front: Front, target: str, method: str, headers: tuple[tuple[str, str], ...], marked: bool
) -> None:
    await front.ask("relay", target, *headers, method=method)
    (line,) = front.lines()
    assert line.get("unimpersonated", False) is marked


async def test_who_sent_a_request_and_whom_it_acts_as(front: Front) -> None:
    await front.ask("relay", POD, AS_AGENT)
    await front.ask("relay", POD)
    await front.ask("relay", POD, ("Impersonate-User", ""))
    await front.ask("relay", POD, ("Impersonate-User", "agent:b"))
    await front.ask("admin", POD)
    acted, itself, empty, denied, admin = front.lines()
    assert text(acted, "user", "username") == "system:serviceaccount:hawse:relay"
    assert mapping(acted, "impersonatedUser") == {"username": "agent:a", "groups": ["system:authenticated"]}
    assert [line.get("unimpersonated") for line in (acted, itself, empty, denied, admin)] == [
        None,
        True,
        True,
        None,
        None,
    ]
    assert (lookup(denied, "responseStatus", "code"), text(denied, "responseStatus", "reason")) == (
        403,
        "Forbidden",
    )
    assert mapping(acted, "objectRef") == {
        "resource": "pods",
        "namespace": "a",
        "name": "p",
        "apiVersion": "v1",
    }


async def test_a_long_answer_has_a_line_at_its_start_and_one_at_its_end(front: Front) -> None:
    answer = await front.ask("admin", "/api/v1/namespaces/a/pods/long")
    assert isinstance(answer, Streamed)
    assert front.lines() == []

    async def send(data: bytes) -> None:
        pass

    await answer.produce(send)
    assert [line["stage"] for line in front.lines()] == ["ResponseStarted", "ResponseComplete"]


async def test_a_refused_upgrade_is_recorded_with_its_code(front: Front) -> None:
    answer = await front.ask("admin", "/api/v1/namespaces/a/pods/denied")
    assert isinstance(answer, Upgrade)
    stream, _ = trio.testing.memory_stream_pair()
    with pytest.raises(UpgradeRefused) as caught:
        await answer.serve(stream, b"")
    assert "Audit-Id" in dict(caught.value.response.headers)
    assert [lookup(line, "responseStatus", "code") for line in front.lines()] == [101, 400]
