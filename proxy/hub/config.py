"""The hub's configuration: a TOML file, overlaid by HAWSE_HUB_* of the environment, checked as a whole.

Every key has a default, so that a first `hawse hub` needs no file at all. All faults are reported at
once, each with its path, because a service that names one fault per restart costs its operator an
evening. Values are never repeated in a message: a private key pasted where its file's name belongs
must not reach a log.

The variable of a key is its path in capitals: `tls.certificate` is HAWSE_HUB_TLS_CERTIFICATE.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

from auth.principal import IdentityError, slug

ENVIRONMENT_PREFIX = "HAWSE_HUB_"
# The environment's way to name the file itself; not a key of it.
CONFIG_VARIABLE = "HAWSE_HUB_CONFIG"
# Kubernetes puts HAWSE_HUB_PORT=tcp://… into every pod beside a Service named `hawse-hub`.
_SERVICE_LINK = re.compile(r"HAWSE_HUB_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
# A file beyond this is not a configuration (the fullest one possible has about 2 KB).
FILE_BYTES_MAX = 256 * 1024
# Each stream may hold a window of up to 4 MiB at both ends; 10,000 of one agent would be the whole budget.
STREAMS_PER_AGENT_MAX = 10_000
MASKS_MAX = 100


class ConfigError(Exception):
    """The configuration has faults; `faults` holds one line for each, `path: what is wrong`."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@attrs.frozen
class Address:
    """A host to listen on (an IP address, or a name that resolves to one) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port` or `[v6]:port`; raises ValueError."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text, re.ASCII)
        if match is None:
            raise ValueError("expected host:port, as in 127.0.0.1:8443 or [::]:8443")
        v6, name, digits = match.groups()
        if int(digits) > 65535:
            raise ValueError("the port exceeds 65535")
        if v6 is not None and ipaddress.ip_address(v6).version != 6:
            raise ValueError("only an IPv6 address stands in brackets")
        return cls(v6 or name, int(digits))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@attrs.frozen
class TLSConfig:
    """The operator's own certificate (chain) and key; both empty for the development CA's."""

    certificate: Path | None = None
    key: Path | None = None


@attrs.frozen
class AdminConfig:
    """The admin API and /metrics: a listener of their own, never on the public front."""

    listen: Address = Address("127.0.0.1", 8444)


@attrs.frozen
class LimitsConfig:
    """What one agent may take."""

    streams_per_agent: int = 256
    """Concurrent requests of one agent, watches and execs included; the next one is a 429."""


@attrs.frozen
class AuditConfig:
    """What the audit trail hides, and what happens while it cannot be written."""

    mask: tuple[re.Pattern[str], ...] = ()
    """Matches of these in queries and exec arguments are replaced before they are stored."""
    reads_when_down: bool = False
    """Whether reads are still answered while the trail cannot be written; writes never are."""


@attrs.frozen
class HubConfig:
    """Everything `hawse hub` can be told."""

    org: str = "main"
    listen: Address = Address("127.0.0.1", 8443)
    public_url: str = attrs.field()
    """What agents and relays call the hub; the issuer of its tokens. Without a trailing slash."""
    data_dir: Path = attrs.Factory(lambda: default_data_dir(os.environ))
    tls: TLSConfig = TLSConfig()
    admin: AdminConfig = AdminConfig()
    limits: LimitsConfig = LimitsConfig()
    audit: AuditConfig = AuditConfig()

    @public_url.default
    def _public_url_beside_listen(self) -> str:
        return f"https://localhost:{self.listen.port}"

    @property
    def public_host(self) -> str:
        """The host of `public_url`, as a certificate names it."""
        host = urlsplit(self.public_url).hostname
        assert host is not None
        return host


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Where the hub keeps its data when nothing says otherwise: `hawse/hub` under the XDG data home."""
    home = environment.get("XDG_DATA_HOME", "")
    # The specification: "All paths set in these environment variables must be absolute", else ignored.
    base = Path(home) if home.startswith("/") else Path(environment.get("HOME", "/root")) / ".local" / "share"
    return base / "hawse" / "hub"


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> HubConfig:
    """Read the file (if any) and the environment; raises ConfigError with every fault of both."""
    if environment is None:
        environment = os.environ
    if path is None and environment.get(CONFIG_VARIABLE):
        path = Path(environment[CONFIG_VARIABLE])
    faults: list[str] = []
    tree = _read_file(path, faults) if path is not None else {}
    _overlay(tree, environment, faults)
    tree.setdefault("data_dir", str(default_data_dir(environment)))
    config = _structure(tree, path.absolute().parent if path is not None else Path.cwd(), faults)
    if faults or config is None:
        raise ConfigError(faults)
    return config


