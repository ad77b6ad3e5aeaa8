"""The hub's configuration: its keys, their defaults, and the rules that a type cannot express.

Every key has a default, so a first `hawse hub` needs no file. proxy.process.config reads the file and the
environment, and reports errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import attrs

from audit.patterns import PatternError, compile_pattern
from auth.principal import IdentityError, slug
from proxy.hub.home.data_folder import ENVIRONMENT_PREFIX, default_data_dir
from proxy.hub.home.files.seal_file import SEAL_FILE
from proxy.hub.home.hosts import ClusterHosts
from proxy.hub.home.sections.console import ConsoleConfig, faults_of_console
from proxy.hub.home.sections.database import DatabaseConfig, faults_of_database
from proxy.hub.home.sections.limits import LimitsConfig, faults_of_limits
from proxy.hub.home.sections.peer import PeerConfig, faults_of_peer, misleading_address
from proxy.hub.home.sections.webhook import WebhookConfig, faults_of_webhooks
from proxy.listener.balancers import Balancers
from proxy.process.config import Address, ConfigError, add_faults, fault_of_file, read_stated
from proxy.process.settings import PING_S, fault_of_hub_url, fault_of_memory, fault_of_ping

# Both on loopback: an operator must open them to other machines explicitly.
LISTEN = Address("127.0.0.1", 8443)
ADMIN_LISTEN = Address("127.0.0.1", 8444)
# 26,000 open calls in tunnel mode, 13,000 in direct mode. From three quarters of that on, agents with more
# than 64 open calls get no new one.
MEMORY_MIB = 1024
# A stopping hub serves no new calls, and the next hub usually waits for its end.
STOP_GRACE_S = 10
REPLACED_GRACE_S = 900
# With other hubs the end of one is not urgent, and client-go ends a watch by itself after 5 to 10 minutes.
PEERS_GRACE_S = 900
# A balancer that asks /readyz each 5 s, and believes the third answer.
STOP_LB_S = 15
STOP_GRACE_MAX_S = 86_400
# A failover takes 0.2 to 5 s where promotion is quick.
AUDIT_WAIT_S = 5
AUDIT_WAIT_MAX_S = 60
# The lifetime of a token: after that no agent can call.
DOWN_GRACE_S = 60
# Each pattern is searched in the query of every call.
MASKS_MAX = 100


@attrs.frozen
class TLSConfig:
    """The operator's certificate (chain) and key; both None for a certificate of the development CA."""

    certificate: Path | None = None
    key: Path | None = None


@attrs.frozen
class AdminConfig:
    """The admin API and /metrics: on a separate listener, never on the public one."""

    listen: Address = ADMIN_LISTEN


@attrs.frozen
class TunnelConfig:
    """The relays' tunnels."""

    resume: bool = True
    """Whether a session whose connection is lost resumes over the relay's next connection."""
    ping_s: int = PING_S
    """How often an idle tunnel sends a PING; must be below the idle timeout of any middlebox."""


@attrs.frozen
class AuditConfig:
    """What the audit trail masks, and what the hub does while it cannot be written."""

    mask: tuple[str, ...] = ()
    """Regular expressions. Matches in queries and exec arguments are masked before they are stored."""
    reads_when_down: bool = False
    """Whether reads are answered while the trail cannot be written; writes never are."""
    wait_s: int = AUDIT_WAIT_S
    """How long a write waits for a trail in PostgreSQL whose database is away, before it is refused."""
    down_grace_s: int = DOWN_GRACE_S
    """How long open upgrades may continue while the trail cannot be written; 0 means no limit."""


@attrs.frozen
class StopConfig:
    """How the hub stops."""

    grace_s: int | None = None
    """How long open calls may continue after SIGTERM; a supervisor's SIGKILL must come later.

    None: STOP_GRACE_S, and PEERS_GRACE_S where other hubs serve.
    """
    replaced_grace_s: int = REPLACED_GRACE_S
    """The same for a hub that another one has replaced, whose end delays nothing."""
    lb_s: int = STOP_LB_S
    """How long a hub that leaves the others takes new calls, while its load balancer finds out."""

    def grace(self, *, peers: bool) -> int:
        """The grace of a hub that is stopped, and that has `peers` or has not."""
        if self.grace_s is not None:
            return self.grace_s
        return PEERS_GRACE_S if peers else STOP_GRACE_S


