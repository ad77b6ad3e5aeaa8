"""Logging in: an API key is tried at the hub before it is stored."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Mapping

from auth.apikey import ApiKeyError, parse
from proxy.agent.account import Account, hub_origin, save_account
from proxy.agent.errors import AgentError
from proxy.agent.hub import Reach, fetch_reach

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
        raise AgentError(str(error)) from None
    account = Account(hub_origin(hub), "", key, ca_pem, secrets.token_hex(8))
    reach = fetch_reach(account)
    account = account._replace(agent=reach.agent)
    return account, reach, save_account(environment, account)


def read_ca(path: str) -> str:
    """Read the hub's CA certificates (PEM). Raises AgentError."""
    try:
        with open(path, "rb") as file:
            pem = file.read(CA_BYTES_MAX).decode("ascii")
        # Not create_default_context: for an empty file that would take the system's CAs instead.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise AgentError(f"cannot use the CA file {path}: it holds no certificate in PEM") from error
    except OSError as error:
        raise AgentError(f"cannot use the CA file {path}: {error.strerror}") from error
    return pem
