"""A host for each cluster: real kubectl, which finds it by an egress proxy, and raw requests."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
import yaml

from proxy.cli.agent.kubeconfig import kubeconfig as kubeconfig_command
from sandbox.demo.processes import Daemons, free_port
from tests.fakes.apiserver import ApiServer, running_apiserver
from tests.system.connecting import connected
from tests.system.raw import DEADLINE_S, Answer, RawClient, Talk
from tests.system.waiting import wait_until
from tests.system.world import (
    NAMESPACE,
    POD,
    WAYS,
    Result,
    World,
    connect,
    invoke,
    make_world,
    run,
    running_world,
    start_and_enrol,
)

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

DOMAIN = "k8s.hub.example"
SETTINGS = f'cluster_hosts = "*.{DOMAIN}"'


# -- kubectl -------------------------------------------------------------------------------------------------


class _Connect(socketserver.StreamRequestHandler):
    """CONNECT to any name leads to this machine, as a resolver would have it."""

    def handle(self) -> None:
        asked = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        match = re.fullmatch(rb"CONNECT ([a-z0-9.-]+):([0-9]+) HTTP/1\.1\r\n", asked)
        assert match is not None
        assert match[1].decode().endswith(DOMAIN)
        with socket.create_connection(("127.0.0.1", int(match[2]))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            ends = {far: self.connection, self.connection: far}
            with suppress(OSError):
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        ends[end].sendall(data)


@pytest.fixture(scope="module")
def egress() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Connect) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@attrs.define(eq=False)
class Agent:
    """An agent whose kubeconfig names the clusters' hosts."""

    world: World
    environment: Mapping[str, str]

    @property
    def kubeconfig(self) -> Path:
        return Path(self.environment["KUBECONFIG"])

    def kubectl(self, way: str, *args: str, stdin: bytes | None = None) -> Result:
        argv = ["kubectl", f"--context={way}", f"--namespace={NAMESPACE}", *args]
        return run(argv, self.environment, stdin)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory, egress: str) -> Iterator[Agent]:
    with running_world(tmp_path_factory.mktemp("hosted"), hub_settings=SETTINGS) as world:
        kubeconfig = world.folder / "agent" / "hosts.kubeconfig"
        environment = {**world.agent, "KUBECONFIG": str(kubeconfig), "HTTPS_PROXY": egress, "NO_PROXY": ""}
        invoke(kubeconfig_command, "--hosts", environment=environment)
        yield Agent(world, environment)
        own = [line for line in world.cluster_audit() if line.get("unimpersonated")]
        assert not own, f"the relay's own account acted: {own[0]}"


@contextmanager
def kubectl_proxy(environment: Mapping[str, str], *args: str) -> Iterator[str]:
    """`kubectl proxy`, which leaves out the path of the server's URL; yields its own URL."""
    argv = ["kubectl", *args, "proxy", "--port=0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().decode().strip().rpartition(":")[2]
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("way", WAYS)
def test_kubectl_works_by_a_clusters_host(hosted: Agent, way: str) -> None:
    assert b"workbench" in hosted.kubectl(way, "get", "pods").out
    assert json.loads(hosted.kubectl(way, "get", "--raw", "/api").out)["kind"] == "APIVersions"
    done = hosted.kubectl(way, "exec", "-i", POD, "--", "cat", stdin=b"through the host\n")
    assert (done.code, done.out) == (0, b"through the host\n"), done.err
    done = hosted.kubectl(way, "auth", "can-i", "list", "pods")
    assert done.out == b"yes\n", done.err


@pytest.mark.parametrize("way", WAYS)
def test_kubectl_proxy_works_by_a_clusters_host(hosted: Agent, way: str) -> None:
    with kubectl_proxy(hosted.environment, f"--context={way}") as url:
        status, body = fetch(f"{url}/api/v1/namespaces/{NAMESPACE}/pods")
    assert status == 200, body
    assert POD in body


def test_a_client_that_leaves_out_the_path_is_told_of_the_hosts(hosted: Agent) -> None:
    with kubectl_proxy(hosted.world.agent, "--context=tunnel") as url:
        status, body = fetch(f"{url}/api/v1/namespaces/{NAMESPACE}/pods")
    assert status == 404
    assert "this client has left out the path of its server's URL, /clusters/NAME" in body
    assert "hawse kubeconfig --hosts" in body
    assert "operator" not in body


def test_a_kubeconfig_names_the_hub_for_the_plugin_and_no_path(hosted: Agent) -> None:
    config = yaml.safe_load(hosted.kubeconfig.read_text())
    port = hosted.world.hub_port
    servers = {each["name"]: each["cluster"]["server"] for each in config["clusters"]}
    assert servers == {way: f"https://{way}.{DOMAIN}:{port}" for way in WAYS}
    [user] = config["users"]
    assert user["user"]["exec"]["args"] == ["--hub", f"https://127.0.0.1:{port}"]


@pytest.mark.parametrize("client", ["kubectl", "one that tells a plugin nothing"])
def test_the_script_repeats_what_the_plugin_has_answered(hosted: Agent, client: str, tmp_path: Path) -> None:
    """Without `hawse` it can only be the script's own."""
    world = hosted.world
    server, hub = f"https://tunnel.{DOMAIN}:{world.hub_port}", f"https://127.0.0.1:{world.hub_port}"
    info = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {}}
    environment, args = dict(hosted.environment), ["--hub", hub]
    if client == "kubectl":
        info["spec"] = {"cluster": {"server": server}, "interactive": False}
        environment["KUBERNETES_EXEC_INFO"] = json.dumps(info, separators=(",", ":")) + "\n"
    else:
        args = ["--server", server, *args]
    script = shutil.which("hawse-credential")
    assert script is not None
    first = run([script, *args], environment)
    assert first.code == 0, first.err
    alone = tmp_path / "hawse-credential"
    shutil.copy(script, alone)
    again = run([str(alone), *args], {**environment, "PATH": "/usr/bin:/bin"})
    assert (again.code, again.out) == (0, first.out), again.err
    # Of another hub it repeats nothing.
    other = run([str(alone), *args[:-1], "https://other.example"], {**environment, "PATH": "/usr/bin:/bin"})
    assert other.code != 0


