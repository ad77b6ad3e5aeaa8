"""The relay's configuration: its keys, and the checked values with their files read.

proxy.process.config reads the file and the environment, and describes how errors are reported.

    mode = "tunnel"                       # or "direct"
    cluster_id = "0193…"
    private_key = "relay-key.pem"         # tunnel mode: authenticates the relay to the hub
    kubeconfig = "kubeconfig"             # outside the cluster only
    instance = "relay-0"                  # unique per cluster; default: the host's name
    guardrails = "guardrails.yaml"        # or a folder of such files: limits that the hub cannot exceed
    memory_mib = 320                      # for open calls and the data they carry
    log_format = "text"                   # or "json": one object per line
    [hub]
    url = "https://hub.example"           # the issuer of the tokens, and the address tunnel mode dials
    keys = "hub-keys.json"                # the hub's public keys (JWKS), pinned
    ca = "hub-ca.pem"                     # unless a public CA issued the hub's certificate
    [direct]
    listen = "[::]:8443"
    listen_proxy_from = ["192.0.2.7"]     # load balancers, whose connections begin with a PROXY header
    certificate = "tls.crt"
    key = "tls.key"
    [tunnel]
    resume = true                         # whether a session resumes after its connection is lost
    clock_bound_s = 900                   # how far the hub's clock may differ from this machine's
    ping_s = 30                           # interval of pings on an idle tunnel
    [health]
    listen = "[::]:8080"
    [stop]
    grace_s = 60                          # for open calls at SIGTERM
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import attrs

from auth.keys import KeyFormatError, KeySet, SigningKey
from proxy.listener.balancers import NO_BALANCERS, Balancers
from proxy.process.certificates import fault_of_ca
from proxy.process.config import Address, ConfigError, add_faults, read_stated, read_text
from proxy.process.settings import MIB, PING_S, fault_of_hub_url, fault_of_memory, fault_of_ping
from proxy.relay.service_account import ClusterAccessError, own_namespace

if TYPE_CHECKING:
    from proxy.relay.guardrails import Guardrails

ENVIRONMENT_PREFIX = "HAWSE_RELAY_"
# An ordinary request ends within this, and systemd sends SIGKILL after 90 s. The manifests set 15 minutes.
STOP_GRACE_S = 60
STOP_GRACE_MAX_S = 3600
# 4,000 open calls in direct mode, 8,000 in tunnel mode. The manifests give it 512 MiB; the others are for the
# process itself (70), and for memory that is counted late or not at all (PROTOCOL.md, "Memory").
MEMORY_MIB = 320
# Covers a machine's clock between boot and the first answer of NTP. A retired signing key is refused later by
# this at most. Below the minimum, an unsynchronized clock would be refused within months. Above the maximum,
# the bound is useless.
CLOCK_BOUND_S = 900
CLOCK_BOUND_MIN_S = 60
CLOCK_BOUND_MAX_S = 86_400
_INSTANCE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_CLUSTER_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_Value = TypeVar("_Value")


@attrs.frozen
class HubConfig:
    """The relay's settings about the hub."""

    url: str
    keys: Path
    ca: Path | None = None


@attrs.frozen
class DirectConfig:
    """The listener of direct mode."""

    listen: Address | None = None
    listen_proxy_from: tuple[str, ...] = ()
    """Load balancers in front of `listen`, whose connections begin with a PROXY header (v2)."""
    certificate: Path | None = None
    key: Path | None = None


@attrs.frozen
class TunnelConfig:
    """The tunnel that this relay dials."""

    resume: bool = True
    """Whether a session resumes on the next connection after one is lost."""
    clock_bound_s: int = CLOCK_BOUND_S
    """How far the hub's clock may differ from this machine's, in either direction."""
    ping_s: int = PING_S
    """The interval of PINGs on an idle tunnel; below the idle timeout of any middlebox on the path."""


@attrs.frozen
class HealthConfig:
    """The listener for health probes; none when absent."""

    listen: Address | None = None


@attrs.frozen
class StopConfig:
    """How the relay stops."""

    grace_s: int = STOP_GRACE_S
    """How long open calls may continue after SIGTERM; SIGKILL must come later than that."""


@attrs.frozen
class FileConfig:
    """The keys of the file, unchecked."""

    cluster_id: str
    hub: HubConfig
    mode: Literal["tunnel", "direct"] = "tunnel"
    private_key: Path | None = None
    kubeconfig: Path | None = None
    instance: str = attrs.Factory(lambda: default_instance())
    guardrails: Path | None = None
    memory_mib: int = MEMORY_MIB
    direct: DirectConfig = DirectConfig()
    tunnel: TunnelConfig = TunnelConfig()
    health: HealthConfig = HealthConfig()
    stop: StopConfig = StopConfig()
    log_format: Literal["text", "json"] = "text"
    """The format of the log on stderr."""


@attrs.frozen
class DirectListener:
    """Direct mode: the listener that the hub dials."""

    listen: Address
    certificate: Path
    key: Path
    balancers: Balancers = NO_BALANCERS


@attrs.frozen
class TunnelDial:
    """Tunnel mode: how the relay authenticates to the hub."""

    key: SigningKey
    hub_ca_pem: str | None


