from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import trustme
import yaml

from proxy.relay.service_account import ClusterAccessError, from_kubeconfig, in_cluster, own_namespace
from tests.fakes.mounts import mount, swap

CA_PEM = trustme.CA().cert_pem.bytes()


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A service account's folder, as the kubelet mounts it."""
    mount(tmp_path, {"token": b"token-1", "ca.crt": CA_PEM})
    return tmp_path


IN_CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_in_a_cluster_everything_comes_from_the_service_account(mounted: Path) -> None:
    access = in_cluster(IN_CLUSTER, mounted)
    assert (access.host, access.port, access.authority) == ("10.96.0.1", 443, b"10.96.0.1:443")
    assert access.token() == "token-1"
    assert access.ssl_context().verify_mode is ssl.CERT_REQUIRED
    assert "token-1" not in repr(access)


def test_an_ipv6_address_is_bracketed_in_the_host_header(mounted: Path) -> None:
    access = in_cluster({**IN_CLUSTER, "KUBERNETES_SERVICE_HOST": "fd00::1"}, mounted)
    assert (access.host, access.authority) == ("fd00::1", b"[fd00::1]:443")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"KUBERNETES_SERVICE_HOST": "10.96.0.1"},
        {**IN_CLUSTER, "KUBERNETES_SERVICE_PORT": "https"},
        {**IN_CLUSTER, "KUBERNETES_SERVICE_HOST": "a b"},
    ],
)
def test_outside_a_cluster_it_says_so(mounted: Path, environment: dict[str, str]) -> None:
    with pytest.raises(ClusterAccessError, match="KUBERNETES_SERVICE_HOST") as caught:
        in_cluster(environment, mounted)
    # Where neither is wrong there is another way, and it is named.
    absent = len(environment) < 2
    assert ("name a kubeconfig by HAWSE_RELAY_KUBECONFIG" in str(caught.value)) == absent


def test_a_missing_token_or_ca_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterAccessError, match="token cannot be read: No such file"):
        in_cluster(IN_CLUSTER, tmp_path)
    (tmp_path / "token").write_text("  \n")
    with pytest.raises(ClusterAccessError, match="token: no token in it"):
        in_cluster(IN_CLUSTER, tmp_path)
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(ClusterAccessError, match=r"ca\.crt: no CA certificate in PEM"):
        in_cluster(IN_CLUSTER, tmp_path)


def test_after_a_refusal_the_token_is_looked_for_at_once(mounted: Path) -> None:
    access = in_cluster(IN_CLUSTER, mounted)
    assert not access.refresh_token()
    swap(mounted, 2, {"token": b"token-2", "ca.crt": CA_PEM})
    assert access.refresh_token()
    assert access.token() == "token-2"
    assert not access.refresh_token()


def test_a_rotated_ca_is_used_for_new_connections(mounted: Path) -> None:
    access = in_cluster(IN_CLUSTER, mounted)
    before = access.ssl_context()
    assert access.ssl_context() is before
    swap(mounted, 2, {"token": b"token-2", "ca.crt": trustme.CA().cert_pem.bytes()})
    access._tls.refresh()
    assert access.ssl_context() is not before


# kubeconfig


def kubeconfig(
    folder: Path, *, cluster: dict[str, object] | None = None, user: dict[str, object] | None = None
) -> Path:
    data = base64.b64encode(CA_PEM).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [
            {"name": "other", "context": {"cluster": "x", "user": "y"}},
            {"name": "c", "context": {"cluster": "k", "user": "u"}},
        ],
        # The first of each belongs to another user.
        "clusters": [
            {"name": "x", "cluster": {"server": "https://10.0.0.2:6443", "certificate-authority-data": data}},
            {
                "name": "k",
                "cluster": {"server": "https://10.0.0.1:6443", "certificate-authority-data": data}
                if cluster is None
                else cluster,
            },
        ],
        "users": [
            {"name": "y", "user": {"token": "not-ours"}},
            {"name": "u", "user": {"token": "secret-1"} if user is None else user},
        ],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_kubeconfig_with_a_token_is_enough(tmp_path: Path) -> None:
    access = from_kubeconfig(kubeconfig(tmp_path))
    assert (access.host, access.port, access.server_name) == ("10.0.0.1", 6443, "10.0.0.1")
    assert access.token() == "secret-1"


def test_a_kubeconfig_may_name_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(CA_PEM)
    (tmp_path / "token").write_text("secret-2\n")
    path = kubeconfig(
        tmp_path,
        cluster={"server": "https://[fd00::1]", "certificate-authority": "ca.pem", "tls-server-name": "kube"},
        user={"tokenFile": "token", "token": "ignored-as-client-go-does"},
    )
    access = from_kubeconfig(path)
    assert (access.host, access.port, access.server_name) == ("fd00::1", 443, "kube")
    assert access.authority == b"[fd00::1]:443"
    assert access.token() == "secret-2"
    (tmp_path / "token").write_text("secret-3-longer")
    assert access.refresh_token()
    assert access.token() == "secret-3-longer"


