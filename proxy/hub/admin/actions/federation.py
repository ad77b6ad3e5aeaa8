"""Actions on federation: rules that map other issuers' tokens to agents."""

from __future__ import annotations

import attrs
import msgspec

from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.certificates import check_certificates
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.store.directory import Changes
from proxy.hub.store.entities import Agent, FederationRule, Snapshot
from proxy.hub.store.federation import NewIssuer
from proxy.hub.store.roles import Role


class RuleListing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    agent: str | None = None
    """Only rules for this agent."""


class NewFederation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuer: str
    agent: str
    claims: dict[str, str]
    audience: str | None = None
    """The audience of the issuer's tokens; the hub's own URL by default."""
    jwks_url: str | None = None
    jwks: str | None = None
    ca_pem: str | None = None
    address_private: bool = False
    mutable_claims: bool = False


@attrs.frozen
class FederationActions:
    """The rules of federation."""

    directory: Changes
    public_url: str

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb("GET", "/v1/federation", "list", "federation", Role.VIEWER, query=RuleListing)
    async def list_all(self, listing: RuleListing) -> Done:
        """List the rules that map other issuers' tokens to agents."""
        rules = [pair for pairs in self._now.rules_by_issuer.values() for pair in pairs]
        ids = None
        if listing.agent is not None:
            agent = known(self._now.agents_by_name, "agent", listing.agent)
            rules = [pair for pair in rules if pair[0].id == agent.id]
            ids = [rule.id for _, rule in rules]
        used = await self.directory.read(lambda store: store.last_used(ids))
        rules.sort(key=lambda pair: (pair[0].name, pair[1].created_at))
        return Done({"rules": [_rule(agent, rule, used.get(rule.id)) for agent, rule in rules]})

    @verb("POST", "/v1/federation", "create", "federation", Role.ADMIN, body=NewFederation)
    async def add(self, new: NewFederation) -> Done:
        """Map an issuer's tokens with exactly these claims to an agent."""
        check_certificates("ca_pem", new.ca_pem)
        issuer = NewIssuer(new.issuer, new.jwks_url, new.jwks, new.ca_pem, new.address_private)
        audience = self.public_url if new.audience is None else new.audience
        rule_id = await self.directory.change(
            lambda store: store.add_federation(
                new.agent, issuer, audience=audience, claims=new.claims, mutable=new.mutable_claims
            )
        )
        [(agent, rule)] = [p for p in self._now.rules_by_issuer[new.issuer] if p[1].id == rule_id]
        note = f"id={rule_id} agent={agent.name} claims={','.join(sorted(new.claims))}"
        return Done(_rule(agent, rule, None), created=True, note=f"{note} mutable={new.mutable_claims}")

    @verb("DELETE", "/v1/federation/{name}", "delete", "federation", Role.ADMIN, revokes=True)
    async def remove(self, rule_id: str) -> Done:
        """Remove a rule; tokens that were issued by it are refused at once."""
        await self.directory.change(lambda store: store.remove_federation(rule_id))
        return Done({"removed": rule_id}, note=f"id={rule_id}")


def _rule(agent: Agent, found: FederationRule, last_used_at: float | None) -> Payload:
    return {
        "id": found.id,
        "agent": agent.name,
        "issuer": found.issuer.url,
        "audience": found.rule.audience,
        "claims": dict(found.rule.claims),
        "keys": "given" if found.issuer.jwks is not None else found.issuer.jwks_url or "discovered",
        "address_private": found.issuer.address_private,
        "created_at": time_text(found.created_at),
        "last_used_at": time_text(last_used_at),
    }
