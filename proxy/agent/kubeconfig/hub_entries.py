"""Finds and removes the kubeconfig entries that lead to a hub through our plugin."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from proxy.agent.kubeconfig.config_file import Document, has_our_plugin, kubectl_paths, named, read, replace
from proxy.agent.local.account import Account, cluster_of_host, hub_origin
from proxy.agent.local.errors import AgentError


class HubEntries(NamedTuple):
    """A kubeconfig with entries for the hub, or one that can't be read."""

    path: str
    contexts: tuple[str, ...]
    fault: str = ""
    """Why the file can't be read or changed; "" without a fault."""


def find_hub_entries(environment: Mapping[str, str], account: Account) -> list[HubEntries]:
    """Search the files that kubectl reads, and those written for this hub."""
    found: list[HubEntries] = []
    for path in _files(environment, account):
        try:
            entries = _entries(read(path), account, path)
        except AgentError as error:
            found.append(HubEntries(path, (), str(error)))
            continue
        if any(entries.values()):
            found.append(HubEntries(path, tuple(sorted(entries["contexts"]))))
    return found


def remove_hub_entries(environment: Mapping[str, str], account: Account) -> list[HubEntries]:
    """Remove the entries from all those files. Returns what was removed, and the faults.

    The current context's name stays, as with `kubectl config delete-context`: kubectl then reports the
    missing context. Without a name it would try http://localhost:8080.
    """
    done: list[HubEntries] = []
    for each in find_hub_entries(environment, account):
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
    paths = [*kubectl_paths(environment), *account.kubeconfigs]
    # Several paths may name the same file.
    real = {os.path.realpath(path): path for path in reversed(paths)}
    # Reading a terminal or a pipe, as from `--output /dev/stdout`, would block.
    return [path for target, path in reversed(real.items()) if os.path.isfile(target)]


def _entries(document: Document, account: Account, path: str) -> dict[str, set[str]]:
    """Return the names of the hub's entries, by section, without those that other contexts use."""
    clusters, users = named(document, "clusters", path), named(document, "users", path)
    contexts = named(document, "contexts", path)
    plugins = {name for name, entry in users.items() if has_our_plugin(entry)}
    hub_clusters = {name for name, entry in clusters.items() if _is_at_hub(entry, account)}
    hub_users = {name for name in plugins if _names_hub(users[name], account)}
    ends = {name: _ends(entry) for name, entry in contexts.items()}
    removed = {
        name
        for name, (cluster, user) in ends.items()
        if user in plugins and (cluster in hub_clusters or user in hub_users)
    }
    kept = [ends[name] for name in contexts if name not in removed]
    hub_clusters |= {ends[name][0] for name in removed} & clusters.keys()
    hub_users |= {ends[name][1] for name in removed}
    return {
        "contexts": removed,
        "clusters": hub_clusters - {cluster for cluster, _ in kept},
        "users": hub_users - {user for _, user in kept},
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


def _is_at_hub(cluster: Document, account: Account) -> bool:
    """Whether a cluster's server is a path at the hub, or one of its hosts for clusters."""
    settings = cluster.get("cluster")
    server = settings.get("server") if isinstance(settings, dict) else None
    if not isinstance(server, str):
        return False
    hub, by_path, _ = server.rpartition("/clusters/")
    return _origin(hub) == account.hub if by_path else bool(cluster_of_host(account, server))


def _names_hub(user: Document, account: Account) -> bool:
    """Whether the plugin's arguments name this hub, or a cluster of it."""
    settings = user.get("user")
    plugin = settings.get("exec") if isinstance(settings, dict) else None
    arguments = plugin.get("args") if isinstance(plugin, dict) else None
    words = [str(each) for each in arguments] if isinstance(arguments, list) else []
    pairs = dict(pairwise(words))
    if "--hub" in pairs:
        return _origin(pairs["--hub"]) == account.hub
    hub, _, _ = pairs.get("--server", "").rpartition("/clusters/")
    return _origin(hub) == account.hub


def _origin(text: str) -> str:
    try:
        return hub_origin(text)
    except AgentError:
        return ""
