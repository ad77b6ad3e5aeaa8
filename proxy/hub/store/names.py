"""The rules for stored names, owners, labels and addresses. Invalid values are refused, never corrected."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias
from urllib.parse import urlsplit

from auth.policy.ask import wrong_person
from auth.policy.document import LABEL_KEY, LABEL_VALUE
from auth.principal import IdentityError, slug
from proxy.hub.store.engines.errors import InvalidError, NotFoundError
from proxy.process.suggestions import did_you_mean

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

LABELS_MAX = 64
OWNER_LENGTH_MAX = 254
PEM_LENGTH_MAX = 64 * 1024

# RFC 6052, RFC 8215, and the IPv4-compatible addresses that RFC 4291 has deprecated.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
# Metadata services of Oracle's and Azure's clouds, besides the link-local address that all clouds use.
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


def check_person(person: str, *, needed: bool) -> None:
    """Raise InvalidError unless this is a person's name or address, or "" where none is needed."""
    if not needed:
        if person:
            raise InvalidError("a person belongs to a token of the role approver alone: leave it out")
        return
    if not person:
        raise InvalidError("a token of the role approver needs a person: --person you@example.com")
    if not 1 <= len(person) <= OWNER_LENGTH_MAX or not person.isprintable() or person != person.strip():
        raise InvalidError(
            f"the person is a name or an address, 1 to {OWNER_LENGTH_MAX} printable characters"
        )
    if fault := wrong_person(person):
        raise InvalidError(f"the person {shown(person)} {fault}")


def check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise InvalidError(f"{len(labels)} labels exceed the {LABELS_MAX} that a cluster may have")
    for key, value in labels.items():
        if LABEL_KEY.fullmatch(key) is None or LABEL_VALUE.fullmatch(value) is None:
            raise InvalidError(f"label {shown(key)}={shown(value)} is not valid by Kubernetes' rules")


def check_relay_url(url: str, *, private: bool) -> None:
    """Raise InvalidError for an invalid relay URL, or one with an address that the hub must not dial."""
    check_https_url("relay URL", url, private=private, path=False)


def check_https_url(kind: str, url: str, *, private: bool, path: bool = True) -> None:
    """Raise InvalidError unless this is an https URL that the hub may request; `path` allows a path in it.

    A host name is accepted here: its addresses are checked at each dial.
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
    """Return why the hub must not connect to an address, or None. `private` allows private addresses."""
    if is_never_allowed(address):
        return "an address that the hub never connects to"
    if not private and not is_public(address):
        return "a private address: allow it by --allow-private-address"
    return None


def destination(address: Address) -> Address:
    """Return the address that receives the packets: for an IPv6 address that maps an IPv4 one, that one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_never_allowed(address: Address) -> bool:
    """Return whether an address is refused even where private ones are allowed.

    Clouds serve instance credentials on link-local addresses, and some on another address too. The
    unspecified address is this machine.
    """
    address = destination(address)
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return True
    return address in _CLOUD_SERVICES


def is_public(address: Address) -> bool:
    """Return whether an address is on the internet, and not on a private network or this machine.

    `is_global` alone treats 64:ff9b::7f00:1 as public, which a NAT64 translator sends to 127.0.0.1; the same
    form encodes any private address. Under the prefix for local translators (RFC 8215) the IPv4 address may
    be at any position, so none of these addresses counts as public. `is_global` also treats fec0::/10 as
    public, which was site-local (RFC 3879).
    """
    there = destination(address)
    if not there.is_global or there in _CLOUD_SERVICES or address in _NAT64_LOCAL:
        return False
    return not (isinstance(there, ipaddress.IPv6Address) and there.is_site_local)


def shown(text: str) -> str:
    """Quote a caller's text, shortened and safe for a terminal."""
    return ascii(text[:80])


def not_found(kind: str, name: str, names: Iterable[str]) -> NotFoundError:
    """Make the error for an unknown name, with near matches from `names`."""
    near = did_you_mean(name, names)
    return NotFoundError(
        f"there is no {kind} {shown(name)}{near}: `hawse admin {kind} list` lists the existing ones"
    )
