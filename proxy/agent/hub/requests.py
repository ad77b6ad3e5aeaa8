"""Requests to the hub: the agent's clusters, a token for one of them, and the registration of a key.

Synchronous: one request, one answer, and the process ends. Redirects are not followed, since they would send
the credential elsewhere. kubectl waits for a token, so each import that a token does not need is inside its
function: attrs alone, below auth.principal, loads for 10 ms.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from proxy.agent.https.blocking import next_step, trusting
from proxy.agent.https.connection import SOCKET_TIMEOUT_S, https_connection
from proxy.agent.hub.proof import proof_of
from proxy.agent.local.account import Account, host_and_port, hub_origin
from proxy.agent.local.errors import AgentError, DeniedError, NoAnswerError, RefusedError, quoted, reason
from proxy.process.untrusted_json import read_json

TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path
CLUSTERS_PATH = "/v1/clusters"
ENROL_PATH = "/v1/enrol"
ANSWER_BYTES_MAX = 1024 * 1024
# docs/security.md: "Tokens live 60 seconds". An answer with a longer life is rejected.
LIFETIME_MAX_S = 60
# A host name has at most 253 characters, and a cluster's name 63.
HOSTS_CHARACTERS_MAX = 191
# The upper bound for a hub's clock, in epoch seconds.
YEAR_10000_S = 253_402_300_800

# RFC 3986 section 2.3.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Words for a table, and ids. Other values from the hub are dropped.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
_HOSTS = re.compile(r"\*(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?){2,}")


NO_VALUES: Mapping[str, str] = {}


class Token(NamedTuple):
    """An access token for one cluster."""

    text: str
    expires_in_s: int
    ahead_s: int = 0
    """This machine's clock minus the hub's. 0 unless the hub rejected a signature for its time."""

    def __repr__(self) -> str:
        return f"Token(expires_in_s={self.expires_in_s})"


class Reach(NamedTuple):
    """The hub's view of this agent: its name and the clusters that it may reach."""

    agent: str
    org: str
    clusters: tuple[str, ...]
    ahead_s: int = 0
    """As in Token."""
    cluster_hosts: str | None = None
    """`*.` and a domain: a cluster's host is its name and that domain. None if clusters have no hosts."""
    hub: str = ""
    """The hub's own URL; empty if the hub does not state it."""
    key_id: str | None = None
    """As in Account."""
    teams: tuple[str, ...] = ()
    skew_s: float | None = None
    """This machine's clock minus the hub's, as exact as the answer was fast. None if not stated."""
    states: Mapping[str, str] = NO_VALUES
    """By cluster: whether it can be reached."""
    may: Mapping[str, str] = NO_VALUES
    """By cluster: how much the hub's policies allow there."""


class _WrongClockError(AgentError):
    """The hub rejected a signature only because of its time, and stated the hub's time."""

    def __init__(self, message: str, hub_time: str, seconds: int) -> None:
        super().__init__(message)
        self.hub_time = hub_time
        self.ahead_s = round(time.time() - seconds)


def fetch_token(account: Account, cluster: str) -> Token:
    """Get a fresh token for the cluster. Raises AgentError."""
    return _fetch_token(account, {"audience": cluster})


def fetch_reach(account: Account) -> Reach:
    """Get the agent's name and clusters; this also proves its credential. Raises AgentError."""
    from auth.principal import IdentityError, slug

    bearer, ahead_s = account.api_key, 0
    if bearer is None:
        bearer, _, ahead_s = _fetch_token(account, {"resource": account.hub})
    sent_s = time.time()
    answer = _request(account, "GET", CLUSTERS_PATH, {"authorization": f"Bearer {bearer}"}, None)
    midpoint_s = (sent_s + time.time()) / 2
    try:
        entries = answer["clusters"]
        if not isinstance(entries, list):
            raise TypeError
        # Names go into a kubeconfig. Check them here too: the hub is not trusted for that.
        return Reach(
            slug("agent name", str(answer["agent"])),
            slug("organisation", str(answer["org"])),
            tuple(slug("cluster name", str(entry["name"])) for entry in entries),
            ahead_s,
            _cluster_hosts(answer.get("cluster_hosts"), account.hub),
            _hub_url(answer.get("hub")),
            _word(answer.get("credential")) or None,
            tuple(filter(None, map(_word, _list(answer.get("teams"))))),
            _skew_s(answer.get("now"), midpoint_s),
            _words(entries, "state"),
            _words(entries, "may"),
        )
    except (LookupError, TypeError) as error:
        raise AgentError(f"{account.hub} answered without a list of clusters: is it a Hawse hub?") from error
    except IdentityError as error:
        raise AgentError(f"{account.hub} answered with an invalid name: {error}") from error


def _hub_url(value: object) -> str:
    try:
        return hub_origin(value) if isinstance(value, str) else ""
    except AgentError:
        return ""


def _skew_s(value: object, now_s: float) -> float | None:
    # JSON numbers may also be infinite, NaN, or too long for a float.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < YEAR_10000_S:
        return None
    return now_s - value


def _word(value: object) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _words(entries: list[dict[str, object]], field: str) -> dict[str, str]:
    """The field's word of each cluster that has one; hubs of earlier versions send none."""
    return {str(entry["name"]): word for entry in entries if (word := _word(entry.get(field)))}


