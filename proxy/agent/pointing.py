"""Which entries of kubeconfigs lead to a hub by our plugin, and the kubeconfigs without them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from proxy.agent.account import Account, cluster_of_host, hub_origin
from proxy.agent.errors import AgentError
from proxy.agent.kubeconfig import Document, has_our_plugin, kubectls_own, named, read, replace


class Pointing(NamedTuple):
    """A kubeconfig with entries that lead to the hub, or that cannot be read."""

    path: str
    contexts: tuple[str, ...]
    fault: str = ""
    """Why nothing is known of the file, or why it could not be changed; "" if nothing is wrong."""


def pointing(environment: Mapping[str, str], account: Account) -> list[Pointing]:
    """Look through the files that kubectl reads, and those that were written for this hub."""
    found: list[Pointing] = []
    for path in _files(environment, account):
        try:
            entries = _entries(read(path), account, path)
        except AgentError as error:
            found.append(Pointing(path, (), str(error)))
            continue
        if any(entries.values()):
            found.append(Pointing(path, tuple(sorted(entries["contexts"]))))
    return found


def remove_pointing(environment: Mapping[str, str], account: Account) -> list[Pointing]:
    """Remove the entries from all those files, and return what was removed, or why it could not be.

    The name of the current context stays, as `kubectl config delete-context` leaves it: without it kubectl
    would try http://localhost:8080, and so it says which context is missing.
    """
    done: list[Pointing] = []
    for each in pointing(environment, account):
        fault = each.fault
        try:
            if not fault:
                document = read(each.path)
                replace(each.path, _without(document, _entries(document, account, each.path)))
        except AgentError as error:
            fault = str(error)
        done.append(each._replace(fault=fault))
    return done


def _files(environment: Mapping[str, str], account: Account) -> Iterable[str]:
    paths = [*kubectls_own(environment), *account.kubeconfigs]
    # One file may be written by several names.
    real = {os.path.realpath(path): path for path in reversed(paths)}
    # A terminal or a pipe, as of `--output /dev/stdout`, would be waited for.
    return [path for target, path in reversed(real.items()) if os.path.isfile(target)]


def _entries(document: Document, account: Account, path: str) -> dict[str, set[str]]:
    """Return the names of the entries that lead to the hub, by section; what others use stays."""
    clusters, users = named(document, "clusters", path), named(document, "users", path)
    contexts = named(document, "contexts", path)
    plugins = {name for name, entry in users.items() if has_our_plugin(entry)}
    there = {name for name, entry in clusters.items() if _leads(entry, account)}
    told = {name for name in plugins if _is_told(users[name], account)}
    ends = {name: _ends(entry) for name, entry in contexts.items()}
    gone = {
        name
        for name, (cluster, user) in ends.items()
        if user in plugins and (cluster in there or user in told)
    }
    kept = [ends[name] for name in contexts if name not in gone]
    there |= {ends[name][0] for name in gone} & clusters.keys()
    told |= {ends[name][1] for name in gone}
    return {
        "contexts": gone,
        "clusters": there - {cluster for cluster, _ in kept},
        "users": told - {user for _, user in kept},
    }


def _without(document: Document, entries: Mapping[str, Collection[str]]) -> Document:
    changed = dict(document)
    for section, names in entries.items():
        listed = document.get(section)
        if isinstance(listed, list):
            changed[section] = [entry for entry in listed if entry["name"] not in names]
    return changed


def _ends(context: Document) -> tuple[str, str]:
    settings = context.get("context")
    if not isinstance(settings, dict):
        return "", ""
    return str(settings.get("cluster", "")), str(settings.get("user", ""))


def _leads(cluster: Document, account: Account) -> bool:
    """Whether a cluster's server is at the hub: a path of it, or a host that it has for a cluster."""
    settings = cluster.get("cluster")
    server = settings.get("server") if isinstance(settings, dict) else None
    if not isinstance(server, str):
        return False
    hub, by_path, _ = server.rpartition("/clusters/")
    return _origin(hub) == account.hub if by_path else bool(cluster_of_host(account, server))


def _is_told(user: Document, account: Account) -> bool:
    """Whether an argument tells the plugin this hub, or a cluster of it."""
    settings = user.get("user")
    plugin = settings.get("exec") if isinstance(settings, dict) else None
    arguments = plugin.get("args") if isinstance(plugin, dict) else None
    said = [str(each) for each in arguments] if isinstance(arguments, list) else []
    pairs = dict(pairwise(said))
    if "--hub" in pairs:
        return _origin(pairs["--hub"]) == account.hub
    hub, _, _ = pairs.get("--server", "").rpartition("/clusters/")
    return _origin(hub) == account.hub


def _origin(text: str) -> str:
    try:
        return hub_origin(text)
    except AgentError:
        return ""
