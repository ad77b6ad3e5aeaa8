"""The agent's proof of identity: the fields of its token request."""

from __future__ import annotations

import base64
import os
import time

from proxy.agent.local.account import Account
from proxy.agent.local.errors import AgentError

TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a name
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def proof_of(account: Account, hub_time: str = "") -> dict[str, str]:
    """Return the fields that prove the agent's identity, new for each request. Raises AgentError.

    Each kind of credential imports only its part. A signature is dated by this machine's clock, or by
    `hub_time` if the hub has stated it.
    """
    if account.api_key is not None:
        return {
            "grant_type": "client_credentials",
            "client_id": account.agent,
            "client_secret": account.api_key,
        }
    if account.platform is not None:
        from proxy.agent.hub.platform import platform_token

        return {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "subject_token": platform_token(account.platform, account.hub, os.environ),
            **({"client_id": account.agent} if account.agent else {}),
        }
    if account.private_key_pem is None:
        raise AgentError(f"the login for {account.hub} has no key: run `hawse login` again")
    from auth.assertion import issue_assertion, plain_key

    key = plain_key(account.private_key_pem.encode("ascii", "replace"))
    if key is None:
        raise AgentError(f"the key for {account.hub} is damaged: run `hawse login` again")
    now_s = time.time()
    if hub_time:
        from auth.hubtime import seconds_of

        now_s = seconds_of(hub_time) or now_s
    assertion = issue_assertion(
        key,
        agent=account.agent,
        hub_url=account.hub,
        # As secrets.token_urlsafe(16), whose module loads for 3 ms.
        jti=base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode("ascii"),
        now=now_s,
        hub_time=hub_time,
    )
    return {
        "grant_type": "client_credentials",
        "client_id": account.agent,
        "client_assertion_type": JWT_BEARER,
        "client_assertion": assertion,
    }
