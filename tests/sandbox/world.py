"""A populated store and the resources that serve it, without sockets."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs
import trio

from sandbox import bootstrap, requestinfo
from sandbox.authn import AUTHENTICATED, MASTERS, Authenticator, User
from sandbox.kinds import SERVICE_ACCOUNTS, Kind
from sandbox.objects import Json, Object, mapping, text
from sandbox.podstreams import PodStreams
from sandbox.processes import Registry
from sandbox.rbac import Authorizer
from sandbox.resources import Resources
from sandbox.reviews import Reviews
from sandbox.server import Answer, ClientGone, Exchange, Request, Response, Streamed
from sandbox.storage import Store
from sandbox.writing import Writer

ADMIN = User("admin", groups=(MASTERS, AUTHENTICATED))


class Body(Exchange):
    """An exchange whose body has already arrived."""

    def __init__(self, request: Request, body: bytes) -> None:
        self.request = request
        self.peer = "test"
        self._body = body

    async def read_body(self) -> bytes:
        return self._body


@attrs.frozen
class World:
    """A populated store, and the resources that serve it."""

    store: Store
    writer: Writer
    authenticator: Authenticator
    resources: Resources

    @classmethod
    def make(cls, registry: Registry) -> World:
        store = Store()
        writer = Writer(store)
        authenticator = Authenticator(store.collection(SERVICE_ACCOUNTS.group, SERVICE_ACCOUNTS.resource))
        reviews = Reviews(Authorizer(store), authenticator)
        bootstrap.populate(store, writer, b"CA", "127.0.0.1:6443")
        return cls(store, writer, authenticator, Resources(store, writer, reviews, PodStreams(registry)))

    async def ask(
        self,
        method: str,
        target: str,
        body: Json | bytes = None,
        *,
        user: User = ADMIN,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send an authorised request to the resources."""
        path, _, query = target.partition("?")
        pairs = [part.partition("=") for part in query.split("&") if part]
        lines = tuple((key.lower().encode(), value.encode()) for key, value in (headers or {}).items())
        parsed: dict[str, list[str]] = {}
        for key, _, value in pairs:
            parsed.setdefault(key, []).append(value)
        request = Request(method, target, path, parsed, lines)
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        info = requestinfo.parse(method, path, parsed)
        return await self.resources.answer(Body(request, data), info, user)

    async def object(self, method: str, target: str, body: Json | bytes = None, **headers: str) -> Object:
        """Return the JSON of an answer."""
        lines = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = await self.ask(method, target, body, headers=lines)
        assert isinstance(answer, Response)
        value: Object = json.loads(answer.body)
        return value

    def status(self, kind: Kind, name: str, namespace: str = "default") -> Object:
        """Return the status of a stored object."""
        item = self.store.collection(kind.group, kind.resource).get(namespace, name)
        return mapping(item.value, "status") if item is not None else {}

    def names(self, kind: Kind, namespace: str = "default") -> list[str]:
        """Return the names of the stored objects of a kind."""
        items = self.store.collection(kind.group, kind.resource).items(namespace)
        return [text(item.value, "metadata", "name") for item in items]


async def streamed(answer: Answer, *, lines: int | None = None) -> list[Object]:
    """Return the JSON lines of a streamed answer: all of them, or a number of lines and then disconnect."""
    assert isinstance(answer, Streamed)
    data = bytearray()
    enough = trio.Event()

    async def send(chunk: bytes) -> None:
        data.extend(chunk)
        if lines is not None and data.count(b"\n") >= lines:
            enough.set()
            raise ClientGone

    try:
        await answer.produce(send)
    except ClientGone:
        assert enough.is_set()
    return [json.loads(line) for line in data.splitlines()]
