"""Filters events by members of their JSON: verb, resource, namespace, status, team, actor.

SQLite searches for the bytes, at 0.3 µs per event; decoding would take some ten times as long. The search is
exact: `audit.record.encode` writes no blanks, and escapes quotes inside a text, so a text that a client chose
cannot look like a member.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import attrs
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from audit.record import ActorType, Event

Condition = sa.ColumnElement[bool]
_Column = sa.ColumnElement[bytes]

# The value of `--status` for calls without an answer, besides numbers and classes.
NO_ANSWER = "none"


@attrs.frozen
class Members:
    """A filter by JSON members. An event matches if it has one of the values of each member given."""

    verbs: Collection[str] = ()
    namespaces: Collection[str] = ()
    resources: Collection[str] = ()
    """`pods` has no subresource, `pods/log` has one."""
    teams: Collection[str] = ()
    """Matches if the agent was in one of these."""
    statuses: Collection[str] = ()
    """A status, a class such as `4xx`, or NO_ANSWER."""
    actors: Collection[str] = ()
    """An actor's name, of any type; TYPE:NAME, such as `operator:ada`; or `hub`."""
    tokens: Collection[str] = ()
    """The ids of the actor's tokens."""

    def indexed(self) -> list[dict[str, list[str]]]:
        """The filter as far as an index has it: of each of these, one of the names in one of the columns."""
        found: list[dict[str, list[str]]] = [
            {column: [*names]}
            for column, names in (
                ("verb", self.verbs),
                ("namespace", self.namespaces),
                ("resource", self.resources),
                ("status", self.statuses),
            )
            if names
        ]
        if self.actors:
            pairs = [pair for actor in self.actors for pair in actors_of(actor)]
            agents = [name for kind, name in pairs if kind == ActorType.AGENT]
            others = [f"{kind}:{name}" for kind, name in pairs if kind != ActorType.AGENT]
            # The hub has no name.
            others += [f"{actor}:" for actor in self.actors if actor == ActorType.HUB]
            found.append({"actor": others, "agent": agents})
        return found

    def conditions(self, events: sa.Table, common_parts: sa.Table) -> list[Condition]:
        """The filter as SQL conditions on an event."""
        own = events.c.body
        found = [
            _any(self.verbs, lambda verb: _has(own, _member("verb", verb))),
            _any(self.namespaces, lambda name: _has(own, _member("namespace", name))),
            _any(self.resources, lambda name: _is_resource(own, name)),
            _any(self.statuses, lambda status: _has(own, _status(status))),
            _any(self.teams, lambda name: _in_common(events, common_parts, partial(_has_team, name=name))),
            _any(self.actors, lambda name: _in_common(events, common_parts, partial(_has_actor, name=name))),
            _any(
                self.tokens,
                lambda token: _in_common(events, common_parts, partial(_has, piece=_member("jti", token))),
            ),
        ]
        return [condition for condition in found if condition is not None]


# In an index this column says that a block has the members of its events; some blocks are without them.
INDEXED = "members"


class MemberNames:
    """The names of events in an index, but agents, clusters and kinds. Adding an event takes 0.3 µs."""

    def __init__(self) -> None:
        self._verbs: set[str] = set()
        self._resources: set[tuple[str, str]] = set()
        self._namespaces: set[str] = set()
        self._statuses: set[int] = set()
        self._actors: set[tuple[ActorType, str]] = set()

    def add(self, event: Event) -> None:
        """Add an event."""
        req, resp, actor = event.req, event.resp, event.actor
        if req is not None:
            self._verbs.add(req.verb)
            self._namespaces.add(req.namespace)
            self._resources.add((req.resource, req.subresource))
        if resp is not None:
            self._statuses.add(resp.status)
        if actor.type is not ActorType.AGENT:
            self._actors.add((actor.type, actor.name))

    def columns(self) -> list[tuple[str, str]]:
        """Return each name with its column, as Members.indexed searches for it."""
        statuses = {f"{status // 100}xx" for status in self._statuses}
        statuses |= {str(status) if status else NO_ANSWER for status in self._statuses}
        return [
            (INDEXED, ""),
            *(("verb", name) for name in self._verbs),
            *(("namespace", name) for name in self._namespaces),
            *(("resource", f"{name}/{sub}" if sub else name) for name, sub in self._resources),
            *(("status", name) for name in statuses),
            *(("actor", f"{kind}:{name}") for kind, name in self._actors),
        ]


