"""Maps a token of another issuer to an agent, by the federation rules.

A token that matches no rule is refused like any other credential. The audit trail records which check failed:
an operator who writes a rule needs that, and the sender must not learn it.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from auth.federation import issuer_and_kid, verify_subject
from auth.jws import Claims, TokenError
from proxy.hub.identity.issuers import IssuerKeys, IssuerUnavailable
from proxy.hub.identity.oauth import Refusal, Subject, refuse_inactive, refuse_unauthenticated
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Agent, FederationRule, Issuer
from proxy.hub.store.names import shown

# The same answer whichever check failed, since the sender has proved nothing.
NO_RULE = (
    "the platform's token is not accepted: no federation rule of this hub fits it; "
    "the hub's operator finds out why by `hawse audit list --kind auth.failed`"
)
# Rules whose first failed condition is listed in one event.
_FAULTS_TOLD_MAX = 8


@attrs.frozen
class Federated:
    """Verifies tokens of other issuers."""

    directory: Directory
    keys: IssuerKeys
    clock: Callable[[], float]

    async def authenticate(self, subject: Subject) -> tuple[Agent, FederationRule]:
        """Return the token's agent and the rule that matched; raises Refusal.

        May wait for a fetch of the issuer's keys. The directory is read after that.
        """
        try:
            url, kid = issuer_and_kid(subject.token)
            issuer = self.directory.current.issuers_by_url.get(url)
            if issuer is None:
                raise TokenError(f"no rule names the issuer {shown(url)}")
            claims = await self._verified(subject.token, issuer, kid)
            if self.directory.current.issuers_by_url.get(url) != issuer:
                # The issuer may have been removed because of these keys, so do not trust them under the
                # current rules.
                raise TokenError(f"the issuer {shown(url)} was removed while its keys were fetched")
        except TokenError as error:
            raise refuse_unauthenticated(f"subject token: {error.reason}", description=NO_RULE) from None
        except IssuerUnavailable as error:
            description = "the keys of the token's issuer cannot be had at the moment: try again"
            raise Refusal(503, "temporarily_unavailable", description, str(error)) from error
        return self._fitting(subject, issuer, claims)

    async def _verified(self, token: str, issuer: Issuer, kid: str) -> Claims:
        key = await self.keys.find(issuer, kid)
        if key is None:
            raise TokenError("it is signed by a key that its issuer does not publish")
        return verify_subject(token, key, issuer=issuer.url, now=self.clock())

    def _fitting(self, subject: Subject, issuer: Issuer, claims: Claims) -> tuple[Agent, FederationRule]:
        fitting: dict[str, tuple[Agent, FederationRule]] = {}
        faults: list[str] = []
        for agent, found in self.directory.current.rules_by_issuer.get(issuer.url, ()):
            fault = found.rule.mismatch(claims)
            if fault is None:
                fitting.setdefault(agent.name, (agent, found))
            elif len(faults) < _FAULTS_TOLD_MAX:
                faults.append(f"{fault} is not {agent.name}'s")
        whose = f"subject token of {shown(str(claims.get('sub', '')))}"
        if not fitting:
            note = f"{whose} fits no rule: {', '.join(faults) or 'there is none'}"
            raise refuse_unauthenticated(note, description=NO_RULE)
        if subject.name:
            if subject.name not in fitting:
                raise refuse_unauthenticated(
                    f"{whose} is not agent {shown(subject.name)}", description=NO_RULE
                )
            agent, found = fitting[subject.name]
        elif len(fitting) > 1:
            description = (
                "the token is more than one agent's: name one by `hawse login --agent NAME` (client_id)"
            )
            raise refuse_unauthenticated(
                f"{whose} fits {len(fitting)} agents, and names none", description=description
            )
        else:
            [(agent, found)] = fitting.values()
        if not agent.active:
            raise refuse_inactive(agent, found)
        return agent, found
