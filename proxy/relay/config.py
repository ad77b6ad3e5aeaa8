"""The relay's configuration: a TOML file, overlaid by HAWSE_RELAY_* of the environment, checked as a whole.

All faults are reported at once. Values are never repeated in a message: a private key pasted where its
file's name belongs must not reach a log.

The variable of a key is its path in capitals: `direct.listen` is HAWSE_RELAY_DIRECT_LISTEN. Paths in the
file are relative to the file, so that the relay's working directory does not matter.

    mode = "tunnel"                       # or "direct"
    cluster_id = "0193…"
    private_key = "relay-key.pem"         # tunnel mode: proves the relay to the hub
    kubeconfig = "kubeconfig"             # outside the cluster only
    instance = "relay-0"                  # among the relays of one cluster; the host's name if absent
    [hub]
    url = "https://hub.example"           # the issuer of the tokens, and what tunnel mode dials
    keys = "hub-keys.json"                # the hub's public keys (JWKS), pinned
    ca = "hub-ca.pem"                     # if the hub's certificate is not of a public CA
    [direct]
    listen = "0.0.0.0:8443"
    certificate = "tls.crt"
    key = "tls.key"
    [health]
    listen = "0.0.0.0:8080"
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

from auth.keys import KeyFormatError, KeySet, SigningKey

ENVIRONMENT_PREFIX = "HAWSE_RELAY_"
# The environment's way to name the file itself; not a key of it.
CONFIG_VARIABLE = "HAWSE_RELAY_CONFIG"
# Kubernetes puts HAWSE_RELAY_PORT=tcp://… into every pod beside a Service named `hawse-relay`.
_SERVICE_LINK = re.compile(r"HAWSE_RELAY_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
# A file beyond this is none of ours (keys, certificates, configuration).
FILE_BYTES_MAX = 256 * 1024
_INSTANCE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_CLUSTER_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_Value = TypeVar("_Value")


class ConfigError(Exception):
    """The configuration has faults; `faults` holds one line for each, `path: what is wrong`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@attrs.frozen
class Address:
    """An IP address or host name to listen on, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port` or `[v6]:port`; raises ValueError."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text, re.ASCII)
        if match is None or int(match[3]) > 65535:
            raise ValueError("expected host:port, as in 0.0.0.0:8080 or [::]:8080")
        return cls(match[1] or match[2], int(match[3]))


@attrs.frozen
class HubConfig:
    """The hub, as this relay knows it."""

    url: str
    keys: Path
    ca: Path | None = None


@attrs.frozen
class DirectConfig:
    """The listener of direct mode."""

    listen: Address | None = None
    certificate: Path | None = None
    key: Path | None = None


@attrs.frozen
class HealthConfig:
    """The probes' listener; none when absent."""

    listen: Address | None = None


@attrs.frozen
class FileConfig:
    """The keys of the file, as they stand there."""

    cluster_id: str
    hub: HubConfig
    mode: Literal["tunnel", "direct"] = "tunnel"
    private_key: Path | None = None
    kubeconfig: Path | None = None
    instance: str = attrs.Factory(lambda: default_instance())
    direct: DirectConfig = DirectConfig()
    health: HealthConfig = HealthConfig()


@attrs.frozen
class DirectListener:
    """Direct mode: where the hub reaches this relay."""

    listen: Address
    certificate: Path
    key: Path


@attrs.frozen
class TunnelDial:
    """Tunnel mode: how this relay proves itself to the hub."""

    key: SigningKey
    hub_ca_pem: str | None


@attrs.frozen
class RelayConfig:
    """A checked configuration with its files read; in each mode it holds what that mode needs."""

    way: TunnelDial | DirectListener
    cluster_id: str
    instance: str
    hub_url: str
    hub_keys: KeySet
    kubeconfig: Path | None
    health_listen: Address | None


def default_instance() -> str:
    """The host's name: a pod's own name in a cluster, and the same again after a restart on one machine."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:128].strip("-._")
    return name or "relay"


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> RelayConfig:
    """Read the file (if any), the environment and the files they name.

    Raises ConfigError with every fault.
    """
    if environment is None:
        environment = os.environ
    if path is None and environment.get(CONFIG_VARIABLE):
        path = Path(environment[CONFIG_VARIABLE])
    faults: list[str] = []
    tree: dict[str, object] = {}
    if path is not None:
        text = _read(str(path), path, str, faults)
        if text is not None:
            try:
                tree = tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                faults.append(f"{path}: {error}")
    _overlay(tree, environment, faults)
    if faults and not tree:
        # Without the file each of its keys would be reported as missing.
        raise ConfigError(faults)
    stated = _structure(tree, path.absolute().parent if path is not None else Path.cwd(), faults)
    checked = _check(stated, faults) if stated is not None else None
    if faults or checked is None:
        raise ConfigError(faults)
    return checked


def _overlay(tree: dict[str, object], environment: Mapping[str, str], faults: list[str]) -> None:
    """Put the environment's values into the tree, as the TOML would have spelt them."""
    places = _variables()
    for name, text in sorted(environment.items()):
        if (
            not name.startswith(ENVIRONMENT_PREFIX)
            or name == CONFIG_VARIABLE
            or _SERVICE_LINK.fullmatch(name)
        ):
            continue
        if name not in places:
            faults.append(f"{name}: no such setting; there are {', '.join(sorted(places))}")
            continue
        section, key = places[name]
        table = tree if section is None else tree.setdefault(section, {})
        if isinstance(table, dict):  # else the file's fault, which structuring reports
            table[key] = text


