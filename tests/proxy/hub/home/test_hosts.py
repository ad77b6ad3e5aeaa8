from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.home.hosts import ClusterHosts

HOSTS = ClusterHosts.of("*.k8s.hub.example")


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"prod.k8s.hub.example", "prod"),
        (b"prod.k8s.hub.example:8443", "prod"),
        (b"PROD.K8s.Hub.Example.:443", "prod"),
        # Below the domain, and no cluster's.
        (b"a.prod.k8s.hub.example", ""),
        (b".k8s.hub.example", ""),
        (b"prod..k8s.hub.example", ""),
        (b"prod.k8s.hub.example...", "prod"),
        # The hub's own, or whatever else somebody calls it.
        (b"hub.example", None),
        (b"k8s.hub.example:8443", None),
        (b"prodk8s.hub.example", None),
        (b"prod.k8s.hub.example.evil.example", None),
        (b"[2001:db8::1]:8443", None),
        (b"127.0.0.1", None),
        (b"", None),
    ],
)
def test_a_host_names_its_cluster_however_it_is_written(host: bytes, name: str | None) -> None:
    assert HOSTS.cluster_of(host) == name


@given(st.from_regex(r"\A[A-Za-z0-9._~-]{0,40}\Z"), st.sampled_from(["", ":1", ":65535"]))
def test_nothing_below_the_domain_is_the_hubs(before: str, port: str) -> None:
    assert HOSTS.cluster_of(f"{before}.k8s.hub.example{port}".encode()) is not None
