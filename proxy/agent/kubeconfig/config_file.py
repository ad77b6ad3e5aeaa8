"""Kubeconfigs without a credential: they name the hub's clusters, and the plugin that gets a token.

Entries are merged into an existing file. If an entry of the same name is not ours, the command refuses and
changes nothing: it may be the user's only access to a cluster.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from auth.principal import IdentityError, slug
from proxy.agent.hub.requests import Reach
from proxy.agent.local.account import Account, cluster_url, hub_origin
from proxy.agent.local.errors import AgentError, quoted
from proxy.agent.local.files import FILE_BYTES_MAX, write_private
from proxy.agent.token.credential import API_VERSIONS
from proxy.kubernetes.untrusted_yaml import YamlError, read_yaml
from proxy.kubernetes.write_yaml import to_yaml

USER = "hawse"
PLUGIN = "hawse-credential"
# kubectl passes the whole CA to the plugin in one environment variable. Linux limits that to 128 KiB, and
# base64 makes the PEM a third longer.
EMBEDDED_CA_BYTES_MAX = 90 * 1024
Document: TypeAlias = "dict[str, object]"
Aliases: TypeAlias = "Mapping[str, frozenset[str]]"
NO_ALIASES: Aliases = {}
# Not `pip install hawse`: the name is not registered, so anyone could register it.
_INSTALL_HINT = (
    f"{PLUGIN} is not on the PATH: install Hawse, or write this kubeconfig again (hawse kubeconfig)"
)


def chosen_clusters(reach: Reach, requested: Sequence[str]) -> tuple[str, ...]:
    """Return the requested clusters, or all that the agent may reach if none is requested.

    Raises AgentError.
    """
    try:
        names = tuple(dict.fromkeys(slug("cluster name", name) for name in requested))
    except IdentityError as error:
        raise AgentError(str(error)) from error
    missing = [name for name in names if name not in reach.clusters]
    if missing:
        reachable = ", ".join(reach.clusters) or "none"
        raise AgentError(f"agent {reach.agent} may not reach {', '.join(missing)}; it may reach: {reachable}")
    if not reach.clusters:
        raise AgentError(
            f"agent {reach.agent} may not reach any cluster: ask the operator to grant its team one with "
            "`hawse admin cluster grant`"
        )
    return names or reach.clusters


def entries(
    account: Account,
    clusters: Sequence[str],
    *,
    command: str,
    embed_ca: bool = True,
    namespace: str | None = None,
    prefix: str = "",
    user_per_cluster: bool = False,
    hosts: str | None = None,
) -> Document:
    """Make a complete kubeconfig for the clusters.

    Raises AgentError for an invalid namespace or prefix, and for a CA that is too long to embed.

    With `user_per_cluster` each cluster has its own user, whose plugin gets the cluster as an argument and
    uses the older exec API: for clients that pass no cluster to a plugin. With `hosts` each server is the
    cluster's own host, and an argument names the hub for the plugin.
    """
    try:
        if namespace is not None:
            slug("namespace", namespace)
        if prefix:
            slug("prefix", prefix.removesuffix("-"))
    except IdentityError as error:
        raise AgentError(str(error)) from error
    ca = _ca(account) if embed_ca else {}
    names = [prefix + cluster for cluster in clusters]
    servers = [cluster_url(account, cluster, hosts) for cluster in clusters]
    hub = [] if hosts is None else ["--hub", account.hub]
    plugin = _plugin(command)
    if user_per_cluster:
        users = [f"{prefix}{USER}-{cluster}" for cluster in clusters]
        older = {**plugin, "apiVersion": API_VERSIONS[1]}
        plugins = [{**older, "args": ["--server", server, *hub]} for server in servers]
    elif hub:
        # One user for each hub, so that a kubeconfig may hold several hubs.
        users = [f"{prefix}{USER}@{account.hub.removeprefix('https://')}"] * len(names)
        plugins = [{**plugin, "args": hub}]
    else:
        users, plugins = [prefix + USER] * len(names), [plugin]
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": server, **ca}}
            for name, server in zip(names, servers, strict=True)
        ],
        "users": [{"name": user, "user": {"exec": each}} for user, each in zip(users, plugins, strict=False)],
        "contexts": [_context(name, user, namespace) for name, user in zip(names, users, strict=True)],
        "current-context": names[0],
    }


def _ca(account: Account) -> Document:
    """Embed the login's CA in a cluster's entry; empty for the system's CAs. Raises AgentError."""
    if account.ca_pem is None:
        return {}
    if len(account.ca_pem) > EMBEDDED_CA_BYTES_MAX:
        raise AgentError(
            f"the login's CA has {len(account.ca_pem)} bytes, and kubectl's limit is "
            f"{EMBEDDED_CA_BYTES_MAX}: "
            "log in again with only the hub's own CA, or use the system's CAs with --no-embed-ca"
        )
    return {"certificate-authority-data": base64.b64encode(account.ca_pem.encode()).decode("ascii")}


