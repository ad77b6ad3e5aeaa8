"""Attacks on identity, headers, paths and framing, against the whole chain in both modes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sandbox.objects import now_micro
from tests.system.hostile import BAD_PATHS, ambiguous
from tests.system.load import parallel
from tests.system.raw import RawClient, arrived, marked_path, parse
from tests.system.waiting import wait_until
from tests.system.world import GROUP, NAMESPACE, USER, WAYS, World

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

FORGED = [
    "Impersonate-User: system:admin",
    "Impersonate-Group: system:masters",
    "Impersonate-Uid: 0",
    "Impersonate-Extra-scopes: all",
    "impersonate-user: system:admin",
    "iMpErSoNaTe-GrOuP: system:masters",
    "Impersonate_User: system:admin",
    "Impersonate-Foo: bar",
]


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, world: World) -> RawClient:
    return RawClient(world, request.param)


def recorded(world: World, mark: str) -> list[dict[str, Any]]:
    """The trail's events with the mark in them, once there are some."""

    def found() -> list[dict[str, Any]]:
        return [event for event in world.audit_rows("--since", "1m") if mark in json.dumps(event)]

    wait_until(lambda: bool(found()))
    return found()


@pytest.mark.parametrize("header", FORGED)
def test_an_identity_that_the_client_brings_is_refused_and_recorded(
    world: World, client: RawClient, header: str
) -> None:
    path, mark = marked_path()

    answer = client.get(path, header, header)

    assert answer.status == 403
    assert json.loads(answer.body)["reason"] == "Forbidden"
    assert arrived(world, mark) == []
    [event] = recorded(world, mark)
    assert event["kind"] == "header_smuggling"
    assert event["resp"]["status"] == 403


def test_the_connection_header_cannot_name_our_own_headers_away(world: World, client: RawClient) -> None:
    path, mark = marked_path()

    answer = client.get(
        path,
        "Connection: Impersonate-User, Impersonate-Group, Authorization, Audit-ID",
        "Keep-Alive: timeout=5",
        "Proxy-Authorization: Basic eDp5",
        "TE: trailers",
    )

    assert answer.status == 404
    [line] = arrived(world, mark)
    impersonated = line["impersonatedUser"]
    assert isinstance(impersonated, dict)
    assert impersonated["username"] == USER
    assert GROUP in impersonated["groups"]
    assert line["auditID"] == answer.headers["audit-id"]


def test_nothing_of_the_clients_credentials_reaches_the_api_server(world: World, client: RawClient) -> None:
    path, mark = marked_path()
    ours = "11111111-2222-7333-8444-555555555555"

    for name in ("access_token", "%61ccess_%74oken"):
        answer = client.get(
            f"{path}?{name}=secret-in-query",
            "Cookie: session=secret-cookie",
            "X-Remote-User: system:admin",
            f"Audit-ID: {ours}",
        )
        # A token in a query would stand in every log on the way, so the request goes nowhere.
        assert answer.status == 400
    answer = client.get(
        path,
        "Cookie: session=secret-cookie",
        "X-Remote-User: system:admin",
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Access-Token: secret-forwarded",
        f"Audit-ID: {ours}",
    )
    assert answer.status == 404
    text = json.dumps(arrived(world, mark)) + json.dumps(recorded(world, mark))
    assert "secret-" not in text
    assert "203.0.113.9" not in text
    assert answer.headers.get("audit-id") != ours


def test_a_bearer_subprotocol_is_neither_passed_on_nor_echoed(world: World, client: RawClient) -> None:
    secret = base64.urlsafe_b64encode(b"secret-subprotocol").decode().rstrip("=")
    _, mark = marked_path()
    offered = f"base64url.bearer.authorization.k8s.io.{secret}, v5.channel.k8s.io"
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/workbench/exec?command=echo&command={mark}&stdout=1"
    with client.talk(client.upgrade(path, f"Sec-WebSocket-Protocol: {offered}")) as talk:
        answer = talk.answer()

    assert answer.status == 101
    assert answer.headers["sec-websocket-protocol"] == "v5.channel.k8s.io"
    assert secret not in answer.raw.decode("latin-1")
    assert secret not in json.dumps(arrived(world, mark)) + json.dumps(recorded(world, mark))