@pytest.mark.parametrize(
    "server",
    ["https://tunnel.evil.example", "https://tunnel.{domain}", "https://tunnel.{domain}.evil.example:{port}",
     "https://evil.example/.{domain}:{port}", "https://a.tunnel.{domain}:{port}", "https://{domain}:{port}",
     "https://127.0.0.1:{port}/clusters/tunnel"],
)  # fmt: skip
def test_a_kubeconfig_cannot_have_a_token_shown_to_another_host(hosted: Agent, server: str) -> None:
    world = hosted.world
    server = server.format(domain=DOMAIN, port=world.hub_port)
    hub = f"https://127.0.0.1:{world.hub_port}"
    done = run(["hawse", "credential", "--server", server, "--hub", hub], hosted.environment)
    assert (done.code, done.out) == (1, b"")
    assert b"is not a cluster of " + hub.encode() in done.err
    # Nor may a login be used for a hub that it is not of.
    done = run(
        ["hawse", "credential", "--server", server, "--hub", "https://evil.example"], hosted.environment
    )
    assert (done.code, done.out) == (1, b"")
    assert b"not logged in to https://evil.example" in done.err


def test_one_kubeconfig_changes_from_paths_to_hosts_and_back(hosted: Agent, tmp_path: Path) -> None:
    environment = {**hosted.environment, "KUBECONFIG": str(tmp_path / "config")}
    for flags in ((), ("--hosts",), ("--hosts", "--user-per-cluster"), ()):
        invoke(kubeconfig_command, *flags, environment=environment)
        done = run(["kubectl", "--context=tunnel", "-n", NAMESPACE, "get", "pods", "-o", "name"], environment)
        assert done.out == f"pod/{POD}\n".encode(), done.err


def test_connect_goes_by_the_hubs_own_host_as_ever(hosted: Agent) -> None:
    # Without the egress proxy, by which alone a cluster's host is found.
    with connected(hosted.world.agent, "tunnel") as running:
        assert running.kubectl("get", "pods", "-o", "name").out == f"pod/{POD}\n".encode()


# -- raw requests --------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Site:
    world: World
    server: ApiServer

    def ask(
        self,
        host: str,
        target: str,
        *headers: str,
        method: str = "GET",
        token: str = "",
        talk: Talk | None = None,
    ) -> Answer:
        """A request with a Host of its own, under the token of the cluster `tunnel` unless it has another."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        data = "\r\n".join(lines).encode() + b"\r\n\r\n"
        if talk is not None:
            talk.send(data)
            return talk.answer(body=method != "HEAD")
        with self.connect() as connection:
            talk = Talk(connection)
            talk.send(data)
            return talk.answer(body=method != "HEAD")

    def connect(self) -> ssl.SSLSocket:
        """By a cluster's name, which the development certificate has too."""
        plain = socket.create_connection(("127.0.0.1", self.world.hub_port), DEADLINE_S)
        context = RawClient(self.world, "tunnel").context()
        return context.wrap_socket(plain, server_hostname=f"tunnel.{DOMAIN}", suppress_ragged_eofs=False)

    def token(self, way: str = "tunnel") -> str:
        return RawClient(self.world, way).token()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("hosts")
    with running_apiserver() as server, Daemons(folder) as daemons:
        server.write_kubeconfig(folder / "relay.kubeconfig")
        world = make_world(folder, daemons, folder / "relay.kubeconfig", SETTINGS)
        start_and_enrol(world)
        connect(world)
        yield Site(world, server)


