"""The identity of an agent: its name, organisation and teams, and the syntax that every name must follow.

Names become a Kubernetes user and its groups. So an invalid name is refused; it is never repaired, trimmed or
case-folded. This is checked at enrolment, when a token is minted, and again at the relay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

USER_PREFIX = "agent:"
# The length of a DNS label: names also appear in file names, labels and headers.
SLUG_LENGTH_MAX = 63
# Far above any real agent. It bounds the header block that the relay writes for each request.
TEAMS_MAX = 64

# `re.fullmatch` without `$`: re.match("^[a-z]+$", "a\n") matches. The class lists ASCII letters, so no
# look-alike passes and later becomes `system` through an upper() or NFKC.
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# With Hawse's separators these could be read as Kubernetes' own groups (`system:masters`).
_RESERVED = frozenset({"system", "kubernetes"})


class IdentityError(Exception):
    """A name, user or group that is not allowed to act; the message names it and says why."""


def slug(kind: str, value: str) -> str:
    """Return `value` if it is a valid name; raises IdentityError with its kind otherwise.

    `kind` is for the error message: "agent name", "team", "organisation", "cluster name".
    """
    if _SLUG.fullmatch(value) is None:
        # ascii(), because the value may contain newlines or escape sequences for a terminal.
        shown = ascii(value)[:80]
        raise IdentityError(
            f"{kind} {shown} is not valid: 1 to {SLUG_LENGTH_MAX} of a-z, 0-9 and '-', "
            "with a letter or digit at both ends"
        )
    if value in _RESERVED:
        raise IdentityError(f"{kind} '{value}' is reserved")
    return value


def check_user(user: str) -> str:
    """Return `user` if it is `agent:<name>`; raises IdentityError otherwise (empty, `system:*`, …)."""
    if not user.strip():
        # kube-apiserver ignores impersonation if the user is empty: the request would run as the relay.
        raise IdentityError("the user is empty")
    if not user.startswith(USER_PREFIX):
        raise IdentityError(
            f"user {ascii(user)[:80]} is not an agent: it does not start with '{USER_PREFIX}'"
        )
    slug("agent name", user.removeprefix(USER_PREFIX))
    return user


def check_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """Return `groups` if there is at least one and each is `<org>/<team>`; raises IdentityError otherwise."""
    if not groups:
        # kube-apiserver refuses groups without a user. With neither, the request runs as the relay.
        raise IdentityError("there is no group: at least one is always sent")
    if len(groups) > TEAMS_MAX:
        raise IdentityError(f"{len(groups)} groups exceed the {TEAMS_MAX} that an agent may have")
    for group in groups:
        org, separator, team = group.partition("/")
        if not separator:
            raise IdentityError(f"group {ascii(group)[:80]} is not '<organisation>/<team>'")
        slug("organisation", org)
        slug("team", team)
    if len(set(groups)) != len(groups):
        raise IdentityError("a group is listed twice")
    return tuple(groups)


def _validate_agent_id(_: object, __: object, value: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9-]{1,64}", value) is None:
        raise IdentityError(f"agent id {ascii(value)[:80]} is not valid")


@attrs.frozen
class Principal:
    """The identity of an agent, with valid names.

    Raises IdentityError if it is constructed with an invalid name.
    """

    agent_id: str = attrs.field(validator=_validate_agent_id)
    name: str = attrs.field(validator=lambda _, __, value: slug("agent name", value) and None)
    org: str = attrs.field(validator=lambda _, __, value: slug("organisation", value) and None)
    teams: tuple[str, ...]
    # Stored, since every request reads both and they never change.
    user: str = attrs.field(init=False, eq=False, repr=False)
    groups: tuple[str, ...] = attrs.field(init=False, eq=False, repr=False)

    @user.default
    def _derive_user(self) -> str:
        return f"{USER_PREFIX}{self.name}"

    @groups.default
    def _derive_groups(self) -> tuple[str, ...]:
        return tuple(f"{self.org}/{team}" for team in self.teams)

    @groups.validator
    def _validate_groups(self, _: object, value: tuple[str, ...]) -> None:
        check_groups(value)
