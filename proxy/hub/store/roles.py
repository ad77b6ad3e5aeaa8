"""The roles of admin tokens: what each may do. Which role an action needs is in the table of actions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an admin token may do. The role of an action is the least one that may."""

    METRICS = "metrics"
    VIEWER = "viewer"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Whether a token of this role may do what needs that one."""
        return needed in _HELD[self]

    @property
    def holders(self) -> tuple[Role, ...]:
        """The roles that may do what needs this one, the least first."""
        return tuple(role for role in Role if role.may(self))


_VIEWER: Final = frozenset({Role.METRICS, Role.VIEWER})
# A role holds what is listed here and nothing else, so a new role begins with no right.
_HELD: Final[Mapping[Role, frozenset[Role]]] = {
    Role.METRICS: frozenset({Role.METRICS}),
    Role.VIEWER: _VIEWER,
    Role.AUDITOR: _VIEWER | {Role.AUDITOR},
    Role.OPERATOR: _VIEWER | {Role.OPERATOR},
    Role.ADMIN: frozenset(Role),
}

MEANINGS: Final[Mapping[Role, str]] = {
    Role.METRICS: "fetches /metrics, and nothing else",
    Role.VIEWER: "reads /metrics, teams, agents, clusters, relays, keys, policies",
    Role.AUDITOR: "viewer, and reads who has which admin token",
    Role.OPERATOR: "viewer, and sees and kills live calls, locks and unlocks agents",
    Role.ADMIN: "everything",
}


def listed(roles: tuple[Role, ...]) -> str:
    """Name roles in a sentence: `viewer, auditor or admin`."""
    *most, last = roles
    return f"{', '.join(most)} or {last}" if most else str(last)
