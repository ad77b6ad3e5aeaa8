from __future__ import annotations

from pathlib import Path

import pytest

from proxy.hub import config
from proxy.hub.config import Address, ConfigError, load

ENV = {"HOME": "/home/op"}


def faults(text: str, tmp_path: Path, environment: dict[str, str] | None = None) -> list[str]:
    file = tmp_path / "hub.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {**ENV, **(environment or {})})
    return caught.value.faults


def test_a_first_run_needs_nothing() -> None:
    hub = load(None, ENV)
    assert (hub.org, str(hub.listen), str(hub.admin.listen)) == ("main", "127.0.0.1:8443", "127.0.0.1:8444")
    assert hub.public_url == "https://localhost:8443"
    assert hub.data_dir == Path("/home/op/.local/share/hawse/hub")
    assert hub.tls.certificate is None
    assert hub.audit.reads_when_down is False


def test_the_data_home_follows_xdg_only_when_absolute() -> None:
    assert load(None, {**ENV, "XDG_DATA_HOME": "/data"}).data_dir == Path("/data/hawse/hub")
    assert load(None, {**ENV, "XDG_DATA_HOME": "data"}).data_dir == Path("/home/op/.local/share/hawse/hub")


def test_every_key_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "hub.pem").write_text("x")
    (tmp_path / "hub.key").write_text("x")
    file = tmp_path / "hub.toml"
    file.write_text(
        """
        org = "acme"
        public_url = "https://hub.acme.example/"
        listen = "[::]:443"
        data_dir = "data"
        [tls]
        certificate = "hub.pem"
        key = "hub.key"
        [admin]
        listen = "127.0.0.1:9000"
        [limits]
        streams_per_agent = 7
        [audit]
        mask = ["token=[^&]+"]
        reads_when_down = true
        """
    )
    hub = load(file, ENV)
    assert hub.public_url == "https://hub.acme.example"
    assert hub.public_host == "hub.acme.example"
    assert hub.listen == Address("::", 443)
    assert hub.data_dir == tmp_path / "data"  # relative to the file, not to the working directory
    assert (hub.tls.certificate, hub.tls.key) == (tmp_path / "hub.pem", tmp_path / "hub.key")
    assert hub.limits.streams_per_agent == 7
    assert hub.audit.reads_when_down is True
    assert [mask.pattern for mask in hub.audit.mask] == ["token=[^&]+"]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('org = "acme"\n[limits]\nstreams_per_agent = 7\n')
    hub = load(
        None,
        {
            **ENV,
            "HAWSE_HUB_CONFIG": str(file),
            "HAWSE_HUB_ORG": "other",
            "HAWSE_HUB_ADMIN_LISTEN": "127.0.0.1:1",
            "HAWSE_HUB_LIMITS_STREAMS_PER_AGENT": "9",
            "HAWSE_HUB_AUDIT_MASK": "a+\nb+",
            "HAWSE_HUB_AUDIT_READS_WHEN_DOWN": "true",
        },
    )
    assert (hub.org, hub.limits.streams_per_agent, str(hub.admin.listen)) == ("other", 9, "127.0.0.1:1")
    assert [mask.pattern for mask in hub.audit.mask] == ["a+", "b+"]
    assert hub.audit.reads_when_down is True


def test_all_faults_are_told_at_once_each_with_its_path(tmp_path: Path) -> None:
    found = faults(
        """
        orgg = "main"
        org = 5
        listen = "8443"
        colour = "blue"
        tls = "yes"
        [admin]
        listen = "127.0.0.1:70000"
        port = 3
        [limits]
        streams_per_agent = "many"
        [audit]
        mask = ["("]
        reads_when_down = "no"
        """,
        tmp_path,
        {"HAWSE_HUB_COLOUR": "x", "HAWSE_HUB_LIMITS_STREAMS_PER_AGENT": "1_0"},
    )
    paths = sorted(line.partition(":")[0] for line in found)
    assert paths == [
        "HAWSE_HUB_COLOUR",
        "HAWSE_HUB_LIMITS_STREAMS_PER_AGENT",
        "admin.listen",
        "admin.port",
        "audit.mask",
        "audit.reads_when_down",
        "colour",
        "limits.streams_per_agent",
        "listen",
        "org",
        "orgg",
        "tls",
    ]


