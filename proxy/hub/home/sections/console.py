"""The configuration of the console: its keys, and their rules."""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from proxy.listener.balancers import Balancers
from proxy.process.config import Address
from proxy.process.settings import fault_of_hub_url

_WITHOUT_LISTEN = "goes with console.listen only"
_LOOPBACK_ALONE = (
    "http:// is for a browser on this machine: its host and console.listen must both be of loopback, as in "
    "http://127.0.0.1:8446; use https:// otherwise"
)


@attrs.frozen
class ConsoleConfig:
    """The console for people; without `listen` there is none."""

    listen: Address | None = None
    """A separate listener: on `listen`, a cluster's own pages would have the console's origin."""
    public_url: str = attrs.field()
    """What browsers open. http:// only on loopback, so that a first look needs no certificate."""
    listen_proxy_from: tuple[str, ...] = ()
    """Load balancers in front of the listener, whose connections begin with a PROXY header (v2)."""

    @public_url.default
    def _loopback_url(self) -> str:
        """On loopback, the listener's own address; otherwise it has to be stated."""
        return f"http://{self.listen}" if self.listen is not None and self.listen.is_loopback else ""

    @property
    def tls(self) -> bool:
        """Whether the listener speaks TLS, with the hub's certificate."""
        return urlsplit(self.public_url).scheme == "https"

    @property
    def host(self) -> str:
        """The host of `public_url`, in the form that a certificate uses; "" without a console."""
        return urlsplit(self.public_url).hostname or ""

    @property
    def tls_host(self) -> str | None:
        """The name that the hub's certificate must have for the console; None if it needs none."""
        return self.host if self.listen is not None and self.tls else None


def faults_of_console(console: ConsoleConfig) -> list[str]:
    """Return the violations of the rules that a type cannot express."""
    if console.listen is None:
        stated = {
            "public_url": bool(console.public_url),
            "listen_proxy_from": bool(console.listen_proxy_from),
        }
        return [f"console.{name}: {_WITHOUT_LISTEN}" for name, given in stated.items() if given]
    faults = []
    try:
        Balancers.of(console.listen_proxy_from)
    except ValueError as error:
        faults.append(f"console.listen_proxy_from: {error}")
    if (fault := _fault_of_url(console.public_url, console.listen)) is not None:
        faults.append(f"console.public_url: {fault}")
    return faults


def _fault_of_url(url: str, listen: Address) -> str | None:
    if not url:
        return "missing: console.listen is open to other machines, whose browsers need a URL"
    if not url.startswith("http://"):
        fault = fault_of_hub_url(url)
        return fault and fault.replace("the hub is", "the console is")
    if (fault := fault_of_hub_url(f"https://{url.removeprefix('http://')}")) is not None:
        return fault.replace("https://", "http://").replace("the hub is", "the console is")
    host = urlsplit(url).hostname or ""
    return None if listen.is_loopback and Address(host, 0).is_loopback else _LOOPBACK_ALONE
