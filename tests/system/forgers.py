"""Tokens signed with the hub's and a relay's own keys, and requests that carry them."""

from __future__ import annotations

import socket
import sqlite3
import ssl
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from auth.keys import SigningKey
from tests.system.hostile import Forger
from tests.system.raw import DEADLINE_S, Answer, RawClient, Talk
from tests.system.world import AGENT, GROUP, ORG, TEAM, USER, World

TARGET = "/api/v1/namespaces/work/configmaps"


def cluster_id(world: World, way: str) -> str:
    value: str = tomllib.loads((world.folder / f"relay-{way}" / "relay.toml").read_text())["cluster_id"]
    return value


def issuer(world: World) -> str:
    return f"https://127.0.0.1:{world.hub_port}"


def hub_forger(world: World, typ: str, claims: Mapping[str, object]) -> Forger:
    keys = world.folder / "hub" / "keys"
    kid = (keys / "active").read_text().strip()
    return Forger.from_pem(keys / f"{kid}.pem", typ, {"iss": issuer(world), "jti": "j", **claims}, kid=kid)


def relay_forger(world: World, way: str = "direct") -> Forger:
    """Return a forger of relay tokens for the relay of a way."""
    claims = {
        "aud": f"urn:hawse:cluster:{cluster_id(world, way)}",
        "sub": USER,
        "groups": [GROUP],
        "ext": {"hawse.dev/agent-id": agent_id(world), "hawse.dev/session": "s"},
    }
    return hub_forger(world, "relay+jwt", claims)


def access_forger(world: World, way: str) -> Forger:
    """Return a forger of access tokens for the cluster of a way."""
    claims = {
        "aud": f"urn:hawse:{ORG}:cluster:{way}",
        "sub": USER,
        "agent": agent_id(world),
        "org": ORG,
        "teams": [TEAM],
        "sid": credential_id(world),
    }
    return hub_forger(world, "at+jwt", claims)


def agent_id(world: World) -> str:
    with closing(sqlite3.connect(f"file:{world.folder / 'hub' / 'hub.db'}?mode=ro", uri=True)) as store:
        [(value,)] = store.execute("SELECT id FROM agents WHERE name = ?", (AGENT,))
    return str(value)


def credential_id(world: World) -> str:
    """Return the id that the agent's own tokens name; tokens that name another id count as revoked."""
    with closing(sqlite3.connect(f"file:{world.folder / 'hub' / 'hub.db'}?mode=ro", uri=True)) as store:
        [(value,)] = store.execute("SELECT id FROM api_keys WHERE agent_id = ?", (agent_id(world),))
    return str(value)


@contextmanager
def relay_connection(world: World) -> Iterator[Talk]:
    """A connection to the relay in direct mode, past the hub."""
    context = ssl.create_default_context(cafile=str(world.folder / "direct-ca.pem"))
    plain = socket.create_connection(("127.0.0.1", world.direct_port), DEADLINE_S)
    with context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as connection:
        yield Talk(connection)


def relay_head(token: str, target: str = TARGET, *headers: str, method: str = "GET") -> bytes:
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: relay",
        f"Authorization: Bearer {token}",
        "Audit-ID: 11111111-2222-7333-8444-555555555555",
        "X-Forwarded-For: 203.0.113.7",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def ask_relay(world: World, head: bytes) -> tuple[int, dict[str, str], bytes]:
    with relay_connection(world) as talk:
        talk.send(head)
        answer = talk.answer()
        return answer.status, answer.headers, answer.body


def hello_forger(world: World) -> Forger:
    file = world.folder / "relay-tunnel" / "relay.key"
    party = f"urn:hawse:cluster:{cluster_id(world, 'tunnel')}"
    claims = {"iss": party, "sub": party, "aud": issuer(world), "instance": "intruder", "jti": "j"}
    kid = SigningKey.from_pem(file.read_bytes()).kid
    return Forger.from_pem(file, "relay-hello+jwt", claims, kid=kid)


def dial(client: RawClient, token: str, *, rest: bool = True) -> Answer:
    """Ask the hub for a tunnel with a token."""
    lines = [
        "GET /v1/tunnel HTTP/1.1",
        "Host: hub",
        f"Authorization: Bearer {token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: hawse.v1",
    ]
    with client.talk("\r\n".join(lines).encode() + b"\r\n\r\n") as talk:
        return talk.answer(body=rest)
