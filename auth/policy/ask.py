"""What a rule with the effect `ask` asks for: who may approve, and how long a call waits."""

from __future__ import annotations

from typing import Final

import attrs

from auth.policy.patterns import Names
from auth.requestinfo import RequestInfo

# Balancers and proxies cut a silent request after 60 s.
WAIT_S_MAX: Final = 55
WAIT_S: Final = 45
VALID_FOR_S: Final = 15 * 60
# A request lives this long at most, so an approval cannot be used later.
VALID_FOR_S_MAX: Final = 60 * 60

# One approval is enough, so a longer list is a group's.
APPROVERS_MAX: Final = 64
# As long as an agent's owner.
PERSON_CHARACTERS_MAX: Final = 254

# Approvers that are no person's name.
OWNER: Final = "owner"
NOT_OWNER: Final = "!owner"
ANY_PERSON: Final = "any"

# The API groups of Kubernetes 1.37 that kube-apiserver itself serves, and for which it honours `dryRun`. An
# aggregated API, such as metrics.k8s.io, may ignore it and write. The reviews of authentication.k8s.io and
# authorization.k8s.io take effect by their answer, which a dry run has too.
TRUSTED_DRY_RUN_GROUPS: Final = frozenset(
    {
        *("", "admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "apps"),
        *("autoscaling", "batch", "certificates.k8s.io", "coordination.k8s.io", "discovery.k8s.io"),
        *("events.k8s.io", "flowcontrol.apiserver.k8s.io", "internal.apiserver.k8s.io"),
        *("lifecycle.k8s.io", "networking.k8s.io", "node.k8s.io", "policy", "rbac.authorization.k8s.io"),
        *("resource.k8s.io", "scheduling.k8s.io", "storage.k8s.io", "storagemigration.k8s.io"),
    }
)
# In these groups, the subresources that are written as objects are. A later one may act on a dry run, as
# `token` does.
TRUSTED_DRY_RUN_SUBRESOURCES: Final = frozenset(
    {
        *("", "approval", "binding", "ephemeralcontainers", "eviction", "finalize", "resize", "scale"),
        "status",
    }
)


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
    """Whether an approval may cover later bytes that nobody sees: exec with stdin, attach, port-forward."""
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

    def trusts(self, info: RequestInfo) -> bool:
        """Whether the request is a dry run that certainly writes nothing, so that no approval is needed."""
        return info.dry_run and self.honours_dry_run(info)

    def honours_dry_run(self, info: RequestInfo) -> bool:
        """Whether the API that the request is for certainly honours `dryRun` for it."""
        if info.group in TRUSTED_DRY_RUN_GROUPS:
            return info.subresource in TRUSTED_DRY_RUN_SUBRESOURCES
        return self.knows_api(info)

    def knows_api(self, info: RequestInfo) -> bool:
        """Whether the API is one of Kubernetes, or one that the rule names in `dryRun`."""
        if info.group in TRUSTED_DRY_RUN_GROUPS:
            return info.is_resource
        return self.dry_run is not None and info.group in self.dry_run


def wrong_approver(name: str) -> str:
    """Return what is wrong with an approver; empty for a person, OWNER, NOT_OWNER and ANY_PERSON."""
    expected = f"name a person, {OWNER}, {NOT_OWNER} or {ANY_PERSON}"
    if name.startswith("group:"):
        return f"is refused for now: {expected}"
    if name in {OWNER, NOT_OWNER, ANY_PERSON}:
        return ""
    # A misspelt word would be the name of no existing person.
    if not name or name.startswith("!") or name.lower() in {OWNER, ANY_PERSON, "*"}:
        return f"is no approver: {expected}"
    return ""


def wrong_person(name: str) -> str:
    """Return what is wrong with the name of a person who approves; empty if it is valid."""
    if name in {OWNER, NOT_OWNER, ANY_PERSON}:
        return "is a word of policies, and no person's name"
    return wrong_approver(name)
