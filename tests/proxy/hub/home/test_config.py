from __future__ import annotations

import sys
from pathlib import Path

import pytest

from proxy.hub.home.config import default_data_dir, load
from proxy.process.config import Address, ConfigError

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
    assert hub.audit.down_grace_s == 60


@pytest.mark.parametrize(
    ("listen", "public_url", "misleads"),
    [
        ("0.0.0.0:8443", None, True),
        ("[::]:8443", "https://localhost:8443", True),
        ("[::1]:8443", None, False),
        ("0.0.0.0:8443", "https://hub.example", False),
    ],
)
def test_a_url_that_leads_others_to_themselves_misleads(
    listen: str, public_url: str | None, misleads: bool
) -> None:
    stated = {} if public_url is None else {"HAWSE_HUB_PUBLIC_URL": public_url}
    told = load(None, {**ENV, "HAWSE_HUB_LISTEN": listen, **stated}).misleading
    assert bool(told) is misleads


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
        listen_proxy_from = ["192.0.2.7", "10.0.0.0/8"]
        data_dir = "data"
        pid_file = "hub.pid"
        [tls]
        certificate = "hub.pem"
        key = "hub.key"
        [admin]
        listen = "127.0.0.1:9000"
        [limits]
        streams_per_agent = 7
        requests_per_second = 50
        [limits.agents.controller]
        requests_per_second = 5000
        bytes_per_minute = 0
        [audit]
        mask = ["token=[^&]+"]
        reads_when_down = true
        down_grace_s = 0
        """
    )
    hub = load(file, ENV)
    assert hub.public_url == "https://hub.acme.example"
    assert hub.public_host == "hub.acme.example"
    assert hub.listen == Address("::", 443)
    assert hub.listen_proxy_from == ("192.0.2.7", "10.0.0.0/8")
    assert hub.data_dir == tmp_path / "data"  # relative to the file, not to the working directory
    assert hub.pid_file == tmp_path / "hub.pid"
    assert (hub.tls.certificate, hub.tls.key) == (tmp_path / "hub.pem", tmp_path / "hub.key")
    assert hub.limits.streams_per_agent == 7
    assert hub.limits.of("anybody") is hub.limits
    own = hub.limits.of("controller")
    assert (own.streams_per_agent, own.requests_per_second, own.bytes_per_minute) == (7, 5000, 0)
    assert hub.audit.reads_when_down is True
    assert hub.audit.down_grace_s == 0
    assert hub.audit.mask == ("token=[^&]+",)


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
            "HAWSE_HUB_TUNNEL_RESUME": "false",
        },
    )
    assert hub.tunnel.resume is False
    assert (hub.org, hub.limits.streams_per_agent, str(hub.admin.listen)) == ("other", 9, "127.0.0.1:1")
    assert hub.audit.mask == ("a+", "b+")
    assert hub.audit.reads_when_down is True


def test_rules_across_keys_are_told_at_once(tmp_path: Path) -> None:
    found = faults(
        """
        org = "system"
        public_url = "http://hub.example"
        listen = "127.0.0.1:1"
        admin.listen = "127.0.0.1:1"
        tls.certificate = "missing.pem"
        limits.streams_per_agent = 0
        limits.cancels_per_second = -1
        limits.agents.controller.stream_age_s = -1
        audit.mask = ["a+", "(", "x*"]
        """,
        tmp_path,
    )
    assert f"tls.certificate: cannot be read: No such file or directory, looked for in {tmp_path}" in found
    assert found[-2:] == [
        "audit.mask: number 2 is not a regular expression in RE2's syntax: missing )",
        "audit.mask: number 3 matches the empty text, so it would mask everything",
    ]
    assert [line.partition(":")[0] for line in found] == [
        "org",
        "public_url",
        "tls",
        "tls.certificate",
        "admin.listen",
        "limits.streams_per_agent",
        "limits.cancels_per_second",
        "limits.agents.controller.stream_age_s",
        "audit.mask",
        "audit.mask",
    ]


def test_an_agents_own_limits_are_read_as_strictly(tmp_path: Path) -> None:
    found = faults(
        """
        [limits.agents.a]
        streams_per_agent = "many"
        [limits.agents.b]
        stream_per_agent = 7
        """,
        tmp_path,
    )
    assert found[0] == "limits.agents.a.streams_per_agent: expected a whole number"
    assert found[1].startswith("limits.agents.b.stream_per_agent: no such key (did you mean ")
    assert len(found) == 2
    assert faults("limits.agents = 7", tmp_path) == ["limits.agents: expected a table"]
    little = "[limits]\naudit_bytes_at_once = 0\n[limits.agents.a]\naudit_bytes_at_once = 999999"
    assert faults(little, tmp_path) == [
        "limits.audit_bytes_at_once: expected 1000000 or more",
        "limits.agents.a.audit_bytes_at_once: expected 1000000 or more",
    ]
    with pytest.raises(ConfigError, match="no such setting"):
        load(None, {**ENV, "HAWSE_HUB_LIMITS_AGENTS": "x"})


def test_limits_of_a_name_that_no_agent_can_have_are_a_fault(tmp_path: Path) -> None:
    """They would hold for no agent, without a word."""
    (fault,) = faults("[limits.agents.Bob]\nstreams_per_agent = 7", tmp_path)
    assert fault.startswith("limits.agents: agent name 'Bob' is not valid: 1 to 63 of a-z")


def test_rules_are_told_beside_the_faults_of_types(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('org = "Bad Org"\nlisten = 5\nnonsense = 1\n[limits]\nstreams_per_agent = -3')
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    paths = [fault.partition(":")[0] for fault in caught.value.faults]
    assert sorted(paths) == ["limits.streams_per_agent", "listen", "nonsense", "org"]


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("k8s.hub.example", "expected a wildcard in lower case, as in *.k8s.hub.example"),
        ("*.K8s.hub.example", "expected a wildcard in lower case, as in *.k8s.hub.example"),
        ("*.example", "expected a wildcard in lower case, as in *.k8s.hub.example"),
        ("*.*.hub.example", "expected a wildcard in lower case, as in *.k8s.hub.example"),
        ("*.k8s.hub.example:8443", "expected a wildcard in lower case, as in *.k8s.hub.example"),
        ("*." + "a." * 94 + "example", "the domain has 195 characters, the limit is 189"),
        ("*.acme.example", "the host of public_url matches *.acme.example, which is for clusters only"),
    ],
)
def test_hosts_that_no_cluster_can_have_are_a_fault(pattern: str, fault: str, tmp_path: Path) -> None:
    text = f'public_url = "https://hub.acme.example"\ncluster_hosts = "{pattern}"'
    assert faults(text, tmp_path) == [f"cluster_hosts: {fault}"]


def test_the_hub_may_have_the_domain_of_its_clusters_hosts_for_itself() -> None:
    stated = {"HAWSE_HUB_CLUSTER_HOSTS": "*.acme.example", "HAWSE_HUB_PUBLIC_URL": "https://acme.example"}
    hosts = load(None, {**ENV, **stated}).hosts
    assert hosts is not None
    assert (hosts.domain, hosts.pattern) == ("acme.example", "*.acme.example")


def test_what_names_no_load_balancer_is_a_fault(tmp_path: Path) -> None:
    assert faults('listen_proxy_from = ["192.0.2.7", "::/0"]', tmp_path) == [
        "listen_proxy_from: number 2 is every address: any client could claim another address"
    ]


def test_there_is_a_limit_to_the_patterns() -> None:
    patterns = "\n".join(f"secret-{number}" for number in range(101))
    with pytest.raises(ConfigError, match=r"audit\.mask: expected at most 100 regular expressions"):
        load(None, {**ENV, "HAWSE_HUB_AUDIT_MASK": patterns})


def test_patterns_without_their_engine_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(ConfigError) as caught:
        load(None, {**ENV, "HAWSE_HUB_AUDIT_MASK": "a+\nb+"})
    assert caught.value.faults == ["audit.mask: needs the package google-re2: pip install google-re2"]
    assert load(None, ENV).audit.mask == ()


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


def test_a_public_url_that_no_token_could_name_is_a_fault() -> None:
    with pytest.raises(ConfigError, match="public_url: write it in lower case"):
        load(None, {**ENV, "HAWSE_HUB_PUBLIC_URL": "https://Hub.example"})


def test_the_sealing_key_is_in_the_data_folder_unless_stated(tmp_path: Path) -> None:
    assert load(None, ENV).seal_file == default_data_dir(ENV) / "seal.key"
    [fault] = faults("database.seal_file = 'seal.key'", tmp_path)
    assert fault == "database.seal_file: goes with database.url only"
    url = "database.url = 'postgresql://hawse@localhost/hawse'"
    (tmp_path / "hub.toml").write_text(f"{url}\ndatabase.seal_file = 'seal.key'")
    assert load(tmp_path / "hub.toml", ENV).seal_file == tmp_path / "seal.key"
    [fault] = faults(f"{url}\ndatabase.seal_file = 'none/seal.key'", tmp_path)
    assert fault == "database.seal_file: its folder does not exist"
    [fault] = faults(f"{url}\ndatabase.seal_file = '{'5ec4e7A0' * 8}'", tmp_path)
    assert fault == "database.seal_file: must name a file, and not be the key itself"


def test_each_key_has_its_variable() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {**ENV, "HAWSE_HUB_": "1"})
    assert caught.value.faults == [
        "HAWSE_HUB_: no such setting; there are HAWSE_HUB_ADMIN_LISTEN, "
        "HAWSE_HUB_AUDIT_DOWN_GRACE_S, HAWSE_HUB_AUDIT_MASK, "
        "HAWSE_HUB_AUDIT_READS_WHEN_DOWN, HAWSE_HUB_AUDIT_WAIT_S, "
        "HAWSE_HUB_CLUSTER_HOSTS, HAWSE_HUB_CONSOLE_LISTEN, HAWSE_HUB_CONSOLE_LISTEN_PROXY_FROM, "
        "HAWSE_HUB_CONSOLE_PUBLIC_URL, HAWSE_HUB_DATABASE_ACCEPT_ROLLBACK, "
        "HAWSE_HUB_DATABASE_PASSWORD_FILE, HAWSE_HUB_DATABASE_SEAL_FILE, "
        "HAWSE_HUB_DATABASE_STALE_S, HAWSE_HUB_DATABASE_STALE_STREAMS_S, "
        "HAWSE_HUB_DATABASE_URL, HAWSE_HUB_DATA_DIR, "
        "HAWSE_HUB_LIMITS_AUDIT_BYTES_AT_ONCE, "
        "HAWSE_HUB_LIMITS_AUDIT_BYTES_PER_SECOND, HAWSE_HUB_LIMITS_BYTES_PER_MINUTE, "
        "HAWSE_HUB_LIMITS_CANCELS_PER_SECOND, HAWSE_HUB_LIMITS_IDLE_CONNECTIONS, "
        "HAWSE_HUB_LIMITS_RELAYS_PER_CLUSTER, HAWSE_HUB_LIMITS_REQUESTS_PER_SECOND, "
        "HAWSE_HUB_LIMITS_STREAMS_PER_AGENT, "
        "HAWSE_HUB_LIMITS_STREAM_AGE_S, HAWSE_HUB_LIMITS_STREAM_IDLE_IN_S, "
        "HAWSE_HUB_LIMITS_STREAM_IDLE_OUT_S, HAWSE_HUB_LIMITS_TOKENS_PER_MINUTE, "
        "HAWSE_HUB_LIMITS_TUNNELS_PER_RELAY, "
        "HAWSE_HUB_LISTEN, HAWSE_HUB_LISTEN_PROXY_FROM, HAWSE_HUB_LOG_FORMAT, "
        "HAWSE_HUB_MEMORY_MIB, HAWSE_HUB_ORG, "
        "HAWSE_HUB_PEER_ADDRESS, HAWSE_HUB_PEER_LISTEN, "
        "HAWSE_HUB_PID_FILE, HAWSE_HUB_PUBLIC_URL, HAWSE_HUB_STOP_GRACE_S, "
        "HAWSE_HUB_STOP_LB_S, HAWSE_HUB_STOP_REPLACED_GRACE_S, "
        "HAWSE_HUB_TLS_CERTIFICATE, HAWSE_HUB_TLS_KEY, "
        "HAWSE_HUB_TUNNEL_PING_S, HAWSE_HUB_TUNNEL_RESUME"
    ]


def test_an_idle_tunnel_is_pinged_every_5_to_60_s() -> None:
    assert load(None, ENV).tunnel.ping_s == 30
    for ping_s in (5, 60):
        assert load(None, {**ENV, "HAWSE_HUB_TUNNEL_PING_S": str(ping_s)}).tunnel.ping_s == ping_s
    for ping_s in (4, 61):
        with pytest.raises(ConfigError) as caught:
            load(None, {**ENV, "HAWSE_HUB_TUNNEL_PING_S": str(ping_s)})
        assert caught.value.faults == ["tunnel.ping_s: expected 5 to 60 seconds"]


def test_the_grace_of_a_trail_that_is_down_is_no_less_than_none_and_no_more_than_a_day(
    tmp_path: Path,
) -> None:
    for value in (-1, 86_401):
        assert faults(f"[audit]\ndown_grace_s = {value}\n", tmp_path) == [
            "audit.down_grace_s: expected 0 (without end) to 86400 seconds"
        ]


def test_the_age_of_what_the_hub_decides_by_has_bounds(tmp_path: Path) -> None:
    hub = load(None, ENV)
    assert (hub.database.stale_s, hub.database.stale_streams_s) == (10, 60)
    file = tmp_path / "hub.toml"
    for stale_s, stale_streams_s in ((2, 2), (35, 60), (3600, 86_400)):
        file.write_text(f"[database]\nstale_s = {stale_s}\nstale_streams_s = {stale_streams_s}\n")
        hub = load(file, ENV)
        assert (hub.database.stale_s, hub.database.stale_streams_s) == (stale_s, stale_streams_s)
    for stale_s in (0, 1, 3601):
        told = faults(f"[database]\nstale_s = {stale_s}\n", tmp_path)
        assert told == ["database.stale_s: expected 2 to 3600 seconds"]
    for stale_streams_s in (9, 86_401):
        told = faults(f"[database]\nstale_streams_s = {stale_streams_s}\n", tmp_path)
        assert told == ["database.stale_streams_s: expected 10 (database.stale_s) to 86400 seconds"]
    # A bound above the default of the other one.
    told = faults("[database]\nstale_s = 61\n", tmp_path)
    assert told == ["database.stale_streams_s: expected 61 (database.stale_s) to 86400 seconds"]


def test_a_relay_has_one_to_eight_tunnels(tmp_path: Path) -> None:
    for number in (0, 9):
        [fault] = faults(f"limits.tunnels_per_relay = {number}", tmp_path)
        assert fault == "limits.tunnels_per_relay: expected 1 to 8"
    # Where no hub is linked to another, one.
    assert load(None, {**ENV, "HAWSE_HUB_LIMITS_TUNNELS_PER_RELAY": "8"}).tunnels_per_relay == 1
    linked = (
        "database.url = 'postgresql://hawse@localhost/hawse'\n"
        "limits.tunnels_per_relay = 8\npeer.listen = '[::]:8445'\npeer.address = '10.0.3.7:8445'\n"
    )
    (tmp_path / "hub.toml").write_text(linked)
    assert load(tmp_path / "hub.toml", ENV).tunnels_per_relay == 8