def _read_file(path: Path, faults: list[str]) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
        return tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        faults.append(f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        faults.append(f"{path}: not UTF-8")
    except ValueError as error:  # tomllib's own error is one
        faults.append(f"{path}: {error}")
    return {}


def _overlay(tree: dict[str, object], environment: Mapping[str, str], faults: list[str]) -> None:
    """Put the environment's values into the tree, as the TOML would have spelt them."""
    readers = _variables()
    for name, text in sorted(environment.items()):
        if (
            not name.startswith(ENVIRONMENT_PREFIX)
            or name == CONFIG_VARIABLE
            or _SERVICE_LINK.fullmatch(name)
        ):
            continue
        if name not in readers:
            faults.append(f"{name}: no such setting; there are {', '.join(sorted(readers))}")
            continue
        section, key, read = readers[name]
        try:
            value = read(text)
        except ValueError as error:
            faults.append(f"{name}: {error}")
            continue
        if section is None:
            tree[key] = value
        else:
            table = tree.setdefault(section, {})
            if isinstance(table, dict):  # else the file's fault, which structuring reports
                table[key] = value


def _variables() -> dict[str, tuple[str | None, str, Callable[[str], object]]]:
    """Every variable, with the place of its value in the tree and how its text becomes a TOML value."""
    found: dict[str, tuple[str | None, str, Callable[[str], object]]] = {}

    def add(cls: type[attrs.AttrsInstance], section: str | None) -> None:
        for field in attrs.fields(attrs.resolve_types(cls)):
            if attrs.has(field.type) and field.type is not Address:
                add(field.type, field.name)
                continue
            path = field.name if section is None else f"{section}_{field.name}"
            read = _READERS.get(field.type, str)
            found[ENVIRONMENT_PREFIX + path.upper()] = (section, field.name, read)

    add(HubConfig, None)
    return found


def _read_int(text: str) -> int:
    # int() would take "1_0" and non-ASCII digits.
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        raise ValueError("expected a whole number")
    return int(text)


def _read_bool(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("expected true or false")
    return text == "true"


def _read_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


_MASKS = tuple[re.Pattern[str], ...]
_READERS: dict[object, Callable[[str], object]] = {
    int: _read_int,
    bool: _read_bool,
    _MASKS: _read_lines,
}


def _structure(tree: dict[str, object], base: Path, faults: list[str]) -> HubConfig | None:
    def path(value: object, _: object) -> Path:
        # Relative to the file that says it, so that the hub's working directory does not matter.
        text = _text(value)
        if not text or "\x00" in text or "\n" in text:
            raise ValueError("expected the path of a file or folder")
        return base / Path(text).expanduser()

    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(bool, _boolean)
    converter.register_structure_hook(Path, path)
    converter.register_structure_hook(Path | None, path)
    converter.register_structure_hook(Address, lambda value, _: Address.parse(_text(value)))
    converter.register_structure_hook_func(lambda cls: cls == _MASKS, _masks)
    for section in ("tls", "admin", "limits", "audit"):
        if not isinstance(tree.get(section, {}), dict):
            faults.append(f"{section}: expected a table")
            del tree[section]
    try:
        config = converter.structure(tree, HubConfig)
    except ClassValidationError as error:
        _collect(error, "", faults)
        return None
    faults.extend(_check(config))
    return attrs.evolve(config, public_url=config.public_url.rstrip("/"))


# The strict types: cattrs by itself makes 5 of "5" and "5" of 5, which hides what the operator mistook.
def _text(value: object, _: object = str) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _whole(value: object, _: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("expected a whole number")
    return value


def _boolean(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _masks(value: object, _: object) -> tuple[re.Pattern[str], ...]:
    if not isinstance(value, list) or len(value) > MASKS_MAX:
        raise ValueError(f"expected a list of at most {MASKS_MAX} regular expressions")
    masks = []
    for number, text in enumerate(value, 1):
        try:
            masks.append(re.compile(_text(text)))
        except re.error as error:
            raise ValueError(f"number {number} is not a regular expression: {error.msg}") from error
    return tuple(masks)


def _collect(error: ClassValidationError, prefix: str, faults: list[str]) -> None:
    """Flatten cattrs' tree of faults: its notes hold the paths, the leaves are ours and hold no value."""
    noted, alone = error.group_exceptions()
    for fault, note in noted:
        if isinstance(fault, ClassValidationError):
            _collect(fault, f"{prefix}{note.name}.", faults)
        else:
            faults.append(f"{prefix}{note.name}: {fault}")
    for extra in alone:
        assert isinstance(extra, ForbiddenExtraKeysError)
        faults.extend(f"{prefix}{key}: no such key" for key in sorted(extra.extra_fields))


def _check(config: HubConfig) -> list[str]:
    """The rules that a type cannot state."""
    faults = []
    try:
        slug("org", config.org)
    except IdentityError as error:
        faults.append(f"org: {error}")
    faults.extend(_check_public_url(config.public_url))
    if (config.tls.certificate is None) != (config.tls.key is None):
        faults.append("tls: certificate and key are given together, or neither")
    for name, file in (("certificate", config.tls.certificate), ("key", config.tls.key)):
        if file is not None and not os.access(file, os.R_OK):
            faults.append(f"tls.{name}: this user cannot read the file it names")
    if config.listen == config.admin.listen and config.listen.port != 0:
        faults.append("admin.listen: the same address as listen; the admin API has a listener of its own")
    if not 1 <= config.limits.streams_per_agent <= STREAMS_PER_AGENT_MAX:
        faults.append(f"limits.streams_per_agent: expected 1 to {STREAMS_PER_AGENT_MAX}")
    return faults


def _check_public_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ["public_url: not a URL"]
    if (
        parts.scheme != "https"
        or not parts.hostname
        or not re.fullmatch(r"[!-~]+", url, re.ASCII)
        or port == 0
    ):
        return ["public_url: expected https://host or https://host:port"]
    if parts.username is not None or parts.password is not None:
        return ["public_url: must not hold a user name or password"]
    if parts.path.rstrip("/") or parts.query or parts.fragment or "?" in url or "#" in url:
        return ["public_url: the hub stands at the root of its host, so no path, query or fragment"]
    if url != url.lower():
        # Tokens compare the issuer as a string (RFC 7519 section 4.1.1), so there is one spelling.
        return ["public_url: write it in lower case"]
    return []
