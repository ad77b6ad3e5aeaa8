"""The followed trail: the API's stream of events, with rows as the page's table shows them.

The wording and the escaping stay on the server, so the page only fills cells in. A row of the API has the
whole event, with a target of up to 64 KiB. The page gets the beginnings of the texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from audit.escape import escape
from proxy.console.base.api import Api
from proxy.console.views.filters import Filters
from proxy.console.views.rows import Row, row_of, without_begun

_END = b"\n\n"
_EVENTS = b"event: events"
_DATA = b"data: "


class RowStream:
    """Rewrites a stream of server-sent events, in pieces of any size."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the messages that are whole by now, rewritten."""
        *messages, self._rest = (self._rest + piece).split(_END)
        return b"".join(self._rewritten(message) + _END for message in messages)

    def _rewritten(self, message: bytes) -> bytes:
        lines = message.split(b"\n")
        if _EVENTS not in lines:
            return message
        return b"\n".join(self._data(line) if line.startswith(_DATA) else line for line in lines)

    def _data(self, line: bytes) -> bytes:
        listed = msgspec.json.decode(line.removeprefix(_DATA))["events"]
        # The API sends the oldest first, and a table has the newest first.
        rows = without_begun(map(row_of, reversed(listed)))
        return _DATA + msgspec.json.encode({"rows": [_escaped(cells(row, self._filters)) for row in rows]})


class FollowedResponse(Response):
    """Answers with the API's stream of events, with rows in place of the events."""

    def __init__(self, api: Api, filters: Filters, after: str) -> None:
        super().__init__()
        self._api = api
        self._filters = filters
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the stream on until either side ends it."""
        rows = RowStream(self._filters)
        refused = False

        async def rewritten(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] != 200
            elif not refused:
                message = {**message, "body": rows.feed(message.get("body", b""))}
            await send(message)

        query = {**self._filters.values, "after": self._after}
        await self._api.stream("/v1/audit/stream", receive, rewritten, **query)


def cells(row: Row, filters: Filters) -> dict[str, str]:
    """A row's texts and links, by the names of the cells in templates/events.html."""
    moment = datetime.fromisoformat(row.time) if row.time else None
    return {
        "key": row.key,
        "time": row.time,
        "day": f"{moment:%d %b}" if moment is not None else "",
        "clock": f"{moment:%H:%M:%S}" if moment is not None else "",
        "actor": row.actor,
        "actor_href": filters.path(agent=row.agent) if row.agent else "",
        "cluster": row.cluster,
        "cluster_href": filters.path(cluster=row.cluster) if row.cluster else "",
        "kind": row.kind,
        "what": row.what,
        "what_href": row.href,
        "why": row.why,
        "result": row.result,
        "tone": row.tone,
        "took": row.took,
    }


def _escaped(cells: Mapping[str, str]) -> dict[str, str]:
    """The cells with controls escaped, as the templates do it for theirs."""
    # A link is percent-encoded.
    return {name: text if name.endswith("_href") else escape(text) for name, text in cells.items()}