def _plugin(command: str) -> Document:
    return {
        "apiVersion": API_VERSIONS[0],
        "command": command,
        "interactiveMode": "IfAvailable",
        # The plugin reads hub and cluster from the server's URL.
        "provideClusterInfo": True,
        "installHint": _INSTALL_HINT,
    }


def _context(name: str, user: str, namespace: str | None) -> Document:
    context = {"cluster": name, "user": user}
    if namespace is not None:
        context["namespace"] = namespace
    return {"name": name, "context": context}


def server_aliases(account: Account, clusters: Sequence[str], reach: Reach) -> Aliases:
    """Map each URL of a cluster to all URLs that its entry may have had before."""
    patterns = {None, account.cluster_hosts, reach.cluster_hosts}
    found: dict[str, frozenset[str]] = {}
    for cluster in clusters:
        urls = frozenset(cluster_url(account, cluster, hosts) for hosts in patterns)
        found.update(dict.fromkeys(urls, urls))
    return found


def merge(
    existing: Document, ours: Document, path: str = "the file", aliases: Aliases = NO_ALIASES
) -> Document:
    """Merge our entries into a kubeconfig, replacing our earlier ones. Its current context does not change.

    `aliases` maps a server's URL to the other URLs of the same cluster. Raises AgentError if an entry of the
    same name is not ours, or the document is not a kubeconfig.
    """
    merged = {"apiVersion": "v1", "kind": "Config", **existing}
    # Users of both forms, shared and per cluster: either belongs to the same cluster.
    users = [name for name, user in named(existing, "users", path).items() if has_our_plugin(user)]
    for section in ("clusters", "users", "contexts"):
        present, added = named(existing, section, path), named(ours, section, path)
        for name, entry in added.items():
            if name in present and not _is_ours(section, present[name], entry, users, aliases):
                raise AgentError(
                    f"{path} already has an entry {quoted(name)} in {section}, which is not for this hub: "
                    "choose other names with --prefix, or another file with --output"
                )
        merged[section] = list({**present, **added}.values())
    if current := existing.get("current-context") or ours.get("current-context"):
        merged["current-context"] = current
    return merged


def avoid_shadowing(paths: Sequence[str], ours: Document, aliases: Aliases = NO_ALIASES) -> Document:
    """Return our entries for a file that precedes these files: a current context in one of them is kept.

    kubectl uses the first entry of a name among the files of KUBECONFIG. Our entry must not shadow another's,
    or that name would silently lead to another cluster; raises AgentError then. Unreadable files are skipped,
    since kubectl reports them. A file with an invalid section raises AgentError, since its names are unknown.
    """
    fitting = dict(ours)
    for path in paths:
        try:
            with open(path, "rb") as file:
                document = read_yaml(file.read(FILE_BYTES_MAX))
        except (OSError, YamlError):
            continue
        if isinstance(document, dict):
            merge(document, ours, path, aliases)
            if document.get("current-context"):
                fitting.pop("current-context", None)
    return fitting