def test_an_inline_token_follows_the_kubeconfig(tmp_path: Path) -> None:
    access = from_kubeconfig(kubeconfig(tmp_path))
    kubeconfig(tmp_path, user={"token": "secret-1-rotated"})
    assert access.refresh_token()
    assert access.token() == "secret-1-rotated"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("current-context: c", "current-context: other", "names another server now"),
        ("token: secret-1", "tokenFile: token", "a tokenFile now"),
    ],
)
def test_a_kubeconfig_that_leads_elsewhere_leaves_what_it_said_before(
    old: str, new: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kubeconfig(tmp_path)
    access = from_kubeconfig(path)
    path.write_text(path.read_text().replace(old, new))
    assert not access.refresh_token()
    assert access.token() == "secret-1"
    assert reason in caplog.text


def test_a_kubeconfig_that_becomes_unreadable_leaves_what_it_said_before(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    access = from_kubeconfig(path)
    path.write_text(path.read_text() + "issued: 2026-13-01\n")
    assert not access.refresh_token()
    assert access.token() == "secret-1"


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ({"client-certificate": "c", "client-key": "k"}, "authenticates the connection and not each request"),
        ({"client-certificate-data": "c", "token": "t"}, "authenticates the connection and not each request"),
        ({"client-key-data": "k", "token": "t"}, "authenticates the connection and not each request"),
        ({"exec": {"command": "x"}}, "would run another program"),
        ({"auth-provider": {"name": "gcp"}}, "would fetch tokens from elsewhere"),
        ({"username": "u", "password": "p"}, "basic authentication is gone"),
        ({"token": "t", "as": "admin"}, "cannot itself be impersonated"),
        ({}, "no token and no tokenFile"),
        ({"token": "a b"}, "no token in it"),
        ({"token": "\ud800"}, "no token in it"),
        ({"token": 7}, "token is not a string"),
    ],
)
def test_a_credential_that_is_no_bearer_token_is_refused_with_its_reason(
    tmp_path: Path, user: dict[str, object], reason: str
) -> None:
    with pytest.raises(ClusterAccessError, match=reason):
        from_kubeconfig(kubeconfig(tmp_path, user=user))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"insecure-skip-tls-verify": True}, "verifies the API server always"),
        ({"proxy-url": "http://proxy"}, "through no proxy"),
        ({"certificate-authority-data": None}, "only a pinned CA"),
        ({"certificate-authority-data": "%%"}, "not base64"),
        ({"certificate-authority-data": "ÄÄÄÄ"}, "not base64"),
        ({"tls-server-name": "kube..example"}, "neither a name nor an address"),
        ({"tls-server-name": ".kube"}, "neither a name nor an address"),
        ({"tls-server-name": "kübe"}, "neither a name nor an address"),
        *(
            ({"tls-server-name": name}, "neither a name nor an address")
            for name in (".cafe", "cafe..example", "cafe..", "f" * 64, ".", "::1.", ".".join(["kube"] * 52))
        ),
        ({"certificate-authority-data": "AAAA"}, "no CA certificate"),
        ({"server": "http://10.0.0.1"}, "server is not https"),
        ({"server": "https://10.0.0.1/k8s/clusters/a"}, "server is not https"),
        ({"server": "https://u@10.0.0.1"}, "server is not https"),
        ({"server": "https://10.0.0.1:x"}, "server is not https"),
        ({"server": "https://:6443"}, "server is not https"),
        ({"server": "https://kübe"}, "server is not https"),
        ({"server": "https://10.0.0.1?a"}, "server is not https"),
        ({"server": "https://10.0.0.1#a"}, "server is not https"),
        ({"server": "https://[fe80::1%25eth0]"}, "server is not https"),
        ({"server": None}, "server is missing"),
    ],
)
def test_a_cluster_that_cannot_be_trusted_is_refused_with_its_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    cluster: dict[str, object] = {
        "server": "https://10.0.0.1",
        "certificate-authority-data": base64.b64encode(CA_PEM).decode(),
        **change,
    }
    with pytest.raises(ClusterAccessError, match=reason):
        from_kubeconfig(kubeconfig(tmp_path, cluster=cluster))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        "token: !!python/object:x {}",
        "current-context: c",
        "{contexts: 7, current-context: c}",
        "token: !!int secret",
        "token: !!bool secret",
        "token: !!timestamp secret",
        "token: !!timestamp {=: 3}",
        "token: !!float ''",
        "issued: 2026-13-01",
        f"token: {'7' * 5000}",
        f"token: 1{':59' * 300}.5",
    ],
)
def test_what_is_no_kubeconfig_is_refused_without_being_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ClusterAccessError) as caught:
        from_kubeconfig(path)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("name", ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "Kube_1.example.", "cafe"])
def test_the_servers_name_may_be_an_address(tmp_path: Path, name: str) -> None:
    cluster = {
        "server": "https://10.0.0.2",
        "certificate-authority-data": base64.b64encode(CA_PEM).decode(),
        "tls-server-name": name,
    }
    assert from_kubeconfig(kubeconfig(tmp_path, cluster=dict(cluster))).server_name == name


def test_what_no_key_is_called_is_no_key(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    # A number with more digits than Python writes.
    path.write_text(path.read_text().replace("token: secret-1", f"{{token: secret-1, ? 0x{'f' * 5000} : 1}}"))
    assert from_kubeconfig(path).token() == "secret-1"


def test_a_pod_knows_its_namespace(tmp_path: Path) -> None:
    assert own_namespace(tmp_path) == ""
    (tmp_path / "namespace").write_text("hawse")
    assert own_namespace(tmp_path) == "hawse"


def test_a_pod_that_does_not_know_its_namespace_is_in_none_that_could_be_closed(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    with pytest.raises(ClusterAccessError, match="is missing: mount it beside the token"):
        own_namespace(tmp_path)
    for content in (b'x"], verbs: ["get', b"\xff", b""):
        (tmp_path / "namespace").write_bytes(content)
        with pytest.raises(ClusterAccessError, match="does not name a namespace"):
            own_namespace(tmp_path)
    (tmp_path / "namespace").unlink()
    (tmp_path / "namespace").mkdir()
    with pytest.raises(ClusterAccessError, match="cannot be read: Is a directory"):
        own_namespace(tmp_path)