def _cluster_hosts(value: object, hub: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > HOSTS_CHARACTERS_MAX or _HOSTS.fullmatch(value) is None:
        raise AgentError(f"{hub} answered with an invalid pattern for cluster hosts: is it a Hawse hub?")
    return value


def register_key(account: Account, code: str, jwk: Mapping[str, str], prove: Callable[[str], str]) -> str:
    """Register a public key at the hub with a one-time code. Returns the agent's name. Raises AgentError.

    `prove` signs; its argument is the hub's time, or empty to use this machine's clock.
    """

    from auth.principal import IdentityError, slug

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
    """Post a form signed by this machine's clock; if the hub rejects only its time, once more by the hub's.

    Also returns this machine's clock minus the hub's; 0 if the hub accepted the first form.
    """
    if account.private_key_pem is None:
        # Nothing in this form is signed here. It is made before the connection: a platform's endpoint may
        # take longer than the hub waits for a handshake.
        ready = form("")
        return _post(account, path, lambda: ready, status=status), 0
    try:
        return _post(account, path, lambda: form(""), status=status), 0
    except _WrongClockError as error:
        wrong = error
    return _post(account, path, lambda: form(wrong.hub_time), status=status), wrong.ahead_s


def _post(
    account: Account, path: str, form: Callable[[], Mapping[str, str]], *, status: int = 200
) -> dict[str, object]:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    return _request(account, "POST", path, headers, lambda: _form_encoded(form()), status)


def _form_encoded(form: Mapping[str, str]) -> bytes:
    """Encode as application/x-www-form-urlencoded; urllib.parse would load for 3 ms."""
    return b"&".join(b"%b=%b" % (_escaped(name), _escaped(value)) for name, value in form.items())


def _escaped(text: str) -> bytes:
    return b"".join(
        b"%c" % byte if byte in _UNRESERVED else b"%%%02X" % byte for byte in text.encode("utf-8")
    )


def _request(
    account: Account,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Callable[[], bytes] | None,
    expected: int = 200,
) -> dict[str, object]:
    """Send a request and return its answer. The body is made while the hub answers the TLS handshake."""
    host, port = host_and_port(account.hub)
    try:
        context = trusting(account.ca_pem)
    except ValueError as error:
        raise AgentError(
            "the stored CA is not a certificate: run `hawse login` again with --ca FILE"
        ) from error
    connection, through = https_connection(host, port, context)
    try:
        connection.begin()
        status, raw = connection.exchange(
            method,
            path,
            {"accept": "application/json", "user-agent": "hawse", **headers},
            None if body is None else body(),
            body_bytes_max=ANSWER_BYTES_MAX + 1,
        )
    except ssl.SSLCertVerificationError as error:
        give = f"run `hawse login --hub {account.hub} --ca FILE` with the hub's CA"
        if account.ca_pem is not None:
            give = (
                "the CA given to `hawse login` did not sign it. Check that this is the right hub; get its CA "
                "from the operator (`hawse admin hub ca`), then "
                f"run `hawse login --hub {account.hub} --ca FILE`"
            )
        raise AgentError(
            f"the certificate of {account.hub} is not trusted ({error.verify_message}): "
            f"{next_step(error, give)}"
        ) from error
    except TimeoutError as error:
        raise NoAnswerError(
            f"{account.hub} did not answer{through} within {SOCKET_TIMEOUT_S:.0f} s: try again"
        ) from error
    except OSError as error:
        raise NoAnswerError(f"cannot reach {account.hub}{through}: {reason(error)}") from error
    finally:
        connection.close()
    return _read_answer(account.hub, status, raw, expected)


def _read_answer(hub: str, status: int, raw: bytes, expected: int) -> dict[str, object]:
    if len(raw) > ANSWER_BYTES_MAX:
        raise AgentError(f"{hub} answered with more than {ANSWER_BYTES_MAX} bytes: is it a Hawse hub?")
    try:
        answer = read_json(raw)
    except ValueError:
        answer = None
    if status != expected:
        message = f"{hub} answered {status}: {_error_text(status, answer)}"
        hub_time = answer.get("hub_time") if isinstance(answer, dict) else None
        if isinstance(hub_time, str):
            from auth.hubtime import seconds_of

            if (seconds := seconds_of(hub_time)) is not None:
                raise _WrongClockError(message, hub_time, seconds)
        # A proxy between may answer 401 too, but not in this form.
        if status == 401 and isinstance(answer, dict) and answer.get("error") == "invalid_client":
            raise RefusedError(message)
        if status in {400, 403} and isinstance(answer, dict) and "error" in answer:
            raise DeniedError(message)
        raise AgentError(message)
    if not isinstance(answer, dict):
        raise AgentError(f"{hub} did not answer with a JSON object: is it a Hawse hub?")
    return answer


def _error_text(status: int, answer: object) -> str:
    """The reason that a refusal states."""
    if isinstance(answer, dict):
        if isinstance(text := answer.get("error_description"), str):
            return quoted(text)
        # For errors that do not concern the agent's identity, the hub answers with a Status, as API servers
        # do. A Status that asks for another credential comes from an API server, not from a hub.
        if answer.get("kind") == "Status" and isinstance(text := answer.get("message"), str):
            return f"{quoted(text)}: is it a Hawse hub?" if status in {401, 403} else quoted(text)
    return "is it a Hawse hub?"
