"""Kubeconfigs that hold no credential: they name the hub's clusters, and the plugin that gets a token.

Entries are merged into a file that stands already. One that has the same name and is not ours is left
alone, and the command refuses: it may be somebody's only way into a cluster.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from auth.principal import IdentityError, slug
from proxy.agent.account import Account, cluster_url, hub_origin
from proxy.agent.credential import API_VERSIONS
from proxy.agent.errors import AgentError, quoted
from proxy.agent.files import FILE_BYTES_MAX, write_private
from proxy.agent.hub import Reach
from proxy.kubernetes.manifests import to_yaml
from proxy.kubernetes.untrusted_yaml import YamlError, read_yaml

USER = "hawse"
PLUGIN = "hawse-credential"
# kubectl hands the whole CA to the plugin in one variable, and Linux takes none of more than 128 KiB. In PEM;
# it becomes a third longer on its way.
EMBEDDED_CA_BYTES_MAX = 90 * 1024
Document: TypeAlias = "dict[str, object]"
Forms: TypeAlias = "Mapping[str, frozenset[str]]"
NO_FORMS: Forms = {}
# No `pip install hawse`: no registry has the package yet, so the name is free for anyone to register.
_INSTALL_HINT = (
    f"{PLUGIN} is not on the PATH: install Hawse, or write this kubeconfig again (hawse kubeconfig)"
)


def chosen_clusters(reach: Reach, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the clusters to write: those that are named, or all that the agent may reach.

    Raises AgentError.
    """
    try:
        names = tuple(dict.fromkeys(slug("cluster name", name) for name in wanted))
    except IdentityError as error:
        raise AgentError(str(error)) from error
    missing = [name for name in names if name not in reach.clusters]
    if missing:
        reachable = ", ".join(reach.clusters) or "none"
        raise AgentError(f"agent {reach.agent} may not reach {', '.join(missing)}; it may reach: {reachable}")
    if not reach.clusters:
        raise AgentError(
            f"agent {reach.agent} may reach no cluster: the operator grants one to its team by "
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
    """Make a whole kubeconfig for the clusters.

    Raises AgentError for a namespace or prefix that is none, and for a CA that is too long to be embedded.

    With `user_per_cluster` each has a user of its own, whose plugin is told by an argument which it is, in
    the older form of plugins: for clients that tell a plugin nothing. With `hosts` each server is a host of
    its own, and an argument tells the plugin the hub.
    """
    try:
        if namespace is not None:
            slug("namespace", namespace)
        if prefix:
            slug("prefix", prefix.removesuffix("-"))
    except IdentityError as error:
        raise AgentError(str(error)) from error
    ca_bytes = len(account.ca_pem or "")
    if embed_ca and ca_bytes > EMBEDDED_CA_BYTES_MAX:
        raise AgentError(
            f"the CA of the login has {ca_bytes} bytes, and kubectl can use {EMBEDDED_CA_BYTES_MAX} here: "
            "log in again with the hub's own CA alone, or trust the system's by --no-embed-ca"
        )
    ca = (
        {"certificate-authority-data": base64.b64encode(account.ca_pem.encode()).decode("ascii")}
        if embed_ca and account.ca_pem is not None
        else {}
    )
    plugin = {
        "apiVersion": API_VERSIONS[0],
        "command": command,
        "interactiveMode": "IfAvailable",
        # The plugin takes hub and cluster out of the server's URL.
        "provideClusterInfo": True,
        "installHint": _INSTALL_HINT,
    }
    names = [prefix + cluster for cluster in clusters]
    servers = [cluster_url(account, cluster, hosts) for cluster in clusters]
    hub = [] if hosts is None else ["--hub", account.hub]
    if user_per_cluster:
        users = [f"{prefix}{USER}-{cluster}" for cluster in clusters]
        older = {**plugin, "apiVersion": API_VERSIONS[1]}
        plugins = [{**older, "args": ["--server", server, *hub]} for server in servers]
    elif hub:
        # One for each hub, so that the kubeconfig may have several.
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
        "contexts": [
            {
                "name": name,
                "context": {
                    "cluster": name,
                    "user": user,
                    **({"namespace": namespace} if namespace is not None else {}),
                },
            }
            for name, user in zip(names, users, strict=True)
        ],
        "current-context": names[0],
    }


def forms(account: Account, clusters: Sequence[str], reach: Reach) -> Forms:
    """Return the URLs that a cluster's entry may have had before, by each that it may get."""
    every = {None, account.cluster_hosts, reach.cluster_hosts}
    found: dict[str, frozenset[str]] = {}
    for cluster in clusters:
        urls = frozenset(cluster_url(account, cluster, hosts) for hosts in every)
        found.update(dict.fromkeys(urls, urls))
    return found


def merge(existing: Document, ours: Document, path: str = "the file", forms: Forms = NO_FORMS) -> Document:
    """Put our entries into a kubeconfig, in place of earlier ones of ours; its current context stays.

    `forms` has the other URLs by which an entry may lead to the same cluster. Raises AgentError when an entry
    of the same name is not ours, or the document is no kubeconfig.
    """
    merged = {"apiVersion": "v1", "kind": "Config", **existing}
    # By either form of the command: who asks for the other one means the same cluster.
    users = [name for name, user in named(existing, "users", path).items() if has_our_plugin(user)]
    for section in ("clusters", "users", "contexts"):
        present, added = named(existing, section, path), named(ours, section, path)
        for name, entry in added.items():
            if name in present and not _is_ours(section, present[name], entry, users, forms):
                raise AgentError(
                    f"{path} has an entry {quoted(name)} in {section} that is not of this hub: "
                    "choose other names by --prefix, or another file by --output"
                )
        merged[section] = list({**present, **added}.values())
    if current := existing.get("current-context") or ours.get("current-context"):
        merged["current-context"] = current
    return merged