def seen(site: Site) -> list[str]:
    return [exchange.target for exchange in site.server.exchanges]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("written", ["{}", "{}:443", "{}:8443", "{}."])
def test_the_host_names_the_cluster_however_it_is_written(site: Site, way: str, written: str) -> None:
    mark = site.server.on(lambda exchange: exchange.answer(200, b"here"))
    host = written.format(f"{way}.{DOMAIN}")
    target = f"/api/v1/namespaces/work/configmaps/{mark}"
    for each in (host, host.upper()):
        assert site.ask(each, target, token=site.token(way)).body == b"here"
    assert [exchange.target for exchange in site.server.seen(mark)] == [target] * 2


@pytest.mark.parametrize(
    "target",
    ["/oauth/token", "/v1/enrol", "/v1/clusters", "/v1/tunnel", "/healthz", "/readyz",
     "/.well-known/jwks.json", "/clusters/direct/api", "/clusters/tunnel/version", "/metrics", "/"],
)  # fmt: skip
def test_a_clusters_host_serves_its_api_alone(site: Site, target: str) -> None:
    host = f"tunnel.{DOMAIN}"
    for method, body in (("GET", ()), ("POST", ("Content-Length: 0",))):
        # No answer holds the hub's data or a token.
        assert site.ask(host, target, *body, method=method).status == 401
        site.ask(host, target, *body, method=method, token=site.token())
        # Every path on this host goes to the API server.
        assert seen(site)[-1] == target
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    assert site.ask(host, target, *upgrade).status == 401


