"""Parses an agent's request to the hub: the form, and the one credential in it. Pure.

A request with two credentials is refused, whatever they are: RFC 6749 section 2.3, "The client MUST NOT use
more than one authentication method in each request".
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote_plus

import attrs

from audit.record import Kind
from proxy.hub.authorize.access import why_inactive
from proxy.hub.store.entities import Agent, Code, Credential
from proxy.message.head import Headers

# A token request has about 300 bytes, one with another issuer's token a few thousand.
FORM_BYTES_MAX = 16 * 1024
_FIELDS_MAX = 32
CLIENT_CREDENTIALS = "client_credentials"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
SUBJECT_TOKEN_TYPES = frozenset(
    {"urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:id_token"}
)
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

# One text for every reason: an unauthenticated sender must not learn which check failed.
NOT_ACCEPTED = (
    "the credential is not accepted: this hub does not know it, or it was revoked; "
    "ask the hub's operator for a code, then run `hawse login --hub {hub} --code`"
)

JSON = (b"content-type", b"application/json")
# RFC 6749 section 5.1: "The authorization server MUST include the HTTP "Cache-Control" response header
# field with a value of "no-store"", and Pragma likewise.
NO_STORE = ((b"cache-control", b"no-store"), (b"pragma", b"no-cache"))


class Answer(NamedTuple):
    """An HTTP answer without its framing, which the sender adds."""

    status: int
    headers: Headers
    body: bytes


@attrs.frozen
class Refusal(Exception):
    """A refused request: `error` and `description` for the client, `note` for the audit trail alone."""

    status: int
    error: str
    description: str
    """Empty for the common text of refused credentials (NOT_ACCEPTED)."""
    note: str
    kind: Kind = Kind.AUTH_FAILED
    agent: Agent | None = None
    credential: Credential | Code | None = None
    hub_time: str = ""
    """Set when the sender's clock is the reason, so that it can sign by the hub's time (auth.hubtime)."""

    def answer(self, hub_url: str) -> Answer:
        """The refusal as an HTTP answer; `hub_url` is the hub's configured URL."""
        extra: Headers = ()
        if self.status == 401:
            extra = ((b"www-authenticate", b'Basic realm="hawse", charset="UTF-8"'),)
        description = self.description or NOT_ACCEPTED.format(hub=hub_url)
        body = {"error": self.error, "error_description": description}
        if self.hub_time:
            body["hub_time"] = self.hub_time
        return answer_json(self.status, body, extra)


@attrs.frozen
class Secret:
    """An API key, and the agent's name; empty when only the key was sent."""

    name: str
    secret: str = attrs.field(repr=False)


@attrs.frozen
class Assertion:
    """An assertion signed by the agent's key, and the agent's name; empty when only the assertion has it."""

    name: str
    token: str = attrs.field(repr=False)


@attrs.frozen
class Subject:
    """A token of another issuer (RFC 8693), and the requested agent; empty when one agent alone matches."""

    name: str
    token: str = attrs.field(repr=False)


Shown: TypeAlias = Secret | Assertion | Subject
"""The credential of a request."""


def answer_json(status: int, body: Mapping[str, object], extra: Headers = ()) -> Answer:
    """An answer with headers that forbid caching."""
    data = json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n"
    return Answer(status, (JSON, *NO_STORE, *extra), data)


def refuse_unauthenticated(
    note: str,
    agent: Agent | None = None,
    credential: Credential | None = None,
    *,
    description: str = "",
    hub_time: str = "",
) -> Refusal:
    """The refusal of a sender that is not authenticated.

    `description` and `hub_time` reach the sender, so they must reveal no more than the holder of a valid key
    may know.
    """
    return Refusal(
        401, "invalid_client", description, note, agent=agent, credential=credential, hub_time=hub_time
    )


def refuse_inactive(agent: Agent, credential: Credential | Code | None = None) -> Refusal:
    """Refuse an authenticated agent that is not active. The message names its state."""
    return Refusal(
        403,
        "access_denied",
        why_inactive(agent),
        f"the agent is {agent.state}",
        agent=agent,
        credential=credential,
    )


def refuse_unconfirmed(
    why: str, agent: Agent | None = None, credential: Credential | Code | None = None
) -> Refusal:
    """Refuse any sender while the hub may decide nothing."""
    description = f"{why}: try again later"
    return Refusal(
        503, "temporarily_unavailable", description, description, agent=agent, credential=credential
    )


def calls_itself(hub_url: str) -> str:
    """The start of a refusal to a sender that used another name for the hub."""
    return f"this hub calls itself {hub_url}"


def malformed(error: str, description: str, hub_time: str = "") -> Refusal:
    """Refuse a request before authentication."""
    return Refusal(400, error, description, description, Kind.MALFORMED, hub_time=hub_time)