class Position(FunctionElement[int]):
    """Where bytes begin in others, from 1 on; 0 if they are not in them."""

    type = sa.Integer()
    inherit_cache = True


@compiles(Position)
def _in_sqlite(element: Position, compiler: SQLCompiler, **options: object) -> str:
    return f"instr({compiler.process(element.clauses, **options)})"


@compiles(Position, "postgresql")
def _in_postgresql(element: Position, compiler: SQLCompiler, **options: object) -> str:
    column, piece = (compiler.process(clause, **options) for clause in element.clauses)
    return f"position({piece} IN {column})"


def _any(values: Collection[str], condition: Callable[[str], Condition]) -> Condition | None:
    return sa.or_(*map(condition, values)) if values else None


def _has(column: _Column, piece: bytes) -> Condition:
    return Position(column, _bytes(piece)) > 0


def _bytes(piece: bytes) -> sa.BindParameter[bytes]:
    return sa.literal(piece, sa.LargeBinary)


def _member(name: str, value: str) -> bytes:
    return b'"%b":%b' % (name.encode(), msgspec.json.encode(value))


def _status(status: str) -> bytes:
    # No other status begins with a zero, and each has three digits.
    return b'"status":' + (b"0" if status == NO_ANSWER else status.removesuffix("xx").encode())


def _is_resource(column: _Column, name: str) -> Condition:
    whole = _has(column, _member("resource", name))
    resource, slash, subresource = name.partition("/")
    if not slash:
        return sa.and_(whole, sa.not_(_has(column, b'"subresource":')))
    parts = _has(column, _member("resource", resource)), _has(column, _member("subresource", subresource))
    # The resources of `hawse admin` actions contain a slash: agents/keys.
    return sa.or_(whole, sa.and_(*parts))


def _in_common(
    events: sa.Table, common_parts: sa.Table, condition: Callable[[_Column], Condition]
) -> Condition:
    """A condition on the part that an event shares with others, or on an event that is whole."""
    part = common_parts.alias()
    same = part.c.number == events.c.common
    if "epoch" in part.c:
        # In PostgreSQL each epoch has its own numbers.
        same &= part.c.epoch == events.c.epoch
    in_common = sa.exists().where(same, condition(part.c.body))
    return sa.or_(in_common, sa.and_(events.c.common.is_(None), condition(events.c.body)))


def _has_team(column: _Column, name: str) -> Condition:
    """Whether the name is in the list of the actor's teams, not just elsewhere."""
    teams = sa.func.substr(column, Position(column, _bytes(_TEAMS)), type_=sa.LargeBinary)
    names = sa.func.substr(teams, 1, Position(teams, _bytes(b"]")), type_=sa.LargeBinary)
    return sa.and_(_has(column, _TEAMS), _has(names, msgspec.json.encode(name)))


def _has_actor(column: _Column, name: str) -> Condition:
    # `encode` writes an actor's type first and the name after it.
    pieces = [
        b'"actor":{"type":"%b","name":%b' % (kind.encode(), msgspec.json.encode(rest))
        for kind, rest in actors_of(name)
    ]
    if name == ActorType.HUB:
        pieces.append(b'"actor":{"type":"hub"')
    return sa.or_(*(_has(column, piece) for piece in pieces))


def actors_of(name: str) -> list[tuple[str, str]]:
    """The types and names of the actors that a filter means."""
    kind, colon, rest = name.partition(":")
    found = [(str(each), name) for each in ActorType]
    # A name may have a colon too, as that of an operator has.
    return [*found, (kind, rest)] if colon and kind in {*ActorType} else found


_TEAMS = b'"teams":['
NO_MEMBERS = Members()