def test_rules_across_keys_are_told_at_once(tmp_path: Path) -> None:
    found = faults(
        """
        org = "system"
        public_url = "http://hub.example"
        listen = "127.0.0.1:1"
        admin.listen = "127.0.0.1:1"
        tls.certificate = "missing.pem"
        limits.streams_per_agent = 0
        """,
        tmp_path,
    )
    assert [line.partition(":")[0] for line in found] == [
        "org",
        "public_url",
        "tls",
        "tls.certificate",
        "admin.listen",
        "limits.streams_per_agent",
    ]


def test_a_misplaced_secret_is_never_repeated(tmp_path: Path) -> None:
    secret = "hws_SECRETSECRET"
    found = faults(
        f"""
        public_url = "https://admin:{secret}@hub.example"
        listen = "{secret}"
        data_dir = 5
        limits.streams_per_agent = "{secret}"
        audit.mask = "{secret}"
        tls.key = '''-----BEGIN PRIVATE KEY-----
{secret}'''
        """,
        tmp_path,
        {"HAWSE_HUB_TLS_CERTIFICATE": secret, "HAWSE_HUB_AUDIT_READS_WHEN_DOWN": secret},
    )
    assert len(found) >= 5
    assert secret not in "\n".join(found)


def test_kubernetes_service_links_are_not_settings() -> None:
    links = {
        "HAWSE_HUB_SERVICE_HOST": "10.0.0.1",
        "HAWSE_HUB_SERVICE_PORT": "443",
        "HAWSE_HUB_SERVICE_PORT_HTTPS": "443",
        "HAWSE_HUB_PORT": "tcp://10.0.0.1:443",
        "HAWSE_HUB_PORT_443_TCP": "tcp://10.0.0.1:443",
        "HAWSE_HUB_PORT_443_TCP_ADDR": "10.0.0.1",
    }
    assert load(None, {**ENV, **links}) == load(None, ENV)


@pytest.mark.parametrize("text", ["not toml", "a = 1\na = 2", "\x00"])
def test_a_file_that_is_no_toml_is_a_fault(text: str, tmp_path: Path) -> None:
    assert faults(text, tmp_path)[0].startswith(str(tmp_path))


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", ENV)


@pytest.mark.parametrize(
    "url",
    [
        "hub.example",
        "https://",
        "https://hub.example/base",
        "https://hub.example?x",
        "https://hub.example#",
        "https://Hub.example",
        "https://hub.example:0",
        "https://hub.example:port",
        "https://hub example",
        "https://hüb.example",
        "https://hub.example\n",
    ],
)
def test_public_urls_that_no_token_could_name(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public_url"):
        load(None, {**ENV, "HAWSE_HUB_PUBLIC_URL": url})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:5", Address("::1", 5)),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "a", "a:", "::1:5", "[1.2.3.4]:5", "[zz]:5", "a:+5", "a:٣", "a:5\n", "a b:5"]
)
def test_texts_that_are_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


def test_loopback_is_told_from_the_rest() -> None:
    assert all(Address(host, 1).is_loopback for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"))
    assert not any(Address(host, 1).is_loopback for host in ("0.0.0.0", "::", "10.0.0.1", "hub.example"))


def test_each_variable_names_one_key() -> None:
    assert sorted(config._variables()) == [
        "HAWSE_HUB_ADMIN_LISTEN",
        "HAWSE_HUB_AUDIT_MASK",
        "HAWSE_HUB_AUDIT_READS_WHEN_DOWN",
        "HAWSE_HUB_DATA_DIR",
        "HAWSE_HUB_LIMITS_STREAMS_PER_AGENT",
        "HAWSE_HUB_LISTEN",
        "HAWSE_HUB_ORG",
        "HAWSE_HUB_PUBLIC_URL",
        "HAWSE_HUB_TLS_CERTIFICATE",
        "HAWSE_HUB_TLS_KEY",
    ]