@pytest.mark.parametrize(
    "host",
    ["nosuch.{}", "a.tunnel.{}", "-.{}", "tunnel..{}", ".{}", "tunnel_.{}", "NOSUCH.{}:8443", "nosuch.{}."],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/api", "/clusters/tunnel/api", "/oauth/token", "/healthz", "/v1/tunnel"])
def test_a_host_that_is_no_clusters_is_a_404_whatever_is_asked_for(
    site: Site, host: str, target: str
) -> None:
    before = len(site.server.exchanges)
    for token in ("", site.token()):
        answer = site.ask(host.format(DOMAIN), target, token=token)
        assert answer.status == 404
        assert (
            f"no cluster of this hub has that host: they are *.{DOMAIN}" in json.loads(answer.body)["message"]
        )
    assert len(site.server.exchanges) == before


def test_a_token_is_for_its_cluster_alone(site: Site) -> None:
    before = len(site.server.exchanges)
    for token in ("", "a.b.c", site.token("direct")):
        assert site.ask(f"tunnel.{DOMAIN}", "/api", token=token).status == 401
    assert len(site.server.exchanges) == before
    assert site.ask(f"direct.{DOMAIN}", "/api", token=site.token("direct")).status == 200


def test_the_host_of_each_request_counts_on_one_connection(site: Site) -> None:
    mark = site.server.on(lambda exchange: exchange.answer(200, b"here"))
    path = f"/api/v1/namespaces/work/configmaps/{mark}"
    tunnel, direct = site.token("tunnel"), site.token("direct")
    hub = f"127.0.0.1:{site.world.hub_port}"
    with site.connect() as connection:
        talk = Talk(connection)
        # From the second one on, small requests are served without a task.
        for _ in range(3):
            assert site.ask(f"tunnel.{DOMAIN}", path, token=tunnel, talk=talk).body == b"here"
        assert site.ask(f"direct.{DOMAIN}", path, token=direct, talk=talk).body == b"here"
        assert site.ask(f"direct.{DOMAIN}", path, token=tunnel, talk=talk).status == 401
        assert site.ask(hub, f"/clusters/tunnel{path}", token=tunnel, talk=talk).body == b"here"
        assert site.ask(hub, "/healthz", talk=talk).body == b"ok\n"
        assert site.ask(f"tunnel.{DOMAIN}", "/healthz", token=tunnel, talk=talk).body != b"ok\n"
        assert site.ask(hub, path, token=tunnel, talk=talk).status == 404
        for _ in range(2):
            assert site.ask(f"tunnel.{DOMAIN}", path, token=tunnel, talk=talk).body == b"here"
        assert site.ask(f"nosuch.{DOMAIN}", path, token=tunnel, talk=talk).status == 404
        assert not talk.more()


@pytest.mark.parametrize("way", WAYS)
def test_a_redirect_stays_on_the_clusters_host(site: Site, way: str) -> None:
    host = f"{way}.{DOMAIN}:{site.world.hub_port}"
    own = f"https://127.0.0.1:{site.server.port}"
    for location, expected in {
        "/api/v1/x?y=1": "/api/v1/x?y=1",
        "x/../y": "/api/v1/namespaces/work/services/y",
        f"{own}/api/v1/x": "/api/v1/x",
        f"https://{host}/api/v1/x": "/api/v1/x",
        f"https://{host}/clusters/other/api": "/clusters/other/api",
        "/../../oauth/token": "/oauth/token",
        f"https://127.0.0.1:{site.world.hub_port}/oauth/token": None,
        f"https://other.{DOMAIN}:{site.world.hub_port}/api": None,
        "https://elsewhere.example/x": None,
        "//elsewhere.example/x": None,
        "/.//elsewhere.example/x": None,
        "/x/..//elsewhere.example/x": None,
        "/x/%2e%2e//elsewhere.example/x": None,
        f"https://{host}//elsewhere.example/x": None,
        f"{own}//elsewhere.example/x": None,
        "/\\elsewhere.example/x": "/%5Celsewhere.example/x",
    }.items():
        mark = site.server.on(
            lambda exchange, location=location: exchange.answer(  # type: ignore[misc]
                302, b"moved", f"Location: {location}", "Set-Cookie: a=b"
            )
        )
        target = f"/api/v1/namespaces/work/services/{mark}"
        answer = site.ask(host, target, token=site.token(way))
        assert (answer.status, answer.headers.get("location")) == (302, expected), location
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("way", WAYS)
def test_what_a_pod_has_written_is_sandboxed_on_the_clusters_host_too(site: Site, way: str) -> None:
    mark = site.server.on(lambda exchange: exchange.answer(200, b"<script>", "Set-Cookie: a=b"))
    target = f"/api/v1/namespaces/work/services/{mark}/proxy/"
    answer = site.ask(f"{way}.{DOMAIN}", target, token=site.token(way))
    assert (answer.status, answer.headers["content-security-policy"]) == (200, "sandbox")
    assert "set-cookie" not in answer.headers


def test_the_trail_says_of_both_forms_the_same(site: Site) -> None:
    mark = site.server.on(lambda exchange: exchange.answer(200, b"{}"))
    path = f"/api/v1/namespaces/work/configmaps/{mark}"
    forms = {f"tunnel.{DOMAIN}": path, f"127.0.0.1:{site.world.hub_port}": f"/clusters/tunnel{path}"}
    for host, target in forms.items():
        assert site.ask(host, target, token=site.token()).status == 200

    def events() -> list[dict[str, Any]]:
        return [row for row in site.world.audit_rows("--agent", "probe") if mark in json.dumps(row)]

    wait_until(lambda: len(events()) == len(forms))
    [one, other] = [(event["cluster"], event["req"], event["decision"]) for event in events()]
    assert one == other


def test_an_agent_that_is_locked_is_refused_on_a_clusters_host_too(site: Site) -> None:
    token = site.token()
    before = len(site.server.exchanges)
    site.world.admin("agent", "lock", "probe")
    try:
        answer = site.ask(f"tunnel.{DOMAIN}", "/api", token=token)
    finally:
        site.world.admin("agent", "unlock", "probe")
    assert answer.status == 403
    assert "agent:probe is locked" in json.loads(answer.body)["message"]
    assert len(site.server.exchanges) == before


def test_an_identity_that_the_client_brings_is_refused_on_a_clusters_host_too(site: Site) -> None:
    before = len(site.server.exchanges)
    answer = site.ask(f"tunnel.{DOMAIN}", "/api", "Impersonate-User: admin", token=site.token())
    assert answer.status == 403
    assert len(site.server.exchanges) == before


# -- the start -----------------------------------------------------------------------------------------------


def test_a_hub_whose_certificate_names_no_wildcard_does_not_start(tmp_path: Path) -> None:
    authority = trustme.CA()
    for name, names in (("plain", ["hub.example"]), ("wild", ["hub.example", f"*.{DOMAIN}"])):
        certificate = authority.issue_cert(*names)
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")

    def command(name: str) -> list[str]:
        config = tmp_path / f"{name}.toml"
        config.write_text(
            f'listen = "127.0.0.1:{free_port()}"\npublic_url = "https://hub.example"\ndata_dir = "data"\n'
            f'{SETTINGS}\n[admin]\nlisten = "127.0.0.1:{free_port()}"\n'
            f'[tls]\ncertificate = "{name}.pem"\nkey = "{name}.key"\n'
        )
        return ["hawse", "hub", "--config", str(config)]

    refused = run(command("plain"), {})
    assert refused.code == 1
    [told] = refused.err.decode().splitlines()
    assert told == (
        f"hawse: the hub cannot run: tls.certificate: {tmp_path}/plain.pem: it does not name *.{DOMAIN}: "
        "get one that does, or leave cluster_hosts out"
    )
    with Daemons(tmp_path) as daemons:
        daemons.start("wild", command("wild")).wait_for("hub is ready")
