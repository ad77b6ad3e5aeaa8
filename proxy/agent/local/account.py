"""The logins of this agent: each names a hub and the agent's credential there. One file, mode 0600.

A credential belongs to one hub's origin. It is never sent elsewhere, even if a kubeconfig names another
server.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from proxy.agent.local.errors import AgentError, quoted
from proxy.agent.local.files import config_folder, locked, read_private, write_private
from proxy.process.untrusted_json import read_json

FILE_NAME = "logins.json"
# Version 1 had API keys only.
_VERSION = 2
# A person has a few. A job that writes one in each run also removes it at the end.
KUBECONFIGS_MAX = 32
# scheme://host[:port]; hosts in lower case, IPv6 in brackets.
_HUB = re.compile(r"https://(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::([0-9]{1,5}))?/?")
_CLUSTER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class NotLoggedInError(AgentError):
    """There is no login for the hub."""


class Account(NamedTuple):
    """A login: the agent's name and its credential at one hub."""

    hub: str
    agent: str
    api_key: str | None
    """None if the credential is not an API key."""
    ca_pem: str | None
    serial: str
    """Random for each login, so that tokens cached for an earlier login are not reused."""
    private_key_pem: str | None = None
    """The key that this machine made and registered at the hub; it is never sent."""
    platform: str | None = None
    """The source of the platform's token: `file:` and a path, or `github`. No secret is stored then."""
    cluster_hosts: str | None = None
    """The hub's pattern for hosts of clusters: `*.` and a domain. Tokens go to no other host."""
    key_id: str | None = None
    """The hub's id of the key, or of the federation rule: an operator revokes the login by it."""
    kubeconfigs: tuple[str, ...] = ()
    """The files that `hawse kubeconfig` has written for this hub, newest last."""

    def __repr__(self) -> str:
        return f"Account(hub={self.hub!r}, agent={self.agent!r})"


def hub_origin(text: str) -> str:
    """Return the hub's URL in its canonical form, for storage and comparison. Raises AgentError."""
    match = _HUB.fullmatch(text.lower())
    if match is None or int(match[2] or 443) not in range(1, 65536):
        raise AgentError(f"the hub's URL {quoted(text)} is not https://host or https://host:port")
    host, port = match[1], match[2]
    return f"https://{host}" if port is None or int(port) == 443 else f"https://{host}:{int(port)}"


def _is_origin(text: str) -> bool:
    """Whether the text is in the form that `hub_origin` returns."""
    try:
        return hub_origin(text) == text
    except AgentError:
        return False


def host_and_port(hub: str) -> tuple[str, int]:
    """Split an origin of `hub_origin` into host and port. IPv6 addresses lose their brackets."""
    match = _HUB.fullmatch(hub)
    assert match is not None
    return match[1].strip("[]"), int(match[2] or 443)


def cluster_url(account: Account, cluster: str, hosts: str | None) -> str:
    """Return a cluster's URL: a path at the hub, or with `hosts` a separate host at the hub's port."""
    if hosts is None:
        return f"{account.hub}/clusters/{cluster}"
    _, port = host_and_port(account.hub)
    return hub_origin(f"https://{cluster}{hosts.removeprefix('*')}:{port}")


def cluster_of_host(account: Account, server: str) -> str:
    """Return the cluster whose host is `server`, by the hub's pattern; "" if there is none."""
    hosts = account.cluster_hosts
    name = server.removeprefix("https://").partition(".")[0].lower()
    # Not a name for servers such as https://localhost:6443 or https://[::1].
    if hosts is None or _CLUSTER.fullmatch(name) is None:
        return ""
    try:
        return name if hub_origin(server) == cluster_url(account, name, hosts) else ""
    except AgentError:
        return ""


