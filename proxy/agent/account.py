"""Which hubs this agent has logged in to, and how it proves itself at each; one file, 0600.

A key belongs to one hub's origin and is sent nowhere else, whatever a kubeconfig names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from proxy.agent.errors import AgentError, quoted
from proxy.agent.files import config_folder, locked, read_private, write_private
from proxy.process.untrusted_json import read_json

FILE_NAME = "logins.json"
# The first version knew API keys alone.
_VERSION = 2
# A person has a few; a job that writes one in each of its runs removes it at the end.
KUBECONFIGS_MAX = 32
# scheme://host[:port]; hosts in lower case, IPv6 in brackets.
_HUB = re.compile(r"https://(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::([0-9]{1,5}))?/?")
_CLUSTER = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class NotLoggedInError(AgentError):
    """There is no login for the hub."""


class Account(NamedTuple):
    """A login: who the agent is at one hub, and how it proves that."""

    hub: str
    agent: str
    api_key: str | None
    """None when it proves itself otherwise."""
    ca_pem: str | None
    serial: str
    """Made anew by each login, so that a cached token of an earlier one is not taken for its own."""
    private_key_pem: str | None = None
    """The key that was made here and registered at the hub; it is never sent."""
    platform: str | None = None
    """Where its platform's token comes from: `file:` and a path, or `github`. No secret is kept then."""
    cluster_hosts: str | None = None
    """What the hub has said of its clusters' hosts, `*.` and a domain. Tokens go to no other host."""
    key_id: str | None = None
    """What the hub calls the key, or the rule for the platform's token: what its operator revokes."""
    kubeconfigs: tuple[str, ...] = ()
    """The files that `hawse kubeconfig` has written for this hub, the newest last."""

    def __repr__(self) -> str:
        return f"Account(hub={self.hub!r}, agent={self.agent!r})"


def hub_origin(text: str) -> str:
    """Return the hub's URL in the one form that is stored and compared. Raises AgentError."""
    match = _HUB.fullmatch(text.lower())
    if match is None or int(match[2] or 443) not in range(1, 65536):
        raise AgentError(f"the hub's URL {quoted(text)} is not https://host or https://host:port")
    host, port = match[1], match[2]
    return f"https://{host}" if port is None or int(port) == 443 else f"https://{host}:{int(port)}"


def _is_origin(text: str) -> bool:
    """Whether it is as `hub_origin` makes it."""
    try:
        return hub_origin(text) == text
    except AgentError:
        return False


def host_and_port(hub: str) -> tuple[str, int]:
    """Take an origin that `hub_origin` made apart; without the brackets of an IPv6 address."""
    match = _HUB.fullmatch(hub)
    assert match is not None
    return match[1].strip("[]"), int(match[2] or 443)


def cluster_url(account: Account, cluster: str, hosts: str | None) -> str:
    """Return the URL of a cluster: a path of the hub, or with `hosts` a host of its own at the hub's port."""
    if hosts is None:
        return f"{account.hub}/clusters/{cluster}"
    _, port = host_and_port(account.hub)
    return hub_origin(f"https://{cluster}{hosts.removeprefix('*')}:{port}")


def cluster_of_host(account: Account, server: str) -> str:
    """Return the cluster whose own host the server is, by what the hub has said; "" where it is none's."""
    hosts = account.cluster_hosts
    name = server.removeprefix("https://").partition(".")[0].lower()
    # Of a server such as https://localhost:6443 or https://[::1] that is no name.
    if hosts is None or _CLUSTER.fullmatch(name) is None:
        return ""
    try:
        return name if hub_origin(server) == cluster_url(account, name, hosts) else ""
    except AgentError:
        return ""


def load_accounts(environment: Mapping[str, str]) -> dict[str, Account]:
    """Read all logins, by hub, in the order in which they were made. Raises AgentError."""
    path = logins_path(environment)
    raw = read_private(path)
    if raw is None:
        return {}
    try:
        document = read_json(raw)
        if document["version"] > _VERSION:
            raise AgentError(f"{path} was written by a newer hawse: use that one")
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
        raise AgentError(f"{path} is damaged: remove it and run `hawse login` again") from None


def find_account(environment: Mapping[str, str], hub: str | None) -> Account:
    """Return the login for the hub, or the only one there is. Raises AgentError with the next step."""
    accounts = load_accounts(environment)
    if hub is not None:
        if hub not in accounts:
            if accounts:
                # Any kubeconfig can name a hub, and a login sends an API key there: an agent does as it is
                # told, so the command to log in is not in this message.
                raise NotLoggedInError(
                    f"not logged in to {hub}, only to {', '.join(accounts)}: do not log in there unless your "
                    "operator has named that hub to you"
                )
            raise NotLoggedInError(f"not logged in to {hub}: run `hawse login --hub {hub}`")
        return accounts[hub]
    if not accounts:
        raise NotLoggedInError("not logged in: run `hawse login --hub URL`")
    if len(accounts) > 1:
        raise AgentError(f"logged in to several hubs: choose one by --hub, of {', '.join(accounts)}")
    return next(iter(accounts.values()))


def save_account(environment: Mapping[str, str], account: Account) -> str:
    """Store the login in place of an earlier one for the same hub; returns the file's path.

    Raises AgentError.
    """
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        if (earlier := accounts.pop(account.hub, None)) is not None:
            # A new key leaves the kubeconfigs valid: they name the hub.
            account = account._replace(kubeconfigs=earlier.kubeconfigs)
        accounts[account.hub] = account
        _write(path, accounts)
    return path


def remove_account(environment: Mapping[str, str], account: Account) -> None:
    """Forget the login, unless another one has taken its place. Raises AgentError."""
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        stored = accounts.get(account.hub)
        if stored is not None and stored.serial == account.serial:
            del accounts[account.hub]
            _write(path, accounts)


def note_kubeconfig(environment: Mapping[str, str], hub: str, file: str) -> None:
    """Note a kubeconfig that leads to the hub, for `hawse logout`. Raises AgentError."""
    path = logins_path(environment)
    with locked(f"{path}.lock"):
        accounts = load_accounts(environment)
        stored = accounts.get(hub)
        if stored is None or file in stored.kubeconfigs:
            return
        # Those that are gone need no cleaning.
        files = [each for each in stored.kubeconfigs if os.path.exists(each)]
        kept = (*files[1 - KUBECONFIGS_MAX :], file)
        accounts[hub] = stored._replace(kubeconfigs=kept)
        _write(path, accounts)


def save_reach(environment: Mapping[str, str], account: Account) -> None:
    """Store what the hub says of a login, unless another login has taken its place. Raises AgentError.

    The hub was asked since it was read, and a login that was made meanwhile may have another key, of which
    there is no copy.
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
