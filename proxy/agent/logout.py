"""Logging out: what this machine keeps for a hub is forgotten, without asking the hub.

The hub may be gone, or go by another URL by now. A key stays good there until its operator revokes it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from proxy.agent.account import Account, cluster_of_host, hub_origin, remove_account
from proxy.agent.credential import place_of
from proxy.agent.errors import AgentError
from proxy.agent.files import cache_folder
from proxy.agent.pointing import Pointing, remove_pointing


class Forgotten(NamedTuple):
    """What a logout has removed, and what it could not."""

    kubeconfigs: list[Pointing]
    left_to_do: str
    """What the hub's operator does for the key to be good no more, as a command."""


def log_out(environment: Mapping[str, str], account: Account) -> Forgotten:
    """Forget the login: the kubeconfig entries that lead to it, the key, the cached tokens.

    Raises AgentError where the key cannot be removed. A kubeconfig that cannot be changed keeps nothing else.
    """
    # While the login is there: what is interrupted now can be done again.
    changed = remove_pointing(environment, account)
    remove_account(environment, account)
    forget_tokens(environment, account)
    return Forgotten(changed, revocation(account))


def revocation(account: Account) -> str:
    """The command by which the hub's operator ends what the login proved itself by."""
    known = account.key_id or "ID"
    if account.platform is not None:
        return f"hawse admin federation remove {known}"
    return f"hawse admin agent key revoke {account.agent or 'NAME'} {known}"


def forget_tokens(environment: Mapping[str, str], account: Account) -> None:
    """Remove the cached tokens; what cannot be removed is good for a minute."""
    folder = os.path.join(cache_folder(environment), "tokens")
    ours = re.compile(rf"{re.escape(place_of(account.hub))}_[a-z0-9-]+\.json(\.lock)?")
    with suppress(OSError):
        for name in os.listdir(folder):
            if ours.fullmatch(name) or _is_at(name, account):
                path = os.path.join(folder, name)
                if os.path.isdir(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.unlink(path)


def _is_at(name: str, account: Account) -> bool:
    """Whether answers about servers of this hub are kept under the name (proxy.agent.answers)."""
    server = f"https://{name}"
    try:
        return hub_origin(server) == account.hub or bool(cluster_of_host(account, server))
    except AgentError:
        return False
