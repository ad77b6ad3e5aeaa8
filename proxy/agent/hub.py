"""Asks the hub: for the agent's clusters, for a token on one of them, and to register a key.

Synchronous, by the standard library: one request, one answer, and the process ends. Redirects are not
followed, for they would carry the credential elsewhere.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import NamedTuple
from urllib.parse import urlencode

from auth.hubtime import seconds_of
from auth.principal import IdentityError, slug
from proxy.agent.account import Account, host_and_port, hub_origin
from proxy.agent.blocking_https import next_step, trusting
from proxy.agent.errors import AgentError, DeniedError, NoAnswerError, RefusedError, quoted, reason
from proxy.agent.https import SOCKET_TIMEOUT_S, https_connection
from proxy.agent.proof import proof_of
from proxy.process.untrusted_json import read_json

TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path
CLUSTERS_PATH = "/v1/clusters"
ENROL_PATH = "/v1/enrol"
ANSWER_BYTES_MAX = 1024 * 1024
# docs/security.md: "Tokens live 60 seconds". A hub that says more is not believed.
LIFETIME_MAX_S = 60
# A host has 253 characters at most, and a cluster's name 63.
HOSTS_CHARACTERS_MAX = 191
# No hub's clock shows more, in epoch seconds.
YEAR_10000_S = 253_402_300_800

# Words for a table, and ids; what else a hub says there is left out.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
_HOSTS = re.compile(r"\*(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?){2,}")


NOTHING_SAID: Mapping[str, str] = {}


class Token(NamedTuple):
    """An access token for one cluster."""

    text: str
    expires_in_s: int
    ahead_s: int = 0
    """How far this machine's clock is ahead of the hub's, where it is too far off to sign by it."""

    def __repr__(self) -> str:
        return f"Token(expires_in_s={self.expires_in_s})"


class Reach(NamedTuple):
    """Who the hub says this agent is, and which clusters it may reach."""

    agent: str
    org: str
    clusters: tuple[str, ...]
    ahead_s: int = 0
    """As the token's."""
    cluster_hosts: str | None = None
    """`*.` and a domain: a cluster's name before it is the cluster's host. None where they have none."""
    hub: str = ""
    """What the hub calls itself; empty where it does not say so."""
    key_id: str | None = None
    """As the account's."""
    teams: tuple[str, ...] = ()
    skew_s: float | None = None
    """How far this machine's clock is ahead of the hub's, as exact as the answer was fast. None: not said."""
    states: Mapping[str, str] = NOTHING_SAID
    """By the cluster: whether it can be reached."""
    may: Mapping[str, str] = NOTHING_SAID
    """By the cluster: how far the hub's policies go there."""


class _WrongClockError(AgentError):
    """The hub refuses what was signed, for the time alone, and tells its own."""

    def __init__(self, message: str, hub_time: str, seconds: int) -> None:
        super().__init__(message)
        self.hub_time = hub_time
        self.ahead_s = round(time.time() - seconds)


def fetch_token(account: Account, cluster: str) -> Token:
    """Get a fresh token for the cluster. Raises AgentError."""
    return _fetch_token(account, {"audience": cluster})


def fetch_reach(account: Account) -> Reach:
    """Get the agent's name and its clusters, which also proves its credential. Raises AgentError."""
    bearer, ahead_s = account.api_key, 0
    if bearer is None:
        bearer, _, ahead_s = _fetch_token(account, {"resource": account.hub})
    asked_s = time.time()
    answer = _ask(account, "GET", CLUSTERS_PATH, {"authorization": f"Bearer {bearer}"}, None)
    halfway_s = (asked_s + time.time()) / 2
    try:
        entries = answer["clusters"]
        if not isinstance(entries, list):
            raise TypeError
        # Names go into a kubeconfig: the hub is not trusted to have refused the hostile ones.
        return Reach(
            slug("agent name", str(answer["agent"])),
            slug("organisation", str(answer["org"])),
            tuple(slug("cluster name", str(entry["name"])) for entry in entries),
            ahead_s,
            _cluster_hosts(answer.get("cluster_hosts"), account.hub),
            _own_name(answer.get("hub")),
            _word(answer.get("credential")) or None,
            tuple(filter(None, map(_word, _list(answer.get("teams"))))),
            _skew_s(answer.get("now"), halfway_s),
            _words(entries, "state"),
            _words(entries, "may"),
        )
    except (LookupError, TypeError) as error:
        raise AgentError(f"{account.hub} answered without a list of clusters: is it a Hawse hub?") from error
    except IdentityError as error:
        raise AgentError(f"{account.hub} answered with a name that is refused: {error}") from error


def _own_name(said: object) -> str:
    try:
        return hub_origin(said) if isinstance(said, str) else ""
    except AgentError:
        return ""


def _skew_s(said: object, now_s: float) -> float | None:
    # In JSON a number may also be infinite, none, or too long for a float.
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not 0 <= said < YEAR_10000_S:
        return None
    return now_s - said


def _word(said: object) -> str:
    return said if isinstance(said, str) and _WORD.fullmatch(said) else ""


def _list(said: object) -> list[object]:
    return said if isinstance(said, list) else []


def _words(entries: list[dict[str, object]], field: str) -> dict[str, str]:
    """A word of each cluster that has one; hubs of an earlier version say none."""
    return {str(entry["name"]): word for entry in entries if (word := _word(entry.get(field)))}


def _cluster_hosts(said: object, hub: str) -> str | None:
    if said is None:
        return None
    if not isinstance(said, str) or len(said) > HOSTS_CHARACTERS_MAX or _HOSTS.fullmatch(said) is None:
        raise AgentError(f"{hub} answered with hosts of its clusters that are refused: is it a Hawse hub?")
    return said


