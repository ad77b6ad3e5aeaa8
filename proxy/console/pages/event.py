"""One event of the trail."""

from __future__ import annotations

from proxy.console.base.api import at
from proxy.console.base.routes import Ask, Page, Route
from proxy.console.views.event import view_of
from proxy.console.views.filters import Filters
from proxy.console.views.follow import cells


async def show(ask: Ask) -> Page:
    """Show an event with its call, its decision and its neighbours."""
    view = view_of(await ask.api.get(at("/v1/audit/events/{}", ask.path("eid"))))
    everything = Filters({})
    return Page(
        "event.html",
        "Event",
        {
            "view": view,
            "row": cells(view.row, everything),
            "before": [cells(row, everything) for row in view.before],
            "after": [cells(row, everything) for row in view.after],
        },
    )


ROUTES = (Route("GET", "/audit/{eid}", "auditor", show, "audit"),)
