"""The hubs that an operator has named, each with its URL and an admin token. One file, mode 0600."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs

from proxy.agent.local.errors import AgentError
from proxy.agent.local.files import config_folder, locked, read_private, write_private
from proxy.cli.errors import CommandError
from proxy.process.suggestions import did_you_mean
from proxy.process.untrusted_json import read_json

FILE_NAME = "admin-logins.json"
_VERSION = 1
# As the names of teams and clusters: it is typed often.
NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


@attrs.frozen
class AdminLogin:
    """A hub's admin API, and the token for it."""

    url: str
    token: str = attrs.field(repr=False)
    ca_pem: str | None = None
    """None if the hub's certificate is from a public CA."""


def logins_file(environment: Mapping[str, str]) -> str:
    """Return the path of the file."""
    return os.path.join(config_folder(environment), FILE_NAME)


def load_logins(environment: Mapping[str, str]) -> dict[str, AdminLogin]:
    """Return the logins by name; raises CommandError."""
    path = logins_file(environment)
    try:
        data = read_private(path)
    except AgentError as error:
        raise CommandError(str(error)) from error
    if data is None:
        return {}
    try:
        document = read_json(data)
        if document["version"] != _VERSION:
            raise CommandError(f"{path} is from another version of hawse: use that one, or remove the file")
        return {str(name): _login(row) for name, row in document["hubs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} is damaged: remove it, and log in again") from error


def find_login(environment: Mapping[str, str], name: str) -> AdminLogin:
    """Return the login of that name; raises CommandError."""
    logins = load_logins(environment)
    if name not in logins:
        near = did_you_mean(name, logins)
        raise CommandError(
            f"there is no login {name!a}{near}: hawse admin logins lists them, hawse admin login adds one"
        )
    return logins[name]


def save_login(environment: Mapping[str, str], name: str, login: AdminLogin) -> bool:
    """Store a login; returns whether it replaces one. Raises CommandError."""
    with _changing(environment) as logins:
        replaces = name in logins
        logins[name] = login
    return replaces


def remove_login(environment: Mapping[str, str], name: str) -> AdminLogin:
    """Remove a login, and return it; raises CommandError."""
    with _changing(environment) as logins:
        if name not in logins:
            raise CommandError(f"there is no login {name!a}{did_you_mean(name, logins)}")
        return logins.pop(name)


@contextmanager
def _changing(environment: Mapping[str, str]) -> Iterator[dict[str, AdminLogin]]:
    """Hold the file's lock, and write what the block makes of the logins."""
    path = logins_file(environment)
    try:
        with locked(f"{path}.lock"):
            logins = load_logins(environment)
            yield logins
            rows = {name: attrs.asdict(login) for name, login in sorted(logins.items())}
            write_private(path, json.dumps({"version": _VERSION, "hubs": rows}, indent=1).encode("ascii"))
    except AgentError as error:
        raise CommandError(str(error)) from error


def _login(row: Mapping[str, object]) -> AdminLogin:
    url, token, ca_pem = row["url"], row["token"], row["ca_pem"]
    if (
        not isinstance(url, str)
        or not isinstance(token, str)
        or not (ca_pem is None or isinstance(ca_pem, str))
    ):
        raise TypeError("a login has members of other types")
    return AdminLogin(url, token, ca_pem)
