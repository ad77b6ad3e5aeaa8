"""A host for each cluster besides its path, for clients that drop the path of their server's URL. Pure.

`kubectl proxy` and older `kubectl get --raw` request `/api` and ignore the path of the kubeconfig's server.
With `cluster_hosts = "*.k8s.hub.example"`, `https://prod.k8s.hub.example` is the cluster prod as well. Such a
host serves its cluster's Kubernetes API only, and none of the hub's own paths.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Self

import attrs

# A host has 253 characters at most, and a cluster's name 63.
DOMAIN_CHARACTERS_MAX = 189
# OpenSSL accepts a wildcard only before two or more labels.
_PATTERN = re.compile(
    r"\*\.((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)"
)
# In a Host header that `proxy.message.strict` has checked.
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
        """The wildcard, as in a certificate."""
        return f"*.{self.domain}"

    def cluster_of(self, host: bytes) -> str | None:
        """Return the cluster's name in a Host header; None for a host outside the domain.

        For a host with more labels, or an invalid name, it returns a name that no cluster can have.
        """
        return _name_before(host, self.domain.encode("ascii"))


# More than the hosts in use at most hubs; a host that does not fit is parsed again.
@lru_cache(maxsize=4096)
def _name_before(host: bytes, domain: bytes) -> str | None:
    # Clients copy the port, a trailing dot and capitals from the kubeconfig.
    name, _, rest = _PORT.sub(b"", host).lower().rstrip(b".").partition(b".")
    if rest == domain:
        return name.decode("ascii", "replace")
    return "" if rest.endswith(b"." + domain) else None