def fit_before(paths: Sequence[str], ours: Document, forms: Forms = NO_FORMS) -> Document:
    """Return our entries as they may stand before these files: the current context of one of them stays.

    Raises AgentError where one of ours would stand before another's of the same name. kubectl takes the first
    that it finds in the files of KUBECONFIG: what led to one cluster would lead to another from then on,
    without a word. A file that cannot be read is kubectl's to tell of; one with a section that is none of a
    kubeconfig's is refused, since what it names cannot be told.
    """
    fitting = dict(ours)
    for path in paths:
        try:
            with open(path, "rb") as file:
                document = read_yaml(file.read(FILE_BYTES_MAX))
        except (OSError, YamlError):
            continue
        if isinstance(document, dict):
            merge(document, ours, path, forms)
            if document.get("current-context"):
                fitting.pop("current-context", None)
    return fitting


def kubectls_own(environment: Mapping[str, str]) -> list[str]:
    """Return where kubectl looks: KUBECONFIG's files, of which it writes into the first, or the home's."""
    paths = [path for path in environment.get("KUBECONFIG", "").split(os.pathsep) if path]
    home = environment.get("HOME") or os.path.expanduser("~")
    return paths or [os.path.join(home, ".kube", "config")]


def named(document: Document, section: str, path: str) -> dict[str, Document]:
    """Return the entries of a section, by name. Raises AgentError where that is no kubeconfig's."""
    entries = document.get(section) or []
    if not isinstance(entries, list):
        raise AgentError(f"{path} is no kubeconfig: {section} is no list")
    named: dict[str, Document] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise AgentError(f"{path} is no kubeconfig: an entry in {section} has no name")
        # kubectl takes the first of a name.
        named.setdefault(entry["name"], entry)
    return named


def _is_ours(section: str, present: Document, added: Document, users: Sequence[str], forms: Forms) -> bool:
    before, after = present.get(section[:-1]), added[section[:-1]]
    if not isinstance(before, dict) or not isinstance(after, dict):
        return False
    match section:
        case "clusters":
            return _same_server(before.get("server"), after["server"], forms)
        case "users":
            return has_our_plugin(present)
        case _:
            return before.get("cluster") == after["cluster"] and before.get("user") in (after["user"], *users)


def has_our_plugin(user: Document) -> bool:
    """Whether a user of a kubeconfig is one that `hawse kubeconfig` writes."""
    settings = user.get("user")
    plugin = settings.get("exec") if isinstance(settings, dict) else None
    return isinstance(plugin, dict) and _is_our_plugin(plugin)


def _is_our_plugin(plugin: Document) -> bool:
    command, arguments = plugin.get("command"), plugin.get("args")
    if isinstance(command, str) and os.path.basename(command) == PLUGIN:
        return True
    # As it was written before the plugin was a command of its own.
    return isinstance(arguments, list) and arguments[:1] == ["credential"]


def _same_server(before: object, after: object, forms: Forms) -> bool:
    """Whether two server URLs are one, though the ports be written differently, or lead to one cluster."""
    if not isinstance(before, str) or not isinstance(after, str):
        return False
    hub, separator, name = before.rpartition("/clusters/")
    try:
        before = f"{hub_origin(hub)}/clusters/{name}" if separator else hub_origin(before)
    except AgentError:
        return False
    return before == after or before in forms.get(after, ())


def read(path: str) -> Document:
    """Read a kubeconfig; an empty document when there is no file. Raises AgentError.

    One of another user's is refused: it can name a program, which kubectl would run as this one, and what is
    written in its place would look like our own.
    """
    try:
        with open(path, "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            # Root's own may lie there: an image that brings one along has it from root.
            if owner not in (0, os.geteuid()):
                raise AgentError(
                    f"{path} belongs to another user (uid {owner}), and what it holds would count as yours: "
                    "choose another file by --output"
                )
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise AgentError(f"{path} is no kubeconfig: it has more than {FILE_BYTES_MAX} bytes")
    try:
        document = read_yaml(raw)
    except YamlError as error:
        raise AgentError(f"{path} is no YAML, so no kubeconfig") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or document.get("kind", "Config") != "Config":
        raise AgentError(f"{path} is no kubeconfig")
    return document


def write(path: str, ours: Document, forms: Forms = NO_FORMS) -> None:
    """Merge our entries into the file, or make it, for its owner alone. Raises AgentError."""
    merged = merge(read(os.path.realpath(path)), ours, path, forms)
    replace(path, merged)


def replace(path: str, document: Document) -> None:
    """Write a whole kubeconfig in place of what stands in the file. Raises AgentError."""
    try:
        text = to_yaml([document])
    except (RecursionError, ValueError):
        # A list that holds itself, a number of 5,000 digits: YAML can say more than we can. Not chained, as
        # in foreign_yaml.
        raise AgentError(f"{path} holds what cannot be written again") from None
    # A kubeconfig is often a link into a folder of settings: the file behind it is what changes.
    write_private(os.path.realpath(path), text.encode())
