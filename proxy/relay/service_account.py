"""The API server's address, and the relay's credential for it, read from disk when it changes.

In a cluster both come from the pod's service account; outside, from a kubeconfig with a bearer token. The
kubelet rotates the token well before it expires, and a CA may be rotated too (see proxy.process.files).

Other credentials are refused. A client certificate authenticates the connection and not the request, so a
failed upgrade could leave a socket that acts as the relay (CVE-2018-1002105). A credential plugin or an auth
provider would run code or fetch tokens from elsewhere. A proxy would see the token. Without a pinned CA, any
CA of the system's trust store could impersonate the server.
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

from proxy.process.files import FileError, WatchedFile
from tunnel.net.connect import client_context

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# The configuration key.
KUBECONFIG = "kubeconfig"
_TOKEN = re.compile(r"[\x21-\x7e]+")
# The names that ssl accepts. With any other, each connection would raise, and not as a connection error.
_SERVER_NAME = re.compile(
    r"(?=.{1,254}$)[0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*\.?"
    r"|[0-9A-Fa-f:]{2,39}(?:\.[0-9]{1,3}){0,3}"
)
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_Value = TypeVar("_Value")


class ClusterAccessError(Exception):
    """There is no usable access to the API server.

    `faults` has a line for each reason, which names the file or key, never its content.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@attrs.define(eq=False)
class ClusterAccess:
    """The API server's address, and its credential and trust as currently on disk."""

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
        """The current bearer token."""
        return self._token.current()

    def refresh_token(self) -> bool:
        """Check for a newer token after the API server refused this one; returns whether there is one."""
        before = self._token.current()
        return self._token.refresh() != before

    def ssl_context(self) -> ssl.SSLContext:
        """The TLS context for new connections to the API server."""
        return self._tls.current()


def in_cluster(
    environment: Mapping[str, str] | None = None, folder: Path = SERVICE_ACCOUNT_FOLDER
) -> ClusterAccess:
    """Find the API server as pods do; raises ClusterAccessError."""
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
    """The namespace of this pod; empty outside a cluster.

    Raises ClusterAccessError if a pod cannot find it: the guardrails could not close it.
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

    The server's address is fixed from now on. Token and CA are read again when their file changes, but not if
    it names another server then: one cluster's token must not be sent to another.
    """
    faults: list[str] = []
    watched = _watch(path, _parse_kubeconfig, faults, KUBECONFIG)
    if watched is None:
        raise ClusterAccessError(*faults)
    entry = watched.current()

    def read_again(raw: bytes) -> _Entry:
        changed = _parse_kubeconfig(raw)
        if changed.server != entry.server:
            raise FileError("its current context names another server now: restart the relay to use that one")
        return changed

    def read_token(raw: bytes) -> str:
        token = read_again(raw).token
        if not token:
            raise FileError("its user has a tokenFile now: restart the relay to use it")
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
    """Watch a file; on an error, add it to `faults` and return None.

    `key` is the configuration key that leads to the file.
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
    """Build the access; raises ClusterAccessError with every error."""
    if token is None or tls is None:
        raise ClusterAccessError(*faults)
    return ClusterAccess(host, port, server_name, token, tls)


@attrs.frozen
class _Entry:
    """The current context of a kubeconfig, resolved."""

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
# User keys that are refused, with the reasons.
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
    # A relay in a pod has no kubeconfig, so its start does not load YAML.
    from proxy.kubernetes.untrusted_yaml import YamlError, read_yaml

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
            # Keys may be of any YAML type, and converting a huge number to text fails.
            name = key.removesuffix("-data") if isinstance(key, str) else ""
            if table[key] and name in refused:
                raise FileError(f"the {kind} has {key}: {refused[name]}")
    server = _string(cluster, "server")
    _check_server(server)
    ca, ca_file = b"", _optional(cluster, "certificate-authority")
    data = _optional(cluster, "certificate-authority-data")
    if data is not None:
        # As in client-go, the data override the file.
        ca, ca_file = _decode(data), None
    elif ca_file is None:
        raise FileError("the cluster has no certificate-authority: the relay trusts only a pinned CA")
    token, token_file = "", _optional(user, "tokenFile")
    inline = _optional(user, "token")
    if token_file is None:
        if inline is None:
            raise FileError("the user has no token and no tokenFile")
        # YAML text may not be encodable in UTF-8; the token check then refuses it.
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
        # No certificate contains an address with a zone.
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
