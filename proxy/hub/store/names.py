"""Which names, owners, labels and addresses may be stored. Nothing is repaired: it fits or it is refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias
from urllib.parse import urlsplit

from auth.policy.document import LABEL_KEY, LABEL_VALUE
from auth.principal import IdentityError, slug
from proxy.hub.store.errors import InvalidError, NotFoundError
from proxy.process.suggestions import did_you_mean

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

LABELS_MAX = 64
OWNER_LENGTH_MAX = 254
PEM_LENGTH_MAX = 64 * 1024

# RFC 6052, RFC 8215, and what RFC 4291 has given up.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
# Where Oracle's and Azure's clouds answer their machines, beside the link-local address that all clouds have.
_CLOUD_SERVICES = frozenset({ipaddress.IPv4Address("192.0.0.192"), ipaddress.IPv4Address("168.63.129.16")})


def check_name(kind: str, name: str) -> None:
    try:
        slug(kind, name)
    except IdentityError as error:
        raise InvalidError(str(error)) from error


def check_owner(owner: str) -> None:
    if not 1 <= len(owner) <= OWNER_LENGTH_MAX or not owner.isprintable() or owner != owner.strip():
        raise InvalidError(
            f"the owner is a person's name or address, 1 to {OWNER_LENGTH_MAX} printable characters"
        )


def check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise InvalidError(f"{len(labels)} labels exceed the {LABELS_MAX} that a cluster may have")
    for key, value in labels.items():
        if LABEL_KEY.fullmatch(key) is None or LABEL_VALUE.fullmatch(value) is None:
            raise InvalidError(f"label {shown(key)}={shown(value)} is not valid by Kubernetes' rules")


def check_relay_url(url: str, *, private: bool) -> None:
    """Raise InvalidError for what is no relay's URL, or leads where none may be dialled."""
    check_https_url("relay URL", url, private=private, path=False)


def check_https_url(kind: str, url: str, *, private: bool, path: bool = True) -> None:
    """Raise InvalidError for what is no https URL that the hub may ask, with a path or without.

    A host name is let through: what it resolves to is checked each time it is dialled.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidError(f"{kind} {shown(url)} is not a URL") from error
    plain = re.fullmatch(r"[!-~]{1,2048}", url, re.ASCII) is not None and not {"?", "#", "@"} & set(url)
    rooted = path or parts.path in {"", "/"}
    if parts.scheme != "https" or not parts.hostname or not plain or port == 0 or not rooted:
        end = "/path" if path else ":port"
        raise InvalidError(f"{kind} {shown(url)} is not https://host or https://host{end}")
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return
    fault = fault_of_address(address, private=private)
    if fault is not None:
        raise InvalidError(f"{kind} {shown(url)} leads to {fault}")


def fault_of_address(address: Address, *, private: bool) -> str | None:
    """Why the hub must not connect to an address; None when it may. `private` allows private ones."""
    if is_nobodys(address):
        return "an address that is never allowed"
    if not private and not is_public(address):
        return "a private address: say that this is meant (--allow-private-address)"
    return None


def destination(address: Address) -> Address:
    """Where packets to an address end: for an IPv6 address that stands for an IPv4 one, that one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_nobodys(address: Address) -> bool:
    """Whether no relay can be at an address, private ones included.

    Link-local is where clouds keep their instance credentials, and some have an address more; the unspecified
    address is this machine.
    """
    address = destination(address)
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return True
    return address in _CLOUD_SERVICES


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, and not of somebody's own network or of this machine.

    `is_global` alone calls 64:ff9b::7f00:1 public, which a translator (NAT64) sends to 127.0.0.1 or to
    whatever private address is written so. Under the prefix for translators of one's own (RFC 8215) the IPv4
    address may stand anywhere, so nothing there counts as public. `is_global` calls fec0::/10 public as well,
    which was for sites alone (RFC 3879).
    """
    there = destination(address)
    if not there.is_global or there in _CLOUD_SERVICES or address in _NAT64_LOCAL:
        return False
    return not (isinstance(there, ipaddress.IPv6Address) and there.is_site_local)


def shown(text: str) -> str:
    """Quote what a caller sent, safe for a terminal and short."""
    return ascii(text[:80])


def not_found(kind: str, name: str, names: Iterable[str]) -> NotFoundError:
    """Make the error for an unknown name, with near matches from `names`."""
    near = did_you_mean(name, names)
    return NotFoundError(
        f"there is no {kind} {shown(name)}{near}: `hawse admin {kind} list` names those there are"
    )
