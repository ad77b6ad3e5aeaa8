"""The roles of admin tokens, and their rights. The table of actions has the role that each action needs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """A role of an admin token. An action names the least role that may use it."""

    METRICS = "metrics"
    VIEWER = "viewer"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Return whether this role includes the rights of `needed`."""
        return needed in _HELD[self]

    @property
    def holders(self) -> tuple[Role, ...]:
        """The roles that include this one, the least first."""
        return tuple(role for role in Role if role.may(self))


_VIEWER: Final = frozenset({Role.METRICS, Role.VIEWER})
# A role has exactly the rights listed here, so a new role starts without any.
_HELD: Final[Mapping[Role, frozenset[Role]]] = {
    Role.METRICS: frozenset({Role.METRICS}),
    Role.VIEWER: _VIEWER,
    Role.AUDITOR: _VIEWER | {Role.AUDITOR},
    Role.OPERATOR: _VIEWER | {Role.OPERATOR},
    Role.APPROVER: _VIEWER | {Role.APPROVER},
    Role.ADMIN: frozenset(Role),
}

MEANINGS: Final[Mapping[Role, str]] = {
    Role.METRICS: "fetches /metrics, and nothing else",
    Role.VIEWER: "reads /metrics, teams, agents, clusters, relays, keys, policies",
    Role.AUDITOR: "viewer, and reads the trail, simulates policies, lists tokens",
    Role.OPERATOR: "viewer, and sees and kills live calls, locks and unlocks agents",
    Role.APPROVER: "viewer, and sees, approves, denies and revokes requests",
    Role.ADMIN: "everything, but for approving requests",
}


def listed(roles: tuple[Role, ...]) -> str:
    """List roles in a sentence: `viewer, auditor or admin`."""
    *most, last = roles
    return f"{', '.join(most)} or {last}" if most else str(last)
