"""A host for each cluster beside its path, for clients that drop the path of their server's URL. Pure.

`kubectl proxy` and older `kubectl get --raw` ask for `/api` whatever path the kubeconfig's server has. With
`cluster_hosts = "*.k8s.hub.example"` the cluster prod is `https://prod.k8s.hub.example` as well. A host of
this form serves the Kubernetes API of its cluster, and nothing of the hub's own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Self

import attrs

# A host has 253 characters at most, and a cluster's name 63.
DOMAIN_CHARACTERS_MAX = 189
# OpenSSL takes a wildcard only with two labels behind it.
_PATTERN = re.compile(
    r"\*\.((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)"
)
# Of a Host header, which `proxy.message.strict` has looked at.
_PORT = re.compile(rb":[0-9]+\Z")


@attrs.frozen
class ClusterHosts:
    """The hosts of the clusters: each one's name before the domain."""

    domain: str

    @classmethod
    def of(cls, stated: str) -> Self:
        """Read a pattern as in the configuration; raises ValueError."""
        match = _PATTERN.fullmatch(stated)
        if match is None:
            raise ValueError("expected a wildcard in lower case, as in *.k8s.hub.example")
        if len(match[1]) > DOMAIN_CHARACTERS_MAX:
            raise ValueError(
                f"the domain has {len(match[1])} characters, the limit is {DOMAIN_CHARACTERS_MAX}"
            )
        return cls(match[1])

    @property
    def pattern(self) -> str:
        """As a certificate names them."""
        return f"*.{self.domain}"

    def cluster_of(self, host: bytes) -> str | None:
        """Return the name before the domain in a Host header, and None for a host that is none of these.

        For a host with more labels, or an invalid name, it returns a name that no cluster can have.
        """
        return _name_before(host, self.domain.encode("ascii"))


# As many hosts as agents ask for, by and large; any other is looked at again.
@lru_cache(maxsize=4096)
def _name_before(host: bytes, domain: bytes) -> str | None:
    # Clients write the port, a dot at the end and capitals as the kubeconfig has them.
    name, _, rest = _PORT.sub(b"", host).lower().rstrip(b".").partition(b".")
    if rest == domain:
        return name.decode("ascii", "replace")
    return "" if rest.endswith(b"." + domain) else None
