"""Logging in: try an API key at the hub and store it, or make a key here and register it.

Only the public half of a key made here is sent, together with a one-time code.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from auth.apikey import ApiKeyError, parse, parse_code
from auth.hubtime import seconds_of
from auth.tokens import issue_enrolment
from proxy.agent.hub.requests import Reach, fetch_reach, register_key
from proxy.agent.local.account import Account, hub_origin, load_accounts, save_account, save_reach
from proxy.agent.local.errors import AgentError, NoAnswerError, RefusedError
from proxy.agent.local.pending import forget_pending_key, is_pending, pending_key
from proxy.process.certificates import fault_of_ca

CA_BYTES_MAX = 1024 * 1024


def log_in(
    environment: Mapping[str, str], hub: str, api_key: str, ca_pem: str | None
) -> tuple[Account, Reach, str]:
    """Try the API key at the hub and store it. Returns the login, the hub's answer, and the file's path.

    Raises AgentError and stores nothing then. The message never holds the key.
    """
    try:
        key = parse(api_key.strip())
    except ApiKeyError as error:
        raise AgentError(f"{error}; use --code for a one-time code") from None
    account = Account(hub_origin(hub), "", key, ca_pem, secrets.token_hex(8))
    reach = fetch_reach(account)
    account = _with_reach(account._replace(agent=reach.agent), reach)
    return account, reach, save_account(environment, account)


def enrol(
    environment: Mapping[str, str], hub: str, code: str, ca_pem: str | None
) -> tuple[Account, Reach, str]:
    """Make a key, register it with the code, and store it. Returns as `log_in`.

    Raises AgentError, whose message holds neither code nor key. The key is stored before the code is used. So
    if the answer is lost, the same code can be used again (proxy.agent.local.pending).
    """
    try:
        code = parse_code(code.strip())
    except ApiKeyError as error:
        raise AgentError(str(error)) from None
    origin = hub_origin(hub)
    load_accounts(environment)  # Check the file for damage before the code is used up.
    shown_before = is_pending(environment, code)
    key = pending_key(environment, code)
    account = Account(origin, "", None, ca_pem, secrets.token_hex(8), key.to_pem().decode("ascii"))

    def prove(hub_time: str) -> str:
        return issue_enrolment(
            key,
            hub_url=origin,
            jti=secrets.token_urlsafe(16),
            now=seconds_of(hub_time) or time.time(),
            hub_time=hub_time,
        )

    try:
        account = account._replace(agent=register_key(account, code, key.public.to_jwk(), prove))
    except NoAnswerError as error:
        cause = str(error).removesuffix(": try again")
        raise AgentError(f"{cause}: run this again on this machine with the same code") from error
    except RefusedError:
        # If the code was shown to another hub before, that hub may have accepted it.
        if not shown_before:
            forget_pending_key(environment, code)
        raise
    path = save_account(environment, account)
    reach = fetch_reach(account)
    forget_pending_key(environment, code)
    return note_reach(environment, account, reach), reach, path


def log_in_by_platform(
    environment: Mapping[str, str], hub: str, platform: str, ca_pem: str | None, agent: str
) -> tuple[Account, Reach, str]:
    """Try the platform's token at the hub and store its source; see `log_in`. Raises AgentError."""
    account = Account(hub_origin(hub), agent, None, ca_pem, secrets.token_hex(8), platform=platform)
    reach = fetch_reach(account)
    account = _with_reach(account._replace(agent=reach.agent), reach)
    return account, reach, save_account(environment, account)


def note_reach(environment: Mapping[str, str], account: Account, reach: Reach) -> Account:
    """Store the hub's current cluster hosts and key id, if they have changed. Raises AgentError."""
    noted = _with_reach(account, reach)
    if noted != account:
        save_reach(environment, noted)
    return noted


def _with_reach(account: Account, reach: Reach) -> Account:
    return account._replace(cluster_hosts=reach.cluster_hosts, key_id=reach.key_id or account.key_id)


def read_ca(path: str) -> str:
    """Read the hub's CA certificates (PEM) from the file of --ca. Raises AgentError."""
    try:
        with open(path, "rb") as file:
            # Text between the certificates may be in any language; OpenSSL accepts only ASCII.
            pem = file.read(CA_BYTES_MAX).decode("ascii", "ignore")
    except OSError as error:
        raise AgentError(f"--ca: cannot read {path}: {error.strerror}") from error
    fault = fault_of_ca(pem)
    if fault is not None:
        raise AgentError(f"--ca: {path} {fault}: name the CA file of the hub's certificate")
    return pem
