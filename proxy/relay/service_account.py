"""Where the API server is, and the relay's own credential for it, fresh from the disk.

In a cluster both come from the pod's service account; outside, from a kubeconfig with a bearer token. The
kubelet rotates the token well before it expires, and a CA may be rotated too (see proxy.process.files).

What is refused, and why: a client certificate authenticates the connection and not the request, so one
upgrade that goes wrong would leave a socket that acts as the relay (CVE-2018-1002105). A credential plugin
or an auth provider would run code or fetch tokens from elsewhere. A proxy would see the token. A server
without a pinned CA would be whoever the environment's trust store says.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import attrs

from proxy.kubernetes.untrusted_yaml import YamlError, read_yaml
from proxy.process.files import FileError, WatchedFile
from tunnel.net.connect import client_context

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# The key of the relay's configuration.
KUBECONFIG = "kubeconfig"
_TOKEN = re.compile(r"[\x21-\x7e]+")
# What ssl takes for one; anything else it refuses at each connection, and not as a failed one.
_SERVER_NAME = re.compile(
    r"(?=.{1,254}$)[0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*\.?"
    r"|[0-9A-Fa-f:]{2,39}(?:\.[0-9]{1,3}){0,3}"
)
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_Value = TypeVar("_Value")


class ClusterAccessError(Exception):
    """There is no usable way to the API server.

    `faults` has a line for each reason, which names the file or key, never its content.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@attrs.define(eq=False)
class ClusterAccess:
    """The API server's address, and its credential and trust as the disk has them now."""

    host: str
    port: int
    server_name: str
    _token: WatchedFile[str] = attrs.field(repr=False)
    _tls: WatchedFile[ssl.SSLContext] = attrs.field(repr=False)
    authority: bytes = attrs.field(init=False)
    """The Host header."""

    def __attrs_post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = f"{host}:{self.port}".encode("ascii")

    def token(self) -> str:
        """The bearer token to send now."""
        return self._token.current()

    def refresh_token(self) -> bool:
        """Look for a newer token at once, after the API server refused this one; whether there is one."""
        before = self._token.current()
        return self._token.refresh() != before

    def ssl_context(self) -> ssl.SSLContext:
        """What a new connection verifies the API server by."""
        return self._tls.current()


def in_cluster(
    environment: Mapping[str, str] | None = None, folder: Path = SERVICE_ACCOUNT_FOLDER
) -> ClusterAccess:
    """Find the API server as a pod does; raises ClusterAccessError."""
    if environment is None:
        environment = os.environ
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", ""),
    )
    if not host or not port:
        raise ClusterAccessError(
            "not in a cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set): "
            "name a kubeconfig by HAWSE_RELAY_KUBECONFIG"
        )
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not re.fullmatch(
        r"[0-9A-Za-z.:-]+", host, re.ASCII
    ):
        raise ClusterAccessError("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are no host and port")
    faults: list[str] = []
    token = _watch(folder / "token", _parse_token, faults)
    tls = _watch(folder / "ca.crt", _parse_ca, faults)
    return _access(host, int(port), host, token, tls, faults)


def own_namespace(folder: Path = SERVICE_ACCOUNT_FOLDER) -> str:
    """The namespace that this pod runs in; empty outside a cluster.

    Raises ClusterAccessError for a pod that does not know: what is to be closed there would be open.
    """
    file = folder / "namespace"
    try:
        name = file.read_text("ascii").strip()
    except FileNotFoundError as error:
        if not (folder / "token").exists():
            return ""
        raise ClusterAccessError(f"{file} is missing: mount it beside the token") from error
    except OSError as error:
        raise ClusterAccessError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        name = ""
    if _NAMESPACE.fullmatch(name) is None:
        raise ClusterAccessError(f"{file} does not name a namespace")
    return name


def from_kubeconfig(path: Path) -> ClusterAccess:
    """Read the current context of a kubeconfig with a bearer token; raises ClusterAccessError.

    The server's address is fixed from here on; token and CA are read again when their file changes, and stay
    as they are when it names another server: no other cluster's token is sent to this one.
    """
    faults: list[str] = []
    watched = _watch(path, _parse_kubeconfig, faults, KUBECONFIG)
    if watched is None:
        raise ClusterAccessError(*faults)
    entry = watched.current()

    def read_again(raw: bytes) -> _Entry:
        changed = _parse_kubeconfig(raw)
        if changed.server != entry.server:
            raise FileError("its current context is for another server now: restart the relay for that one")
        return changed

    def read_token(raw: bytes) -> str:
        token = read_again(raw).token
        if not token:
            raise FileError("its user has a tokenFile now: restart the relay to go by that")
        return token

    parts = urlsplit(entry.server)
    assert parts.hostname is not None
    if entry.token_file is not None:
        token = _watch(path.parent / entry.token_file, _parse_token, faults, KUBECONFIG)
    else:
        token = _watch(path, read_token, faults, KUBECONFIG)
    if entry.ca_file is not None:
        tls = _watch(path.parent / entry.ca_file, _parse_ca, faults, KUBECONFIG)
    else:
        tls = _watch(path, lambda raw: _parse_ca(read_again(raw).ca), faults, KUBECONFIG)
    name = entry.server_name or parts.hostname
    return _access(parts.hostname, parts.port or 443, name, token, tls, faults)


