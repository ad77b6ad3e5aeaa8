"""Logging in: an API key is tried at the hub before it is stored, or a key of the agent's own is registered.

That one is made here and only its public half is sent, with a code that is good once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from auth.apikey import ApiKeyError, parse, parse_code
from auth.hubtime import seconds_of
from auth.tokens import issue_enrolment
from proxy.agent.account import Account, hub_origin, load_accounts, save_account, save_reach
from proxy.agent.errors import AgentError, NoAnswerError, RefusedError
from proxy.agent.hub import Reach, fetch_reach, register_key
from proxy.agent.pending import forget_pending_key, is_pending, pending_key
from proxy.process.certificates import fault_of_ca

CA_BYTES_MAX = 1024 * 1024


def log_in(
    environment: Mapping[str, str], hub: str, api_key: str, ca_pem: str | None
) -> tuple[Account, Reach, str]:
    """Try the key at the hub and store it; returns the login, what it reaches, and the file.

    Raises AgentError, whose message never holds the key, and stores nothing then.
    """
    try:
        key = parse(api_key.strip())
    except ApiKeyError as error:
        raise AgentError(f"{error}; a one-time code goes with --code") from None
    account = Account(hub_origin(hub), "", key, ca_pem, secrets.token_hex(8))
    reach = fetch_reach(account)
    account = _with_reach(account._replace(agent=reach.agent), reach)
    return account, reach, save_account(environment, account)


def enrol(
    environment: Mapping[str, str], hub: str, code: str, ca_pem: str | None
) -> tuple[Account, Reach, str]:
    """Make a key, register it by the code, and store it; returns the login, what it reaches, and the file.

    Raises AgentError, whose message holds neither code nor key. The key is stored before the code is used, so
    that an answer that is lost can be had by showing the same code once more (proxy.agent.pending).
    """
    try:
        code = parse_code(code.strip())
    except ApiKeyError as error:
        raise AgentError(str(error)) from None
    origin = hub_origin(hub)
    load_accounts(environment)  # Damaged, it would be told when the code is used.
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
        what = str(error).removesuffix(": try again")
        raise AgentError(f"{what}: run this again, here and with the same code") from error
    except RefusedError:
        # Another hub may have taken it, and this one be the wrong one.
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
    """Try the platform's token at the hub and store where it comes from; see `log_in`. Raises AgentError."""
    account = Account(hub_origin(hub), agent, None, ca_pem, secrets.token_hex(8), platform=platform)
    reach = fetch_reach(account)
    account = _with_reach(account._replace(agent=reach.agent), reach)
    return account, reach, save_account(environment, account)


def note_reach(environment: Mapping[str, str], account: Account, reach: Reach) -> Account:
    """Store what the hub says of its clusters' hosts and of the key, where that is new. Raises AgentError."""
    noted = _with_reach(account, reach)
    if noted != account:
        save_reach(environment, noted)
    return noted


def _with_reach(account: Account, reach: Reach) -> Account:
    return account._replace(cluster_hosts=reach.cluster_hosts, key_id=reach.key_id or account.key_id)


def read_ca(path: str) -> str:
    """Read the hub's CA certificates (PEM), from the file that --ca names. Raises AgentError."""
    try:
        with open(path, "rb") as file:
            # What stands between the certificates may be in any language, and OpenSSL takes ASCII alone.
            pem = file.read(CA_BYTES_MAX).decode("ascii", "ignore")
    except OSError as error:
        raise AgentError(f"--ca: cannot read {path}: {error.strerror}") from error
    fault = fault_of_ca(pem)
    if fault is not None:
        raise AgentError(f"--ca: {path} {fault}: name the file of the CA of the hub's certificate")
    return pem
