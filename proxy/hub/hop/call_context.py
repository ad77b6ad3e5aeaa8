"""What the hub that has decided a call says of it to the hub that has the relay's session.

It is a context of the link, in the group of the agent, once for each agent, session and version of the
directory. Each OPEN under it is a call: its head is for the relay, and the second hub does not read it.

The principal is stated whole. The second hub mints the relay's token, and must not give an agent more than
the first hub decided by, nor more than its own snapshot has. With the teams' names it can check both, also
while one of the hubs has not applied a change yet. A digest would only allow it to refuse.
"""

from __future__ import annotations

import json

import attrs

from auth.principal import IdentityError, Principal
from proxy.hub.peers.link import read_object

# Of a version of the directory: PostgreSQL's bigint.
VERSION_MAX = 2**63 - 1


class BadContextError(Exception):
    """A context that no hub of this version sends."""


@attrs.frozen
class CallContext:
    """The agent and the session of forwarded calls."""

    session: str
    """The id of the relay's session at the second hub."""
    cluster: str
    """The cluster's id."""
    principal: Principal
    version: int
    """The number of the directory's version that the first hub had then."""

    def encode(self) -> bytes:
        """Return the context's payload: 4.4 KiB with the most and longest teams, and 8 KiB may be sent."""
        principal = self.principal
        return json.dumps(
            {
                "session": self.session,
                "cluster": self.cluster,
                "version": self.version,
                "agent": principal.agent_id,
                "name": principal.name,
                "org": principal.org,
                "teams": principal.teams,
            },
            separators=(",", ":"),
        ).encode("ascii")

    @classmethod
    def decode(cls, payload: bytes) -> CallContext:
        """Read a payload; raises BadContextError. Unknown keys are ignored: a later hub may send some."""
        try:
            stated = read_object(payload)
        except ValueError as error:
            raise BadContextError(f"it cannot be read: {error}") from error
        texts = [stated.get(key) for key in ("session", "cluster", "agent", "name", "org")]
        teams, version = stated.get("teams"), stated.get("version")
        if (
            not all(isinstance(text, str) for text in texts)
            or not isinstance(teams, list)
            or not all(isinstance(team, str) for team in teams)
            or type(version) is not int
            or not 0 <= version <= VERSION_MAX
        ):
            raise BadContextError("a key is missing, or has a wrong type")
        session, cluster, agent_id, name, org = map(str, texts)
        try:
            principal = Principal(agent_id, name, org, tuple(teams))
        except IdentityError as error:
            raise BadContextError(str(error)) from error
        return cls(session, cluster, principal, version)
