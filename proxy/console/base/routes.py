"""A route of the console, what its handler gets, and what it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlencode

import attrs
from starlette.requests import Request
from starlette.responses import Response

from proxy.console.base.api import Api
from proxy.console.base.sessions import Person


@attrs.frozen
class Ask:
    """One request of a person whose role may make it."""

    request: Request = attrs.field(repr=False)
    person: Person
    api: Api
    now: float
    """Epoch seconds."""
    form: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """The fields of a POST, without the session's token. Of a field that repeats, the last."""

    def path(self, name: str) -> str:
        """Return a parameter of the route's path, decoded."""
        value: str = self.request.path_params[name]
        return value

    def query(self, name: str) -> str:
        """Return a parameter of the query, or nothing."""
        return self.request.query_params.get(name, "").strip()


@attrs.frozen
class Page:
    """A page: its template, and what the template shows."""

    template: str
    title: str
    shown: Mapping[str, object] = attrs.field(factory=dict, repr=False)
    status: int = 200


@attrs.frozen
class Redirect:
    """The page to show after a change, with a sentence about the change."""

    path: str
    notice: str = ""
    query: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def target(self) -> str:
        """The path with the query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


Handler = Callable[[Ask], Awaitable[Page | Redirect | Response]]


@attrs.frozen
class Route:
    """A path with a method, and the least role that it needs."""

    method: str
    path: str
    role: str
    """No default: a route without a role cannot be made."""
    handler: Handler
    section: str = ""
    """The entry of the navigation that is marked."""
    by_person: bool = False
    """Whether a person must decide, so that the role that includes all others does not suffice."""
    stream: bool = False
    """Whether its answer is no page, and goes on until the browser leaves."""

    def admits(self, person: Person) -> bool:
        """Return whether the person's role may make the request."""
        return person.role == self.role if self.by_person else person.may(self.role)


@attrs.frozen
class Section:
    """An entry of the navigation."""

    name: str
    title: str
    path: str
    role: str


# In the order of the navigation; a group begins where there is a heading.
SECTIONS: Mapping[str, tuple[Section, ...]] = {
    "": (
        Section("overview", "Overview", "/", "viewer"),
        Section("requests", "Requests", "/requests", "approver"),
        Section("calls", "Live calls", "/calls", "operator"),
        Section("audit", "Audit", "/audit", "auditor"),
    ),
    "Rules": (
        Section("policies", "Policies", "/policies", "viewer"),
        Section("decision", "Decision", "/decision", "viewer"),
    ),
    "Fleet": (
        Section("agents", "Agents", "/agents", "viewer"),
        Section("clusters", "Clusters", "/clusters", "viewer"),
        Section("teams", "Teams", "/teams", "viewer"),
    ),
}
