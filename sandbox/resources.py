"""The resources' verbs: get, list, watch, create, update, patch and delete, over the storage."""

from __future__ import annotations

from sandbox.authn import User
from sandbox.requestinfo import RequestInfo
from sandbox.server import Answer, Exchange
from sandbox.status import no_such_path
from sandbox.storage import Store


class Resources:
    """Answers requests for resources, once they are allowed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answer(self, exchange: Exchange, info: RequestInfo, user: User) -> Answer:
        """Answer one request."""
        raise no_such_path()