@attrs.frozen
class HubConfig:
    """The configuration of `hawse hub`."""

    org: str = "main"
    listen: Address = LISTEN
    listen_proxy_from: tuple[str, ...] = ()
    """Load balancers in front of `listen`, whose connections begin with a PROXY header (v2)."""
    public_url: str = attrs.field()
    """The hub's URL for agents and relays, and the issuer of its tokens. Without a trailing slash."""
    cluster_hosts: str | None = None
    """A wildcard such as *.k8s.hub.example: each cluster gets a host besides its path."""
    data_dir: Path = attrs.Factory(lambda: default_data_dir(os.environ))
    pid_file: Path | None = None
    """Where the hub writes its process id, once it holds the instance lock and accepts."""
    memory_mib: int = MEMORY_MIB
    """For open calls, and the data that tunnels and calls carry."""
    tls: TLSConfig = TLSConfig()
    database: DatabaseConfig = DatabaseConfig()  # noqa: RUF009 - it is frozen
    peer: PeerConfig = PeerConfig()  # noqa: RUF009 - it is frozen
    admin: AdminConfig = AdminConfig()
    console: ConsoleConfig = ConsoleConfig()  # noqa: RUF009 - it is frozen
    limits: LimitsConfig = LimitsConfig()  # noqa: RUF009 - it is frozen
    tunnel: TunnelConfig = TunnelConfig()
    audit: AuditConfig = AuditConfig()
    stop: StopConfig = StopConfig()
    webhook: tuple[WebhookConfig, ...] = ()
    """The receivers of messages about requests for approval."""
    log_format: Literal["text", "json"] = "text"
    """How the log on stderr is written."""

    @public_url.default
    def _public_url_beside_listen(self) -> str:
        return f"https://localhost:{self.listen.port}"

    @property
    def tunnels_per_relay(self) -> int:
        """How many tunnels a relay is asked for: one where no hub forwards calls to another."""
        return 1 if self.peer.listen is None else self.limits.tunnels_per_relay

    @property
    def public_host(self) -> str:
        """The host of `public_url`, in the form that a certificate uses."""
        host = urlsplit(self.public_url).hostname
        assert host is not None
        return host

    @property
    def seal_file(self) -> Path:
        """The file of the sealing keys, for a directory in PostgreSQL."""
        return self.database.seal_file or self.data_dir / SEAL_FILE

    @property
    def hosts(self) -> ClusterHosts | None:
        """The hosts of the clusters, if they have any."""
        return None if self.cluster_hosts is None else ClusterHosts.of(self.cluster_hosts)

    @property
    def misleading(self) -> list[str]:
        """The warnings for addresses of this machine alone on listeners that other machines can reach."""
        found = [] if (fault := misleading_address(self.peer)) is None else [fault]
        if self.public_host == "localhost" and not self.listen.is_loopback:
            found.append(
                f"it listens on {self.listen} for other machines, but its public_url is {self.public_url}: "
                "set public_url"
            )
        return found


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> HubConfig:
    """Read the file (if any) and the environment; raises ConfigError with all errors of both."""
    faults: list[str] = []
    config = read(path, os.environ if environment is None else environment, faults)
    if faults or config is None:
        raise ConfigError(faults)
    return config


def read(path: Path | None, environment: Mapping[str, str], faults: list[str]) -> HubConfig | None:
    """Like `load`, but adds the errors to `faults`, and uses the defaults for invalid values."""
    defaults = {"data_dir": str(default_data_dir(environment))}
    config = read_stated(HubConfig, ENVIRONMENT_PREFIX, path, environment, faults, defaults=defaults)
    if config is None:
        return None
    add_faults(faults, _check(config))
    console = attrs.evolve(config.console, public_url=config.console.public_url.rstrip("/"))
    return attrs.evolve(config, public_url=config.public_url.rstrip("/"), console=console)