def load_accounts(environment: Mapping[str, str]) -> dict[str, Account]:
    """Read all logins, by hub, oldest first. Raises AgentError."""
    path = logins_path(environment)
    raw = read_private(path)
    if raw is None:
        return {}
    try:
        document = read_json(raw)
        if document["version"] > _VERSION:
            raise AgentError(f"{path} was written by a newer version of hawse: upgrade hawse")
        if not all(map(_is_origin, document["hubs"])):
            raise ValueError
        return {
            hub: Account(
                hub,
                str(entry["agent"]),
                _text(entry, "api_key"),
                _text(entry, "ca_pem"),
                str(entry["serial"]),
                _text(entry, "private_key_pem"),
                _text(entry, "platform"),
                _text(entry, "cluster_hosts"),
                _text(entry, "key_id"),
                tuple(str(path) for path in entry.get("kubeconfigs", ())),
            )
            for hub, entry in document["hubs"].items()
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        # Not chained: the cause may quote the file.
        raise AgentError(f"{path} is damaged: remove it, then run `hawse login`") from None


def find_account(environment: Mapping[str, str], hub: str | None) -> Account:
    """Return the login for the hub, or the only login. Raises AgentError, with the next step."""
    accounts = load_accounts(environment)
    if hub is not None:
        if hub not in accounts:
            if accounts:
                # Any kubeconfig can name a hub, and logging in sends an API key there. Agents follow
                # instructions that they read, so this message does not print the login command.
                raise NotLoggedInError(
                    f"not logged in to {hub}, only to {', '.join(accounts)}: do not log in there unless your "
                    "operator has given you that hub's URL"
                )
            raise NotLoggedInError(f"not logged in to {hub}: run `hawse login --hub {hub}`")
        return accounts[hub]
    if not accounts:
        raise NotLoggedInError("not logged in: run `hawse login --hub URL`")
    if len(accounts) > 1:
        raise AgentError(f"logged in to several hubs: choose one with --hub: {', '.join(accounts)}")
    return next(iter(accounts.values()))


def save_account(environment: Mapping[str, str], account: Account) -> str:
    """Store the login, replacing an earlier one for the same hub. Returns the file's path.

    Raises AgentError.
    """
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        if (earlier := accounts.pop(account.hub, None)) is not None:
            # Kubeconfigs stay valid with the new key, since they only name the hub.
            account = account._replace(kubeconfigs=earlier.kubeconfigs)
        accounts[account.hub] = account
        _write(path, accounts)
    return path


def remove_account(environment: Mapping[str, str], account: Account) -> None:
    """Remove the login, unless a newer login has replaced it. Raises AgentError."""
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        stored = accounts.get(account.hub)
        if stored is not None and stored.serial == account.serial:
            del accounts[account.hub]
            _write(path, accounts)


def note_kubeconfig(environment: Mapping[str, str], hub: str, file: str) -> None:
    """Record a kubeconfig with entries for the hub, so that `hawse logout` finds it. Raises AgentError."""
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        stored = accounts.get(hub)
        if stored is None or file in stored.kubeconfigs:
            return
        # Deleted files need no cleanup at logout.
        files = [each for each in stored.kubeconfigs if os.path.exists(each)]
        kept = (*files[1 - KUBECONFIGS_MAX :], file)
        accounts[hub] = stored._replace(kubeconfigs=kept)
        _write(path, accounts)


def save_reach(environment: Mapping[str, str], account: Account) -> None:
    """Store the hub's current facts about a login, unless a newer login has replaced it. Raises AgentError.

    A login may be replaced while its hub is being queried. The new one may hold a key that exists nowhere
    else, so it must not be overwritten.
    """
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        stored = accounts.get(account.hub)
        if stored is None or stored.serial != account.serial:
            return
        accounts[account.hub] = stored._replace(cluster_hosts=account.cluster_hosts, key_id=account.key_id)
        _write(path, accounts)


def _write(path: str, accounts: Mapping[str, Account]) -> None:
    hubs = {hub: _entry(each) for hub, each in accounts.items()}
    write_private(path, json.dumps({"version": _VERSION, "hubs": hubs}, indent=1).encode() + b"\n")


def _entry(account: Account) -> dict[str, object]:
    fields = account._asdict()
    del fields["hub"]
    return {name: value for name, value in fields.items() if value not in (None, ())}


def _text(entry: dict[str, object], name: str) -> str | None:
    value = entry.get(name)
    return None if value is None else str(value)


def logins_path(environment: Mapping[str, str]) -> str:
    return os.path.join(config_folder(environment), FILE_NAME)
