"""What a rule with the effect `ask` asks for: who may approve, and how long a call waits."""

from __future__ import annotations

from typing import Final

import attrs

from auth.policy.patterns import Names

# Balancers and proxies cut a silent request after 60 s.
WAIT_S_MAX: Final = 55
WAIT_S: Final = 45
VALID_FOR_S: Final = 15 * 60
# A request lives this long at most, so an approval cannot be used later.
VALID_FOR_S_MAX: Final = 60 * 60

# Approvers that are no person's name.
OWNER: Final = "owner"
NOT_OWNER: Final = "!owner"
ANY_PERSON: Final = "any"


@attrs.frozen
class Ask:
    """The field `ask` of a rule."""

    approvers: tuple[str, ...]
    """Persons, as in `token add --person`, or OWNER, NOT_OWNER, ANY_PERSON. One of them is enough."""
    wait_s: int = WAIT_S
    """How long a call waits for the approval; with 0 it is refused at once, and repeated later."""
    valid_for_s: int = VALID_FOR_S
    """How long after the approval the call may be made."""
    interactive: bool = False
    """Whether calls may be approved whose later bytes are not seen: exec with stdin, attach, port-forward."""
    dry_run: Names | None = None
    """The API groups, beside the built-in ones, whose dry runs are trusted not to write."""
    show_env: bool = False
    """Whether the preview shows the values of containers' `env`."""

    def may_approve(self, person: str, owner: str) -> bool:
        """Return whether this person may approve a call of an agent with this owner. Names match exactly."""
        if not person:
            return False
        if NOT_OWNER in self.approvers and person == owner:
            return False
        return (
            person in self.approvers
            or ANY_PERSON in self.approvers
            or (OWNER in self.approvers and person == owner)
            or (NOT_OWNER in self.approvers and person != owner)
        )
