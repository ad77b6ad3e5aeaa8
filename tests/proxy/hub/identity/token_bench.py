"""A bench for the hub's token endpoint: agents of each state, with their keys, in a real store."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import attrs

from audit.record import Event
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from auth.keys import SigningKey
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.identity.oauth import Answer
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from tests.fakes.replays import open_replays

ISSUER = "https://hub.example"
PEPPER = b"p" * 32
LIMITS = LimitsConfig()
NOW = 1_800_000_000.5
KEY, OTHER_KEY, LOCKED_KEY, RETIRED_KEY, REVOKED_KEY = (new_api_key(bytes([n]) * 32) for n in range(5))
AGENT_KEY, LOCKED_AGENT_KEY, STRANGERS_KEY = (SigningKey.generate() for _ in range(3))
FORM = (b"content-type", b"application/x-www-form-urlencoded")


@attrs.define
class Bench:
    directory: Directory
    endpoint: TokenEndpoint
    signing: SigningKeys
    events: list[Event]

    async def ask(
        self, *headers: tuple[bytes, bytes], raw: bytes | None = None, **fields: str
    ) -> tuple[int, dict[str, object]]:
        form = raw if raw is not None else urlencode(fields).encode()
        return self.read(await self.endpoint.answer(form, (FORM, *headers), "192.0.2.1"))

    def read(self, answer: Answer) -> tuple[int, dict[str, object]]:
        assert dict(answer.headers)[b"cache-control"] == b"no-store"
        assert dict(answer.headers)[b"content-type"] == b"application/json"
        assert (b"www-authenticate" in dict(answer.headers)) == (answer.status == 401)
        body = json.loads(answer.body)
        assert isinstance(body, dict)
        return answer.status, body

    async def token(self, key: str = KEY, **fields: str) -> tuple[int, dict[str, object]]:
        return await self.ask(
            **{"grant_type": "client_credentials", "client_secret": key, "audience": "prod", **fields}
        )


def enrol(store: Store) -> None:
    for team in ("sre", "web"):
        store.add_team(team)
    for name, team, key in (
        ("sre-1", "sre", KEY),
        ("web-1", "web", OTHER_KEY),
        ("locked", "sre", LOCKED_KEY),
        ("retired", "sre", RETIRED_KEY),
    ):
        store.add_agent(name, owner="ada", teams=[team], key_hash=hash_key(key, PEPPER), key_hint=key[:8])
    revoked = store.add_api_key("sre-1", key_hash=hash_key(REVOKED_KEY, PEPPER), key_hint="x")
    store.revoke_key("sre-1", revoked)
    for agent, key in (("sre-1", AGENT_KEY), ("locked", LOCKED_AGENT_KEY)):
        store.add_code(agent, "c")
        store.redeem_code("c", key.public)
    store.lock_agent("locked")
    store.retire_agent("retired")
    for cluster in ("prod", "dev"):
        store.add_cluster(
            cluster, relay_key=SigningKey.generate().public, teams=["sre"], labels={"env": cluster}
        )


@asynccontextmanager
async def open_bench(
    folder: Path, clock: Callable[[], float], database: Location | None = None
) -> AsyncIterator[Bench]:
    key = SigningKey.generate()
    signing = SigningKeys(key, (key,))
    events: list[Event] = []
    async with (
        open_replays(database or folder / "seen.db") as replays,
        open_directory(database or folder / "hub.db", org="main", clock=clock) as directory,
    ):
        await directory.change(enrol)
        endpoint = TokenEndpoint(
            directory=directory,
            keys=lambda: signing,
            pepper=PEPPER,
            issuer=ISSUER,
            record=events.append,
            clock=clock,
            replays=replays,
            limits=LIMITS,
            recording=lambda: True,
            state_of=lambda cluster: "not tried",
        )
        yield Bench(directory, endpoint, signing, events)


def basic(name: str, key: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(f"{name}:{key}".encode())