def register_key(account: Account, code: str, jwk: Mapping[str, str], prove: Callable[[str], str]) -> str:
    """Register a public key at the hub by a one-time code; returns the agent's name. Raises AgentError.

    `prove` signs, by the time that the hub has told if it is not empty.
    """

    def form(hub_time: str) -> Mapping[str, str]:
        return {"code": code, "jwk": json.dumps(jwk), "proof": prove(hub_time)}

    answer, _ = _post_signed(account, ENROL_PATH, form, status=201)
    try:
        return slug("agent name", str(answer["agent"]))
    except (LookupError, IdentityError) as error:
        raise AgentError(f"{account.hub} answered without an agent's name: is it a Hawse hub?") from error


def _fetch_token(account: Account, target: Mapping[str, str]) -> Token:
    answer, ahead_s = _post_signed(
        account, TOKEN_PATH, lambda hub_time: {**target, **proof_of(account, hub_time)}
    )
    token, expires_in_s = answer.get("access_token"), answer.get("expires_in")
    if (
        not isinstance(token, str)
        or not token
        or not token.isascii()
        or not token.isprintable()
        or not isinstance(expires_in_s, int)
        or not 0 < expires_in_s <= LIFETIME_MAX_S
    ):
        raise AgentError(f"{account.hub} answered without a usable token: is it a Hawse hub?")
    return Token(token, expires_in_s, ahead_s)


def _post_signed(
    account: Account, path: str, form: Callable[[str], Mapping[str, str]], *, status: int = 200
) -> tuple[dict[str, object], int]:
    """Post a form that is made by our clock, or once more by the hub's where that alone was wrong with it.

    Returns how far our clock is ahead of the hub's as well, 0 when the hub did not mind.
    """
    try:
        return _post(account, path, form(""), status=status), 0
    except _WrongClockError as error:
        if account.private_key_pem is None:
            raise  # nothing of it is signed here
        wrong = error
    return _post(account, path, form(wrong.hub_time), status=status), wrong.ahead_s


def _post(account: Account, path: str, form: Mapping[str, str], *, status: int = 200) -> dict[str, object]:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return _ask(account, "POST", path, headers, urlencode(form).encode("ascii"), status)


def _ask(
    account: Account,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | None,
    good: int = 200,
) -> dict[str, object]:
    host, port = host_and_port(account.hub)
    try:
        context = trusting(account.ca_pem)
    except ValueError as error:
        raise AgentError("the stored CA is no certificate: run `hawse login` again with --ca FILE") from error
    connection, through = https_connection(host, port, context)
    try:
        connection.request(
            method,
            path,
            body,
            {"accept": "application/json", "user-agent": "hawse", "connection": "close", **headers},
        )
        response = connection.getresponse()
        status, raw = response.status, response.read(ANSWER_BYTES_MAX + 1)
    except ssl.SSLCertVerificationError as error:
        give = f"give the hub's CA by `hawse login --hub {account.hub} --ca FILE`"
        if account.ca_pem is not None:
            give = (
                "the CA that `hawse login` was given did not sign it: is this the right hub? Its operator "
                "prints the CA by `hawse admin hub ca`: "
                f"run `hawse login --hub {account.hub} --ca FILE` with it"
            )
        raise AgentError(
            f"the certificate of {account.hub} is not trusted ({error.verify_message}): "
            f"{next_step(error, give)}"
        ) from error
    except TimeoutError as error:
        raise NoAnswerError(
            f"{account.hub} did not answer{through} within {SOCKET_TIMEOUT_S:.0f} s: try again"
        ) from error
    except (OSError, HTTPException) as error:
        raise NoAnswerError(f"cannot reach {account.hub}{through}: {reason(error)}") from error
    finally:
        connection.close()
    return _read_answer(account.hub, status, raw, good)


def _read_answer(hub: str, status: int, raw: bytes, good: int) -> dict[str, object]:
    if len(raw) > ANSWER_BYTES_MAX:
        raise AgentError(f"{hub} answered with more than {ANSWER_BYTES_MAX} bytes: is it a Hawse hub?")
    try:
        answer = read_json(raw)
    except ValueError:
        answer = None
    if status != good:
        message = f"{hub} answered {status}: {_why(status, answer)}"
        hub_time = answer.get("hub_time") if isinstance(answer, dict) else None
        if isinstance(hub_time, str) and (seconds := seconds_of(hub_time)) is not None:
            raise _WrongClockError(message, hub_time, seconds)
        # Whoever is in between may say 401 as well, but not in this form.
        if status == 401 and isinstance(answer, dict) and answer.get("error") == "invalid_client":
            raise RefusedError(message)
        if status in {400, 403} and isinstance(answer, dict) and "error" in answer:
            raise DeniedError(message)
        raise AgentError(message)
    if not isinstance(answer, dict):
        raise AgentError(f"{hub} answered with no JSON object: is it a Hawse hub?")
    return answer


def _why(status: int, answer: object) -> str:
    """What an answer says of a request that it refuses."""
    if isinstance(answer, dict):
        if isinstance(said := answer.get("error_description"), str):
            return quoted(said)
        # Of what is not about the agent a hub speaks as an API server does. One that asks for another
        # credential is an API server.
        if answer.get("kind") == "Status" and isinstance(said := answer.get("message"), str):
            return f"{quoted(said)}: is it a Hawse hub?" if status in {401, 403} else quoted(said)
    return "is it a Hawse hub?"
