"""The store's federation: trusted issuers, and the rules that map their tokens to agents.

An issuer exists as long as a rule uses it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import attrs
import sqlalchemy as sa

from auth.federation import Rule, RuleError, check_rule, parse_jwks
from auth.keys import KeyFormatError
from proxy.hub.store.database import Database, among, find_agent, new_id, select_as_text
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError
from proxy.hub.store.entities import Agent, FederationRule, Issuer
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.names import PEM_LENGTH_MAX, check_https_url, shown
from proxy.process.untrusted_json import read_json

RULES_PER_AGENT_MAX = 16
# The hub may fetch keys from each issuer, and trusts each.
ISSUERS_MAX = 64
JWKS_LENGTH_MAX = 256 * 1024


@attrs.frozen
class NewIssuer:
    """An issuer as an operator describes it."""

    url: str
    jwks_url: str | None = None
    jwks: str | None = None
    ca_pem: str | None = None
    address_private: bool = False


class Federation(Database):
    """Issuers and rules."""

    def add_federation(
        self, agent: str, issuer: NewIssuer, *, audience: str, claims: Mapping[str, str], mutable: bool
    ) -> str:
        """Map an issuer's tokens with these claims to an agent, and return the rule's id.

        The description of an existing issuer must match. `mutable` accepts claims whose values may pass to
        another workload later. Raises InvalidError, NotFoundError, ConflictError.
        """
        _check_issuer(issuer)
        try:
            check_rule(audience, claims, mutable=mutable)
        except RuleError as error:
            raise InvalidError(str(error)) from error
        with self._change() as connection:
            agent_id = str(find_agent(connection, agent).id)
            rules = t.federation_rules
            mine = sa.select(sa.func.count()).select_from(rules).where(rules.c.agent_id == agent_id)
            count = connection.scalar(mine)
            if count is not None and count >= RULES_PER_AGENT_MAX:
                raise ConflictError(f"agent {agent} has {count} rules, the most it may have")
            issuer_id = self._issuer(connection, issuer)
            rule_id = new_id()
            connection.execute(
                sa.insert(rules).values(
                    id=rule_id,
                    issuer_id=issuer_id,
                    agent_id=agent_id,
                    audience=audience,
                    claims=dict(claims),
                    created_at=self._clock(),
                )
            )
            return rule_id

    def remove_federation(self, rule_id: str) -> None:
        """Remove a rule, and its issuer with the last one; raises NotFoundError."""
        rules = t.federation_rules
        with self._change() as connection:
            if not connection.execute(sa.delete(rules).where(rules.c.id == rule_id)).rowcount:
                raise NotFoundError(
                    f"there is no federation rule {shown(rule_id)}: "
                    "`hawse admin federation list` lists the existing ones"
                )
            drop_unused_issuers(connection)

    def _issuer(self, connection: sa.Connection, new: NewIssuer) -> str:
        issuers = t.federation_issuers
        found = connection.execute(sa.select(issuers).where(issuers.c.url == new.url)).first()
        if found is not None:
            if new not in (_described(found), NewIssuer(new.url)):
                raise ConflictError(
                    f"issuer {shown(new.url)} exists with another CA, JWKS or address rule: leave those "
                    "options out to use it as it is, or remove its rules first"
                )
            return str(found.id)
        count = connection.scalar(sa.select(sa.func.count()).select_from(issuers))
        if count is not None and count >= ISSUERS_MAX:
            raise ConflictError(f"there are {count} issuers, the most that a hub may trust")
        issuer_id = new_id()
        connection.execute(
            sa.insert(issuers).values(id=issuer_id, created_at=self._clock(), **attrs.asdict(new))
        )
        return issuer_id


def drop_unused_issuers(connection: sa.Connection) -> None:
    """Remove the issuers that no rule uses."""
    used = sa.select(t.federation_rules.c.issuer_id)
    connection.execute(sa.delete(t.federation_issuers).where(t.federation_issuers.c.id.not_in(used)))


def read_issuers(connection: sa.Connection) -> dict[str, Issuer]:
    """The issuers by id."""
    rows = connection.execute(sa.select(t.federation_issuers))
    return {row.id: Issuer(row.id, **attrs.asdict(_described(row))) for row in rows}


def read_rules(
    connection: sa.Connection,
    issuers: Mapping[str, Issuer],
    by_agent: Mapping[str, Agent],
    faults: list[str],
    only: Collection[str] | None = None,
) -> list[tuple[Agent, FederationRule]]:
    """The rules of all agents or of some."""
    return [
        (by_agent[rule.agent_id], rule)
        for rule in _rules(connection, issuers, faults, only)
        if rule.agent_id in by_agent
    ]


def by_issuer(
    rules: Iterable[tuple[Agent, FederationRule]],
) -> dict[str, tuple[tuple[Agent, FederationRule], ...]]:
    """Group rules by the URL of their issuer, the oldest first."""
    by_url: dict[str, list[tuple[Agent, FederationRule]]] = {}
    for agent, rule in sorted(rules, key=lambda pair: (pair[1].created_at, pair[1].id)):
        by_url.setdefault(rule.issuer.url, []).append((agent, rule))
    return {url: tuple(found) for url, found in by_url.items()}


def _rules(
    connection: sa.Connection,
    issuers: Mapping[str, Issuer],
    faults: list[str],
    only: Collection[str] | None,
) -> Iterator[FederationRule]:
    query = select_as_text(t.federation_rules, "claims").where(among(t.federation_rules.c.agent_id, only))
    for row in connection.execute(query):
        try:
            claims = read_json(row.claims)
            if not isinstance(claims, dict) or not all(isinstance(v, str) for v in claims.values()):
                raise RuleError("its claims are not a map of strings")
            # Mutable claims were accepted when the rule was made.
            check_rule(row.audience, claims, mutable=True)
        except (RuleError, ValueError) as error:
            faults.append(f"federation rule {row.id} is invalid: {error}")
            continue
        rule = Rule(row.audience, claims)
        yield FederationRule(row.id, row.agent_id, issuers[row.issuer_id], rule, row.created_at)


def _described(row: sa.Row[tuple[object, ...]]) -> NewIssuer:
    return NewIssuer(row.url, row.jwks_url, row.jwks, row.ca_pem, row.address_private)


def _check_issuer(issuer: NewIssuer) -> None:
    # An issuer with fixed keys need not be reachable, and that of Kubernetes often is not.
    check_https_url("issuer", issuer.url, private=issuer.address_private or issuer.jwks is not None)
    if issuer.jwks_url is not None:
        check_https_url("JWKS URL", issuer.jwks_url, private=issuer.address_private)
    if issuer.jwks is not None:
        if issuer.jwks_url is not None or issuer.ca_pem is not None or issuer.address_private:
            raise InvalidError("with a JWKS file nothing is fetched: leave out JWKS URL, CA and address rule")
        if len(issuer.jwks) > JWKS_LENGTH_MAX:
            raise InvalidError(f"the JWKS exceeds {JWKS_LENGTH_MAX} characters")
        try:
            parse_jwks(issuer.jwks)
        except KeyFormatError as error:
            raise InvalidError(f"the JWKS: {error}") from error
    if issuer.ca_pem is not None and len(issuer.ca_pem) > PEM_LENGTH_MAX:
        raise InvalidError(f"the issuer's CA exceeds {PEM_LENGTH_MAX} characters")
