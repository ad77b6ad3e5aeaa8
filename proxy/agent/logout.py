"""Logging out: remove what this machine keeps for a hub, without contacting the hub.

The hub may be gone or have another URL by now. The key stays valid there until an operator revokes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from proxy.agent.kubeconfig.hub_entries import HubEntries, remove_hub_entries
from proxy.agent.local.account import Account, cluster_of_host, hub_origin, remove_account
from proxy.agent.local.errors import AgentError
from proxy.agent.token.answers import answers_folder
from proxy.agent.token.credential import cache_prefix, tokens_folder


class Forgotten(NamedTuple):
    """The result of a logout."""

    kubeconfigs: list[HubEntries]
    left_to_do: str
    """The command by which the hub's operator revokes the credential."""


def log_out(environment: Mapping[str, str], account: Account) -> Forgotten:
    """Remove the login: its kubeconfig entries, its key, its cached tokens.

    Raises AgentError if the key can't be removed. A kubeconfig that can't be changed does not stop the rest.
    """
    # While the login exists, so that an interrupted logout can be repeated.
    changed = remove_hub_entries(environment, account)
    remove_account(environment, account)
    forget_tokens(environment, account)
    return Forgotten(changed, revocation(account))


def revocation(account: Account) -> str:
    """Return the command by which the hub's operator revokes the login's credential."""
    key_id = account.key_id or "ID"
    if account.platform is not None:
        return f"hawse admin federation remove {key_id}"
    return f"hawse admin agent key revoke {account.agent or 'NAME'} {key_id}"


def forget_tokens(environment: Mapping[str, str], account: Account) -> None:
    """Remove the cached tokens. Any that can't be removed expire within a minute."""
    ours = re.compile(rf"{re.escape(cache_prefix(account.hub))}_[a-z0-9-]+\.json(\.lock)?")
    _remove(tokens_folder(environment), lambda name: ours.fullmatch(name) is not None)
    _remove(answers_folder(environment), lambda name: _is_of(name, account))


def _remove(folder: str, ours: Callable[[str], bool]) -> None:
    with suppress(OSError):
        for name in filter(ours, os.listdir(folder)):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))


def _is_of(name: str, account: Account) -> bool:
    """Whether the name is that of a stored answer for this hub (proxy.agent.token.answers)."""
    server = f"https://{name.partition('_')[0]}"
    try:
        return hub_origin(server) == account.hub or bool(cluster_of_host(account, server))
    except AgentError:
        return False