def _check(config: HubConfig) -> list[str]:
    """Return the violations of the rules that a type cannot express."""
    faults = []
    try:
        slug("org", config.org)
    except IdentityError as error:
        faults.append(f"org: {error}")
    fault = fault_of_hub_url(config.public_url)
    if fault is not None:
        faults.append(f"public_url: {fault}")
    else:
        faults.extend(_check_hosts(config))
    try:
        Balancers.of(config.listen_proxy_from)
    except ValueError as error:
        faults.append(f"listen_proxy_from: {error}")
    faults.extend(_check_tls(config.tls))
    faults.extend(faults_of_database(config.database))
    faults.extend(faults_of_peer(config.peer, in_postgres=config.database.url is not None))
    faults.extend(faults_of_console(config.console))
    faults.extend(_check_listeners(config))
    faults.extend(faults_of_limits(config.limits))
    fault = fault_of_memory(config.memory_mib)
    if fault is not None:
        faults.append(f"memory_mib: {fault}")
    for name, seconds in attrs.asdict(config.stop).items():
        if seconds is not None and not 0 <= seconds <= STOP_GRACE_MAX_S:
            faults.append(f"stop.{name}: expected 0 to {STOP_GRACE_MAX_S} seconds")
    if not 0 <= config.audit.wait_s <= AUDIT_WAIT_MAX_S:
        faults.append(f"audit.wait_s: expected 0 to {AUDIT_WAIT_MAX_S} seconds")
    if not 0 <= config.audit.down_grace_s <= STOP_GRACE_MAX_S:
        faults.append(f"audit.down_grace_s: expected 0 (without end) to {STOP_GRACE_MAX_S} seconds")
    fault = fault_of_ping(config.tunnel.ping_s)
    if fault is not None:
        faults.append(f"tunnel.ping_s: {fault}")
    faults.extend(faults_of_webhooks(config.webhook))
    faults.extend(f"audit.mask: {fault}" for fault in _check_mask(config.audit.mask))
    return faults


def _check_listeners(config: HubConfig) -> list[str]:
    """Return the listeners that are stated to be another one as well."""
    listeners = (
        ("listen", config.listen, "agents and relays need"),
        ("admin.listen", config.admin.listen, "the admin API needs"),
        ("peer.listen", config.peer.listen, "the links need"),
        ("console.listen", config.console.listen, "the console needs"),
    )
    return [
        f"{name}: the same address as {other}; {need} a separate listener"
        for number, (name, address, need) in enumerate(listeners)
        for other, taken, _ in listeners[:number]
        if address is not None and address == taken and address.port != 0
    ]


def _check_tls(tls: TLSConfig) -> list[str]:
    faults = []
    if (tls.certificate is None) != (tls.key is None):
        faults.append("tls: certificate and key are given together, or neither")
    for name, file in (("certificate", tls.certificate), ("key", tls.key)):
        fault = None if file is None else fault_of_file(file)
        if fault is not None:
            faults.append(f"tls.{name}: {fault}")
    return faults


def _check_hosts(config: HubConfig) -> list[str]:
    try:
        hosts = config.hosts
    except ValueError as error:
        return [f"cluster_hosts: {error}"]
    if hosts is not None and hosts.cluster_of(config.public_host.encode("ascii")) is not None:
        return [f"cluster_hosts: the host of public_url matches {hosts.pattern}, which is for clusters only"]
    return []


def _check_mask(patterns: tuple[str, ...]) -> list[str]:
    if len(patterns) > MASKS_MAX:
        return [f"expected at most {MASKS_MAX} regular expressions"]
    faults = []
    for number, pattern in enumerate(patterns, 1):
        try:
            compile_pattern(pattern)
        except PatternError as error:
            faults.append(f"number {number} {error}")
        except ImportError:
            return ["needs the package google-re2: pip install google-re2"]
    return faults