def test_a_head_that_outgrows_its_limit_on_the_way_goes_nowhere(world: World, client: RawClient) -> None:
    """A list of subprotocols is rewritten if it held a token, and gets longer by that."""
    path, mark = marked_path()

    answer = client.get(
        path, f"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.x{',a' * 400_000}"
    )

    assert answer.status == 413
    assert b"has not seen this request" in answer.body
    assert arrived(world, mark) == []
    [event] = recorded(world, mark)
    assert (event["kind"], event["resp"]["processed"]) == ("call", "no")


def test_after_a_refused_upgrade_bytes_are_requests_and_never_raw(world: World, client: RawClient) -> None:
    _, mark = marked_path()
    upgrade = client.head(
        f"/api/v1/namespaces/{NAMESPACE}/pods/{mark}-missing/exec?command=id&stdout=1",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: v5.channel.k8s.io",
    ).replace(b"Connection: close", b"Connection: Upgrade")
    target = f"/api/v1/namespaces/{NAMESPACE}/secrets/{mark}-raw"
    smuggled = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    answer = parse(client.send(upgrade + smuggled.encode()))

    assert answer.status == 404
    assert [line["requestURI"] for line in arrived(world, f"{mark}-raw")] == []


@pytest.mark.parametrize("path", BAD_PATHS)
def test_an_ambiguous_path_is_refused_never_normalised(world: World, client: RawClient, path: str) -> None:
    began = now_micro()
    answer = client.get(path)
    assert answer.status == 400
    # What was received before may end only now.
    lines = world.cluster_audit()
    assert [line for line in lines if str(line["requestReceivedTimestamp"]) >= began] == []


@pytest.mark.parametrize("method", ["TRACE", "trace", "CONNECT"])
def test_a_method_that_echoes_or_opens_a_tunnel_is_refused(
    world: World, client: RawClient, method: str
) -> None:
    path, mark = marked_path()
    for target in (path, f"/api/v1/namespaces/{NAMESPACE}/services/{mark}/proxy/"):
        answer = parse(client.send(client.head(target, method=method)))
        assert answer.status == 400
        assert f"{method} is not served" in json.loads(answer.body)["message"]
    assert arrived(world, mark) == []


def test_ambiguous_framing_is_refused_and_closes_the_connection(world: World, client: RawClient) -> None:
    _, mark = marked_path()
    follower = client.head(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{mark}")
    good = client.head(f"/api/v1/namespaces/{NAMESPACE}/configmaps", method="POST")
    cases = list(ambiguous(good).items())
    # Each takes the second in which what was refused is still read.
    answers = parallel(len(cases), lambda number: client.send(cases[number][1] + follower))
    for (what, _), raw in zip(cases, answers, strict=True):
        assert parse(raw).status == 400, what
        assert raw.count(b"HTTP/1.1 ") == 1, f"{what}: the bytes behind it were answered too"
    assert arrived(world, mark) == []


def test_tokens_that_are_not_ours_are_401(world: World, client: RawClient) -> None:
    path, mark = marked_path()
    valid = client.token()
    header, payload, signature = valid.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').decode().rstrip("=")
    other = RawClient(world, "direct" if client.way == "tunnel" else "tunnel").token()
    for token in (
        "",
        "x",
        f"{none}.{payload}.",
        f"{header}.{payload}.{signature[:-4]}AAAA",
        other,
        world.api_key,
    ):
        head = client.head(path).replace(valid.encode(), b"") if not token else client.head(path)
        lines = [
            f"Authorization: Bearer {token}".encode() if line.startswith(b"Authorization") else line
            for line in head.split(b"\r\n")
        ]
        answer = parse(client.send(b"\r\n".join(lines)))
        assert answer.status == 401, token[:20]
    assert arrived(world, mark) == []


def test_an_unknown_cluster_and_one_not_granted_look_alike(world: World) -> None:
    world.admin("team", "add", "strangers")
    world.admin("cluster", "add", "hidden", "--team", "strangers")
    token = RawClient(world, "tunnel").token()
    answers = []
    for name in ("hidden", "missing"):
        lines = [
            f"GET /clusters/{name}/api HTTP/1.1",
            "Host: h",
            f"Authorization: Bearer {token}",
            "Connection: close",
        ]
        answer = parse(RawClient(world, "tunnel").send("\r\n".join(lines).encode() + b"\r\n\r\n"))
        answers.append((answer.status, answer.body.replace(name.encode(), b"NAME")))
    assert answers[0] == answers[1]
    assert answers[0][0] in (401, 403)