def _variables() -> dict[str, tuple[str | None, str]]:
    """Every variable with its place in the tree; all values are strings in the TOML as well."""
    places: dict[str, tuple[str | None, str]] = {}
    sections = {"hub": HubConfig, "direct": DirectConfig, "health": HealthConfig}
    for field in attrs.fields(FileConfig):
        if field.name not in sections:
            places[ENVIRONMENT_PREFIX + field.name.upper()] = (None, field.name)
    for section, cls in sections.items():
        for field in attrs.fields(cls):
            places[f"{ENVIRONMENT_PREFIX}{section}_{field.name}".upper()] = (section, field.name)
    return places


def _structure(tree: dict[str, object], base: Path, faults: list[str]) -> FileConfig | None:
    def path(value: object, _: object) -> Path:
        text = _text(value)
        if not text or "\x00" in text or "\n" in text:
            raise ValueError("expected the path of a file")
        return base / Path(text).expanduser()

    def mode(value: object, _: object) -> str:
        if value not in {"tunnel", "direct"}:
            raise ValueError('expected "tunnel" or "direct"')
        return _text(value)

    def address(value: object, _: object) -> Address:
        return Address.parse(_text(value))

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(Path, path)
    converter.register_structure_hook(Path | None, path)
    converter.register_structure_hook(Address | None, address)
    converter.register_structure_hook_func(lambda cls: cls == Literal["tunnel", "direct"], mode)
    for section in ("hub", "direct", "health"):
        if not isinstance(tree.get(section, {}), dict):
            faults.append(f"{section}: expected a table")
            return None
    tree.setdefault("hub", {})
    try:
        return converter.structure(tree, FileConfig)
    except ClassValidationError as error:
        _collect(error, "", faults)
        return None


def _text(value: object, _: object = str) -> str:
    # cattrs by itself makes "5" of 5, which hides what the operator mistook.
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _collect(error: ClassValidationError, prefix: str, faults: list[str]) -> None:
    """Flatten cattrs' tree of faults: its notes hold the paths, the leaves are ours and hold no value."""
    noted, alone = error.group_exceptions()
    for fault, note in noted:
        if isinstance(fault, ClassValidationError):
            _collect(fault, f"{prefix}{note.name}.", faults)
        elif isinstance(fault, KeyError):
            faults.append(f"{prefix}{note.name}: missing")
        else:
            faults.append(f"{prefix}{note.name}: {fault}")
    for extra in alone:
        assert isinstance(extra, ForbiddenExtraKeysError)
        faults.extend(f"{prefix}{key}: no such key" for key in sorted(extra.extra_fields))


def _check(stated: FileConfig, faults: list[str]) -> RelayConfig | None:
    """Apply the rules that a type cannot state, and read the key files; None when there is a fault."""
    if _CLUSTER_ID.fullmatch(stated.cluster_id) is None:
        faults.append("cluster_id: expected the id that the hub gave the cluster")
    if _INSTANCE.fullmatch(stated.instance) is None:
        faults.append("instance: expected up to 128 letters, digits, '.', '_' or '-'")
    fault = _fault_of_url(stated.hub.url)
    if fault is not None:
        faults.append(f"hub.url: {fault}")
    hub_keys = _read("hub.keys", stated.hub.keys, KeySet.from_jwks, faults)
    way = _check_tunnel(stated, faults) if stated.mode == "tunnel" else _check_direct(stated.direct, faults)
    if faults or hub_keys is None or way is None:
        return None
    return RelayConfig(
        way=way,
        cluster_id=stated.cluster_id,
        instance=stated.instance,
        hub_url=stated.hub.url.rstrip("/"),
        hub_keys=hub_keys,
        kubeconfig=stated.kubeconfig,
        health_listen=stated.health.listen,
    )


def _check_tunnel(stated: FileConfig, faults: list[str]) -> TunnelDial | None:
    if stated.private_key is None:
        faults.append("private_key: missing, tunnel mode proves the relay to the hub by it")
        return None
    key = _read("private_key", stated.private_key, lambda text: SigningKey.from_pem(text.encode()), faults)
    ca = _read("hub.ca", stated.hub.ca, str, faults) if stated.hub.ca is not None else None
    return TunnelDial(key, ca) if key is not None else None


def _check_direct(direct: DirectConfig, faults: list[str]) -> DirectListener | None:
    missing = [
        name
        for name, value in (
            ("listen", direct.listen),
            ("certificate", direct.certificate),
            ("key", direct.key),
        )
        if value is None
    ]
    faults.extend(f"direct.{name}: missing, direct mode needs it" for name in missing)
    if direct.listen is None or direct.certificate is None or direct.key is None:
        return None
    for name, file in (("certificate", direct.certificate), ("key", direct.key)):
        _read(f"direct.{name}", file, str, faults)
    return DirectListener(direct.listen, direct.certificate, direct.key)


def _read(name: str, path: Path, load: Callable[[str], _Value], faults: list[str]) -> _Value | None:
    """Read a small text file and load what it holds; a fault is one line under `name`."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        faults.append(f"{name}: cannot be read: {error.strerror}")
        return None
    if len(raw) > FILE_BYTES_MAX:
        faults.append(f"{name}: larger than {FILE_BYTES_MAX} bytes")
        return None
    try:
        return load(raw.decode("utf-8"))
    except UnicodeDecodeError:
        faults.append(f"{name}: not UTF-8")
    except KeyFormatError as error:
        faults.append(f"{name}: {error}")
    return None


def _fault_of_url(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme != "https" or not parts.hostname or port == 0 or not re.fullmatch(r"[!-~]+", url):
        return "expected https://host or https://host:port"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or password"
    if parts.path.rstrip("/") or "?" in url or "#" in url:
        return "the hub stands at the root of its host, so no path, query or fragment"
    if url != url.lower():
        # Tokens compare the issuer as a string (RFC 7519 section 4.1.1), so there is one spelling.
        return "write it in lower case"
    return None