def _watch(
    path: Path, parse: Callable[[bytes], _Value], faults: list[str], key: str = ""
) -> WatchedFile[_Value] | None:
    """Watch a file; what is wrong with it is added to the faults, and None returned.

    `key` is that of the configuration which leads to the file.
    """
    try:
        return WatchedFile(path, parse, key=key)
    except FileError as error:
        faults.append(str(error))
    return None


def _access(
    host: str,
    port: int,
    server_name: str,
    token: WatchedFile[str] | None,
    tls: WatchedFile[ssl.SSLContext] | None,
    faults: list[str],
) -> ClusterAccess:
    """Raises ClusterAccessError with every fault."""
    if token is None or tls is None:
        raise ClusterAccessError(*faults)
    return ClusterAccess(host, port, server_name, token, tls)


@attrs.frozen
class _Entry:
    """What the current context of a kubeconfig comes to."""

    server: str
    server_name: str | None
    ca: bytes = attrs.field(repr=False)
    ca_file: str | None
    token: str = attrs.field(repr=False)
    token_file: str | None


_NO_CERTIFICATE = (
    "a client certificate authenticates the connection and not each request, so a failed upgrade could "
    "leave a socket that acts as the relay; use a service account's bearer token"
)
_NO_BASIC = "basic authentication is gone from Kubernetes; use a service account's bearer token"
# key of a user → why it is no credential for a relay
_REFUSED_USER_KEYS = {
    "client-certificate": _NO_CERTIFICATE,
    "client-key": _NO_CERTIFICATE,
    "exec": "a credential plugin would run another program; use a service account's bearer token",
    "auth-provider": "it would fetch tokens from elsewhere; use a service account's bearer token",
    "username": _NO_BASIC,
    "password": _NO_BASIC,
    "as": "the relay impersonates agents and cannot itself be impersonated",
}
_REFUSED_CLUSTER_KEYS = {
    "insecure-skip-tls-verify": "the relay verifies the API server always; give its CA",
    "proxy-url": "the relay sends its token straight to the API server, through no proxy",
}


def _parse_kubeconfig(raw: bytes) -> _Entry:
    try:
        document = read_yaml(raw)
    except YamlError as exc:
        raise FileError("not valid YAML") from exc
    if not isinstance(document, dict):
        raise FileError("not a kubeconfig")
    context = _named(document, "contexts", "context", _string(document, "current-context"))
    cluster = _named(document, "clusters", "cluster", _string(context, "cluster"))
    user = _named(document, "users", "user", _string(context, "user"))
    for kind, table, refused in (
        ("cluster", cluster, _REFUSED_CLUSTER_KEYS),
        ("user", user, _REFUSED_USER_KEYS),
    ):
        for key in table:
            # A number may be too long for a text of it.
            name = key.removesuffix("-data") if isinstance(key, str) else ""
            if table[key] and name in refused:
                raise FileError(f"the {kind} has {key}: {refused[name]}")
    server = _string(cluster, "server")
    _check_server(server)
    ca, ca_file = b"", _optional(cluster, "certificate-authority")
    data = _optional(cluster, "certificate-authority-data")
    if data is not None:
        # As client-go has it: data override the file.
        ca, ca_file = _decode(data), None
    elif ca_file is None:
        raise FileError("the cluster has no certificate-authority: the relay trusts only a pinned CA")
    token, token_file = "", _optional(user, "tokenFile")
    inline = _optional(user, "token")
    if token_file is None:
        if inline is None:
            raise FileError("the user has no token and no tokenFile")
        # YAML can say what has no UTF-8; it is no token either.
        token = _parse_token(inline.encode("utf-8", "surrogatepass"))
    server_name = _optional(cluster, "tls-server-name")
    if server_name is not None and _SERVER_NAME.fullmatch(server_name) is None:
        raise FileError("tls-server-name is neither a name nor an address")
    return _Entry(server, server_name, ca, ca_file, token, token_file)


def _named(document: Mapping[object, object], listing: str, key: str, name: str) -> Mapping[object, object]:
    entries = document.get(listing)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(key), dict):
            table: dict[object, object] = entry[key]
            return table
    raise FileError(f"{listing} has no entry with the name that is referred to")


def _string(table: Mapping[object, object], key: str) -> str:
    value = _optional(table, key)
    if value is None:
        raise FileError(f"{key} is missing")
    return value


def _optional(table: Mapping[object, object], key: str) -> str | None:
    value = table.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise FileError(f"{key} is not a string")
    return value


def _check_server(server: str) -> None:
    try:
        parts = urlsplit(server)
        valid = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and server.isascii()
        # No certificate has an address with a zone.
        valid = valid and "%" not in parts.netloc
    except ValueError:
        valid = False
    if not valid or parts.username is not None or parts.path.rstrip("/") or parts.query or parts.fragment:
        raise FileError("server is not https://host or https://host:port")


def _decode(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as exc:
        raise FileError("certificate-authority-data is not base64") from exc


def _parse_token(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace").strip()
    if _TOKEN.fullmatch(text) is None:
        raise FileError("no token in it: expected one line of plain characters")
    return text


def _parse_ca(raw: bytes) -> ssl.SSLContext:
    try:
        return client_context(raw.decode("ascii"))
    except (ssl.SSLError, ValueError) as exc:
        raise FileError("no CA certificate in PEM in it") from exc