@attrs.frozen
class RelayConfig:
    """A checked configuration with its files read; `way` has the settings of the mode."""

    way: TunnelDial | DirectListener
    cluster_id: str
    instance: str
    hub_url: str
    hub_keys: KeySet
    kubeconfig: Path | None
    health_listen: Address | None
    guardrails: Guardrails | None = None
    memory_bytes: int = MEMORY_MIB * MIB
    stop_grace_s: float = STOP_GRACE_S
    resume: bool = True
    clock_bound_s: float = CLOCK_BOUND_S
    ping_s: float = PING_S


def default_instance() -> str:
    """The host's name: a pod's name in a cluster, and stable across restarts on a machine."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:128].strip("-._")
    return name or "relay"


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> RelayConfig:
    """Read the file (if any), the environment and the files they name.

    Raises ConfigError with every error.
    """
    faults: list[str] = []
    _, checked = read(path, os.environ if environment is None else environment, faults)
    if faults or checked is None:
        raise ConfigError(faults)
    return checked


def read(
    path: Path | None, environment: Mapping[str, str], faults: list[str]
) -> tuple[FileConfig | None, RelayConfig | None]:
    """Like `load`, but append errors to `faults`; return the stated configuration too."""
    stated = read_stated(FileConfig, ENVIRONMENT_PREFIX, path, environment, faults)
    if stated is None:
        return None, None
    found: list[str] = []
    checked = _check(stated, found)
    add_faults(faults, found)
    return stated, checked


def _check(stated: FileConfig, faults: list[str]) -> RelayConfig | None:
    """Apply the rules that types cannot express, and read the key files; None if there are errors."""
    if _CLUSTER_ID.fullmatch(stated.cluster_id) is None:
        faults.append("cluster_id: expected the id that the hub gave the cluster")
    if _INSTANCE.fullmatch(stated.instance) is None:
        faults.append("instance: expected up to 128 letters, digits, '.', '_' or '-'")
    fault = fault_of_memory(stated.memory_mib)
    if fault is not None:
        faults.append(f"memory_mib: {fault}")
    if not 0 <= stated.stop.grace_s <= STOP_GRACE_MAX_S:
        faults.append(f"stop.grace_s: expected 0 to {STOP_GRACE_MAX_S}")
    if not CLOCK_BOUND_MIN_S <= stated.tunnel.clock_bound_s <= CLOCK_BOUND_MAX_S:
        faults.append(f"tunnel.clock_bound_s: expected {CLOCK_BOUND_MIN_S} to {CLOCK_BOUND_MAX_S}")
    fault = fault_of_ping(stated.tunnel.ping_s)
    if fault is not None:
        faults.append(f"tunnel.ping_s: {fault}")
    fault = fault_of_hub_url(stated.hub.url)
    if fault is not None:
        faults.append(f"hub.url: {fault}")
    hub_keys = _read("hub.keys", stated.hub.keys, KeySet.from_jwks, faults)
    guardrails = _read_guardrails(stated, faults)
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
        guardrails=guardrails,
        memory_bytes=stated.memory_mib * MIB,
        stop_grace_s=stated.stop.grace_s,
        resume=stated.tunnel.resume,
        clock_bound_s=stated.tunnel.clock_bound_s,
        ping_s=stated.tunnel.ping_s,
    )


def _read_guardrails(stated: FileConfig, faults: list[str]) -> Guardrails | None:
    """Read the owner's guardrails. A relay that cannot enforce them does not start."""
    if stated.guardrails is None:
        return None
    from auth.policy.text import PolicyError
    from proxy.relay.guardrails import Guardrails

    try:
        return Guardrails(stated.guardrails, namespace=own_namespace() if stated.kubeconfig is None else "")
    except PolicyError as error:
        faults.extend(f"guardrails: {fault}" for fault in error.faults)
    except ClusterAccessError as error:
        faults.append(f"guardrails: they close the relay's own namespace, and {error}")
    return None


def _check_tunnel(stated: FileConfig, faults: list[str]) -> TunnelDial | None:
    if stated.private_key is None:
        faults.append("private_key: missing, tunnel mode needs it to authenticate to the hub")
        return None
    key = _read("private_key", stated.private_key, lambda text: SigningKey.from_pem(text.encode()), faults)
    ca = _read_ca(stated.hub.ca, faults) if stated.hub.ca is not None else None
    return TunnelDial(key, ca) if key is not None else None


def _read_ca(path: Path, faults: list[str]) -> str | None:
    pem = read_text("hub.ca", path, faults)
    fault = None if pem is None else fault_of_ca(pem)
    if fault is not None:
        faults.append(f"hub.ca: {path} {fault}: name the file of the CA of the hub's certificate")
    return pem


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
    try:
        balancers = Balancers.of(direct.listen_proxy_from)
    except ValueError as error:
        faults.append(f"direct.listen_proxy_from: {error}")
        return None
    return DirectListener(direct.listen, direct.certificate, direct.key, balancers)


def _read(name: str, path: Path, load: Callable[[str], _Value], faults: list[str]) -> _Value | None:
    """Read a small text file and load its content; an error is one line under `name`."""
    text = read_text(name, path, faults)
    if text is None:
        return None
    try:
        return load(text)
    except KeyFormatError as error:
        faults.append(f"{name}: {path}: {error}")
        return None
