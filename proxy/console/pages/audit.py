"""The trail: a list with filters that stand in the address, followed live, and exported."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from audit.record import Kind
from proxy.console.base.api import ApiError
from proxy.console.base.routes import Ask, Page, Route
from proxy.console.views.filters import Filters
from proxy.console.views.follow import FollowedResponse, cells
from proxy.console.views.rows import row_of, sentence, without_begun

# A screen or three; the API's own default is 200.
PAGE_ROWS = 100
RANGES = (("", "All time"), ("15m", "15 min"), ("1h", "1 h"), ("24h", "24 h"), ("7d", "7 days"))
STATUSES = (
    *(("", "Any result"), ("2xx", "2xx succeeded"), ("4xx", "4xx refused"), ("403", "403 forbidden")),
    *(("5xx", "5xx failed"), ("none", "No answer")),
)
# A search that can be asked again, or differently: the page keeps its filters and says what is wrong.
_ASKED_AGAIN = frozenset({400, 404, 422, 429, 503})


async def show(ask: Ask) -> Page:
    """Show the newest events that match, or those before a cursor."""
    filters = Filters.of(ask.request.query_params)
    before = ask.query("before")
    can_follow = not before and not filters["until"]
    status, fault = 200, ""
    found: dict[str, object] = {}
    try:
        found = await ask.api.get("/v1/audit/events", **filters.values, before=before, limit=PAGE_ROWS)
    except ApiError as error:
        if error.status not in _ASKED_AGAIN:
            raise
        status, fault = error.status, sentence(str(error))
    rows = [row_of(each) for each in _list(found.get("events"))]
    following = can_follow and not fault and bool(ask.query("follow"))
    older = found.get("older")
    return Page(
        "audit.html",
        "Audit",
        {
            "filters": filters,
            "fault": fault,
            "rows": [cells(row, filters) for row in without_begun(rows)],
            "older": filters.path(before=str(older)) if older else "",
            "newer": filters.path() if before else "",
            "stopped": found.get("stopped", ""),
            "searched_to": found.get("searched_to"),
            "began": found.get("began"),
            "notes": found.get("notes", ()),
            "can_follow": can_follow and not fault,
            "stream": filters.path("/audit/stream", after=str(found.get("follow", ""))),
            "following": following,
            "ranges": RANGES,
            "statuses": _with(STATUSES, filters["status"]),
            "kinds": _with((("", "Any kind"), *((kind.value, kind.value) for kind in Kind)), filters["kind"]),
        },
        status,
    )


async def stream(ask: Ask) -> Response:
    """Follow the trail from a cursor on."""
    filters = Filters.of(ask.request.query_params)
    return FollowedResponse(ask.api, filters, ask.query("after"))


def _list(events: object) -> Sequence[dict[str, object]]:
    return events if isinstance(events, list) else ()


def _with(offered: Sequence[tuple[str, str]], current: str) -> Sequence[tuple[str, str]]:
    """The choices of a list, with one that came by the address."""
    return offered if current in dict(offered) else (*offered, (current, current))


ROUTES = (
    Route("GET", "/audit", "auditor", show, "audit"),
    Route("GET", "/audit/stream", "auditor", stream, stream=True),
)
