from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from auth.keys import KeySet, SigningKey
from proxy.process.config import Address, ConfigError
from proxy.relay.config import DirectListener, TunnelDial, default_instance, load
from proxy.relay.service_account import ClusterAccessError

KEY = SigningKey.generate()
HUB_KEY = SigningKey.generate()

TUNNEL = """
cluster_id = "0193-c1"
private_key = "relay-key.pem"
[hub]
url = "https://hub.example:8443"
keys = "hub-keys.json"
"""
DIRECT = """
mode = "direct"
cluster_id = "0193-c1"
[hub]
url = "https://hub.example"
keys = "hub-keys.json"
[direct]
listen = "[::]:8443"
certificate = "tls.crt"
key = "tls.key"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "relay-key.pem").write_bytes(KEY.to_pem())
    (tmp_path / "hub-keys.json").write_text(KeySet([HUB_KEY.public]).to_jwks())
    (tmp_path / "hub-ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(f"the content of {name}")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "relay.toml"
    path.write_text(text)
    return path


def faults(folder: Path, text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), environment)
    return caught.value.faults


def test_tunnel_mode_needs_four_keys_and_reads_its_files(folder: Path) -> None:
    config = load(write(folder, TUNNEL), {})
    assert isinstance(config.way, TunnelDial)
    assert config.way.key.kid == KEY.kid
    assert config.way.hub_ca_pem is None
    assert (config.cluster_id, config.hub_url) == ("0193-c1", "https://hub.example:8443")
    assert config.hub_keys.get(HUB_KEY.kid) == HUB_KEY.public
    assert config.instance == default_instance()
    assert config.kubeconfig is None
    assert config.health_listen is None


def test_direct_mode_needs_its_listener_and_no_private_key(folder: Path) -> None:
    config = load(write(folder, DIRECT), {})
    assert config.way == DirectListener(Address("::", 8443), folder / "tls.crt", folder / "tls.key")
    balanced = load(write(folder, DIRECT), {"HAWSE_RELAY_DIRECT_LISTEN_PROXY_FROM": "192.0.2.7\n10.0.0.0/8"})
    assert isinstance(balanced.way, DirectListener)
    assert "10.1.2.3" in balanced.way.balancers
    assert faults(folder, DIRECT, HAWSE_RELAY_DIRECT_LISTEN_PROXY_FROM="10.0.0.1/8") == [
        "direct.listen_proxy_from: number 1 is neither an address nor a network, "
        "as in 192.0.2.7 or 10.0.0.0/8"
    ]


def test_the_environment_overlays_the_file_and_can_stand_alone(folder: Path) -> None:
    overlay = {
        "HAWSE_RELAY_INSTANCE": "relay-7",
        "HAWSE_RELAY_HUB_CA": str(folder / "hub-ca.pem"),
        "HAWSE_RELAY_HEALTH_LISTEN": "127.0.0.1:8080",
        "HAWSE_RELAY_KUBECONFIG": "/k",
        # what Kubernetes puts beside a Service of that name
        "HAWSE_RELAY_PORT": "tcp://10.0.0.1:80",
        "HAWSE_RELAY_SERVICE_HOST": "10.0.0.1",
        "HAWSE_RELAY_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    config = load(write(folder, TUNNEL), overlay)
    assert isinstance(config.way, TunnelDial)
    assert config.way.hub_ca_pem == (folder / "hub-ca.pem").read_text()
    assert config.instance == "relay-7"
    assert config.health_listen == Address("127.0.0.1", 8080)
    assert config.kubeconfig == Path("/k")
    alone = {
        "HAWSE_RELAY_CLUSTER_ID": "0193-c1",
        "HAWSE_RELAY_HUB_URL": "https://hub.example/",
        "HAWSE_RELAY_HUB_KEYS": str(folder / "hub-keys.json"),
        "HAWSE_RELAY_PRIVATE_KEY": str(folder / "relay-key.pem"),
    }
    assert load(None, alone).hub_url == "https://hub.example"
    named = load(None, {"HAWSE_RELAY_CONFIG": str(write(folder, TUNNEL))})
    assert named.cluster_id == "0193-c1"


def test_all_faults_are_reported_at_once(folder: Path) -> None:
    text = """
    mode = "both"
    cluster = "x"
    [hub]
    url = 7
    [direct]
    listen = "8443"
    [health]
    port = "1"
    """
    assert sorted(faults(folder, text, HAWSE_RELAY_NONSENSE="1"))[1:] == [
        "cluster: no such key (did you mean cluster_id?)",
        "cluster_id: missing",
        "direct.listen: expected host:port, as in 127.0.0.1:8443 or [::]:8443",
        "health.port: no such key; there are listen",
        "hub.keys: missing",
        "hub.url: expected a string",
        'mode: expected "tunnel" or "direct"',
    ]


def test_each_mode_says_what_it_misses(folder: Path) -> None:
    text = TUNNEL.replace('private_key = "relay-key.pem"', "")
    assert faults(folder, text) == ["private_key: missing, tunnel mode needs it to authenticate to the hub"]
    assert faults(folder, text, HAWSE_RELAY_MODE="direct") == [
        "direct.listen: missing, direct mode needs it",
        "direct.certificate: missing, direct mode needs it",
        "direct.key: missing, direct mode needs it",
    ]


def test_key_files_are_checked_and_never_shown(folder: Path) -> None:
    (folder / "relay-key.pem").write_text("hunter2 is not a key")
    (folder / "hub-keys.json").write_text('{"keys":["hunter2"]}')
    found = faults(folder, TUNNEL)
    assert found == [
        f"hub.keys: {folder / 'hub-keys.json'}: a JWK must be a JSON object",
        f"private_key: {folder / 'relay-key.pem'}: not an unencrypted private key in PEM (PKCS #8)",
    ]
    (folder / "hub-keys.json").unlink()
    assert faults(folder, TUNNEL)[0] == (
        f"hub.keys: cannot be read: No such file or directory, looked for in {folder}"
    )
    (folder / "hub-keys.json").write_bytes(b"\xff")
    assert faults(folder, TUNNEL)[0] == f"hub.keys: {folder / 'hub-keys.json'} is not UTF-8"


@pytest.mark.parametrize("content", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nx", "é"])
def test_a_ca_that_is_none_is_a_fault_of_the_configuration(folder: Path, content: str) -> None:
    (folder / "hub-ca.pem").write_text(content)
    (fault,) = faults(folder, TUNNEL, HAWSE_RELAY_HUB_CA=str(folder / "hub-ca.pem"))
    assert fault.startswith(f"hub.ca: {folder / 'hub-ca.pem'} holds ")
    assert fault.endswith(": name the file of the CA of the hub's certificate")


def test_a_key_pasted_where_a_path_belongs_is_not_repeated(folder: Path) -> None:
    pasted = KEY.to_pem().decode()
    text = TUNNEL.replace('"relay-key.pem"', f'"""{pasted}"""')
    assert faults(folder, text) == ["private_key: expected the path of a file or folder"]


def test_the_memory_is_at_least_what_one_agent_takes(folder: Path) -> None:
    assert load(write(folder, TUNNEL), {}).memory_bytes == 320 * 2**20
    assert load(write(folder, TUNNEL), {"HAWSE_RELAY_MEMORY_MIB": "64"}).memory_bytes == 64 * 2**20
    assert faults(folder, TUNNEL, HAWSE_RELAY_MEMORY_MIB="63") == ["memory_mib: expected 64 or more"]


def test_an_idle_tunnel_is_pinged_every_5_to_60_s(folder: Path) -> None:
    assert load(write(folder, TUNNEL), {}).ping_s == 30
    for ping_s in (5, 60):
        assert load(write(folder, TUNNEL), {"HAWSE_RELAY_TUNNEL_PING_S": str(ping_s)}).ping_s == ping_s
    for ping_s in (4, 61):
        expected = ["tunnel.ping_s: expected 5 to 60 seconds"]
        assert faults(folder, TUNNEL, HAWSE_RELAY_TUNNEL_PING_S=str(ping_s)) == expected


def test_the_hubs_url_is_spelt_as_in_its_tokens(folder: Path) -> None:
    text = TUNNEL.replace("https://hub.example:8443", "https://Hub.example")
    assert faults(folder, text) == ["hub.url: write it in lower case"]


@pytest.mark.parametrize("line", ['cluster_id = "a b"', 'cluster_id = ""'])
def test_a_bad_cluster_id_is_refused(folder: Path, line: str) -> None:
    assert "cluster_id: expected the id that the hub gave the cluster" in faults(
        folder, TUNNEL.replace('cluster_id = "0193-c1"', line)
    )


def test_guardrails_that_cannot_close_the_relays_own_namespace_are_a_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise ClusterAccessError("namespace is missing")

    monkeypatch.setattr("proxy.relay.config.own_namespace", unknown)
    (folder / "rails").mkdir()
    rails = {"HAWSE_RELAY_GUARDRAILS": str(folder / "rails")}
    assert faults(folder, TUNNEL, **rails) == [
        "guardrails: they close the relay's own namespace, and namespace is missing"
    ]
    assert load(write(folder, TUNNEL), {}).guardrails is None
    assert load(write(folder, 'kubeconfig = "x"\n' + TUNNEL), rails).guardrails is not None


@pytest.mark.parametrize(("value", "good"), [("59", False), ("60", True), ("86400", True), ("86401", False)])
def test_the_bound_of_the_hubs_clock_is_a_minute_to_a_day(folder: Path, value: str, good: bool) -> None:
    assert load(write(folder, TUNNEL), {}).clock_bound_s == 900
    environment = {"HAWSE_RELAY_TUNNEL_CLOCK_BOUND_S": value}
    if good:
        assert load(write(folder, TUNNEL), environment).clock_bound_s == int(value)
    else:
        assert faults(folder, TUNNEL, **environment) == ["tunnel.clock_bound_s: expected 60 to 86400"]


def test_a_file_that_cannot_be_read_is_the_only_fault_beside_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("=")
    with pytest.raises(ConfigError) as refused:
        load(file, {"HAWSE_RELAY_MODE": "direct"})
    assert refused.value.faults == [f"{file}: not TOML: Invalid statement (at line 1, column 1)"]