def parse_form(form: bytes, headers: Headers) -> dict[str, str]:
    """Read the form strictly: RFC 6749 section 3.2, parameters "MUST NOT be included more than once"."""
    types = values_of(headers, b"content-type")
    if len(types) != 1 or types[0].partition(b";")[0].strip().lower() != b"application/x-www-form-urlencoded":
        raise malformed("invalid_request", "the body must be application/x-www-form-urlencoded")
    if len(form) > FORM_BYTES_MAX:
        raise malformed("invalid_request", f"the body exceeds {FORM_BYTES_MAX} bytes")
    try:
        pairs = parse_qsl(
            form.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_FIELDS_MAX,
        )
    except ValueError:
        raise malformed("invalid_request", "the body is not a form") from None  # it may hold a secret
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise malformed("invalid_request", "a parameter is given more than once")
    # RFC 6749 section 3.2: "Parameters sent without a value MUST be treated as if they were omitted".
    return {name: value for name, value in fields.items() if value}


def shown_in(fields: Mapping[str, str], headers: Headers) -> Shown | None:
    """Return the credential of a token request, or None; raises Refusal for two."""
    match fields.get("grant_type"):
        case None:
            raise malformed("invalid_request", "grant_type is missing")
        case grant if grant == TOKEN_EXCHANGE:
            return _subject_in(fields, headers)
        case grant if grant != CLIENT_CREDENTIALS:
            description = f"grant_type must be {CLIENT_CREDENTIALS} or {TOKEN_EXCHANGE}"
            raise malformed("unsupported_grant_type", description)
    if "subject_token" in fields:
        raise malformed("invalid_request", f"a subject_token belongs to grant_type {TOKEN_EXCHANGE}")
    basic = basic_in(headers)
    assertion = fields.get("client_assertion")
    found = [kind for kind in (basic, fields.get("client_secret"), assertion) if kind is not None]
    if len(found) > 1:
        raise malformed("invalid_request", "more than one credential is given; show one")
    name = fields.get("client_id", "")
    if assertion is not None:
        if fields.get("client_assertion_type") != JWT_BEARER:
            raise malformed("invalid_request", f"client_assertion_type must be {JWT_BEARER}")
        return Assertion(name, assertion)
    if "client_assertion_type" in fields:
        raise malformed("invalid_request", "client_assertion_type is given, client_assertion is not")
    if basic is None:
        secret = fields.get("client_secret")
        return None if secret is None else Secret(name, secret)
    if name and name != basic.name:
        raise malformed("invalid_request", "client_id and Authorization name two agents")
    return basic


def _subject_in(fields: Mapping[str, str], headers: Headers) -> Subject:
    if values_of(headers, b"authorization") or not {"client_secret", "client_assertion"}.isdisjoint(fields):
        raise malformed("invalid_request", "more than one credential is given; show one")
    if "actor_token" in fields:
        raise malformed("invalid_request", "an actor_token is not supported: delegation is not available")
    if fields.get("requested_token_type", ACCESS_TOKEN_TYPE) != ACCESS_TOKEN_TYPE:
        raise malformed("invalid_request", f"requested_token_type must be {ACCESS_TOKEN_TYPE}")
    if "subject_token" not in fields or fields.get("subject_token_type") not in SUBJECT_TOKEN_TYPES:
        description = (
            f"subject_token is needed, and subject_token_type {' or '.join(sorted(SUBJECT_TOKEN_TYPES))}"
        )
        raise malformed("invalid_request", description)
    return Subject(fields.get("client_id", ""), fields["subject_token"])


def basic_in(headers: Headers) -> Secret | None:
    """Read `Authorization: Basic`; both halves are form-encoded (RFC 6749 section 2.3.1)."""
    value = _authorization(headers, b"basic")
    if value is None:
        return None
    try:
        name, separator, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        separator = ""
    if not separator:
        raise malformed("invalid_request", "Authorization: Basic must hold name:key in base64")
    return Secret(unquote_plus(name), unquote_plus(secret))


def bearer_in(headers: Headers) -> str | None:
    """Read `Authorization: Bearer`."""
    value = _authorization(headers, b"bearer")
    return None if value is None else value.decode("latin-1")


def values_of(headers: Headers, name: bytes) -> list[bytes]:
    """All values of a header; `name` is lower-case."""
    return [value for found, value in headers if found == name]


def _authorization(headers: Headers, scheme: bytes) -> bytes | None:
    values = values_of(headers, b"authorization")
    if len(values) > 1:
        raise malformed("invalid_request", "Authorization is given more than once")
    if not values:
        return None
    found, _, value = values[0].partition(b" ")
    return value.strip() if found.lower() == scheme else None