def kubectl_paths(environment: Mapping[str, str]) -> list[str]:
    """Return the files that kubectl reads: KUBECONFIG's (it writes the first), or ~/.kube/config."""
    paths = [path for path in environment.get("KUBECONFIG", "").split(os.pathsep) if path]
    home = environment.get("HOME") or os.path.expanduser("~")
    return paths or [os.path.join(home, ".kube", "config")]


def named(document: Document, section: str, path: str) -> dict[str, Document]:
    """Return the entries of a section, by name. Raises AgentError if the section is not a kubeconfig's."""
    entries = document.get(section) or []
    if not isinstance(entries, list):
        raise AgentError(f"{path} is not a kubeconfig: {section} is not a list")
    named: dict[str, Document] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise AgentError(f"{path} is not a kubeconfig: an entry in {section} has no name")
        # kubectl uses the first entry of a name.
        named.setdefault(entry["name"], entry)
    return named


def _is_ours(
    section: str, present: Document, added: Document, users: Sequence[str], aliases: Aliases
) -> bool:
    before, after = present.get(section[:-1]), added[section[:-1]]
    if not isinstance(before, dict) or not isinstance(after, dict):
        return False
    match section:
        case "clusters":
            return _same_server(before.get("server"), after["server"], aliases)
        case "users":
            return has_our_plugin(present)
        case _:
            return before.get("cluster") == after["cluster"] and before.get("user") in (after["user"], *users)


def has_our_plugin(user: Document) -> bool:
    """Whether `hawse kubeconfig` wrote this user of a kubeconfig."""
    settings = user.get("user")
    plugin = settings.get("exec") if isinstance(settings, dict) else None
    return isinstance(plugin, dict) and _is_our_plugin(plugin)


def _is_our_plugin(plugin: Document) -> bool:
    command, arguments = plugin.get("command"), plugin.get("args")
    if isinstance(command, str) and os.path.basename(command) == PLUGIN:
        return True
    # Written by versions in which the plugin was `hawse credential`.
    return isinstance(arguments, list) and arguments[:1] == ["credential"]


def _same_server(before: object, after: object, aliases: Aliases) -> bool:
    """Whether two server URLs are equal up to the port's notation, or lead to the same cluster."""
    if not isinstance(before, str) or not isinstance(after, str):
        return False
    hub, separator, name = before.rpartition("/clusters/")
    try:
        before = f"{hub_origin(hub)}/clusters/{name}" if separator else hub_origin(before)
    except AgentError:
        return False
    return before == after or before in aliases.get(after, ())


def read(path: str) -> Document:
    """Read a kubeconfig; an empty document if the file is missing. Raises AgentError.

    A file of another user is refused. It can name a program, which kubectl would run as this user, and after
    a rewrite it would look like our own.
    """
    try:
        with open(path, "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            # Root is fine: container images ship such files as root.
            if owner not in (0, os.geteuid()):
                raise AgentError(
                    f"{path} belongs to another user (uid {owner}), so it could run programs as you: "
                    "choose another file with --output"
                )
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise AgentError(f"{path} is not a kubeconfig: it is larger than {FILE_BYTES_MAX} bytes")
    try:
        document = read_yaml(raw)
    except YamlError as error:
        raise AgentError(f"{path} is not a kubeconfig: it is not YAML") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or document.get("kind", "Config") != "Config":
        raise AgentError(f"{path} is not a kubeconfig")
    return document


def write(path: str, ours: Document, aliases: Aliases = NO_ALIASES) -> None:
    """Merge our entries into the file, or create it (0600). Raises AgentError."""
    merged = merge(read(os.path.realpath(path)), ours, path, aliases)
    replace(path, merged)


def replace(path: str, document: Document) -> None:
    """Replace the file's content with a complete kubeconfig. Raises AgentError."""
    try:
        text = to_yaml([document])
    except (RecursionError, ValueError):
        # A list that contains itself, or a number of 5,000 digits: valid YAML that we can't write. Not
        # chained, as in foreign_yaml.
        raise AgentError(f"{path} has content that hawse can't write back: choose another file") from None
    # A kubeconfig is often a symbolic link into a settings folder: change the target.
    write_private(os.path.realpath(path), text.encode())
